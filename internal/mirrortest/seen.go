package mirrortest

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"
)

// Request is what an upstream saw of one request and did about it.
type Request struct {
	Method string
	Path   string // decoded, without the leading slash
	URI    string // exactly as it stood in the request line (HTTP/2: in :path)
	Host   string
	Proto  string // "HTTP/1.1", "HTTP/2.0"
	Header http.Header
	Time   time.Time // when its header had arrived
	Status int       // 0 before, or without, an answer
	Sent   int64     // bytes of body given to the connection
	Done   bool      // the answer is over
	Cut    bool      // and it was broken off, by a fault or because the client left
}

// String is one line: method, URI, range, status and bytes.
func (r Request) String() string {
	s := r.Method + " " + r.URI
	for _, h := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since"} {
		if v := r.Header.Get(h); v != "" {
			s += " " + h + ": " + v
		}
	}
	s += fmt.Sprintf(" → %d, %d B", r.Status, r.Sent)
	switch {
	case r.Cut:
		s += ", cut"
	case !r.Done:
		s += ", in flight"
	}
	return s
}

// Requests gives all requests since the start or [Upstream.Reset], in the order of
// their arrival. Those in flight are among them.
func (u *Upstream) Requests() []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := make([]Request, len(u.seen))
	for i, r := range u.seen {
		list[i] = *r
	}
	return list
}

// Log is [Upstream.Requests] as lines, for messages of tests.
func (u *Upstream) Log() string {
	var b strings.Builder
	for _, r := range u.Requests() {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}

// Count is how many requests there were for paths that match glob, as in
// [Upstream.Fault]; "**" is all.
func (u *Upstream) Count(glob string) int {
	n, _ := u.sums(glob)
	return n
}

// BytesSent is how many bytes of bodies went out for paths that match glob.
func (u *Upstream) BytesSent(glob string) int64 {
	_, sent := u.sums(glob)
	return sent
}

func (u *Upstream) sums(glob string) (n int, sent int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range u.seen {
		if match(glob, r.Path) {
			n++
			sent += r.Sent
		}
	}
	return n, sent
}

// Reset forgets the requests seen so far (those in flight too) and the maxima.
// Faults stay.
func (u *Upstream) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen = nil
	u.maxActive, u.maxConns = u.active, len(u.conns)
}

// MaxActive is how many requests were in flight at once, at most.
func (u *Upstream) MaxActive() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.maxActive
}

// MaxConnections is how many connections were open at once, at most.
func (u *Upstream) MaxConnections() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.maxConns
}

// WaitRequests returns when n requests for paths that match glob have come since the last
// Reset.
func (u *Upstream) WaitRequests(ctx context.Context, glob string, n int) error {
	return u.wait(ctx, func() bool { return u.Count(glob) >= n })
}

// WaitSent returns when n bytes of bodies have been sent for paths that match glob.
func (u *Upstream) WaitSent(ctx context.Context, glob string, n int64) error {
	return u.wait(ctx, func() bool { return u.BytesSent(glob) >= n })
}

// WaitIdle returns when no request is in flight.
func (u *Upstream) WaitIdle(ctx context.Context) error {
	return u.wait(ctx, func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.active == 0
	})
}

func (u *Upstream) wait(ctx context.Context, done func() bool) error {
	for {
		u.mu.Lock()
		changed := u.changed
		u.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w; the upstream saw:\n%s", context.Cause(ctx), u.Log())
		}
	}
}

// note changes a record and tells those who wait.
func (u *Upstream) note(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	close(u.changed)
	u.changed = make(chan struct{})
}

// begin enters a request into the records, and settles what will happen to it.
func (u *Upstream) begin(w http.ResponseWriter, r *http.Request, name string) *answer {
	a := &answer{ResponseWriter: w, u: u, r: r, ctx: r.Context(), record: &Request{
		Method: r.Method, Path: name, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone(), Time: time.Now(),
	}}
	u.note(func() {
		a.fault = u.pick(name, r)
		for _, g := range u.gates {
			if match(g.glob, name) {
				a.gates = append(a.gates, g)
			}
		}
		a.own, a.line = limiter(a.fault.Rate), u.limit
		u.seen = append(u.seen, a.record)
		u.active++
		u.maxActive = max(u.maxActive, u.active)
	})
	return a
}

// end closes the record; it runs deferred, also when the handler panics.
func (u *Upstream) end(a *answer) {
	p := recover()
	if a.raw != nil {
		_ = a.raw.Close()
	}
	u.note(func() {
		a.record.Done = true
		a.record.Cut = p != nil
		u.active--
	})
	if p != nil {
		panic(p)
	}
}

func (u *Upstream) connState(c net.Conn, s http.ConnState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch s {
	case http.StateNew:
		u.conns[c] = true
		u.maxConns = max(u.maxConns, len(u.conns))
	case http.StateClosed, http.StateHijacked:
		delete(u.conns, c)
	}
}

// quiet swallows what the server says about the connections that it is made to break.
var quiet = log.New(io.Discard, "", 0)
