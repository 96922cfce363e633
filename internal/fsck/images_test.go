package fsck

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// TestClass: the judge says of a path alone what those say who serve it.
func TestClass(t *testing.T) {
	ps, err := profile.Load(nil, fstest.MapFS{"x.yaml": {Data: []byte("name: x\npath: /x\nenabled: true\nupstreams: [https://x.example]\n")}}, nil)
	must(t, err)
	table, err := site.Build(ps, upstream.NewPool("test"))
	must(t, err)
	for p, want := range map[string]class{
		"a/.treeinfo": treeinfo, "treeinfo": treeinfo, "repodata/.treeinfo": treeinfo, "x.treeinfo": volatile, ".treeinfo/a": volatile,
		"a/Fedora-Server-43-1.6-x86_64-CHECKSUM": checksums, "CHECKSUM": checksums, "a/SHA256SUMS": checksums, "a/x.iso.SHA256SUM": checksums,
		"a/SHA1SUM.gpg": checksums, "CHECKSUM.iso": checksums, "a/sha256sums": volatile, "a/SUMSHA": volatile, "a/SHA": volatile, "a/MD5SUMS": volatile,
		"a/repodata/repomd.xml": metadata, "repodata/repomd.xml.asc": metadata, "a/repodata/x/CHECKSUM": metadata, "a/repodata/x.rpm": metadata,
		"repodata/primary.xml.gz": metadata, "a/xrepodata/CHECKSUM": checksums, "a/xrepodata/primary.xml.gz": volatile, "repomd.xml": volatile, "a/repodata": volatile,
		"a/x.rpm": pkg, "a/x.drpm": pkg, "a/CHECKSUM-1.rpm": pkg, "a/x.rpm.asc": volatile, "a.rpm/x": volatile,
		"CHECKSUM/x": volatile, "a/images/install.img": volatile,
	} {
		if got := classOf(p); got != want {
			t.Errorf("%s: %d, want %d", p, got, want)
		}
		r, err := table.Resolve("", "/x/"+p)
		must(t, err)
		ours := map[class]site.Class{volatile: site.Volatile, pkg: site.Package, metadata: site.Metadata, treeinfo: site.Pointer, checksums: site.Pointer}[want]
		if strings.Contains(p, "repodata/repomd.xml") {
			ours = site.Pointer
		}
		if r.Class != ours {
			t.Errorf("%s: site says %v, we %v", p, r.Class, ours)
		}
	}
}

const (
	boot, kernel, dvd = "pub/os/images/boot.iso", "pub/os/images/pxeboot/vmlinuz", "pub/iso/dvd.iso"
	tree, sums        = "pub/os/.treeinfo", "pub/iso/X-CHECKSUM"
)

// listing is an install tree without packages, and a disc beside it. What it vouches for is boot, kernel and dvd.
func listing(t testing.TB) map[string][]byte {
	files := map[string][]byte{boot: []byte("a boot image"), kernel: []byte("a kernel"), dvd: []byte("a disc"), "pub/os/images/README": []byte("a text")}
	files[tree] = []byte(treeText(files) + "images/absent.img = sha256:" + sha(nil) + "\nrepodata/repomd.xml = sha256:" + sha([]byte("an older one")) +
		"\nPackages/a/ant-1.0-1.noarch.rpm = sha256:" + sha(nil) + "\n[stage2]\nmainimage = images/README\n")
	files[sums] = mirrortest.NewSigner(t).ClearSign(listText(files))
	return files
}

func treeText(files map[string][]byte) string {
	return "[general]\nfamily = X\n[checksums]\nimages/boot.iso = sha256:" + sha(files[boot]) + "\nimages/pxeboot/vmlinuz = sha256:" + sha(files[kernel]) + "\n"
}

func listText(files map[string][]byte) []byte {
	return fmt.Appendf(nil, "# dvd.iso: %d bytes\nSHA256 (dvd.iso) = %s\n", len(files[dvd]), sha(files[dvd]))
}

// TestImages breaks one thing in turn that a .treeinfo or a list of checksums names.
func TestImages(t *testing.T) {
	const all = "9 vouched, 0 earlier, 0 by name, 4 unvouched, 0 changed" // of which 6 and repomd.xml are a repository
	less := func(n int) string { return strings.Replace(all, "9", fmt.Sprint(9-n), 1) }
	some := func(vouched, unvouched int) string {
		return fmt.Sprintf("%d vouched, 0 earlier, 0 by name, %d unvouched, 0 changed", vouched, unvouched)
	}
	put := func(name, body string) func(*testing.T, string, map[string][]byte) {
		return func(t *testing.T, root string, _ map[string][]byte) { write(t, root, name, []byte(body)) }
	}
	broken := func(name string) func(*testing.T, string, map[string][]byte) {
		return func(t *testing.T, root string, _ map[string][]byte) { flip(t, root, name) }
	}
	other := sha([]byte("other"))
	for name, test := range map[string]struct {
		do     func(t *testing.T, root string, files map[string][]byte)
		want   string // findings
		counts string
	}{
		"nothing":               {func(*testing.T, string, map[string][]byte) {}, "", all},
		"an image":              {broken(boot), "damaged " + boot + " (" + tree + ")\n", less(1)},
		"an image further down": {broken(kernel), "damaged " + kernel + " (" + tree + ")\n", less(1)},
		"a disc":                {broken(dvd), "damaged " + dvd + " (" + sums + ")\n", less(1)},
		"an image is empty":     {put(boot, ""), "damaged " + boot + " (" + tree + ")\n", less(1)},
		"an image is cut": {func(t *testing.T, root string, files map[string][]byte) {
			must(t, os.Truncate(filepath.Join(root, boot), int64(len(files[boot]))-1))
		}, "damaged " + boot + " (" + tree + ")\n", less(1)},
		"an image goes on": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, boot, append(files[boot], 0))
		}, "damaged " + boot + " (" + tree + ")\n", less(1)},
		"an image under another's name": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, boot, files[kernel])
		}, "damaged " + boot + " (" + tree + ")\n", less(1)},
		"an image by a symlink": {func(t *testing.T, root string, files map[string][]byte) {
			must(t, os.Remove(filepath.Join(root, boot)))
			must(t, os.Symlink("pxeboot/vmlinuz", filepath.Join(root, boot)))
		}, "damaged " + boot + " (" + tree + ")\n", less(1)},
		"a wrong length": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, sums, []byte(strings.Replace(string(listText(files)), ": 6 bytes", ": 7 bytes", 1)))
		}, "damaged " + dvd + " (" + sums + ")\n", less(1)},
		"what is named without a digest": {broken("pub/os/images/README"), "", all},
		"what is named by nobody":        {put("pub/os/images/new.iso", "new"), "", some(9, 5)},
		"packages and metadata are not theirs": {func(t *testing.T, root string, _ map[string][]byte) {
			write(t, root, "pub/os/SHA256SUMS", fmt.Appendf(nil, "%s  repodata/repomd.xml\n%s  Packages/a/ant-1.0-1.noarch.rpm\n%[1]s  .treeinfo\n%[1]s  SHA256SUMS\n", other, other))
		}, "", some(9, 5)},
		"a package that is right by a list only": {func(t *testing.T, root string, _ map[string][]byte) {
			write(t, root, "pub/os/SHA256SUMS", []byte(other+"  Packages/a/ant-1.0-1.noarch.rpm\n"+other+"  Packages/new-1-1.noarch.rpm\n"))
			write(t, root, ant, []byte("other"))
			write(t, root, "pub/os/Packages/new-1-1.noarch.rpm", []byte("new")) // nobody's
		}, "damaged " + ant + " (PRIMARY)\n", some(8, 6)},
		"metadata that are right by a list only": {func(t *testing.T, root string, _ map[string][]byte) {
			edit(t, root, "pub/os", func(md string) string {
				return strings.Replace(md, "</repomd>", `<data type="x"><checksum type="sha256">`+sha(nil)+`</checksum><location href="repodata/x"/></data></repomd>`, 1)
			})
			write(t, root, "pub/os/repodata/x", []byte("other"))
			write(t, root, "pub/os/SHA256SUMS", []byte(other+"  repodata/x\n"))
		}, "damaged pub/os/repodata/x (pub/os/repodata/repomd.xml)\n", some(9, 5)},
		"named by both, right by the .treeinfo": {put("pub/os/SHA256SUMS", other+"  images/boot.iso\n"), "", some(9, 5)},
		"named by both, right by the list": {func(t *testing.T, root string, _ map[string][]byte) {
			write(t, root, "pub/os/SHA256SUMS", []byte(other+"  images/boot.iso\n"))
			write(t, root, boot, []byte("other"))
		}, "", some(9, 5)},
		"named by both, wrong by both": {func(t *testing.T, root string, _ map[string][]byte) {
			write(t, root, "pub/os/SHA256SUMS", []byte(other+"  images/boot.iso\n"))
			flip(t, root, boot)
		}, "damaged " + boot + " (" + tree + ")\n", some(8, 5)},
		"named by two trees": {put("pub/.treeinfo", "[checksums]\nos/images/boot.iso = sha256:"+other+"\n"), "", some(9, 5)},
		"named by a record": {func(t *testing.T, root string, _ map[string][]byte) {
			edit(t, root, "pub/os", func(md string) string {
				return strings.Replace(md, "</repomd>", `<data type="x"><checksum type="sha256">`+other+`</checksum><location href="images/boot.iso"/></data></repomd>`, 1)
			})
		}, "", all},
		"a treeinfo without its dot": {func(t *testing.T, root string, files map[string][]byte) {
			must(t, os.Rename(filepath.Join(root, tree), filepath.Join(root, "pub/os/treeinfo")))
			flip(t, root, kernel)
		}, "damaged " + kernel + " (pub/os/treeinfo)\n", less(1)},
		"the root's own": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, "treeinfo", []byte("[checksums]\nnew.iso = sha256:"+other+"\n.instantmirror-x = "+other+"\n"))
			write(t, root, "SHA1SUMS", []byte(other+"  ./pub/os/images/README\n"))
			write(t, root, "new.iso", []byte("new"))
		}, "damaged new.iso (treeinfo)\ndamaged pub/os/images/README (SHA1SUMS)\n", some(9, 5)},
		"an odd .treeinfo": {put(tree, "[checksums]\nimages/boot.iso = sha256:0f\nimages/pxeboot/vmlinuz\n"), "unreadable " + tree + "\n", some(7, 6)},
		"a .treeinfo that leads out": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, tree, append(files[tree], "[checksums]\n../iso/dvd.iso = sha256:0f\n"...))
		}, "unreadable " + tree + "\n", some(7, 6)},
		"a .treeinfo that is a web page": {put(tree, "<html><body>Sign in</body></html>"), "unreadable " + tree + "\n", some(7, 6)},
		"a .treeinfo that is empty":      {put("pub/treeinfo", ""), "unreadable pub/treeinfo\n", some(9, 5)},
		"no file in the place of .treeinfo": {func(t *testing.T, root string, _ map[string][]byte) {
			must(t, os.Remove(filepath.Join(root, tree)))
			must(t, syscall.Mkfifo(filepath.Join(root, tree), 0o644))
			must(t, os.Mkdir(filepath.Join(root, "pub/os/treeinfo"), 0o755))
			must(t, os.Mkdir(filepath.Join(root, "pub/os/SHA256SUMS"), 0o755))
			must(t, os.Remove(filepath.Join(root, sums)))
			must(t, os.Symlink("/etc/passwd", filepath.Join(root, sums)))
		}, "foreign " + sums + "\nforeign " + tree + "\n", some(6, 5)},
		"a .treeinfo that is a symlink out": {func(t *testing.T, root string, _ map[string][]byte) {
			must(t, os.Remove(filepath.Join(root, tree)))
			must(t, os.Symlink("/etc/passwd", filepath.Join(root, tree)))
		}, "foreign " + tree + "\nunreadable " + tree + "\n", some(7, 5)},
		"a list that is cut": {func(t *testing.T, root string, files map[string][]byte) {
			must(t, os.Truncate(filepath.Join(root, sums), int64(strings.Index(string(files[sums]), "-----BEGIN PGP SIGNATURE"))))
		}, "unreadable " + sums + "\n", some(8, 5)},
		"a signed list of nothing": {func(t *testing.T, root string, _ map[string][]byte) {
			write(t, root, sums, mirrortest.NewSigner(t).ClearSign([]byte("nothing\n")))
		}, "unreadable " + sums + "\n", some(8, 5)},
		"what has the name of a list": {put(sums, "<html>-----BEGIN PGP SIGNED MESSAGE-----</html>\n"), "", some(8, 5)},
		"its signature":               {put(sums+".asc", "-----BEGIN PGP SIGNATURE-----\n\niQ==\n"), "", some(9, 5)},
		"a list that is not signed": {func(t *testing.T, root string, files map[string][]byte) {
			write(t, root, sums, listText(files))
			flip(t, root, dvd)
		}, "damaged " + dvd + " (" + sums + ")\n", less(1)},
	} {
		t.Run(name, func(t *testing.T) {
			root, repo := small(t, mirrortest.Repo{})
			wanted := strings.ReplaceAll(test.want, "PRIMARY", one(t, repo, "primary.xml.gz"))
			files := listing(t)
			for name, body := range files {
				write(t, root, name, body)
			}
			test.do(t, root, files)
			sum, found := check(t, root, Options{})
			if list(found) != wanted || counts(sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), wanted, counts(sum), test.counts)
			}
			// Only what is below Under is found and remembered, whoever names it.
			for _, under := range []string{boot, "pub/os", "pub/iso"} {
				want := ""
				for line := range strings.Lines(wanted) {
					if strings.Contains(line, " "+under) {
						want += line
					}
				}
				if _, err := os.Lstat(filepath.Join(root, under)); err != nil || strings.Contains(name, "symlink") && under == boot {
					continue
				}
				if _, found := check(t, root, Options{Under: under}); list(found) != want {
					t.Errorf("below %s found\n%swant\n%s", under, list(found), want)
				}
			}
		})
	}
}

// TestImagesRemembered: what does not stand in the tree takes no room.
func TestImagesRemembered(t *testing.T) {
	root := t.TempDir()
	for name, body := range listing(t) {
		write(t, root, name, body)
	}
	c := newChecker(t, root, func(f Finding) { t.Errorf("found %v", f) })
	must(t, c.survey(t.Context()))
	before := len(c.names.at)
	must(t, c.learn(t.Context()))
	if len(c.names.at) != before || before != 4 {
		t.Errorf("%d files were noted, %d after the listings were read, want 4", before, len(c.names.at))
	}
}

// newChecker makes one that has not looked at the tree at root yet.
func newChecker(t *testing.T, root string, found func(Finding)) *checker {
	t.Helper()
	c := &checker{found: found, repos: make(map[string]*repository)}
	c.names.init()
	var err error
	c.root, err = os.OpenRoot(root)
	must(t, err)
	t.Cleanup(func() { c.root.Close() })
	return c
}

// TestChangingImages: the tree is in use.
func TestChangingImages(t *testing.T) {
	replace := func(t *testing.T, root, name string, b []byte) { // as the store does it
		write(t, root, "next", b)
		must(t, os.Rename(filepath.Join(root, "next"), filepath.Join(root, name)))
	}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, root string, files map[string][]byte)
		want      string
		counts    string
	}{
		"nothing": {func(*testing.T, string, map[string][]byte) {}, "", "3 vouched, 0 earlier, 0 by name, 3 unvouched, 0 changed"},
		"a .treeinfo with its images": {func(t *testing.T, root string, files map[string][]byte) {
			files[boot] = []byte("another boot image")
			replace(t, root, boot, files[boot])
			replace(t, root, tree, []byte(treeText(files)))
		}, "", "2 vouched, 0 earlier, 0 by name, 3 unvouched, 1 changed"},
		"a list with its disc": {func(t *testing.T, root string, files map[string][]byte) {
			files[dvd] = []byte("another disc")
			replace(t, root, dvd, files[dvd])
			replace(t, root, sums, listText(files))
		}, "", "2 vouched, 0 earlier, 0 by name, 3 unvouched, 1 changed"},
		"a new image": {func(t *testing.T, root string, files map[string][]byte) {
			replace(t, root, "pub/os/images/absent.img", []byte("new"))
		}, "", "3 vouched, 0 earlier, 0 by name, 3 unvouched, 1 changed"},
		"damage": {func(t *testing.T, root string, files map[string][]byte) {
			replace(t, root, tree+"x", files[tree])
			flip(t, root, kernel)
		}, "damaged " + kernel + " (" + tree + ")\n", "2 vouched, 0 earlier, 0 by name, 3 unvouched, 1 changed"},
	} {
		t.Run(name, func(t *testing.T) {
			root, files := t.TempDir(), listing(t)
			for name, body := range files {
				write(t, root, name, body)
			}
			var found []Finding
			c := newChecker(t, root, func(f Finding) { found = append(found, f) })
			must(t, c.survey(t.Context()))
			must(t, c.learn(t.Context()))
			test.meanwhile(t, root, files)
			must(t, c.judgeAll(t.Context()))
			if list(found) != test.want || counts(c.sum) != test.counts {
				t.Errorf("found\n%swant\n%s%s, want %s", list(found), test.want, counts(c.sum), test.counts)
			}
		})
	}
}

// TestRealImages: a real install tree, and real lists of checksums of discs that are not there.
func TestRealImages(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.CopyFS(root, os.DirFS(mirrortest.Fixtures(t, "pulp-fixtures", "rpm", "assets-distributiontree"))))
	sum, found := check(t, root, Options{})
	if len(found) > 0 || sum.Vouched != 3 || sum.Unvouched != sum.Files-3 || sum.Repositories != 0 {
		t.Errorf("%+v\n%s", sum, list(found))
	}
	want := ""
	for i, name := range []string{"LiveOS/squashfs.img", "images/pxeboot/initrd.img", "images/pxeboot/upgrade.img", "images/pxeboot/vmlinuz"} {
		must(t, os.RemoveAll(filepath.Join(root, name)))
		write(t, root, name, []byte("other"))
		want += "damaged " + name + " (.treeinfo)\n"
		if sum, found := check(t, root, Options{}); list(found) != want || sum.Vouched != int64(max(0, 2-i)) {
			t.Errorf("%+v, found\n%swant\n%s", sum, list(found), want)
		}
	}
	for _, name := range []string{"fedora/linux/releases/20/Live/x86_64/Fedora-Live-x86_64-20-CHECKSUM", "fedora/linux/releases/20/Fedora/x86_64/iso/Fedora-20-x86_64-CHECKSUM"} {
		root := t.TempDir()
		write(t, root, name, readFile(t, mirrortest.Fixtures(t, "mirrormanager2", "pub"), name))
		if sum, found := check(t, root, Options{}); len(found) > 0 || sum.Unvouched != 1 {
			t.Errorf("%+v\n%s", sum, list(found))
		}
		first := "Fedora-20-x86_64-netinst.iso"
		if strings.Contains(name, "Live") {
			first = "Fedora-Live-Desktop-x86_64-20-1.iso"
		}
		disc := filepath.Join(filepath.Dir(name), first)
		write(t, root, disc, nil)
		if _, found := check(t, root, Options{}); list(found) != "damaged "+disc+" ("+name+")\n" {
			t.Errorf("found\n%s", list(found))
		}
	}
}
