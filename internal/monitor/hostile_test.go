package monitor

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// rawRecord is a record of a repomd.xml, however wrong. What is empty is made of body.
type rawRecord struct {
	kind, href, algorithm, sum string
	size                       int
	body                       []byte // nil: only named
}

// rawRepo is a repository that says just that. With no hour (-1) its records have no times, and its revision is no number.
func rawRepo(hour int, records ...rawRecord) map[string]mirrortest.File {
	files := make(map[string]mirrortest.File)
	modified, stamp, revision := at(max(hour, 0)), "", "9-stream"
	if hour >= 0 {
		stamp, revision = fmt.Sprintf("<timestamp>%d</timestamp>", modified.Unix()), fmt.Sprint(modified.Unix())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<?xml version=\"1.0\"?>\n<repomd xmlns=\"http://linux.duke.edu/metadata/repo\"><revision>%s</revision>\n", revision)
	for _, r := range records {
		if r.body != nil {
			r.sum, r.size = hexOf(r.body), len(r.body)
			if r.href == "" {
				r.href = "repodata/" + r.sum + "-" + r.kind + ".xml.gz"
			}
			files[r.href] = mirrortest.File{Body: r.body, ModTime: modified}
		}
		if r.algorithm == "" {
			r.algorithm = "sha256"
		}
		fmt.Fprintf(&b, "<data type=%q><checksum type=%q>%s</checksum><location href=%q/>%s<size>%d</size></data>\n",
			r.kind, r.algorithm, r.sum, r.href, stamp, r.size)
	}
	b.WriteString("</repomd>\n")
	files["repodata/repomd.xml"] = mirrortest.File{Body: []byte(b.String()), ModTime: modified}
	return files
}

// rawPrimary is a primary that names these files, of the given bytes or, for nil, of others than anybody has.
func rawPrimary(names []string, bodies ...[]byte) rawRecord {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprintf(z, "<?xml version=\"1.0\"?>\n<metadata xmlns=\"http://linux.duke.edu/metadata/common\" xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\" packages=\"%d\">\n", len(names))
	for i, name := range names {
		sum, size := strings.Repeat("00", 32), 10
		if i < len(bodies) {
			sum, size = hexOf(bodies[i]), len(bodies[i])
		}
		fmt.Fprintf(z, "<package type=\"rpm\"><name>n%d</name><arch>noarch</arch><version epoch=\"0\" ver=\"1\" rel=\"1\"/>"+
			"<checksum type=\"sha256\" pkgid=\"YES\">%s</checksum><time file=\"1700000000\" build=\"1700000000\"/>"+
			"<size package=\"%d\" installed=\"1\" archive=\"1\"/><location href=%q/><format></format></package>\n", i, sum, size, name)
	}
	fmt.Fprint(z, "</metadata>\n")
	_ = z.Close()
	return rawRecord{kind: "primary", body: b.Bytes()}
}

// aged is a repository whose age only its Last-Modified tells.
func aged(hour int, name string) map[string]mirrortest.File {
	files := rawRepo(-1, rawPrimary([]string{name + ".rpm"}))
	f := files["repodata/repomd.xml"]
	f.ModTime = at(hour)
	files["repodata/repomd.xml"] = f
	return files
}

// until waits for what comes in its own time.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
		w.quiet()
	}
}

// judged waits until the repository at root was met and compared with what is stored.
func (w *world) judged(root string) {
	w.t.Helper()
	w.until(root+" is judged", func() bool {
		r, ok := w.index.Repo(root)
		return ok && !r.Unjudged
	})
}

// stands reports whether the tree has the file at name.
func (w *world) stands(name string) bool {
	_, err := os.Lstat(filepath.Join(w.store.Dir(), name))
	return err == nil
}

// byHand removes a file as an administrator does.
func (w *world) byHand(name string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.store.Dir(), base+name)); err != nil {
		w.t.Fatal(err)
	}
}

// neighbour gives w a second profile at pub/evil, whose upstream has what is pushed to e/.
func neighbour(t *testing.T) *world {
	w := newWorld(t, oneOrigin)
	w.beside = fmt.Sprintf("name: evil\npath: /pub/evil\nenabled: true\nupstreams: [%s/e]\n", w.up.URL)
	w.route()
	return w
}

const evil = "pub/evil/os"

// TestHostileForeignHref: a repository has no say in the files of another profile, whatever its primary names.
func TestHostileForeignHref(t *testing.T) {
	w := neighbour(t)
	good := repo(at(0), "x", "y").Files()
	good["images/install.img"] = mirrortest.File{Body: []byte("image"), ModTime: at(0)}
	w.push("a/os", good)
	w.meet("os")
	served := []string{"repodata/repomd.xml", "images/install.img", pkg("x")}
	var named []string
	for _, name := range append(served, pkg("y")) {
		named = append(named, "../../test/os/"+name)
	}
	for _, name := range served {
		w.want("os/"+name, good[name].Body)
	}
	check := func() {
		t.Helper()
		for _, name := range served {
			w.until(name+" stands", func() bool { return w.stands(base + "os/" + name) })
		}
		for _, name := range named {
			says, _ := w.index.Says(base + strings.TrimPrefix(name, "../../test/"))
			for _, s := range says {
				if s.Root != base+"os" {
					t.Errorf("%s has a say in %s", s.Root, name)
				}
			}
		}
		err := w.index.EachLeaving(evil, func(l index.Leaving) error {
			if !strings.HasPrefix(l.Path, evil+"/") {
				t.Errorf("%s leaves %s", l.Path, evil)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	w.push("e/os", rawRepo(5, rawPrimary(named)))
	if _, err := w.getAt(evil + "/repodata/repomd.xml"); err != nil {
		t.Fatal(err)
	}
	w.judged(evil)
	check()
	w.push("e/os", rawRepo(6, rawPrimary(nil))) // they leave, as it says
	if r, err := w.monitor.Refresh(t.Context(), evil, false); r.What != Published {
		t.Fatalf("%+v, %v", r, err)
	}
	check()
	w.want("os/"+pkg("y"), good[pkg("y")].Body)
	w.up.Stop()
	for _, name := range served {
		w.want("os/"+name, good[name].Body)
	}
}

// TestHostileForeignRecord: a record of one repository's repomd.xml does not bring another one's pointer.
func TestHostileForeignRecord(t *testing.T) {
	w := neighbour(t)
	one, two := repo(at(0), "x=1").Files(), repo(at(24), "x=2").Files()
	w.push("a/os", one)
	w.meet("os")
	w.want("os/"+pkg("x"), one[pkg("x")].Body)
	w.push("e/os", rawRepo(1, rawPrimary(nil)))
	if _, err := w.getAt(evil + "/repodata/repomd.xml"); err != nil {
		t.Fatal(err)
	}
	w.judged(evil)
	// The upstream of os has moved on, and nobody has looked yet.
	w.push("a/os", two)
	p := two["repodata/repomd.xml"].Body
	for hour, href := range []string{"repodata/repomd.xml", "../repodata/group.xml", "../../test/os/repodata/group.xml", "../../test/os/repodata/repomd.xml"} {
		w.push("e/os", rawRepo(2+hour, rawPrimary(nil), rawRecord{kind: "group", href: href, sum: hexOf(p), size: len(p)}))
		if r, err := w.monitor.Refresh(t.Context(), evil, false); r.What != Published {
			t.Fatalf("%+v, %v", r, err)
		}
		if r, _ := w.index.Repo(evil); len(r.Records) != 1 {
			t.Errorf("%s is taken for one of its records", href)
		}
		w.want("os/repodata/repomd.xml", one["repodata/repomd.xml"].Body)
		w.want("os/"+pkg("x"), one[pkg("x")].Body)
	}
	w.is(w.look("os"), Published)
	w.want("os/repodata/repomd.xml", p)
	w.want("os/"+pkg("x"), two[pkg("x")].Body)
	w.sound()
}

// TestHostileOwnFiles: what a repository names of its own that is no package, and not in its repodata/, stays what upstream
// has.
func TestHostileOwnFiles(t *testing.T) {
	w := newWorld(t, oneOrigin)
	image := mirrortest.File{Body: []byte("image"), ModTime: at(0)}
	wrong := rawRecord{kind: "group", href: "images/install.img", sum: strings.Repeat("00", 32), size: 10}
	files := rawRepo(0, rawPrimary([]string{"repodata/repomd.xml", "images/install.img"}), wrong)
	files["images/install.img"] = image
	w.push("a/self", files)
	for range 3 {
		w.want("self/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
		w.want("self/images/install.img", image.Body)
		w.judged(base + "self")
		w.is(w.look("self"), unchanged)
	}
	for _, name := range []string{"self/repodata/repomd.xml", "self/images/install.img"} {
		w.until(name+" stands", func() bool { return w.stands(base + name) })
	}
	if n := w.up.Count("a/self/images/install.img"); n != 1 {
		t.Errorf("the image was fetched %d times", n)
	}
}

// TestHostileMissingRecord: a record that upstream does not have does not keep the packages from being verified.
func TestHostileMissingRecord(t *testing.T) {
	w := newWorld(t, oneOrigin)
	r := repo(at(0), "x=right")
	r.Extra = map[string][]byte{"updateinfo": []byte("<updates/>")}
	files := r.Files()
	delete(files, recordOf(files, "updateinfo"))
	right, wrong := files[pkg("x")], repo(at(0), "x=wrong").Files()[pkg("x")]
	files[pkg("x")] = wrong
	w.push("a/os", files)
	w.want("os/"+pkg("x"), wrong.Body) // nobody has asked for repomd.xml yet: it is not verified
	files[pkg("x")] = right
	w.push("a/os", files)
	w.want("os/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
	w.judged(base + "os")
	w.want("os/"+pkg("x"), right.Body)
	w.sound()
}

// TestHostilePrimaryFirst: a primary that was here before its repomd.xml is learned from when that comes.
func TestHostilePrimaryFirst(t *testing.T) {
	w := newWorld(t, oneOrigin)
	files := repo(at(0), "x=right").Files()
	right, wrong := files[pkg("x")], repo(at(0), "x=wrong").Files()[pkg("x")]
	files[pkg("x")] = wrong
	w.push("a/os", files)
	w.want("os/"+primaryOf(files), files[primaryOf(files)].Body)
	w.want("os/"+pkg("x"), wrong.Body)
	files[pkg("x")] = right
	w.push("a/os", files)
	w.meet("os")
	w.is(w.look("os"), unchanged)
	w.want("os/"+pkg("x"), right.Body)
	w.restart()
	w.is(w.look("os"), unchanged)
	w.want("os/"+pkg("x"), right.Body)
	w.sound()
}

// TestHostileNoDigest: a primary by a digest that nobody here can make does not replace one that is verified.
func TestHostileNoDigest(t *testing.T) {
	w := newWorld(t, oneOrigin)
	make := func(hour int, algorithm, body string) map[string]mirrortest.File {
		p := rawPrimary([]string{"x.rpm"}, []byte(body))
		p.algorithm, p.href = algorithm, "repodata/primary.xml.gz"
		files := rawRepo(hour, p)
		files["x.rpm"] = mirrortest.File{Body: []byte(body), ModTime: at(hour)}
		return files
	}
	one, two := make(0, "sha256", strings.Repeat("1", 3000)), make(24, "blake3", strings.Repeat("2", 3000))
	w.push("a/os", one)
	w.meet("os")
	w.want("os/x.rpm", one["x.rpm"].Body)
	w.push("a/os", two)
	w.is(w.look("os"), Refused)
	for name, f := range one {
		w.want("os/"+name, f.Body)
	}
	w.sound()
}

// testOtherBackup restores of root and state one to what it was a generation before, and leaves the other.
func testOtherBackup(t *testing.T, w *world, push func(map[string]mirrortest.File), root bool) {
	one, two := repo(at(0), "x=1", "z=1").Files(), repo(at(24), "x=2", "z=2").Files()
	push(one)
	w.meet("os")
	w.want("os/"+pkg("x"), one[pkg("x")].Body)
	w.stop()
	tree, state, backup := filepath.Join(w.dir, "root"), filepath.Join(w.dir, "state", "index.db"), filepath.Join(w.dir, "backup")
	copyTree(t, tree, filepath.Join(backup, "root"))
	known, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	w.begin()
	push(two)
	w.is(w.look("os"), Published)
	w.want("os/"+pkg("x"), two[pkg("x")].Body)
	w.stop()
	if root {
		err = os.RemoveAll(tree)
		copyTree(t, filepath.Join(backup, "root"), tree)
		for name, f := range one { // backups keep their times
			if w.stands(base + "os/" + name) {
				err = errors.Join(err, os.Chtimes(filepath.Join(tree, base, "os", name), f.ModTime, f.ModTime))
			}
		}
	} else {
		err = os.WriteFile(state, known, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.begin()
	stands, what := two, unchanged
	if root {
		stands, what = one, Published
	}
	w.up.Stop() // what stands in the tree is served, and no other
	w.want("os/repodata/repomd.xml", stands["repodata/repomd.xml"].Body)
	w.want("os/"+pkg("x"), stands[pkg("x")].Body)
	if err := w.up.Start(); err != nil {
		t.Fatal(err)
	}
	w.route() // its origin has failed
	w.is(w.look("os"), what)
	for _, name := range []string{"repodata/repomd.xml", pkg("x"), pkg("z")} {
		w.want("os/"+name, two[name].Body)
	}
	w.is(w.look("os"), unchanged)
	w.is(w.look("os"), unchanged)
	w.restart()
	for _, name := range []string{"repodata/repomd.xml", pkg("x"), pkg("z")} {
		w.want("os/"+name, two[name].Body)
	}
	w.sound()
}

// TestHostileIndexNewer: with a root that is older than the state, one generation is served, and the newer one comes again.
func TestHostileIndexNewer(t *testing.T) {
	w := newWorld(t, oneOrigin)
	testOtherBackup(t, w, func(files map[string]mirrortest.File) { w.push("a/os", files) }, true)
}

// TestHostileIndexOlder: with a state that is older than the root, the generation in the tree is served.
func TestHostileIndexOlder(t *testing.T) {
	w := newWorld(t, oneOrigin)
	testOtherBackup(t, w, func(files map[string]mirrortest.File) { w.push("a/os", files) }, false)
}

// TestHostileIndexOlderRedirected: nor does that depend on who answers.
func TestHostileIndexOlderRedirected(t *testing.T) {
	w := newWorld(t, oneOrigin)
	to := mirrortest.NewUpstream(t)
	w.up.Fault("a/**", mirrortest.Fault{Redirect: to.URL + "/*"})
	testOtherBackup(t, w, func(files map[string]mirrortest.File) { to.PutTree("a/os", files) }, false)
}

// TestHostilePass: what passes through is neither stored nor watched.
func TestHostilePass(t *testing.T) {
	w := newWorld(t, oneOrigin+"content: [{match: 'dbg/**', action: pass}]")
	files := repo(at(0), "x").Files()
	w.push("a/dbg", files)
	w.up.Remove("a/dbg/" + pkg("x"))
	w.want("dbg/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
	w.want("dbg/"+primaryOf(files), files[primaryOf(files)].Body)
	w.absent("dbg/" + pkg("x")) // named, and not there: a reason to look
	w.is(w.look("dbg"), unchanged)
	w.restart() // all that is under way ends
	if list := w.stored("dbg"); len(list) > 0 {
		t.Errorf("stored: %v", list)
	}
	if _, ok := w.index.Repo(base + "dbg"); ok {
		t.Error("a generation is in force")
	}
}

// TestHostilePassLagging: what passes through is served as upstream has it, be it older than before.
func TestHostilePassLagging(t *testing.T) {
	w := newWorld(t, oneOrigin+"content: [{match: 'dbg/**', action: pass}]")
	for _, hour := range []int{24, 0} {
		files := repo(at(hour), "x").Files()
		w.push("a/dbg", files)
		w.want("dbg/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
	}
}

// TestHostileDeny: a record that the rules deny is not fetched, and keeps nothing else back.
func TestHostileDeny(t *testing.T) {
	w := newWorld(t, oneOrigin+"content: [{match: '**/*updateinfo*', action: deny}]")
	for hour := range 2 {
		r := repo(at(hour), fmt.Sprint("x=", hour))
		r.Extra = map[string][]byte{"updateinfo": fmt.Appendf(nil, "<updates><!-- %d --></updates>", hour)}
		files := r.Files()
		w.push("a/os", files)
		if hour == 0 {
			w.meet("os")
		} else {
			w.is(w.look("os"), Published)
		}
		w.want("os/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
		w.want("os/"+pkg("x"), files[pkg("x")].Body)
		if _, err := w.get("os/" + recordOf(files, "updateinfo")); err == nil {
			t.Error("it is served")
		}
	}
	w.restart() // all that is under way ends
	for _, name := range w.stored("os") {
		if strings.Contains(name, "updateinfo") {
			t.Errorf("stored: %s", name)
		}
	}
	if n := w.up.Count("**/*updateinfo*"); n > 0 {
		t.Errorf("upstream was asked %d times for what is denied", n)
	}
}

// TestHostilePointerDeleted: where somebody removed repomd.xml, the next generation takes its place as any other: what it
// drops leaves with grace, and what it means other bytes by goes.
func TestHostilePointerDeleted(t *testing.T) {
	w := newWorld(t, oneOrigin)
	one, two := repo(at(0), "x", "gone", "s=1").Files(), repo(at(24), "x", "s=2").Files()
	w.push("a/os", one)
	w.meet("os")
	for _, n := range []string{"x", "gone", "s"} {
		w.want("os/"+pkg(n), one[pkg(n)].Body)
		w.until(n+" is stored", func() bool { return w.holds("os/" + pkg(n)) })
	}
	w.byHand("os/repodata/repomd.xml")
	w.push("a/os", two)
	w.meet("os")
	w.want("os/repodata/repomd.xml", two["repodata/repomd.xml"].Body)
	w.is(w.look("os"), unchanged)
	w.want("os/"+pkg("s"), two[pkg("s")].Body)
	w.want("os/"+pkg("gone"), one[pkg("gone")].Body)
	if n := w.expire("os"); n > 0 {
		t.Errorf("%d files went in their grace", n)
	}
	w.age("os", 1000*time.Hour)
	w.expire("os")
	for n, want := range map[string]bool{"x": true, "gone": false} {
		if w.holds("os/"+pkg(n)) != want {
			t.Errorf("%s is held: %v", n, !want)
		}
	}
	w.sound()
}

// TestHostileVetoDeleted: nor is a push that would delete most of what is stored believed at once.
func TestHostileVetoDeleted(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		full := repo(at(0), many(60, "")...).Files()
		b.hosts["a"].put("os", full)
		b.meet("os")
		for _, n := range many(60, "") {
			b.has("os/"+pkg(n), full[pkg(n)].Body)
		}
		synctest.Wait()
		b.byHand(pointer)
		b.hosts["a"].put("os", repo(at(24), many(60, "=2")...).Files())
		b.meet("os")
		b.held(60)
		if b.status("os").Veto == nil {
			t.Error("there is no veto")
		}
	})
}

// held fails unless so many of those packages are stored.
func (b *bubble) held(want int) {
	b.t.Helper()
	n := 0
	for _, name := range b.stored("os") {
		if strings.HasPrefix(name, "Packages/m/many") {
			n++
		}
	}
	if n != want {
		b.t.Errorf("%d packages are stored, want %d", n, want)
	}
}

// TestHostileVetoSecond: a larger push under the veto of the first one waits for a confirmation of its own.
func TestHostileVetoSecond(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		make := func(hour, from int, seed string) map[string]mirrortest.File {
			var names []string
			var bodies [][]byte
			for i := from; i < 120; i++ {
				names, bodies = append(names, fmt.Sprintf("Packages/m/many%d.rpm", i)), append(bodies, fmt.Append(nil, seed, i))
			}
			files := rawRepo(hour, rawPrimary(names, bodies...))
			for i, name := range names {
				files[name] = mirrortest.File{Body: bodies[i], ModTime: at(hour)}
			}
			return files
		}
		full := make(0, 0, "")
		a.put("os", full)
		b.meet("os")
		for name, f := range full {
			b.has("os/"+name, f.Body)
		}
		synctest.Wait()
		a.put("os", make(24, 65, ""))
		b.is(b.look("os"), Published)
		if v := b.status("os").Veto; v == nil || v.Files != 65 {
			t.Fatalf("veto: %+v", v)
		}
		time.Sleep(61 * time.Minute)
		a.put("os", make(25, 0, "signed"))
		b.is(b.look("os"), Published)
		b.held(120)
		b.is(b.look("os"), unchanged)
		time.Sleep(58 * time.Minute)
		b.is(b.look("os"), unchanged)
		b.held(120)
		time.Sleep(3 * time.Minute)
		b.is(b.look("os"), unchanged)
		b.held(0)
	})
}

// TestHostilePointerDeletedAge: nor does it go back, where only Last-Modified tells.
func TestHostilePointerDeletedAge(t *testing.T) {
	w := newWorld(t, oneOrigin)
	old, now, next := aged(0, "old"), aged(24, "new"), aged(48, "next")
	w.push("a/os", now)
	w.meet("os")
	w.push("a/os", old)
	w.is(w.look("os"), Refused)
	w.byHand("os/repodata/repomd.xml")
	if b, err := w.get("os/repodata/repomd.xml"); err == nil {
		t.Errorf("served: %s", b)
	}
	w.push("a/os", next)
	w.is(w.look("os"), Published)
	w.want("os/repodata/repomd.xml", next["repodata/repomd.xml"].Body)
}

// TestHostileLostAge: nor after the index was lost.
func TestHostileLostAge(t *testing.T) {
	for _, rebuilt := range []bool{true, false} {
		w := newWorld(t, oneOrigin)
		old, now := aged(0, "old"), aged(24, "new")
		w.push("a/os", now)
		w.meet("os")
		w.push("a/os", old)
		w.is(w.look("os"), Refused)
		w.stop()
		if err := os.Remove(filepath.Join(w.dir, "state", "index.db")); err != nil {
			t.Fatal(err)
		}
		w.begin()
		if rebuilt {
			if n, err := w.monitor.Rebuild(t.Context()); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		w.is(w.look("os"), Refused)
		w.want("os/repodata/repomd.xml", now["repodata/repomd.xml"].Body)
	}
}

// TestHostileBrokenPrimaryRestart: a stored primary that cannot be read is not read again for each request.
func TestHostileBrokenPrimaryRestart(t *testing.T) {
	w := newWorld(t, oneOrigin)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprint(z, "<?xml version=\"1.0\"?>\n<metadata xmlns=\"http://linux.duke.edu/metadata/common\" packages=\"1\">\n<broken")
	_ = z.Close()
	files := rawRepo(0, rawRecord{kind: "primary", body: b.Bytes()})
	w.push("a/os", files)
	w.want("os/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
	w.until("primary is stored", func() bool { return w.holds("os/" + primaryOf(files)) })
	w.quiet()
	w.restart()
	w.mu.Lock()
	w.said = nil
	w.mu.Unlock()
	var clients sync.WaitGroup
	for i := range 10 {
		clients.Go(func() { w.absent(fmt.Sprintf("os/q/none%d.rpm", i)) })
	}
	clients.Wait()
	for i := range 3 {
		w.absent(fmt.Sprintf("os/q/later%d.rpm", i))
	}
	w.quiet()
	n := 0
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.said {
		if strings.Contains(err.Error(), primaryOf(files)) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it was read %d times", n)
	}
}

// TestHostileFuture: a generation of the future that all have dropped is in force no longer than the rule's back, also where
// they push a new one with each look.
func TestHostileFuture(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h, back: 12h}]", func(b *bubble) {
		all := func(files map[string]mirrortest.File) {
			for _, h := range b.hosts {
				h.put("os", files)
			}
		}
		future := repo(at(10000), "x=0").Files()
		all(future)
		b.meet("os")
		for hour := range 16 {
			time.Sleep(time.Hour)
			now := repo(at(hour), fmt.Sprint("x=", hour+1)).Files()
			all(now)
			want := Published
			if hour < 12 {
				want, now = Refused, future
			}
			b.is(b.look("os"), want)
			b.has(pointer, now["repodata/repomd.xml"].Body)
		}
	})
}

// TestHostileDownAgrees: an upstream that is down has not agreed to an older generation.
func TestHostileDownAgrees(t *testing.T) {
	const two = "\nname: test\npath: /pub/test\nenabled: true\nupstreams: [\"http://a.test/pub\"]\nfallbacks: [\"http://c.test/pub\"]\n"
	inBubble(t, two+"expiry: [{match: '**', refresh: 1h, back: 1s}]", func(b *bubble) {
		a, old, now := b.hosts["a"], repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		a.put("os", now)
		b.hosts["c"].put("os", old)
		b.meet("os")
		for _, fails := range []func(h *host, on bool){
			func(h *host, on bool) { h.refuses = on },
			func(h *host, on bool) { h.status = map[bool]int{true: http.StatusServiceUnavailable}[on] },
		} {
			a.set(func(h *host) { fails(h, true) })
			for range 5 {
				time.Sleep(time.Hour)
				if r := b.look("os"); r.What == Published {
					t.Fatalf("%+v", r)
				}
				b.has(pointer, now["repodata/repomd.xml"].Body)
			}
			a.set(func(h *host) { fails(h, false) })
			time.Sleep(time.Hour)
			b.is(b.look("os"), unchanged)
		}
		a.put("os", old)
		for range 2 { // now they agree
			time.Sleep(time.Hour)
			b.look("os")
		}
		b.has(pointer, old["repodata/repomd.xml"].Body)
	})
}

// TestHostileExpireShared: what left one repository does not expire while the packages of another one, that may name it,
// are not known.
func TestHostileExpireShared(t *testing.T) {
	x := mirrortest.Package{Name: "x"}.FileName()
	for other, dir := range map[string]string{"top": "pool", "top/p2": "../pool"} { // around the pool, or beside it
		t.Run(other, func(t *testing.T) {
			w := newWorld(t, oneOrigin)
			push := func(name, dir string, hours int, packages ...string) (own map[string]mirrortest.File) {
				r := repo(at(hours), packages...)
				r.Dir = dir
				own = make(map[string]mirrortest.File)
				for p, f := range r.Files() {
					if strings.HasPrefix(p, "repodata/") {
						own[p] = f
					} else {
						w.up.PutFile("a/top/pool/"+path.Base(p), f)
					}
				}
				w.push("a/"+name, own)
				return own
			}
			push("top/p1", "../pool", 0, "x", "y")
			files := push(other, dir, 0, "x")
			heal := w.up.Fault("a/"+other+"/repodata/*-primary*", mirrortest.Fault{Status: http.StatusServiceUnavailable})
			w.meet("top/p1")
			w.want(other+"/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
			w.look(other)
			if _, err := w.get("top/pool/" + x); err != nil {
				t.Fatal(err)
			}
			w.until("x is stored", func() bool { return w.holds("top/pool/" + x) })
			push("top/p1", "../pool", 24, "y")
			w.is(w.look("top/p1"), Published)
			w.age("top/p1", 1000*time.Hour)
			w.expire("top/p1")
			if !w.holds("top/pool/" + x) {
				t.Fatalf("it went, though nobody knows what %s names", other)
			}
			heal()
			w.route() // its origin has failed
			w.look(other)
			w.judged(base + other)
			w.expire("top/p1")
			if !w.holds("top/pool/" + x) {
				t.Errorf("it went, though %s names it", other)
			}
		})
	}
}

// TestHostileStorm: while a generation cannot be completed, clients do not make us ask more often than the schedule does.
func TestHostileStorm(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		one, two := repo(at(0), "x").Files(), repo(at(1), "x=2").Files()
		delete(two, primaryOf(two))
		for _, h := range b.hosts {
			h.put("os", one)
		}
		b.meet("os")
		for _, h := range b.hosts {
			h.put("os", two)
		}
		time.Sleep(2 * time.Hour) // it is overdue
		for _, h := range b.hosts {
			h.asked()
		}
		b.run()
		for range 1800 {
			b.has(pointer, one["repodata/repomd.xml"].Body)
			b.ask("os/" + pkg("q"))
			time.Sleep(time.Second)
		}
		// 10, 20, 40 ... 600 s after each other; what is named and not here is a reason to look, at most once per look.
		for name, h := range b.hosts {
			if n := len(h.asked()); n > 100 {
				t.Errorf("%s was asked %d times in half an hour", name, n)
			}
		}
	})
}

// TestHostileSameSecond: pushes within one second that validators do not tell apart are all seen.
func TestHostileSameSecond(t *testing.T) {
	for _, etag := range []string{"-", ""} { // none, or one that is made of time and size
		w := newWorld(t, oneOrigin)
		make := func(i byte) map[string]mirrortest.File {
			files := rawRepo(0, rawPrimary([]string{"x.rpm"}, bytes.Repeat([]byte{'a' + i}, 100)))
			f := files["repodata/repomd.xml"]
			f.ETag = etag
			files["repodata/repomd.xml"] = f
			return files
		}
		w.up.Fault("a/os/repodata/repomd.xml", mirrortest.Fault{Header: http.Header{"Date": {at(0).Add(time.Second).UTC().Format(http.TimeFormat)}}})
		w.push("a/os", make(0))
		w.meet("os")
		size := len(make(0)["repodata/repomd.xml"].Body)
		for i := range byte(3) { // after first contact, after a publication, after a look that found nothing
			files := make(i + 1)
			if len(files["repodata/repomd.xml"].Body) != size {
				t.Fatal("they differ in size")
			}
			w.push("a/os", files)
			w.is(w.look("os"), Published)
			w.want("os/repodata/repomd.xml", files["repodata/repomd.xml"].Body)
			if i == 1 {
				w.is(w.look("os"), unchanged)
			}
		}
	}
}
