package upstream

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestMain(m *testing.M) { mirrortest.Main(m) }

// world is a network in memory, in which net/http's real client and server talk under the clock of a synctest bubble.
// At its end no connection slot may be taken; that no goroutine is left is the bubble's own rule.
type world struct {
	t       *testing.T
	pool    *Pool
	end     chan struct{} // closed at the end: handlers that hang wait for it
	origins []*Origin
	closers []func()

	mu    sync.Mutex
	hosts map[string]func(net.Conn)
	seen  []*http.Request // in the order of arrival
	dials map[string]int
}

func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, end: make(chan struct{}), hosts: map[string]func(net.Conn){}, dials: map[string]int{}}
		real := http.DefaultTransport.(*http.Transport)
		dial := real.DialContext
		real.DialContext = w.dial
		w.pool = NewPool("instantmirror/test (+https://example.org)")
		defer func() {
			close(w.end)
			w.pool.CloseIdleConnections()
			for _, c := range w.closers {
				c()
			}
			real.DialContext = dial
			time.Sleep(time.Minute) // of fake time, for handlers that sleep
			synctest.Wait()
			for _, o := range w.origins {
				if n := len(o.slots); n != 0 {
					t.Errorf("%d connections of %s are still taken", n, o.name)
				}
				if o.health.trial {
					t.Errorf("%s is still being tried", o.name)
				}
			}
		}()
		f(t, w)
	})
}

func (w *world) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	w.mu.Lock()
	take, ok := w.hosts[addr]
	w.dials[addr]++
	w.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", fmt.Errorf("connection refused"))}
	}
	if take == nil { // a black hole
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
	client, server := net.Pipe()
	take(server)
	return client, nil
}

// listener feeds an http.Server with the conns that take is called with.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

// serve answers at addr (host:port) by f.
func (w *world) serve(addr string, f http.HandlerFunc) {
	l := &listener{conns: make(chan net.Conn, 64), done: make(chan struct{})}
	srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r)
		w.mu.Unlock()
		f(rw, r)
	})}
	go srv.Serve(l)
	w.mu.Lock()
	w.hosts[addr] = func(c net.Conn) { l.conns <- c }
	w.mu.Unlock()
	w.closers = append(w.closers, func() { srv.Close() })
}

// raw answers the first request of each connection to addr with bytes, then closes it or, with hold, keeps it.
func (w *world) raw(addr, bytes string, hold bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[addr] = func(c net.Conn) {
		go func() {
			defer c.Close()
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err != nil {
				return
			}
			io.WriteString(c, bytes)
			if hold {
				io.Copy(io.Discard, c)
			}
		}()
	}
}

func (w *world) blackHole(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[addr] = nil
}

// origin makes the origin at url.
func (w *world) origin(url string, change ...func(*Config)) *Origin {
	w.t.Helper()
	c := Config{URL: url}
	for _, f := range change {
		f(&c)
	}
	o, err := w.pool.Origin(c)
	if err != nil {
		w.t.Fatal(err)
	}
	if !slices.Contains(w.origins, o) {
		w.origins = append(w.origins, o)
	}
	return o
}

// took returns "METHOD http://host/path" of the requests seen since the last call.
func (w *world) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []string{}
	for _, r := range w.seen {
		out = append(out, r.Method+" "+r.Host+r.RequestURI)
	}
	w.seen = nil
	return out
}

// last returns the header of the last request seen.
func (w *world) last() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[len(w.seen)-1].Header
}

// get reads resp to its end and closes it.
func get(t *testing.T, resp *Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func file(p string) Request { return Request{Method: http.MethodGet, Path: p} }

// text answers with a file's content, as a file server does.
func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(s))
	}
}

// status answers with a code and a short text.
func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
}
