package store

import (
	"fmt"
	"io/fs"
	"time"
)

// Space says how many bytes the root's file system has free for us, how many it has at all, and how many are always left
// free.
func (s *Store) Space() (free, total, reserve int64, err error) {
	if free, total, err = s.space(); err != nil {
		return 0, 0, 0, fmt.Errorf("asking for the free space below %s: %w", s.dir, err)
	}
	return free, total, s.reserve.Load(), nil
}

// Placed says when the file at name got there: when its name, times or mode were changed last, whatever its modification
// time, which is upstream's. Errors are those of Stat.
func (s *Store) Placed(name string) (time.Time, error) {
	if checkPath(name) != nil {
		return time.Time{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	info, err := s.root.Lstat(name)
	if absent(err) {
		err = &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return time.Time{}, err
	}
	if err := stored(name, info); err != nil {
		return time.Time{}, err
	}
	return changed(info), nil
}
