package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// grouped is a generation with a group file of its own.
func grouped(hours int) map[string]mirrortest.File {
	r := repo(at(hours), fmt.Sprintf("x=%d", hours))
	r.Extra = map[string][]byte{"group": fmt.Appendf(nil, "<comps>%d</comps>", hours)}
	return r.Files()
}

// TestOvertaken: a repository that changes faster than it can be fetched is published after three attempts with its primary
// only. Status says so until the rest is here.
func TestOvertaken(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		first := grouped(0)
		a.put("os", first)
		b.meet("os")
		gens, pushed := map[string]map[string]mirrortest.File{}, 0
		push := func() {
			pushed++
			files := grouped(pushed)
			a.put("os", files)
			gens[string(files["repodata/repomd.xml"].Body)] = files
		}
		push()
		a.set(func(h *host) {
			h.before = func(name string) {
				if strings.HasSuffix(name, "comps.xml.gz") {
					push()
				}
			}
		})
		for range 3 {
			if r := b.look("os"); r.What == Published {
				break
			}
		}
		r := b.status("os")
		if r.Partial == "" || !strings.Contains(r.Partial, "attempts") {
			t.Errorf("status: %+v", r)
		}
		if pushed != 4 {
			t.Errorf("%d generations were tried", pushed-1)
		}
		if e := b.logged(Published); len(e) != 1 || e[0].Err == nil {
			t.Errorf("said: %+v", e)
		}
		files := gens[string(b.ask(pointer).body)]
		if files == nil {
			t.Fatal("none of them is in force")
		}
		a.asked()
		b.has("os/"+primaryOf(files), files[primaryOf(files)].Body)
		if list := a.asked(); len(list) != 0 {
			t.Errorf("upstream was asked: %v", list)
		}
		b.sound()

		// It comes to rest.
		a.set(func(h *host) { h.before = nil })
		push()
		b.run()
		time.Sleep(2 * time.Hour)
		files = grouped(pushed)
		b.has(pointer, files["repodata/repomd.xml"].Body)
		if r := b.status("os"); r.Partial != "" || r.Last.Err != nil {
			t.Errorf("status: %+v", r)
		}
		if !b.holds("os/" + recordOf(files, "comps")) {
			t.Error("the group file is not here")
		}
		b.sound()
	})
}

// TestLackingRecord: a record that upstream names and does not have keeps the generation back for three looks, and is
// fetched when it is there.
func TestLackingRecord(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		all := func(files map[string]mirrortest.File) {
			for _, h := range b.hosts {
				h.put("os", files)
			}
		}
		one, two := grouped(0), grouped(1)
		all(one)
		b.meet("os")
		less := maps.Clone(two)
		delete(less, recordOf(two, "comps"))
		all(less)
		b.run()
		for i := range 2 {
			if r := b.look("os"); r.What != Failed {
				t.Errorf("look %d: %+v", i+1, r)
			}
			b.has(pointer, one["repodata/repomd.xml"].Body)
		}
		time.Sleep(time.Minute)
		b.has(pointer, two["repodata/repomd.xml"].Body)
		if r := b.status("os"); r.Partial == "" {
			t.Errorf("status: %+v", r)
		}
		if g := b.ask("os/" + recordOf(two, "comps")); !errors.Is(g.err, fs.ErrNotExist) {
			t.Errorf("%d bytes, %v", len(g.body), g.err)
		}
		b.has("os/"+pkg("x"), two[pkg("x")].Body)
		all(two)
		time.Sleep(2 * time.Hour)
		if r := b.status("os"); r.Partial != "" || !b.holds("os/"+recordOf(two, "comps")) {
			t.Errorf("status: %+v", r)
		}
	})
}

// TestUsedRecords: what was asked for of the generation before is fetched for the next one before that is published, what
// nobody has asked for lately is not.
func TestUsedRecords(t *testing.T) {
	inBubble(t, oneHost+"poll: always\nexpiry: [{match: '**', refresh: 1h, idle: 10d}]", func(b *bubble) {
		a := b.hosts["a"]
		gens := []map[string]mirrortest.File{repo(at(0), "x=1").Files(), repo(at(1), "x=2").Files(), repo(at(2), "x=3").Files()}
		a.put("os", gens[0])
		b.meet("os")
		b.has("os/"+recordOf(gens[0], "filelists"), gens[0][recordOf(gens[0], "filelists")].Body)
		b.run()
		a.set(func(h *host) {
			h.before = func(name string) {
				if !strings.Contains(name, "filelists") {
					return
				}
				// What it waits for is not visible yet.
				if g := b.ask(pointer); g.err != nil || string(g.body) != string(gens[0]["repodata/repomd.xml"].Body) {
					t.Errorf("the new repomd.xml is visible before filelists are here (%v)", g.err)
				}
			}
		})
		a.put("os", gens[1])
		time.Sleep(time.Hour)
		a.asked()
		b.has(pointer, gens[1]["repodata/repomd.xml"].Body)
		b.has("os/"+recordOf(gens[1], "filelists"), gens[1][recordOf(gens[1], "filelists")].Body)
		if list := a.asked(); len(list) != 0 {
			t.Errorf("upstream was asked: %v", list)
		}
		if b.holds("os/" + recordOf(gens[1], "other")) {
			t.Error("what nobody has asked for was fetched")
		}
		// Nobody asks for filelists any more.
		time.Sleep(11 * 24 * time.Hour)
		a.put("os", gens[2])
		time.Sleep(time.Hour)
		if b.holds("os/"+recordOf(gens[2], "filelists")) || !b.holds("os/"+primaryOf(gens[2])) {
			t.Errorf("stored: %v", b.stored("os/repodata"))
		}
		synctest.Wait()
		b.has("os/"+recordOf(gens[2], "other"), gens[2][recordOf(gens[2], "other")].Body) // on demand, by digest
		b.sound()
	})
}
