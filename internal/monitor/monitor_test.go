package monitor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// inode of a stored file.
func (w *world) inode(name string) uint64 {
	w.t.Helper()
	info, err := os.Stat(filepath.Join(w.store.Dir(), base+name))
	if err != nil {
		w.t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// TestGenerations: a repository through its life. Each time just what changed or vanished goes, the rest is untouched.
func TestGenerations(t *testing.T) {
	w := newWorld(t, oneOrigin)
	one := repo(at(0), "kept", "gone", "signed=1", "unused")
	w.push("a/os", one.Files())
	w.meet("os")
	for _, name := range []string{"kept", "gone", "signed"} {
		w.want("os/"+pkg(name), one.Files()[pkg(name)].Body)
	}
	w.idle() // all are stored
	w.sound()

	// Nothing changes: one conditional request.
	w.up.Reset()
	w.is(w.look("os"), unchanged)
	if n := w.up.Count("**"); n != 1 {
		t.Errorf("a look asks %d times:\n%s", n, w.up.Log())
	}

	kept := w.inode("os/" + pkg("kept"))
	two := repo(at(24), "kept", "signed=2", "new", "unused")
	w.push("a/os", two.Files())
	w.up.Reset()
	w.is(w.look("os"), Published)
	if n := w.up.Count("a/os/Packages/**"); n != 0 {
		t.Errorf("packages are fetched unasked-for:\n%s", w.up.Log())
	}
	w.want("os/repodata/repomd.xml", two.Files()["repodata/repomd.xml"].Body)
	if w.inode("os/"+pkg("kept")) != kept {
		t.Error("an unchanged package was touched")
	}
	if w.holds("os/" + pkg("signed")) {
		t.Error("a re-signed package is still there")
	}
	if !w.holds("os/" + pkg("gone")) {
		t.Error("a vanished package went before its grace ended")
	}
	w.want("os/"+pkg("gone"), one.Files()[pkg("gone")].Body) // upstream has it no more
	w.want("os/"+pkg("signed"), two.Files()[pkg("signed")].Body)
	w.want("os/"+pkg("new"), two.Files()[pkg("new")].Body)
	// The old generation's metadata stays, too.
	for name, f := range one.Files() {
		if strings.HasSuffix(name, "-primary.xml.gz") {
			w.want("os/"+name, f.Body)
		}
	}
	w.sound()

	if n := w.expire("os"); n != 0 {
		t.Errorf("%d files went before their grace ended", n)
	}
	w.restart()
	w.age("os", 25*time.Hour)
	if n := w.expire("os"); n != 2 {
		t.Errorf("%d files went, want the package and the old primary", n)
	}
	w.absent("os/" + pkg("gone"))
	w.want("os/"+pkg("kept"), one.Files()[pkg("kept")].Body)
	entries, err := w.journal.Find(t.Context(), base+"os/"+pkg("signed"), 10)
	if err != nil || len(entries) != 1 || entries[0].Reason != "replaced" || entries[0].From == "" || entries[0].To == "" {
		t.Errorf("the journal has %+v, %v", entries, err)
	}
	entries, err = w.journal.Find(t.Context(), base+"os/"+pkg("gone"), 10)
	if err != nil || len(entries) != 1 || entries[0].Reason != "vanished" {
		t.Errorf("the journal has %+v, %v", entries, err)
	}
	w.sound()
}

// TestNeverBack: an older generation is refused, counted and said, until every origin has agreed on it for `back`, or
// somebody insists.
func TestNeverBack(t *testing.T) {
	w := newWorld(t, threeOrigins+"expiry: [{match: '**', refresh: 1h, back: 1s}]")
	old, now := repo(at(0), "x=old").Files(), repo(at(24), "x=new").Files()
	w.push("a/os", now)
	w.push("b/os", now)
	w.push("c/os", now)
	w.meet("os")
	w.push("a/os", old)
	w.is(w.look("os"), unchanged) // b has it still
	if e := w.logged(Refused); len(e) != 1 || !strings.Contains(e[0].Err.Error(), "older") {
		t.Errorf("said: %+v", e)
	}
	w.push("b/os", old)
	w.push("c/os", old)
	w.is(w.look("os"), Refused)
	r, _ := w.monitor.Repository(base + "os")
	if r.Refused < 4 || r.Back == nil {
		t.Errorf("status: %+v", r)
	}
	w.want("os/repodata/repomd.xml", now["repodata/repomd.xml"].Body)
	time.Sleep(1100 * time.Millisecond) // TODO
	w.is(w.look("os"), Published)
	w.want("os/repodata/repomd.xml", old["repodata/repomd.xml"].Body)
	w.push("a/os", now)
	w.is(w.look("os"), Published)
	w.push("a/os", old)
	w.push("b/os", now)
	w.is(w.force("os"), Published)
	w.want("os/repodata/repomd.xml", old["repodata/repomd.xml"].Body)
	w.want("os/"+pkg("x"), old[pkg("x")].Body)
}

// TestVeto: a push that would remove most of what is here deletes nothing before it is confirmed.
func TestVeto(t *testing.T) {
	w := newWorld(t, threeOrigins)
	var names []string
	for i := range 60 {
		names = append(names, "p"+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	full := repo(at(0), names...).Files()
	for _, origin := range []string{"a/os", "b/os"} {
		w.push(origin, full)
	}
	w.meet("os")
	for _, n := range names {
		w.want("os/"+pkg(n), full[pkg(n)].Body)
	}
	empty := repo(at(24), names[0]+"=resigned")
	w.push("a/os", empty.Files())
	w.is(w.look("os"), Published)
	r, _ := w.monitor.Repository(base + "os")
	if r.Veto == nil || r.Veto.Files != 60 || r.Veto.Held != 60 || len(w.logged(Vetoed)) != 1 {
		t.Errorf("status: %+v", r)
	}
	w.restart()
	w.age("os", 48*time.Hour)
	if n := w.expire("os"); n != 0 {
		t.Errorf("%d files went in spite of the veto", n)
	}
	w.want("os/"+pkg(names[1]), full[pkg(names[1])].Body)
	w.want("os/"+pkg(names[0]), empty.Files()[pkg(names[0])].Body) // not the old one, which is still here
	w.is(w.look("os"), unchanged)
	if r, _ := w.monitor.Repository(base + "os"); r.Veto == nil {
		t.Error("the same origin confirms at once")
	}
	// Another origin has it, too.
	w.push("b/os", empty.Files())
	w.up.Fault("a/**", mirrortest.Fault{Status: 503})
	w.is(w.look("os"), unchanged)
	if n := w.expire("os"); n < 59 {
		t.Errorf("%d files went, want 59 packages at least", n)
	}
	w.want("os/"+pkg(names[0]), empty.Files()[pkg(names[0])].Body)
	w.sound()
}

// TestLying: what can't be read, or does not name what is there, never takes the place of what is good.
func TestLying(t *testing.T) {
	w := newWorld(t, threeOrigins)
	good := repo(at(0), "x").Files()
	w.push("a/os", good)
	w.push("b/os", good)
	w.meet("os")
	broken := map[string]func(map[string]mirrortest.File){
		"no XML": func(f map[string]mirrortest.File) {
			f["repodata/repomd.xml"] = mirrortest.File{Body: []byte("sorry"), ModTime: at(24)}
		},
		"primary is another one": func(f map[string]mirrortest.File) {
			for name := range f {
				if strings.HasSuffix(name, "-primary.xml.gz") {
					f[name] = mirrortest.File{Body: []byte(strings.Repeat("x", len(f[name].Body)))}
				}
			}
		},
		"primary is missing": func(f map[string]mirrortest.File) {
			for name := range f {
				if strings.HasSuffix(name, "-primary.xml.gz") {
					delete(f, name)
				}
			}
		},
	}
	for name, damage := range broken {
		files := repo(at(24), "x", "y").Files()
		damage(files)
		w.push("a/os", files)
		w.look("os")
		w.want("os/repodata/repomd.xml", good["repodata/repomd.xml"].Body)
		w.want("os/"+pkg("x"), good[pkg("x")].Body)
		r, _ := w.monitor.Repository(base + "os")
		t.Logf("%s: %+v", name, r.Last)
		w.sound()
	}
	next := repo(at(25), "x", "y", "z").Files() // what was sent wrong is not asked for again for ten minutes
	w.push("a/os", next)
	w.is(w.look("os"), Published)
	w.want("os/"+pkg("y"), next[pkg("y")].Body)
}

// TestFixedNames: metadata of fixed names change with the pointer, all at once.
func TestFixedNames(t *testing.T) {
	w := newWorld(t, oneOrigin)
	one, two := repo(at(0), "x=1"), repo(at(24), "x=2")
	one.Fixed, two.Fixed = true, true
	w.push("a/os", one.Files())
	w.meet("os")
	w.want("os/repodata/filelists.xml.gz", one.Files()["repodata/filelists.xml.gz"].Body)
	w.want("os/"+pkg("x"), one.Files()[pkg("x")].Body)
	w.push("a/os", two.Files())
	// Before anybody has looked: what is here stays one generation.
	for _, name := range []string{"repodata/repomd.xml", "repodata/primary.xml.gz", "repodata/filelists.xml.gz"} {
		w.want("os/"+name, one.Files()[name].Body)
	}
	w.is(w.look("os"), Published)
	w.up.Reset()
	for _, name := range []string{"repodata/repomd.xml", "repodata/primary.xml.gz", "repodata/filelists.xml.gz"} {
		w.want("os/"+name, two.Files()[name].Body)
	}
	if n := w.up.Count("**"); n != 0 {
		t.Errorf("upstream was asked:\n%s", w.up.Log())
	}
	w.sound()
	if !slices.Contains(w.stored("os"), "repodata/filelists.xml.gz") {
		t.Error("what was asked for is not here")
	}
}
