package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// reply is all that a client sees.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // before the header or in the body
}

// What a reply can be; any other outcome says what is wrong with it.
const (
	right   = "right"
	refused = "refused" // an error that no client takes for the file
	broken  = "broken"  // a transfer that none takes for whole
)

// outcome judges what a client that asked for s of truth got. The ranges are those of the right file, whatever truth is.
func (w *faultWorld) outcome(s shape, r reply, truth []byte) string {
	switch {
	case r.status == 0 && errors.Is(r.err, io.EOF):
		return broken
	case r.status == 0:
		return fmt.Sprintf("no answer: %v", r.err)
	case r.status >= 500 && r.err == nil:
		return refused
	case r.status != http.StatusOK && r.status != http.StatusPartialContent:
		return fmt.Sprintf("status %d: %.200q (%v)", r.status, r.body, r.err)
	case r.err != nil:
		return broken
	case r.status == http.StatusOK && s.ranges != nil && r.header.Get("Content-Length") != "":
		return "all of a file whose length is known, in place of a range"
	case r.status == http.StatusOK:
		if !bytes.Equal(r.body, truth) {
			return fmt.Sprintf("%d bytes of a file of %d that look whole and are not right", len(r.body), len(truth))
		}
		return right
	case s.ranges == nil:
		return "a part in place of the whole"
	}
	ranges := s.ranges(len(w.right))
	if len(ranges) == 1 {
		return checkPart(r.header.Get("Content-Range"), r.body, truth, ranges[0])
	}
	kind, params, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return "several ranges as " + r.header.Get("Content-Type")
	}
	parts := multipart.NewReader(bytes.NewReader(r.body), params["boundary"])
	for _, want := range ranges {
		part, err := parts.NextRawPart()
		if err != nil {
			return fmt.Sprintf("a multipart body that ends too soon: %v", err)
		}
		b, err := io.ReadAll(part)
		if err != nil {
			return fmt.Sprintf("a multipart body that can't be read: %v", err)
		}
		if outcome := checkPart(part.Header.Get("Content-Range"), b, truth, want); outcome != right {
			return outcome
		}
	}
	if _, err := parts.NextRawPart(); err != io.EOF {
		return fmt.Sprintf("a multipart body that does not end: %v", err)
	}
	return right
}

func checkPart(contentRange string, got, truth []byte, want [2]int) string {
	if s := fmt.Sprintf("bytes %d-%d/%d", want[0], want[1], len(truth)); s != contentRange {
		return fmt.Sprintf("Content-Range %s, asked for %s", contentRange, s)
	}
	if !bytes.Equal(got, truth[want[0]:want[1]+1]) {
		return fmt.Sprintf("%s: %d bytes that look right and are not", contentRange, len(got))
	}
	return right
}

const (
	faultRepo  = "43/x/os"
	faultImage = faultRepo + "/images/boot.img"
)

// faultStock is what upstream has, and a mirror that has already learned the digests: each cell begins with a copy.
type faultStock struct {
	files map[string]mirrortest.File
	paths map[string]string // of the files that the table is about
	other []byte            // what another file begins with
	dir   string            // of the mirror: root and state
}

func newFaultStock(t *testing.T) *faultStock {
	large := mirrortest.Package{Name: "large", Size: 210_000, Seed: 1}
	tiny := mirrortest.Package{Name: "tiny", Size: 500, Seed: 2}
	repo := mirrortest.Repo{Packages: []mirrortest.Package{large, tiny}}
	s := &faultStock{
		files: map[string]mirrortest.File{faultImage: {Body: mirrortest.Bytes(3, 210_000), ModTime: fileTime}},
		paths: map[string]string{
			"package": faultRepo + "/" + repo.Location(large), "tiny package": faultRepo + "/" + repo.Location(tiny),
			"image": faultImage,
		},
		other: mirrortest.Bytes(4, 300_000), dir: t.TempDir(),
	}
	metadata := []string{"repodata/repomd.xml"}
	for name, f := range repo.Files() {
		s.files[faultRepo+"/"+name] = f
		if strings.HasSuffix(name, "-primary.xml.gz") {
			metadata = append(metadata, name)
		}
	}
	if n := len(s.files[s.paths["package"]].Body); n < 200_000 {
		t.Fatal("the large package has", n, "bytes")
	}
	if n := len(s.files[s.paths["tiny package"]].Body); n > fetch.HoldBack {
		t.Fatal("the tiny package has", n, "bytes")
	}
	w := &faultWorld{t: t, stock: s, up: mirrortest.NewUpstream(t), dir: s.dir, root: filepath.Join(s.dir, "root"), state: filepath.Join(s.dir, "state")}
	w.up.PutTree("up", s.files)
	w.upURL = w.up.URL
	w.start()
	for _, name := range metadata {
		w.path = faultRepo + "/" + name
		w.right = s.files[w.path].Body
		if outcome := w.outcome(shapes[0], w.ask(shapes[0]), w.right); outcome != right {
			t.Fatal(name, outcome)
		}
	}
	w.stop()
	return s
}

// faultWorld is a mirror before one or two origins, and one file of theirs.
type faultWorld struct {
	t     *testing.T
	stock *faultStock
	path  string // of the file, in the profile
	right []byte // what it must be
	other []byte // another file of that length

	up          *mirrortest.Upstream
	upURL       string               // as it is configured
	door        *door                // nil: always open
	fallback    *mirrortest.Upstream // nil: none
	upstreamHas []byte               // at path, while the fault lasts
	modTime     time.Time            // which the stored file will have; zero: any
	gate        *mirrortest.Gate

	shape         shape // of the cell's requests
	late, unsized bool  // as in the table

	dir, root, state string // of this cell; of the mirror
	setPool          func(*upstream.Pool)
	origin           *upstream.Origin // up
	url              string
	stop             func()
	flights          *fetch.Group
	handlers         sync.WaitGroup
}

func newFaultWorld(t *testing.T, stock *faultStock, file string, shut, fallback bool, setPool func(*upstream.Pool)) *faultWorld {
	t.Helper()
	w := &faultWorld{
		t: t, stock: stock, up: mirrortest.NewUpstream(t), dir: t.TempDir(), setPool: setPool, path: stock.paths[file],
	}
	w.root, w.state = filepath.Join(w.dir, "root"), filepath.Join(w.dir, "state")
	w.right = stock.files[w.path].Body
	w.upstreamHas, w.modTime = w.right, stock.files[w.path].ModTime
	w.other = stock.other[:len(w.right):len(w.right)]
	w.up.PutTree("up", stock.files)
	w.upURL = w.up.URL
	if shut {
		w.door = newDoor(t)
		w.upURL = w.door.url
	}
	if fallback {
		w.fallback = mirrortest.NewUpstream(t)
		w.fallback.PutTree("up", stock.files)
	}
	if err := copyTree(w.dir, stock.dir); err != nil {
		t.Fatal(err)
	}
	w.start()
	return w
}

// copyTree copies regular files with their modes and times: the index believes what it is told of a file only while
// size and time are the same.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			if err := os.MkdirAll(target, 0o700); err != nil {
				return err
			}
			return os.Chmod(target, info.Mode().Perm())
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, b, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Chtimes(target, info.ModTime(), info.ModTime())
	})
}

// start begins to serve root, with what state knows.
func (w *faultWorld) start() {
	w.t.Helper()
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	text := fmt.Sprintf("name: test\npath: /pub/test\nenabled: true\nupstreams: [%s/up]\n", w.upURL)
	if w.fallback != nil {
		text += fmt.Sprintf("fallbacks: [%s/up]\n", w.fallback.URL)
	}
	file := filepath.Join(w.dir, "test.yaml")
	check(os.WriteFile(file, []byte(text), 0o644))
	ps, err := profile.Load(nil, nil, []string{file})
	check(err)
	pool := upstream.NewPool("instantmirror/test")
	if w.setPool != nil {
		w.setPool(pool)
	}
	table, err := site.Build(ps, pool)
	check(err)
	if w.path != "" {
		target, err := table.Resolve("", "/pub/test/"+w.path)
		check(err)
		w.origin = target.Profile.Origins(target.Rel).Upstreams[0]
	}
	st, err := store.Open(w.root, 0)
	check(err)
	x, _, err := index.Open(w.state)
	check(err)
	ctx, cancel := context.WithCancel(context.Background())
	w.flights = fetch.New(ctx, st, func(fetch.Result) {})
	j, err := journal.Open(filepath.Join(w.state, "journal"))
	check(err)
	server := New(mirror.New(st, x, w.flights, j, func(err error) { w.t.Error("reported:", err) }), st, slog.New(slog.DiscardHandler), &View{Table: table})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer w.handlers.Done() // ask added it
		server.ServeHTTP(rw, r)
	}))
	w.url = srv.URL
	w.stop = sync.OnceFunc(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		w.flights.Wait()
		pool.CloseIdleConnections()
		if err := errors.Join(x.Close(), j.Close()); err != nil {
			w.t.Error(err)
		}
		if err := st.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() { w.stop() })
}

// restart is that of a daemon whose index was lost.
func (w *faultWorld) restart() {
	w.t.Helper()
	w.stop()
	w.state += "-new"
	w.start()
}

// ask is one client.
func (w *faultWorld) ask(s shape) (r reply) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	var header []string
	if s.ranges != nil {
		var specs []string
		for _, r := range s.ranges(len(w.right)) {
			specs = append(specs, fmt.Sprintf("%d-%d", r[0], r[1]))
		}
		header = []string{"Range", "bytes=" + strings.Join(specs, ",")}
	}
	w.handlers.Add(1)
	resp, err := get(ctx, w.url+"/pub/test/"+w.path, header...)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	var body bytes.Buffer
	body.Grow(max(int(resp.ContentLength), len(w.right)) + bytes.MinRead)
	_, r.err = body.ReadFrom(resp.Body)
	r.body = body.Bytes()
	return r
}

// quiet returns when the mirror has done all that the clients made it do. No client asks meanwhile.
func (w *faultWorld) quiet() {
	w.handlers.Wait()
	w.flights.Wait()
}

// eighth is where bodies break off: what five such pieces make is less than two thirds of the file.
func (w *faultWorld) eighth() int64 { return int64(len(w.right) / 8) }

func (w *faultWorld) tiny() bool { return len(w.right) <= fetch.HoldBack }

// strike makes upstream misbehave, in a body after an eighth of the file.
func (w *faultWorld) strike(f mirrortest.Fault) {
	f.At = w.eighth()
	w.up.Fault("**", f)
}

// putOther makes upstream have another file, older than the right one.
func (w *faultWorld) putOther(body []byte) {
	w.upstreamHas = body
	w.up.PutFile("up/"+w.path, mirrortest.File{Body: body, ModTime: w.stock.files[w.path].ModTime.Add(-time.Hour)})
}

func (w *faultWorld) heal() {
	w.t.Helper()
	w.up.Heal()
	w.up.PutFile("up/"+w.path, w.stock.files[w.path])
	if w.door != nil {
		w.door.open(w.t, w.up)
	}
}

func (w *faultWorld) origins() []*mirrortest.Upstream {
	if w.fallback == nil {
		return []*mirrortest.Upstream{w.up}
	}
	return []*mirrortest.Upstream{w.up, w.fallback}
}

// asked is how many requests the origins saw since the last reset.
func (w *faultWorld) asked() (up, fallback int) {
	if w.fallback != nil {
		fallback = w.fallback.Count("**")
	}
	return w.up.Count("**"), fallback
}

func (w *faultWorld) reset() {
	for _, u := range w.origins() {
		u.Reset()
	}
}

func (w *faultWorld) log() string {
	s := w.up.Log()
	if w.fallback != nil {
		s += "and the fallback\n" + w.fallback.Log()
	}
	return s
}

// door is an address that refuses connections until it is opened. Its port is never free meanwhile, as that of an
// Upstream is for a moment in Stop and Start: with this many servers side by side another one would get it.
type door struct {
	fd  int
	url string
}

func newDoor(t *testing.T) *door {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	d := &door{fd: fd}
	t.Cleanup(func() {
		if d.fd >= 0 {
			syscall.Close(d.fd)
		}
	})
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	d.url = fmt.Sprintf("http://127.0.0.1:%d", addr.(*syscall.SockaddrInet4).Port)
	return d
}

// open lets connections through to u.
func (d *door) open(t *testing.T, u *mirrortest.Upstream) {
	t.Helper()
	if err := syscall.Listen(d.fd, 64); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(d.fd), d.url)
	d.fd = -1
	l, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(u.URL, "http://"))
			if err != nil {
				in.Close()
				continue
			}
			pipe := func(to, from net.Conn) { // ends with the connections, which the world's stop ends
				io.Copy(to, from)
				to.Close()
				from.Close()
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
}
