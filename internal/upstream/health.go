package upstream

import (
	"fmt"
	"sync"
	"time"
)

const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second // failed origins are tried again at least this often while clients ask
	// strikes is how many refusals (429, 5xx), or bodies that failed, in a row make an origin down. A server that
	// cannot be reached at all is down at once.
	strikes = 3
)

// States of an origin.
const (
	Untried = "untried" // nobody asked yet
	Up      = "up"
	Down    = "down" // skipped until Retry, then tried by one request at a time
)

// Health is what is known of an origin at one moment.
type Health struct {
	State string    // Untried, Up or Down
	Since time.Time // when it came into State; zero while Untried
	Err   error     // why it is Down, else nil
	Retry time.Time // from when on a Down origin may be tried again, else zero
}

// verdict is what a request's end says about its origin.
type verdict int

const (
	neutral  verdict = iota // nothing: the caller gave up
	answered                // it works, whatever it thinks of this path
	refused                 // 429, 5xx, or a host that it redirected to did not answer
	dead                    // it does not answer
)

// health is an origin's circuit breaker.
type health struct {
	mu       sync.Mutex
	now      Health
	backoff  time.Duration // the last one
	refusals int           // in a row
	bodies   int           // that failed, in a row
	trial    bool          // while Down: a request is trying it
}

// Health returns the origin's health.
func (o *Origin) Health() Health {
	o.health.mu.Lock()
	defer o.health.mu.Unlock()
	h := o.health.now
	if h.State == "" {
		h.State = Untried
	}
	return h
}

// admit returns nil when the origin may be asked now, else the reason why not. With claim set the request is about to
// be sent, and must be ended by done with trial as returned.
func (h *health) admit(claim bool) (trial bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.now.State != Down:
		return false, nil
	case h.trial:
		return false, fmt.Errorf("being tried again by another request, after: %w", h.now.Err)
	case time.Now().Before(h.now.Retry):
		return false, fmt.Errorf("in back-off until %s, after: %w", h.now.Retry.Format(time.TimeOnly), h.now.Err)
	}
	h.trial = claim
	return claim, nil
}

// done ends what admit began. It reports whether the origin has gone down by it. A failure of a request that was under
// way before the origin went down does not count again.
func (h *health) done(trial bool, v verdict, err error) (gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if trial {
		h.trial = false
	}
	switch v {
	case answered:
		h.refusals = 0
		if h.bodies == 0 {
			h.backoff = 0
		}
		h.set(Up)
	case refused:
		h.refusals++
		if trial || h.refusals >= strikes && h.now.State != Down {
			return h.down(err)
		}
	case dead:
		if trial || h.now.State != Down {
			return h.down(err)
		}
	}
	return false
}

// body counts the end of a body: nil for a whole one. Bodies are counted apart from answers, because an origin that
// answers at once and always breaks off is of no use. It reports whether the origin has gone down by it.
func (h *health) body(err error) (gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.bodies = 0
		if h.now.State == Up {
			h.backoff = 0
		}
		return false
	}
	h.bodies++
	return h.bodies >= strikes && h.now.State != Down && h.down(err)
}

// down marks the origin down, and reports whether it was not. The caller holds h.mu.
func (h *health) down(err error) (gone bool) {
	gone = h.now.State != Down
	h.backoff = min(max(2*h.backoff, firstBackoff), lastBackoff)
	h.set(Down)
	h.now.Err, h.now.Retry = err, time.Now().Add(h.backoff)
	return gone
}

// set enters a state. The caller holds h.mu.
func (h *health) set(state string) {
	if h.now.State != state {
		h.now = Health{State: state, Since: time.Now()}
	}
}

// retryIn returns how long it is until the origin may be tried again; 0 if it isn't down.
func (h *health) retryIn() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now.State != Down {
		return 0
	}
	// A second for one whose time has come: another request is trying it, or has just failed to.
	return max(time.Until(h.now.Retry), time.Second)
}
