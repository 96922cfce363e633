package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// tree is where the repository of an adminWorld is.
const tree = "/pub/one/os"

// adminWorld is a mirror of one repository, which packages of two generations have been asked of.
type adminWorld struct {
	t      *testing.T
	up     *mirrortest.Upstream
	dir    string
	config string
	daemon *daemonProcess // nil: none runs
	files  map[string]mirrortest.File
}

func repoOf(hours int, packages ...mirrortest.Package) mirrortest.Repo {
	return mirrortest.Repo{Packages: packages, Time: mirrortest.Epoch.Add(time.Duration(hours) * time.Hour), Dir: "Packages"}
}

var (
	pkgA  = mirrortest.Package{Name: "a", Size: 5000}
	pkgA2 = mirrortest.Package{Name: "a", Size: 5000, Seed: 7} // signed anew: same name, other bytes
	pkgB  = mirrortest.Package{Name: "b"}
	pkgC  = mirrortest.Package{Name: "c"}
)

func newAdminWorld(t *testing.T, more string) *adminWorld {
	w := &adminWorld{t: t, up: mirrortest.NewUpstream(t), dir: t.TempDir()}
	w.push(repoOf(0, pkgA, pkgB))
	profileFile(t, w.dir, "one", profileText("one", w.up.URL+"/x", "expiry: [{match: '**', refresh: 1h, grace: 1d}]"))
	w.config = configFile(t, w.dir, more)
	w.daemon = serve(t, w.dir)
	return w
}

// get has the daemon fetch files of the repository, and waits until they are stored.
func (w *adminWorld) get(names ...string) {
	w.t.Helper()
	for _, name := range names {
		if status, _, _ := w.daemon.get(tree + name); status != 200 {
			w.t.Fatalf("%s: %d", name, status)
		}
		w.daemon.logs("msg=fetched path="+tree[1:]+name, 1)
	}
}

// push replaces the upstream's repository.
func (w *adminWorld) push(r mirrortest.Repo) {
	for name := range w.files {
		w.up.Remove("x/os/" + name)
	}
	w.files = r.Files()
	w.up.PutTree("x/os", w.files)
}

// want runs a command and compares its exit status; in the output there must be each of parts.
func (w *adminWorld) want(status int, command string, args []string, parts ...string) string {
	w.t.Helper()
	out, got := once(w.t, append([]string{command, "--config", w.config}, args...)...)
	if got != status {
		w.t.Errorf("%s %v: exit status %d, want %d:\n%s", command, args, got, status, out)
	}
	for _, part := range parts {
		if !strings.Contains(out, part) {
			w.t.Errorf("%s %v: %q is not in\n%s", command, args, part, out)
		}
	}
	return out
}

// object runs a command with --json.
func object[T any](w *adminWorld, status int, command string, args ...string) (v T) {
	w.t.Helper()
	out := w.want(status, command, append(args, "--json"))
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		w.t.Fatalf("%s %v: %v:\n%s", command, args, err, out)
	}
	return v
}

// stored reads a file of the tree; nil if there is none.
func (w *adminWorld) stored(name string) []byte {
	b, err := os.ReadFile(filepath.Join(w.dir, "root", name))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return b
}

// damage changes a byte of a stored file.
func (w *adminWorld) damage(name string) {
	w.t.Helper()
	b := bytes.Clone(w.stored(name))
	b[len(b)/2] ^= 1
	if err := os.WriteFile(filepath.Join(w.dir, "root", name), b, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// TestCommands: each command does the same by a running daemon and without one.
func TestCommands(t *testing.T) {
	for _, mode := range []string{"daemon", "none"} {
		t.Run(mode, func(t *testing.T) { testCommands(t, mode == "daemon") })
	}
}

func testCommands(t *testing.T, running bool) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml", "/Packages/a-1.0-1.noarch.rpm", "/Packages/b-1.0-1.noarch.rpm")
	w.want(0, "refresh", []string{tree}, "unchanged") // and what first contact leaves to do is done
	if !running {
		w.daemon.stop()
	}

	st := object[admin.Status](w, 0, "status")
	if st.Running != running || len(st.Repositories) != 1 || len(st.Upstreams) != 1 || st.Room.Total == 0 {
		t.Errorf("status %+v", st)
	}
	r := st.Repositories[0]
	if "/"+r.Root != tree || len(r.Generation) != 12 || r.Profile != "one" || r.Origin != w.up.URL || r.State != "watched" {
		t.Errorf("the repository is %+v", r)
	}
	if running {
		if tr := st.Traffic; tr == nil || tr.Requests != 3 || tr.Hits != 0 || tr.Sent < 5000 || tr.Fetched < tr.Sent {
			t.Errorf("traffic %+v", tr)
		}
		w.daemon.get(tree + "/Packages/a-1.0-1.noarch.rpm")
		if tr := object[admin.Status](w, 0, "status").Traffic; tr.Requests != 4 || tr.Hits != 1 {
			t.Errorf("after a hit: %+v", tr)
		}
	}
	text := w.want(0, "status", nil, "1 repository", tree, "generation "+r.Generation, "watched every 1h", w.up.URL)
	for line := range strings.Lines(text) {
		if utf8.RuneCountInString(line) > 101 && !strings.Contains(line, w.dir) {
			t.Errorf("longer than 100 columns: %s", line)
		}
	}

	// A push: a was signed anew, b is gone, c is new.
	w.push(repoOf(1, pkgA2, pkgC))
	refreshed := object[struct{ Repositories []admin.Refreshed }](w, 0, "refresh", tree+"/Packages/a-1.0-1.noarch.rpm")
	if l := refreshed.Repositories; len(l) != 1 || l[0].What != "published" || l[0].From != r.Generation || l[0].To == l[0].From || l[0].Path != tree {
		t.Errorf("refreshed: %+v", l)
	}
	if w.stored("pub/one/os/Packages/a-1.0-1.noarch.rpm") != nil || w.stored("pub/one/os/Packages/b-1.0-1.noarch.rpm") == nil {
		t.Error("the push expired other files than a")
	}
	w.want(0, "refresh", []string{"--force"}, tree+": unchanged")
	w.want(0, "refresh", []string{"/pub/"}, tree+": unchanged")
	w.want(0, "refresh", []string{"/pub/one/nothing/"}, "gone")

	// An older generation is refused, unless it is forced.
	w.push(repoOf(0, pkgA, pkgB))
	w.want(0, "refresh", nil, "refused: ", "is older than")
	w.want(0, "status", nil, "refused: 1 older generation was offered")
	w.want(0, "refresh", []string{"--force", tree}, "published", " → "+r.Generation)
	w.push(repoOf(1, pkgA2, pkgC))
	w.want(0, "refresh", []string{tree}, "published "+r.Generation)

	// Why.
	why := object[admin.Why](w, 0, "why", "http://mirror.example.org:8080"+tree+"/Packages/b-1.0-1.noarch.rpm")
	if why.Profile != "one" || why.Class != "package" || why.Validity != "immutable" || why.Stored == nil || why.Stored.Verified == "" ||
		why.Stored.Origin != w.up.URL || why.Leaving == nil || why.Leaving.Sum != why.Stored.Verified || why.Repository == nil ||
		!strings.HasSuffix(why.Rule.At, "one.yaml:5") || !slices.Equal(why.Upstreams, []string{w.up.URL + "/x"}) {
		t.Errorf("why b: %+v", why)
	}
	why = object[admin.Why](w, 0, "why", filepath.Join(w.dir, "root", tree, "Packages/a-1.0-1.noarch.rpm"))
	if why.Stored != nil || why.Validity != "missing" || len(why.Says) != 1 || why.Says[0].Size != int64(len(pkgA2.Build().Bytes)) || len(why.Journal) != 1 {
		t.Errorf("why a: %+v", why)
	}
	w.want(0, "why", []string{tree + "/Packages/a-1.0-1.noarch.rpm"}, "stored      no: missing", "named by", "-primary.xml.gz", "deleted: replaced")
	w.want(0, "why", []string{tree}, "repository  "+tree, "stored      ", "files, ")

	// Expire: by hand.
	w.want(0, "expire", []string{tree + "/repodata/repomd.xml", tree + "/Packages/none.rpm"}, "1 file, ", "nothing is stored there")
	w.want(0, "why", []string{tree + "/repodata/repomd.xml"}, "deleted: by-hand", "missing")
	w.want(0, "refresh", []string{tree}, "published")
	if w.stored("pub/one/os/repodata/repomd.xml") == nil {
		t.Error("the expired pointer did not come back")
	}

	// Prune: b is in its grace; what nobody names, and what no profile serves, goes; all else stays.
	before := w.tree()
	junk := []string{"old/file", "pub/one/os/Packages/unknown-1-1.noarch.rpm", "pub/one/os/repodata/" + strings.Repeat("ab", 32) + "-other.xml.gz"}
	spared := []string{"pub/one/elsewhere/unknown-1-1.noarch.rpm", "pub/one/os/images/boot.iso"}
	for _, name := range append(junk, spared...) {
		mirrortest.WriteTree(t, filepath.Join(w.dir, "root"), map[string]mirrortest.File{name: {Body: []byte("junk")}})
	}
	pruned := object[struct {
		DryRun bool `json:"dry_run"`
		Files  int
		Bytes  int64
		Pruned []admin.Pruned
	}](w, 0, "prune", "--dry-run", "--spare", "0s")
	if !pruned.DryRun || pruned.Files != len(junk) || pruned.Bytes != int64(4*len(junk)) || len(pruned.Pruned) != len(junk) {
		t.Errorf("prune --dry-run: %+v", pruned)
	}
	w.want(0, "prune", nil, "0 files went") // all came within the hour
	w.want(0, "prune", []string{"--spare", "0s"}, "/old/file: no profile serves it", "unknown-1-1.noarch.rpm: no generation names it", "3 files went, 12 bytes")
	w.want(0, "why", []string{"/old/file"}, "no enabled profile serves it", "deleted: by-hand, prune: no profile serves it, 4 bytes")
	if after, want := w.tree(), append(before, spared...); !slices.Equal(after, slices.Sorted(slices.Values(want))) {
		t.Errorf("after prune the tree has\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(want, "\n"))
	}

	// Verify.
	w.want(0, "verify", nil, "in 1 repository", "0 wrong")
	primary := ""
	for name := range w.files {
		if strings.HasSuffix(name, "-primary.xml.gz") {
			primary = "pub/one/os/" + name
		}
	}
	right := w.stored(primary)
	w.damage(primary)
	w.damage("pub/one/os/Packages/b-1.0-1.noarch.rpm")
	w.want(1, "verify", []string{tree + "/repodata/"}, "/"+primary+": damaged: expected", "found wrong")
	// b is upstream no more.
	w.want(1, "verify", []string{"--repair"}, "/"+primary+": fetched again", "b-1.0-1.noarch.rpm: deleted, and not had again", "1 file could not be mended")
	if !bytes.Equal(w.stored(primary), right) {
		t.Error("what was repaired is not right")
	}
	w.want(0, "verify", nil, "0 wrong")
	if out := object[verified](w, 0, "verify"); out.Files == 0 || len(out.Findings) != 0 {
		t.Errorf("verify: %+v", out)
	}

	w.up.Stop()
	w.want(1, "refresh", []string{tree}, tree+": failed: ", "1 of 1 repository could not be looked at")
	if running {
		w.want(0, "status", nil, "down ")
	}
}

// tree lists the files in the root, in order.
func (w *adminWorld) tree() []string {
	var names []string
	root := os.DirFS(filepath.Join(w.dir, "root"))
	fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
		if name == ".instantmirror" {
			return fs.SkipDir
		}
		if err == nil && !e.IsDir() {
			names = append(names, name)
		}
		return err
	})
	return names
}

// TestWrongArguments: what is asked for makes no sense; nothing is made of it.
func TestWrongArguments(t *testing.T) {
	w := newAdminWorld(t, "")
	for _, test := range []struct {
		status  int
		command string
		args    []string
		want    string
	}{
		{2, "expire", []string{"/nope/x"}, "/nope/x: no enabled profile has this path: those served are at /pub/one/"},
		{2, "expire", []string{"/pub/one/../x"}, "bad path"},
		{2, "why", []string{"/nope"}, "no enabled profile"},
		{2, "refresh", []string{"/nope/"}, "no enabled profile"},
		{2, "expire", nil, "<path>"},
		{1, "verify", []string{"/pub/one/nope"}, "nothing is stored"},
	} {
		w.want(test.status, test.command, test.args, test.want)
	}
	w.want(0, "refresh", nil, "No repository is watched")
	nowhere := filepath.Join(t.TempDir(), "root")
	out, status := once(t, "status", "--config", w.config, "--root", nowhere, "--state", nowhere+"-state")
	if status != 2 || !strings.Contains(out, "nothing was ever served from it") {
		t.Errorf("exit status %d: %s", status, out)
	}
	if _, err := os.Stat(nowhere); err == nil {
		t.Error("a question made a root")
	}
}

// TestInterrupted: a command that is interrupted stops, and what the daemon does for it stops, too.
func TestInterrupted(t *testing.T) {
	t.Run("daemon", func(t *testing.T) { testInterrupted(t, true) })
	t.Run("none", func(t *testing.T) { testInterrupted(t, false) })
}

func testInterrupted(t *testing.T, running bool) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml")
	w.want(0, "refresh", []string{tree}, "unchanged")
	if !running {
		w.daemon.stop()
	}
	gate := w.up.Hold("**/repomd.xml", 0)
	defer gate.Release()
	w.push(repoOf(1, pkgC))
	cmd := program(t, "refresh", "--config", w.config, tree)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := gate.Wait(ctx); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("%v: %s\n%s\n%s", err, out.String(), w.up.Log(), w.daemon.logged())
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "stopped before it was done") {
		t.Errorf("%v: %s", err, out.String())
	}
	if !running {
		w.want(0, "verify", nil, "0 wrong")
		return
	}
	w.daemon.logs(`msg=admin command=refresh`, 2)
	if log := w.daemon.logged(); !strings.Contains(log[strings.LastIndex(log, "msg=admin"):], "err=") {
		t.Errorf("the daemon went on:\n%s", log)
	}
}

// TestPublicStatus: anybody may see how the mirror is, and nothing of the machine.
func TestPublicStatus(t *testing.T) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml")
	status, body, _ := w.daemon.get("/-/api/status")
	var st admin.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || status != 200 || !st.Running || len(st.Repositories) != 1 || st.PID != 0 {
		t.Errorf("%d, %v: %s", status, err, body)
	}
	if strings.Contains(body, w.dir) {
		t.Errorf("it says where things are on this machine:\n%s", body)
	}
}

// TestRepairSigned: a repomd.xml and its signature are mended together, whichever of them is damaged.
func TestRepairSigned(t *testing.T) {
	w := &adminWorld{t: t, up: mirrortest.NewUpstream(t), dir: t.TempDir()}
	signer := mirrortest.NewSigner(t)
	key := filepath.Join(w.dir, "key")
	if err := os.WriteFile(key, signer.Public(), 0o644); err != nil {
		t.Fatal(err)
	}
	w.push(repoOf(0, pkgA))
	pointer := w.files["repodata/repomd.xml"]
	w.up.PutFile("x/os/repodata/repomd.xml.asc", mirrortest.File{Body: signer.Sign(pointer.Body), ModTime: pointer.ModTime})
	profileFile(t, w.dir, "one", profileText("one", w.up.URL+"/x", "keys: ["+key+"]"))
	w.config = configFile(t, w.dir, "")
	w.daemon = serve(t, w.dir)
	if status, _, _ := w.daemon.get(tree + "/repodata/repomd.xml"); status != 200 { // the monitor fetches what must be signed
		t.Fatal(status)
	}
	w.want(0, "refresh", []string{tree}, "unchanged")
	w.want(0, "status", nil, "mirrortest@example.org")
	const asc = "pub/one/os/repodata/repomd.xml.asc"
	signature := w.stored(asc)
	if signature == nil {
		t.Fatal("there is no signature")
	}
	mended := func(what string) {
		t.Helper()
		w.want(1, "verify", nil, "/"+asc+": bad signature")
		w.want(0, "verify", []string{"--repair"}, "/"+asc+": fetched again")
		if !bytes.Equal(w.stored(asc), signature) || !bytes.Equal(w.stored(strings.TrimSuffix(asc, ".asc")), pointer.Body) {
			t.Errorf("%s is not mended", what)
		}
		w.want(0, "verify", nil, "0 wrong")
	}
	w.damage(asc)
	mended("the signature")
	other := bytes.Replace(pointer.Body, []byte("<revision>1"), []byte("<revision>2"), 1)
	if err := os.WriteFile(filepath.Join(w.dir, "root", strings.TrimSuffix(asc, ".asc")), other, 0o644); err != nil {
		t.Fatal(err)
	}
	mended("the pointer")

	// By hand it is the same: it does not stay away.
	w.want(0, "expire", []string{"/" + asc}, "1 file")
	w.want(0, "refresh", []string{tree}, "unchanged")
	if status, body, _ := w.daemon.get("/" + asc); status != 200 || body != string(signature) {
		t.Errorf("after expire the signature is %d, %q", status, body)
	}
}

// TestProgress: a bar on a terminal, which leaves nothing behind, and nothing of it elsewhere.
func TestProgress(t *testing.T) {
	w := newAdminWorld(t, "")
	w.get("/repodata/repomd.xml", "/Packages/a-1.0-1.noarch.rpm")
	w.want(0, "refresh", []string{tree}, "unchanged")
	master, slave := terminal(t)
	for _, args := range [][]string{{"verify"}, {"refresh", tree}} {
		cmd := program(t, append(args, "--config", w.config)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, slave
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(slave, "END")
		var seen bytes.Buffer
		for !bytes.HasSuffix(seen.Bytes(), []byte("END")) {
			if _, err := io.CopyN(&seen, master, 1); err != nil {
				t.Fatal(err)
			}
		}
		if !strings.Contains(seen.String(), "%") || strings.Contains(seen.String(), "\n") || !strings.HasSuffix(seen.String(), "\rEND") {
			t.Errorf("%s: the terminal got %q", args[0], seen.String())
		}
		if strings.Contains(out.String(), "%") {
			t.Errorf("%s: beside it stands %q", args[0], out.String())
		}
	}
}

// terminal opens a pseudo terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	n, nerr := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil || nerr != nil {
		t.Fatal(err, nerr)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestAbove(t *testing.T) {
	for _, test := range []struct {
		paths []string
		want  string
	}{
		{[]string{"a/b/c"}, "a/b"}, {[]string{"a/b/c", "a/b/d"}, "a/b"}, {[]string{"a/b/c", "a/bc/d"}, "a"}, {[]string{"a/b", "c/d"}, ""}, {[]string{"a"}, ""},
		{[]string{"a/b/c/d", "a/b"}, "a/b"},
	} {
		if got := above(test.paths); got != test.want {
			t.Errorf("%v: %q, want %q", test.paths, got, test.want)
		}
	}
}
