package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// claimStep is by how much the claim of a file of unknown length grows, in bytes.
const claimStep = 8 << 20

// Pending is a download in progress: a file in tmp that nobody sees but those who hold it, until Commit. Whoever made
// it closes it, committed or not. Write, Commit and Close are for one goroutine at a time; Open is for any.
type Pending struct {
	store   *Store
	path    string // where it will stand
	file    *os.File
	size    int64 // bytes written
	claimed int64 // bytes reserved beyond size

	mu   sync.Mutex // held over the rename, so that Open finds the file under one name or the other
	name string     // where it stands now
}

// Create begins a file that is to stand at path, size bytes long (-1: not known). The room is reserved at once:
// ErrNoSpace says that there is none.
func (s *Store) Create(path string, size int64) (*Pending, error) {
	p := &Pending{store: s, path: path, name: tmpDir + "/" + strconv.FormatUint(s.serial.Add(1), 10)}
	if err := p.claim(max(size, 0)); err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(p.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		p.unclaim()
		return nil, noSpace(fmt.Errorf("beginning %s: %w", path, err))
	}
	p.file = f
	return p, nil
}

// Write appends b. The error is ErrNoSpace when it does not fit.
func (p *Pending) Write(b []byte) (int, error) {
	if lack := int64(len(b)) - p.claimed; lack > 0 {
		if err := p.claim(max(lack, claimStep)); err != nil {
			if err := p.claim(lack); err != nil {
				return 0, err
			}
		}
	}
	var n int
	err := p.store.step("write")
	if err == nil {
		n, err = p.file.Write(b)
	}
	p.size += int64(n)
	p.claimed -= int64(n)
	p.store.claimed.Add(-int64(n))
	if err != nil {
		return n, noSpace(fmt.Errorf("writing %s: %w", p.path, err))
	}
	return n, nil
}

// Open returns a new handle to the bytes written so far and to come, with a read offset of its own. The caller
// closes it. After Commit the error is fs.ErrNotExist when the file has been replaced or removed meanwhile.
func (p *Pending) Open() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.store.root.Open(p.name)
	if err != nil {
		return nil, fmt.Errorf("opening the download of %s: %w", p.path, err)
	}
	mine, err := p.file.Stat()
	if err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && !os.SameFile(mine, info) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening the download of %s: %w", p.path, err)
	}
	return f, nil
}

// Commit makes the file appear at its path, whole and durable, with the modification time mtime, if it is what was
// expected; what stood there before is replaced. On an error nothing has changed in the tree, but for one case: when
// only the last step fails, the fsync of the directory, the file stands, and power loss may bring the old state back.
func (p *Pending) Commit(want digest.Expectation, mtime time.Time) error {
	err := want.Check(p.path, p.size)
	if err == nil {
		err = p.publish(mtime)
	}
	p.store.handles.forget(p.path)
	if err != nil {
		return noSpace(fmt.Errorf("committing %s: %w", p.path, err))
	}
	return nil
}

// Close ends the download: what was not committed is gone. Handles that Open returned can be read on.
func (p *Pending) Close() {
	p.unclaim()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name != p.path {
		// Should this fail, the next start sweeps it.
		_ = p.store.root.Remove(p.name)
	}
	p.file.Close()
}

// claim reserves n more bytes, or says that they are not there.
func (p *Pending) claim(n int64) error {
	if n == 0 {
		return nil
	}
	if err := p.store.claim(p.path, n); err != nil {
		return err
	}
	p.claimed += n
	return nil
}

// claim reserves n bytes for path.
func (s *Store) claim(path string, n int64) error {
	free, err := s.free()
	if err != nil {
		return fmt.Errorf("asking for the free space below %s: %w", s.dir, err)
	}
	reserve := s.reserve.Load()
	claimed := s.claimed.Add(n)
	if free-claimed < reserve {
		s.claimed.Add(-n)
		return fmt.Errorf("%s needs %d bytes: %w: %s has %d bytes free, of which %d are claimed by downloads and %d are kept as reserve",
			path, n, ErrNoSpace, s.dir, free, claimed-n, reserve)
	}
	return nil
}

// Room is ErrNoSpace if not even a byte of path could be stored now: then there is no point in asking for the file in
// order to store it.
func (s *Store) Room(path string) error {
	err := s.claim(path, 1)
	if err == nil {
		s.claimed.Add(-1)
	}
	return err
}

// unclaim gives back the room that was reserved and not written.
func (p *Pending) unclaim() {
	p.store.claimed.Add(-p.claimed)
	p.claimed = 0
}

// statfs returns the bytes that the file system of the root has for unprivileged users.
func (s *Store) statfs() (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// noSpace makes the system's words for a full disk match ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
