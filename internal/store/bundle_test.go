package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const pointer = "pub/repodata/repomd.xml"

// oldSet is what stands before the bundle of publish, newSet what stands after it.
var (
	oldSet = map[string]string{pointer: "old", pointer + ".asc": "signed old", "pub/repodata/primary.xml.gz": "old primary", "pub/f": "f", "pub/gone/f": "gone"}
	newSet = map[string]string{pointer: "new!", "pub/repodata/primary.xml.gz": "new primary", "pub/new/dir/key": "key", "pub/f": "f"}
)

// putOld makes the old set stand.
func putOld(t *testing.T, s *Store) {
	t.Helper()
	for path, body := range oldSet {
		put(t, s, path, body)
	}
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// gather stages the change from the old set to the new one. The primary is a download.
func gather(s *Store) (*Bundle, error) {
	b, err := s.NewBundle()
	if err != nil {
		return nil, err
	}
	err = b.Add(pointer, []byte(newSet[pointer]), mtime)
	if err == nil {
		err = stage(s, b, "pub/repodata/primary.xml.gz", newSet["pub/repodata/primary.xml.gz"])
	}
	if err == nil {
		err = b.Add("pub/new/dir/key", []byte(newSet["pub/new/dir/key"]), mtime)
	}
	b.Remove(pointer + ".asc")
	b.Remove("pub/gone/f")
	return b, err
}

func stage(s *Store, b *Bundle, path, body string) error {
	p, err := s.Create(path, known(body), true)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := io.WriteString(p, body[p.Size():]); err != nil {
		return err
	}
	return p.Stage(b, known(body), known(body).Sum(), mtime)
}

// stands is what stands in the tree.
func stands(t *testing.T, s *Store) map[string]string {
	t.Helper()
	set := make(map[string]string)
	for _, p := range tree(t, s) {
		set[p], _ = get(s, p)
	}
	return set
}

func same(a, b map[string]string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// finish does what a start does, and tells which set stands then.
func finish(t *testing.T, root string) (string, *Store) {
	t.Helper()
	s, err := Open(root, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	list, err := s.Bundles()
	if err != nil {
		t.Error(err)
	}
	for _, b := range list {
		if string(b.Note()) != "note" || !slices.Equal(b.Paths(), []string{"pub/repodata/primary.xml.gz", "pub/new/dir/key", pointer}) {
			t.Errorf("found: %q, %v", b.Note(), b.Paths())
		}
		if err := b.Apply(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, genDir)); len(left) > 0 {
		t.Errorf("left in gen: %v", left)
	}
	if left := pending(t, s); len(left) > 1 || len(left) == 1 && !strings.HasPrefix(left[0].Name(), partialPrefix) {
		t.Errorf("left in tmp: %v", left)
	}
	if list, err := s.Bundles(); len(list) > 0 || err != nil {
		t.Errorf("found again: %v, %v", list, err)
	}
	return setOf(t, s), s
}

func setOf(t *testing.T, s *Store) string {
	t.Helper()
	switch set := stands(t, s); {
	case same(set, oldSet):
		return "old"
	case same(set, newSet):
		return "new"
	default:
		t.Errorf("neither the old set nor the new one: %v", set)
		return ""
	}
}

func TestBundle(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	s := open(t)
	putOld(t, s)
	b, err := gather(s)
	if err != nil {
		t.Fatal(err)
	}
	later := mtime.Add(time.Hour)
	b.Add("pub/twice", []byte("once"), mtime)
	b.Add("pub/twice", []byte("twice"), later)
	b.Add("pub/dropped", []byte("x"), mtime)
	b.Remove("pub/dropped")
	b.Remove("pub/f")
	b.Add("pub/f", []byte("staged after all"), mtime)
	if size, at, ok := b.Info("pub/twice"); size != 5 || !at.Equal(later) || !ok {
		t.Errorf("Info: %d, %v, %v", size, at, ok)
	}
	if _, _, ok := b.Info("pub/dropped"); ok || b.Has("pub/dropped") || !b.Has("pub/f") {
		t.Error("Remove does not drop what was staged, or Add not the removal")
	}
	if f, err := b.Open("pub/twice"); err != nil {
		t.Error(err)
	} else {
		if got, _ := io.ReadAll(f); string(got) != "twice" {
			t.Errorf("staged: %q", got)
		}
		f.Close()
	}
	if _, err := b.Open("pub/dropped"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what is not staged: %v", err)
	}
	if got := setOf(t, s); got != "old" {
		t.Error("visible before Apply")
	}
	if err := b.Apply(); err == nil {
		t.Error("applied before Seal")
	}
	if err := b.Seal("pub/none", nil); err == nil {
		t.Error("sealed without a pointer")
	}
	if err := b.Seal(pointer, []byte("note")); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("pub/late", nil, mtime); err == nil {
		t.Error("staged after Seal")
	}
	if err := b.Seal(pointer, nil); err == nil {
		t.Error("sealed twice")
	}
	get(s, pointer) // a handle is kept
	for range 2 {
		if err := b.Apply(); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{pointer: "new!", "pub/repodata/primary.xml.gz": "new primary", "pub/new/dir/key": "key", "pub/f": "staged after all", "pub/twice": "twice"}
	if set := stands(t, s); !same(set, want) {
		t.Errorf("now stands %v", set)
	}
	for _, p := range []string{pointer, "pub/repodata/primary.xml.gz", "pub/new/dir/key"} {
		if info, err := os.Stat(filepath.Join(s.dir, p)); err != nil || info.Mode() != 0o644 || !info.ModTime().Equal(mtime) {
			t.Errorf("%s: %v %v", p, info, err)
		}
	}
	if err := b.Discard(); err != nil || setOf2(t, s, want) != "" {
		t.Errorf("discarding what was applied: %v", err)
	}
	if !b.Has(pointer) || !slices.Equal(b.Paths(), []string{"pub/repodata/primary.xml.gz", "pub/new/dir/key", "pub/twice", "pub/f", pointer}) {
		t.Errorf("afterwards, %v are known", b.Paths())
	}
	if _, err := b.Open(pointer); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what was applied: %v", err)
	}
	measured(t, s)
	if left, _ := os.ReadDir(filepath.Join(s.dir, genDir)); len(left) > 0 {
		t.Errorf("left in gen: %v", left)
	}
}

func setOf2(t *testing.T, s *Store, want map[string]string) string {
	if set := stands(t, s); !same(set, want) {
		return fmt.Sprint(set)
	}
	return ""
}

// TestStage: a download moves into the bundle only if it is right, and its followers read on.
func TestStage(t *testing.T) {
	s := open(t)
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, _ := s.NewBundle()
	p, err := s.Create("pub/f", known("right"), true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(p, "right")
	var mismatch *digest.MismatchError
	if err := p.Stage(b, known("right"), known("wrong").Sum(), mtime); !errors.As(err, &mismatch) || b.Has("pub/f") {
		t.Errorf("wrong bytes: %v", err)
	}
	if err := p.Stage(b, digest.Expectation{}, digest.Sum{}, mtime); !errors.Is(err, digest.ErrNoExpectation) {
		t.Errorf("without an expectation: %v", err)
	}
	if err := p.Stage(b, known("right"), known("right").Sum(), mtime); err != nil || !b.Has("pub/f") {
		t.Fatalf("right bytes: %v", err)
	}
	read := func(when string) {
		t.Helper()
		f, err := p.Open()
		if err != nil {
			t.Fatal(when, err)
		}
		defer f.Close()
		if got, _ := io.ReadAll(f); string(got) != "right" {
			t.Errorf("%s: %q", when, got)
		}
	}
	read("staged")
	p.Discard() // no longer ours
	if err := b.Seal("pub/f", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(); err != nil {
		t.Fatal(err)
	}
	read("applied")
	p.Close()
	if got, err := get(s, "pub/f"); got != "right" {
		t.Errorf("pub/f: %q, %v", got, err)
	}
	for _, path := range []string{"../x", Private + "/lock", "/x", "", "."} {
		c, _ := s.NewBundle()
		if err := c.Add(path, nil, mtime); err == nil || c.Has(path) {
			t.Errorf("%q was staged", path)
		}
		c.Discard()
	}
	c, _ := s.NewBundle()
	c.Discard()
	if err := c.Add("pub/g", nil, mtime); err == nil {
		t.Error("staged after Discard")
	}
	if err := c.Seal("pub/g", nil); err == nil {
		t.Error("sealed after Discard")
	}
	measured(t, s)
}

// TestBundlesExclude: what can't be carried out is not sealed.
func TestBundlesExclude(t *testing.T) {
	s := open(t)
	for _, paths := range [][]string{{"a", "a/b"}, {"a/b/c", "a-b", "a/b"}} {
		b, _ := s.NewBundle()
		for _, p := range paths {
			b.Add(p, nil, mtime)
		}
		if err := b.Seal(paths[0], nil); err == nil || !strings.Contains(err.Error(), "exclude each other") {
			t.Errorf("%v: %v", paths, err)
		}
		b.Discard()
	}
	b, _ := s.NewBundle()
	b.Add("a", nil, mtime)
	if err := b.Seal("a", make([]byte, maxManifest)); err == nil || !strings.Contains(err.Error(), "too much") {
		t.Errorf("a large note: %v", err)
	}
	if err := b.Seal("a", []byte("small")); err != nil {
		t.Error(err)
	}
}

// TestBundleRoom: what is staged takes room until it is thrown away or stands in the tree.
func TestBundleRoom(t *testing.T) {
	s := open(t)
	s.SetQuotas([]Quota{{"pub", 100}})
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, "pub/f", strings.Repeat("f", 30))
	b, _ := s.NewBundle()
	if err := b.Add("pub/a", make([]byte, 40), mtime); err != nil {
		t.Fatal(err)
	}
	if err := b.Add("pub/b", make([]byte, 31), mtime); !errors.Is(err, ErrNoSpace) {
		t.Errorf("beyond the quota: %v", err)
	}
	b.Add("pub/a", make([]byte, 20), mtime)
	if err := b.Add("pub/b", make([]byte, 31), mtime); err != nil {
		t.Errorf("after less was staged in its place: %v", err)
	}
	b.Remove("pub/b")
	if err := b.Add("pub/f", make([]byte, 50), mtime); err != nil {
		t.Errorf("after it was dropped: %v", err)
	}
	b.Seal("pub/f", nil)
	crashed := copyTree(t, s.dir)
	if err := b.Apply(); err != nil {
		t.Fatal(err)
	}
	if used, _, _ := s.Usage("pub"); used != 70 {
		t.Errorf("%d bytes are stored", used)
	}
	measured(t, s)

	s, err := Open(crashed, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, _ := s.Bundles()
	s.SetQuotas([]Quota{{"", 101}})
	if err := s.Room("pub/x"); err != nil {
		t.Error(err)
	}
	s.SetQuotas([]Quota{{"", 100}})
	if err := s.Room("pub/x"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("what was found takes no room: %v", err)
	}
	list[0].Discard()
	measured(t, s)
}

// publish gathers, seals and applies the change from the old set to the new one, as far as that goes.
func publish(s *Store) (b *Bundle, stage string, err error) {
	if b, err = gather(s); err != nil {
		return b, "gathering", err
	}
	if err = b.Seal(pointer, []byte("note")); err != nil {
		return b, "sealing", err
	}
	return b, "applying", b.Apply()
}

// TestBundleFaults makes each step fail that gathers, seals and applies a bundle, in both ways: after a restart all of
// the old set or all of the new one stands, the new one if it was sealed; and without a restart it can be thrown away
// or, once sealed, applied again.
func TestBundleFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			stages := make(map[string]int)
			for last, i := false, 1; !last && !t.Failed(); i++ {
				n, failed := 0, ""
				s := open(t)
				putOld(t, s)
				s.SetFault(func(step, path string, before bool) error {
					if before {
						n++
					}
					if n == i && before != fault.done {
						failed = step + " " + path
						return syscall.EIO
					}
					return nil
				})
				b, stage, err := publish(s)
				s.SetFault(nil)
				if failed == "" {
					if err != nil {
						t.Errorf("without a fault: %v", err)
					}
					last = true
					continue
				}
				stages[stage]++
				when := fmt.Sprintf("step %d, %s, while %s, %s", i, failed, stage, fault.name)
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: %v", when, err)
				}
				crashed, _ := finish(t, copyTree(t, s.dir))
				if stage == "applying" && crashed != "new" || stage == "gathering" && crashed != "old" {
					t.Errorf("%s: after a restart the %s set stands", when, crashed)
				}
				want := "old"
				switch {
				case b == nil:
				case stage == "applying":
					want = "new"
					if err := b.Apply(); err != nil {
						t.Errorf("%s: applying again: %v", when, err)
					}
				default:
					if err := b.Discard(); err != nil {
						t.Errorf("%s: Discard: %v", when, err)
					}
				}
				if got := setOf(t, s); got != want {
					t.Errorf("%s: without a restart the %s set stands, not the %s one", when, got, want)
				}
				measured(t, s)
				s.Close()
				if got, _ := finish(t, s.dir); got != want {
					t.Errorf("%s: later the %s set stands, not the %s one", when, got, want)
				}
			}
			t.Logf("%s: %v", fault.name, stages)
			if stages["gathering"] < 16 || stages["sealing"] < 5 || stages["applying"] < 12 {
				t.Errorf("few steps: %v", stages)
			}
		})
	}
}

// TestSealAgain: a seal that failed can be made anew, and a failed Discard too.
func TestSealAgain(t *testing.T) {
	t.Parallel()
	for _, again := range []string{"seal", "discard"} {
		for _, fault := range faults {
			s := open(t)
			putOld(t, s)
			b, err := gather(s)
			if err != nil {
				t.Fatal(err)
			}
			fail := func(what string) {
				s.SetFault(func(step, path string, before bool) error {
					if step+" "+path == what && before != fault.done {
						return syscall.ENOSPC
					}
					return nil
				})
			}
			fail("rename " + b.manifest())
			if err := b.Seal(pointer, []byte("note")); !errors.Is(err, ErrNoSpace) {
				t.Errorf("Seal: %v", err)
			}
			want := "old"
			if again == "seal" {
				want = "new"
				s.SetFault(nil)
				err = b.Seal(pointer, []byte("note"))
			} else {
				fail("unlink " + b.manifest())
				if err := b.Discard(); fault.done && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("Discard: %v", err)
				}
				s.SetFault(nil)
				err = b.Discard()
			}
			if err != nil {
				t.Errorf("%s again: %v", again, err)
			}
			s.Close()
			if got, _ := finish(t, s.dir); got != want {
				t.Errorf("%s, %s: the %s set stands", again, fault.name, got)
			}
		}
	}
}

// TestBundles: they come in order, each starts where the one before it ended, and a damaged one does not keep the others.
func TestBundles(t *testing.T) {
	s := open(t)
	var numbers []uint64
	seal := func(note string) *Bundle {
		b, err := s.NewBundle()
		if err != nil {
			t.Fatal(err)
		}
		b.Add("pub/"+note, []byte(note), mtime.Add(time.Hour))
		b.Add("pub/last", []byte(note), mtime)
		if err := b.Seal("pub/last", []byte(note)); err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, b.n)
		return b
	}
	for range 8 {
		b, _ := s.NewBundle()
		b.Discard()
	}
	seal("one")
	damaged := seal("two")
	short := seal("three")
	missing := seal("four")
	put(t, s, "pub/four", "else") // as long, and of another time
	seal("five")
	open, _ := s.NewBundle()
	open.Add("pub/open", nil, mtime)
	os.WriteFile(filepath.Join(s.dir, damaged.manifest()), []byte("{"), 0o644)
	os.Truncate(filepath.Join(s.dir, short.dir(), "1"), 2)
	os.Remove(filepath.Join(s.dir, missing.dir(), "1"))
	for _, name := range []string{"junk", "99.new", "07", "x.json"} {
		os.WriteFile(filepath.Join(s.dir, genDir, name), nil, 0o644)
	}
	s.Close()
	s, err := Open(s.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.Bundles()
	for _, b := range []*Bundle{damaged, short, missing} {
		if err == nil || !strings.Contains(err.Error(), b.manifest()) {
			t.Errorf("%s is not reported: %v", b.manifest(), err)
		}
	}
	var notes []string
	for _, b := range list {
		notes = append(notes, string(b.Note()))
	}
	if !slices.Equal(notes, []string{"one", "five"}) {
		t.Fatalf("found: %v", notes)
	}
	if n, err := s.NewBundle(); err != nil || n.n <= slices.Max(numbers) {
		t.Errorf("a new bundle is number %d, %v; there were %v", n.n, err, numbers)
	} else {
		n.Discard()
	}
	if err := list[0].Apply(); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Bundles(); len(list) != 1 || err != nil {
		t.Errorf("then %d are left, %v", len(list), err)
	}
	if err := list[1].Apply(); err != nil {
		t.Fatal(err)
	}
	if got := stands(t, s); !same(got, map[string]string{"pub/one": "one", "pub/four": "else", "pub/five": "five", "pub/last": "five"}) {
		t.Errorf("now stands %v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, genDir)); len(left) > 0 {
		t.Errorf("left in gen: %v", left)
	}
}

// hostileManifests are refused.
var hostileManifests = []string{
	``, `{`, `null`, `[]`, `{"files":[]}`, `{"files":[{}]}`,
	`{"files":[{"path":"a","name":"1","size":1,"mtime":"2026-01-01T00:00:00Z"}]}x`,
	`{"files":[{"path":"a","name":"1","size":1,"mtime":"2026-01-01T00:00:00Z","more":1}]}`,
	`{"files":[{"path":"../a","name":"1"}]}`, `{"files":[{"path":"/a","name":"1"}]}`, `{"files":[{"path":".","name":"1"}]}`,
	`{"files":[{"path":".instantmirror/lock","name":"1"}]}`, `{"files":[{"path":"a","name":"../../tmp/1"}]}`,
	`{"files":[{"path":"a","name":""}]}`, `{"files":[{"path":"a","name":"01"}]}`, `{"files":[{"path":"a","name":"-1"}]}`,
	`{"files":[{"path":"a","name":"1"},{"path":"b","name":"1"}]}`, `{"files":[{"path":"a","name":"1"},{"path":"a","name":"2"}]}`,
	`{"files":[{"path":"a","name":"1"},{"path":"a/b","name":"2"}]}`, `{"files":[{"path":"a","name":"1","size":-1}]}`,
	`{"files":[{"path":"a","name":"1"}],"remove":["a"]}`, `{"files":[{"path":"a","name":"1"}],"remove":["../b"]}`,
	`{"files":[{"path":"a","name":"1"}],"remove":[".instantmirror"]}`,
}

func TestHostileManifests(t *testing.T) {
	for _, text := range hostileManifests {
		if m, err := parseManifest([]byte(text)); err == nil {
			t.Errorf("%s is read as %+v", text, m)
		}
	}
	s := open(t)
	b, _ := s.NewBundle()
	s.Close()
	for _, text := range append(hostileManifests, strings.Repeat(" ", maxManifest+1)) {
		os.MkdirAll(filepath.Join(s.dir, b.dir()), 0o700)
		os.WriteFile(filepath.Join(s.dir, b.manifest()), []byte(text), 0o644)
		r, err := Open(s.dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := r.Bundles(); len(list) > 0 || err == nil {
			t.Errorf("%.100s: found %v, %v", text, list, err)
		}
		r.Close()
		if left, _ := os.ReadDir(filepath.Join(s.dir, genDir)); len(left) > 0 {
			t.Errorf("%.100s: left in gen: %v", text, left)
		}
	}
}

func FuzzManifest(f *testing.F) {
	for _, text := range hostileManifests {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"note":"bm90ZQ==","remove":["pub/b"],"files":[{"path":"pub/a","name":"1","size":1,"mtime":"2026-01-01T00:00:00.5Z"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err != nil {
			return
		}
		for _, x := range m.Files {
			if checkPath(x.Path) != nil || strings.Trim(x.Name, "0123456789") != "" || x.Name == "" || x.Size < 0 {
				t.Errorf("accepted: %+v", x)
			}
		}
		for _, p := range m.Remove {
			if checkPath(p) != nil {
				t.Errorf("accepted: %q goes", p)
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			return // a time that has no such form
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}
