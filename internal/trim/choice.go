package trim

import (
	"cmp"
	"container/heap"
	"sync"
)

// rank says who goes first, whenever that was used last.
type rank uint8

const (
	ordinary rank = iota
	current       // a generation in force names it: without it clients can do nothing with the rest
	pointer       // never goes: without it nobody would know that the rest has changed
)

// file is a stored file, with all of its names that count: only when they are all gone is its room free.
type file struct {
	names []string // at least one
	size  int64    // bytes
	used  int64    // when one of its names was used last, Unix seconds, as exact as that is known; 0: unknown
	rank  rank     // the highest of its names'
	inode uint64
	other uint64 // names beside these
}

// before orders files as they go: least recently used first in each rank, those of unknown use before all others. Among
// files of the same hour the larger one goes first: for the same room fewer have to. The name makes it deterministic.
func before(a, b *file) int {
	return cmp.Or(
		cmp.Compare(a.rank, b.rank),
		cmp.Compare(a.used, b.used),
		cmp.Compare(b.size, a.size),
		cmp.Compare(a.names[0], b.names[0]),
	)
}

// grain is how exactly uses are known, in seconds.
const grain = 3600

// choice is the files that go next, as one look at all of them found: at most so many, whatever their number. It is a
// function of what it is told, and used so by the simulation of a cache, too.
//
// It stays right while the tree changes. A file that it does not hold goes later than all that it holds, because at the
// time of the look it was used later (cut), or it came after that (begun); and if one that it holds was used again, pick
// finds out, and puts it where it belongs.
type choice struct {
	mu    sync.Mutex // heap operations only
	files queue      // while gathering the last one to go is at the top, then the first
	names int        // of files
	max   int        // bound on names
	cut   *file      // files from this one on were left out; nil: none was
	begun int64      // when the look began
}

// newChoice returns a choice of at most max names, or one file, gathered by a look that begins now, in Unix seconds.
func newChoice(max int, now int64) *choice { return &choice{max: max, begun: now} }

// offer is called for each file, before ready.
func (c *choice) offer(f *file) {
	if f.rank == pointer {
		return
	}
	if c.cut != nil && before(f, c.cut) >= 0 {
		return
	}
	c.files.latest = true
	heap.Push(&c.files, f)
	for c.names += len(f.names); c.names > c.max && c.files.Len() > 1; {
		c.cut = heap.Pop(&c.files).(*file)
		c.names -= len(c.cut.names)
	}
}

// ready ends the gathering.
func (c *choice) ready() {
	c.files.latest = false
	heap.Init(&c.files)
}

// take takes out the file that goes next, or returns nil: there is none, or another look is needed to know. With fresh set
// the look is so recent that what came after it does not matter.
func (c *choice) take(fresh bool) *file {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.files.list) == 0 {
		return nil
	}
	if f := c.files.list[0]; !fresh && (f.rank > ordinary || f.used > c.begun-grain) {
		return nil
	}
	return heap.Pop(&c.files).(*file)
}

// giveBack puts in a file that goes later than was known.
func (c *choice) giveBack(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut == nil || before(f, c.cut) < 0 {
		heap.Push(&c.files, f)
	}
}

// pick takes out the next files to go that come to need bytes, but no more than max names (or one file). look says what a
// file is now; nil if it is not there.
func (c *choice) pick(need int64, max int, fresh bool, look func(*file) *file) (list []*file) {
	names := 0
	for need > 0 && names < max {
		f := c.take(fresh)
		if f == nil {
			break
		}
		now := look(f)
		switch {
		case now == nil:
		case before(f, now) < 0:
			c.giveBack(now)
		default:
			list = append(list, now)
			names += len(now.names)
			need -= now.size
		}
	}
	return list
}

// queue implements heap.Interface.
type queue struct {
	list   []*file
	latest bool // the last one to go is at the top
}

func (q *queue) Len() int { return len(q.list) }

func (q *queue) Less(i, j int) bool {
	if order := before(q.list[i], q.list[j]); order != 0 {
		return order < 0 != q.latest
	}
	return false
}

func (q *queue) Swap(i, j int) { q.list[i], q.list[j] = q.list[j], q.list[i] }

func (q *queue) Push(x any) { q.list = append(q.list, x.(*file)) }

func (q *queue) Pop() any {
	last := len(q.list) - 1
	f := q.list[last]
	q.list[last] = nil
	q.list = q.list[:last]
	return f
}
