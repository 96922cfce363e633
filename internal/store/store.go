// Package store keeps bytes at their real mirror paths below one root directory.
//
// It alone makes a name appear in the tree, and go: a body is written to a Pending file in ROOT/.instantmirror/tmp and
// becomes visible, whole, by Commit, or together with others by way of a Bundle. Every access goes through one os.Root, so that no path, however it is spelled
// and whatever symlinks stand in the tree, leads out of it.
package store

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Private is the directory below the root that is never served.
	Private = ".instantmirror"

	tmpDir     = Private + "/tmp"
	genDir     = Private + "/gen"
	formatFile = Private + "/format"
	lockFile   = Private + "/lock"
	format     = "instantmirror root, format 1\n"
)

// ErrNoSpace says that a file does not fit: the disk is full, or would have less than the reserve left.
var ErrNoSpace = errors.New("no room")

// ErrIsDir says that a path names a directory of the tree.
var ErrIsDir = errors.New("is a directory")

// Store is one root directory, locked for this process.
type Store struct {
	dir     string
	root    *os.Root
	lock    *os.File
	reserve atomic.Int64 // bytes of the file system that are always left free
	claimed atomic.Int64 // bytes that pending files reserved and have not written yet
	serial  atomic.Uint64

	dirs    sync.Mutex      // held while directories are made or removed
	durable map[string]bool // directories whose names are durable
	held    map[string]int  // directories that files are about to come to, how many

	partials sync.Mutex      // map operations only
	taken    map[string]bool // downloads that were taken up, by their names in tmp, under partials

	names     sync.Mutex // over each rename into the tree and each unlink, with what is counted of it
	room      room
	measuring chan struct{} // holds a token while Measure runs

	handles handles

	gens   atomic.Uint64 // the number of the last bundle
	found  sync.Mutex    // over the reading of manifests
	unread []uint64      // sealed bundles that Open found and Bundles has not read, under found
	read   []*Bundle     // those that it has, under found

	// space says how many bytes the file system has free for us, and has at all. Tests replace it.
	space func() (free, total int64, err error)
	fault atomic.Pointer[func(step, path string, before bool) error]
}

// Open opens the root directory dir, making it if need be, locks it, and sweeps what a crash left unfinished. At
// least reserve bytes of its file system will be left free.
func Open(dir string, reserve int64) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	if abs == "/" {
		return nil, fmt.Errorf("root %s: the root of the mirror must be a directory of its own, e.g. /srv/mirror", dir)
	}
	_, statErr := os.Stat(abs)
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, fmt.Errorf("making the root: %w: make it yourself and let the daemon's user own it, or name another (root, --root)", err)
	}
	if errors.Is(statErr, fs.ErrNotExist) { // ours: others read it, whatever the umask says
		if err := os.Chmod(abs, 0o755); err != nil {
			return nil, fmt.Errorf("making the root: %w", err)
		}
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("opening the root: %w", err)
	}
	s := &Store{
		dir: abs, root: root,
		durable: make(map[string]bool), held: make(map[string]int), taken: make(map[string]bool), measuring: make(chan struct{}, 1),
	}
	s.reserve.Store(reserve)
	s.space = s.statfs
	s.handles.open, s.handles.seed = s.openFile, maphash.MakeSeed()
	s.SetQuotas(nil)
	if err = s.prepare(); err == nil {
		err = checkOneFileSystem(abs)
	}
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			err = fmt.Errorf("%w: the daemon's user must be able to write there", err)
		}
		return nil, errors.Join(fmt.Errorf("root %s: %w", abs, err), s.Close())
	}
	return s, nil
}

// prepare makes the private directory, takes the lock and sweeps what is in it, in this order: only the holder of the
// lock knows that nobody is writing there.
func (s *Store) prepare() error {
	for _, d := range []string{Private, tmpDir, genDir} {
		if err := s.root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := s.root.Chmod(Private, 0o700); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	switch b, err := s.root.ReadFile(formatFile); {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(b) == 0: // a crash at the very first start
		if err := s.writeFile(tmpDir+"/format", formatFile, []byte(format)); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(b) != format:
		return fmt.Errorf("%s says %q, not %q: it was made by another version of instantmirror; use that one or another root", formatFile, b, format)
	}
	for _, d := range []string{Private, "."} { // a bundle can be sealed only where its directory will be found
		if err := s.syncDir(d); err != nil {
			return err
		}
	}
	if err := s.sweep(partialAge); err != nil {
		return err
	}
	return s.sweepBundles()
}

// changed is when a file was last written or renamed. Its modification time may be upstream's already.
func changed(info fs.FileInfo) time.Time {
	st := info.Sys().(*syscall.Stat_t)
	return time.Unix(st.Ctim.Unix())
}

// sweep removes what a crash left in tmp, but for downloads younger than keep that can be taken up again.
func (s *Store) sweep(keep time.Duration) error {
	entries, err := fs.ReadDir(s.root.FS(), tmpDir)
	for _, e := range entries {
		info, ierr := e.Info()
		if ierr == nil && strings.HasPrefix(e.Name(), partialPrefix) && time.Since(changed(info)) < keep {
			continue
		}
		err = errors.Join(err, s.root.RemoveAll(tmpDir+"/"+e.Name()))
	}
	if err != nil {
		return fmt.Errorf("sweeping unfinished downloads: %w", err)
	}
	return nil
}

func (s *Store) takeLock() error {
	f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.Read(holder)
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("locking %s: %w", lockFile, err)
		}
		return fmt.Errorf("it is served by another instantmirror (pid %s); one daemon per root: stop that one, or use another root", holder[:n])
	}
	s.lock = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprint(f, os.Getpid())
	return err
}

// Close closes idle handles and gives up the lock. Files handed out stay readable.
func (s *Store) Close() error {
	s.handles.closeAll()
	if s.lock != nil {
		s.lock.Close()
	}
	return s.root.Close()
}

// Dir is the absolute path of the root directory.
func (s *Store) Dir() string { return s.dir }

// Get opens the stored file at name, a path relative to the root. The error is fs.ErrNotExist when nothing is
// stored there and ErrIsDir for a directory. The caller closes the File.
func (s *Store) Get(name string) (*File, error) { return s.handles.get(name) }

func (s *Store) openFile(name string) (*os.File, os.FileInfo, error) {
	if !fs.ValidPath(name) || private(name) {
		return nil, nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	// O_NONBLOCK: a FIFO that somebody made in the tree must not hold us up.
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if absent(err) {
			err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = stored(name, info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// ReadDir lists the stored directory name in the order of its names; "." is the root. The private directory and
// whatever is neither file nor directory is left out.
func (s *Store) ReadDir(name string) ([]fs.FileInfo, error) {
	if !fs.ValidPath(name) || private(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	entries, err := fs.ReadDir(s.root.FS(), name)
	if err != nil {
		return nil, err
	}
	infos := make([]fs.FileInfo, 0, len(entries))
	for _, e := range entries {
		if private(path.Join(name, e.Name())) {
			continue
		}
		info, err := s.root.Stat(path.Join(name, e.Name()))
		if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
			continue // it went meanwhile, leads out of the tree, or is not ours
		}
		infos = append(infos, named{info, e.Name()})
	}
	return infos, nil
}

// named is what a name leads to, called by that name.
type named struct {
	fs.FileInfo
	name string
}

func (n named) Name() string { return n.name }

// private reports whether name is the private directory or below it.
func private(name string) bool {
	return name == Private || len(name) > len(Private) && name[:len(Private)+1] == Private+"/"
}
