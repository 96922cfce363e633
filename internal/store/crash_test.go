package store

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// copyTree copies a root as it is at this moment, with modes and times.
func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "root")
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, p)
		info, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), info.Mode().Perm())
		}
		b, err := os.ReadFile(p)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, rel), b, info.Mode())
		}
		if err == nil {
			err = os.Chtimes(filepath.Join(to, rel), info.ModTime(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestCrash looks at what a crash before each step of a commit leaves, and, where that is less, at what power loss
// leaves: the next Open finds the old file or the new one, whole; what was downloaded is taken up again if its digest is
// known, else swept; and the commit can be made anew. (cmd's tests do it to a daemon, by the system calls themselves.)
func TestCrash(t *testing.T) {
	t.Parallel()
	const old, body = "old", "hello world"
	for _, verified := range []bool{true, false} {
		want := digest.Unverified(int64(len(body)), "test")
		if verified {
			want = known(body)
		}
		for _, path := range []string{"pub/f", "pub/new/dir/f"} {
			t.Run(fmt.Sprintf("digest known %v, %s", verified, path), func(t *testing.T) {
				s := open(t)
				put(t, s, "pub/f", old)
				type leftover struct {
					step, root string
					written    int // bytes of the download that survive
					named      bool
				}
				var crashes []leftover
				written := 0
				s.SetFault(func(step, at string, before bool) error {
					if !before {
						return nil
					}
					crashes = append(crashes, leftover{step, copyTree(t, s.dir), written, step == "fsyncdir" && at == filepath.Dir(path)})
					switch step {
					case "write":
						written = len(body)
					case "fsync": // power loss takes what was written, or leaves the length
						for _, size := range []int64{0, int64(len(body)) / 2} {
							root := copyTree(t, s.dir)
							for _, e := range pending(t, s) {
								if err := os.Truncate(filepath.Join(root, tmpDir, e.Name()), size); err != nil {
									t.Error(err)
								}
							}
							crashes = append(crashes, leftover{"power loss before fsync", root, int(size), false})
						}
					}
					return nil
				})
				p, err := s.Create(path, want, true)
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(p, body)
				if err := p.Commit(want, want.Sum(), mtime, nil); err != nil {
					t.Fatal(err)
				}
				p.Close()
				s.SetFault(nil)
				crashes = append(crashes, leftover{"the end", copyTree(t, s.dir), 0, true})
				if len(crashes) < 8 {
					t.Errorf("only %d steps", len(crashes))
				}
				for _, c := range crashes {
					s, err := Open(c.root, 0)
					if err != nil {
						t.Errorf("%s: %v", c.step, err)
						continue
					}
					wantF, wantTree := old, []string{"pub/f"}
					if c.named && path == "pub/f" {
						wantF = body
					} else if c.named {
						wantTree = []string{"pub/f", path}
					}
					if got, err := get(s, "pub/f"); got != wantF {
						t.Errorf("%s: pub/f is %q, %v", c.step, got, err)
					}
					if names := tree(t, s); !slices.Equal(names, wantTree) {
						t.Errorf("%s: the tree holds %v", c.step, names)
					}
					left := 0
					if verified && !c.named {
						left = c.written
					}
					p, err := s.Create(path, want, true)
					if err != nil {
						t.Errorf("%s: %v", c.step, err)
						continue
					}
					if p.Size() != int64(left) || len(pending(t, s)) != 1 {
						t.Errorf("%s: %d bytes are taken up, not %d; in tmp: %v", c.step, p.Size(), left, pending(t, s))
					}
					io.WriteString(p, body[p.Size():])
					if err := p.Commit(want, want.Sum(), mtime, nil); err != nil {
						t.Errorf("%s, anew: %v", c.step, err)
					}
					p.Close()
					if got, err := get(s, path); got != body {
						t.Errorf("%s, anew: %q, %v", c.step, got, err)
					}
					s.Close()
				}
			})
		}
	}
}
