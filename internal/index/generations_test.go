package index

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestChanges: what two generations say differently comes once, in order, however many transactions that takes; the rest
// does not come at all.
func TestChanges(t *testing.T) {
	for _, test := range []struct{ n, seed uint64 }{{0, 1}, {10, 2}, {300, 3}, {3*batch + 7, 4}} {
		x := reopen(t, t.TempDir())
		random := rand.New(rand.NewPCG(test.seed, 0))
		gens := [2]map[string]Named{{}, {}}
		for i := range test.n {
			p := fmt.Sprintf("%s/Packages/p%05d.rpm", root, i)
			for g := range gens {
				if random.IntN(3) > 0 {
					gens[g][p] = Named{1, sum(fmt.Sprint(i, random.IntN(2))), 0}
				}
			}
		}
		stage := func(g int) *Staged {
			s, err := x.Stage(root, sum(fmt.Sprint("primary", g)), func(yield func(string, Named) error) error {
				for p, n := range gens[g] {
					if err := yield(p, n); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		repo := func(g int) Repo {
			p := fmt.Sprintf("%s/repodata/primary%d", root, g)
			return Repo{Records: map[string]Record{p: {Named{1, sum(fmt.Sprint("primary", g)), 0}, "primary"}}, Primary: p}
		}
		changes := func(old *Repo, next Repo, s *Staged) map[string]Change {
			got, last := make(map[string]Change), ""
			err := x.Changes(root, old, &next, s, func(c Change) error {
				if len(c.Path) > 0 && c.Path[len(root)+1] == 'P' {
					if c.Path <= last {
						t.Fatalf("%s comes after %s", c.Path, last)
					}
					last = c.Path
					got[c.Path] = c
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		want := func(from, to map[string]Named) map[string]Change {
			w := make(map[string]Change)
			for _, m := range []map[string]Named{from, to} {
				for p := range m {
					c := Change{Path: p, Old: from[p], New: to[p]}
					_, c.WasNamed = from[p]
					_, c.IsNamed = to[p]
					if c.tells() {
						w[p] = c
					}
				}
			}
			return w
		}
		s := stage(0)
		if got := changes(nil, repo(0), s); !maps.Equal(got, want(nil, gens[0])) {
			t.Errorf("%d packages: the first generation's changes are wrong", test.n)
		}
		if err := x.Publish(root, repo(0), s, nil); err != nil {
			t.Fatal(err)
		}
		s = stage(1)
		old, _ := x.Repo(root)
		if got := changes(old, repo(1), s); !maps.Equal(got, want(gens[0], gens[1])) {
			t.Errorf("%d packages: %d changes, want %d", test.n, len(got), len(want(gens[0], gens[1])))
		}
		if err := x.Publish(root, repo(1), s, nil); err != nil {
			t.Fatal(err)
		}
		all := make(map[string]Named)
		if err := x.EachPackage(root, func(p string, n Named) error { all[p] = n; return nil }); err != nil || !maps.Equal(all, gens[1]) {
			t.Errorf("%d packages are in force, want %d: %v", len(all), len(gens[1]), err)
		}
		x.Close()
	}
}

func TestLeaving(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	r, primary := records("one")
	if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
		t.Fatal(err)
	}
	setPackages(t, x, "one", 3) // with pub/pool outside
	var list []Leaving
	for i := range batch + 3 {
		list = append(list, Leaving{
			fmt.Sprintf("%s/Packages/old%05d.rpm", root, i), Named{int64(i), sum(fmt.Sprint(i)), 5},
			time.Unix(int64(2000000-i), 0), "0123456789ab", "",
		})
	}
	list = append(list, Leaving{"pub/pool/x.rpm", Named{1, sum("x"), 0}, time.Unix(3000000, 0), "", "ba9876543210"})
	if err := x.Leave(root, list...); err != nil {
		t.Fatal(err)
	}
	x.Close()
	x = reopen(t, dir)
	defer x.Close()
	for _, l := range []Leaving{list[0], list[batch], list[len(list)-1]} {
		if got, at, ok := x.Left(l.Path); !ok || at != root || got != l {
			t.Errorf("%v, %q, %v; want %v", got, at, ok, l)
		}
	}
	if _, _, ok := x.Left(root + "/Packages/none.rpm"); ok {
		t.Error("a path leaves that was never named")
	}
	var got []Leaving
	if err := x.EachLeaving(root, func(l Leaving) error { got = append(got, l); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Leaving) int { return b.Until.Compare(a.Until) })
	if want := slices.Concat(list[len(list)-1:], list[:len(list)-1]); !slices.Equal(got, want) {
		t.Errorf("%d leave, want %d", len(got), len(want))
	}
	if n, first, err := x.CountLeaving(root); n != len(list) || !first.Equal(list[batch+2].Until) || err != nil {
		t.Errorf("%d leave, the first at %v, %v", n, first, err)
	}
	if err := x.Stay(root, list[0].Path, "none"); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := x.Left(list[0].Path); ok {
		t.Error("what stays leaves")
	}
	if err := x.Forget(root); err != nil {
		t.Fatal(err)
	}
	if _, ok := x.Repo(root); ok || len(x.Named("pub/pool/shared.rpm")) > 0 {
		t.Error("a forgotten repository names a path")
	}
}

// TestPublish: beliefs change with the generation, and an older one that waits for its flush does not come after it.
func TestPublish(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	x.Put("a", Belief{Size: 1})
	x.Put("b", Belief{Size: 1})
	next := Repo{Pointer: Pointer{Sum: sum("two"), Published: time.Unix(7, 0)}, Unjudged: true}
	if err := x.Publish(root, next, nil, map[string]Belief{"a": {Size: 2}}); err != nil {
		t.Fatal(err)
	}
	x.Drop("b")
	if _, ok := x.Get("b"); ok {
		t.Error("something is believed of what was dropped")
	}
	x.Close()
	x = reopen(t, dir)
	defer x.Close()
	if b, _ := x.Get("a"); b.Size != 2 {
		t.Errorf("believed: %v", b)
	}
	if _, ok := x.Get("b"); ok {
		t.Error("something is believed of what was dropped")
	}
	if r, ok := x.Repo(root); !ok || !r.Unjudged || r.Pointer.Generation() != sum("two").Hex()[:12] {
		t.Errorf("in force: %+v", r)
	}
	if ok, err := x.Update(root, func(r *Repo) { r.Unjudged = false }); !ok || err != nil {
		t.Errorf("Update: %v, %v", ok, err)
	}
	if r, _ := x.Repo(root); r.Unjudged {
		t.Error("not updated")
	}
	if ok, err := x.Update("none", func(*Repo) { t.Error("called") }); ok || err != nil {
		t.Errorf("Update of none: %v, %v", ok, err)
	}
}

// TestNamedByTwo: the word of the generation that was published last comes first.
func TestNamedByTwo(t *testing.T) {
	x := reopen(t, t.TempDir())
	defer x.Close()
	for i, at := range []string{"pub/a", "pub/b", "pub/c"} {
		p := at + "/repodata/primary"
		text := fmt.Sprint(i)
		next := Repo{Pointer: Pointer{Published: time.Unix([]int64{5, 9, 7}[i], 0)}, Records: map[string]Record{p: {Named{1, sum(text), 0}, "primary"}}, Primary: p}
		s, err := x.Stage(at, sum(text), func(yield func(string, Named) error) error {
			return yield("pub/pool/sub/x.rpm", Named{int64(i), sum(text), 0})
		})
		if err == nil {
			err = x.Publish(at, next, s, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []int64
	for _, n := range x.Named("pub/pool/sub/x.rpm") {
		got = append(got, n.Size)
	}
	if !slices.Equal(got, []int64{1, 2, 0}) {
		t.Errorf("named by %v", got)
	}
}

func TestOutermost(t *testing.T) {
	if got := outermost([]string{"b/c", "a", "a/b", "b/c", "ab"}); !slices.Equal(got, []string{"a", "ab", "b/c"}) {
		t.Errorf("outermost: %v", got)
	}
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("packages/%d/%d/x86_64", i%50, i), "other")
	}
	got := outermost(many)
	if len(got) > maxOutside || !slices.Contains(got, "packages/7") || !slices.Contains(got, "other") {
		t.Errorf("outermost of many: %v", got)
	}
}

// TestUses: a use is known to the second while we run, costs two writes an hour at most, and outlives the process.
func TestUses(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	used := func(want int64) {
		t.Helper()
		if got := x.Used("a"); got.Unix() != want && (want != 0 || !got.IsZero()) {
			t.Errorf("used at %v, want %v", got, time.Unix(want, 0))
		}
	}
	writes := func(want int) {
		t.Helper()
		if got := len(x.uses.batch()); got != want {
			t.Errorf("%d uses are to be written, want %d", got, want)
		}
	}
	flush := func() {
		t.Helper()
		if err := x.flush(); err != nil {
			t.Fatal(err)
		}
	}
	const hour = 500_000 * useGrain
	used(0)
	x.uses.note("a", hour+10)
	used(hour + 10)
	flush()
	for i := range int64(3) {
		x.uses.note("a", hour+20+i)
		used(hour + 20 + i)
		writes(0)
	}
	x.uses.note("b", hour+useGrain+1) // the next hour
	used(hour + 22)
	flush()
	writes(0)
	used(hour + 22)
	x.Close()
	x = reopen(t, dir)
	defer x.Close()
	used(hour + 22)
	x.UseAt("a", time.Unix(hour+99, 0))
	x.UseAt("a", time.Unix(hour+50, 0)) // what is known stays
	used(hour + 99)
	x.Use("a")
	if got := x.Used("a"); time.Since(got) > time.Minute {
		t.Errorf("used at %v", got)
	}
	if err := x.ForgetUse("a"); err != nil {
		t.Fatal(err)
	}
	used(0)
	for i := range maxUses + 10 {
		x.uses.note(fmt.Sprint(i), hour*2)
	}
	if n := len(x.uses.m); n > maxUses {
		t.Errorf("%d uses are kept", n)
	}
	x.uses.m = nil
}

func TestFresh(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	for range 2 {
		if !x.Fresh() {
			t.Error("not fresh before Complete")
		}
		x.Close()
		x = reopen(t, dir)
	}
	if err := x.Complete(); err != nil || x.Fresh() {
		t.Fatal(x.Fresh(), err)
	}
	x.Close()
	x = reopen(t, dir)
	defer x.Close()
	if x.Fresh() {
		t.Error("fresh after Complete")
	}
}
