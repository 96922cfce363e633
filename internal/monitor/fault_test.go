package monitor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// faultGen is one generation of the repository of the fault table: what its files are, and which are here while it is in
// force, of those that upstream may have no more.
type faultGen struct {
	name  string
	files map[string]mirrortest.File
	held  []string
}

// faultGens are three generations between which everything happens: packages come, vanish, are signed anew; records
// change, and stay; companions come, change and go.
func faultGens(fixed bool) (gens [3]faultGen) {
	one := repo(at(0), "kept", "gone", "signed=1", "unused")
	one.Extra = map[string][]byte{"group": []byte("<comps/>"), "updateinfo": []byte("<updates><one/></updates>"), "prestodelta": []byte("<one/>")}
	two := repo(at(24), "kept", "signed=2", "new", "unused")
	two.Extra = map[string][]byte{"group": []byte("<comps/>"), "updateinfo": []byte("<updates><two/></updates>"), "modules": []byte("two: 2")}
	three := repo(at(48), "kept", "signed=3", "new")
	three.Extra = map[string][]byte{"group": []byte("<comps><three/></comps>"), "updateinfo": []byte("<updates><two/></updates>")}
	for i, r := range []mirrortest.Repo{one, two, three} {
		r.Fixed = fixed
		g := faultGen{name: fmt.Sprint("generation ", i+1), files: r.Files()}
		for _, ext := range [][]string{{".asc", ".key"}, {".asc"}, {".asc", ".key"}}[i] {
			g.files["repodata/repomd.xml"+ext] = mirrortest.File{Body: []byte(g.name + ext), ModTime: r.Time}
		}
		gens[i] = g
	}
	for name := range gens[0].files {
		if !strings.Contains(name, "unused") && !strings.Contains(name, "other.xml") && !strings.Contains(name, "prestodelta") {
			gens[0].held = append(gens[0].held, name)
		}
	}
	return gens
}

// faultTable is what all rounds of one table begin with: a mirror that is stopped, an upstream that has the second
// generation at a/os and the third at next/os.
type faultTable struct {
	t    *testing.T
	up   *mirrortest.Upstream
	gens [3]faultGen
	dir  string // of the mirror
}

// newFaultTable begins with what make makes of a new mirror, whose upstream has the first generation.
func newFaultTable(t *testing.T, fixed bool, make func(*faultTable, *world)) *faultTable {
	t.Helper()
	f := &faultTable{t: t, gens: faultGens(fixed)}
	w := newWorld(t, oneOrigin)
	f.up, f.dir = w.up, w.dir
	w.push("a/os", f.gens[0].files)
	w.push("next/os", f.gens[2].files)
	make(f, w)
	w.stop()
	w.push("a/os", f.gens[1].files)
	return f
}

// first has the mirror hold the first generation.
func (f *faultTable) first(w *world) {
	f.t.Helper()
	w.meet("os")
	for _, name := range f.gens[0].held {
		w.want("os/"+name, f.gens[0].files[name].Body)
	}
	w.settled("os")
	f.whole(w, "before", 0)
}

// second has the mirror hold the second generation, and what has left it gone before its grace began.
func (f *faultTable) second(w *world) {
	f.t.Helper()
	f.first(w)
	w.push("a/os", f.gens[1].files)
	w.is(w.look("os"), Published)
	f.whole(w, "before", 1)
	w.age("os", 48*time.Hour)
}

// world is a mirror on a copy of what stands at dir.
func (f *faultTable) world(t *testing.T, dir string) *world {
	t.Helper()
	w := &world{t: t, up: f.up, dir: t.TempDir(), profile: fmt.Sprintf(oneOrigin, f.up.URL)}
	copyTree(t, dir, w.dir)
	w.begin()
	t.Cleanup(func() { w.stop() })
	return w
}

// whole fails the test unless a client finds one of the generations of f, by number, whole. It returns which.
func (f *faultTable) whole(w *world, when string, may ...int) int {
	w.t.Helper()
	const pointer = "repodata/repomd.xml"
	got, err := w.get("os/" + pointer)
	found := slices.IndexFunc(f.gens[:], func(g faultGen) bool { return string(g.files[pointer].Body) == string(got) })
	if err != nil || !slices.Contains(may, found) {
		w.t.Errorf("%s: a client gets generation %d (of 0, 1, 2; %d bytes, %v), want one of %v", when, found, len(got), err, may)
		return found
	}
	g := f.gens[found]
	names := g.held
	if found > 0 {
		names = nil
		for name := range g.files {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if got, err := w.get("os/" + name); err != nil || string(got) != string(g.files[name].Body) {
			w.t.Errorf("%s: a client that has %s gets %d bytes of %s, %v; want %d", when, g.name, len(got), name, err, len(g.files[name].Body))
		}
	}
	for _, ext := range []string{".asc", ".key"} {
		if _, has := g.files[pointer+ext]; has {
			continue
		}
		if got, err := w.get("os/" + pointer + ext); !errors.Is(err, fs.ErrNotExist) {
			w.t.Errorf("%s: %s has no %s, and a client gets %q, %v", when, g.name, ext, got, err)
		}
	}
	return found
}

// tidy fails the test if anything is left in the private directory but downloads that can be taken up again, or if the
// store's count of what is stored is wrong.
func (f *faultTable) tidy(w *world, when string) {
	w.t.Helper()
	w.idle()
	for _, dir := range []string{"gen", "tmp"} {
		left, err := os.ReadDir(filepath.Join(w.dir, "root/.instantmirror", dir))
		if err != nil {
			w.t.Error(err)
		}
		for _, e := range left {
			if !strings.HasPrefix(e.Name(), "partial-") {
				w.t.Errorf("%s: left in %s: %s", when, dir, e.Name())
			}
		}
	}
	counted, _, _ := w.store.Usage("")
	if err := w.store.Measure(w.t.Context()); err != nil {
		w.t.Error(err)
	}
	if there, _, _ := w.store.Usage(""); counted != 0 && counted != there {
		w.t.Errorf("%s: %d bytes are stored by the store's count, %d in truth", when, counted, there)
	}
}

// idle waits until nothing is under way.
func (w *world) idle() {
	w.flights.Wait() // a look may begin with their end
	w.quiet()
	w.flights.Wait()
}

// faultStep is a change of what is on the disk: what, where, and which one of several that are the same.
type faultStep struct {
	step, path string
	nth        int
}

func (s faultStep) String() string { return fmt.Sprintf("%s %s %d", s.step, s.path, s.nth) }

// seen calls f at each step of w's store.
func (w *world) seen(f func(s faultStep, before bool) error) {
	var mu sync.Mutex
	count := map[faultStep]int{}
	w.store.SetFault(func(step, path string, before bool) error {
		mu.Lock() // over f, too: nothing else happens meanwhile
		defer mu.Unlock()
		s := faultStep{step, path, 0}
		if before {
			count[s]++
		}
		s.nth = count[faultStep{step, path, 0}]
		return f(s, before)
	})
}

// steps records which steps op takes, in order.
func (f *faultTable) steps(op func(*world) error) (list []faultStep) {
	f.t.Helper()
	w := f.world(f.t, f.dir)
	w.seen(func(s faultStep, before bool) error {
		if !before { // what did not succeed, such as the removal of a directory that is not empty, changes nothing
			list = append(list, s)
		}
		return nil
	})
	if err := op(w); err != nil {
		f.t.Fatal(err)
	}
	w.store.SetFault(nil)
	w.stop()
	return list
}

var errFault = errors.New("the disk fails")

// fault is what happens to one step.
type fault struct {
	name    string
	before  bool // at its beginning, not at its end
	crash   bool // the process is killed; else the step is reported as failed
	lasting bool // so are all that follow
	unindex bool // the index takes nothing from then on
	restart bool // the process is started anew afterwards, before anything else
}

var faults = []fault{
	{name: "not applied", before: true},
	{name: "applied, reported failed"},
	{name: "nothing works from its beginning", before: true, lasting: true},
	{name: "not applied; restart", before: true, restart: true},
	{name: "applied, reported failed; restart", restart: true},
	{name: "nothing works from its beginning; restart", before: true, lasting: true, restart: true},
	{name: "nothing works from its end; restart", lasting: true, restart: true},
	{name: "killed at its beginning", before: true, crash: true},
	{name: "killed at its end", crash: true},
	{name: "the index fails from its end; restart", unindex: true, restart: true},
}

// inject has fl happen at step s of op, and returns the mirror as it is afterwards.
func (f *faultTable) inject(t *testing.T, s faultStep, fl fault, op func(*world) error) *world {
	t.Helper()
	w := f.world(t, f.dir)
	if err := w.store.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	hit, crashed := false, t.TempDir()
	w.seen(func(now faultStep, before bool) error {
		if hit && fl.lasting {
			return errFault
		}
		if hit || now != s || before != fl.before {
			return nil
		}
		hit = true
		switch {
		case fl.crash:
			copyTree(t, w.dir, crashed)
			return nil
		case fl.unindex:
			w.index.Close()
			return nil
		}
		return errFault
	})
	_ = op(w)
	w.idle()
	w.store.SetFault(nil)
	if !hit {
		t.Errorf("there was no such step")
	}
	switch {
	case fl.crash:
		w.stop()
		return f.world(t, crashed)
	case fl.restart:
		w.restart()
	}
	return w
}

// rounds calls round for every fault at every step that op takes; but for a soak for a few of them.
func (f *faultTable) rounds(op func(*world) error, round func(*testing.T, *world, faultStep, fault)) {
	f.t.Helper()
	type one struct {
		s  faultStep
		fl fault
	}
	var all []one
	steps := f.steps(op)
	for _, s := range steps {
		for _, fl := range faults {
			all = append(all, one{s, fl})
		}
	}
	f.t.Logf("%d steps, %d rounds", len(steps), len(all))
	if os.Getenv("INSTANTMIRROR_SOAK") == "" {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:min(len(all), 12)]
	}
	for _, r := range all {
		f.t.Run(fmt.Sprintf("%s: %s", r.s, r.fl.name), func(t *testing.T) {
			t.Parallel()
			round(t, f.inject(t, r.s, r.fl, op), r.s, r.fl)
		})
	}
}

// eachNaming runs test for metadata with unique and with fixed names.
func eachNaming(t *testing.T, test func(t *testing.T, fixed bool)) {
	t.Run("unique names", func(t *testing.T) { test(t, false) })
	t.Run("fixed names", func(t *testing.T) { test(t, true) })
}

func lookOnce(w *world) error {
	_, err := w.monitor.Refresh(w.t.Context(), base+"os", false)
	return err
}

// TestFaultPublish: whichever step of a publication fails or is the last one, clients find one whole generation, the
// next look brings the new one, and no later start changes that.
func TestFaultPublish(t *testing.T) {
	eachNaming(t, func(t *testing.T, fixed bool) {
		f := newFaultTable(t, fixed, (*faultTable).first)
		f.rounds(lookOnce, func(t *testing.T, w *world, s faultStep, fl fault) {
			if !fl.lasting || fl.restart { // else there may be no way on nor back, until the next look
				f.whole(w, "afterwards", 0, 1)
			}
			if fl.restart || fl.crash {
				f.tidy(w, "afterwards")
				w.sound()
			}
			f.goesOn(w, s, 1)
			w.age("os", 48*time.Hour)
			w.expire("os")
			f.journaled(w)
			w.sound()
		})
	})
}

// TestFaultFirstContact: likewise for the first request for a repository, and what is fetched because of it.
func TestFaultFirstContact(t *testing.T) {
	eachNaming(t, func(t *testing.T, fixed bool) {
		f := newFaultTable(t, fixed, func(*faultTable, *world) {})
		meet := func(w *world) error {
			_, err := w.get("os/repodata/repomd.xml")
			w.idle()
			return err
		}
		f.rounds(meet, func(t *testing.T, w *world, s faultStep, fl fault) {
			if fl.restart || fl.crash {
				f.tidy(w, "afterwards")
				w.sound()
				f.whole(w, "afterwards", 1)
			}
			f.goesOn(w, s, 1)
		})
	})
}

// goesOn fails the test unless the next look brings the generation want, or the third one if upstream has moved on to
// that, and the next start leaves it at that.
func (f *faultTable) goesOn(w *world, s faultStep, want int) {
	w.t.Helper()
	if (s.nth+len(s.path))%2 == 0 {
		want, w.profile = 2, strings.Replace(w.profile, "/a]", "/next]", 1)
		w.route()
	}
	if r := w.look("os"); r.Err != nil {
		w.t.Errorf("the next look: %s, %v", r.What, r.Err)
	}
	f.whole(w, "after the next look", want)
	f.tidy(w, "after the next look")
	w.sound()
	w.restart()
	f.whole(w, "after one more start", want)
	f.tidy(w, "after one more start")
}

// TestFaultExpire: whichever step of an expiry fails or is the last one, just what has left goes in the end, each with its
// line in the journal, and clients find the rest whole throughout.
func TestFaultExpire(t *testing.T) {
	eachNaming(t, func(t *testing.T, fixed bool) {
		f := newFaultTable(t, fixed, (*faultTable).second)
		f.goes(func(w *world) error {
			_, _, err := w.mirror.Expire(w.t.Context(), base+"os", "test")
			return err
		})
	})
}

// TestFaultEvict: likewise for an eviction.
func TestFaultEvict(t *testing.T) {
	eachNaming(t, func(t *testing.T, fixed bool) {
		f := newFaultTable(t, fixed, (*faultTable).second)
		var names []string
		for name := range f.gens[1].files {
			if strings.Contains(name, "kept") || strings.Contains(name, "new") || strings.Contains(name, "filelists") || strings.HasSuffix(name, "/primary.xml.gz") {
				names = append(names, base+"os/"+name)
			}
		}
		slices.Sort(names)
		f.goes(func(w *world) error {
			_, err := w.mirror.Evict(names...)
			return err
		})
	})
}

// goes runs the rounds of op, which deletes files, of the second generation or before.
func (f *faultTable) goes(op func(*world) error) {
	f.t.Helper()
	w := f.world(f.t, f.dir)
	before := w.stored("os")
	if err := op(w); err != nil {
		f.t.Fatal(err)
	}
	want := w.stored("os")
	w.stop()
	if len(want) == len(before) {
		f.t.Fatal("nothing goes")
	}
	f.rounds(op, func(t *testing.T, w *world, s faultStep, fl fault) {
		w.sound()
		if err := op(w); err != nil {
			t.Error(err)
		}
		if got := w.stored("os"); !slices.Equal(got, want) {
			t.Errorf("in the end there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		f.journaled(w)
		f.tidy(w, "in the end")
		f.whole(w, "in the end", 1)
		w.restart()
		f.whole(w, "after one more start", 1)
		f.tidy(w, "after one more start")
		w.sound()
	})
}

// journaled fails the test if a file that stood there is gone or another one, and the journal does not say why.
func (f *faultTable) journaled(w *world) {
	w.t.Helper()
	entries, err := w.journal.Find(w.t.Context(), "", 1000)
	if err != nil {
		w.t.Error(err)
	}
	said := map[string]bool{}
	for _, e := range entries {
		said[strings.TrimPrefix(e.Path, base+"os/")] = true
	}
	err = filepath.WalkDir(filepath.Join(f.dir, "root", base, "os"), func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(filepath.Join(f.dir, "root", base, "os"), file)
		pointer := strings.HasPrefix(name, "repodata/repomd.xml") // they change, or go with what they belong to
		if !w.holds("os/"+name) && !said[name] && !pointer {
			w.t.Errorf("%s is gone, and the journal does not say why: %+v", name, entries)
		}
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
}

// copyTree copies files with their times and modes, as they stand.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	one := func(file string, e fs.DirEntry) error {
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), info.Mode().Perm())
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(filepath.Join(to, rel), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
		if err == nil {
			_, err = io.Copy(out, in)
			err = errors.Join(err, out.Close())
		}
		if err == nil {
			err = os.Chtimes(filepath.Join(to, rel), info.ModTime(), info.ModTime())
		}
		return err
	}
	err := filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() != "admin.sock" {
			err = one(file, e)
		}
		if errors.Is(err, fs.ErrNotExist) { // a download that ended meanwhile
			err = nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
