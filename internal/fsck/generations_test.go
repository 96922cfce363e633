package fsck

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/repodata"
)

var later = mirrortest.Epoch.Add(time.Hour)

func sha(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// TestEarlier: two generations stand in the tree, of which ant is in both with other bytes, bee vanished, cat is new.
func TestEarlier(t *testing.T) {
	old := mirrortest.Repo{Packages: packages("ant", "bee", "dog")}
	current := mirrortest.Repo{Time: later, Packages: []mirrortest.Package{{Name: "ant", Seed: 7}, {Name: "cat"}, {Name: "dog"}}}
	build := func(t *testing.T) (root, oldPrimary, primary string) {
		root = t.TempDir()
		oldPrimary = one(t, place(t, root, "pub/os", old), "primary.xml.gz")
		return root, oldPrimary, one(t, place(t, root, "pub/os", current), "primary.xml.gz")
	}
	for name, test := range map[string]struct {
		do     func(t *testing.T, root, oldPrimary string)
		want   string
		counts string
	}{
		"right": {
			do:     func(*testing.T, string, string) {},
			counts: "6 vouched, 1 earlier, 3 by name, 1 unvouched, 0 changed",
		},
		"the earlier bytes under a name that is current": {
			do: func(t *testing.T, root, _ string) {
				write(t, root, ant, mirrortest.Package{Name: "ant"}.Build().Bytes)
			},
			want: "damaged " + ant + " (PRIMARY)\n", counts: "5 vouched, 1 earlier, 3 by name, 1 unvouched, 0 changed",
		},
		"a vanished package": {
			do:   func(t *testing.T, root, _ string) { flip(t, root, bee) },
			want: "damaged " + bee + " (OLD)\n", counts: "6 vouched, 0 earlier, 3 by name, 1 unvouched, 0 changed",
		},
		"the earlier primary": {
			do:   func(t *testing.T, root, oldPrimary string) { flip(t, root, oldPrimary) },
			want: "damaged OLD\n", counts: "6 vouched, 0 earlier, 2 by name, 2 unvouched, 0 changed",
		},
		"no earlier primary": {
			do:     func(t *testing.T, root, oldPrimary string) { must(t, os.Remove(filepath.Join(root, oldPrimary))) },
			counts: "6 vouched, 0 earlier, 2 by name, 2 unvouched, 0 changed",
		},
		"another repository still has it": { // with other bytes, and is current
			do: func(t *testing.T, root, _ string) {
				place(t, root, "pub/also", mirrortest.Repo{Dir: "../os/Packages/b", Packages: []mirrortest.Package{{Name: "bee", Seed: 9}}})
			},
			counts: "10 vouched, 0 earlier, 3 by name, 2 unvouched, 0 changed",
		},
		"an earlier generation of another repository has it": {
			do: func(t *testing.T, root, oldPrimary string) {
				must(t, os.MkdirAll(filepath.Join(root, "pub/also/repodata"), 0o755))
				must(t, os.Rename(filepath.Join(root, oldPrimary), filepath.Join(root, "pub/also/repodata", filepath.Base(oldPrimary))))
			}, // but its hrefs are that one's
			counts: "6 vouched, 0 earlier, 3 by name, 2 unvouched, 0 changed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, oldPrimary, primary := build(t)
			test.do(t, root, oldPrimary)
			sum, found := check(t, root, Options{})
			want := strings.NewReplacer("PRIMARY", primary, "OLD", oldPrimary).Replace(test.want)
			if list(found) != want || counts(sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), want, counts(sum), test.counts)
			}
		})
	}
}

// TestSeveralNames: a path that several repositories name may be what any of them says.
func TestSeveralNames(t *testing.T) {
	root := t.TempDir()
	const path = "pub/pool/ant-1.0-1.noarch.rpm"
	bodies := make([][]byte, 3)
	for i := range bodies {
		p := mirrortest.Package{Name: "ant", Seed: uint64(i)}
		bodies[i] = p.Build().Bytes
		if i < 2 {
			place(t, root, fmt.Sprintf("pub/repo%d", i), mirrortest.Repo{Dir: "../pool", Packages: []mirrortest.Package{p}})
		}
	}
	for i, body := range bodies {
		write(t, root, path, body)
		sum, found := check(t, root, Options{})
		if i < 2 && (len(found) > 0 || sum.Vouched != 7) || i == 2 && (len(found) != 1 || found[0].Path != path) {
			t.Errorf("body %d: %+v\n%s", i, sum, list(found))
		}
		if len(found) > 0 && (!strings.HasPrefix(found[0].By, "pub/repo0/") || !strings.Contains(found[0].Want, sha(bodies[0]))) {
			t.Errorf("%+v does not say what the first one wants", found[0])
		}
	}
}

// TestBadDocument: what a primary said that turned out wrong at its end neither counts nor hides what another one says.
func TestBadDocument(t *testing.T) {
	root := t.TempDir()
	var primary [2]string
	for i := range primary { // read in this order
		files := place(t, root, fmt.Sprintf("pub/repo%d", i), mirrortest.Repo{Dir: "../pool", Packages: packages("ant"), Plain: true, Time: later.Add(time.Duration(i) * time.Hour)})
		primary[i] = one(t, files, "primary.xml")
	}
	b := readFile(t, root, primary[0])
	write(t, root, primary[0], b[:len(b)-5])
	want := "damaged " + primary[0] + " (pub/repo0/repodata/repomd.xml)\n"
	if sum, found := check(t, root, Options{}); list(found) != want || counts(sum) != "6 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed" {
		t.Errorf("found\n%s%s", list(found), counts(sum))
	}
	flip(t, root, "pub/pool/ant-1.0-1.noarch.rpm")
	want = "damaged pub/pool/ant-1.0-1.noarch.rpm (" + primary[1] + ")\n" + want
	if _, found := check(t, root, Options{}); list(found) != want {
		t.Errorf("found\n%swant\n%s", list(found), want)
	}
}

// edit changes repomd.xml.
func edit(t *testing.T, root, repo string, change func(string) string) {
	t.Helper()
	name := repo + "/repodata/repomd.xml"
	b := string(readFile(t, root, name))
	after := change(b)
	if after == b {
		t.Fatal("nothing was changed")
	}
	write(t, root, name, []byte(after))
}

// TestLyingMetadata: odd things that a repomd.xml and a primary may say.
func TestLyingMetadata(t *testing.T) {
	digestOf := func(kind string) func(string) string { // takes the digest from a record
		return func(md string) string {
			head, rest, _ := strings.Cut(md, `<data type="`+kind+`">`)
			at := strings.Index(rest, "<checksum")
			end := strings.Index(rest, "</checksum>")
			return head + `<data type="` + kind + `">` + rest[:at] + rest[end+len("</checksum>"):]
		}
	}
	for name, test := range map[string]struct {
		repo   mirrortest.Repo
		do     func(t *testing.T, root string, files map[string]mirrortest.File)
		want   string
		counts string
	}{
		"no digest, name without one": {
			repo: mirrortest.Repo{Fixed: true},
			do: func(t *testing.T, root string, _ map[string]mirrortest.File) {
				edit(t, root, "pub/os", digestOf("filelists"))
				flip(t, root, "pub/os/repodata/filelists.xml.gz")
			},
			counts: "5 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
		},
		"no digest, but a length": {
			repo: mirrortest.Repo{Fixed: true},
			do: func(t *testing.T, root string, _ map[string]mirrortest.File) {
				edit(t, root, "pub/os", digestOf("filelists"))
				write(t, root, "pub/os/repodata/filelists.xml.gz", nil)
			},
			want:   "damaged pub/os/repodata/filelists.xml.gz (pub/os/repodata/repomd.xml)\n",
			counts: "5 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed",
		},
		"no digest, but one in the name": {
			do: func(t *testing.T, root string, files map[string]mirrortest.File) {
				edit(t, root, "pub/os", digestOf("filelists"))
				edit(t, root, "pub/os", digestOf("other"))
				flip(t, root, one(t, files, "filelists.xml.gz"))
			},
			want:   "damaged FILELISTS (pub/os/repodata/repomd.xml)\n",
			counts: "4 vouched, 0 earlier, 1 by name, 1 unvouched, 0 changed",
		},
		"a primary without digest vouches for nothing": {
			repo: mirrortest.Repo{Fixed: true},
			do: func(t *testing.T, root string, _ map[string]mirrortest.File) {
				edit(t, root, "pub/os", digestOf("primary"))
				flip(t, root, ant)
			},
			counts: "2 vouched, 0 earlier, 0 by name, 5 unvouched, 0 changed",
		},
		"a primary that breaks off": { // right by its digest; what it said so far does not count
			repo: mirrortest.Repo{Plain: true, Fixed: true},
			do: func(t *testing.T, root string, files map[string]mirrortest.File) {
				name := one(t, files, "primary.xml")
				whole := files[name].Body
				cut := whole[:len(whole)-20]
				write(t, root, name, cut)
				edit(t, root, "pub/os", func(md string) string {
					return strings.NewReplacer(sha(whole), sha(cut), fmt.Sprintf("<size>%d<", len(whole)), fmt.Sprintf("<size>%d<", len(cut))).Replace(md)
				})
				flip(t, root, ant)
			},
			want:   "unreadable pub/os/repodata/primary.xml\n",
			counts: "3 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"zchunk instead of primary": {
			repo: mirrortest.Repo{Plain: true, Fixed: true},
			do: func(t *testing.T, root string, files map[string]mirrortest.File) {
				name := one(t, files, "primary.xml")
				zck := []byte("\x00ZCK1 and so on")
				write(t, root, name, zck)
				edit(t, root, "pub/os", func(md string) string {
					return strings.NewReplacer(sha(files[name].Body), sha(zck), fmt.Sprintf("<size>%d<", len(files[name].Body)), fmt.Sprintf("<size>%d<", len(zck))).Replace(md)
				})
			},
			counts: "3 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed",
		},
		"records that lead elsewhere": {
			do: func(t *testing.T, root string, _ map[string]mirrortest.File) {
				edit(t, root, "pub/os", func(md string) string {
					for i, href := range []string{"../../../../etc/passwd", "../../.instantmirror/format", "http://example.org/x", "../../pub", "a/../.."} {
						md = strings.Replace(md, "</repomd>", fmt.Sprintf(`<data type="x%d"><checksum type="sha256">%064d</checksum><location href="%s"/></data></repomd>`, i, i, href), 1)
					}
					return md
				})
			},
			counts: "6 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, files := small(t, test.repo)
			filelists := ""
			if !test.repo.Fixed {
				filelists = one(t, files, "filelists.xml.gz")
			}
			test.do(t, root, files)
			sum, found := check(t, root, Options{})
			want := strings.ReplaceAll(test.want, "FILELISTS", filelists)
			if list(found) != want || counts(sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), want, counts(sum), test.counts)
			}
		})
	}
}

// TestTooManyWants: who says more than can be remembered of a path may say anything of it, but right is right.
func TestTooManyWants(t *testing.T) {
	root := t.TempDir()
	var all []mirrortest.Package
	for i := range 3 * maxWants {
		all = append(all, mirrortest.Package{Name: "ant", Seed: uint64(i)})
	}
	place(t, root, "pub", mirrortest.Repo{Dir: ".", Packages: all})
	for seed, want := range map[uint64]string{
		0: "4 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed", maxWants - 1: "4 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed",
		3*maxWants - 1: "3 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
	} {
		write(t, root, "pub/ant-1.0-1.noarch.rpm", mirrortest.Package{Name: "ant", Seed: seed}.Build().Bytes)
		if sum, found := check(t, root, Options{}); len(found) > 0 || counts(sum) != want {
			t.Errorf("seed %d: %s\n%s", seed, counts(sum), list(found))
		}
	}
}

// TestChanging: the tree is in use. What is replaced after the metadata were read is not judged by them.
func TestChanging(t *testing.T) {
	old := mirrortest.Repo{Packages: packages("ant", "bee")}
	next := mirrortest.Repo{Time: later, Packages: []mirrortest.Package{{Name: "ant", Seed: 7}, {Name: "bee"}, {Name: "cat"}}}
	replace := func(t *testing.T, root, name string, b []byte) { // as the store does it
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		tmp := filepath.Join(root, "next")
		must(t, os.WriteFile(tmp, b, 0o644))
		must(t, os.Rename(tmp, filepath.Join(root, name)))
	}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, root string, next map[string]mirrortest.File)
		want      string
		counts    string
	}{
		"nothing": {func(*testing.T, string, map[string]mirrortest.File) {}, "", "5 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed"},
		"a publication": {func(t *testing.T, root string, next map[string]mirrortest.File) {
			for _, name := range []string{ant, bee, "pub/os/Packages/c/cat-1.0-1.noarch.rpm", one(t, next, "primary.xml.gz"), "pub/os/repodata/repomd.xml"} {
				replace(t, root, name, next[name].Body)
			}
		}, "", "4 vouched, 0 earlier, 1 by name, 1 unvouched, 2 changed"},
		"a deletion": {func(t *testing.T, root string, _ map[string]mirrortest.File) {
			must(t, os.Remove(filepath.Join(root, ant)))
		}, "", "4 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed"},
		"damage": {func(t *testing.T, root string, next map[string]mirrortest.File) {
			replace(t, root, ant, next[ant].Body)
		}, "damaged " + ant + " (PRIMARY)\n", "4 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed"},
	} {
		t.Run(name, func(t *testing.T) {
			root, scratch := t.TempDir(), t.TempDir()
			files := place(t, root, "pub/os", old)
			var found []Finding
			c := newChecker(t, root, func(f Finding) { found = append(found, f) })
			for _, step := range []func(context.Context) error{c.survey, c.learn} {
				must(t, step(t.Context()))
			}
			test.meanwhile(t, root, place(t, scratch, "pub/os", next))
			must(t, c.judgeAll(t.Context()))
			want := strings.ReplaceAll(test.want, "PRIMARY", one(t, files, "primary.xml.gz"))
			if list(found) != want || counts(c.sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), want, counts(c.sum), test.counts)
			}
		})
	}
	t.Run("fixed names", func(t *testing.T) {
		old, next := mirrortest.Repo{Fixed: true}, mirrortest.Repo{Fixed: true, Time: later, Packages: packages("ant")}
		root, scratch := t.TempDir(), t.TempDir()
		place(t, root, "pub/os", old)
		c := newChecker(t, root, func(f Finding) { t.Errorf("found %v", f) })
		must(t, c.survey(t.Context()))
		must(t, c.learn(t.Context()))
		files := place(t, scratch, "pub/os", next)
		for _, name := range []string{"primary.xml.gz", "filelists.xml.gz", "other.xml.gz", "repomd.xml"} {
			replace(t, root, "pub/os/repodata/"+name, files["pub/os/repodata/"+name].Body)
		}
		must(t, c.judgeAll(t.Context()))
		if got := counts(c.sum); got != "0 vouched, 0 earlier, 0 by name, 1 unvouched, 3 changed" {
			t.Error(got)
		}
	})
	t.Run("while it is read", func(t *testing.T) {
		root := t.TempDir()
		files := place(t, root, "pub/os", old)
		must(t, os.Truncate(filepath.Join(root, ant), progressStep+1))
		sum, err := Check(t.Context(), root, Options{Under: ant, Progress: func(_ string, done, total int64) {
			if done < total {
				replace(t, root, ant, files[ant].Body)
			}
		}}, func(f Finding) { t.Errorf("found %v", f) })
		if err != nil || sum.Changed != 1 {
			t.Errorf("%+v, %v", sum, err)
		}
	})
}

// TestRealHistory: each snapshot of a real repository as the current one, with the metadata of all of them, and both
// versions of packages that were rebuilt under their names.
func TestRealHistory(t *testing.T) {
	dir := mirrortest.Fixtures(t, "azurelinux-zst-history")
	snapshots, err := filepath.Glob(filepath.Join(dir, "snap*"))
	must(t, err)
	root := t.TempDir()
	named := make([]map[string]string, len(snapshots)) // path → digest
	count := make(map[string]int64)                    // metadata files
	for i, snapshot := range snapshots {
		files, err := filepath.Glob(filepath.Join(snapshot, "repodata", "*"))
		must(t, err)
		for _, name := range files {
			b, err := os.ReadFile(name)
			must(t, err)
			if base := filepath.Base(name); base != "repomd.xml" {
				write(t, root, "repodata/"+base, b)
				count[base]++
				if strings.Contains(base, "primary.xml") {
					named[i] = make(map[string]string)
					must(t, repodata.ReadPrimary(strings.NewReader(string(b)), name, repodata.Limits{}, func(p *repodata.Package) error {
						named[i][p.Href] = p.Sum.Hex()
						return nil
					}))
				}
			}
		}
	}
	seen := make(map[string]int)
	for _, version := range []string{"old", "new"} {
		rpms, err := filepath.Glob(filepath.Join(dir, "same-nevra-pairs", version, "*.rpm"))
		must(t, err)
		for i, snapshot := range snapshots {
			write(t, root, "repodata/repomd.xml", readFile(t, snapshot, "repodata/repomd.xml"))
			var damaged []string
			var vouched, earlier int64
			for _, rpm := range rpms {
				b, err := os.ReadFile(rpm)
				must(t, err)
				for _, at := range named { // wherever some snapshot has it
					for href, sum := range at {
						if filepath.Base(href) != filepath.Base(rpm) || sum != sha(b) {
							continue
						}
						write(t, root, href, b)
					}
				}
			}
			must(t, filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err != nil || !strings.HasSuffix(p, ".rpm") {
					return err
				}
				href, _ := filepath.Rel(root, p)
				got := sha(readFile(t, root, href))
				want, ok := named[i][href]
				switch {
				case ok && want == got:
					vouched++
				case ok:
					damaged = append(damaged, href)
				case slices.ContainsFunc(named, func(m map[string]string) bool { return m[href] == got }):
					earlier++
				default:
					t.Errorf("%s is in no snapshot", href)
				}
				return nil
			}))
			slices.Sort(damaged)
			sum, found := check(t, root, Options{})
			var paths []string
			for _, f := range found {
				paths = append(paths, f.Path)
			}
			records := sum.Vouched - vouched
			if !slices.Equal(paths, damaged) || sum.Earlier != earlier || sum.Damaged != int64(len(damaged)) || sum.Unvouched != 1 ||
				records != 3 || records+sum.ByName != int64(len(count)) {
				t.Errorf("%s packages at snapshot %d: %+v, want %d vouched and %d earlier ones, and damaged %v\n%s", version, i+1, sum, vouched, earlier, damaged, list(found))
			}
			seen["damaged"] += len(damaged)
			seen["vouched"] += int(vouched)
			seen["earlier"] += int(earlier)
		}
	}
	t.Logf("%v", seen)
	if seen["damaged"] < 20 || seen["vouched"] < 20 || seen["earlier"] == 0 {
		t.Errorf("%v: too few", seen)
	}
}

// TestRealRepositories: what real tools made is right, in every compression, digest and layout.
func TestRealRepositories(t *testing.T) {
	for name, want := range map[string]string{ // unvouched are each repomd.xml, its signature, and what is no part of a repository
		"generated/unsigned": "15 vouched, 0 earlier, 0 by name, 1 unvouched, 0 changed", "generated/signed-rsa": "15 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
		"generated/signed-ed25519": "15 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
		// Packages on a second disc, which is another directory here.
		"generated/split-media": "8 vouched, 0 earlier, 0 by name, 6 unvouched, 0 changed",
		"generated/zck-update":  "18 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
		"generated/drpm":        "9 vouched, 0 earlier, 0 by name, 2 unvouched, 0 changed",
		// xz, bzip2, sha1, sha512, fixed names, without any package.
		"generated/repodata-variants": "42 vouched, 0 earlier, 0 by name, 7 unvouched, 0 changed",
	} {
		t.Run(name, func(t *testing.T) {
			if sum, found := check(t, mirrortest.Fixtures(t, strings.Split(name, "/")...), Options{}); len(found) > 0 || counts(sum) != want {
				t.Errorf("found\n%s%s, want %s", list(found), counts(sum), want)
			}
		})
	}
	t.Run("createrepo_c", func(t *testing.T) { // one of whose repositories is not what its repomd.xml says
		const primary = "repo_01/repodata/6c662d665c24de9a0f62c17d8fa50622307739d7376f0d19097ca96c6d7f5e3e-primary.xml.gz"
		_, found := check(t, mirrortest.Fixtures(t, "createrepo_c"), Options{})
		if len(found) != 1 || found[0].Path != primary || !strings.HasPrefix(found[0].Want, "782 bytes, ") || !strings.HasPrefix(found[0].Got, "783 bytes, ") {
			t.Errorf("found %v", found)
		}
	})
}

// BenchmarkNames tells what a package that stands in the tree costs.
func BenchmarkNames(b *testing.B) {
	const packages = 1_000_000
	sum, err := digest.ParseSum(digest.SHA256, strings.Repeat("0f", 32))
	must(b, err)
	docs := make([]doc, 1)
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		var n names
		before := heap()
		n.init()
		for i := range packages {
			n.note(fmt.Sprint("Packages/", i))
		}
		noted := heap()
		for i := range packages {
			must(b, n.add(docs, fmt.Sprint("Packages/", i), want{0, 1 << 20, sum}))
		}
		b.ReportMetric((noted-before)/packages, "B/noted")
		b.ReportMetric((heap()-before)/packages, "B/named")
		runtime.KeepAlive(n)
	}
}
