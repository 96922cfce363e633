package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

var mtime = time.Unix(1700000000, 0)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "root"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, path, body string) {
	t.Helper()
	if err := tryPut(s, path, body); err != nil {
		t.Fatal(err)
	}
}

func tryPut(s *Store, path, body string) error {
	p, err := s.Create(path, digest.Unverified(int64(len(body)), "test"), true)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := io.WriteString(p, body); err != nil {
		return err
	}
	return p.Commit(digest.Unverified(int64(len(body)), "test"), digest.Sum{}, mtime, nil)
}

func get(s *Store, path string) (string, error) {
	f, err := s.Get(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size))
	return string(b), err
}

// tree lists what stands below the root, apart from what is private.
func tree(t *testing.T, s *Store) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(s.dir, p)
		if rel == Private {
			return filepath.SkipDir
		}
		if !d.IsDir() {
			names = append(names, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func pending(t *testing.T, s *Store) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(s.dir, tmpDir))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCommit(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // a strict umask must not make the mirror unreadable
	s := open(t)
	const name = "pub/a/Packages/g/gtk+extra-c++-1:3~rc1^git.fc99.noarch.rpm"
	put(t, s, name, "hello")
	if got, err := get(s, name); got != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o644 || !info.ModTime().Equal(mtime) {
		t.Errorf("file is %v of %v", info.Mode(), info.ModTime())
	}
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		if info, err := os.Stat(filepath.Join(s.dir, dir)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(s.dir, Private)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("private directory: %v %v", info.Mode(), err)
	}
	if left := pending(t, s); len(left) != 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if n := s.claimed.Load(); n != 0 {
		t.Errorf("%d bytes are still claimed", n)
	}
}

func TestCommitDemandsAnExpectation(t *testing.T) {
	for _, test := range []struct {
		name string
		want digest.Expectation
	}{
		{"none", digest.Expectation{}},
		{"short", digest.Unverified(6, "test")},
		{"long", digest.Unverified(4, "test")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			put(t, s, "pub/f", "old")
			p, err := s.Create("pub/f", digest.Unverified(-1, "test"), true)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(p, "hello")
			if err := p.Commit(test.want, digest.Sum{}, mtime, nil); err == nil {
				t.Error("committed")
			}
			p.Close()
			if got, _ := get(s, "pub/f"); got != "old" {
				t.Errorf("now it is %q", got)
			}
			if left := pending(t, s); len(left) != 0 {
				t.Errorf("left in tmp: %v", left)
			}
		})
	}
}

// TestPaths: no path leads out of the tree or into what is private.
func TestPaths(t *testing.T) {
	s := open(t)
	outside := filepath.Join(filepath.Dir(s.dir), "secret")
	os.WriteFile(outside, []byte("secret"), 0o644)
	os.Symlink(outside, filepath.Join(s.dir, "out"))
	os.Symlink(filepath.Dir(s.dir), filepath.Join(s.dir, "up"))
	syscall.Mkfifo(filepath.Join(s.dir, "fifo"), 0o644)
	for _, name := range []string{
		"out", "up/secret", "../secret", "a/../../secret", "/etc/passwd", "", Private + "/lock", Private, "fifo",
	} {
		if got, err := get(s, name); err == nil {
			t.Errorf("reading %q gives %q", name, got)
		}
		if name == "out" || name == "fifo" {
			continue // to replace these is right: the name is ours
		}
		if err := tryPut(s, name, "x"); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if b, _ := os.ReadFile(outside); string(b) != "secret" {
		t.Errorf("the file outside is now %q", b)
	}
	list, err := s.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		t.Errorf("listed: %s", info.Name())
	}
	put(t, s, "out", "inside")
	if b, _ := os.ReadFile(outside); string(b) != "secret" {
		t.Error("a commit followed the symlink")
	}
}

func TestGetErrors(t *testing.T) {
	s := open(t)
	put(t, s, "pub/dir/f", "x")
	for name, want := range map[string]error{
		"pub/none": fs.ErrNotExist, "pub/dir": ErrIsDir, "pub/dir/f/below": fs.ErrNotExist,
		"pub/" + strings.Repeat("n", 300): fs.ErrNotExist,
	} {
		if _, err := s.Get(name); !errors.Is(err, want) {
			t.Errorf("%.40s: %v, want %v", name, err, want)
		}
	}
	if err := tryPut(s, "pub/dir/f/below", "x"); err == nil || !strings.Contains(err.Error(), "is a file in the tree") {
		t.Errorf("a file below a file: %v", err)
	}
}

// TestReplacedUnderUs: a kept handle is not used once its path means something else.
func TestReplacedUnderUs(t *testing.T) {
	s := open(t)
	put(t, s, "pub/f", "one")
	name := filepath.Join(s.dir, "pub/f")
	read := func() string { got, _ := get(s, "pub/f"); return got }
	if read() != "one" || len(s.handles.idle) != 1 {
		t.Fatal("no handle is kept")
	}
	put(t, s, "pub/f", "two")
	if len(s.handles.idle) != 0 {
		t.Error("a handle of what was replaced is kept")
	}
	if got := read(); got != "two" {
		t.Errorf("after a commit: %q", got)
	}
	// Its link count, size and time stay the same when it is given another name from outside. The clock of the file
	// system must have moved on.
	old, _ := os.Stat(name)
	for other := old; changed(other).Equal(changed(old)); other, _ = os.Stat(filepath.Dir(name)) {
		os.Chtimes(filepath.Dir(name), time.Time{}, mtime)
	}
	os.Rename(name, name+".moved")
	if _, err := s.Get("pub/f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was moved away: %v", err)
	}
	os.WriteFile(name+".new", []byte("three"), 0o644)
	os.Rename(name+".new", name)
	if got := read(); got != "three" {
		t.Errorf("after a rename from outside: %q", got)
	}
	os.WriteFile(name, []byte("written in place"), 0o644)
	if got := read(); got != "written in place" {
		t.Errorf("after a write from outside: %q", got)
	}
	os.Remove(name)
	if _, err := s.Get("pub/f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after removal: %v", err)
	}
}

// TestDirectoryRemovedUnderUs: what an operator removes from the tree is made again.
func TestDirectoryRemovedUnderUs(t *testing.T) {
	s := open(t)
	for range 3 {
		put(t, s, "pub/a/b/f", "x")
		if err := os.RemoveAll(filepath.Join(s.dir, "pub")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHandlesAreBoundedAndExclusive(t *testing.T) {
	s := open(t)
	put(t, s, "pub/f", "x")
	a, _ := s.Get("pub/f")
	b, _ := s.Get("pub/f")
	if a.File == b.File {
		t.Error("two requests share a read offset")
	}
	a.Close()
	b.Close()
	c, _ := s.Get("pub/f")
	if c.File != a.File && c.File != b.File {
		t.Error("no handle was reused")
	}
	c.Close()
	var all []*File
	for range maxIdle + 50 {
		f, err := s.Get("pub/f")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	for _, f := range all {
		f.Close()
	}
	if n := s.handles.lru.Len(); n != maxIdle || len(s.handles.idle["pub/f"]) != maxIdle {
		t.Errorf("%d handles are kept", n)
	}
}

func TestRoom(t *testing.T) {
	s := open(t)
	s.space = func() (int64, int64, error) { return 100, 1000, nil }
	s.SetReserve(40)
	p, err := s.Create("pub/a", digest.Unverified(50, "test"), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("pub/b", digest.Unverified(11, "test"), true); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "pub/b needs 11 bytes") {
		t.Errorf("beyond what is free: %v", err)
	}
	q, err := s.Create("pub/c", digest.Unverified(10, "test"), true)
	if err != nil {
		t.Errorf("the last room: %v", err)
	}
	if _, err := q.Write(make([]byte, 11)); !errors.Is(err, ErrNoSpace) {
		t.Errorf("writing more than was claimed: %v", err)
	}
	p.Close()
	q.Close()
	if n := s.claimed.Load(); n != 0 {
		t.Errorf("%d bytes are still claimed", n)
	}
	u, err := s.Create("pub/d", digest.Unverified(-1, "test"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write(make([]byte, 60)); err != nil {
		t.Errorf("unknown length, within what is free: %v", err)
	}
}

// faults are the two ways in which a step fails.
var faults = []struct {
	name string
	done bool
}{{"not done", false}, {"done, but reported failed", true}}

// TestSteps makes each step of the commit protocol fail: the tree holds the old file, whole, or the new one; and when
// the disk has recovered, the commit can be made anew.
func TestSteps(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"write", "chmod", "chtimes", "fsync", "mkdir", "fsyncdir pub", "rename", "fsyncdir pub/new"} {
		for _, fault := range faults {
			for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
				t.Run(step+" "+fault.name+" "+cause.Error(), func(t *testing.T) {
					s := open(t)
					put(t, s, "pub/f", "old")
					if err := s.Measure(t.Context()); err != nil {
						t.Fatal(err)
					}
					s.SetFault(func(at, path string, before bool) error {
						if (at == step || at+" "+path == step) && before != fault.done {
							return cause
						}
						return nil
					})
					stands := step == "fsyncdir pub/new" || step == "rename" && fault.done
					for _, path := range []string{"pub/new/f", "pub/f"} {
						err := tryPut(s, path, "new")
						if path == "pub/f" && (step == "mkdir" || strings.HasPrefix(step, "fsyncdir")) {
							if err != nil && step != "fsyncdir pub" {
								t.Error(err)
							}
							continue
						}
						if !errors.Is(err, cause) || cause == syscall.ENOSPC && !errors.Is(err, ErrNoSpace) {
							t.Errorf("%s: error %v", path, err)
						}
						want := "new"
						if !stands && path == "pub/f" {
							want = "old"
						} else if !stands {
							want = ""
						}
						if got, err := get(s, path); got != want {
							t.Errorf("%s is %q, %v", path, got, err)
						}
					}
					if left := pending(t, s); len(left) != 0 {
						t.Errorf("left in tmp: %v", left)
					}
					measured(t, s)
					s.SetFault(nil)
					put(t, s, "pub/new/f", "newest")
					if got, err := get(s, "pub/new/f"); got != "newest" {
						t.Errorf("anew: %q, %v", got, err)
					}
					measured(t, s)
				})
			}
		}
	}
}

func TestReopening(t *testing.T) {
	s := open(t)
	put(t, s, "pub/f", "x")
	if _, err := Open(s.dir, 0); err == nil || !strings.Contains(err.Error(), "another instantmirror (pid ") {
		t.Errorf("a second daemon: %v", err)
	}
	p, err := s.Create("pub/g", digest.Unverified(-1, "test"), true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(p, "half")
	s.Close() // as a crash leaves it
	s, err = Open(s.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if left := pending(t, s); len(left) != 0 {
		t.Errorf("not swept: %v", left)
	}
	if got, err := get(s, "pub/f"); got != "x" || err != nil {
		t.Errorf("pub/f: %q, %v", got, err)
	}
}

func TestRefusedRoots(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o644)
	other := t.TempDir()
	os.Mkdir(filepath.Join(other, Private), 0o755)
	os.WriteFile(filepath.Join(other, formatFile), []byte("instantmirror root, format 99\n"), 0o644)
	for dir, want := range map[string]string{
		"/":   "a directory of its own",
		file:  "not a directory",
		other: "another version",
	} {
		if s, err := Open(dir, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
			if s != nil {
				s.Close()
			}
		}
	}
}

func TestOpenWhilePending(t *testing.T) {
	s := open(t)
	p, _ := s.Create("pub/f", digest.Unverified(5, "test"), true)
	io.WriteString(p, "he")
	early, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	io.WriteString(p, "llo")
	if err := p.Commit(digest.Unverified(5, "test"), digest.Sum{}, mtime, nil); err != nil {
		t.Fatal(err)
	}
	late, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	for _, f := range []*os.File{early, late} {
		if b, _ := io.ReadAll(f); string(b) != "hello" {
			t.Errorf("read %q", b)
		}
	}
	p.Close()
	q, _ := s.Create("pub/g", digest.Unverified(5, "test"), true)
	defer q.Close()
	io.WriteString(q, "hello")
	if err := q.Commit(digest.Unverified(5, "test"), digest.Sum{}, mtime, nil); err != nil {
		t.Fatal(err)
	}
	put(t, s, "pub/g", "other")
	old, err := q.Open()
	if err != nil {
		t.Fatal("opening a download whose file was replaced:", err)
	}
	defer old.Close()
	if b, _ := io.ReadAll(old); string(b) != "hello" {
		t.Errorf("a download whose file was replaced reads %q", b)
	}
}
