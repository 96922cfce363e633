package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestOtherMirror: a command that means another mirror than the daemon's does nothing to either.
func TestOtherMirror(t *testing.T) {
	w := newAdminWorld(t, "socket: "+filepath.Join(t.TempDir(), "admin.sock")+"\n")
	w.get("/repodata/repomd.xml", "/Packages/a-1.0-1.noarch.rpm")
	other := filepath.Join(t.TempDir(), "other")
	for _, test := range []struct {
		command string
		args    []string
		want    string
	}{
		{"expire", []string{"--root", other, tree}, "has the root " + w.dir + "/root, and not " + other},
		{"prune", []string{"--root", other}, other},
		{"verify", []string{"--root", other, "--repair"}, other},
		{"status", []string{"--state", other}, "has the state " + w.dir + "/state, and not " + other},
		{"prune", []string{"--profile", "fedora"}, "leave --profile out"},
		{"verify", []string{"--profile", "fedora"}, "leave --profile out"},
	} {
		w.want(2, test.command, test.args, test.want)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("a root was made")
	}
	if w.stored(tree+"/Packages/a-1.0-1.noarch.rpm") == nil {
		t.Error("the daemon's mirror lost a file")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(w.dir, "root"), link); err != nil {
		t.Fatal(err)
	}
	w.want(0, "status", []string{"--root", link})
}

// TestRootAlone: what was served by --root and --profile is found by --root.
func TestRootAlone(t *testing.T) {
	w := &adminWorld{t: t, up: mirrortest.NewUpstream(t), dir: t.TempDir()}
	w.push(repoOf(0, pkgA))
	profileFile(t, w.dir, "one", profileText("one", w.up.URL+"/x", ""))
	root, profile := filepath.Join(w.dir, "root"), filepath.Join(w.dir, "profiles.d/one.yaml")
	d := &daemonProcess{t: t, dir: w.dir, done: make(chan struct{})}
	d.Cmd = program(t, "serve", "--listen", "127.0.0.1:0", "--root", "root", "--profile", "profiles.d/one.yaml")
	d.Dir = w.dir
	d.begin()
	w.daemon = d
	w.get("/repodata/repomd.xml")
	for _, args := range [][]string{
		{"status", "--root", root}, {"status", "--root", root, "--profile", profile}, {"refresh", "--root", root, tree},
		{"verify", "--root", root}, {"why", "--root", root, tree},
	} {
		if out, status := once(t, args...); status != 0 {
			t.Errorf("%v: exit status %d: %s", args, status, out)
		}
	}
	d.stop()
	if out, status := once(t, "status", "--root", root); status != 2 || !strings.Contains(out, "give the --profile") {
		t.Errorf("without a daemon: exit status %d: %s", status, out)
	}
	if out, status := once(t, "status", "--root", root, "--profile", profile); status != 0 {
		t.Errorf("without a daemon: exit status %d: %s", status, out)
	}
}

// TestNoMirror: where there is none, or no state of it, nothing is said to be right, and nothing is made.
func TestNoMirror(t *testing.T) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml")
	w.daemon.stop()
	plain, state := t.TempDir(), filepath.Join(t.TempDir(), "none")
	w.want(2, "verify", []string{"--root", plain}, plain+" is no mirror")
	w.want(2, "status", []string{"--state", state}, "there is no state directory "+state)
	w.want(2, "why", []string{"--state", state, tree}, state)
	if _, err := os.Stat(state); err == nil {
		t.Error("a state was made")
	}
	if made, err := os.ReadDir(plain); err != nil || len(made) > 0 {
		t.Errorf("a mirror was made: %v, %v", made, err)
	}
}

// TestRepairPrimary: packages are judged by the primary that --repair brought back, be it damaged or gone before.
func TestRepairPrimary(t *testing.T) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml", "/Packages/a-1.0-1.noarch.rpm")
	w.want(0, "refresh", []string{tree}, "unchanged")
	const rpm = "pub/one/os/Packages/a-1.0-1.noarch.rpm"
	right, primary := w.stored(rpm), ""
	for name := range w.files {
		if strings.HasSuffix(name, "-primary.xml.gz") {
			primary = "pub/one/os/" + name
		}
	}
	mended := func() {
		t.Helper()
		w.want(0, "verify", []string{"--repair"}, "/"+primary+": fetched", "/"+rpm+": damaged", "/"+rpm+": fetched again")
		if string(w.stored(rpm)) != string(right) {
			t.Error("the package is not mended")
		}
		if v := object[verified](w, 0, "verify"); v.Unjudged != 0 || len(v.Findings) != 0 {
			t.Errorf("afterwards: %+v", v)
		}
	}
	w.damage(rpm)
	w.damage(primary)
	w.want(1, "verify", nil, "/"+primary+": damaged", "1 package could not be judged")
	mended()

	w.damage(rpm)
	if err := os.Remove(filepath.Join(w.dir, "root", primary)); err != nil {
		t.Fatal(err)
	}
	w.want(0, "verify", nil, "1 package could not be judged: the primary of "+tree+" is not here", "--repair fetches it")
	if v := object[verified](w, 0, "verify"); v.Unjudged != 1 || len(v.Blind) != 1 || v.Blind[0] != "/"+primary {
		t.Errorf("%+v", v)
	}
	mended()

	// Nobody has it: what was not judged is told of, and it was asked for.
	w.damage(rpm)
	if err := os.Remove(filepath.Join(w.dir, "root", primary)); err != nil {
		t.Fatal(err)
	}
	w.up.Stop()
	w.want(1, "verify", []string{"--repair"}, "not here, and not had", "1 package could not be judged", "1 file could not be mended")
}

// TestFileNames: a file of the tree has its name there, too.
func TestFileNames(t *testing.T) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml", "/Packages/a-1.0-1.noarch.rpm")
	w.want(0, "refresh", []string{tree}, "unchanged")
	for _, test := range []struct{ dir, arg string }{
		{"", "root/pub/one/os/repodata/repomd.xml"}, {"", "./root/pub/one/os/repodata/repomd.xml"}, {"root", "pub/one/os/repodata/repomd.xml"},
		{"root/pub/one", "os/repodata/repomd.xml"}, {"root/pub/one/os/Packages", "../repodata/repomd.xml"}, {"state", "pub/one/os/repodata/repomd.xml"},
	} {
		cmd := program(t, "why", "--config", w.config, test.arg)
		cmd.Dir = filepath.Join(w.dir, test.dir)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), tree+"/repodata/repomd.xml\n") {
			t.Errorf("in %s: %s: %v: %s", test.dir, test.arg, err, out)
		}
		if flat := strings.Join(strings.Fields(string(out)), " "); !strings.Contains(flat, "expected the pointer of generation ") || !strings.Contains(flat, ", not signed") {
			t.Errorf("what it is to be is not said:\n%s", out)
		}
	}
}

// TestVetoLifted: refresh --force says what becomes of what a veto kept.
func TestVetoLifted(t *testing.T) {
	w := newAdminWorld(t, "")
	var packages []mirrortest.Package
	names := []string{"/repodata/repomd.xml"}
	for i := range 51 {
		packages = append(packages, mirrortest.Package{Name: fmt.Sprintf("many%d", i)})
		names = append(names, fmt.Sprintf("/Packages/many%d-1.0-1.noarch.rpm", i))
	}
	w.push(repoOf(0, packages...))
	w.get(names...)
	w.want(0, "refresh", []string{tree}, "unchanged")
	w.push(repoOf(1, pkgC))
	w.want(0, "refresh", []string{tree}, "published", "veto: it would delete 51 of ")
	w.want(0, "why", []string{tree + names[1]}, "kept by the veto")
	w.want(0, "refresh", []string{"--force", tree}, "unchanged; the veto is lifted: the 51 of ")
	if v := w.want(0, "refresh", []string{"--force", tree}); strings.Contains(v, "lifted") {
		t.Error(v)
	}
}
