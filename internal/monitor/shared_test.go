package monitor

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// loseIndex restarts b without what it knew.
func (b *bubble) loseIndex() {
	b.t.Helper()
	b.restart(func() {
		if err := os.Remove(filepath.Join(b.dir, "state", "index.db")); err != nil {
			b.t.Fatal(err)
		}
	})
}

// pooled is a repository whose packages are beside it, in pool/.
func pooled(hours int, names ...string) map[string]mirrortest.File {
	r := repo(at(hours), names...)
	r.Dir = "../pool"
	return r.Files()
}

// place puts a pooled repository at the host, its packages where they belong.
func (h *host) place(repo string, files map[string]mirrortest.File) {
	own, pool := map[string]mirrortest.File{}, map[string]mirrortest.File{}
	for name, f := range files {
		if rest, ok := cutPool(name); ok {
			pool[rest] = f
		} else {
			own[name] = f
		}
	}
	h.put(repo, own)
	h.put("pool", pool)
}

func cutPool(name string) (string, bool) {
	const up = "../pool/"
	if len(name) > len(up) && name[:len(up)] == up {
		return name[len(up):], true
	}
	return "", false
}

// TestLostIndex: without its index the mirror does not go back either, not even before the tree was read.
func TestLostIndex(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		old, now := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		for _, h := range b.hosts {
			h.put("os", now)
		}
		b.meet("os")
		b.has("os/"+pkg("y"), now[pkg("y")].Body)
		for _, h := range b.hosts {
			h.put("os", old)
		}
		b.loseIndex()
		b.has(pointer, now["repodata/repomd.xml"].Body)
		if _, err := b.monitor.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.run()
		time.Sleep(12 * time.Hour)
		b.has(pointer, now["repodata/repomd.xml"].Body)
		b.has("os/"+pkg("y"), now[pkg("y")].Body)
		b.sound()
	})
}

// TestRebuildShared: a file of which two repositories say different things is right by either one, also when that has to be
// learned anew.
func TestRebuildShared(t *testing.T) {
	for _, order := range [][]string{{"p1", "p2"}, {"p2", "p1"}} {
		inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
			a := b.hosts["a"]
			x := mirrortest.Package{Name: "x"}.FileName()
			var last map[string]mirrortest.File
			for _, name := range order {
				last = pooled(0, "x="+name, "y")
				a.place(name, last)
				b.meet(name)
				time.Sleep(time.Second) // the one that came last counts
			}
			b.has("pool/"+x, last["../pool/"+x].Body)
			synctest.Wait()
			inode := b.inode("pool/" + x)
			b.loseIndex()
			if _, err := b.monitor.Rebuild(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !b.holds("pool/"+x) || b.inode("pool/"+x) != inode {
				t.Errorf("what is right by %s went", order[1])
			}
			b.sound()
		})
	}
}

// TestSharedLeaves: what one repository drops, and another one means other bytes by, is not served to that one's clients.
func TestSharedLeaves(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		x := mirrortest.Package{Name: "x"}.FileName()
		one, two := pooled(0, "x=1", "y"), pooled(0, "x=2", "y")
		a.place("p1", one)
		b.meet("p1")
		b.has("pool/"+x, one["../pool/"+x].Body)
		synctest.Wait()
		a.place("p2", two)
		b.meet("p2")
		b.has("pool/"+x, one["../pool/"+x].Body) // right by the first
		less := pooled(1, "y")
		a.place("p1", less)
		a.place("p2", two)
		if r := b.look("p1"); r.What != Published {
			t.Fatalf("%+v", r)
		}
		b.has("pool/"+x, two["../pool/"+x].Body)
		b.sound()
	})
}

// TestFixedNameLeaves: metadata of a fixed name that is named no more is served in its grace as it is, without asking.
func TestFixedNameLeaves(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h, grace: 1d}]", func(b *bubble) {
		a := b.hosts["a"]
		fixed := repo(at(0), "x")
		fixed.Fixed = true
		one, two := fixed.Files(), repo(at(1), "x").Files()
		a.put("os", one)
		b.meet("os")
		a.put("os", two)
		if r := b.look("os"); r.What != Published {
			t.Fatalf("%+v", r)
		}
		time.Sleep(5 * time.Hour)
		a.asked()
		inode := b.inode("os/repodata/primary.xml.gz")
		b.has("os/repodata/primary.xml.gz", one["repodata/primary.xml.gz"].Body)
		synctest.Wait()
		if list := a.asked(); len(list) != 0 || b.inode("os/repodata/primary.xml.gz") != inode {
			t.Errorf("upstream was asked: %v", list)
		}
		b.run()
		time.Sleep(20 * time.Hour)
		if b.holds("os/repodata/primary.xml.gz") {
			t.Error("it is here after its grace")
		}
	})
}
