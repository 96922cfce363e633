package mirror

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/store"
)

// pruneSum is the digest that files of these tests are said to have.
func pruneSum(t *testing.T, digit string) digest.Sum {
	sum, err := digest.ParseSum(digest.SHA256, strings.Repeat(digit, 64))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// know makes the repository at root known: its packages, and beside primary records of these types.
func (w *world) know(root string, packages []string, types ...string) {
	w.t.Helper()
	primary := index.Record{Named: index.Named{Size: 1, Sum: pruneSum(w.t, "a")}, Type: "primary"}
	name := root + "/repodata/" + strings.Repeat("a", 64) + "-primary.xml.gz"
	records := map[string]index.Record{name: primary}
	for _, kind := range types {
		records[root+"/repodata/"+strings.Repeat("b", 64)+"-"+kind+".xml.gz"] = index.Record{Named: index.Named{Size: 1, Sum: pruneSum(w.t, "b")}, Type: kind}
	}
	err := w.index.SetRecords(root, index.Pointer{Sum: pruneSum(w.t, "c"), Published: time.Now()}, records, name)
	if err == nil && packages != nil {
		var staged *index.Staged
		staged, err = w.index.Stage(root, primary.Sum, func(yield func(string, index.Named) error) error {
			for _, p := range packages {
				if err := yield(p, index.Named{Size: 4, Sum: pruneSum(w.t, "d")}); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = w.index.SetPackages(root, staged)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.update(root, func(r *index.Repo) { r.Unjudged = false })
}

func (w *world) update(root string, f func(*index.Repo)) {
	w.t.Helper()
	if _, err := w.index.Update(root, f); err != nil {
		w.t.Fatal(err)
	}
}

// place writes files of four bytes into the tree, as somebody else would.
func (w *world) place(names ...string) {
	w.t.Helper()
	for _, name := range names {
		file := filepath.Join(w.dir, "root", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("junk"), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) walk() (names []string) {
	err := w.store.Walk(w.t.Context(), ".", func(i store.Info) error {
		names = append(names, i.Path)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	const (
		known, vetoed, gone, half, unjudged = "pub/test/known", "pub/test/vetoed", "pub/test/gone", "pub/test/half", "pub/test/unjudged"
		deltas                              = "pub/test/deltas"
	)
	w.know(known, []string{known + "/Packages/named.rpm"}, "group")
	w.know(deltas, []string{}, "prestodelta")
	w.know(half, nil)
	for _, root := range []string{vetoed, gone, unjudged} {
		w.know(root, []string{})
	}
	w.update(vetoed, func(r *index.Repo) { r.Veto = &index.Veto{Since: time.Now()} })
	w.update(gone, func(r *index.Repo) { r.Gone = time.Now() })
	w.update(unjudged, func(r *index.Repo) { r.Unjudged = true })
	leave := func(name string, until time.Duration) {
		err := w.index.Leave(known, index.Leaving{
			Path: name, Named: index.Named{Size: 4, Sum: pruneSum(t, "e")}, Until: time.Now().Add(until), From: "0123456789ab", To: "ba9876543210",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	leave(known+"/Packages/in-grace.rpm", time.Hour)
	leave(known+"/Packages/ended.rpm", -time.Hour)
	leave(known+"/repodata/comps.xml", -time.Hour)
	leave(known+"/Packages/named.rpm", -time.Hour) // named again since
	hex := strings.Repeat("f", 64)
	stay := []string{
		known + "/Packages/named.rpm", known + "/Packages/in-grace.rpm",
		known + "/repodata/repomd.xml", known + "/repodata/filelists.xml.gz", known + "/.treeinfo", known + "/images/boot.iso",
		known + "/repodata/" + strings.Repeat("a", 64) + "-primary.xml.gz",
		known + "/inner/repodata/repomd.xml", known + "/inner/Packages/other.rpm", // of a repository that is not known
		"pub/test/elsewhere/loose.rpm", "pub/test/elsewhere/repodata/" + hex + "-primary.xml.gz",
		vetoed + "/x.rpm", gone + "/x.rpm", half + "/x.rpm", unjudged + "/x.rpm",
		deltas + "/drpms/x.drpm",
	}
	const unnamed, served = "no generation names it", "no profile serves it"
	go1 := map[string]string{
		"old/file": served, "pub/file": served, "-/file": served, "pub/test/back\\slash": served,
		known + "/Packages/unknown.rpm": unnamed, known + "/drpms/x.drpm": unnamed, deltas + "/x.rpm": unnamed,
		known + "/repodata/" + hex + "-other.xml.gz": unnamed, half + "/repodata/" + hex + "-other.xml.gz": unnamed,
		known + "/Packages/ended.rpm": "its grace ended ", known + "/repodata/comps.xml": "its grace ended ",
	}
	w.place(stay...)
	w.place(slices.Collect(maps.Keys(go1))...)
	all := slices.Concat(stay, slices.Collect(maps.Keys(go1)))
	link := filepath.Join(w.dir, "root/old/linked")
	if err := os.Link(filepath.Join(w.dir, "root/old/file"), link); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(link, filepath.Join(w.dir, "root", known, "images/linked.iso")); err != nil { // which stays
		t.Fatal(err)
	}
	stay, all = append(stay, known+"/images/linked.iso"), append(all, known+"/images/linked.iso", "old/linked")
	go1["old/linked"] = served

	for _, step := range []struct {
		name  string
		o     PruneOptions
		goes  bool
		after []string
	}{
		{"dry", PruneOptions{DryRun: true}, true, all},
		{"all came within the hour", PruneOptions{Spare: time.Hour}, false, all},
		{"for good", PruneOptions{}, true, stay},
		{"again", PruneOptions{}, false, stay},
	} {
		found := map[string]string{}
		step.o.Found = func(path, why string, size int64) {
			if found[path] = why; size != 4 {
				t.Errorf("%s: %s has %d bytes", step.name, path, size)
			}
		}
		files, bytes, err := w.Prune(t.Context(), w.table, step.o)
		if err != nil {
			t.Fatal(err)
		}
		want, room := 0, int64(0)
		if step.goes {
			want, room = len(go1), int64(4*(len(go1)-2)) // the two linked ones have a third name, which stays
			for name, why := range go1 {
				if !strings.HasPrefix(found[name], why) {
					t.Errorf("%s: %s went because %q, want %q", step.name, name, found[name], why)
				}
			}
		}
		if files != want || len(found) != want || bytes != room {
			t.Errorf("%s: %d files, %d found, %d bytes; want %d, %d bytes: %v", step.name, files, len(found), bytes, want, room, found)
		}
		if got, want := slices.Sorted(slices.Values(w.walk())), slices.Sorted(slices.Values(step.after)); !slices.Equal(got, want) {
			t.Errorf("%s: the tree has\n%s\nwant\n%s", step.name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for name, reason := range map[string]journal.Reason{"old/file": journal.ByHand, known + "/Packages/ended.rpm": journal.Vanished} {
		if e, err := w.journal.Find(t.Context(), name, 2); err != nil || len(e) != 1 || e[0].Reason != reason || !strings.HasPrefix(e[0].Rule, "prune: "+go1[name]) {
			t.Errorf("the journal has %v, %v of %s", e, err, name)
		}
	}
}

// TestPruneBetween: a repository does not speak for what lies in another tree below it, of which only packages were asked.
func TestPruneBetween(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "layout.yaml")
	text := "name: test\npath: /pub/test\nenabled: true\nupstreams: [http://127.0.0.1:9/]\nlayout: [{tree: '{v}/os/debug'}, {tree: '{v}/os'}]\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.profiles, err = profile.Load(nil, nil, []string{file}); err != nil {
		t.Fatal(err)
	}
	w.route()
	w.know("pub/test/1/os", []string{})
	w.place("pub/test/1/os/x.rpm", "pub/test/1/os/debug/x.rpm")
	n, _, err := w.Prune(t.Context(), w.table, PruneOptions{Found: func(string, string, int64) {}})
	if got := w.walk(); err != nil || n != 1 || !slices.Equal(got, []string{"pub/test/1/os/debug/x.rpm"}) {
		t.Errorf("%d went, %v: left is %v", n, err, got)
	}
}

// TestExplain: what is believed of a path, in words.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	explain := func(path string) Standing {
		t.Helper()
		target, err := w.table.Resolve("", path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := w.Explain(target)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := explain(pointer); st.Validity != "missing" || st.Info.Path != "" || w.up.Count("**") != 0 {
		t.Errorf("before: %+v", st)
	}
	w.put(pointer, "one", 1000)
	w.put(rpm, "package", 1000)
	w.get(pointer)
	w.get(rpm)
	if st := explain(pointer); st.Validity != "fresh" || st.Info.Size != 3 || st.Belief.Origin != w.up.URL || time.Until(st.Due) < 50*time.Minute {
		t.Errorf("fresh: %+v", st)
	}
	if st := explain(rpm); st.Validity != "immutable" || !st.Due.IsZero() || !strings.Contains(st.Want.String(), "unverified") {
		t.Errorf("immutable: %+v", st)
	}
	w.age(pointer, 2*time.Hour)
	if st := explain(pointer); st.Validity != "due" || st.Detail != "" {
		t.Errorf("due: %+v", st)
	}
	w.up.Stop()
	w.get(pointer)
	if st := explain(pointer); st.Validity != "due" || st.Detail != "stale" {
		t.Errorf("stale: %+v", st)
	}
	w.outdated.add(rpm[1:])
	if st := explain(rpm); st.Validity != "outdated" {
		t.Errorf("outdated: %+v", st)
	}
}
