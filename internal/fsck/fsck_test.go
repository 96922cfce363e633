package fsck

import (
	"cmp"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// check judges the tree at root. The findings come in the order of their paths.
func check(t testing.TB, root string, o Options) (Summary, []Finding) {
	t.Helper()
	var found []Finding
	sum, err := Check(t.Context(), root, o, func(f Finding) { found = append(found, f) })
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Kind, b.Kind))
	})
	if sum.Files != sum.Vouched+sum.Earlier+sum.ByName+sum.Unvouched+sum.Damaged+sum.Changed {
		t.Errorf("the parts of %+v do not make its Files", sum)
	}
	if sum.Findings() != int64(len(found)) {
		t.Errorf("%+v, but %d findings", sum, len(found))
	}
	return sum, found
}

// counts is the summary without what the tests are not about.
func counts(s Summary) string {
	return fmt.Sprintf("%d vouched, %d earlier, %d by name, %d unvouched, %d changed", s.Vouched, s.Earlier, s.ByName, s.Unvouched, s.Changed)
}

// sorted sorts lines: names that begin with a digest come in any order.
func sorted(text string) string {
	return strings.Join(slices.Sorted(strings.SplitAfterSeq(text, "\n")), "")
}

// list is the findings as "kind path (by)" lines.
func list(found []Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%s %s", f.Kind, strings.ReplaceAll(f.Path, "\n", `\n`))
		if f.By != "" {
			fmt.Fprintf(&b, " (%s)", f.By)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func write(t testing.TB, root, name string, b []byte) {
	t.Helper()
	mirrortest.WriteTree(t, root, map[string]mirrortest.File{name: {Body: b}})
}

func readFile(t testing.TB, root, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes one byte in the middle of a file.
func flip(t testing.TB, root, name string) {
	t.Helper()
	b := readFile(t, root, name)
	b[len(b)/2] ^= 1
	write(t, root, name, b)
}

func packages(names ...string) (list []mirrortest.Package) {
	for _, n := range names {
		list = append(list, mirrortest.Package{Name: n})
	}
	return list
}

// place writes a repository below dir of root, and returns its files' paths below root.
func place(t testing.TB, root, dir string, r mirrortest.Repo) map[string]mirrortest.File {
	t.Helper()
	files := make(map[string]mirrortest.File)
	for name, f := range r.Files() {
		files[filepath.Join(dir, name)] = f
	}
	mirrortest.WriteTree(t, root, files)
	return files
}

// one is the path in files that ends so.
func one(t testing.TB, files map[string]mirrortest.File, end string) string {
	t.Helper()
	for name := range files {
		if strings.HasSuffix(name, end) {
			return name
		}
	}
	t.Fatalf("no %s among %v", end, slices.Sorted(maps.Keys(files)))
	return ""
}

// small is a tree of one repository of three packages below pub/os: seven files, of which repomd.xml is unvouched.
func small(t testing.TB, r mirrortest.Repo) (root string, files map[string]mirrortest.File) {
	root = t.TempDir()
	if r.Packages == nil {
		r.Packages = packages("ant", "bee", "cat")
	}
	return root, place(t, root, "pub/os", r)
}

// snapshot is all of a tree but access times.
func snapshot(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, p, info.Mode(), info.Size(), st.Ino, st.Mtim, st.Ctim)
		return nil
	}))
	return b.String()
}

const ant, bee = "pub/os/Packages/a/ant-1.0-1.noarch.rpm", "pub/os/Packages/b/bee-1.0-1.noarch.rpm"

func TestRightTree(t *testing.T) {
	for name, repo := range map[string]mirrortest.Repo{
		"unique names": {}, "fixed names": {Fixed: true}, "plain": {Plain: true, Fixed: true},
		"more records":        {Extra: map[string][]byte{"group": []byte("<comps/>"), "updateinfo": []byte("<updates/>")}},
		"outside of its root": {Dir: "../pool"},
		"flat":                {Dir: "."},
	} {
		t.Run(name, func(t *testing.T) {
			root, files := small(t, repo)
			write(t, root, ".instantmirror/tmp/1", []byte("half a file"))
			write(t, root, "pub/os/images/boot.iso", []byte("an image"))
			before := snapshot(t, root)
			total := int64(len("an image"))
			for _, f := range files {
				total += int64(len(f.Body))
			}
			var told, of int64
			sum, found := check(t, root, Options{Progress: func(_ string, done, total int64) {
				if done < told {
					t.Errorf("%d bytes done after %d", done, told)
				}
				told, of = done, total
			}})
			want := Summary{Repositories: 1, Files: int64(len(files)) + 1, Bytes: total, Vouched: int64(len(files)) - 1, Unvouched: 2}
			if len(found) > 0 || sum != want {
				t.Errorf("%+v, want %+v\n%s", sum, want, list(found))
			}
			if told != total || of != total {
				t.Errorf("progress ended at %d of %d, want %d", told, of, total)
			}
			if snapshot(t, root) != before {
				t.Error("the tree was changed")
			}
		})
	}
}

// TestPartialTree: what is not there is not missed.
func TestPartialTree(t *testing.T) {
	root, files := small(t, mirrortest.Repo{})
	for name := range files {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		if _, found := check(t, root, Options{}); len(found) > 0 {
			t.Errorf("without %s:\n%s", name, list(found))
		}
		write(t, root, name, files[name].Body)
	}
}

// TestBroken breaks one thing in turn.
func TestBroken(t *testing.T) {
	const repomd = "pub/os/repodata/repomd.xml"
	type tree struct {
		root, primary, filelists string
	}
	all := "6 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed"
	less := func(n int) string { return strings.Replace(all, "6", fmt.Sprint(6-n), 1) }
	for name, test := range map[string]struct {
		repo   mirrortest.Repo
		do     func(t *testing.T, w tree)
		want   string // findings; PRIMARY and FILELISTS stand for their paths
		counts string
	}{
		"nothing": {do: func(*testing.T, tree) {}, counts: all},
		"a byte of a package": {
			do:   func(t *testing.T, w tree) { flip(t, w.root, ant) },
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"the last byte of a package": {
			do: func(t *testing.T, w tree) {
				b := readFile(t, w.root, ant)
				b[len(b)-1]++
				write(t, w.root, ant, b)
			},
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"a package is cut": {
			do:   func(t *testing.T, w tree) { must(t, os.Truncate(filepath.Join(w.root, ant), 100)) },
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"a package is empty": {
			do:   func(t *testing.T, w tree) { write(t, w.root, ant, nil) },
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"a package goes on": {
			do:   func(t *testing.T, w tree) { write(t, w.root, ant, append(readFile(t, w.root, ant), 0)) },
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"same NEVRA, other bytes": {
			do: func(t *testing.T, w tree) {
				write(t, w.root, ant, mirrortest.Package{Name: "ant", Seed: 7}.Build().Bytes)
			},
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"one package under another's name": {
			do:   func(t *testing.T, w tree) { write(t, w.root, ant, readFile(t, w.root, bee)) },
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"a symlink gives a package other bytes": {
			do: func(t *testing.T, w tree) {
				must(t, os.Remove(filepath.Join(w.root, ant)))
				must(t, os.Symlink("../b/bee-1.0-1.noarch.rpm", filepath.Join(w.root, ant)))
			},
			want: "damaged " + ant + " (PRIMARY)\n", counts: less(1),
		},
		"filelists": {
			do:   func(t *testing.T, w tree) { flip(t, w.root, w.filelists) },
			want: "damaged FILELISTS (" + repomd + ")\n", counts: less(1),
		},
		"primary": { // vouches for nothing then
			do:   func(t *testing.T, w tree) { flip(t, w.root, w.primary) },
			want: "damaged PRIMARY (" + repomd + ")\n", counts: "2 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"primary is cut": {
			do: func(t *testing.T, w tree) {
				b := readFile(t, w.root, w.primary)
				write(t, w.root, w.primary, b[:len(b)-9])
			},
			want: "damaged PRIMARY (" + repomd + ")\n", counts: "2 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"something follows primary": { // gzip allows zeros there
			do: func(t *testing.T, w tree) {
				write(t, w.root, w.primary, append(readFile(t, w.root, w.primary), make([]byte, 300_000)...))
			},
			want: "damaged PRIMARY (" + repomd + ")\n", counts: "2 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"primary of another generation under a fixed name": {
			repo: mirrortest.Repo{Fixed: true},
			do: func(t *testing.T, w tree) {
				other := mirrortest.Repo{Fixed: true, Packages: packages("ant", "bee")}.Files()
				write(t, w.root, w.primary, other["repodata/primary.xml.gz"].Body)
			},
			want: "damaged PRIMARY (" + repomd + ")\n", counts: "2 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"repomd.xml of another generation, fixed names": {
			repo: mirrortest.Repo{Fixed: true},
			do: func(t *testing.T, w tree) {
				other := mirrortest.Repo{Fixed: true, Packages: packages("ant", "bee")}.Files()
				write(t, w.root, repomd, other["repodata/repomd.xml"].Body)
			},
			want:   "damaged FILELISTS (" + repomd + ")\ndamaged pub/os/repodata/other.xml.gz (" + repomd + ")\ndamaged PRIMARY (" + repomd + ")\n",
			counts: "0 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"repomd.xml is cut": { // what names itself still vouches
			do: func(t *testing.T, w tree) {
				b := readFile(t, w.root, repomd)
				write(t, w.root, repomd, b[:len(b)-9])
			},
			want: "unreadable " + repomd + "\n", counts: "0 vouched, 3 earlier, 3 by name, 1 unvouched, 0 changed",
		},
		"repomd.xml is a web page": {
			repo: mirrortest.Repo{Fixed: true},
			do:   func(t *testing.T, w tree) { write(t, w.root, repomd, []byte("<html><body>Sign in</body></html>")) },
			want: "unreadable " + repomd + "\n", counts: "0 vouched, 0 earlier, 0 by name, 7 unvouched, 0 changed",
		},
		"no repomd.xml, a wrong name": {
			do: func(t *testing.T, w tree) {
				must(t, os.Remove(filepath.Join(w.root, repomd)))
				flip(t, w.root, w.filelists)
			},
			want: "damaged FILELISTS\n", counts: "0 vouched, 3 earlier, 2 by name, 0 unvouched, 0 changed",
		},
		"unreadable modes": {
			do: func(t *testing.T, w tree) {
				must(t, os.Chmod(filepath.Join(w.root, ant), 0o640))
				must(t, os.Chmod(filepath.Join(w.root, "pub/os/Packages"), 0o750))
			},
			want: "foreign pub/os/Packages\nforeign " + ant + "\n", counts: all,
		},
		"what is no file": {
			do: func(t *testing.T, w tree) {
				must(t, syscall.Mkfifo(filepath.Join(w.root, "pub/os/fifo.rpm"), 0o644))
				must(t, os.Remove(filepath.Join(w.root, bee)))
				must(t, syscall.Mkfifo(filepath.Join(w.root, bee), 0o644))
			},
			want: "foreign " + bee + "\nforeign pub/os/fifo.rpm\n", counts: less(1),
		},
		"no file in the place of repomd.xml": { // which must not hold us up
			do: func(t *testing.T, w tree) {
				must(t, os.Remove(filepath.Join(w.root, repomd)))
				must(t, syscall.Mkfifo(filepath.Join(w.root, repomd), 0o644))
			},
			want: "foreign " + repomd + "\n", counts: "0 vouched, 3 earlier, 3 by name, 0 unvouched, 0 changed",
		},
		"directories in the place of files": {
			do: func(t *testing.T, w tree) {
				for _, name := range []string{ant, w.primary, repomd} {
					must(t, os.Remove(filepath.Join(w.root, name)))
					must(t, os.Mkdir(filepath.Join(w.root, name), 0o755))
				}
			},
			counts: "0 vouched, 0 earlier, 2 by name, 2 unvouched, 0 changed",
		},
		"symlinks out in the place of files": {
			do: func(t *testing.T, w tree) {
				for _, name := range []string{repomd, ant} {
					must(t, os.Remove(filepath.Join(w.root, name)))
					must(t, os.Symlink("/etc/passwd", filepath.Join(w.root, name)))
				}
			},
			want: "foreign " + repomd + "\nforeign " + ant + "\nunreadable " + repomd + "\n", counts: "0 vouched, 2 earlier, 3 by name, 0 unvouched, 0 changed",
		},
		"symlinks": {
			do: func(t *testing.T, w tree) {
				write(t, w.root, ".instantmirror/tmp/1", nil)
				must(t, os.Mkdir(filepath.Join(w.root, "links"), 0o755))
				for name, to := range map[string]string{
					"1-out": "../../elsewhere", "2-absolute": "/etc/passwd", "3-absolute-inward": filepath.Join(w.root, "pub"),
					"4-private": "../.instantmirror/tmp/1", "5-circle": "5-circle", "6-out-and-in": "../../" + filepath.Base(w.root) + "/pub",
					"fine-dir": "../pub/os", "fine-file": "../" + ant, "fine-nowhere": "nothing", "fine-through-a-file": "../" + ant + "/x",
				} {
					must(t, os.Symlink(to, filepath.Join(w.root, "links", name)))
				}
			},
			want:   "foreign links/1-out\nforeign links/2-absolute\nforeign links/3-absolute-inward\nforeign links/4-private\nforeign links/5-circle\nforeign links/6-out-and-in\n",
			counts: "6 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed", // fine-file is a file more
		},
		"names": {
			do: func(t *testing.T, w tree) {
				write(t, w.root, "pub/os/partial-"+strings.Repeat("0f", 32), nil)
				write(t, w.root, "pub/os/partial-"+strings.Repeat("0f", 31), nil)
				write(t, w.root, "pub/.instantmirror/tmp/1", nil)
				write(t, w.root, "pub/caf\xe9", nil)
				write(t, w.root, "pub/café", nil)
				write(t, w.root, "pub/d\xff/a", nil)
				write(t, w.root, "pub/new\nline", nil)
			},
			want: "foreign pub/.instantmirror\nforeign pub/caf\xe9\nforeign pub/d\xff\nforeign pub/new\\nline\n" +
				"foreign pub/os/partial-" + strings.Repeat("0f", 32) + "\n",
			counts: "6 vouched, 0 earlier, 0 by name, 7 unvouched, 0 changed",
		},
		"names that carry a checksum": {
			do: func(t *testing.T, w tree) {
				empty := map[int]string{ // of nothing; FIPS 180-4, RFC 1321
					32: "d41d8cd98f00b204e9800998ecf8427e", 40: "da39a3ee5e6b4b0d3255bfef95601890afd80709",
					56: "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f",
					64: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
					96: "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
					128: "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce" +
						"47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
				}
				for n, hex := range empty {
					write(t, w.root, "pub/os/repodata/"+hex+"-right.xml", nil)
					write(t, w.root, "pub/os/repodata/"+strings.Repeat("a", n)+"-wrong.xml", nil)
					write(t, w.root, "pub/os/elsewhere/"+strings.Repeat("a", n)+"-right.xml", nil) // not in a repodata/
				}
				for _, name := range []string{strings.Repeat("a", 64), strings.Repeat("a", 64) + "-", strings.Repeat("a", 63) + "-x", strings.Repeat("g", 64) + "-x", "comps.xml"} {
					write(t, w.root, "pub/os/repodata/"+name, nil)
				}
			},
			want: "damaged pub/os/repodata/" + strings.Repeat("a", 128) + "-wrong.xml\n" +
				"damaged pub/os/repodata/" + strings.Repeat("a", 32) + "-wrong.xml\n" + "damaged pub/os/repodata/" + strings.Repeat("a", 40) + "-wrong.xml\n" +
				"damaged pub/os/repodata/" + strings.Repeat("a", 56) + "-wrong.xml\n" + "damaged pub/os/repodata/" + strings.Repeat("a", 64) + "-wrong.xml\n" +
				"damaged pub/os/repodata/" + strings.Repeat("a", 96) + "-wrong.xml\n",
			counts: "6 vouched, 0 earlier, 6 by name, 12 unvouched, 0 changed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, files := small(t, test.repo)
			w := tree{root, one(t, files, "primary.xml.gz"), one(t, files, "filelists.xml.gz")}
			test.do(t, w)
			sum, found := check(t, root, Options{})
			want := strings.NewReplacer("PRIMARY", w.primary, "FILELISTS", w.filelists).Replace(test.want)
			if sorted(list(found)) != sorted(want) || counts(sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), want, counts(sum), test.counts)
			}
			for _, f := range found {
				if f.Want == "" || f.Got == "" || f.Want == f.Got || !strings.Contains(f.String(), f.Got) {
					t.Errorf("finding %q", f)
				}
			}
		})
	}
}

// TestFindingSaysBoth: what was expected and what is there.
func TestFindingSaysBoth(t *testing.T) {
	root, files := small(t, mirrortest.Repo{})
	other := mirrortest.Package{Name: "ant", Seed: 7}.Build().Bytes
	write(t, root, ant, other)
	_, found := check(t, root, Options{})
	if len(found) != 1 {
		t.Fatalf("found %v", found)
	}
	describe := func(b []byte) string {
		h := sha(b)
		return fmt.Sprintf("%d bytes, sha256:%s", len(b), h)
	}
	want := Finding{Path: ant, Kind: Damaged, Want: describe(files[ant].Body), Got: describe(other), By: one(t, files, "primary.xml.gz")}
	if found[0] != want {
		t.Errorf("found\n%+v, want\n%+v", found[0], want)
	}
}

// TestIndependent: a judge that shared the store's or the mirror's code would share its faults.
func TestIndependent(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	allowed := []string{"digest", "repodata", "signature"}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		must(t, err)
		for _, spec := range parsed.Imports {
			_, room, ours := strings.Cut(strings.Trim(spec.Path.Value, `"`), "/instantmirror/internal/")
			if ours && !slices.Contains(allowed, room) {
				t.Errorf("%s imports %s", name, room)
			}
		}
	}
}
