package repodata

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// find lists the files below dir of which ok says that they are wanted.
func find(t *testing.T, dir string, ok func(name string) bool) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && ok(path.Base(filepath.ToSlash(name))) {
			list = append(list, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// same reads a file both ways, compares, and returns the packages.
func same(t *testing.T, name string, lim Limits) []Package {
	t.Helper()
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := all(bytes.NewReader(file), lim)
	doc, done, slowErr := openFile(bytes.NewReader(file), lim)
	if race && len(file) > 1<<20 {
		return got
	}
	var want []Package
	if slowErr == nil {
		want, slowErr = allSlowly(doc)
		done()
	}
	if (err == nil) != (slowErr == nil) || !slices.Equal(got, want) {
		t.Errorf("%s: %d packages, %v; encoding/xml: %d, %v", name, len(got), err, len(want), slowErr)
	}
	if err != nil {
		t.Logf("%s: %v", name, err)
	}
	return got
}

// TestRealPrimaries reads each primary in the fixtures both ways.
func TestRealPrimaries(t *testing.T) {
	dir := mirrortest.Fixtures(t)
	packages, files := 0, 0
	for _, name := range find(t, dir, func(name string) bool {
		return strings.Contains(name, "primary.xml") && !strings.Contains(name, ".zck")
	}) {
		n := len(same(t, name, Limits{}))
		packages, files = packages+n, files+1
		if strings.Contains(name, "osbuild-testrepos/appstream/") && n != 17649 {
			t.Errorf("%s: %d packages, want 17649", name, n)
		}
	}
	t.Logf("%d packages in %d files", packages, files)
	if files < 50 || packages < 20_000 {
		t.Errorf("%d packages in %d files: too few", packages, files)
	}
}

// TestRealFast: the fast reader is for what is out there.
func TestRealFast(t *testing.T) {
	name := find(t, mirrortest.Fixtures(t, "osbuild-testrepos", "appstream", "repodata"), func(name string) bool { return strings.HasSuffix(name, "-primary.xml.gz") })[0]
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, done, err := openFile(f, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	doc, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	n, slow := 0, 0
	for elem := range bytes.SplitAfterSeq(doc[bytes.Index(doc, packageStart):], packageEnd) {
		if elem = bytes.TrimSpace(elem); bytes.HasPrefix(elem, packageStart) {
			if n++; !new(Package).scan(elem) {
				slow++
				t.Logf("left to encoding/xml: %.150q", elem)
			}
		}
	}
	if n != 17649 || slow > 5 {
		t.Errorf("%d of %d packages were left to encoding/xml", slow, n)
	}
}

// wrong are repositories among the fixtures whose repomd.xml is not true: they were made, or cut down, to test just that.
var wrong = []string{
	"libzypp/repo/yum/data/ZCHUNK/", // its primary.xml.gz is cut
}

// TestRealRepomds parses each repomd.xml, follows its records, and reads its primary within the sizes that it declares.
func TestRealRepomds(t *testing.T) {
	dir := mirrortest.Fixtures(t)
	followed, vouched := 0, 0
	for _, name := range find(t, dir, func(name string) bool { return name == "repomd.xml" }) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		md, err := ParseRepomd(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		root, _ := filepath.Rel(dir, filepath.Dir(filepath.Dir(name)))
		root = filepath.ToSlash(root)
		if strings.HasSuffix(path.Dir(name), "repodata") && (len(md.Records) == 0 || md.Record("primary") == nil || md.Age().Timestamp == 0) {
			t.Errorf("%s: %d records, age %+v", name, len(md.Records), md.Age())
		}
		for _, rec := range md.Records {
			p, external, err := Join(root, rec.Base, rec.Href)
			if err != nil || external {
				t.Errorf("%s: %+v leads to %q, %v, %v", name, rec, p, external, err)
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, p))
			if err != nil {
				continue // most fixtures have only what is needed
			}
			followed++
			if slices.ContainsFunc(wrong, func(w string) bool { return strings.HasPrefix(p, w) }) {
				continue
			}
			if rec.Size >= 0 && rec.Size != int64(len(b)) {
				t.Logf("%s has %d bytes, not %d", p, len(b), rec.Size)
				continue
			}
			h := rec.Sum.Algorithm().New()
			h.Write(b)
			if digest.SumOf(rec.Sum.Algorithm(), h) != rec.Sum {
				t.Logf("%s is not %s", p, rec.Sum)
				continue
			}
			vouched++
			if rec.Type == "primary" {
				if _, err := all(bytes.NewReader(b), Limits{Size: rec.Size, OpenSize: rec.OpenSize}); err != nil {
					t.Errorf("%s: %v", p, err)
				}
			}
		}
	}
	t.Logf("%d files found, %d are right", followed, vouched)
	if vouched < 150 {
		t.Errorf("%d files of %d are right: too few", vouched, followed)
	}
}

// TestCreaterepo reads what createrepo_c makes of packages with odd names and texts that are not UTF-8.
func TestCreaterepo(t *testing.T) {
	mirrortest.Need(t, "createrepo_c")
	assets := mirrortest.Fixtures(t, "pulp-fixtures", "rpm")
	rpms := find(t, assets, func(name string) bool { return strings.HasSuffix(name, ".rpm") })
	for _, compression := range []string{"gz", "bz2", "xz", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			out := t.TempDir()
			cmd := exec.Command("createrepo_c", "-q", "--general-compress-type="+compression, "--outputdir="+out, assets)
			if msg, err := cmd.CombinedOutput(); err != nil {
				if bytes.Contains(msg, []byte("Unknown/Unsupported compression")) {
					t.Skipf("createrepo_c is too old: %s", msg)
				}
				t.Fatalf("createrepo_c: %v\n%s", err, msg)
			}
			f, err := os.Open(filepath.Join(out, "repodata", "repomd.xml"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			md, err := ParseRepomd(f)
			if err != nil {
				t.Fatal(err)
			}
			rec := md.Record("primary")
			var hrefs []string
			for _, p := range same(t, filepath.Join(out, rec.Href), Limits{Size: rec.Size, OpenSize: rec.OpenSize}) {
				name, external, err := Join("", p.Base, p.Href)
				b, readErr := os.ReadFile(filepath.Join(assets, name))
				if err != nil || external || readErr != nil {
					t.Fatalf("%+v: %v, %v", p, err, readErr)
				}
				h := p.Sum.Algorithm().New()
				h.Write(b)
				if digest.SumOf(p.Sum.Algorithm(), h) != p.Sum || p.Size != int64(len(b)) || p.Name == "" || p.Arch == "" || p.FileTime == 0 {
					t.Errorf("%+v", p)
				}
				hrefs = append(hrefs, filepath.Join(assets, name))
			}
			slices.Sort(hrefs)
			slices.Sort(rpms)
			if !slices.Equal(hrefs, rpms) {
				t.Errorf("%d packages, want %d", len(hrefs), len(rpms))
			}
		})
	}
}

// TestMirrortest: the other rooms' tests rely on what mirrortest builds.
func TestMirrortest(t *testing.T) {
	repo := mirrortest.Repo{Dir: "../elsewhere"}
	for _, name := range []string{"bash", "libstdc++", "a&b"} {
		repo.Packages = append(repo.Packages, mirrortest.Package{Name: name, Version: "1~rc1^2", Release: "1"})
	}
	files := repo.Files()
	md, err := ParseRepomd(bytes.NewReader(files["repodata/repomd.xml"].Body))
	if err != nil {
		t.Fatal(err)
	}
	rec := md.Record("primary")
	got, err := all(bytes.NewReader(files[rec.Href].Body), Limits{Size: rec.Size, OpenSize: rec.OpenSize})
	if err != nil || len(got) != len(repo.Packages) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, p := range got {
		name, _, err := Join("pub/repo", p.Base, p.Href)
		if want := path.Join("pub/repo", repo.Location(repo.Packages[i])); err != nil || name != want {
			t.Errorf("%+v leads to %q, %v; want %q", p, name, err, want)
		}
		if body := files[repo.Location(repo.Packages[i])].Body; p.Size != int64(len(body)) {
			t.Errorf("%+v has %d bytes", p, len(body))
		}
	}
}
