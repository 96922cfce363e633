package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// Bundle is a set of files that come to stand in the tree together, and of names that go with them. Until Seal it can be
// thrown away, and a crash does so; after Seal it stands all of it or nothing of it, whatever happens, once Apply was
// called to the end: by whoever sealed it, or after the next Open. While it is being applied, and after that failed,
// nobody else may change what is at its paths.
//
// Its methods are for any goroutine.
type Bundle struct {
	store *Store
	n     uint64 // its number

	busy sync.Mutex // over Seal, Apply and Discard

	mu       sync.Mutex // over renames into the bundle and out of it
	state    bundleState
	files    []*stagedFile // in the order of the renames
	removals []string
	note     []byte
	serial   uint64 // of the last file
	written  bool   // there may be a manifest
}

type bundleState int

const (
	gathering bundleState = iota
	sealing
	sealed
	ended // applied or thrown away
)

// stagedFile is a file of a bundle, never changed. It stays known after it was applied.
type stagedFile struct {
	path   string // in the tree
	name   string // in the directory of the bundle
	size   int64
	mtime  time.Time
	charge *charge
}

// NewBundle begins a bundle. Whoever made it ends it by Apply or Discard.
func (s *Store) NewBundle() (*Bundle, error) {
	b := &Bundle{store: s, n: s.gens.Add(1)}
	if err := s.do("mkdir", b.dir(), func() error { return s.root.Mkdir(b.dir(), 0o700) }); err != nil {
		_ = s.root.Remove(b.dir()) // it may be there all the same
		return nil, noSpace(fmt.Errorf("beginning a bundle: %w", err))
	}
	return b, nil
}

// dir is where the files are until they are applied, manifest the name by which the bundle is sealed.
func (b *Bundle) dir() string      { return genDir + "/" + strconv.FormatUint(b.n, 10) }
func (b *Bundle) manifest() string { return b.dir() + manifestSuffix }

// Add stages a small file made of content, in place of what was staged for path before.
func (b *Bundle) Add(path string, content []byte, mtime time.Time) error {
	want := digest.Unverified(int64(len(content)), "it was made or verified by who adds it")
	p, err := b.store.Create(path, want, false)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Write(content); err != nil {
		return err
	}
	return p.Stage(b, want, digest.Sum{}, mtime)
}

// take moves a pending file, which is on the disk, into the bundle.
func (b *Bundle) take(p *Pending) error {
	info, err := p.file.Stat() // its time is what the file system made of it
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != gathering {
		return errors.New("the bundle is closed")
	}
	b.serial++
	f := &stagedFile{path: p.path, name: strconv.FormatUint(b.serial, 10), size: p.size, mtime: info.ModTime(), charge: p.charge}
	to := b.dir() + "/" + f.name
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := b.store.do("rename", to, func() error { return b.store.root.Rename(p.name, to) }); err != nil {
		return err
	}
	p.name, p.kept = to, true
	b.drop(p.path)
	b.files = append(b.files, f)
	return nil
}

// drop forgets what was to happen at path. The caller holds b.mu.
func (b *Bundle) drop(path string) {
	b.removals = slices.DeleteFunc(b.removals, func(p string) bool { return p == path })
	b.files = slices.DeleteFunc(b.files, func(f *stagedFile) bool {
		if f.path != path {
			return false
		}
		// Should this fail, it goes with the directory.
		_ = b.store.root.Remove(b.dir() + "/" + f.name)
		b.store.room.giveBack(f.charge, -1)
		return true
	})
}

// Remove has the name path go when the bundle is applied, before files get their names. What was staged for it is
// dropped; staging a file for it again takes that back.
func (b *Bundle) Remove(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == gathering {
		b.drop(path)
		b.removals = append(b.removals, path)
	}
}

// find is what is staged for path, or nil.
func (b *Bundle) find(path string) *stagedFile {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.files {
		if f.path == path {
			return f
		}
	}
	return nil
}

// Has reports whether a file is staged for path, or was.
func (b *Bundle) Has(path string) bool { return b.find(path) != nil }

// Info says how many bytes the file has that is staged for path, and its modification time.
func (b *Bundle) Info(path string) (size int64, mtime time.Time, ok bool) {
	f := b.find(path)
	if f == nil {
		return 0, time.Time{}, false
	}
	return f.size, f.mtime, true
}

// Open opens the file that is staged for path. The error is fs.ErrNotExist when there is none, or it is in the tree
// already. The caller closes it.
func (b *Bundle) Open(path string) (*os.File, error) {
	f := b.find(path)
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return b.store.root.Open(b.dir() + "/" + f.name)
}

// Paths are those of the files, in the order in which they get their names. That is the order in which they were staged,
// but that the pointer comes last once the bundle is sealed.
func (b *Bundle) Paths() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	paths := make([]string, len(b.files))
	for i, f := range b.files {
		paths[i] = f.path
	}
	return paths
}

// Note is what Seal was given. It must not be changed.
func (b *Bundle) Note() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.note
}

// Seal makes the bundle durable: from now on a start finds it. last, the path of the pointer, must be staged, and gets its
// name when all others have theirs; note is kept for whoever applies the bundle. Nothing can be staged any more. After an
// error the bundle may be found sealed by the next start all the same, unless Seal is called again or Discard succeeds.
func (b *Bundle) Seal(last string, note []byte) error {
	b.busy.Lock()
	defer b.busy.Unlock()
	text, err := b.close(last, note)
	if err != nil {
		return fmt.Errorf("sealing a bundle: %w", err)
	}
	next := gathering
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.state = next
	}()
	s := b.store
	if err = s.syncDir(b.dir()); err == nil {
		err = s.writeFile(b.dir()+nextSuffix, b.manifest(), text)
	}
	if err != nil {
		return noSpace(fmt.Errorf("sealing the bundle of %s: %w", last, err))
	}
	next = sealed
	return nil
}

// close ends the gathering and gives the text of the manifest.
func (b *Bundle) close(last string, note []byte) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != gathering {
		return nil, errors.New("it is closed already")
	}
	i := slices.IndexFunc(b.files, func(f *stagedFile) bool { return f.path == last })
	if i < 0 {
		return nil, fmt.Errorf("%s, which is to come last, is not staged", last)
	}
	b.files = append(slices.Delete(slices.Clone(b.files), i, i+1), b.files[i])
	b.note = slices.Clone(note)
	text, err := b.encode()
	if err == nil {
		b.state, b.written = sealing, true
	}
	return text, err
}

// Apply makes the sealed bundle stand in the tree: removals, then files in their order, each step durable before the last
// file gets its name. It is the same for a bundle that Bundles found. After an error it can be called again; when it
// succeeded, further calls do nothing.
func (b *Bundle) Apply() error {
	b.busy.Lock()
	defer b.busy.Unlock()
	b.mu.Lock()
	state := b.state
	b.mu.Unlock()
	switch state {
	case ended:
		return nil
	case sealed:
	default:
		return errors.New("applying a bundle: it is not sealed")
	}
	if err := b.apply(); err != nil {
		return noSpace(fmt.Errorf("applying the bundle of %s: %w", b.files[len(b.files)-1].path, err))
	}
	return nil
}

func (b *Bundle) apply() error {
	s := b.store
	for _, f := range b.files {
		if err := s.holdDir(path.Dir(f.path)); err != nil {
			return err
		}
		defer s.letGoDir(path.Dir(f.path))
	}
	dirs := make(map[string]bool)
	for _, p := range b.removals {
		if _, _, err := s.unlink(p); err != nil {
			return err
		}
		dirs[path.Dir(p)] = true
	}
	pointer := b.files[len(b.files)-1]
	for _, f := range b.files[:len(b.files)-1] {
		if err := b.place(f); err != nil {
			return err
		}
		dirs[path.Dir(f.path)] = true
	}
	if err := s.syncDirs(dirs); err != nil {
		return err
	}
	if err := b.place(pointer); err != nil {
		return err
	}
	if err := s.syncDir(path.Dir(pointer.path)); err != nil {
		return err
	}
	return b.end()
}

// place gives a file its name, unless it has it already.
func (b *Bundle) place(f *stagedFile) error {
	from := b.dir() + "/" + f.name
	err := b.store.place(from, f.path, f.charge)
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := b.store.root.Lstat(from); errors.Is(gone, fs.ErrNotExist) {
			b.store.room.giveBack(f.charge, -1)
			return nil
		}
	}
	return err
}

// Discard throws the bundle away, so that no start finds it. What Apply did already stays. After Apply has succeeded it
// does nothing.
func (b *Bundle) Discard() error {
	b.busy.Lock()
	defer b.busy.Unlock()
	b.mu.Lock()
	before := b.state
	b.state = ended // nobody stages any more
	b.mu.Unlock()
	if before == ended {
		return nil
	}
	if err := b.end(); err != nil {
		b.mu.Lock()
		b.state = before
		b.mu.Unlock()
		return fmt.Errorf("discarding a bundle: %w", err)
	}
	return nil
}

// end removes what is left of the bundle, the manifest durably. The caller holds b.busy.
func (b *Bundle) end() error {
	s := b.store
	b.mu.Lock()
	written := b.written
	b.mu.Unlock()
	if written {
		err := s.do("unlink", b.manifest(), func() error { return s.root.Remove(b.manifest()) })
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = s.syncDir(genDir)
		}
		if err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = ended
	for _, f := range b.files {
		s.room.giveBack(f.charge, -1)
	}
	// Should this fail, the next start sweeps it.
	_ = errors.Join(s.root.RemoveAll(b.dir()), s.root.RemoveAll(b.dir()+nextSuffix))
	return nil
}
