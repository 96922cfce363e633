package mirrortest

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Fault is one way, or several at once, in which an upstream's answer goes wrong.
// Offsets count bytes of that answer's body. (An origin whose file itself is wrong
// needs no fault: put another one. An ETag or content that changes midway: hold
// the answer, put the new file, release.)
type Fault struct {
	Times int                        // how many requests it strikes; 0: all
	Skip  int                        // how many matching requests pass before it begins
	When  func(r *http.Request) bool // only requests for which it reports true; nil: all

	// Instead of the file:
	Drop     bool   // closes the connection without an answer
	Status   int    // this status
	Body     []byte // this body, with Status or 200
	Type     string // of Body
	Redirect string // 302 (or Status) to this Location; a * in it becomes the path as it was asked for, without its first slash

	// Of any answer:
	Header http.Header   // set as given; a nil value removes the field
	Delay  time.Duration // before the header
	Rate   int64         // bytes of body per second, evenly

	// Of a body:
	At       int64  // where Truncate, Stall and Wrong strike
	Truncate bool   // breaks the connection off
	Stall    bool   // sends nothing more until the client leaves
	Wrong    bool   // all bytes from At on are other ones
	Chunked  bool   // no length: the end is marked (HTTP/1.1 chunked; HTTP/2)
	Unframed bool   // no length: the end of the connection is the end, HTTP/1.0 style. Truncate then looks like a whole file
	Gzip     bool   // Content-Encoding: gzip, asked for or not
	NoRange  bool   // Range is ignored: 200 with the whole file
	Range    string // answers as if this Range had been asked for, without looking at If-Range
}

// Faults that take no parameters.
var (
	// Loop redirects to itself.
	Loop = Fault{Redirect: "/*"}
	// Slash redirects to the same path and a slash, as for a directory.
	Slash = Fault{Redirect: "/*/", Status: http.StatusMovedPermanently}
	// CaptivePortal is a 200 with HTML for everything.
	CaptivePortal = Fault{Type: "text/html; charset=utf-8",
		Body: []byte("<!DOCTYPE html><html><body>Welcome to Airport Wi-Fi. Please log in.</body></html>\n")}
)

// Once gives the fault for one request only.
func (f Fault) Once() Fault { f.Times = 1; return f }

type fault struct {
	Fault
	glob  string
	count int
}

// Fault makes requests for paths that match glob (decoded; * within an element,
// ** any number of them) go wrong as f says. Of several that match, the one set last counts;
// one that has struck all its Times no longer matches. The function returned ends it.
func (u *Upstream) Fault(glob string, f Fault) (end func()) {
	entry := &fault{Fault: f, glob: glob}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = append([]*fault{entry}, u.faults...)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		for i, e := range u.faults {
			if e == entry {
				u.faults = append(u.faults[:i:i], u.faults[i+1:]...)
			}
		}
	}
}

// Heal ends all faults and gates.
func (u *Upstream) Heal() {
	u.mu.Lock()
	gates := u.gates
	u.faults, u.gates = nil, nil
	u.mu.Unlock()
	for _, g := range gates {
		g.Release()
	}
}

// pick gives the fault for a request; mu is held.
func (u *Upstream) pick(name string, r *http.Request) Fault {
	for _, f := range u.faults {
		if !match(f.glob, name) || f.Times > 0 && f.count >= f.Skip+f.Times || f.When != nil && !f.When(r) {
			continue
		}
		f.count++
		if f.count > f.Skip {
			return f.Fault
		}
	}
	return Fault{}
}

// Gate holds answers at one offset until the test releases them.
type Gate struct {
	u       *Upstream
	glob    string
	at      int64
	once    sync.Once
	open    chan struct{}
	first   sync.Once
	reached chan struct{}
}

// Hold makes every answer for a path that matches glob wait when at bytes of its
// body are sent (and on their way: flushed), with -1 before its header. Answers that are
// in flight already, or end before, are not held.
func (u *Upstream) Hold(glob string, at int64) *Gate {
	g := &Gate{u: u, glob: glob, at: at, open: make(chan struct{}), reached: make(chan struct{})}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gates = append(u.gates, g)
	return g
}

// Wait returns when the first answer has come to the gate.
func (g *Gate) Wait(ctx context.Context) error {
	select {
	case <-g.reached:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Release lets everything through, now and later.
func (g *Gate) Release() { g.once.Do(func() { close(g.open) }) }

// pass waits at the gate.
func (g *Gate) pass(ctx context.Context) error {
	g.first.Do(func() { close(g.reached) })
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// match compares a decoded path, without its leading slash, with a glob.
func match(glob, name string) bool {
	return matches(strings.TrimPrefix(glob, "/"), strings.TrimPrefix(name, "/"))
}

func matches(glob, name string) bool {
	for glob != "" {
		switch {
		case strings.HasPrefix(glob, "**"):
			rest := glob[2:]
			if r, ok := strings.CutPrefix(rest, "/"); ok && matches(r, name) {
				return true // zero elements
			}
			for i := range len(name) + 1 {
				if matches(rest, name[i:]) {
					return true
				}
			}
			return false
		case glob[0] == '*':
			for i := range len(name) + 1 {
				if matches(glob[1:], name[i:]) {
					return true
				}
				if i < len(name) && name[i] == '/' {
					return false
				}
			}
			return false
		case name == "" || name[0] != glob[0]:
			return false
		}
		glob, name = glob[1:], name[1:]
	}
	return name == ""
}
