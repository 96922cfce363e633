package index

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// useGrain is how long a use that is on disk stands for those that follow, in seconds: a file that is asked for all the
// time costs two writes in that time, and a crash costs no more than that of what is known.
const useGrain = 3600

// maxUses bounds the uses that are kept in memory. What comes on top is not noted until the next flush.
const maxUses = 100_000

// use is when a file was used last.
type use struct {
	at   int64 // Unix seconds
	disk int64 // what is on disk; 0: not known
}

// uses notes when files were used last, in memory; Index.flush writes them.
type uses struct {
	mu   sync.Mutex // map operations only
	hour int64      // of the last note
	m    map[string]use
	// rest are uses of the hour before that are newer than what is on disk.
	rest map[string]int64
}

// Use notes that path was used now.
func (x *Index) Use(path string) { x.uses.note(path, time.Now().Unix()) }

// UseAt notes that path was used at t; now, if t is zero. It does not take the place of what is known.
func (x *Index) UseAt(path string, t time.Time) {
	if t.IsZero() {
		t = time.Now()
	}
	x.uses.mu.Lock()
	_, known := x.uses.m[path]
	x.uses.mu.Unlock()
	if !known {
		x.uses.note(path, t.Unix())
	}
}

func (u *uses) note(path string, at int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if hour := at / useGrain; hour > u.hour {
		u.turn()
		u.hour = hour
	}
	if u.m == nil {
		u.m = make(map[string]use)
	}
	one, ok := u.m[path]
	if !ok && len(u.m) >= maxUses {
		return
	}
	one.at = max(one.at, at)
	u.m[path] = one
}

// turn forgets what is on disk as it is, and has the rest written once more. The caller holds u.mu.
func (u *uses) turn() {
	for path, one := range u.m {
		if one.disk == 0 {
			continue // the next batch has it
		}
		if one.at != one.disk && len(u.rest) < maxUses {
			if u.rest == nil {
				u.rest = make(map[string]int64)
			}
			u.rest[path] = one.at
		}
		delete(u.m, path)
	}
}

// batch returns what is to be written.
func (u *uses) batch() map[string]int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	b := u.rest
	u.rest = nil
	for path, one := range u.m {
		if one.disk == 0 {
			if b == nil {
				b = make(map[string]int64)
			}
			b[path] = one.at
		}
	}
	return b
}

// written notes that the uses of b are on disk.
func (u *uses) written(b map[string]int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for path, at := range b {
		if one, ok := u.m[path]; ok {
			one.disk = at
			u.m[path] = one
		}
	}
	if len(u.m) >= maxUses/2 { // make room for others
		u.turn()
	}
}

func putUses(tx *bbolt.Tx, uses map[string]int64) error {
	for _, path := range slices.Sorted(maps.Keys(uses)) { // bbolt is quickest in order
		if err := tx.Bucket(used).Put([]byte(path), binary.AppendVarint(nil, uses[path])); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// Used returns when path was used last, as far as that is known: after a crash it may have been up to an hour later. It is
// zero if nothing is known.
func (x *Index) Used(path string) time.Time {
	x.uses.mu.Lock()
	at := max(x.uses.m[path].at, x.uses.rest[path])
	x.uses.mu.Unlock()
	if at == 0 {
		_ = x.view(func(tx *bbolt.Tx) error { // what can't be read is not known
			at, _ = binary.Varint(tx.Bucket(used).Get([]byte(path)))
			return nil
		})
	}
	if at <= 0 {
		return time.Time{}
	}
	return time.Unix(at, 0)
}

// ForgetUse forgets when paths were used. An expired file's use is remembered until its path has gone for good, so that it
// counts as used when it is fetched anew.
func (x *Index) ForgetUse(paths ...string) error {
	x.uses.mu.Lock()
	for _, path := range paths {
		delete(x.uses.m, path)
		delete(x.uses.rest, path)
	}
	x.uses.mu.Unlock()
	err := x.update(func(tx *bbolt.Tx) error {
		for _, path := range paths {
			if err := tx.Bucket(used).Delete([]byte(path)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting uses: %w", err)
	}
	return nil
}
