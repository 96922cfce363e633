package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/fsck"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// world is a mirror with its monitor, over one upstream server that plays several origins: /a, /b and /c below it. The
// profile serves what they have at pub/test. The schedule does not run unless a test runs it.
type world struct {
	t       testing.TB
	up      *mirrortest.Upstream
	dir     string // of root and state
	profile string // the profile's text
	beside  string // that of a second one, by another name; empty: there is none

	store   *store.Store
	index   *index.Index
	journal *journal.Journal
	mirror  *mirror.Mirror
	monitor *Monitor
	flights *fetch.Group
	table   *site.Table
	stop    func()

	mu     sync.Mutex
	events []Event
	said   []error                               // what the mirror reported
	pushed map[string]map[string]mirrortest.File // by prefix: what is there
}

const base = "pub/test/"

const oneOrigin = `
name: test
path: /pub/test
enabled: true
upstreams: [%[1]s/a]
`

const threeOrigins = `
name: test
path: /pub/test
enabled: true
upstreams: [%[1]s/a, %[1]s/b]
fallbacks: [%[1]s/c]
`

func newWorld(t testing.TB, text string) *world {
	t.Helper()
	w := &world{t: t, up: mirrortest.NewUpstream(t), dir: t.TempDir(), pushed: map[string]map[string]mirrortest.File{}}
	w.profile = fmt.Sprintf(text, w.up.URL)
	w.begin()
	t.Cleanup(func() { w.stop() })
	return w
}

// route makes the table anew, whose origins have not failed yet.
func (w *world) route() {
	w.t.Helper()
	file := filepath.Join(w.dir, "test.yaml")
	if err := os.WriteFile(file, []byte(w.profile), 0o644); err != nil {
		w.t.Fatal(err)
	}
	list := []string{file}
	if w.beside != "" {
		second := filepath.Join(w.dir, "beside.yaml")
		if err := os.WriteFile(second, []byte(w.beside), 0o644); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, second)
	}
	ps, err := profile.Load(nil, nil, list)
	if err != nil {
		w.t.Fatal(err)
	}
	pool := upstream.NewPool("instantmirror/test")
	w.t.Cleanup(pool.CloseIdleConnections)
	if w.table, err = site.Build(ps, pool); err != nil {
		w.t.Fatal(err)
	}
	if w.monitor != nil {
		w.monitor.Swap(w.table)
	}
}

// begin opens root and state, as a start of the daemon does.
func (w *world) begin() {
	w.t.Helper()
	w.monitor = nil
	w.route()
	var err error
	fatal := func() {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.store, err = store.Open(filepath.Join(w.dir, "root"), 0)
	fatal()
	w.index, _, err = index.Open(filepath.Join(w.dir, "state"))
	fatal()
	w.journal, err = journal.Open(filepath.Join(w.dir, "state", "journal"))
	fatal()
	ctx, cancel := context.WithCancel(context.Background())
	w.flights = fetch.New(ctx, w.store, func(fetch.Result) {})
	w.mirror = mirror.New(w.store, w.index, w.flights, w.journal, func(err error) {
		w.t.Log(err)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said = append(w.said, err)
	})
	w.monitor = New(ctx, w.mirror, w.index, w.store, w.flights, w.table, func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	})
	w.mirror.Watch(w.monitor)
	err = w.mirror.Recover(ctx)
	fatal()
	w.stop = sync.OnceFunc(func() {
		cancel()
		w.monitor.Wait()
		w.flights.Wait()
		w.index.Close()
		w.journal.Close()
		w.store.Close()
	})
}

func (w *world) restart() {
	w.stop()
	w.begin()
}

// push makes prefix ("a/os") hold just files.
func (w *world) push(prefix string, files map[string]mirrortest.File) {
	for name := range w.pushed[prefix] {
		if _, ok := files[name]; !ok {
			w.up.Remove(prefix + "/" + name)
		}
	}
	// Packages first, the pointer last, as masters do.
	for _, pointer := range []bool{false, true} {
		for name, f := range files {
			if strings.HasPrefix(name, "repodata/repomd.xml") == pointer {
				w.up.PutFile(prefix+"/"+name, f)
			}
		}
	}
	w.pushed[prefix] = files
}

// get is a client's request: the whole body.
func (w *world) get(name string) ([]byte, error) { return w.getAt(base + name) }

// getAt is get for any path.
func (w *world) getAt(name string) ([]byte, error) {
	t, err := w.table.Resolve("localhost", "/"+name)
	if err != nil {
		return nil, err
	}
	a, err := w.mirror.Open(w.t.Context(), t)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	var b bytes.Buffer
	err = a.Ready(w.t.Context(), 0, -1)
	for err == nil {
		_, err = a.CopyTo(w.t.Context(), &b, int64(b.Len()), 1<<20)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b.Bytes(), err
}

// want fails unless a client gets just body.
func (w *world) want(name string, body []byte) {
	w.t.Helper()
	if got, err := w.get(name); err != nil || !bytes.Equal(got, body) {
		w.t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), err, len(body))
	}
}

// absent fails unless a client gets 404.
func (w *world) absent(name string) {
	w.t.Helper()
	if got, err := w.get(name); !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("%s: %d bytes, %v; want none", name, len(got), err)
	}
}

// quiet waits until no look and no flight is under way.
func (w *world) quiet() {
	w.t.Helper()
	for {
		busy := (<-chan struct{})(nil)
		w.monitor.mu.Lock()
		for _, x := range w.monitor.watches {
			if x.look != nil {
				busy = x.look.done
			}
		}
		w.monitor.mu.Unlock()
		if busy == nil {
			return
		}
		<-busy
	}
}

// meet asks for a repository's pointer and waits for what that leads to.
func (w *world) meet(repo string) {
	w.t.Helper()
	if _, err := w.get(repo + "/repodata/repomd.xml"); err != nil {
		w.t.Fatal(err)
	}
	w.settled(repo)
}

// settled waits until repo has been met and completed.
func (w *world) settled(repo string) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.quiet()
		if r, ok := w.index.Repo(base + repo); ok && r.Pointer.Companions && !r.Unjudged {
			return
		}
		if time.Now().After(deadline) {
			r, _ := w.monitor.Repository(base + repo)
			w.t.Fatalf("%s does not settle: %+v", repo, r)
		}
	}
}

// look looks upstream now.
func (w *world) look(repo string) Result {
	w.t.Helper()
	r, err := w.monitor.Refresh(w.t.Context(), base+repo, false)
	if err != nil && r.What == "" {
		w.t.Fatal(err)
	}
	return r
}

// force is look, whatever speaks against what is found.
func (w *world) force(repo string) Result {
	w.t.Helper()
	r, err := w.monitor.Refresh(w.t.Context(), base+repo, true)
	if err != nil && r.What == "" {
		w.t.Fatal(err)
	}
	return r
}

// is fails unless r is what is wanted.
func (w *world) is(r Result, what string) {
	w.t.Helper()
	if r.What != what {
		seen := ""
		if w.up != nil {
			seen = "; upstream saw\n" + w.up.Log()
		}
		w.t.Fatalf("%s (%v), want %s%s", r.What, r.Err, what, seen)
	}
}

// stored lists the stored files below dir, relative to it.
func (w *world) stored(dir string) []string {
	w.t.Helper()
	var list []string
	err := w.store.Walk(w.t.Context(), base+dir, func(i store.Info) error {
		list = append(list, strings.TrimPrefix(i.Path, base+dir+"/"))
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func (w *world) holds(name string) bool {
	_, err := w.store.Stat(base + name)
	return err == nil
}

// age makes what leaves repo have left so much earlier, and its files' grace end by that.
func (w *world) age(repo string, d time.Duration) {
	w.t.Helper()
	var list []index.Leaving
	err := w.index.EachLeaving(base+repo, func(l index.Leaving) error {
		l.Until = l.Until.Add(-d)
		list = append(list, l)
		return nil
	})
	if err == nil {
		err = w.index.Leave(base+repo, list...)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// expire expires what has left repo.
func (w *world) expire(repo string) int {
	w.t.Helper()
	n, _, err := w.mirror.Expire(w.t.Context(), base+repo, "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// sound fails if the independent judge finds anything wrong in the tree.
func (w *world) sound() fsck.Summary {
	w.t.Helper()
	s, err := fsck.Check(w.t.Context(), w.store.Dir(), fsck.Options{}, func(f fsck.Finding) {
		w.t.Errorf("fsck: %v", f)
	})
	if err != nil {
		w.t.Error(err)
	}
	return s
}

// logged returns the events of that kind, and forgets all.
func (w *world) logged(what string) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []Event
	for _, e := range w.events {
		if e.What == what {
			list = append(list, e)
		}
	}
	w.events = nil
	return list
}

// at is a moment so many hours after the first generation.
func at(hours int) time.Time { return mirrortest.Epoch.Add(time.Duration(hours) * time.Hour) }

// repo is a small repository as it was pushed at a time: packages are named "name" or "name=seed".
func repo(when time.Time, names ...string) mirrortest.Repo {
	r := mirrortest.Repo{Time: when}
	for _, n := range names {
		name, seed, _ := strings.Cut(n, "=")
		p := mirrortest.Package{Name: name, Size: 3000}
		for _, c := range []byte(seed) {
			p.Seed = p.Seed*31 + uint64(c)
		}
		r.Packages = append(r.Packages, p)
	}
	return r
}

// pkg is where a package stands.
func pkg(name string) string {
	return "Packages/" + name[:1] + "/" + mirrortest.Package{Name: name}.FileName()
}
