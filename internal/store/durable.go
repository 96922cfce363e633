package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"
)

// publish moves a pending file to its path. These are the system calls of the happy path, in order; the directory
// calls in brackets happen only for directories that are not there yet, outermost first:
//
//	fchmod(file, 0644)
//	utimensat(file, mtime)
//	fsync(file)              the bytes and times are on the disk before any name leads to them
//	[mkdirat(dir, 0755) fchmodat(dir, 0755) fsync(parent)]
//	(confirm is asked)
//	renameat(file, path)     atomic: readers find the old file, or this one
//	fsync(directory)         the name is on the disk
//
// A crash before the rename leaves the old state and a file in tmp, which the next start sweeps or, if its digest is
// known, keeps for the next try. A crash after it leaves the old or the new name, either with all of its bytes.
func (p *Pending) publish(mtime time.Time, confirm func() error) error {
	s := p.store
	if !fs.ValidPath(p.path) || p.path == "." || private(p.path) {
		return fmt.Errorf("%q is not a path of the tree", p.path)
	}
	if err := s.step("chmod"); err != nil {
		return err
	}
	if err := p.file.Chmod(0o644); err != nil {
		return err
	}
	if err := s.step("chtimes"); err != nil {
		return err
	}
	if err := s.root.Chtimes(p.name, mtime, mtime); err != nil {
		return err
	}
	if err := s.step("fsync"); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := s.makeDir(path.Dir(p.path)); err != nil {
		return err
	}
	if confirm != nil {
		if err := confirm(); err != nil {
			return err
		}
	}
	if err := s.step("rename"); err != nil {
		return err
	}
	err := p.rename()
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the directory, which we remember as made
		s.forgetDirs()
		if err = s.makeDir(path.Dir(p.path)); err == nil {
			err = p.rename()
		}
	}
	if err != nil {
		return err
	}
	if err := s.step("fsyncdir"); err != nil {
		return err
	}
	return s.syncDir(path.Dir(p.path))
}

// rename gives the file its name in the tree.
func (p *Pending) rename() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.store.root.Rename(p.name, p.path)
	if err == nil {
		p.name = p.path
	}
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

func (s *Store) makeDirs(dir string) error {
	if dir == "." || s.durable[dir] {
		return nil
	}
	if info, err := s.root.Stat(dir); err == nil {
		if info.IsDir() {
			if err := s.makeDirs(path.Dir(dir)); err != nil {
				return err
			}
			if info.Mode().Perm()&0o500 == 0o500 && info.Mode().Perm()&0o055 == 0 { // a crash came before its chmod
				if err := s.root.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			return s.durably(dir)
		}
		return fmt.Errorf("%s is a file in the tree, but a directory upstream: remove it", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.step("mkdir"); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.root.Chmod(dir, 0o755); err != nil {
		return err
	}
	return s.durably(dir)
}

// durably makes the name of the directory dir durable.
func (s *Store) durably(dir string) error {
	err := s.syncDir(path.Dir(dir))
	if err == nil {
		if s.durable == nil {
			s.durable = make(map[string]bool)
		}
		s.durable[dir] = true
	}
	return err
}

func (s *Store) syncDir(dir string) error {
	d, err := s.root.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("fsync of directory %s: %w", dir, err)
	}
	return nil
}

// step is where tests make the protocol fail.
func (s *Store) step(name string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(name)
}
