package daemon

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/instantmirror/instantmirror/internal/upstream"
)

// world is a Daemon, not running: its http.Server as Run would have it, over whatever connections a test makes.
type world struct {
	*Daemon
	srv  *http.Server
	root string // the directory of the tree; the canary lies beside it
	log  *logBuffer
}

// canary is what must never come out: it stands in files beside the root.
const canary = "CANARY: bytes from outside of the root"

// newWorld makes a world with one profile at /pub/test, and with two stored files.
func newWorld(t testing.TB, upstreamURL string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{root: filepath.Join(dir, "root"), log: new(logBuffer)}
	profile := filepath.Join(dir, "test.yaml")
	for name, text := range map[string]string{
		profile:                                   fmt.Sprintf("name: test\npath: /pub/test\nhosts: [test.example.org]\nenabled: true\nupstreams: [%s/up]\n", upstreamURL),
		filepath.Join(dir, "canary"):              canary,
		filepath.Join(dir, "pub/test/canary"):     canary,
		filepath.Join(w.root, "canary"):           canary, // in the root, but in no profile's tree
		filepath.Join(w.root, "pub/canary"):       canary,
		filepath.Join(w.root, "pub/test/hit.rpm"): strings.Repeat("0123456789", 10_000),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Profiles: []string{profile}, Root: w.root, State: filepath.Join(dir, "state")}
	pool := upstream.NewPool("instantmirror/test")
	setup, err := Configure(o, pool)
	if err != nil {
		t.Fatal(err)
	}
	setup.Config.Log.Level, setup.Config.Reserve = "debug", 0
	if w.Daemon, err = New(o, setup, pool, w.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	w.srv = w.httpServer(maxConns)
	return w
}

// useTLS makes the world's server one of https.
func (w *world) useTLS(cert *tls.Certificate) {
	w.cert.Store(cert)
	w.srv = w.httpServer(maxConns)
}

// certificate is one that nobody trusts.
func certificate() *tls.Certificate {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	return &srv.TLS.Certificates[0]
}

// listen serves on a real socket and returns its address.
func (w *world) listen(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.serve(w.srv, l) })
	t.Cleanup(func() {
		w.srv.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// files lists all files below the directory that holds root, state and canaries, but for what the daemon keeps for itself.
func (w *world) files(t testing.TB) []string {
	t.Helper()
	var names []string
	top := filepath.Dir(w.root)
	err := filepath.WalkDir(top, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, name)
		switch {
		case rel == "state" || rel == "root/.instantmirror":
			return filepath.SkipDir
		case !e.IsDir():
			names = append(names, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
