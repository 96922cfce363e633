package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const osPath = "releases/99/Everything/x86_64/os"

func profileText(name string, upstreams, more string) string {
	return fmt.Sprintf("name: %s\npath: /pub/%s\nenabled: true\nupstreams: [%s]\n%s\n", name, name, upstreams, more)
}

// sh runs a command of some package and returns what it printed.
func sh(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// fetched are the requests that up saw, but for the daemon's look at its upstreams when it starts.
func fetched(up *mirrortest.Upstream) []mirrortest.Request {
	return slices.DeleteFunc(up.Requests(), func(r mirrortest.Request) bool { return r.Method == http.MethodHead })
}

// must is sh of what must succeed.
func must(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	out, err := sh(t, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// client is a machine with dnf, empty but for what it installs.
type client struct {
	t     *testing.T
	root  string
	repos []string
}

func newClient(t *testing.T, repos ...string) *client {
	return &client{t, t.TempDir(), repos}
}

func (c *client) try(args ...string) (string, error) {
	c.t.Helper()
	all := []string{"--installroot=" + c.root, "--releasever=99", "--noplugins", "-y", "--nogpgcheck"}
	for i, url := range c.repos {
		all = append(all, fmt.Sprintf("--repofrompath=r%d,%s", i, url))
	}
	return sh(c.t, c.root, "dnf", append(all, args...)...)
}

func (c *client) dnf(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("dnf %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// installed fails the test unless the package is there with its files.
func (c *client) installed(name, nevra string) {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.root, "usr/share", name, "ver"))
	if err != nil || strings.TrimSpace(string(b)) != nevra {
		c.t.Errorf("%s is %q, %v; want %s", name, b, err, nevra)
	}
}

// packages are what the tests' repositories hold: names with the characters that make trouble.
var packages = [][]string{
	{"hello", "2.0~rc1", "1"},
	{"world", "1.0^20250101git1234567", "0"},
	{"gtk+extra-c++", "3.2.1", "0"},
}

// buildRepo makes a real repository by rpmbuild and createrepo_c, with metadata compressed by kind.
func buildRepo(t *testing.T, dir, kind string) {
	t.Helper()
	top := t.TempDir()
	spec := filepath.Join(top, "sample.spec")
	if err := os.WriteFile(spec, []byte(sampleSpec), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		args := []string{"-bb", "--quiet", "--nodeps", "--define", "_topdir " + top, "--define", "pkgname " + p[0], "--define", "pkgver " + p[1]}
		if p[2] != "0" {
			args = append(args, "--define", "pkgepoch "+p[2])
		}
		must(t, top, "rpmbuild", append(args, spec)...)
	}
	rpms, err := filepath.Glob(filepath.Join(top, "RPMS/*/*.rpm"))
	if err != nil || len(rpms) != len(packages) {
		t.Fatal(rpms, err)
	}
	for _, rpm := range rpms {
		name := filepath.Base(rpm)
		to := filepath.Join(dir, "Packages", name[:1], name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(rpm, to); err != nil {
			t.Fatal(err)
		}
	}
	must(t, dir, "createrepo_c", "-q", "--general-compress-type="+kind, dir)
}

const sampleSpec = `
%global _build_id_links none
Name: %{pkgname}
%{?pkgepoch:Epoch: %{pkgepoch}}
Version: %{pkgver}
Release: 1.fc99
Summary: Sample package %{pkgname}
License: MIT
BuildArch: noarch
%description
Sample.
%install
mkdir -p %{buildroot}/usr/share/%{name}
echo "%{name}-%{version}-%{release}" > %{buildroot}/usr/share/%{name}/ver
head -c 40k /dev/urandom > %{buildroot}/usr/share/%{name}/pad
%files
/usr/share/%{name}
`

// TestDNF is the main job with the real client: cold, warm, upstream gone; then a second profile, and a fallback.
func TestDNF(t *testing.T) {
	mirrortest.Need(t, "dnf", "rpmbuild", "createrepo_c")
	if os.Getuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	for _, kind := range []string{"gz", "xz"} {
		t.Run(kind, func(t *testing.T) {
			tree := t.TempDir()
			buildRepo(t, tree, kind)
			up := mirrortest.NewUpstream(t)
			up.PutDir("fedora/"+osPath, tree)
			dir := t.TempDir()
			profileFile(t, dir, "one", profileText("one", up.URL+"/fedora", ""))
			configFile(t, dir, "")
			d := serve(t, dir)
			repo := d.url + "/pub/one/" + osPath

			cold := newClient(t, repo)
			cold.dnf("makecache")
			cold.dnf("install", "hello", "world", "gtk+extra-c++")
			cold.installed("hello", "hello-2.0~rc1-1.fc99")
			cold.installed("world", "world-1.0^20250101git1234567-1.fc99")
			cold.installed("gtk+extra-c++", "gtk+extra-c++-3.2.1-1.fc99")
			for _, r := range fetched(up) {
				if n := up.Count(r.Path); n != 1 {
					t.Errorf("upstream was asked %d times for %s", n, r.Path)
				}
			}
			same(t, d.root()+"/pub/one/"+osPath, tree)
			d.stop()                                                                      // all that was fetched is stored by then
			if n := len(d.files()); n != len(fetched(up))-up.Count("**/repomd.xml.asc") { // which is not there
				t.Errorf("%d files are stored: %v, of\n%s", n, d.files(), up.Log())
			}
			d = serve(t, dir)
			repo = d.url + "/pub/one/" + osPath
			cold.repos = []string{repo}

			// A second machine, and the first one again: upstream is not asked for anything.
			up.Reset()
			newClient(t, repo).dnf("install", "hello", "gtk+extra-c++")
			cold.dnf("makecache", "--refresh")
			if n := len(fetched(up)); n != 0 {
				t.Errorf("warm: upstream saw\n%s", up.Log())
			}

			up.Stop()
			newClient(t, repo).dnf("install", "world")
			d.stop()
			d = serve(t, dir) // a daemon that starts while upstream is gone knows what it knew
			last := newClient(t, d.url+"/pub/one/"+osPath)
			last.dnf("install", "hello", "world")
			last.installed("hello", "hello-2.0~rc1-1.fc99")
		})
	}
}

// TestPointerCheck: when its refresh is over, the pointer alone is asked for, conditionally.
func TestPointerCheck(t *testing.T) {
	mirrortest.Need(t, "dnf")
	if os.Getuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	up := mirrortest.NewUpstream(t)
	up.PutTree("fedora/"+osPath, mirrortest.Repo{Packages: []mirrortest.Package{{Name: "hello"}}}.Files())
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/fedora", "expiry: [{match: '**', refresh: 1s}]"))
	configFile(t, dir, "")
	d := serve(t, dir)
	c := newClient(t, d.url+"/pub/one/"+osPath)
	c.dnf("install", "hello")
	// Metadata are asked for once; each run of dnf comes at least a second after the one before.
	up.Reset()
	newClient(t, c.repos...).dnf("install", "hello")
	for _, r := range fetched(up) {
		if !strings.HasSuffix(r.Path, "/repomd.xml") || r.Status != http.StatusNotModified {
			t.Errorf("upstream saw %v", r)
		}
	}
}

// TestFallbackAndTwoProfiles: one profile's upstream is dead and its fallback serves; another one is well.
func TestFallbackAndTwoProfiles(t *testing.T) {
	mirrortest.Need(t, "dnf")
	if os.Getuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	dead, fallback, other := mirrortest.NewUpstream(t), mirrortest.NewUpstream(t), mirrortest.NewUpstream(t)
	fallback.PutTree("some/prefix/"+osPath, mirrortest.Repo{Packages: []mirrortest.Package{{Name: "hello"}}}.Files())
	other.PutTree("x/"+osPath, mirrortest.Repo{Packages: []mirrortest.Package{{Name: "extra", Requires: []string{"hello"}}}}.Files())
	dead.Stop()
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", dead.URL+"/fedora", "fallbacks: ["+fallback.URL+"/some/prefix]"))
	profileFile(t, dir, "two", profileText("two", other.URL+"/x", ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	c := newClient(t, d.url+"/pub/one/"+osPath, d.url+"/pub/two/"+osPath)
	c.dnf("install", "extra")
	for _, name := range []string{"extra", "hello"} {
		if _, err := os.Stat(filepath.Join(c.root, "usr/share", name)); err != nil {
			t.Error(err)
		}
	}
	var tops []string
	for _, f := range d.files() {
		tops = append(tops, strings.Join(strings.Split(f, "/")[:2], "/"))
	}
	slices.Sort(tops)
	if got := slices.Compact(tops); !slices.Equal(got, []string{"pub/one", "pub/two"}) {
		t.Errorf("files stand below %v", got)
	}
}

// TestZstd reads a real repository with zstd metadata through the mirror.
func TestZstd(t *testing.T) {
	mirrortest.Need(t, "dnf")
	history := mirrortest.Fixtures(t, "azurelinux-zst-history")
	if os.Getuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	snaps, err := filepath.Glob(filepath.Join(history, "snap0*"))
	if err != nil || len(snaps) == 0 {
		t.Fatal(snaps, err)
	}
	up := mirrortest.NewUpstream(t)
	up.PutDir("os", snaps[0])
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL, ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	c := newClient(t, d.url+"/pub/one/os")
	c.dnf("makecache")
	if out := c.dnf("list", "--available"); !strings.Contains(out, "gstreamer1-plugins-ugly.x86_64") {
		t.Errorf("dnf lists\n%s", out)
	}
	same(t, d.root()+"/pub/one/os", snaps[0])
}

// TestRealRepositories reads real repositories through the mirror, byte for byte.
func TestRealRepositories(t *testing.T) {
	fixtures := mirrortest.Fixtures(t)
	up := mirrortest.NewUpstream(t)
	up.PutDir("", fixtures)
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL, ""))
	configFile(t, dir, "log: {access: false}\n")
	d := serve(t, dir)
	read, have := 0, map[string]bool{}
	for _, repo := range []string{"osbuild-testrepos", "osbuild-images-testrepo", "azurelinux-zst-history", "librepo", "libzypp", "generated", "productmd"} {
		err := filepath.WalkDir(filepath.Join(fixtures, repo), func(file string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, _ := filepath.Rel(fixtures, file)
			if ext := filepath.Ext(rel); ext == ".html" || ext == ".htm" {
				return nil
			}
			want, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			resp, err := http.Get(d.url + "/pub/one/" + (&url.URL{Path: rel}).EscapedPath())
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("%s: %s, %d bytes of %d, %v", rel, resp.Status, len(got), len(want), err)
			}
			read++
			have["pub/one/"+rel] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if read < 200 {
		t.Errorf("only %d files were read", read)
	}
	d.stop() // all that was fetched is stored by then
	same(t, d.root()+"/pub/one", fixtures)
	for _, f := range d.files() {
		delete(have, f)
	}
	for f := range have { // these repositories' repomd.xml, which is asked for after them, means other bytes by their names
		if !strings.HasPrefix(f, "pub/one/libzypp/repo/yum/data/") {
			t.Errorf("%s is not stored", f)
		}
	}
}

// same fails the test unless each file below got is in want, with the same bytes and the same second of modification.
func same(t *testing.T, got, want string) {
	t.Helper()
	err := filepath.WalkDir(got, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(got, file)
		a, err1 := os.ReadFile(file)
		b, err2 := os.ReadFile(filepath.Join(want, rel))
		if err1 != nil || err2 != nil || sha256.Sum256(a) != sha256.Sum256(b) {
			t.Errorf("%s differs: %v %v", rel, err1, err2)
			return nil
		}
		ai, _ := os.Stat(file)
		bi, _ := os.Stat(filepath.Join(want, rel))
		if ai.ModTime().Unix() != bi.ModTime().Unix() || ai.Mode() != 0o644 {
			t.Errorf("%s is of %v, %v; upstream's is of %v", rel, ai.ModTime(), ai.Mode(), bi.ModTime())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
