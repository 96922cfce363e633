package mirrortest

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"html"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// File is one file of an upstream's tree.
type File struct {
	Body    []byte
	Content io.ReaderAt // instead of Body, where that would be large: Size bytes
	Size    int64       // of Content
	ModTime time.Time   // Last-Modified, to the second; zero: none is sent
	Type    string      // Content-Type; empty: by the name's extension
	ETag    string      // as on the wire, with its quotes; empty: made of content (Body) or of time and size; "-": none is sent
}

// Upstream is a real HTTP server on loopback that serves a tree correctly
// (ranges, conditionals, HEAD, directories) until it is told to misbehave, and that
// records every request. All methods may be called while it serves; a request
// sees the tree and the faults of the moment when its header had arrived.
type Upstream struct {
	URL  string // scheme://127.0.0.1:port, without a slash at the end
	CA   string // TLS only: name of the PEM file of its own authority
	Cert string // TLS with client certificates only: PEM files that a client may show
	Key  string

	tls *tlsParts

	mu          sync.Mutex
	files       map[string]File
	dirs        map[string]string // prefix → directory on disk
	puts        int
	plusIsSpace bool
	faults      []*fault
	gates       []*Gate
	limit       *rate.Limiter
	seen        []*Request
	active      int
	maxActive   int
	conns       map[net.Conn]bool
	maxConns    int
	changed     chan struct{} // closed and replaced whenever a record changes

	running sync.Mutex // guards server, parked, stop
	server  *http.Server
	port    int
	parked  int // file descriptor that keeps the port while stopped; -1: none
	stop    context.CancelFunc
}

// NewUpstream starts an upstream over plain HTTP/1.1. It ends with the test.
func NewUpstream(t testing.TB) *Upstream {
	t.Helper()
	u, err := StartUpstream()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// StartUpstream is [NewUpstream] for programs: the caller closes it.
func StartUpstream() (*Upstream, error) { return start(nil) }

func start(parts *tlsParts) (*Upstream, error) {
	u := &Upstream{
		files: make(map[string]File), dirs: make(map[string]string), conns: make(map[net.Conn]bool),
		changed: make(chan struct{}), tls: parts, parked: -1,
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start upstream: %w", err)
	}
	u.port = l.Addr().(*net.TCPAddr).Port
	scheme := "http"
	if parts != nil {
		scheme = "https"
	}
	u.URL = scheme + "://" + l.Addr().String()
	u.serve(l)
	return u, nil
}

// serve answers on l until Stop.
func (u *Upstream) serve(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	u.stop = cancel
	u.server = &http.Server{
		Handler:     http.HandlerFunc(u.handle),
		ConnState:   u.connState,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    quiet,
	}
	server := u.server
	if u.tls != nil {
		server.TLSConfig = u.tls.config.Clone()
		if u.tls.http1 {
			server.Protocols = new(http.Protocols)
			server.Protocols.SetHTTP1(true)
		}
		go func() { _ = server.ServeTLS(l, "", "") }() // ends with Stop
		return
	}
	go func() { _ = server.Serve(l) }()
}

// Stop makes the upstream refuse connections (at once, as a machine whose
// daemon is down) and breaks off the transfers in flight. It keeps its port.
func (u *Upstream) Stop() {
	u.running.Lock()
	defer u.running.Unlock()
	if u.server == nil {
		return
	}
	u.stop()
	_ = u.server.Close()
	u.server = nil
	_ = u.WaitIdle(context.Background()) // every wait of a handler ends with u.stop
	// A socket that is bound but does not listen refuses, and nobody else gets the port.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return // then the port is free, which refuses as well
	}
	u.parked = fd
	syscall.CloseOnExec(fd)
	if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) != nil ||
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: u.port, Addr: [4]byte{127, 0, 0, 1}}) != nil {
		u.unpark()
	}
}

// Start undoes [Upstream.Stop], on the same port.
func (u *Upstream) Start() error {
	u.running.Lock()
	defer u.running.Unlock()
	if u.server != nil {
		return nil
	}
	u.unpark()
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", u.port))
	if err != nil {
		return fmt.Errorf("start upstream again: %w", err)
	}
	u.serve(l)
	return nil
}

// Close stops the upstream for good.
func (u *Upstream) Close() {
	u.Stop()
	u.running.Lock()
	defer u.running.Unlock()
	u.unpark()
}

func (u *Upstream) unpark() {
	if u.parked >= 0 {
		_ = syscall.Close(u.parked)
		u.parked = -1
	}
}

// Put puts a file at name (decoded, below the root) in place of what stood there.
// Its modification time is a second later than that of the file put before.
func (u *Upstream) Put(name string, body []byte) {
	u.PutFile(name, File{Body: body, ModTime: u.nextTime()})
}

// PutFile is [Upstream.Put] with everything chosen by the caller.
func (u *Upstream) PutFile(name string, f File) {
	if f.ETag == "" && f.Content == nil {
		f.ETag = fmt.Sprintf(`"%x-%x"`, crc32.Checksum(f.Body, crc32.MakeTable(crc32.Castagnoli)), len(f.Body))
	}
	if f.Content == nil {
		f.Content, f.Size = bytes.NewReader(f.Body), int64(len(f.Body))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[clean(name)] = f
}

// PutTree puts all files (a [Repo]'s, say) below prefix.
func (u *Upstream) PutTree(prefix string, files map[string]File) {
	for name, f := range files {
		u.PutFile(path.Join(prefix, name), f)
	}
}

// PutDir serves the files of a directory on disk below prefix, as they are when asked
// for. Files of Put stand before them.
func (u *Upstream) PutDir(prefix, dir string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dirs[clean(prefix)] = dir
}

// Remove removes a file of Put, or everything that stands below name.
func (u *Upstream) Remove(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	name = clean(name)
	maps.DeleteFunc(u.files, func(k string, _ File) bool { return k == name || below(k, name) })
	delete(u.dirs, name)
}

// PlusIsSpace makes the upstream read a bare + in a path as a space, as object
// stores do.
func (u *Upstream) PlusIsSpace() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.plusIsSpace = true
}

// SetRate bounds the upstream's line: bytes per second over all bodies together. 0 is
// unlimited.
func (u *Upstream) SetRate(bytesPerSecond int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.limit = limiter(bytesPerSecond)
}

func (u *Upstream) nextTime() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.puts++
	return Epoch.Add(time.Duration(u.puts) * time.Second)
}

// Epoch is when everything here was made that does not say otherwise.
var Epoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func clean(name string) string { return strings.Trim(path.Clean("/"+name), "/") }

func below(name, dir string) bool { return dir == "" || strings.HasPrefix(name, dir+"/") }

// find gives the file at name with a function that ends its use, or the names in the
// directory of that name. Neither: fs.ErrNotExist.
func (u *Upstream) find(name string) (f File, done func(), list []string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	done = func() {}
	if f, ok := u.files[name]; ok {
		return f, done, nil, nil
	}
	entries := make(map[string]bool)
	for k := range u.files {
		if below(k, name) {
			rest := strings.TrimPrefix(strings.TrimPrefix(k, name), "/")
			first, _, more := strings.Cut(rest, "/")
			if more {
				first += "/"
			}
			entries[first] = true
		}
	}
	for prefix, dir := range u.dirs {
		if name != prefix && !below(name, prefix) {
			if below(prefix, name) {
				first, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(prefix, name), "/"), "/")
				entries[first+"/"] = true
			}
			continue
		}
		disk := filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(name, prefix)))
		info, err := os.Stat(disk)
		if err != nil {
			continue
		}
		if info.IsDir() {
			children, _ := os.ReadDir(disk)
			for _, c := range children {
				if c.IsDir() {
					entries[c.Name()+"/"] = true
				} else {
					entries[c.Name()] = true
				}
			}
			continue
		}
		o, err := os.Open(disk)
		if err != nil {
			return File{}, done, nil, err
		}
		return File{Content: o, Size: info.Size(), ModTime: info.ModTime()}, func() { o.Close() }, nil, nil
	}
	if len(entries) == 0 {
		return File{}, done, nil, fs.ErrNotExist
	}
	return File{}, done, slices.Sorted(maps.Keys(entries)), nil
}

// handle is the server: the fault of the moment, then what is there.
func (u *Upstream) handle(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if u.spaced() {
		if s, err := url.PathUnescape(strings.ReplaceAll(r.URL.EscapedPath(), "+", " ")); err == nil {
			name = strings.TrimPrefix(s, "/")
		}
	}
	a := u.begin(w, r, name)
	defer u.end(a)
	f := a.fault
	if a.pause(f.Delay) != nil || a.hold(-1) != nil || f.Drop {
		panic(http.ErrAbortHandler)
	}
	switch {
	case f.Redirect != "":
		to := strings.ReplaceAll(f.Redirect, "*", strings.TrimPrefix(r.URL.EscapedPath(), "/"))
		a.Header().Set("Location", to)
		a.text(orElse(f.Status, http.StatusFound), "text/html", "<a href="+html.EscapeString(to)+">Found</a>\n")
	case f.Body != nil:
		a.text(orElse(f.Status, http.StatusOK), f.Type, string(f.Body))
	case f.Status != 0:
		a.text(f.Status, "text/html", fmt.Sprintf("<html><h1>%d %s</h1></html>\n", f.Status, http.StatusText(f.Status)))
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		a.Header().Set("Allow", "GET, HEAD")
		a.text(http.StatusMethodNotAllowed, "text/html", "<html><h1>405</h1></html>\n")
	default:
		u.answer(a, r, name)
	}
	a.finish()
}

// answer serves what stands at name.
func (u *Upstream) answer(a *answer, r *http.Request, name string) {
	file, done, list, err := u.find(clean(name))
	defer done()
	isDir := list != nil
	switch {
	case err != nil || !isDir && strings.HasSuffix(name, "/"):
		a.text(http.StatusNotFound, "text/html", "<html><h1>404 Not Found</h1></html>\n")
	case isDir && name != "" && !strings.HasSuffix(name, "/"):
		a.Header().Set("Location", r.URL.EscapedPath()+"/")
		a.text(http.StatusMovedPermanently, "text/html", "<html><h1>301 Moved Permanently</h1></html>\n")
	case isDir:
		var b strings.Builder
		for _, entry := range list {
			e := html.EscapeString(entry)
			fmt.Fprintf(&b, "<a href=\"%s\">%s</a>\n", e, e)
		}
		a.text(http.StatusOK, "text/html", b.String())
	default:
		a.file(r, name, file)
	}
}

func (u *Upstream) spaced() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.plusIsSpace
}

func orElse(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}
