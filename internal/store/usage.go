package store

import (
	"context"
	"fmt"
	"strings"
)

// tally is the size of a set of names, where a file with several names counts once.
type tally struct {
	bytes  int64
	linked map[uint64]int // inodes that had other names when they were counted: how many names were
}

func (t *tally) add(i Info) {
	if i.Links > 1 {
		if t.linked == nil {
			t.linked = make(map[uint64]int)
		}
		if t.linked[i.Inode]++; t.linked[i.Inode] > 1 {
			return
		}
	}
	t.bytes += i.Size
}

// sub takes off a name that goes; i is what it was before.
func (t *tally) sub(i Info) {
	switch n, ok := t.linked[i.Inode]; {
	case i.Links == 0: // nothing stood there
	case i.Links > 1 && n > 1:
		t.linked[i.Inode]--
	case i.Links > 1 && !ok: // somebody gave it a second name since: that one counts on
	default:
		delete(t.linked, i.Inode)
		t.bytes -= i.Size
	}
}

// replace makes one name's file another one.
func (t *tally) replace(old, now Info) {
	t.sub(old)
	if now.Links > 0 {
		t.add(now)
	}
}

// measurement is a Measure under way. What changes meanwhile is counted exactly once: a name that changes before the walk
// has come to it is counted by the change, and the walk leaves it out.
type measurement struct {
	at      string          // the last file that was counted, in the order of the walk
	changed map[string]bool // names beyond it that changed
}

// walkOrder makes paths comparable as a walk meets them: a directory's names before what is greater than the directory.
func walkOrder(p string) string { return strings.ReplaceAll(p, "/", "\x00") }

// Measure counts what is stored below each directory that has a quota, by one Walk. Files with several names count
// once. From then on Usage and the quotas are kept right by Commit, Remove and Apply; what others do to the tree is seen
// by the next Measure. After an error they are as they were before.
func (s *Store) Measure(ctx context.Context) error {
	select {
	case s.measuring <- struct{}{}:
		defer func() { <-s.measuring }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.beginMeasure()
	err := s.Walk(ctx, ".", func(i Info) error {
		s.room.visit(i)
		return nil
	})
	s.endMeasure(err == nil)
	if err != nil {
		return fmt.Errorf("measuring what is stored: %w", err)
	}
	return nil
}

func (s *Store) beginMeasure() {
	s.names.Lock() // no change is under way
	defer s.names.Unlock()
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measure = &measurement{changed: make(map[string]bool)}
	for _, q := range r.quotas {
		q.next = new(tally)
	}
}

func (s *Store) endMeasure(whole bool) {
	s.names.Lock()
	defer s.names.Unlock()
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measure = nil
	for _, q := range r.quotas {
		if whole && q.next != nil {
			q.used, q.measured = *q.next, true
		}
		q.next = nil
	}
}

// visit counts a file that the walk met.
func (r *room) visit(i Info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measure.at = walkOrder(i.Path)
	if r.measure.changed[i.Path] {
		return
	}
	for _, q := range r.quotas {
		if q.next != nil && q.covers(i.Path) {
			q.next.add(i)
		}
	}
}

// changing is called before the file at path changes. counted says whether the measurement under way, if there is one,
// counted the old one.
func (r *room) changing(path string) (counted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.measure
	if m == nil || m.changed[path] || walkOrder(path) <= m.at {
		return true
	}
	m.changed[path] = true
	return false
}

// changed is called after the file at path changed from old to now; nothing more is charged as c.
func (r *room) changed(path string, counted bool, old, now Info, c *charge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.quotas {
		if !q.covers(path) {
			continue
		}
		if q.measured {
			q.used.replace(old, now)
		}
		switch {
		case q.next == nil:
		case counted:
			q.next.replace(old, now)
		default:
			q.next.replace(Info{}, now)
		}
	}
	if c != nil {
		r.grow(c, -c.bytes)
	}
}
