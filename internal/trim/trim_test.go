package trim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/store"
)

const (
	repo    = "pub/a/os/"
	primary = repo + "repodata/1-primary.xml.zst"
)

// makeRepository puts a repository in the tree that nobody has used for long.
func (w *world) makeRepository() {
	for _, name := range []string{"repodata/repomd.xml", "repodata/repomd.xml.asc", "repodata/repomd.xml.key", ".treeinfo", "Fedora-CHECKSUM"} {
		w.put(repo+name, 1, 1000)
	}
	w.put(primary, 1, 900)
	w.put(repo+"repodata/2-other.xml.zst", 1, 901)
	w.put(repo+"repodata/0-old.xml.zst", 1, 3) // the generation before
	records := map[string]index.Record{primary: {Type: "primary"}, repo + "repodata/2-other.xml.zst": {Type: "other"}}
	if err := w.index.SetRecords(strings.TrimSuffix(repo, "/"), index.Pointer{}, records, primary); err != nil {
		w.t.Fatal(err)
	}
}

// TestOrder: where nothing can stay, the order in which all goes is seen, and what never does.
func TestOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.makeRepository()
		w.put("b/unknown-small.rpm", 10, -1)
		w.put("b/unknown-large.rpm", 20, -1)
		w.put("b/now.rpm", 10, 0)
		w.put("b/yesterday.rpm", 10, 24)
		w.put("b/boot.iso", 10, 48)
		w.put("a/old.rpm", 10, 800)
		w.put("a/linked.rpm", 10, 700)
		w.link("a/linked.rpm", "c/linked.rpm", 25)
		w.put("a/kept.rpm", 10, 700)
		w.link("a/kept.rpm", repo+"other-CHECKSUM", 700)
		w.link(repo+".treeinfo", "a/treeinfo.rpm", 1000)
		w.link(repo+".treeinfo", "q/treeinfo.rpm", 1000)
		outside := filepath.Join(filepath.Dir(w.root), "snapshot")
		w.put("a/outside.rpm", 10, 850)
		if err := os.Link(filepath.Join(w.root, "a/outside.rpm"), outside); err != nil {
			t.Fatal(err)
		}
		w.store.SetReserve(1 << 60)
		defer w.start()()
		w.wantGone("b/unknown-large.rpm", "b/unknown-small.rpm", "a/old.rpm", "b/boot.iso", "a/linked.rpm", "c/linked.rpm", "b/yesterday.rpm",
			repo+"repodata/0-old.xml.zst", "b/now.rpm", repo+"repodata/2-other.xml.zst", primary)
		if names, _ := w.stored(); len(names) != 5+2+2+1 {
			t.Errorf("left: %v", names)
		}

		// Nothing is left: it is said once, and not looked for all the time.
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		errs := w.errors()
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "nothing is left there that may go") {
			t.Errorf("reported: %v", errs)
		}
		if wait := w.scope("").wait; wait != retryLast {
			t.Errorf("the next walk is after %v", wait)
		}
		if e := w.reported()[0]; e.Files != 11 || e.Bytes != 83 || !e.Used.Equal(time.Now().Add(-3*time.Hour)) {
			t.Errorf("reported: %+v", e)
		}
		if w.MakeRoom("a/x", 1) {
			t.Error("room was made of nothing")
		}
		// What comes later goes at the next try.
		w.put("d/new.rpm", 10, 5)
		time.Sleep(retryLast)
		synctest.Wait()
		if got := w.gone(); got[len(got)-1] != "d/new.rpm" {
			t.Error("d/new.rpm is still there")
		}
		if wait := w.scope("").wait; wait >= retryLast {
			t.Errorf("after that, the next walk is after %v", wait)
		}
		// At once, if the limits changed.
		time.Sleep(3*time.Hour + time.Second)
		w.put("d/newer.rpm", 10, 5)
		w.Poke()
		synctest.Wait()
		if got := w.gone(); got[len(got)-1] != "d/newer.rpm" {
			t.Error("d/newer.rpm is still there")
		}
	})
}

// TestSoftLimit: room is made before it is needed, and no more than that.
func TestSoftLimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 1000}})
		for i, name := range numbered("p/%02d.rpm", 0, 12) {
			w.put(name, 100, 100-i)
		}
		defer w.start()()
		w.wantGone(numbered("p/%02d.rpm", 0, 3)...) // 1200 → 900 of 950
		if err := w.storeFile("q/new.rpm", 60); err != nil {
			t.Fatal(err)
		}
		w.index.Use("p/03.rpm") // what is known since the walk
		time.Sleep(lookEvery)
		synctest.Wait()
		w.wantGone(append(numbered("p/%02d.rpm", 0, 3), "p/04.rpm")...)
		if used, _, _ := w.store.Usage(""); used != 860 {
			t.Errorf("used: %d", used)
		}

		// A lower limit is in force at once.
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 500}})
		w.Poke()
		synctest.Wait()
		if names, bytes := w.stored(); bytes != 460 || !slices.Contains(names, "p/03.rpm") || !slices.Contains(names, "q/new.rpm") {
			t.Errorf("%d bytes in %v", bytes, names)
		}

		// And a new one when it is known how much there is.
		w.store.SetQuotas([]store.Quota{{Dir: "p", Limit: 250}})
		w.Poke()
		synctest.Wait()
		if names, bytes := w.stored(); bytes != 260 || !slices.Contains(names, "q/new.rpm") {
			t.Errorf("%d bytes in %v", bytes, names)
		}
		if errs := w.errors(); errs != nil {
			t.Errorf("reported: %v", errs)
		}
	})
}

// TestProfileLimit: where a profile's share is used up, others lose nothing for it.
func TestProfileLimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.SetQuotas([]store.Quota{{Dir: "pub/a", Limit: 1000}})
		for i := range 10 {
			w.put(fmt.Sprintf("pub/a/%d.rpm", i), 100, 50-i)
			w.put(fmt.Sprintf("pub/ab/%d.rpm", i), 100, 500-i)
		}
		// Its other names are elsewhere, where somebody uses them.
		w.put("pub/a/linked.rpm", 100, 1000)
		w.link("pub/a/linked.rpm", "pub/a/too.rpm", 60)
		w.link("pub/a/linked.rpm", "pub/b/linked.rpm", 0)
		defer w.start()()
		w.wantGone("pub/a/linked.rpm", "pub/a/too.rpm", "pub/a/0.rpm")
		if used, _, _ := w.store.Usage("pub/a"); used != 900 {
			t.Errorf("used: %d", used)
		}

		// At the hard limit, too: at once.
		if err := w.storeFile("pub/a/new.rpm", 300); err != nil {
			t.Fatal(err)
		}
		w.wantGone("pub/a/linked.rpm", "pub/a/too.rpm", "pub/a/0.rpm", "pub/a/1.rpm", "pub/a/2.rpm")

		// All that is said of it once a minute.
		time.Sleep(reportEvery - time.Second)
		synctest.Wait()
		if got := w.reported(); len(got) != 1 || got[0].Files != 3 || got[0].Dir != "pub/a" {
			t.Errorf("reported: %+v", got)
		}
		time.Sleep(lookEvery)
		synctest.Wait()
		if got := w.reported(); len(got) != 2 || got[1].Files != 3 || got[1].Bytes != 300 {
			t.Errorf("reported: %+v", got)
		}
		// What was found is not kept for ever.
		time.Sleep(keep)
		synctest.Wait()
		if w.scope("pub/a").choice != nil {
			t.Error("the walk of yesterday is remembered")
		}
	})
}

// TestMakeRoom: a file that does not fit has room made for it.
func TestMakeRoom(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 1000}, {Dir: "big", Limit: 5000}})
		for i, name := range numbered("p/%02d.rpm", 0, 9) {
			w.put(name, 100, 100-i)
		}
		if err := w.storeFile("q/early.rpm", 200); err != nil { // nothing is counted yet
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(w.root, "q/early.rpm")); err != nil {
			t.Fatal(err)
		}
		if begun := time.Now(); w.MakeRoom("q/new.rpm", 10) || time.Since(begun) > 0 {
			t.Error("room was made, or waited for, and nobody runs")
		}
		stop := w.start()
		w.wantGone()
		if err := w.storeFile("q/new.rpm", 350); err != nil {
			t.Fatal(err)
		}
		w.wantGone(numbered("p/%02d.rpm", 0, 3)...) // 250 lacked
		if err := w.storeFile("q/large.rpm", 1100); !errors.Is(err, store.ErrNoSpace) {
			t.Errorf("what can never fit: %v", err)
		}
		w.wantGone(numbered("p/%02d.rpm", 0, 3)...)

		// Of unknown length: it may be endless, and nothing goes for it.
		time.Sleep(lookEvery)
		synctest.Wait()
		before := len(w.gone())
		p, err := w.store.Create("big/new.img", digest.Unverified(-1, "test"), false)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for err == nil {
			_, err = p.Write(make([]byte, 100))
		}
		if n := len(w.gone()); n != before || !errors.Is(err, store.ErrNoSpace) {
			t.Errorf("%d went; %v", n-before, err)
		}
		stop()
		if errs := w.errors(); errs != nil {
			t.Errorf("reported: %v", errs)
		}
	})
}

// TestOneWalk: all that wait share one walk; who waited too long does without.
func TestOneWalk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i, name := range numbered("p/%02d.rpm", 0, 20) {
			w.put(name, 100, 100-i)
		}
		w.setRunning(true) // we do what Run does
		begun := time.Now()
		if w.MakeRoom("q/0.rpm", 1) {
			t.Error("room was made without a walk")
		}
		if waited := time.Since(begun); waited != patience {
			t.Errorf("waited for %v", waited)
		}
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				if !w.MakeRoom("q/0.rpm", 150) {
					t.Error("no room")
				}
			})
		}
		synctest.Wait()
		w.wantGone()
		if !w.walkWanted(t.Context()) {
			t.Error("no walk was asked for")
		}
		callers.Wait()
		if w.walkWanted(t.Context()) {
			t.Error("two walks were asked for")
		}
		if got := w.gone(); len(got) != 20 {
			t.Errorf("%d went", len(got))
		}
		// The end wakes those who wait.
		w.scopes[""].choice = nil
		callers.Go(func() {
			begun := time.Now()
			if w.MakeRoom("q/0.rpm", 1) || time.Since(begun) != 0 {
				t.Error("it waited beyond the end")
			}
		})
		synctest.Wait()
		w.setRunning(false)
		callers.Wait()
	})
}

// TestOldWalk: where all that a walk found was used since, there is another one, without delay.
func TestOldWalk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.put("a.rpm", 100, 10)
		w.setRunning(true)
		defer w.setRunning(false)
		w.MakeRoom("q", 1)
		w.walkWanted(t.Context())
		time.Sleep(time.Hour)
		w.index.Use("a.rpm")
		made := make(chan bool)
		go func() { made <- w.MakeRoom("q", 1) }()
		synctest.Wait()
		w.walkWanted(t.Context())
		if !<-made {
			t.Error("no room")
		}
		w.wantGone("a.rpm")
	})
}

// TestWhere: where room is made for a file.
func TestWhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.put("pub/a/1.rpm", 500, 1)
		w.put("pub/b/1.rpm", 930, 1)
		w.put("pub/c/1.rpm", 990, 1)
		w.put("pub/d/1.rpm", 950, 1)
		w.put("pub/d/in/1.rpm", 10, 1)
		quotas := []store.Quota{
			{Dir: "pub/a", Limit: 1000}, {Dir: "pub/b", Limit: 1000}, {Dir: "pub/c", Limit: 1000}, {Dir: "pub/d", Limit: 2000}, {Dir: "pub/d/in", Limit: 2000},
		}
		w.store.SetQuotas(quotas)
		if err := w.store.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		where := func(want, name string, n int64) {
			t.Helper()
			if got := w.short(name, n); got != want {
				t.Errorf("%s, %d bytes: below %q, want %q", name, n, got, want)
			}
		}
		// pub/c is short of room, the site and the disk are not.
		where("pub/c", "pub/c/x", 5)
		where("pub/a", "pub/a/x", 501)
		where("pub/a", "pub/a/x", 499)
		where("pub/b", "pub/b/x", 5)
		where("", "pub/e/x", 5)
		where("", "x", 5)
		where("", "pub/d/in/x", 1000) // there is not as much in either
		where("pub/d", "pub/d/in/x", 900)
		where("pub/d/in", "pub/d/in/x", 5)
		where("pub/d", "pub/d/in/x", 1200)
		// The inner one is short of room.
		quotas[2].Limit, quotas[4].Limit = 0, 10
		w.store.SetQuotas(quotas)
		where("pub/d/in", "pub/d/in/x", 5)
		// The outer one is.
		quotas[3].Limit, quotas[4].Limit = 1000, 2000
		w.store.SetQuotas(quotas)
		where("pub/d", "pub/d/in/x", 5)
		// The site is.
		quotas[3].Limit, quotas[4].Limit = 2000, 2000
		w.store.SetQuotas(append(quotas, store.Quota{Limit: 3400}))
		where("", "pub/b/x", 5)
		where("pub/b", "pub/b/x", 71)
	})
}

// TestChangedMeanwhile: what a walk found is looked at again before it goes.
func TestChangedMeanwhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i, name := range numbered("p/%d.rpm", 0, 9) {
			w.put(name, 100, 100-10*i)
		}
		w.setRunning(true)
		go w.MakeRoom("q/0.rpm", 1)
		synctest.Wait()
		w.walkWanted(t.Context())
		synctest.Wait()
		w.wantGone("p/0.rpm")
		w.index.Use("p/1.rpm")
		if err := os.Remove(filepath.Join(w.root, "p/2.rpm")); err != nil {
			t.Fatal(err)
		}
		w.link("p/3.rpm", "r/3.rpm", 0)
		w.put("q/p4.rpm", 100, -1) // is another file from now on
		if err := os.Rename(filepath.Join(w.root, "q/p4.rpm"), filepath.Join(w.root, "p/4.rpm")); err != nil {
			t.Fatal(err)
		}
		if !w.MakeRoom("q/0.rpm", 101) {
			t.Error("no room")
		}
		w.wantGone("p/0.rpm", "p/5.rpm", "p/6.rpm")

		// Long after the walk, what is there since then may go before what it found.
		w.put("q/new.rpm", 100, 2)
		time.Sleep(12 * time.Hour)
		go w.MakeRoom("q/0.rpm", 400)
		synctest.Wait()
		w.wantGone("p/0.rpm", "p/5.rpm", "p/6.rpm", "p/7.rpm", "p/8.rpm")
		w.walkWanted(t.Context())
		synctest.Wait()
		w.wantGone("p/0.rpm", "p/5.rpm", "p/6.rpm", "p/7.rpm", "p/8.rpm", "p/4.rpm", "q/new.rpm")
		w.setRunning(false)
	})
}

// TestCannotDelete: it is said once, and tried again.
func TestCannotDelete(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 1000}})
		for i, name := range numbered("p/%02d.rpm", 0, 12) {
			w.put(name, 100, 100-i)
		}
		mend := w.breakJournal()
		defer w.start()()
		time.Sleep(time.Hour)
		synctest.Wait()
		if w.MakeRoom("p/new", 100) {
			t.Error("room was made")
		}
		if errs := w.errors(); len(errs) != 1 || !strings.Contains(errs[0].Error(), "journal") {
			t.Errorf("reported: %v", errs)
		}
		mend()
		time.Sleep(retryLast)
		synctest.Wait()
		w.wantGone(numbered("p/%02d.rpm", 0, 3)...)
	})
}

// TestOthersChanges: what others do to the tree counts from the next day on.
func TestOthersChanges(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 1000}})
		w.put("a.rpm", 800, 10)
		defer w.start()()
		w.put("b.rpm", 800, 5)
		time.Sleep(measureEvery + time.Second)
		synctest.Wait()
		w.wantGone("a.rpm")
	})
}
