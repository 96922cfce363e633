package index

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

var leaving = []byte("leaving 1") // slash, root → path → Leaving

// Leaving is a path that its repository's generation names no more, and that stays for its grace: whoever holds the
// generation before may still ask for it.
type Leaving struct {
	Path string
	Named
	Until    time.Time
	From, To string // the last generation that named it, and the first that did not
}

// Leave remembers that the paths of list, of the repository at root, leave.
func (x *Index) Leave(root string, list ...Leaving) error {
	if len(list) == 0 {
		return nil
	}
	err := x.update(func(tx *bbolt.Tx) error {
		all, err := tx.CreateBucketIfNotExists(leaving)
		if err != nil {
			return err
		}
		b, err := all.CreateBucketIfNotExists([]byte("/" + root))
		if err != nil {
			return err
		}
		for _, l := range list {
			if err := b.Put([]byte(l.Path), l.appendBinary()); err != nil {
				return fmt.Errorf("%s: %w", l.Path, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remembering what leaves %s: %w", root, err)
	}
	return nil
}

// Stay forgets that paths of the repository at root leave: they are gone, or named again.
func (x *Index) Stay(root string, paths ...string) error {
	err := x.update(func(tx *bbolt.Tx) error {
		b := leavingOf(tx, root)
		if b == nil {
			return nil
		}
		for _, p := range paths {
			if err := b.Delete([]byte(p)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting what left %s: %w", root, err)
	}
	return nil
}

// EachLeaving calls yield for each path of the repository at root that leaves, in order.
func (x *Index) EachLeaving(root string, yield func(Leaving) error) error {
	var after []byte
	for {
		var list []Leaving
		more := false
		err := x.view(func(tx *bbolt.Tx) error {
			b := leavingOf(tx, root)
			if b == nil {
				return nil
			}
			c := b.Cursor()
			k, v := c.Seek(after)
			if k != nil && after != nil && string(k) == string(after) {
				k, v = c.Next()
			}
			for ; k != nil; k, v = c.Next() {
				if more = len(list) == batch; more {
					return nil
				}
				after = append(after[:0], k...)
				if l, ok := parseLeaving(string(k), v); ok {
					list = append(list, l)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("reading what leaves %s: %w", root, err)
		}
		for _, l := range list {
			if err := yield(l); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// Left returns what the last generation that named path said of it, where none does now and its grace has not ended.
func (x *Index) Left(p string) (l Leaving, root string, ok bool) {
	for _, root := range x.Concerned(p) {
		err := x.view(func(tx *bbolt.Tx) error {
			if b := leavingOf(tx, root); b != nil {
				if v := b.Get([]byte(p)); v != nil {
					l, ok = parseLeaving(p, v)
				}
			}
			return nil
		})
		if ok && err == nil {
			return l, root, true
		}
	}
	return Leaving{}, "", false
}

// LeavesBut reports whether path leaves another repository than the one at root, and not before at.
func (x *Index) LeavesBut(root, p string, at time.Time) (leaves bool) {
	for _, other := range x.Concerned(p) {
		if other == root {
			continue
		}
		_ = x.view(func(tx *bbolt.Tx) error { // what can't be read is not known
			if b := leavingOf(tx, other); b != nil {
				if l, ok := parseLeaving(p, b.Get([]byte(p))); ok && l.Until.After(at) {
					leaves = true
				}
			}
			return nil
		})
	}
	return leaves
}

// CountLeaving returns how many paths of the repository at root leave, and when the first does.
func (x *Index) CountLeaving(root string) (n int, first time.Time, err error) {
	err = x.EachLeaving(root, func(l Leaving) error {
		if n++; first.IsZero() || l.Until.Before(first) {
			first = l.Until
		}
		return nil
	})
	return n, first, err
}

func leavingOf(tx *bbolt.Tx, root string) *bbolt.Bucket {
	if all := tx.Bucket(leaving); all != nil {
		return all.Bucket([]byte("/" + root))
	}
	return nil
}

// appendBinary is the form of Leaving on disk: Unix seconds as a varint, two generations, Named.
func (l Leaving) appendBinary() []byte {
	b := binary.AppendVarint(nil, l.Until.Add(time.Second-1).Unix()) // never too early
	for _, g := range []string{l.From, l.To} {
		raw := make([]byte, generationLen/2)
		if id, err := hex.DecodeString(g); err == nil {
			copy(raw, id)
		}
		b = append(b, raw...)
	}
	return l.Named.appendBinary(b)
}

func parseLeaving(p string, b []byte) (Leaving, bool) {
	until, n := binary.Varint(b)
	if n <= 0 || len(b) < n+generationLen {
		return Leaving{}, false
	}
	ids := b[n : n+generationLen]
	named, ok := parseNamed(b[n+generationLen:])
	name := func(raw []byte) string {
		for _, c := range raw {
			if c != 0 {
				return hex.EncodeToString(raw)
			}
		}
		return ""
	}
	return Leaving{p, named, time.Unix(until, 0), name(ids[:generationLen/2]), name(ids[generationLen/2:])}, ok
}
