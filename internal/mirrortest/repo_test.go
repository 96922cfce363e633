package mirrortest

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// awkward are packages with everything that names and relations may hold.
var awkward = []Package{
	{Name: "hello", Version: "2.0~rc1", Release: "1.fc99", Provides: []string{"greeting = 2:1.0-3", "plain"}},
	{Name: "Gtk+extra-c++", Epoch: 3, Version: "3.2.1^20250101git123", Release: "1.fc99", Requires: []string{"hello >= 2.0~rc1", "plain"}, Size: 70_000},
	{Name: "tool", File: "/usr/bin/tool", Requires: []string{"greeting < 2:2.0", "Gtk+extra-c++ = 3:3.2.1^20250101git123-1.fc99"}},
	{Name: "a-config", File: "/etc/a.conf", Content: []byte{}, Built: Epoch.Add(time.Hour)},
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// metadata is what createrepo_c and we must say alike.
type metadata struct {
	Packages int   `xml:"packages,attr"`
	Package  []pkg `xml:"package"`
}

type pkg struct {
	Name    string `xml:"name"`
	Arch    string `xml:"arch"`
	Version struct {
		Epoch string `xml:"epoch,attr"`
		Ver   string `xml:"ver,attr"`
		Rel   string `xml:"rel,attr"`
	} `xml:"version"`
	Checksum struct {
		Type  string `xml:"type,attr"`
		Value string `xml:",chardata"`
	} `xml:"checksum"`
	Summary     string `xml:"summary"`
	Description string `xml:"description"`
	Time        struct {
		File  int64 `xml:"file,attr"`
		Build int64 `xml:"build,attr"`
	} `xml:"time"`
	Size struct {
		Package   int64 `xml:"package,attr"`
		Installed int64 `xml:"installed,attr"`
		Archive   int64 `xml:"archive,attr"`
	} `xml:"size"`
	Location struct {
		Href string `xml:"href,attr"`
	} `xml:"location"`
	Format struct {
		License     string `xml:"license"`
		Group       string `xml:"group"`
		Buildhost   string `xml:"buildhost"`
		Sourcerpm   string `xml:"sourcerpm"`
		HeaderRange struct {
			Start int `xml:"start,attr"`
			End   int `xml:"end,attr"`
		} `xml:"header-range"`
		Provides []entry  `xml:"provides>entry"`
		Requires []entry  `xml:"requires>entry"`
		File     []string `xml:"file"`
	} `xml:"format"`
}

type entry struct {
	Name  string `xml:"name,attr"`
	Flags string `xml:"flags,attr"`
	Epoch string `xml:"epoch,attr"`
	Ver   string `xml:"ver,attr"`
	Rel   string `xml:"rel,attr"`
}

type repomd struct {
	Revision string `xml:"revision"`
	Data     []struct {
		Type     string `xml:"type,attr"`
		Checksum string `xml:"checksum"`
		Open     string `xml:"open-checksum"`
		Location struct {
			Href string `xml:"href,attr"`
		} `xml:"location"`
		Timestamp int64 `xml:"timestamp"`
		Size      int   `xml:"size"`
		OpenSize  int   `xml:"open-size"`
	} `xml:"data"`
}

// readPrimary follows repomd.xml, checking every record on the way.
func readPrimary(t *testing.T, files map[string]File) (md repomd, primary metadata) {
	t.Helper()
	if err := xml.Unmarshal(files["repodata/repomd.xml"].Body, &md); err != nil {
		t.Fatal(err)
	}
	for _, d := range md.Data {
		stored, ok := files[d.Location.Href]
		if !ok {
			t.Fatalf("%s names %s, which is not there", d.Type, d.Location.Href)
		}
		open := stored.Body
		if strings.HasSuffix(d.Location.Href, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(open))
			if err != nil {
				t.Fatal(err)
			}
			if open, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
			if d.Open != sum(open) || d.OpenSize != len(open) {
				t.Errorf("%s: open checksum or size is wrong", d.Type)
			}
		}
		if d.Checksum != sum(stored.Body) || d.Size != len(stored.Body) {
			t.Errorf("%s: checksum or size is wrong", d.Type)
		}
		if d.Type == "primary" {
			if err := xml.Unmarshal(open, &primary); err != nil {
				t.Fatal(err)
			}
		}
	}
	return md, primary
}

func TestRepo(t *testing.T) {
	when := Epoch.Add(24 * time.Hour)
	for _, r := range []Repo{
		{Packages: awkward},
		{Packages: awkward, Time: when, Fixed: true, Revision: "9-stream"},
		{Packages: awkward, Time: when, Plain: true, Dir: "."},
		{Packages: awkward[:1], Dir: "../common/Packages", Extra: map[string][]byte{"group": []byte("<comps/>\n")}},
		{},
	} {
		files := r.Files()
		if !reflect.DeepEqual(files, r.Files()) {
			t.Error("built twice, two results")
		}
		md, primary := readPrimary(t, files)
		if len(md.Data) != 3+len(r.Extra) || primary.Packages != len(r.Packages) || len(primary.Package) != len(r.Packages) {
			t.Errorf("%d records, %d packages", len(md.Data), len(primary.Package))
		}
		for _, d := range md.Data {
			base := path.Base(d.Location.Href)
			if fixed := !strings.Contains(base, "-"); fixed != r.Fixed {
				t.Errorf("name %s", base)
			}
			if r.Time.Equal(when) && d.Timestamp != when.Unix() || !r.Time.IsZero() && !files[d.Location.Href].ModTime.Equal(when) {
				t.Errorf("%s: wrong time", base)
			}
		}
		for _, p := range primary.Package {
			f, ok := files[p.Location.Href]
			if !ok || p.Checksum.Value != sum(f.Body) || int(p.Size.Package) != len(f.Body) || p.Time.File != f.ModTime.Unix() {
				t.Errorf("%s: not as primary says", p.Location.Href)
			}
			if !strings.HasPrefix(p.Location.Href, map[string]string{"": "Packages/" + strings.ToLower(p.Name[:1]), ".": p.Name, "../common/Packages": "../common"}[r.Dir]) {
				t.Errorf("%s stands in the wrong place", p.Location.Href)
			}
		}
	}
}

func TestPackageSeed(t *testing.T) {
	a, b := Package{Name: "x", Seed: 1}.Build(), Package{Name: "x", Seed: 2}.Build()
	if bytes.Equal(a.Bytes, b.Bytes) || a.FileName() != b.FileName() {
		t.Error("another seed must give the same name with other bytes")
	}
	if !bytes.HasPrefix(Bytes(1, 100), Bytes(1, 10)) || bytes.Equal(Bytes(1, 10), Bytes(2, 10)) {
		t.Error("Bytes")
	}
}

// TestRPM has the real rpm read our packages.
func TestRPM(t *testing.T) {
	Need(t, "rpm")
	dir, db := t.TempDir(), t.TempDir() // no user's database is there, nor touched
	WriteTree(t, dir, Repo{Packages: awkward, Dir: "."}.Files())
	for _, p := range awkward {
		name := filepath.Join(dir, p.FileName())
		if out := run(t, "rpm", "--dbpath", db, "-Kv", name); strings.Count(out, ": OK\n") < 4 || strings.Contains(out, "BAD") || !strings.Contains(out, "Payload SHA256 digest: OK") {
			t.Error(out)
		}
		p = p.filled()
		epoch := "(none)"
		if p.Epoch != 0 {
			epoch = fmt.Sprint(p.Epoch)
		}
		want := fmt.Sprintf("%s %s %s %s noarch %d %s\n", p.Name, epoch, p.Version, p.Release, len(p.Content), p.File)
		if out := run(t, "rpm", "--dbpath", db, "-qp", "--qf", `%{NAME} %{EPOCH} %{VERSION} %{RELEASE} %{ARCH} %{SIZE} [%{FILENAMES}]\n`, name); out != want {
			t.Errorf("got %s, want %s", out, want)
		}
		out := strings.Fields(run(t, "rpm", "--dbpath", db, "-qp", "--requires", name))
		for _, r := range p.Requires {
			if !slices.Contains(out, strings.Fields(r)[0]) {
				t.Errorf("%s: requires %v", p.Name, out)
			}
		}
	}
}

// TestCreaterepo compares our primary with what the real createrepo_c makes of our
// packages.
func TestCreaterepo(t *testing.T) {
	Need(t, "createrepo_c")
	ours := Repo{Packages: awkward}.Files()
	dir := t.TempDir()
	WriteTree(t, dir, ours)
	if err := os.RemoveAll(filepath.Join(dir, "repodata")); err != nil {
		t.Fatal(err)
	}
	run(t, "createrepo_c", "-q", "--no-database", "--general-compress-type=gz", dir)
	theirs := make(map[string]File)
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		b, err := os.ReadFile(name)
		theirs[filepath.ToSlash(rel)] = File{Body: b}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, a := readPrimary(t, ours)
	_, b := readPrimary(t, theirs)
	for _, m := range []metadata{a, b} {
		for _, p := range m.Package {
			byName := func(x, y entry) int { return strings.Compare(x.Name, y.Name) }
			slices.SortFunc(p.Format.Requires, byName)
			slices.SortFunc(p.Format.Provides, byName)
		}
		slices.SortFunc(m.Package, func(x, y pkg) int { return strings.Compare(x.Location.Href, y.Location.Href) })
	}
	got, want := fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b)
	if got != want {
		t.Errorf("ours:\n%s\ncreaterepo_c's:\n%s", got, want)
	}
}

// TestDNF has the real dnf install from a repository of ours on an Upstream.
func TestDNF(t *testing.T) {
	Need(t, "dnf", "rpm")
	if os.Geteuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	u := NewUpstream(t)
	for _, r := range []Repo{{Packages: awkward}, {Packages: awkward, Fixed: true, Plain: true, Dir: "../common"}} {
		u.Remove("")
		u.Reset()
		u.PutTree("pub/os", r.Files())
		root := t.TempDir()
		out := run(t, "dnf", "--installroot="+root, "--releasever=99", "--noplugins", "--repofrompath=t,"+u.URL+"/pub/os", "--repo=t", "--nogpgcheck", "-y", "install", "tool", "a-config")
		if out := run(t, "rpm", "--root="+root, "-qa"); len(strings.Fields(out)) != len(awkward) {
			t.Errorf("installed: %s", out)
		}
		if out := run(t, "rpm", "--root="+root, "-Va"); out != "" {
			t.Errorf("rpm -Va: %s", out)
		}
		for _, r := range u.Requests() {
			if r.Status != 200 || r.Cut {
				t.Errorf("%s\n%s", r, out)
			}
		}
		if n := u.Count("**/*.rpm"); n != len(awkward) {
			t.Errorf("%d packages asked for:\n%s", n, u.Log())
		}
	}
}
