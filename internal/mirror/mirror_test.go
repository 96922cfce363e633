package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	pointer = "/pub/test/43/iso/Test-43-CHECKSUM"
	rpm     = "/pub/test/43/Packages/a.rpm"
)

type world struct {
	*Mirror
	t        *testing.T
	up       *mirrortest.Upstream
	profiles []*profile.Profile
	table    *site.Table
	dir      string // of root and state
	stop     func() // ends the mirror, as a stop of the daemon does
}

const testProfile = `
name: test
path: /pub/test
enabled: true
upstreams: [%s/up]
expiry:
  - {match: "frozen/**", refresh: never}
  - {match: "**", refresh: 1h}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, up: mirrortest.NewUpstream(t), dir: t.TempDir()}
	file := filepath.Join(w.dir, "test.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, testProfile, w.up.URL), 0o644); err != nil {
		t.Fatal(err)
	}
	ps, err := profile.Load(nil, nil, []string{file})
	if err != nil {
		t.Fatal(err)
	}
	w.profiles = ps
	w.route()
	w.begin()
	t.Cleanup(func() { w.stop() })
	return w
}

// route makes a new table, whose origins have not failed yet.
func (w *world) route() {
	pool := upstream.NewPool("instantmirror/test")
	w.t.Cleanup(pool.CloseIdleConnections)
	var err error
	if w.table, err = site.Build(w.profiles, pool); err != nil {
		w.t.Fatal(err)
	}
}

// begin opens root and state.
func (w *world) begin() {
	s, err := store.Open(filepath.Join(w.dir, "root"), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	x, _, err := index.Open(filepath.Join(w.dir, "state"))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	j, err := journal.Open(filepath.Join(w.dir, "state", "journal"))
	if err != nil {
		w.t.Fatal(err)
	}
	g := fetch.New(ctx, s, func(fetch.Result) {})
	w.Mirror = New(s, x, g, j, func(err error) { w.t.Log(err) })
	w.stop = sync.OnceFunc(func() {
		cancel()
		g.Wait()
		x.Close()
		s.Close()
	})
}

func (w *world) restart() {
	w.stop()
	w.begin()
}

// age makes the last check of path so much older than it is.
func (w *world) age(path string, d time.Duration) {
	w.t.Helper()
	w.checks.mu.Lock()
	defer w.checks.mu.Unlock()
	c, ok := w.checks.m[path[1:]]
	if !ok {
		w.t.Fatalf("%s was never checked", path)
	}
	c.belief.Checked = c.belief.Checked.Add(-d)
	c.retry = time.Time{}
	w.checks.m[path[1:]] = c
}

// content makes a repomd.xml of text where path is one's: nothing else would be let through.
func content(path, text string) string {
	if strings.HasSuffix(path, "/repomd.xml") {
		return "<repomd><revision>" + text + "</revision></repomd>"
	}
	return text
}

func (w *world) put(path, body string, mtime int64) {
	body = content(path, body)
	w.up.PutFile("up"+path[len("/pub/test"):], mirrortest.File{Body: []byte(body), ModTime: time.Unix(mtime, 0)})
}

// get asks for path and waits until what it began has ended.
func (w *world) get(path string) (body, status string, err error) {
	w.t.Helper()
	target, err := w.table.Resolve("localhost", path)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := w.Open(w.t.Context(), target)
	if err != nil {
		w.flights.Wait()
		return "", "", err
	}
	defer a.Close()
	var b bytes.Buffer
	err = a.Ready(w.t.Context(), 0, -1)
	for err == nil {
		_, err = a.CopyTo(w.t.Context(), &b, int64(b.Len()), 1<<20)
	}
	if err == io.EOF {
		err = nil
	}
	for deadline := time.Now().Add(10 * time.Second); w.flights.Underway(target.Path); {
		if time.Now().After(deadline) {
			w.t.Fatal("the flight does not end")
		}
	}
	return b.String(), a.CacheStatus(), err
}

func (w *world) want(path, body, status string, asked int) {
	w.t.Helper()
	b, s, err := w.get(path)
	body = content(path, body)
	if err != nil || b != body || seconds.ReplaceAllString(s, "$1…") != seconds.ReplaceAllString(status, "$1…") {
		w.t.Errorf("%s is %q, %s, %v; want %q, %s", path, b, s, err, body, status)
	}
	if n := w.up.Count("**"); n != asked {
		w.t.Errorf("upstream saw %d requests, want %d:\n%s", n, asked, w.up.Log())
	}
	w.up.Reset()
}

// seconds of a time to live are not compared, but for their sign.
var seconds = regexp.MustCompile(`(ttl=-?)[0-9]+`)

const (
	miss = "instantmirror; fwd=uri-miss; stored"
	hit  = "instantmirror; hit"
)

func TestPointerThroughItsLife(t *testing.T) {
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	w.want(pointer, "one", hit+"; ttl=3599", 0)

	w.age(pointer, 2*time.Hour)
	w.want(pointer, "one", "instantmirror; fwd=stale; fwd-status=304", 1)
	w.want(pointer, "one", hit+"; ttl=3599", 0)

	w.put(pointer, "three", 2000)
	w.age(pointer, 2*time.Hour)
	w.want(pointer, "three", "instantmirror; fwd=stale; stored", 1)
	w.want(pointer, "three", hit+"; ttl=3599", 0)

	// Upstream is gone: stale, and it is not asked again at once.
	w.up.Stop()
	w.age(pointer, 2*time.Hour)
	w.want(pointer, "three", hit+"; ttl=-3601; detail=stale", 0)
	w.want(pointer, "three", hit+"; ttl=-3601; detail=stale", 0)
	if err := w.up.Start(); err != nil {
		t.Fatal(err)
	}

	// It answers, but with an error.
	w.up.Fault("**", mirrortest.Fault{Status: 503}.Once())
	w.route()
	w.age(pointer, 0)
	w.want(pointer, "three", hit+"; ttl=-3601; detail=stale", 1)

	// It has the file no more: ours may be the last copy.
	w.up.Remove("up" + strings.TrimPrefix(pointer, "/pub/test"))
	w.age(pointer, time.Hour)
	w.want(pointer, "three", hit+"; ttl=-7201; detail=gone-upstream", 1)
	w.want(pointer, "three", hit+"; ttl=-7201; detail=gone-upstream", 0)
}

// TestOneCheckForAll: however many wait for a check, upstream is asked once.
func TestOneCheckForAll(t *testing.T) {
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	w.age(pointer, 2*time.Hour)
	gate := w.up.Hold("**", -1)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if b, s, err := w.get(pointer); b != content(pointer, "one") || err != nil {
				t.Errorf("got %q, %s, %v", b, s, err)
			}
		})
	}
	gate.Wait(t.Context())
	gate.Release()
	wg.Wait()
	if n := w.up.Count("**"); n != 1 {
		t.Errorf("upstream saw %d requests", n)
	}
}

// TestPatience: a check that takes too long is answered with what is stored, and is not waited for twice.
func TestPatience(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the 5 s that clients wait")
	}
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	w.age(pointer, 2*time.Hour)
	gate := w.up.Hold("**", -1)
	defer gate.Release()
	target, _ := w.table.Resolve("localhost", pointer)
	for i, most := range []time.Duration{patience + time.Second, time.Second} {
		begun := time.Now()
		a, err := w.Open(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if d := time.Since(begun); d > most {
			t.Errorf("request %d waited %v", i, d)
		}
		if a.Detail != "stale" {
			t.Errorf("request %d: %s", i, a.CacheStatus())
		}
	}
}

func TestValidators(t *testing.T) {
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	check := func(what, inm, ims string) {
		t.Helper()
		w.age(pointer, 2*time.Hour)
		w.get(pointer)
		r := w.up.Requests()[0]
		if got := r.Header.Get("If-None-Match"); (got != "") != (inm != "") {
			t.Errorf("%s: If-None-Match %q", what, got)
		}
		if got := r.Header.Get("If-Modified-Since"); got != ims {
			t.Errorf("%s: If-Modified-Since %q", what, got)
		}
		w.up.Reset()
	}
	const lm = "Thu, 01 Jan 1970 00:16:40 GMT"
	check("in one life", "yes", lm)
	check("after a 304", "yes", lm)
	w.restart()
	w.get(pointer)
	w.up.Reset()
	check("after a restart", "yes", lm)

	// Without an index the file's own time is what there is.
	w.stop()
	os.RemoveAll(filepath.Join(w.dir, "state"))
	w.begin()
	w.want(pointer, "one", "instantmirror; fwd=stale; fwd-status=304", 1)
	check("after the 304", "yes", lm)
}

// TestBeliefsOfAnotherFile: what is believed of a file does not hold for one that somebody put in its place.
func TestBeliefsOfAnotherFile(t *testing.T) {
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	name := filepath.Join(w.dir, "root", pointer)
	if err := os.WriteFile(name, []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Chtimes(name, time.Unix(500, 0), time.Unix(500, 0))
	w.want(pointer, "one", "instantmirror; fwd=stale; stored", 1)
}

func TestFutureIsNow(t *testing.T) {
	w := newWorld(t)
	w.put(pointer, "one", 1000)
	w.want(pointer, "one", miss, 1)
	w.age(pointer, -48*time.Hour)
	w.want(pointer, "one", "instantmirror; fwd=stale; fwd-status=304", 1)
}

func TestImmutable(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{
		rpm, "/pub/test/frozen/repodata/repomd.xml", "/pub/test/frozen/images/boot.iso",
		"/pub/test/43/repodata/0123456789abcdef0123456789abcdef01234567-primary.xml.zst",
	} {
		w.put(path, "one", 1000)
		w.want(path, "one", miss, 1)
		w.put(path, "two", 2000)
		w.restart()
		w.want(path, "one", hit, 0)
	}
	for _, path := range []string{"/pub/test/43/repodata/primary.xml.gz", "/pub/test/43/images/boot.iso", "/pub/test/43/repodata/abc-primary.xml"} {
		w.put(path, "one", 1000)
		w.want(path, "one", miss, 1)
		w.put(path, "two", 2000)
		w.age(path, 2*time.Hour)
		w.want(path, "two", "instantmirror; fwd=stale; stored", 1)
	}
}

// TestAbsence: a 404 is remembered for a minute, and beyond that while nobody can be asked.
func TestAbsence(t *testing.T) {
	w := newWorld(t)
	absent := func(asked int) {
		t.Helper()
		if _, _, err := w.get(rpm); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v", err)
		}
		if n := w.up.Count("**"); n != asked {
			t.Errorf("upstream saw %d requests, want %d", n, asked)
		}
		w.up.Reset()
	}
	absent(1)
	absent(0)
	w.absence.m[rpm[1:]] = time.Now().Add(-2 * absenceFor)
	w.up.Stop()
	absent(0)
	if _, _, err := w.get("/pub/test/never-asked"); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("never asked: %v", err)
	}
}

// TestDeletedUnderUs: whatever is removed from the tree by hand comes back when it is asked for.
func TestDeletedUnderUs(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{pointer, rpm} {
		w.put(path, "one", 1000)
		w.want(path, "one", miss, 1)
		if err := os.Remove(filepath.Join(w.dir, "root", path)); err != nil {
			t.Fatal(err)
		}
		w.want(path, "one", miss, 1)
	}
}

// TestModTime: stored files carry upstream's time, whole tree copies need no database.
func TestModTime(t *testing.T) {
	w := newWorld(t)
	w.put(rpm, "one", 1234567890)
	w.want(rpm, "one", miss, 1)
	info, err := os.Stat(filepath.Join(w.dir, "root", rpm))
	if err != nil || info.ModTime().Unix() != 1234567890 {
		t.Errorf("%v, %v", info.ModTime(), err)
	}
}

func TestMapsAreBounded(t *testing.T) {
	var locks keyed
	for i := range 1000 {
		locks.lock(fmt.Sprint(i))()
	}
	if len(locks.m) != 0 {
		t.Errorf("%d locks are remembered that nobody holds", len(locks.m))
	}
	var a absence
	var k checks
	for i := range maxKnown + 10 {
		a.learn(fmt.Sprint(i))
		k.note(fmt.Sprint(i), check{})
	}
	if len(a.m) > maxKnown || len(k.m) > maxKnown {
		t.Errorf("%d and %d paths are remembered", len(a.m), len(k.m))
	}
}
