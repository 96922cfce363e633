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
	"sync"
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

// refresh has the mirror look, and fails the test unless that comes to what.
func (w *pushWorld) refresh(what string, args ...string) {
	w.t.Helper()
	out, status := once(w.t, append([]string{"refresh", "--config", w.conf, pushPath}, args...)...)
	if status != 0 && what != "failed" || !strings.HasPrefix(out, pushPath+": "+what) {
		w.t.Fatalf("refresh says %d: %s, want %s; upstream saw\n%s", status, out, what, w.up.Log())
	}
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

// stored is where a package of a push stands in the tree, if it does.
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

// hourly has the mirror look when it is told to.
const hourly = "expiry: [{match: '**', refresh: 1h}]"

// TestPush: upstream's repository changes, and dnf, with and without metadata of before, finds what it should.
func TestPush(t *testing.T) {
	needDNF(t, "gpg", "gpgconf")
	rpms := buildPushed(t)
	for name, test := range map[string]func(*testing.T, map[string]string){
		"emptied": testPushEmptied, "fallback behind": testPushFallback, "signed": testPushSigned, "grace": testPushGrace, "under way": testPushUnderWay,
	} {
		t.Run(name, func(t *testing.T) { test(t, rpms) })
	}
	for names, flags := range map[string][]string{
		"unique names": nil, "fixed names": {"--simple-md-filenames"}, "constant revision": {"--revision", "9-stream"},
	} {
		t.Run(names, func(t *testing.T) {
			for step, test := range map[string]func(*testing.T, *pushWorld){
				"added": testPushAdded, "removed": testPushRemoved, "rebuilt": testPushRebuilt, "rolled back": testPushRolledBack,
			} {
				t.Run(step, func(t *testing.T) {
					w := newPushWorld(t, rpms, hourly, flags...)
					test(t, w)
					w.sound()
				})
			}
		})
	}
}

func testPushAdded(t *testing.T, w *pushWorld) {
	w.push(hello1)
	old := w.newMachine(t)
	old.dnf("install", "hello")
	w.refresh("unchanged")

	w.up.Reset()
	w.pushed(hello1, world1, hello2)
	old.sees(hello1) // its metadata are of before
	old.dnf("reinstall", "hello")
	old.refreshed(hello1, hello2, world1)
	old.dnf("upgrade")
	old.has(hello2)
	fresh := w.newMachine(t)
	fresh.sees(hello1, hello2, world1)
	fresh.dnf("install", "hello-1", "world")
	fresh.has(hello1, world1)
	w.fetchedOnly(hello2, world1)
	w.holds(hello1, hello2, world1)
}

func testPushRemoved(t *testing.T, w *pushWorld) {
	w.push(hello1, world1, extra1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")

	w.up.Reset()
	w.pushed(hello1, hello2)
	fresh := w.newMachine(t)
	fresh.sees(hello1, hello2)
	fresh.refused("No match", "install", "world")
	old.sees(hello1, world1, extra1)
	old.dnf("install", "world", "hello")
	old.has(world1, hello1)
	old.refused("extra-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "extra") // nobody here ever had it
	old.refreshed(hello1, hello2)
	old.dnf("upgrade")
	old.has(hello2, world1)
	for _, rpm := range []string{hello1, world1} {
		if n := w.up.Count("x/os/Packages/" + filepath.Base(w.rpms[rpm])); n != 0 {
			t.Errorf("%s was asked for %d times", rpm, n)
		}
	}
	w.holds(hello1, hello2, world1)
}

func testPushRebuilt(t *testing.T, w *pushWorld) {
	w.push(hello1, world1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")
	before, err := os.Stat(w.place(world1))
	if err != nil {
		t.Fatal(err)
	}

	w.up.Reset()
	w.pushed(hello1Again, world1)
	w.holds(world1) // what has other bytes now is gone at once
	old.dnf("install", "world")
	old.has(world1)
	// There is no hello any more that its metadata mean, and none it may take for it.
	old.refused("hello-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "hello")
	old.dnf("--refresh", "install", "hello")
	old.has(hello1Again)
	fresh := w.newMachine(t)
	fresh.dnf("install", "hello", "world")
	fresh.has(hello1Again, world1)
	w.fetchedOnly(hello1Again)
	w.holds(hello1Again, world1)
	if after, err := os.Stat(w.place(world1)); err != nil || !os.SameFile(before, after) {
		t.Errorf("what did not change was touched: %v", err)
	}
}

func testPushRolledBack(t *testing.T, w *pushWorld) {
	first := w.push(hello1, world1)
	old := w.newMachine(t)
	old.dnf("install", "hello")
	w.refresh("unchanged")
	second := w.pushed(hello2, world1)

	w.put(first)
	w.refresh("refused")
	w.serves(second)
	old.refreshed(hello2, world1)
	w.newMachine(t).sees(hello2, world1)
	old.dnf("install", "world") // upstream has it, be it of another generation
	old.has(world1)
	old.refused("hello-2-1.fc99.noarch.rpm", "--setopt=retries=1", "upgrade") // upstream has it no more
	old.has(hello1)

	w.pushed(hello1Again, hello2)
	old.refreshed(hello1, hello2)
	old.dnf("upgrade")
	old.has(hello2)
	w.put(first)
	w.refresh("refused")
	w.refresh("published", "--force")
	w.serves(first)
	old.refreshed(hello1, world1)
}

// testPushEmptied: a push that empties the repository deletes nothing until it is confirmed.
func testPushEmptied(t *testing.T, _ map[string]string) {
	const many = 60
	rpms, names, dir := make(map[string]string), []string{}, t.TempDir()
	for i := range many {
		p := mirrortest.Package{Name: fmt.Sprintf("tiny%02d", i)}
		name := p.Name + "-1.0"
		rpms[name], names = filepath.Join(dir, p.FileName()), append(names, name)
		mirrortest.WriteTree(t, dir, map[string]mirrortest.File{p.FileName(): {Body: p.Build().Bytes}})
	}
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1h, grace: 1s}]")
	full := w.push(names...)
	old := w.newMachine(t)
	old.dnf("install", "tiny*")
	w.holds(names...)
	w.refresh("unchanged")

	w.up.Reset()
	empty := w.pushed()
	w.logs("msg=veto", 1)
	old.sees(names...)
	old.dnf("reinstall", "tiny07")
	old.refreshed()
	w.newMachine(t).sees()
	w.holds(names...)
	// It was a mistake.
	w.pushed(names...)
	again := w.newMachine(t)
	again.dnf("install", "tiny*")
	old.refreshed(names...)
	w.fetchedOnly()

	// It is meant.
	w.put(full)
	w.refresh("refused")
	w.createrepo(empty)
	w.put(empty)
	w.refresh("published")
	w.holds(names...)
	w.refresh("unchanged", "--force")
	w.logs("msg=confirmed", 1)
	w.logs("msg=expired", 1)
	w.holds()
	w.newMachine(t).sees()
	w.refused404(rpms[names[0]])
	w.sound()
}

func (w *pushWorld) refused404(file string) {
	w.t.Helper()
	if status, _, _ := w.get(pushPath + "/Packages/" + filepath.Base(file)); status != 404 {
		w.t.Errorf("%s: %d, want 404", file, status)
	}
}

// testPushGrace: what vanished goes when its grace has ended, and only that; until then an archive is asked for it, too.
func testPushGrace(t *testing.T, rpms map[string]string) {
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1h, grace: 2h}]\narchives: [%s/old]")
	first := w.push(hello1, world1, extra1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")
	w.up.PutDir("old/os", first)
	w.pushed(hello1)
	old.dnf("install", "extra") // neither here nor upstream
	old.has(extra1)
	w.holds(hello1, world1, extra1)
	w.stop()

	// The grace is another one now, for what leaves from now on.
	profileFile(t, w.dir, "one", profileText("one", w.up.URL+"/x", "expiry: [{match: '**', refresh: 1h, grace: 1s}]"))
	w.daemonProcess = serve(t, w.dir)
	w.pushed(hello2)
	w.logs("msg=expired", 1)
	w.holds(world1, extra1)
	fresh := w.newMachine(t)
	fresh.sees(hello2)
	fresh.dnf("install", "hello")
	fresh.has(hello2)
	w.sound()
}

// testPushFallback: upstream is down, and the fallback is a generation behind: nothing of that is mixed in.
func testPushFallback(t *testing.T, rpms map[string]string) {
	fallback := mirrortest.NewUpstream(t)
	w := newPushWorld(t, rpms, hourly+"\nfallbacks: ["+fallback.URL+"/f]")
	first := w.generation(hello1, world1)
	fallback.PutDir("f/os", first)
	// At first the fallback is all there is.
	w.up.Stop()
	old := w.newMachine(t)
	old.dnf("install", "hello")
	old.has(hello1)
	if err := w.up.Start(); err != nil {
		t.Fatal(err)
	}
	w.put(first)
	w.logs("state=up", 1)
	w.refresh("unchanged")
	second := w.pushed(hello1Again, world1, extra1)
	w.holds()
	w.newMachine(t).dnf("install", "extra")

	w.up.Stop()
	w.refresh("refused")
	w.serves(second)
	old.refreshed(hello1, world1, extra1)
	fresh := w.newMachine(t)
	fresh.dnf("install", "extra", "world") // the fallback's world is the right one
	fresh.has(extra1, world1)
	fresh.refused("hello-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "hello") // its hello is not
	w.holds(extra1, world1)
	w.serves(second)
	w.stop()
	w.daemonProcess = serve(t, w.dir)
	w.refresh("refused")
	w.serves(second)
	w.newMachine(t).sees(hello1, world1, extra1)

	if err := w.up.Start(); err != nil {
		t.Fatal(err)
	}
	w.logs("state=up", 1)
	last := w.newMachine(t)
	last.dnf("install", "hello")
	last.has(hello1Again)
	w.refresh("unchanged")
	w.sound()
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
	gpg("--quick-gen-key", "push@example.org", "rsa2048", "sign", "never")
	public = filepath.Join(home, "public.asc")
	gpg("--armor", "--output", public, "--export")
	return public, func(file string) { t.Helper(); gpg("--detach-sign", "--armor", "--output", file+".asc", file) }
}

// testPushSigned: a client that checks the signature of repomd.xml lives through pushes, whether the mirror checks it or not.
func testPushSigned(t *testing.T, rpms map[string]string) {
	public, sign := gpgKey(t)
	_, other := gpgKey(t)
	for name, keys := range map[string]string{"checked here": "\nkeys: [" + public + "]", "not checked here": ""} {
		t.Run(name, func(t *testing.T) {
			w := newPushWorld(t, rpms, hourly+keys)
			w.sign = sign
			check := []string{"repo_gpgcheck=1", "gpgkey=file://" + public}
			w.push(hello1)
			old := w.newMachine(t, check...)
			old.dnf("install", "hello")
			old.has(hello1)
			w.refresh("unchanged")
			for i, push := range [][]string{{hello1, world1}, {hello2, world1}, {hello2}} {
				w.pushed(push...)
				old.refreshed(push...)
				fresh := w.newMachine(t, check...)
				fresh.dnf("install", "hello")
				fresh.has(push[0])
				if i == 1 {
					old.dnf("upgrade")
					old.has(hello2)
				}
			}
			if keys == "" {
				w.sound()
				return
			}
			// Somebody else's signature, and none at all.
			good := w.generation(hello2)
			w.refresh("unchanged")
			served, err := os.ReadFile(filepath.Join(w.root(), pushPath, "repodata/repomd.xml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []func(string){other, nil} {
				w.sign = bad
				w.push(hello1, extra1)
				w.refresh("failed")
				if _, now, _ := w.get(pushPath + "/repodata/repomd.xml"); now != string(served) {
					t.Error("an unsigned repomd.xml was published")
				}
				old.refreshed(hello2)
				w.newMachine(t, check...).sees(hello2)
			}
			w.put(good)
			w.refresh("published")
			w.serves(good)
			old.refreshed(hello2)
			w.sound()
		})
	}
}

// testPushUnderWay: dnf runs again and again while upstream is pushed. None may fail.
func testPushUnderWay(t *testing.T, built map[string]string) {
	const pushes = 10
	rpms, dir := map[string]string{hello1: built[hello1], world1: built[world1]}, t.TempDir()
	version := func(i int) string { return fmt.Sprintf("churn-%d", i) }
	for i := range pushes + 1 {
		p := mirrortest.Package{Name: "churn", Version: fmt.Sprint(i), Size: 20_000, Seed: uint64(i)}
		rpms[version(i)] = filepath.Join(dir, p.FileName())
		mirrortest.WriteTree(t, dir, map[string]mirrortest.File{p.FileName(): {Body: p.Build().Bytes}})
	}
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1s}]")
	// Masters keep packages a little longer than the metadata that name them.
	w.up.PutDir("x/os/Packages", dir)
	w.push(hello1, world1, version(0))
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")

	ran, stop := make(chan struct{}), make(chan struct{})
	var loops sync.WaitGroup
	loop := func(run func(i int)) {
		loops.Go(func() {
			for i := 0; ; i++ {
				run(i)
				select {
				case ran <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	loop(func(i int) {
		m := w.newMachine(t)
		m.dnf("install", "churn", "hello")
		m.has(hello1)
	})
	loop(func(i int) { old.dnf("--refresh", []string{"install", "upgrade", "reinstall"}[i%3], "churn") })
	for i := range pushes {
		<-ran
		if w.push(hello1, version(i), version(i+1)); i%2 == 0 {
			w.refresh("published")
		}
	}
	<-ran
	close(stop)
	loops.Wait()
	old.refreshed(hello1, version(pushes-1), version(pushes))
	w.newMachine(t).sees(hello1, version(pushes-1), version(pushes))
	w.sound()
}
