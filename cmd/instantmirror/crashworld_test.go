package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// crashWorld is an upstream of which every byte is known, and the place of a mirror whose daemons die.
type crashWorld struct {
	t     *testing.T
	rng   *rand.Rand
	up    *mirrortest.Upstream
	repo  map[string]mirrortest.File
	truth map[string][]fileContent // by mirror path: what upstream has had there, the newest last
	dir   string                   // of root, state and profiles

	staged  int                  // how often upstream had something new
	checked map[string]time.Time // when a file that changes was last asked for
	spoiled bool                 // what was left of downloads may be wrong, so that the next transfers of them break off
}

// fileContent is what a path has, or had.
type fileContent struct {
	body  []byte
	sum   [sha256.Size]byte
	mtime time.Time
}

// crashPackages is how many packages each round's repository has.
const crashPackages = 16

func newCrashWorld(t *testing.T) *crashWorld {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("INSTANTMIRROR_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal("INSTANTMIRROR_SEED: ", err)
		}
	}
	t.Logf("INSTANTMIRROR_SEED=%d", seed)
	w := &crashWorld{t: t, rng: rand.New(rand.NewPCG(seed, 0)), up: mirrortest.NewUpstream(t), checked: map[string]time.Time{}}
	var packages []mirrortest.Package
	for i := range crashPackages {
		size := 1000 << (i % 9) // some end before one read, some take several
		packages = append(packages, mirrortest.Package{Name: string(rune('a'+i%8)) + fmt.Sprintf("-pkg+%d", i), Size: size, Seed: uint64(i) + 1})
	}
	w.repo = mirrortest.Repo{Packages: packages}.Files()
	w.up.Fault("**/chunked.img", mirrortest.Fault{Chunked: true})
	w.fresh()
	return w
}

// fresh begins an empty mirror.
func (w *crashWorld) fresh() {
	w.t.Helper()
	w.dir = w.t.TempDir()
	w.truth = map[string][]fileContent{}
	w.configure()
}

// configure writes the daemons' configuration.
func (w *crashWorld) configure() {
	w.t.Helper()
	profileFile(w.t, w.dir, "one", profileText("one", w.up.URL+"/x", "expiry: [{match: 'live/**', refresh: 1s}]"))
	configFile(w.t, w.dir, "reserve: 0\nlog: {access: false}\n")
}

// put makes upstream have f at rel.
func (w *crashWorld) put(rel string, f mirrortest.File) {
	w.up.PutFile("x/"+rel, f)
	w.truth["pub/one/"+rel] = append(w.truth["pub/one/"+rel], fileContent{f.Body, sha256.Sum256(f.Body), f.ModTime})
}

// stage makes upstream have a repository and other files below prefix, and new bytes at a path that stays. It returns
// the mirror paths: repomd.xml first, primary second.
func (w *crashWorld) stage(prefix string) []string {
	var first, paths []string
	for _, rel := range slices.Sorted(maps.Keys(w.repo)) {
		w.put(prefix+"/"+rel, w.repo[rel])
		switch p := "pub/one/" + prefix + "/" + rel; {
		case strings.HasSuffix(rel, "/repomd.xml"):
			first = append([]string{p}, first...)
		case strings.HasSuffix(rel, "-primary.xml.gz"):
			first = append(first, p)
		default:
			paths = append(paths, p)
		}
	}
	for i, name := range []string{"chunked.img", "images/boot.img", "README"} {
		w.put(prefix+"/"+name, mirrortest.File{
			Body: mirrortest.Bytes(w.rng.Uint64(), 500+w.rng.IntN(200_000)), ModTime: mirrortest.Epoch.Add(time.Duration(i) * time.Hour),
		})
		paths = append(paths, "pub/one/"+prefix+"/"+name)
	}
	// Its turn comes again when it is due.
	live := fmt.Sprintf("live/%d.txt", w.staged%4)
	w.staged++
	w.put(live, mirrortest.File{
		Body:    mirrortest.Bytes(w.rng.Uint64(), 5000+w.rng.IntN(50_000)),
		ModTime: mirrortest.Epoch.Add(time.Duration(w.staged) * time.Minute),
	})
	<-time.After(time.Until(w.checked[live].Add(1100 * time.Millisecond)))
	return append(append(first, paths...), "pub/one/"+live)
}

// daemon is a daemon of this world that has not begun.
func (w *crashWorld) daemon() *daemonProcess { return newDaemon(w.t, w.dir) }

// newDaemon is a daemon on what dir holds that has not begun.
func newDaemon(t *testing.T, dir string) *daemonProcess {
	d := &daemonProcess{t: t, dir: dir, done: make(chan struct{})}
	d.Cmd = program(t, "serve", "--config", filepath.Join(dir, "instantmirror.yaml"))
	// The race detector would wait for a second at each end.
	d.Env = append(d.Env, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return d
}

// stopIdle stops d. The server would wait for connections on which no request has come yet, such as clients open in
// advance.
func (d *daemonProcess) stopIdle() {
	http.DefaultClient.CloseIdleConnections()
	d.stop()
}

// dead waits for the end of a daemon that is killed.
func (d *daemonProcess) dead() {
	d.t.Helper()
	<-d.done
	_ = d.Wait()
	if status, ok := d.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		d.t.Errorf("the daemon was not killed, but ended with %v:\n%s", d.ProcessState, d.complaints())
	}
	for _, bad := range []string{"DATA RACE", "panic", "level=ERROR"} {
		if strings.Contains(d.logged(), bad) {
			d.t.Errorf("the daemon's log has %q:\n%s", bad, d.complaints())
		}
	}
}

// ask asks the mirror at base for p, or for n bytes of it from off on, and compares what comes with the truth: a whole
// answer must be right, and one that breaks off must be the beginning of a right one (unless w is spoiled). The error says that it broke
// off, or that there was none.
func (w *crashWorld) ask(ctx context.Context, base, p string, off, n int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+p, nil)
	if err != nil {
		return err
	}
	if n > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("%s: %s: %s", p, resp.Status, text)
	}
	var right [][]byte // what may follow
	for _, v := range w.truth[p] {
		if resp.StatusCode == http.StatusPartialContent {
			right = append(right, v.body[min(off, len(v.body)):min(off+n, len(v.body))])
		} else {
			right = append(right, v.body)
		}
	}
	got, buf := 0, make([]byte, 128<<10)
	for err == nil {
		var m int
		m, err = resp.Body.Read(buf)
		got += m
		for i := len(right) - 1; i >= 0; i-- {
			if !bytes.HasPrefix(right[i], buf[:m]) {
				right = slices.Delete(right, i, i+1)
			} else {
				right[i] = right[i][m:]
			}
		}
	}
	whole := errors.Is(err, io.EOF)
	if whole {
		err = nil
		right = slices.DeleteFunc(right, func(rest []byte) bool { return len(rest) > 0 })
	}
	if len(right) == 0 && (whole || !w.spoiled) {
		w.t.Errorf("%s (%d+%d): %s with %d bytes that are not upstream's, error %v, %s", p, off, n, resp.Status, got, err, resp.Header.Get("Cache-Status"))
	}
	return err
}

// load is several clients that ask for paths, each in an order of its own, until all is there or the daemon is dead.
// The function that it returns waits for them.
func (w *crashWorld) load(base string, paths []string) (wait func()) {
	var clients sync.WaitGroup
	for range 5 {
		seed := w.rng.Uint64()
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			order := slices.Clone(paths)
			rng.Shuffle(len(order)-2, func(i, j int) { order[i+2], order[j+2] = order[j+2], order[i+2] })
			for _, p := range order {
				off, n := 0, 0
				if size := len(w.truth[p][0].body); rng.IntN(4) == 0 && len(w.truth[p]) == 1 {
					off = rng.IntN(size)
					n = 1 + rng.IntN(size-off)
				}
				if err := w.ask(w.t.Context(), base, p, off, n); err != nil {
					return
				}
			}
		})
	}
	return clients.Wait
}

// walk compares everything below the root with what upstream ever had. It shares nothing with the program.
func (w *crashWorld) walk(when string) (stored map[string]int) {
	w.t.Helper()
	stored = map[string]int{}
	root := filepath.Join(w.dir, "root")
	dirs := map[string]bool{}
	for p := range w.truth {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	private := map[string]bool{".instantmirror": true, ".instantmirror/format": true, ".instantmirror/lock": true, ".instantmirror/tmp": true, ".instantmirror/gen": true}
	err := filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, file)
		if err != nil || rel == "." {
			return err
		}
		info, err := e.Info()
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(rel, ".instantmirror"):
			if !private[rel] && !strings.HasPrefix(rel, ".instantmirror/tmp/") && !strings.HasPrefix(rel, ".instantmirror/gen/") {
				w.t.Errorf("%s: left over: %s", when, rel)
			}
			return nil
		case e.IsDir():
			if !dirs[rel] || info.Mode() != fs.ModeDir|0o755 {
				w.t.Errorf("%s: the directory %s, %v, is none of the mirror's", when, rel, info.Mode())
			}
			return nil
		case !e.Type().IsRegular() || info.Mode() != 0o644:
			w.t.Errorf("%s: %s is %v", when, rel, info.Mode())
		}
		body, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		stored[rel] = len(body)
		sum := sha256.Sum256(body)
		var times []time.Time // of the same bytes, which upstream may have had more than once
		for _, v := range w.truth[rel] {
			if sum == v.sum {
				times = append(times, v.mtime)
			}
		}
		switch {
		case len(times) == 0:
			w.t.Errorf("%s: %s holds %d bytes that upstream never had there", when, rel, len(body))
		case !slices.ContainsFunc(times, info.ModTime().Equal):
			w.t.Errorf("%s: %s is of %v, upstream's is of %v", when, rel, info.ModTime(), times)
		}
		return nil
	})
	if err != nil {
		w.t.Errorf("%s: %v", when, err)
	}
	return stored
}

// tmp lists what is in progress: the downloads that can be taken up again, and the others.
func (w *crashWorld) tmp() (partials, others []string) {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, "root/.instantmirror/tmp/*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(filepath.Base(name), "partial-") {
			partials = append(partials, name)
		} else {
			others = append(others, name)
		}
	}
	return partials, others
}

// partials tells for which of paths a beginning is kept, and how much of it, by the bytes themselves.
func (w *crashWorld) partials(paths []string) map[string]int {
	w.t.Helper()
	kept := map[string]int{}
	names, _ := w.tmp()
next:
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			w.t.Error(err)
		}
		if len(b) == 0 {
			continue
		}
		for _, p := range paths {
			if bytes.HasPrefix(w.truth[p][0].body, b) {
				kept[p] = len(b)
				continue next
			}
		}
		w.t.Errorf("%s: its %d bytes are the beginning of nothing", name, len(b))
	}
	return kept
}

// mended starts a daemon on what a crash left: it must sweep what nobody can use, and answer every one of paths
// rightly. It must take up the downloads in kept, by path, of which it has so many bytes.
func (w *crashWorld) mended(when string, paths []string, kept map[string]int) {
	w.t.Helper()
	d := w.daemon()
	d.begin()
	if _, others := w.tmp(); len(others) > 0 {
		w.t.Errorf("%s: not swept: %v", when, others)
	}
	w.up.Reset()
	ask := func(p string, off, n int) {
		err := w.ask(w.t.Context(), d.url, p, off, n)
		for range 3 {
			if err == nil || !w.spoiled {
				break
			}
			err = w.ask(w.t.Context(), d.url, p, off, n)
		}
		if err != nil {
			w.t.Errorf("%s: after the restart: %v", when, err)
		}
	}
	for _, p := range paths[:2] {
		ask(p, 0, 0)
	}
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for k := 2 + i; k < len(paths); k += 4 {
				p := paths[k]
				size := len(w.truth[p][0].body)
				ask(p, 0, 0)
				if len(w.truth[p]) == 1 {
					ask(p, size/3, max(1, size/2))
				}
			}
		})
	}
	clients.Wait()
	live := paths[len(paths)-1]
	if _, body, cache := d.get("/" + live); body != string(w.newest(live)) {
		w.t.Errorf("%s: %s is an old one: %s", when, live, cache)
	}
	w.checked[strings.TrimPrefix(live, "pub/one/")] = time.Now()
	for p, n := range kept {
		w.resumed(when, p, n)
	}
	w.settle(when)
	d.stopIdle()
	stored := w.walk(when + ", and restart")
	for _, p := range paths {
		if _, ok := stored[p]; !ok {
			w.t.Errorf("%s: %s is not stored after it was asked for", when, p)
		}
	}
}

func (w *crashWorld) newest(p string) []byte {
	all := w.truth[p]
	return all[len(all)-1].body
}

// resumed fails the test unless the first request that upstream saw for p was for what follows its first n bytes.
func (w *crashWorld) resumed(when, p string, n int) {
	w.t.Helper()
	if n == len(w.truth[p][0].body) {
		n-- // all of it was here; what to ask for then?
	}
	want := fmt.Sprintf("bytes=%d-", n)
	for _, r := range w.up.Requests() {
		if r.Method == http.MethodGet && "pub/one/"+strings.TrimPrefix(r.Path, "x/") == p {
			if got := r.Header.Get("Range"); got != want {
				w.t.Errorf("%s: %d bytes of %s were here, and upstream was asked for %q: %v", when, n, p, cmp.Or(got, "the whole"), r)
			}
			return
		}
	}
	w.t.Errorf("%s: %d bytes of %s were here, and the rest was not asked for", when, n, p)
}

// settle waits until no download is in progress, and none left a beginning behind.
func (w *crashWorld) settle(when string) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		partials, others := w.tmp()
		if len(partials)+len(others) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Errorf("%s: all is stored, and yet there is %v %v", when, partials, others)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}
