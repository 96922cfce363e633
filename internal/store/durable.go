package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"
)

// These are the system calls by which the tree changes, in order. Those in brackets happen only for directories that
// are not there yet, outermost first:
//
//	[mkdirat(dir, 0755) fchmodat(dir, 0755) fsync(parent)]
//
// A commit, by Pending.Commit:
//
//	fchmod(file, 0644)
//	utimensat(file, mtime)
//	fsync(file)                  the bytes and times are on the disk before any name leads to them
//	[directories]
//	(the gate is passed)
//	renameat(file, path)         atomic: readers find the old file, or this one
//	(the gate is left)
//	fsync(directory)             the name is on the disk
//
// A crash before the rename leaves the old state and a file in tmp, which the next start sweeps or, if its digest is
// known, keeps for the next try. A crash after it leaves the old or the new name, either with all of its bytes.
//
// A removal, by Store.Remove:
//
//	unlinkat(path)...
//	unlinkat(dir, AT_REMOVEDIR)...   those that are empty now, innermost first
//	fsync(directory)...          each that lost a name and still stands, once
//
// A crash leaves some of the names.
//
// A bundle, M being the files and N the bundle in .instantmirror/gen, whose own name is durable since Open:
//
//	mkdirat(gen/N)               NewBundle
//	fchmod, utimensat, fsync(file), renameat(file, gen/N/M)      Pending.Stage, for each file
//	fsync(gen/N)                 Seal
//	openat, write, fsync(gen/N.new)
//	renameat(gen/N.new, gen/N.json)
//	fsync(gen)                   from now on a start finishes what follows
//	[directories]                Apply
//	unlinkat(path)...            removals
//	renameat(gen/N/M, path)...   all but the pointer
//	fsync(directory)...          of all of these
//	renameat(gen/N/M, path)      the pointer: what it vouches for is on the disk
//	fsync(directory)
//	unlinkat(gen/N.json)
//	fsync(gen)                   it is not applied once more, over what comes later
//	unlinkat(gen/N)
//
// A crash before the manifest gen/N.json has its name leaves the old state, and what the next start sweeps. After a later
// one Apply does it all again: a file that is not in gen/N has its name already.

// publish moves a pending file to its path.
func (p *Pending) publish(mtime time.Time, gate func() (func(), error)) error {
	s := p.store
	if err := p.settle(mtime); err != nil {
		return err
	}
	dir := path.Dir(p.path)
	if err := s.holdDir(dir); err != nil {
		return err
	}
	defer s.letGoDir(dir)
	release := func() {}
	if gate != nil {
		r, err := gate()
		if err != nil {
			return err
		}
		if r != nil {
			release = r
		}
	}
	err := p.rename()
	release()
	if err != nil {
		return err
	}
	return s.syncDir(dir)
}

// settle brings the bytes, mode and times of a pending file to the disk.
func (p *Pending) settle(mtime time.Time) error {
	if err := checkPath(p.path); err != nil {
		return err
	}
	s := p.store
	if err := s.do("chmod", p.path, func() error { return p.file.Chmod(0o644) }); err != nil {
		return err
	}
	if err := s.do("chtimes", p.path, func() error { return s.root.Chtimes(p.name, mtime, mtime) }); err != nil {
		return err
	}
	return s.do("fsync", p.path, p.file.Sync)
}

// rename gives the file its name in the tree.
func (p *Pending) rename() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.store.place(p.name, p.path, p.charge)
	if err == nil {
		p.name, p.kept = p.path, true
	}
	return err
}

// place renames the file from, for which c was charged, to a path of the tree whose directory is held. The error is
// fs.ErrNotExist if there is no such file.
func (s *Store) place(from, to string, c *charge) error {
	var err error
	for range 3 {
		_, err = s.change(to, c, func() error {
			return s.do("rename", to, func() error { return s.root.Rename(from, to) })
		})
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if _, gone := s.root.Lstat(from); gone != nil {
			break
		}
		s.forgetDirs() // somebody removed the directory, which we remember as made
		if err := s.makeDir(path.Dir(to)); err != nil {
			return err
		}
	}
	s.handles.forget(to)
	return err
}

// forgetDirs makes makeDir look at every directory again.
func (s *Store) forgetDirs() {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	clear(s.durable)
}

// makeDir makes the directory dir and those above it, world-searchable whatever the umask, each durably in its
// parent. One that is there already may be another flight's, or a crashed daemon's, of a moment ago: it counts as
// durable once this process has synced its parent.
func (s *Store) makeDir(dir string) error {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	return s.makeDirs(dir)
}

// holdDir is makeDir for a file that is about to come: until letGoDir, Remove leaves the directory alone.
func (s *Store) holdDir(dir string) error {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	err := s.makeDirs(dir)
	if err == nil {
		s.held[dir]++
	}
	return err
}

func (s *Store) letGoDir(dir string) {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	if s.held[dir]--; s.held[dir] == 0 {
		delete(s.held, dir)
	}
}

func (s *Store) makeDirs(dir string) error {
	if dir == "." || s.durable[dir] {
		return nil
	}
	if info, err := s.root.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is a file in the tree, but a directory upstream: remove it", dir)
		}
		if err := s.makeDirs(path.Dir(dir)); err != nil {
			return err
		}
		if info.Mode().Perm()&0o500 == 0o500 && info.Mode().Perm()&0o055 == 0 { // a crash came before its chmod
			if err := s.root.Chmod(dir, 0o755); err != nil {
				return err
			}
		}
		return s.durably(dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	err := s.do("mkdir", dir, func() error {
		if err := s.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return s.root.Chmod(dir, 0o755)
	})
	if err != nil {
		return err
	}
	return s.durably(dir)
}

// durably makes the name of the directory dir durable.
func (s *Store) durably(dir string) error {
	err := s.syncDir(path.Dir(dir))
	if err == nil {
		s.durable[dir] = true
	}
	return err
}

// removeDir removes the directory dir if it is empty and nothing is about to come, and reports whether it is gone.
func (s *Store) removeDir(dir string) (bool, error) {
	s.dirs.Lock()
	defer s.dirs.Unlock()
	if info, err := s.root.Lstat(dir); err != nil || !info.IsDir() || s.held[dir] > 0 {
		return false, nil
	}
	err := s.do("rmdir", dir, func() error { return s.root.Remove(dir) })
	if notEmpty(err) {
		return false, nil
	}
	delete(s.durable, dir)
	return err == nil, err
}

func (s *Store) syncDir(dir string) error {
	d, err := s.root.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := s.do("fsyncdir", dir, d.Sync); err != nil {
		return fmt.Errorf("fsync of directory %s: %w", dir, err)
	}
	return nil
}

// syncDirs syncs directories, each once; one that is not there has nothing to lose.
func (s *Store) syncDirs(dirs map[string]bool) error {
	var all error
	for dir := range dirs {
		if err := s.syncDir(dir); err != nil && !absent(err) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// writeFile makes the private file name, whole and durable under that name: it is written as next first.
func (s *Store) writeFile(next, name string, content []byte) error {
	f, err := s.root.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = s.do("write", next, func() error {
		_, err := f.Write(content)
		return err
	})
	if err == nil {
		err = s.do("fsync", next, f.Sync)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = s.do("rename", name, func() error { return s.root.Rename(next, name) })
	}
	if err == nil {
		err = s.syncDir(path.Dir(name))
	}
	return err
}

// do carries out a step that changes what is on the disk.
func (s *Store) do(step, path string, f func() error) error {
	fault := s.fault.Load()
	if fault == nil {
		return f()
	}
	if err := (*fault)(step, path, true); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return (*fault)(step, path, false)
}

// SetFault is for tests, which make the disk fail: f is called before each step that changes what is on the disk, and
// again (before is false) when it was done. An error of the first call comes in place of the step; one of the second is
// returned although it was done. The steps are write, chmod, chtimes, fsync, mkdir, rename, fsyncdir, unlink and rmdir;
// path is what gets or loses its name, the directory of fsyncdir, and else where the file will stand. f is called by
// several goroutines at once; nil ends it.
func (s *Store) SetFault(f func(step, path string, before bool) error) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}
