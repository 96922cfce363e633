package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// measured fails the test unless what is known to be stored is what a look at the disk finds, and nothing is claimed.
func measured(t *testing.T, s *Store) {
	t.Helper()
	var known []int64
	for _, q := range s.room.quotas {
		used, _, ok := s.Usage(q.Dir)
		if !ok {
			t.Errorf("%q was not measured", q.Dir)
		}
		if q.charged != 0 {
			t.Errorf("%q: %d bytes are still charged", q.Dir, q.charged)
		}
		known = append(known, used)
	}
	if n := s.claimed.Load(); n != 0 || len(s.room.charges) != 0 {
		t.Errorf("%d bytes are still claimed, %d charges left", n, len(s.room.charges))
	}
	for i, q := range s.room.quotas {
		n := int64(0)
		seen := map[uint64]bool{}
		err := s.Walk(t.Context(), q.Dir, func(i Info) error {
			if !seen[i.Inode] {
				n += i.Size
			}
			seen[i.Inode] = true
			return nil
		})
		if err != nil || n != known[i] {
			t.Errorf("%q: %d bytes are counted, %d stand there, %v", q.Dir, known[i], n, err)
		}
	}
}

// begin makes a pending file of n bytes, claimed and not written.
func begin(s *Store, path string, n int64) (*Pending, error) {
	return s.Create(path, digest.Unverified(n, "test"), false)
}

func TestQuotas(t *testing.T) {
	s := open(t)
	s.space = func() (int64, int64, error) { return 1 << 40, 1 << 40, nil }
	put(t, s, "pub/one/a", strings.Repeat("a", 50))
	put(t, s, "pub/one/b", strings.Repeat("b", 20))
	os.Link(filepath.Join(s.dir, "pub/one/a"), filepath.Join(s.dir, "pub/one/c"))
	put(t, s, "pub/onemore", strings.Repeat("o", 5))
	s.SetQuotas([]Quota{{Dir: "", Limit: 200}, {Dir: "pub/one", Limit: 100}})
	if _, _, ok := s.Usage("pub/one"); ok {
		t.Error("measured before Measure")
	}
	if p, err := begin(s, "pub/one/new", 1000); err != nil {
		t.Errorf("refused before it was measured: %v", err)
	} else {
		p.Close()
	}
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][2]int64{"": {75, 200}, "pub/one": {70, 100}} {
		if used, limit, ok := s.Usage(dir); used != want[0] || limit != want[1] || !ok {
			t.Errorf("%q: %d of %d, %v", dir, used, limit, ok)
		}
	}
	if _, _, ok := s.Usage("pub/two"); ok {
		t.Error("the usage of a directory without quota is known")
	}
	if _, err := begin(s, "pub/one/new", 31); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "the size of pub/one is 100 bytes, of which 70 are stored and 0 are claimed") {
		t.Errorf("beyond the quota: %v", err)
	}
	p, err := begin(s, "pub/one/new", 30)
	if err != nil {
		t.Fatalf("the last room: %v", err)
	}
	if err := s.Room("pub/one/more"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Room: %v", err)
	}
	for _, n := range []int64{96, math.MaxInt64} {
		if _, err := begin(s, "pub/two", n); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "the size of the site is 200 bytes") {
			t.Errorf("%d bytes, beyond the site's quota: %v", n, err)
		}
	}
	s.SetQuotas([]Quota{{Dir: "pub", Limit: 110}, {Dir: "pub/one", Limit: 101}}) // reloaded: what is claimed and known stays
	if _, err := begin(s, "pub/one/more", 2); !errors.Is(err, ErrNoSpace) {
		t.Errorf("beyond the new quota: %v", err)
	}
	io.WriteString(p, strings.Repeat("n", 30))
	p.Commit(digest.Unverified(30, "test"), digest.Sum{}, mtime, nil)
	p.Close()
	if used, _, _ := s.Usage("pub/one"); used != 100 {
		t.Errorf("after the commit: %d", used)
	}
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	measured(t, s)
	put(t, s, "pub/one/b", "b")
	measured(t, s)
	for _, path := range []string{"pub/one/a", "pub/one/c"} {
		freed, err := s.Remove(path)
		if want := map[string]int64{"pub/one/c": 50}[path]; freed != want || err != nil {
			t.Errorf("removing %s frees %d, %v", path, freed, err)
		}
		measured(t, s)
	}
	os.Link(filepath.Join(s.dir, "pub/one/b"), filepath.Join(s.dir, "pub/one/later")) // it was counted with one name
	if _, err := s.Remove("pub/one/b"); err != nil {
		t.Fatal(err)
	}
	measured(t, s)
}

// TestUnknownLength: what was claimed ahead for a file of unknown length is given back when no more comes.
func TestUnknownLength(t *testing.T) {
	s := open(t)
	s.SetQuotas([]Quota{{Limit: claimStep + 10}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := begin(s, "f", -1)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(p, "x")
	if q, err := begin(s, "g", 11); !errors.Is(err, ErrNoSpace) {
		t.Errorf("nothing was claimed ahead: %v", err)
		q.Close()
	}
	p.Unclaim()
	q, err := begin(s, "g", claimStep+9)
	if err != nil {
		t.Fatalf("it was not given back: %v", err)
	}
	q.Close()
	p.Close()
	measured(t, s)
}

// TestPartialsCount: what an earlier download left counts when it is taken up.
func TestPartialsCount(t *testing.T) {
	s := open(t)
	s.SetQuotas([]Quota{{Limit: 10}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := s.Create("f", known("0123456789"), true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(p, "01234567")
	p.Close()
	put(t, s, "g", "1")
	if _, err := s.Create("f", known("0123456789"), true); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Create: %v", err)
	}
	measured(t, s)
	s.Remove("g")
	if p, err = s.Create("f", known("0123456789"), true); err != nil || p.Size() != 8 {
		t.Fatalf("Create: %v", err)
	}
	if err := p.Cut(0); err != nil {
		t.Fatal(err)
	}
	if err := s.Room("g"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("begun anew, it gave its room back: %v", err)
	}
	p.Close()
	measured(t, s)
}

func TestMakeRoom(t *testing.T) {
	s := open(t)
	free := int64(100)
	s.space = func() (int64, int64, error) { return free, 1000, nil }
	put(t, s, "pub/one/a", strings.Repeat("a", 50))
	put(t, s, "pub/two/a", strings.Repeat("a", 50))
	s.SetQuotas([]Quota{{Dir: "pub/one", Limit: 80}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.SetReserve(20)
	var asked []string
	s.SetMakeRoom(func(path string, n int64) bool {
		asked = append(asked, fmt.Sprint(path, " ", n))
		if strings.HasPrefix(path, "pub/no/") {
			return false
		}
		freed, err := s.Remove("pub/one/a", "pub/two/a")
		free += freed
		return err == nil
	})
	for _, test := range []struct {
		path string
		n    int64
		ok   bool
		ask  string
	}{
		{"pub/one/b", 30, true, ""},
		{"pub/one/b", 81, false, ""}, // it will never fit
		{"pub/one/b", 35, true, "pub/one/b 5"},
		{"pub/no/b", 185, false, "pub/no/b 5"},
		{"pub/two/b", 981, false, ""}, // nor will this, anywhere
		{"pub/two/b", 185, false, "pub/two/b 5"},
	} {
		asked = nil
		p, err := begin(s, test.path, test.n)
		if (err == nil) != test.ok || !test.ok && !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d bytes for %s: %v", test.n, test.path, err)
		}
		if strings.Join(asked, ", ") != test.ask {
			t.Errorf("%d bytes for %s: asked for %v", test.n, test.path, asked)
		}
		if err == nil {
			p.Close()
		}
	}
	measured(t, s)
}

func TestPressure(t *testing.T) {
	const mib = 1 << 20
	s := open(t)
	free, total := int64(1<<40), int64(1<<41)
	s.space = func() (int64, int64, error) { return free, total, nil }
	put(t, s, "pub/one/a", strings.Repeat("a", 96))
	put(t, s, "pub/two/a", strings.Repeat("a", 98))
	expect := func(what string, over int64, dir string) {
		t.Helper()
		if o, d := s.Pressure(); o != over || d != dir {
			t.Errorf("%s: %d bytes below %q are too much, not %d below %q", what, o, d, over, dir)
		}
	}
	s.SetQuotas([]Quota{{"", 100}, {"pub/one", 100}, {"pub/two", 100}})
	expect("not measured", 0, "")
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("two directories", 3, "pub/two")
	s.SetQuotas([]Quota{{"", 200}, {"pub/one", 200}, {"pub/two", 200}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("the site", 4, "")
	p, err := begin(s, "pub/three", 5)
	if err != nil {
		t.Fatal(err)
	}
	expect("with what is claimed", 9, "")
	p.Close()
	s.SetQuotas(nil)
	s.SetReserve(100 * mib)
	free = 163 * mib
	expect("64 MiB", mib, "")
	p, _ = begin(s, "pub/three", 5)
	expect("64 MiB and what is claimed", mib+5, "")
	p.Close()
	free = 164 * mib
	expect("just enough", 0, "")
	s.SetReserve(2000 * mib)
	expect("a twentieth of a large reserve", (2100-164)*mib, "")
	s.SetReserve(100 * mib)
	total, free = 500*mib, 104*mib
	expect("a hundredth of a small disk", mib, "")
}

// TestMeasureWhileItChanges: what changes during a measurement is counted once, wherever the walk is.
func TestMeasureWhileItChanges(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dirs := []string{"", "one/", "one/a/", "one/a-b/", "one/b/", "two/", "two/c/"}
	path := func() string { return "pub/" + dirs[rng.IntN(len(dirs))] + string(rune('a'+rng.IntN(6))) + "f" }
	for round := range 6 {
		s := open(t)
		s.SetQuotas([]Quota{{"pub/one", 1 << 20}, {"pub/two", 0}})
		if round%2 == 0 { // else what is known is wrong at first
			if err := s.Measure(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		change := func() {
			p := path()
			switch rng.IntN(8) {
			case 0, 1, 2:
				put(t, s, p, strings.Repeat("x", rng.IntN(100)))
			case 3, 4:
				if _, err := s.Remove(p, path()); err != nil {
					t.Fatal(err)
				}
			default:
				b, err := s.NewBundle()
				if err != nil {
					t.Fatal(err)
				}
				b.Add(p, []byte(strings.Repeat("y", rng.IntN(100))), mtime)
				b.Add("pub/last", []byte(strings.Repeat("z", rng.IntN(100))), mtime)
				b.Remove(path())
				if rng.IntN(5) > 0 {
					b.Seal("pub/last", nil)
				}
				if rng.IntN(5) > 0 {
					b.Apply()
				}
				if err := b.Discard(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 30 {
			change()
			if rng.IntN(4) == 0 && round%2 == 1 { // before it is measured, others may do as they like
				p, to := filepath.Join(s.dir, path()), filepath.Join(s.dir, path())
				os.Link(p, to)
			}
		}
		s.beginMeasure()
		err := s.Walk(t.Context(), "", func(i Info) error {
			if rng.IntN(2) == 0 {
				change() // it was looked at, and not counted yet
			}
			s.room.visit(i)
			if rng.IntN(2) == 0 {
				change()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		change()
		s.endMeasure(true)
		measured(t, s)
		for range 10 {
			change()
		}
		measured(t, s)
		if t.Failed() {
			return
		}
	}
}

// TestMeasureMeetsAChange: the walk comes to a name just while its file is replaced.
func TestMeasureMeetsAChange(t *testing.T) {
	s := open(t)
	put(t, s, "f", "old")
	s.beginMeasure()
	s.SetFault(func(step, path string, before bool) error {
		if step == "rename" && !before {
			s.room.visit(s.lstat(path))
		}
		return nil
	})
	put(t, s, "f", "longer")
	s.SetFault(nil)
	s.endMeasure(true)
	measured(t, s)
}

// TestMeasureFails: what was known stays known.
func TestMeasureFails(t *testing.T) {
	s := open(t)
	put(t, s, "f", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Measure: %v", err)
	}
	if _, _, ok := s.Usage(""); ok {
		t.Error("measured by half")
	}
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.beginMeasure()
	put(t, s, "g", "x")
	s.endMeasure(false)
	measured(t, s)
	s.measuring <- struct{}{} // another one is under way
	if err := s.Measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Measure: %v", err)
	}
}

// TestTogether has everything happen at once, for the race detector: commits succeed though their directories are removed.
func TestTogether(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.SetQuotas([]Quota{{"pub", 1 << 30}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			p := fmt.Sprintf("pub/dir/%d/f", i%2)
			q := fmt.Sprintf("pub/dir/%d/own%d", i%2, i)
			for n := range 25 {
				if err := tryPut(s, q, strings.Repeat("x", n)); err != nil {
					t.Error(err)
				}
				if got, err := get(s, q); len(got) != n || err != nil {
					t.Errorf("%q, %v", got, err)
				}
				get(s, p)
				if _, err := s.Remove(q, p); err != nil {
					t.Error(err)
				}
				if _, err := s.Get(q); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s after its removal: %v", q, err)
				}
				s.Pressure()
			}
		})
	}
	all.Go(func() {
		for range 10 {
			if err := s.Measure(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	measured(t, s)
	if names := tree(t, s); !slices.Equal(names, nil) {
		t.Errorf("left: %v", names)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "pub")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
