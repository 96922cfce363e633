package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// zypper is a machine with zypper, empty but for what it installs.
type zypper struct {
	t          *testing.T
	tool, root string
}

// newZypper is a machine that has the repository at url.
func newZypper(t *testing.T, url string) *zypper {
	t.Helper()
	z := &zypper{t, mirrortest.Tool(t, "zypper"), t.TempDir()}
	z.run("addrepo", "--no-gpgcheck", url, "r")
	return z
}

func (z *zypper) run(args ...string) string {
	z.t.Helper()
	libs, err := filepath.Glob(z.tool + "/usr/lib/*-linux-gnu")
	if err != nil || len(libs) != 1 {
		z.t.Fatal(libs, err)
	}
	return must(z.t, z.root, "env", append([]string{
		"PATH=" + z.tool + "/usr/bin:" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + libs[0], "LC_ALL=C.UTF-8",
		"zypper", "--root", z.root, "--non-interactive", "--no-gpg-checks",
	}, args...)...)
}

// install refreshes and installs packages, and fails the test unless they are there.
func (z *zypper) install(names ...string) {
	z.t.Helper()
	z.run("refresh")
	z.run(append([]string{"install"}, names...)...)
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(z.root, "usr/share", name)); err != nil {
			z.t.Error(err)
		}
	}
}

// probes are what zypper looks for beside repomd.xml and lives without.
var probes = []string{"media.1/media", "repodata/repomd.xml.asc", "repodata/repomd.xml.key"}

// TestZypper is the main job with zypper: cold, warm, upstream gone, and the daemon started anew while it is.
func TestZypper(t *testing.T) {
	mirrortest.Need(t, "rpm")
	mirrortest.Tool(t, "zypper", "usr/bin/zypper")
	if os.Getuid() != 0 {
		t.Skip("zypper --root needs root")
	}
	repo := mirrortest.Repo{Packages: []mirrortest.Package{
		{Name: "hello", Version: "2.0~rc1", Epoch: 1}, {Name: "world", Version: "1.0^20250101git1234567"}, {Name: "gtk+extra-c++"},
	}}
	up := mirrortest.NewUpstream(t)
	up.PutTree("suse/"+osPath, repo.Files())
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/suse", "expiry: [{match: '**', refresh: 1s}]"))
	configFile(t, dir, "")
	d := serve(t, dir)
	base := "/pub/one/" + osPath
	isProbe := func(path string) bool {
		return slices.ContainsFunc(probes, func(p string) bool { return strings.HasSuffix(path, osPath+"/"+p) })
	}
	isPointerCheck := func(r mirrortest.Request) bool {
		return strings.HasSuffix(r.Path, "/repomd.xml") && r.Status == http.StatusNotModified
	}

	begun := time.Now()
	newZypper(t, d.url+base).install("hello", "world", "gtk+extra-c++")
	missed := make(map[string]bool)
	for _, r := range fetched(up) {
		if isPointerCheck(r) {
			continue
		}
		if missed[r.Path] || isProbe(r.Path) != (r.Status == http.StatusNotFound) {
			t.Errorf("cold: upstream saw %v in\n%s", r, up.Log())
		}
		missed[r.Path] = true
	}
	// repomd.xml, primary, three packages; and the probes, so that what follows is about them. Where there is no .asc, nobody
	// looks for a .key.
	if len(missed) != 5+len(probes)-1 {
		t.Errorf("cold: upstream saw\n%s", up.Log())
	}

	up.Reset()
	warm := newZypper(t, d.url+base)
	warm.install("hello", "world", "gtk+extra-c++")
	warm.run("refresh")
	warm.run("refresh", "--force")
	for _, r := range fetched(up) {
		old := isProbe(r.Path) && time.Since(begun) > time.Minute // absence is believed that long
		if !isPointerCheck(r) && !old {
			t.Errorf("warm: upstream saw %v", r)
		}
	}

	up.Stop()
	mark := len(d.logged())
	newZypper(t, d.url+base).install("hello", "world")
	warm.run("refresh", "--force")
	d.probed(mark, http.StatusNotFound)

	d.stop()
	d = serve(t, dir)
	newZypper(t, d.url+base).install("hello", "gtk+extra-c++")
	// What does not exist upstream is not remembered beyond a restart: nobody can tell now, and zypper takes that for an
	// absence. To know it still would be as right.
	d.probed(0, http.StatusNotFound, http.StatusBadGateway)
}

// probed fails the test unless zypper made all its probes in the access log from mark on, and each was answered by one
// of the statuses.
func (d *daemonProcess) probed(mark int, statuses ...int) {
	d.t.Helper()
	for _, probe := range probes {
		for _, a := range d.accesses(d.t, mark, osPath+"/"+probe, 1) {
			if !slices.Contains(statuses, a.status) {
				d.t.Errorf("%+v, not %v", a, statuses)
			}
		}
	}
}
