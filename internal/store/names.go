package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"syscall"
	"time"
)

// Info is what a stored file is.
type Info struct {
	Path    string
	Size    int64 // bytes
	ModTime time.Time
	Inode   uint64
	Links   uint64 // how many names it has
}

func infoOf(path string, info fs.FileInfo) Info {
	st := info.Sys().(*syscall.Stat_t)
	links := uint64(st.Nlink) //nolint:unconvert // it is shorter on other machines
	return Info{Path: path, Size: info.Size(), ModTime: info.ModTime(), Inode: st.Ino, Links: links}
}

// Stat says what is stored at name. Errors are those of Get.
func (s *Store) Stat(name string) (Info, error) {
	if checkPath(name) != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	info, err := s.root.Stat(name)
	if err == nil {
		err = stored(name, info)
	}
	if absent(err) {
		err = &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return Info{}, err
	}
	return infoOf(name, info), nil
}

// lstat says which regular file stands at name itself; the zero Info if none does.
func (s *Store) lstat(name string) Info {
	info, err := s.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return Info{}
	}
	return infoOf(name, info)
}

// Walk calls f for each regular file below the directory dir ("." or "" is the root), each directory in the order of
// its names; symlinks are not followed, and what is private or the file system's own (lost+found) is left out. The names of a directory are read at once, what
// goes meanwhile is skipped, and a directory that is not there holds nothing. An error of f ends it.
func (s *Store) Walk(ctx context.Context, dir string, f func(Info) error) error {
	if dir == "" {
		dir = "."
	}
	if !fs.ValidPath(dir) || private(dir) {
		return nil
	}
	if info, err := s.root.Stat(dir); absent(err) || err == nil && !info.IsDir() {
		return nil
	}
	return s.walk(ctx, dir, f)
}

func (s *Store) walk(ctx context.Context, dir string, f func(Info) error) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil && !absent(err) {
		return fmt.Errorf("looking through %s: %w", dir, err)
	}
	// d saves the look-up of dir for each of its files. It is not kept open over the directories below: there may be
	// more of them than descriptors.
	var d *os.Root
	closeDir := func() {
		if d != nil {
			_ = d.Close()
			d = nil
		}
	}
	defer closeDir()
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		name := path.Join(dir, e.Name())
		switch {
		case private(name), name == lostFound:
		case e.IsDir():
			closeDir()
			if err := s.walk(ctx, name, f); err != nil {
				return err
			}
		case e.Type().IsRegular():
			if d == nil {
				if d, err = s.root.OpenRoot(dir); absent(err) {
					return nil
				} else if err != nil {
					return fmt.Errorf("looking through %s: %w", dir, err)
				}
			}
			info, err := d.Lstat(e.Name())
			if absent(err) || err == nil && !info.Mode().IsRegular() {
				continue
			}
			if err != nil {
				return fmt.Errorf("looking at %s: %w", name, err)
			}
			if err := f(infoOf(name, info)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove removes what is stored at paths, durably, and the directories that are empty then. Where nothing is, or a
// directory, nothing happens. Handles that Get returned can be read on. freed is how many bytes the files had of which
// no other name is left. After an error some names may be left, and what went may come back with power loss.
func (s *Store) Remove(paths ...string) (freed int64, err error) {
	dirs := make(map[string]bool) // that lost a name
	for _, p := range paths {
		n, gone, uerr := s.unlink(p)
		freed += n
		if gone {
			dirs[path.Dir(p)] = true
		}
		err = errors.Join(err, uerr)
	}
	// What is below comes first: it is greater.
	for _, dir := range slices.Backward(slices.Sorted(maps.Keys(dirs))) {
		for dir != "." && dirs[dir] {
			gone, rerr := s.removeDir(dir)
			err = errors.Join(err, rerr)
			if !gone {
				break
			}
			delete(dirs, dir)
			dir = path.Dir(dir)
			dirs[dir] = true
		}
	}
	return freed, errors.Join(err, s.syncDirs(dirs))
}

// unlink takes the name p from the tree, not durably yet. gone is false if nothing stood there, freed how many bytes the
// file had if it had no other name.
func (s *Store) unlink(p string) (freed int64, gone bool, err error) {
	if err := checkPath(p); err != nil {
		return 0, false, fmt.Errorf("removing: %w", err)
	}
	freed, err = s.change(p, nil, func() error {
		info, err := s.root.Lstat(p)
		if absent(err) || err == nil && info.IsDir() {
			return nil
		}
		gone = true
		return s.do("unlink", p, func() error { return s.root.Remove(p) })
	})
	s.handles.forget(p)
	if err != nil {
		err = fmt.Errorf("removing %s: %w", p, err)
	}
	return freed, gone, err
}

// change runs f, which gives the name at p to another file or takes it away, and keeps count of what is stored, whatever
// f says. What was charged as c is in the tree after it. freed is how many bytes the file had that lost its last name.
func (s *Store) change(p string, c *charge, f func() error) (freed int64, err error) {
	s.names.Lock()
	defer s.names.Unlock()
	old := s.lstat(p)
	counted := s.room.changing(p)
	err = f()
	now := s.lstat(p)
	if err != nil {
		c = nil
	}
	s.room.changed(p, counted, old, now, c)
	if old.Links == 1 && old.Inode != now.Inode {
		freed = old.Size
	}
	return freed, err
}

// checkPath says if p can not be a file of the tree.
func checkPath(p string) error {
	if !fs.ValidPath(p) || p == "." || private(p) {
		return fmt.Errorf("%q is not a path of the tree", p)
	}
	return nil
}

// stored says why what stands at name is no stored file: ErrIsDir, or fs.ErrNotExist.
func stored(name string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return &fs.PathError{Op: "open", Path: name, Err: ErrIsDir}
	case !info.Mode().IsRegular():
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

// absent reports whether err says that nothing is there, or can be.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ELOOP)
}

// notEmpty reports whether err says that a directory has names in it.
func notEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}
