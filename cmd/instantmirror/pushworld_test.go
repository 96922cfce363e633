package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// pushPath is the URL path of the repository that is pushed to.
const pushPath = "/pub/one/os"

// pushSpec is of a package whose builds differ by what they are told in "note".
const pushSpec = `
%global _build_id_links none
Name: %{pkgname}
Version: %{pkgver}
Release: 1.fc99
Summary: Sample package %{pkgname}
License: MIT
BuildArch: noarch
%description
Sample.
%install
mkdir -p %{buildroot}/usr/share/%{name}
echo "%{name}-%{version}-%{release}%{?note: %{note}}" > %{buildroot}/usr/share/%{name}/ver
%files
/usr/share/%{name}
`

// pushBuilds are packages by rpmbuild: name, version, note. What has the same name and version has the same NEVRA.
var pushBuilds = [][3]string{{"hello", "1", ""}, {"hello", "1", "again"}, {"hello", "2", ""}, {"world", "1", ""}, {"extra", "1", ""}}

// The packages of pushBuilds, as pushes name them.
const (
	hello1, hello1Again, hello2, world1, extra1 = "hello-1", "hello-1 again", "hello-2", "world-1", "extra-1"
)

// buildPushed builds them, and returns their files.
func buildPushed(t *testing.T) map[string]string {
	t.Helper()
	top := t.TempDir()
	spec := filepath.Join(top, "sample.spec")
	if err := os.WriteFile(spec, []byte(pushSpec), 0o644); err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for i, b := range pushBuilds {
		args := []string{"-bb", "--quiet", "--nodeps", "--define", fmt.Sprintf("_topdir %s/%d", top, i), "--define", "pkgname " + b[0], "--define", "pkgver " + b[1]}
		if b[2] != "" {
			args = append(args, "--define", "note "+b[2])
		}
		must(t, top, "rpmbuild", append(args, spec)...)
		files[strings.TrimSpace(b[0]+"-"+b[1]+" "+b[2])] = fmt.Sprintf("%s/%d/RPMS/noarch/%s-%s-1.fc99.noarch.rpm", top, i, b[0], b[1])
	}
	return files
}

// pushWorld is an upstream whose repository changes, and a mirror of it.
type pushWorld struct {
	t     *testing.T
	up    *mirrortest.Upstream
	rpms  map[string]string // name as in a push → file
	flags []string          // for createrepo_c
	sign  func(file string) // makes file.asc; nil: nothing is signed
	made  int               // generations
	conf  string
	*daemonProcess
}

// newPushWorld makes a mirror whose profile has more. %s in that is upstream's URL.
func newPushWorld(t *testing.T, rpms map[string]string, more string, flags ...string) *pushWorld {
	t.Helper()
	w := &pushWorld{t: t, up: mirrortest.NewUpstream(t), rpms: rpms, flags: flags}
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", w.up.URL+"/x", strings.ReplaceAll(more, "%s", w.up.URL)))
	w.conf = configFile(t, dir, "")
	w.daemonProcess = serve(t, dir)
	return w
}

// generation makes a repository of the packages, an hour after the one before, and returns its directory.
func (w *pushWorld) generation(rpms ...string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	for _, name := range rpms {
		file := w.rpms[name]
		to := filepath.Join(dir, "Packages", filepath.Base(file))
		err := os.MkdirAll(filepath.Dir(to), 0o755)
		if err == nil {
			err = os.Link(file, to)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.createrepo(dir)
	return dir
}

var timestamps = regexp.MustCompile(`<timestamp>\d+</timestamp>`)

// createrepo makes the metadata of dir, of the time that is next.
func (w *pushWorld) createrepo(dir string) {
	w.t.Helper()
	w.made++
	at := mirrortest.Epoch.Add(time.Duration(w.made) * time.Hour)
	must(w.t, dir, "createrepo_c", append(append([]string{"-q", "--general-compress-type=gz", "--revision", fmt.Sprint(at.Unix())}, w.flags...), dir)...)
	pointer := filepath.Join(dir, "repodata/repomd.xml")
	b, err := os.ReadFile(pointer)
	if err != nil {
		w.t.Fatal(err)
	}
	b = timestamps.ReplaceAll(b, fmt.Appendf(nil, "<timestamp>%d</timestamp>", at.Unix()))
	if err := os.WriteFile(pointer, b, 0o644); err != nil {
		w.t.Fatal(err)
	}
	if w.sign != nil {
		w.sign(pointer)
	}
	files, err := filepath.Glob(filepath.Join(dir, "repodata/*"))
	for _, file := range files {
		if err == nil {
			err = os.Chtimes(file, at, at)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// put makes upstream have a generation, and nothing else.
func (w *pushWorld) put(dir string) { w.up.PutDir("x/os", dir) }

// push is put of a new generation of the packages.
func (w *pushWorld) push(rpms ...string) (dir string) {
	w.t.Helper()
	dir = w.generation(rpms...)
	w.put(dir)
	return dir
}

// refresh has the mirror look, fails the test unless that comes to what, and returns what is said of it.
func (w *pushWorld) refresh(what string, args ...string) string {
	w.t.Helper()
	out, status := once(w.t, append([]string{"refresh", "--config", w.conf, pushPath}, args...)...)
	if status != 0 && what != "failed" || !strings.HasPrefix(out, pushPath+": "+what) {
		w.t.Fatalf("refresh says %d: %s, want %s; upstream saw\n%s", status, out, what, w.up.Log())
	}
	return out
}

// pushed is push and refresh.
func (w *pushWorld) pushed(rpms ...string) (dir string) {
	w.t.Helper()
	dir = w.push(rpms...)
	w.refresh("published")
	w.serves(dir)
	return dir
}

// serves fails the test unless the mirror has just the pointer of that generation, signature and all.
func (w *pushWorld) serves(dir string) {
	w.t.Helper()
	for _, name := range []string{"/repodata/repomd.xml", "/repodata/repomd.xml.asc"} {
		want, err := os.ReadFile(dir + name)
		status, got, _ := w.get(pushPath + name)
		switch {
		case err == nil && (status != 200 || got != string(want)):
			w.t.Errorf("%s: %d, not that of the generation that should be served:\n%s", name, status, got)
		case err != nil && status != 404:
			w.t.Errorf("%s: %d, want 404", name, status)
		}
	}
}

// place is where a package of a push stands in the tree, if it does.
func (w *pushWorld) place(rpm string) string {
	return filepath.Join(w.root(), pushPath, "Packages", filepath.Base(w.rpms[rpm]))
}

// holds fails the test unless just these packages are stored.
func (w *pushWorld) holds(rpms ...string) {
	w.t.Helper()
	var want, got []string
	for _, name := range rpms {
		file, err := os.ReadFile(w.place(name))
		build, err2 := os.ReadFile(w.rpms[name])
		if err != nil || err2 != nil || !bytes.Equal(file, build) {
			w.t.Errorf("%s is not stored as it should be: %d bytes, %v", name, len(file), err)
		}
		want = append(want, filepath.Base(w.rpms[name]))
	}
	for _, file := range w.files() {
		if strings.HasSuffix(file, ".rpm") {
			got = append(got, filepath.Base(file))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("stored are %v, want %v", got, want)
	}
}

// fetchedOnly fails the test unless upstream was asked for just these packages since the last Reset, once each.
func (w *pushWorld) fetchedOnly(rpms ...string) {
	w.t.Helper()
	for name, file := range w.rpms {
		n, want := w.up.Count("x/os/Packages/"+filepath.Base(file)), 0
		if slices.ContainsFunc(rpms, func(r string) bool { return filepath.Base(w.rpms[r]) == filepath.Base(file) }) {
			want = 1
		}
		if n != want {
			w.t.Errorf("upstream was asked %d times for %s, want %d", n, name, want)
		}
	}
}

// absent fails the test unless the package is said not to exist.
func (w *pushWorld) absent(rpm string) {
	w.t.Helper()
	if status, _, _ := w.get(pushPath + "/Packages/" + filepath.Base(w.rpms[rpm])); status != 404 {
		w.t.Errorf("%s: %d, want 404", rpm, status)
	}
}

// gone waits until the packages are stored no more.
func (w *pushWorld) gone(rpms ...string) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); slices.ContainsFunc(rpms, w.isStored); {
		if time.Now().After(deadline) {
			w.t.Fatalf("some of %v never go:\n%s", rpms, w.logged())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (w *pushWorld) isStored(rpm string) bool {
	_, err := os.Stat(w.place(rpm))
	return err == nil
}

// back starts upstream again, and waits until the mirror asks it.
func (w *pushWorld) back() {
	w.t.Helper()
	w.up.Reset()
	if err := w.up.Start(); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); w.up.Count("**") == 0; {
		if time.Now().After(deadline) {
			w.t.Fatalf("upstream is not asked again:\n%s", w.complaints())
		}
		once(w.t, "refresh", "--config", w.conf, pushPath)
	}
}

// sound fails the test if verify finds anything wrong.
func (w *pushWorld) sound() {
	w.t.Helper()
	out, status := once(w.t, "verify", "--config", w.conf, "--json")
	var v verified
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != 0 || v.Vouched == 0 || len(v.Findings) > 0 {
		w.t.Errorf("verify says %d, %v:\n%s", status, err, out)
	}
}

// machine is a client with dnf that has one repository, and an empty root.
type machine struct {
	t    *testing.T
	root string
}

// newMachine makes one that has the repository of w. By more its file has more lines.
func (w *pushWorld) newMachine(t *testing.T, more ...string) *machine {
	t.Helper()
	m := &machine{t, t.TempDir()}
	file := filepath.Join(m.root, "etc/yum.repos.d/r.repo")
	text := "[r]\nname=r\nbaseurl=" + w.url + pushPath + "\ngpgcheck=0\n" + strings.Join(more, "\n") + "\n"
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) try(args ...string) (string, error) {
	m.t.Helper()
	return sh(m.t, m.root, "dnf", append([]string{"--installroot=" + m.root, "--releasever=99", "--noplugins", "-y"}, args...)...)
}

func (m *machine) dnf(args ...string) {
	m.t.Helper()
	if out, err := m.try(args...); err != nil {
		m.t.Errorf("dnf %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// refused fails the test unless dnf fails, and says what.
func (m *machine) refused(what string, args ...string) {
	m.t.Helper()
	if out, err := m.try(args...); err == nil || !strings.Contains(out, what) {
		m.t.Errorf("dnf %s: %v, and not %q\n%s", strings.Join(args, " "), err, what, out)
	}
}

var queried = regexp.MustCompile(`(?m)^=(.*)$`)

// sees fails the test unless dnf, with its metadata as they are, finds just these packages.
func (m *machine) sees(want ...string) { m.t.Helper(); m.query(want) }

// refreshed is sees with the metadata that there are now.
func (m *machine) refreshed(want ...string) { m.t.Helper(); m.query(want, "--refresh") }

func (m *machine) query(want []string, args ...string) {
	m.t.Helper()
	out, err := m.try(append(args, "repoquery", "--qf", "=%{name}-%{version}")...)
	var got []string
	for _, one := range queried.FindAllStringSubmatch(out, -1) {
		got = append(got, one[1])
	}
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(slices.Compact(got), want) {
		m.t.Errorf("dnf sees %v, want %v; %v\n%s", got, want, err, out)
	}
}

// has fails the test unless the package is installed from just that build.
func (m *machine) has(builds ...string) {
	m.t.Helper()
	for _, build := range builds {
		name, _, _ := strings.Cut(build, "-")
		nv, note, _ := strings.Cut(build, " ")
		b, err := os.ReadFile(filepath.Join(m.root, "usr/share", name, "ver"))
		if want := strings.TrimSpace(nv + "-1.fc99 " + note); err != nil || strings.TrimSpace(string(b)) != want {
			m.t.Errorf("%s is %q, %v; want %s", name, b, err, want)
		}
	}
}

// needDNF skips the test where dnf can't be had.
func needDNF(t *testing.T, tool ...string) {
	t.Helper()
	mirrortest.Need(t, append(tool, "dnf", "rpmbuild", "createrepo_c")...)
	if os.Getuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
}

// gpgKey makes a key, and returns its public part's file and what signs with it.
func gpgKey(t *testing.T) (public string, sign func(file string)) {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // the agent's socket is in it, so its name must be short
	if err != nil {
		t.Fatal(err)
	}
	gpg := func(args ...string) {
		t.Helper()
		must(t, home, "gpg", append([]string{"--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	}
	t.Cleanup(func() {
		// The test's context has ended.
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run()
		os.RemoveAll(home)
	})
	gpg("--quick-gen-key", "push@example.org", "ed25519", "sign", "never")
	public = filepath.Join(home, "public.asc")
	gpg("--armor", "--output", public, "--export")
	return public, func(file string) { t.Helper(); gpg("--detach-sign", "--armor", "--output", file+".asc", file) }
}
