package index

import (
	"encoding/binary"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// useGrain is how exactly the last use of a file is known, in seconds: a file that is asked for all the time costs one
// write in that time.
const useGrain = 3600

// maxUses bounds the uses that are kept in memory. What comes on top is not noted until the next flush.
const maxUses = 100_000

// uses notes when files were used last, in memory; Index.flush writes them.
type uses struct {
	mu   sync.Mutex       // map operations only
	hour int64            // of the notes in m
	m    map[string]int64 // path → hour, of this hour; negative: not on disk yet
}

// Use notes that path was used now.
func (x *Index) Use(path string) { x.uses.note(path, time.Now().Unix()/useGrain) }

// UseAt notes that path was used at t; now, if t is zero.
func (x *Index) UseAt(path string, t time.Time) {
	if t.IsZero() {
		t = time.Now()
	}
	x.uses.mu.Lock()
	defer x.uses.mu.Unlock()
	if x.uses.m == nil {
		x.uses.m = make(map[string]int64)
	}
	if _, ok := x.uses.m[path]; !ok && len(x.uses.m) < maxUses {
		x.uses.m[path] = -t.Unix() / useGrain
	}
}

func (u *uses) note(path string, hour int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if h := u.m[path]; max(h, -h) == hour {
		return
	}
	if hour != u.hour {
		maps.DeleteFunc(u.m, func(_ string, h int64) bool { return h > 0 }) // those are on disk
		u.hour = hour
	}
	if u.m == nil {
		u.m = make(map[string]int64)
	}
	if len(u.m) >= maxUses { // those that are on disk would be written again at worst
		maps.DeleteFunc(u.m, func(_ string, h int64) bool { return h > 0 })
	}
	if len(u.m) < maxUses {
		u.m[path] = -hour
	}
}

// batch returns what is to be written.
func (u *uses) batch() map[string]int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	var b map[string]int64
	for path, hour := range u.m {
		if hour < 0 {
			if b == nil {
				b = make(map[string]int64)
			}
			b[path] = -hour
		}
	}
	return b
}

// written notes that the uses of b are on disk.
func (u *uses) written(b map[string]int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for path, hour := range b {
		switch {
		case u.m[path] != -hour: // used again, in another hour
		case hour == u.hour:
			u.m[path] = hour
		default:
			delete(u.m, path)
		}
	}
}

func putUses(tx *bbolt.Tx, uses map[string]int64) error {
	for path, hour := range uses {
		if err := tx.Bucket(used).Put([]byte(path), binary.AppendVarint(nil, hour)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// Used returns when path was used last, to the hour; zero if that is not known.
func (x *Index) Used(path string) time.Time {
	x.uses.mu.Lock()
	hour, ok := x.uses.m[path]
	x.uses.mu.Unlock()
	if !ok {
		_ = x.view(func(tx *bbolt.Tx) error { // what can't be read is not known
			hour, _ = binary.Varint(tx.Bucket(used).Get([]byte(path)))
			return nil
		})
	}
	if hour = max(hour, -hour); hour == 0 {
		return time.Time{}
	}
	return time.Unix(hour*useGrain, 0)
}

// ForgetUse forgets when paths were used. An expired file's use is remembered until its path has gone for good, so that it
// counts as used when it is fetched anew.
func (x *Index) ForgetUse(paths ...string) error {
	x.uses.mu.Lock()
	for _, path := range paths {
		delete(x.uses.m, path)
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
