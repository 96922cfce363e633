package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	// claimStep is by how much the claim of a file of unknown length grows, in bytes.
	claimStep = 8 << 20
	// partialPrefix begins the names in tmp of downloads that can be taken up again.
	partialPrefix = "partial-"
	// partialAge is how long those are kept without having grown.
	partialAge = 24 * time.Hour
)

// Pending is a download in progress: a file in tmp that nobody sees but those who hold it, until Commit or Stage. Whoever
// made it closes it, committed or not. Open is for any goroutine, all else for one at a time.
type Pending struct {
	store   *Store
	path    string // where it will stand
	partial bool   // what is not committed is kept for the next try
	alone   bool   // nobody else takes up the same download until End
	tmp     string // where it is gathered
	file    *os.File
	size    int64 // bytes written
	claimed int64 // bytes reserved beyond size
	charge  *charge

	mu   sync.Mutex // held over the rename, so that Open finds the file under one name or the other
	name string     // where it stands now; "" once it is nowhere
	kept bool       // it is committed or staged: what stands at name is not ours to throw away
}

// Create begins a file that is to stand at path and satisfy want. The room is reserved at once: ErrNoSpace says that
// there is none. With resume set, and if want knows a digest, what an earlier download of the same bytes left behind,
// cut short or killed, is taken up again: Size says how much that is. It may be damaged; the digest will tell. While one
// does so, another one of the same bytes begins with none.
func (s *Store) Create(path string, want digest.Expectation, resume bool) (*Pending, error) {
	p := &Pending{store: s, path: path, charge: &charge{path: path}}
	flags := os.O_RDWR | os.O_CREATE
	if p.name = partialName(path, want); resume && !want.Sum().IsZero() && s.takeUp(p.name) {
		p.partial, p.alone = true, true
	} else {
		p.name = tmpDir + "/" + strconv.FormatUint(s.serial.Add(1), 10)
		flags |= os.O_EXCL
	}
	p.tmp = p.name
	f, err := s.root.OpenFile(p.name, flags, 0o600)
	if err != nil {
		p.letGo()
		return nil, noSpace(fmt.Errorf("beginning %s: %w", path, err))
	}
	p.file = f
	if p.size, err = f.Seek(0, io.SeekEnd); err == nil && want.Size() >= 0 && p.size > want.Size() {
		err = p.Cut(0)
	}
	if err == nil {
		err = p.claim(max(want.Size()-p.size, 0), p.size)
	}
	if err != nil {
		if p.size == 0 {
			p.Discard()
		}
		p.Close()
		return nil, noSpace(fmt.Errorf("beginning %s: %w", path, err))
	}
	return p, nil
}

// partialName is where the bytes that want, for path, are gathered.
func partialName(path string, want digest.Expectation) string {
	key := sha256.Sum256([]byte(path + "\x00" + want.String()))
	return tmpDir + "/" + partialPrefix + hex.EncodeToString(key[:])
}

// takeUp reports whether nobody has taken up the download at name, and takes it up.
func (s *Store) takeUp(name string) bool {
	s.partials.Lock()
	defer s.partials.Unlock()
	if s.taken[name] {
		return false
	}
	s.taken[name] = true
	return true
}

// letGo is the end of takeUp.
func (p *Pending) letGo() {
	if !p.alone {
		return
	}
	p.store.partials.Lock()
	defer p.store.partials.Unlock()
	delete(p.store.taken, p.tmp)
	p.alone = false
}

// Size is the number of bytes that are there.
func (p *Pending) Size() int64 { return p.size }

// Write appends b. The error is ErrNoSpace when it does not fit.
func (p *Pending) Write(b []byte) (int, error) {
	if lack := int64(len(b)) - p.claimed; lack > 0 {
		if err := p.extend(max(lack, claimStep)); err != nil {
			if err := p.extend(lack); err != nil {
				return 0, err
			}
		}
	}
	var n int
	err := p.store.do("write", p.path, func() (err error) {
		n, err = p.file.Write(b)
		return err
	})
	p.size += int64(n)
	p.claimed -= int64(n)
	p.store.claimed.Add(-int64(n))
	if err != nil {
		return n, noSpace(fmt.Errorf("writing %s: %w", p.path, err))
	}
	return n, nil
}

// Cut throws away what is there from byte n on. With n 0 it begins a new file: followers of an earlier download that
// could be taken up may still read the old one, and must not find other bytes in it.
func (p *Pending) Cut(n int64) error {
	var err error
	if n == 0 {
		err = p.renew()
	} else if err = p.file.Truncate(n); err == nil {
		_, err = p.file.Seek(n, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("beginning %s anew: %w", p.path, err)
	}
	p.store.claimed.Add(p.size - n) // the room stays ours
	p.claimed += p.size - n
	p.size = n
	return nil
}

// renew takes a new, empty file in place of the old one.
func (p *Pending) renew() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name != "" {
		if err := p.store.root.Remove(p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		p.name = ""
	}
	f, err := p.store.root.OpenFile(p.tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	p.file.Close()
	p.file, p.name = f, p.tmp
	return nil
}

// Open returns a new handle to the bytes written so far and to come, with a read offset of its own, until Close. The
// caller closes it. Where the file was thrown away, or committed and then replaced or removed, the bytes are still had
// through /proc; where there is none, the error is fs.ErrNotExist.
func (p *Pending) Open() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.openName()
	if err != nil {
		f, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()))
	}
	if err != nil {
		return nil, fmt.Errorf("opening the download of %s: %w", p.path, err)
	}
	return f, nil
}

// openName opens the file by its name, if it still has one. The caller holds p.mu.
func (p *Pending) openName() (*os.File, error) {
	if p.name == "" {
		return nil, fs.ErrNotExist
	}
	f, err := p.store.root.Open(p.name)
	if err != nil {
		return nil, err
	}
	mine, err1 := p.file.Stat()
	named, err2 := f.Stat()
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(mine, named) {
		f.Close()
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	return f, nil
}

// Commit makes the file appear at its path, whole and durable, with the modification time mtime, if it is what was
// expected; what stood there before is replaced. sum is the digest of what was written, by the expected digest's
// algorithm. gate, if not nil, is passed when the bytes are on the disk and only the name is missing: its error forbids
// the name, because the world may have changed during a long fsync; release, if not nil, is called when the name is
// there, or could not be given, and before it is on the disk.
//
// On an error nothing has changed in the tree, but for this: when only the last step fails, the fsync of the directory,
// the file stands, and power loss may bring the old state back; and no one knows what a disk did whose rename failed.
func (p *Pending) Commit(want digest.Expectation, sum digest.Sum, mtime time.Time, gate func() (release func(), err error)) error {
	err := want.Check(p.path, p.size, sum)
	if err == nil {
		err = p.publish(mtime, gate)
	}
	if err != nil {
		return noSpace(fmt.Errorf("committing %s: %w", p.path, err))
	}
	return nil
}

// Stage is Commit for a file that is to appear together with others, by b: it is moved into the bundle, in place of what
// was staged for its path before. It needs no gate.
func (p *Pending) Stage(b *Bundle, want digest.Expectation, sum digest.Sum, mtime time.Time) error {
	err := want.Check(p.path, p.size, sum)
	if err == nil {
		p.Unclaim()
		err = p.settle(mtime)
	}
	if err == nil {
		err = b.take(p)
	}
	if err != nil {
		return noSpace(fmt.Errorf("staging %s: %w", p.path, err))
	}
	return nil
}

// Discard throws away what was not committed: it is of no use for a next try.
func (p *Pending) Discard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name != "" && !p.kept {
		// Should this fail, the next start sweeps it.
		_ = p.store.root.Remove(p.name)
		p.name = ""
	}
}

// Close ends the download. What was not committed is gone, unless the next try can take it up. Handles that Open
// returned can be read on.
func (p *Pending) Close() {
	p.End()
	if !p.partial {
		p.Discard()
	}
	if !p.kept {
		p.store.room.giveBack(p.charge, -1)
	}
	p.file.Close()
}

// claim reserves n more bytes, or says that they are not there; had bytes are there already, and count from now on.
func (p *Pending) claim(n, had int64) error { return p.reserve(p.store.claim, n, had) }

// extend reserves n more bytes of a file whose length nobody knows, if they are there: it may be endless, and nothing is
// removed for it.
func (p *Pending) extend(n int64) error {
	return p.reserve(func(c *charge, n, had int64) error {
		_, err := p.store.tryClaim(c, n, had)
		return err
	}, n, 0)
}

func (p *Pending) reserve(claim func(c *charge, n, had int64) error, n, had int64) error {
	if err := claim(p.charge, n, had); err != nil {
		return err
	}
	p.claimed += n
	return nil
}

// End says that nothing more is done but reading: the next try may take up what is there.
func (p *Pending) End() {
	p.Unclaim()
	p.letGo()
}

// Unclaim gives back the room that was reserved and not written: no more will be.
func (p *Pending) Unclaim() {
	p.store.claimed.Add(-p.claimed)
	if !p.kept {
		p.store.room.giveBack(p.charge, p.claimed)
	}
	p.claimed = 0
}
