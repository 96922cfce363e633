package fetch

import (
	"errors"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	// doubtFor is how long an origin that sent wrong bytes is not asked again for that path and digest.
	doubtFor = 10 * time.Minute
	// maxDoubts bounds the paths that are remembered; what falls out is asked for again.
	maxDoubts = 10_000
)

// doubts remembers who sent wrong bytes for what.
type doubts struct {
	mu sync.Mutex
	m  map[doubtKey]*doubt
}

type doubtKey struct {
	path string
	sum  digest.Sum // which was expected
}

type doubt struct {
	origins map[*upstream.Origin]time.Time // until when they are not asked
	mixed   time.Time                      // until when it is not put together from parts
	last    error
}

// note remembers wrong.
func (d *doubts) note(path string, sum digest.Sum, wrong *wrongError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m == nil {
		d.m = make(map[doubtKey]*doubt)
	}
	key := doubtKey{path, sum}
	one := d.m[key]
	if one == nil {
		for other := range d.m {
			if len(d.m) < maxDoubts {
				break
			}
			delete(d.m, other)
		}
		one = &doubt{origins: make(map[*upstream.Origin]time.Time)}
		d.m[key] = one
	}
	one.last = wrong.err
	if wrong.origin == nil {
		one.mixed = time.Now().Add(doubtFor)
		return
	}
	one.origins[wrong.origin] = time.Now().Add(doubtFor)
	var mismatch *digest.MismatchError
	if errors.As(wrong.err, &mismatch) && mismatch.Origin == "" {
		mismatch.Origin = wrong.origin.Name()
	}
}

// mixture reports whether path was put together from parts that did not make the file.
func (d *doubts) mixture(path string, sum digest.Sum) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.m[doubtKey{path, sum}]
	return one != nil && time.Now().Before(one.mixed)
}

// why is the error for which some origin is not asked for path, if there is one.
func (d *doubts) why(path string, sum digest.Sum) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.m[doubtKey{path, sum}]
	if one == nil {
		return nil
	}
	for _, until := range one.origins {
		if time.Now().Before(until) {
			return one.last
		}
	}
	return nil
}

// trusted returns those of order that may be asked. If there were some, and now there is none, it returns the error
// for which the last one is not.
func (d *doubts) trusted(path string, sum digest.Sum, order upstream.Order) (upstream.Order, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.m[doubtKey{path, sum}]
	if one == nil {
		return order, nil
	}
	left := 0
	filter := func(list []*upstream.Origin) (kept []*upstream.Origin) {
		for _, o := range list {
			if !time.Now().Before(one.origins[o]) {
				kept = append(kept, o)
				left++
			}
		}
		return kept
	}
	order = upstream.Order{Upstreams: filter(order.Upstreams), Fallbacks: filter(order.Fallbacks), Archives: filter(order.Archives)}
	if left == 0 {
		return order, one.last
	}
	return order, nil
}
