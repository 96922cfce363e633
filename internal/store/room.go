package store

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
)

const (
	// softShare is how much of a quota is left when the room below it begins to be short: one part of so many.
	softShare = 20
	// softReserve is the least that is free beyond the reserve while the disk is not short of room.
	softReserve = 64 << 20
)

// Quota bounds what is stored below a directory.
type Quota struct {
	Dir   string // relative to the root; "" is the site
	Limit int64  // bytes; 0: no limit
}

// room is what is stored, what is about to be, and how much it may come to.
type room struct {
	mu       sync.Mutex // over counting only
	quotas   []*quota   // the site's is always there
	charges  map[*charge]struct{}
	makeRoom func(path string, n int64) bool
	measure  *measurement // nil: none is under way
}

// charge is what one file that is not in the tree yet takes of the quotas: what was written, and what was claimed.
type charge struct {
	path  string // where it is to stand
	bytes int64  // under room.mu
}

// quota is what is known of a Quota, under room.mu.
type quota struct {
	Quota
	charged  int64 // by files that are not in the tree yet
	used     tally // by those that are
	measured bool  // used is right
	next     *tally
}

func (q *quota) covers(path string) bool { return q.Dir == "" || below(path, q.Dir) }

func (q *quota) String() string {
	if q.Dir == "" {
		return "the size of the site"
	}
	return "the size of " + q.Dir
}

// below reports whether path is dir or below it.
func below(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/')
}

// SetQuotas bounds what is stored, from now on. A directory that had no quota before counts as unlimited until Measure
// has run.
func (s *Store) SetQuotas(quotas []Quota) {
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.quotas
	r.quotas = nil
	for _, want := range append([]Quota{{}}, quotas...) {
		q := find(r.quotas, want.Dir)
		if q == nil {
			if q = find(old, want.Dir); q == nil {
				q = &quota{}
			}
			r.quotas = append(r.quotas, q)
		}
		q.Quota, q.charged = want, 0
		for c := range r.charges {
			if q.covers(c.path) {
				q.charged += c.bytes
			}
		}
	}
}

func find(quotas []*quota, dir string) *quota {
	for _, q := range quotas {
		if q.Dir == dir {
			return q
		}
	}
	return nil
}

// SetMakeRoom has f asked, once, before a file that could fit is refused for want of room. f may remove what is stored
// and reports whether to try again: n bytes have to go, below the directory of path that has a quota if that is what is
// lacking, else anywhere. It may take a moment, and is called by many goroutines at once.
func (s *Store) SetMakeRoom(f func(path string, n int64) bool) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.makeRoom = f
}

// SetReserve changes how many bytes are always left free.
func (s *Store) SetReserve(n int64) { s.reserve.Store(n) }

// Usage says how many bytes are stored below dir, which has a quota or is "", and how many may be, 0 for any number.
// They are not known while measured is false.
func (s *Store) Usage(dir string) (used, limit int64, measured bool) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	q := find(s.room.quotas, dir)
	if q == nil {
		return 0, 0, false
	}
	return q.used.bytes, q.Limit, q.measured
}

// Pressure says how many bytes have to be removed below dir ("": anywhere) so that the room is not short; 0 when it is
// not. It is short when less than a twentieth of a quota is left, or too little free space beyond the reserve: a
// twentieth of it, 64 MiB at least, but no more than a hundredth of the file system. Quotas of directories come first:
// what goes there helps the site, too. It is quick.
func (s *Store) Pressure() (over int64, dir string) {
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	site := int64(0)
	for _, q := range r.quotas {
		if q.Limit == 0 || !q.measured {
			continue
		}
		n := q.used.bytes + q.charged - (q.Limit - q.Limit/softShare)
		if q.Dir == "" {
			site = n
		} else if n > over {
			over, dir = n, q.Dir
		}
	}
	if over > 0 {
		return over, dir
	}
	if free, total, err := s.space(); err == nil { // else the next claim says so
		reserve := s.reserve.Load()
		margin := min(max(reserve/softShare, softReserve), total/100)
		site = max(site, reserve+margin-(free-s.claimed.Load()))
	}
	return max(site, 0), ""
}

// claim reserves n more bytes of the disk for the file that is charged as c, beside had bytes that are there already
// and were not charged. It asks for room to be made, once.
func (s *Store) claim(c *charge, n, had int64) error {
	lack, err := s.tryClaim(c, n, had)
	if lack > 0 {
		s.room.mu.Lock()
		ask := s.room.makeRoom
		s.room.mu.Unlock()
		if ask != nil && ask(c.path, lack) {
			_, err = s.tryClaim(c, n, had)
		}
	}
	return err
}

// tryClaim is claim. lack is how many bytes have to go before it can succeed, 0 if it did or never will. No length that
// upstream announces overflows it.
func (s *Store) tryClaim(c *charge, n, had int64) (lack int64, err error) {
	if n == 0 && had == 0 {
		return 0, nil
	}
	free, total, err := s.space()
	if err != nil {
		return 0, fmt.Errorf("asking for the free space below %s: %w", s.dir, err)
	}
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	hopeless := false
	for _, q := range r.quotas {
		if q.Limit == 0 || !q.measured || !q.covers(c.path) {
			continue
		}
		if left := q.Limit - q.used.bytes - q.charged - had; n > left {
			hopeless = hopeless || n > q.Limit-had
			lack = max(lack, n-left)
			err = cmp.Or(err, fmt.Errorf("%s needs %d bytes: %w: %s is %d bytes, of which %d are stored and %d are claimed by downloads",
				c.path, n, ErrNoSpace, q, q.Limit, q.used.bytes, q.charged))
		}
	}
	claimed, reserve := s.claimed.Load(), s.reserve.Load()
	if left := free - claimed - reserve; n > 0 && n > left {
		hopeless = hopeless || n > total-reserve
		lack = max(lack, n-left)
		err = cmp.Or(err, fmt.Errorf("%s needs %d bytes: %w: %s has %d bytes free, of which %d are claimed by downloads and %d are kept as reserve",
			c.path, n, ErrNoSpace, s.dir, free, claimed, reserve))
	}
	switch {
	case hopeless:
		return 0, err
	case err != nil:
		return lack, err
	}
	s.claimed.Add(n)
	r.grow(c, n+had)
	return 0, nil
}

// grow charges n more bytes, or less, as c. The caller holds r.mu.
func (r *room) grow(c *charge, n int64) {
	c.bytes += n
	for _, q := range r.quotas {
		if q.covers(c.path) {
			q.charged += n
		}
	}
	if c.bytes == 0 {
		delete(r.charges, c)
		return
	}
	if r.charges == nil {
		r.charges = make(map[*charge]struct{})
	}
	r.charges[c] = struct{}{}
}

// charge charges n bytes as c, though there may be no room: they are there.
func (r *room) charge(c *charge, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grow(c, n)
}

// giveBack takes n bytes off what is charged as c; all of it if n < 0.
func (r *room) giveBack(c *charge, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < 0 {
		n = c.bytes
	}
	r.grow(c, -n)
}

// Room is ErrNoSpace if not even a byte of path could be stored now: then there is no point in asking for the file in
// order to store it.
func (s *Store) Room(path string) error {
	c := &charge{path: path}
	err := s.claim(c, 1, 0)
	if err == nil {
		s.claimed.Add(-1)
		s.room.giveBack(c, -1)
	}
	return err
}

// statfs returns the bytes that the file system of the root has for unprivileged users, and all that it has.
func (s *Store) statfs() (free, total int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// noSpace makes the system's words for a full disk match ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
