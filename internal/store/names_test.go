package store

import (
	"context"
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

	"github.com/instantmirror/instantmirror/internal/digest"
)

func walked(t *testing.T, s *Store, dir string) []string {
	t.Helper()
	var paths []string
	if err := s.Walk(t.Context(), dir, func(i Info) error { paths = append(paths, i.Path); return nil }); err != nil {
		t.Errorf("walking %q: %v", dir, err)
	}
	return paths
}

func TestWalk(t *testing.T) {
	s := open(t)
	all := []string{"pub/a/b/f", "pub/a/f", "pub/a-b/f", "pub/f", "top"}
	for _, p := range slices.Backward(all) {
		put(t, s, p, p)
	}
	os.Symlink("pub/f", filepath.Join(s.dir, "link"))
	os.Symlink("pub/a", filepath.Join(s.dir, "pub/dirlink"))
	syscall.Mkfifo(filepath.Join(s.dir, "pub/fifo"), 0o644)
	os.Mkdir(filepath.Join(s.dir, "pub/empty"), 0o755)
	os.Mkdir(filepath.Join(s.dir, lostFound), 0o700)
	os.WriteFile(filepath.Join(s.dir, lostFound, "#1"), nil, 0o600)
	for dir, want := range map[string][]string{
		".": all, "": all, "pub": all[:4], "pub/a": all[:2], "none": nil, "pub/f": nil, "pub/fifo": nil, "pub/f/none": nil,
		Private: nil, Private + "/tmp": nil, "..": nil, "/": nil, "pub/../..": nil,
	} {
		if got := walked(t, s, dir); !slices.Equal(got, want) {
			t.Errorf("below %q are %v", dir, got)
		}
	}
	stop := errors.New("stop")
	n := 0
	if err := s.Walk(t.Context(), "", func(Info) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("an error does not end the walk: %v, %d", err, n)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := s.Walk(ctx, "", func(Info) error { cancel(stop); return nil }); !errors.Is(err, stop) {
		t.Errorf("the context does not end the walk: %v", err)
	}
	var got []string
	err := s.Walk(t.Context(), "", func(i Info) error { // what goes meanwhile is skipped
		got = append(got, i.Path)
		os.RemoveAll(filepath.Join(s.dir, "pub"))
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"pub/a/b/f", "top"}) {
		t.Errorf("removed meanwhile: %v, %v", got, err)
	}
}

// TestWalkDeep: a deep tree takes no descriptor for each of its levels.
func TestWalkDeep(t *testing.T) {
	s := open(t)
	dir := strings.Repeat("d/", 150)
	put(t, s, dir+"f", "x")
	for at := dir; at != ""; at = strings.TrimSuffix(at, "d/") {
		os.WriteFile(filepath.Join(s.dir, at, "before"), nil, 0o644)
	}
	most := 0
	err := s.Walk(t.Context(), "", func(Info) error {
		open, err := os.ReadDir("/proc/self/fd")
		most = max(most, len(open))
		return err
	})
	if err != nil || most == 0 || most > 100 {
		t.Errorf("%d descriptors are open, %v", most, err)
	}
}

func TestStat(t *testing.T) {
	s := open(t)
	put(t, s, "pub/f", "hello")
	os.Link(filepath.Join(s.dir, "pub/f"), filepath.Join(s.dir, "pub/g"))
	os.Symlink("f", filepath.Join(s.dir, "pub/link"))
	syscall.Mkfifo(filepath.Join(s.dir, "fifo"), 0o644)
	f, _ := os.Stat(filepath.Join(s.dir, "pub/f"))
	for _, p := range []string{"pub/f", "pub/g", "pub/link"} {
		want := Info{Path: p, Size: 5, ModTime: f.ModTime(), Inode: f.Sys().(*syscall.Stat_t).Ino, Links: 2}
		if got, err := s.Stat(p); got != want || err != nil {
			t.Errorf("%s is %+v, %v", p, got, err)
		}
	}
	for name, want := range map[string]error{
		"pub/none": fs.ErrNotExist, "pub": ErrIsDir, "pub/f/below": fs.ErrNotExist, "fifo": fs.ErrNotExist,
		"pub/" + strings.Repeat("n", 300): fs.ErrNotExist, Private + "/lock": fs.ErrNotExist, "../x": fs.ErrNotExist, ".": fs.ErrNotExist,
	} {
		if _, err := s.Stat(name); !errors.Is(err, want) {
			t.Errorf("%.40s: %v, want %v", name, err, want)
		}
	}
}

func TestRemove(t *testing.T) {
	s := open(t)
	for _, p := range []string{"pub/a/b/f", "pub/a/b/g", "pub/a/f", "pub/c/f", "top"} {
		put(t, s, p, "hello")
	}
	os.Link(filepath.Join(s.dir, "top"), filepath.Join(s.dir, "other"))
	os.Symlink("top", filepath.Join(s.dir, "link"))
	outside := filepath.Join(filepath.Dir(s.dir), "outside")
	os.WriteFile(outside, nil, 0o644)
	os.Symlink(filepath.Dir(s.dir), filepath.Join(s.dir, "up"))
	var steps []string
	s.SetFault(func(step, path string, before bool) error {
		if !before {
			steps = append(steps, step+" "+path)
		}
		return nil
	})
	for _, test := range []struct {
		paths, steps string
		freed        int64
	}{
		{"none pub/none/f pub top/below", "", 0},
		{"pub/a/b/f", "unlink pub/a/b/f, fsyncdir pub/a/b", 5},
		{"top", "unlink top, fsyncdir .", 0},
		{"other link", "unlink link, unlink other, fsyncdir .", 5},
		{"pub/a/f pub/a/b/g", "rmdir pub/a, rmdir pub/a/b, unlink pub/a/b/g, unlink pub/a/f, fsyncdir pub", 10},
		{"pub/c/f", "rmdir pub, rmdir pub/c, unlink pub/c/f, fsyncdir .", 5},
	} {
		steps = nil
		freed, err := s.Remove(strings.Fields(test.paths)...)
		if freed != test.freed || err != nil {
			t.Errorf("removing %s frees %d, %v", test.paths, freed, err)
		}
		// The order of the fsyncs does not matter, but what comes before them.
		sync := slices.IndexFunc(steps, func(s string) bool { return strings.HasPrefix(s, "fsync") })
		if sync >= 0 {
			slices.Sort(steps[:sync])
		}
		if got := strings.Join(steps, ", "); got != test.steps {
			t.Errorf("removing %s: %s", test.paths, got)
		}
	}
	for _, p := range []string{"../outside", "up/outside", Private + "/lock", "", ".", "/top"} {
		if _, err := s.Remove(p); err == nil {
			t.Errorf("%q is removed", p)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, Private, "lock")); err != nil {
		t.Error(err)
	}
	put(t, s, "pub/c/f", "again")
}

// TestRemoveWhileCommitting: a directory to which a file is about to come is left alone, though it is empty.
func TestRemoveWhileCommitting(t *testing.T) {
	s := open(t)
	put(t, s, "pub/dir/old", "x")
	p, err := begin(s, "pub/dir/new", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	io.WriteString(p, "x")
	want := digest.Unverified(1, "test")
	err = p.Commit(want, digest.Sum{}, mtime, func() (func(), error) {
		s.SetFault(func(step, path string, _ bool) error {
			if step == "rmdir" || step == "mkdir" {
				t.Errorf("%s %s", step, path)
			}
			return nil
		})
		_, err := s.Remove("pub/dir/old")
		return nil, err
	})
	if err != nil {
		t.Error(err)
	}
	s.SetFault(nil)
	s.Remove("pub/dir/new")
	if _, err := os.Stat(filepath.Join(s.dir, "pub")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("later it is not removed: %v", err)
	}
}

// TestRemoveFails makes each step of a removal fail. What is left is counted, can be read and can be removed.
func TestRemoveFails(t *testing.T) {
	for _, step := range []string{"unlink", "rmdir", "fsyncdir"} {
		for _, fault := range faults {
			t.Run(step+" "+fault.name, func(t *testing.T) {
				s := open(t)
				paths := []string{"pub/a/f", "pub/b/f"}
				for _, p := range paths {
					put(t, s, p, "hello")
				}
				if err := s.Measure(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.SetFault(func(at, path string, before bool) error {
					if at == step && before != fault.done && !strings.HasPrefix(path, "pub/b") {
						return syscall.EIO
					}
					return nil
				})
				_, err := s.Remove(paths...)
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("Remove: %v", err)
				}
				s.SetFault(nil)
				measured(t, s)
				left := []string(nil)
				if step == "unlink" && !fault.done {
					left = paths[:1]
				}
				if got := tree(t, s); !slices.Equal(got, left) {
					t.Errorf("left: %v", got)
				}
				if _, err := s.Remove(paths...); err != nil {
					t.Error(err)
				}
				put(t, s, "pub/a/f", "again")
				measured(t, s)
			})
		}
	}
}

// TestRemovedHandles: a removed path is not served from a handle that was kept, or in use, or just being opened.
func TestRemovedHandles(t *testing.T) {
	for _, links := range []int{1, 2} {
		t.Run(fmt.Sprint(links, " links"), func(t *testing.T) {
			s := open(t)
			set := func() {
				put(t, s, "pub/f", "x")
				if links > 1 {
					os.Remove(filepath.Join(s.dir, "pub/g"))
					os.Link(filepath.Join(s.dir, "pub/f"), filepath.Join(s.dir, "pub/g"))
				}
			}
			gone := func(when string) {
				t.Helper()
				if _, err := s.Get("pub/f"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", when, err)
				}
			}
			set()
			get(s, "pub/f")
			if len(s.handles.idle["pub/f"]) != 1 {
				t.Error("no handle is kept")
			}
			s.Remove("pub/f")
			if len(s.handles.idle["pub/f"]) != 0 {
				t.Error("a handle of a removed file is kept")
			}
			gone("kept")
			set()
			f, err := s.Get("pub/f")
			if err != nil {
				t.Fatal(err)
			}
			s.Remove("pub/f")
			f.Close()
			gone("in use")
			set()
			really := s.handles.open
			s.handles.open = func(name string) (*os.File, os.FileInfo, error) {
				f, _, err := really(name)
				if err != nil {
					return nil, nil, err
				}
				s.Remove(name)
				info, err := f.Stat()
				s.handles.open = really
				return f, info, err
			}
			if f, err = s.Get("pub/f"); err == nil {
				f.Close()
			}
			gone("being opened")
		})
	}
}

// TestLostFound: what mkfs made is nobody's business.
func TestLostFound(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, lostFound), 0o700)
	os.Symlink("/etc", filepath.Join(dir, lostFound, "link"))
	s, err := Open(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	os.Symlink("/etc", filepath.Join(dir, "zlink"))
	if _, err := Open(dir, 0); err == nil {
		t.Error("what comes after it is not looked at")
	}
}
