package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// bubble is a world in whose testing/synctest bubble time passes at once where nothing happens. Its upstreams are hosts that
// are reached by pipes: a.test, b.test, c.test and metalink.test. It has no world.up.
type bubble struct {
	*world
	hosts  map[string]*host
	conns  chan net.Conn
	closed chan struct{}
	ends   func() // the schedule, if it runs
}

// host is one upstream server in the bubble.
type host struct {
	mu      sync.Mutex
	files   map[string]mirrortest.File // below /pub
	refuses bool                       // connections
	status  int                        // instead of any file
	hangs   bool                       // instead of any answer
	change  func(name string, f mirrortest.File, ok bool) (mirrortest.File, bool)
	before  func(name string) // called before each answer, with nothing held
	seen    []ask
}

// ask is one request that a host had.
type ask struct {
	at          time.Time
	name        string
	conditional bool
	status      int
}

const oneHost = `
name: test
path: /pub/test
enabled: true
upstreams: ["http://a.test/pub"]
`

const threeHosts = `
name: test
path: /pub/test
enabled: true
upstreams: ["http://a.test/pub", "http://b.test/pub"]
fallbacks: ["http://c.test/pub"]
`

// inBubble runs f in a bubble, over a mirror of the profile that text is.
func inBubble(t *testing.T, text string, f func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(at(0).Add(1000 * time.Hour))) // what upstream has must not be of the future
		b := &bubble{
			world: &world{t: t, dir: t.TempDir(), profile: text}, conns: make(chan net.Conn), closed: make(chan struct{}), ends: func() {},
			hosts: map[string]*host{"a": {}, "b": {}, "c": {}, "metalink": {}},
		}
		transport := http.DefaultTransport.(*http.Transport)
		dial := transport.DialContext
		transport.DialContext = b.dial
		server := &http.Server{Handler: http.HandlerFunc(b.serve)}
		done := make(chan struct{})
		go func() {
			_ = server.Serve(b)
			close(done)
		}()
		t.Cleanup(func() {
			transport.DialContext = dial
			_ = server.Close()
			<-done
		})
		b.begin()
		t.Cleanup(func() { b.halt() })
		f(b)
	})
}

// dial connects to the server of the bubble.
func (b *bubble) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	h := b.hosts[strings.TrimSuffix(addr, ".test:80")]
	if h == nil {
		return nil, fmt.Errorf("dial %s: no such host", addr)
	}
	h.mu.Lock()
	refuses := h.refuses
	h.mu.Unlock()
	if refuses {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	ours, theirs := net.Pipe()
	select {
	case b.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.closed:
		return nil, net.ErrClosed
	}
}

// Accept, Close and Addr make b the net.Listener of its server.
func (b *bubble) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.closed:
		return nil, net.ErrClosed
	}
}

func (b *bubble) Close() error {
	close(b.closed)
	return nil
}

func (b *bubble) Addr() net.Addr { return &net.TCPAddr{} }

// serve answers for all hosts.
func (b *bubble) serve(w http.ResponseWriter, r *http.Request) {
	h := b.hosts[strings.TrimSuffix(r.Host, ".test")]
	name := strings.TrimPrefix(r.URL.Path, "/pub/")
	h.mu.Lock()
	i := len(h.seen)
	h.seen = append(h.seen, ask{at: time.Now(), name: name, conditional: r.Header.Get("If-None-Match")+r.Header.Get("If-Modified-Since") != ""})
	before := h.before
	h.mu.Unlock()
	if before != nil {
		before(name)
	}
	h.mu.Lock()
	f, ok := h.files[name]
	if h.change != nil {
		f, ok = h.change(name, f, ok)
	}
	status, hangs := h.status, h.hangs
	h.mu.Unlock()
	switch {
	case hangs:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case status != 0:
		http.Error(w, "sorry", status)
	case !ok:
		status = http.StatusNotFound
		http.Error(w, "no such file", status)
	default:
		size := len(f.Body)
		if f.Size > int64(size) { // cut short
			w.Header().Set("Content-Length", fmt.Sprint(f.Size))
			_, _ = w.Write(f.Body)
			panic(http.ErrAbortHandler)
		}
		if f.Type == "" {
			f.Type = "application/octet-stream"
		}
		w.Header().Set("Content-Type", f.Type)
		w.Header().Set("ETag", fmt.Sprintf(`"%s-%x"`, r.Host, crc32.ChecksumIEEE(f.Body)))
		s := &statusWriter{ResponseWriter: w}
		http.ServeContent(s, r, "", f.ModTime, bytes.NewReader(f.Body))
		status = s.status
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i < len(h.seen) {
		h.seen[i].status = status
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// put makes the host have just files below repo.
func (h *host) put(repo string, files map[string]mirrortest.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := make(map[string]mirrortest.File)
	for name, f := range h.files {
		if !strings.HasPrefix(name, repo+"/") {
			now[name] = f
		}
	}
	for name, f := range files {
		now[repo+"/"+name] = f
	}
	h.files = now
}

// set changes how the host behaves.
func (h *host) set(change func(*host)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

// asked returns the requests since the last call.
func (h *host) asked() []ask {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := slices.Clone(h.seen)
	h.seen = h.seen[len(h.seen):]
	return list
}

// run runs the schedule.
func (b *bubble) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m := b.monitor
	go func() {
		m.Run(ctx)
		close(done)
	}()
	b.ends = func() {
		cancel()
		<-done
	}
}

// halt stops all as the daemon does.
func (b *bubble) halt() {
	b.ends()
	b.ends = func() {}
	b.stop()
}

// restart starts anew. change, if not nil, comes between.
func (b *bubble) restart(change func()) {
	b.t.Helper()
	b.halt()
	if change != nil {
		change()
	}
	b.begin()
}

// got is what a client got.
type got struct {
	body   []byte
	status string // Cache-Status
	took   time.Duration
	err    error
}

// ask is one request of a client, who goes away after a minute.
func (b *bubble) ask(name string) (g got) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	defer func() { g.took = time.Since(begun) }()
	t, err := b.table.Resolve("localhost", "/"+base+name)
	if err != nil {
		return got{err: err}
	}
	var a *mirror.Answer
	if a, err = b.mirror.Open(ctx, t); err != nil {
		return got{err: err}
	}
	defer a.Close()
	var body bytes.Buffer
	err = a.Ready(ctx, 0, -1)
	for err == nil {
		_, err = a.CopyTo(ctx, &body, int64(body.Len()), 1<<20)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got{body: body.Bytes(), status: a.CacheStatus(), err: err}
}

// has fails unless a client gets just body.
func (b *bubble) has(name string, body []byte) got {
	b.t.Helper()
	g := b.ask(name)
	if g.err != nil || !bytes.Equal(g.body, body) {
		b.t.Errorf("%s: %d bytes (%s), %v; want %d bytes", name, len(g.body), g.status, g.err, len(body))
	}
	return g
}

// meet asks for a repository's pointer, and waits until nothing is to be done.
func (b *bubble) meet(repo string) {
	b.t.Helper()
	if g := b.ask(repo + "/repodata/repomd.xml"); g.err != nil {
		b.t.Fatal(g.err)
	}
	synctest.Wait()
}

// status is what the monitor says of repo.
func (b *bubble) status(repo string) Repository {
	b.t.Helper()
	r, ok := b.monitor.Repository(base + repo)
	if !ok {
		b.t.Fatalf("%s is not known", repo)
	}
	return r
}
