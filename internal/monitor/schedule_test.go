package monitor

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const pointer = "os/repodata/repomd.xml"

// polls fails unless each of list is a conditional request for the pointer alone, and returns the times between them.
func (b *bubble) polls(list []ask, status int) (gaps []time.Duration) {
	b.t.Helper()
	for i, a := range list {
		if a.name != pointer || !a.conditional || a.status != status {
			b.t.Errorf("request %d is for %s, conditional: %v, status %d", i, a.name, a.conditional, a.status)
		}
		if i > 0 {
			gaps = append(gaps, a.at.Sub(list[i-1].at))
		}
	}
	return gaps
}

// TestPolls: a pointer in use is asked for once per refresh, early by up to a tenth of it and never late, by one
// conditional request.
func TestPolls(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		a.put("os", repo(at(0), "x").Files())
		b.meet("os")
		a.asked()
		met := time.Now()
		b.run()
		time.Sleep(3 * 24 * time.Hour)
		list := a.asked()
		gaps := append(b.polls(list, http.StatusNotModified), list[0].at.Sub(met))
		sum, different := time.Duration(0), false
		for _, g := range gaps {
			if g < 54*time.Minute || g > time.Hour {
				t.Errorf("polled after %v", g)
			}
			sum, different = sum+g, different || g != gaps[0]
		}
		if mean := sum / time.Duration(len(gaps)); !different || mean < 56*time.Minute || mean > 58*time.Minute {
			t.Errorf("no jitter: %v on average", mean)
		}
		if r := b.status("os"); r.State != "watched" || r.Stale || r.Last.What != unchanged || time.Until(r.Next) > time.Hour {
			t.Errorf("status: %+v", r)
		}
		b.has(pointer, repo(at(0), "x").Files()["repodata/repomd.xml"].Body)
		if n := len(a.asked()); n != 0 {
			t.Errorf("a hit costs %d requests", n)
		}
	})
}

// TestMany: many repositories are polled one by one, in a time that was not chosen by when they came.
func TestMany(t *testing.T) {
	const n = 40
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		for i := range n {
			a.put(fmt.Sprintf("r%02d", i), repo(at(0)).Files())
		}
		b.run()
		for i := range n {
			b.meet(fmt.Sprintf("r%02d", i))
		}
		time.Sleep(24 * time.Hour)
		a.asked()
		time.Sleep(time.Hour)
		list := a.asked()
		minutes := map[int]int{}
		for _, r := range list {
			minutes[r.at.Minute()]++
		}
		if len(list) < n || len(list) > n*5/4 || len(minutes) < 15 {
			t.Errorf("%d requests in %d of 60 minutes", len(list), len(minutes))
		}
	})
}

// TestNever: what never changes is never polled, but looked at when somebody says so.
func TestNever(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: never}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		a.put("os", one)
		b.meet("os")
		a.put("os", two)
		a.asked()
		b.run()
		for range 30 {
			time.Sleep(24 * time.Hour)
			b.has(pointer, one["repodata/repomd.xml"].Body)
		}
		if list := a.asked(); len(list) != 0 {
			t.Errorf("upstream was asked: %v", list)
		}
		if r := b.status("os"); r.State != "never polled" || !r.Next.IsZero() {
			t.Errorf("status: %+v", r)
		}
		if r := b.look("os"); r.What != Published {
			t.Errorf("looked at by hand: %+v", r)
		}
		b.has(pointer, two["repodata/repomd.xml"].Body)
	})
}

// TestAsleep: what nobody asks for is not polled any more. The first who does gets what upstream has now, or after five
// seconds what is here, marked as stale.
func TestAsleep(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h, idle: 14d}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two, three := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files(), repo(at(2), "x", "z").Files()
		a.put("os", one)
		b.meet("os")
		b.run()
		met := time.Now()
		a.asked()
		time.Sleep(30 * 24 * time.Hour)
		list := a.asked()
		if n := len(list); n < 14*24-2 || list[n-1].at.Sub(met) > 14*24*time.Hour {
			t.Errorf("polled %d times, the last time after %v", len(list), list[len(list)-1].at.Sub(met))
		}
		if r := b.status("os"); r.State != "asleep" || !r.Next.IsZero() || r.Stale {
			t.Errorf("status: %+v", r)
		}

		a.put("os", two)
		if g := b.has(pointer, two["repodata/repomd.xml"].Body); !strings.Contains(g.status, "fwd=stale") {
			t.Error(g.status)
		}
		b.has("os/"+pkg("y"), two[pkg("y")].Body)
		a.asked()
		time.Sleep(24 * time.Hour)
		if n := len(b.polls(a.asked(), http.StatusNotModified)); n < 23 {
			t.Errorf("awake again, and polled %d times a day", n)
		}

		// Asleep again, and upstream hangs.
		time.Sleep(30 * 24 * time.Hour)
		a.put("os", three)
		a.set(func(h *host) { h.hangs = true })
		g := b.has(pointer, two["repodata/repomd.xml"].Body)
		if g.took != 5*time.Second || !strings.Contains(g.status, "detail=stale") || !strings.Contains(g.status, "ttl=-") {
			t.Errorf("after %v: %s", g.took, g.status)
		}
		b.has("os/"+pkg("y"), two[pkg("y")].Body)
		// Those who come later do not wait anew.
		if g := b.has(pointer, two["repodata/repomd.xml"].Body); g.took != 0 {
			t.Errorf("the next one waits %v: %s", g.took, g.status)
		}
		time.Sleep(time.Minute)
		if r := b.status("os"); r.State != "watched" || !r.Stale || r.Last.What != Failed {
			t.Errorf("status: %+v", r)
		}
		a.set(func(h *host) { h.hangs = false })
		time.Sleep(10 * time.Minute)
		b.has(pointer, three["repodata/repomd.xml"].Body)
	})
}

// TestAlways: where others read the tree, what nobody asks us for is polled all the same, also after a restart.
func TestAlways(t *testing.T) {
	inBubble(t, oneHost+"poll: always\nexpiry: [{match: '**', refresh: 6h}]", func(b *bubble) {
		a := b.hosts["a"]
		a.put("os", repo(at(0), "x").Files())
		b.meet("os")
		b.run()
		time.Sleep(30 * 24 * time.Hour)
		b.restart(nil)
		b.run()
		a.asked()
		time.Sleep(10 * 24 * time.Hour)
		if n := len(b.polls(a.asked(), http.StatusNotModified)); n < 39 {
			t.Errorf("polled %d times in 10 days", n)
		}
	})
}

// TestBackOff: an upstream that does not answer is asked ever more rarely, and as always once it does.
func TestBackOff(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		one := repo(at(0), "x").Files()
		a.put("os", one)
		b.meet("os")
		b.run()
		a.asked()
		a.set(func(h *host) { h.status = http.StatusServiceUnavailable })
		time.Sleep(4 * time.Hour)
		gaps := b.polls(a.asked(), http.StatusServiceUnavailable)
		want := 10 * time.Second
		for i, g := range gaps {
			if g < want*9/10 || g > want {
				t.Errorf("failure %d: tried again after %v, want %v", i+1, g, want)
			}
			want = min(2*want, 10*time.Minute)
		}
		if len(gaps) < 20 {
			t.Errorf("tried %d times", len(gaps))
		}
		if g := b.has(pointer, one["repodata/repomd.xml"].Body); g.took > 5*time.Second || !strings.Contains(g.status, "detail=stale") {
			t.Errorf("after %v: %s", g.took, g.status)
		}
		if r := b.status("os"); !r.Stale || r.Last.What != Failed || r.Last.Message == "" {
			t.Errorf("status: %+v", r)
		}
		a.set(func(h *host) { h.status = 0 })
		time.Sleep(10 * time.Minute)
		a.asked()
		time.Sleep(10 * time.Hour)
		for _, g := range b.polls(a.asked(), http.StatusNotModified) {
			if g < 54*time.Minute || g > time.Hour {
				t.Errorf("polled after %v", g)
			}
		}
		if r := b.status("os"); r.Stale || r.Last.What != unchanged {
			t.Errorf("status: %+v", r)
		}
	})
}

// TestShortRefresh: a failure never makes polls rarer than the rule says.
func TestShortRefresh(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 15s}]", func(b *bubble) {
		a := b.hosts["a"]
		a.put("os", repo(at(0), "x").Files())
		b.meet("os")
		b.run()
		a.set(func(h *host) { h.status = http.StatusServiceUnavailable })
		time.Sleep(2 * time.Minute)
		a.asked()
		time.Sleep(10 * time.Minute)
		gaps := b.polls(a.asked(), http.StatusServiceUnavailable)
		for _, g := range gaps {
			if g > 26*time.Second { // upstream's own back-off may let one poll find it down
				t.Errorf("tried again after %v", g)
			}
		}
		if len(gaps) < 30 {
			t.Errorf("tried %d times in 10 minutes", len(gaps))
		}
	})
}

// TestJoin: whoever comes while somebody looks gets what that leads to, and upstream is asked once.
func TestJoin(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		a.put("os", one)
		b.meet("os")
		time.Sleep(2 * time.Hour)
		a.put("os", two)
		a.asked()
		a.set(func(h *host) {
			h.before = func(name string) {
				if name == pointer {
					time.Sleep(3 * time.Second)
				}
			}
		})
		results := make(chan got)
		for i := range 50 {
			go func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				results <- b.ask(pointer)
			}()
		}
		for range 50 {
			if g := <-results; g.err != nil || string(g.body) != string(two["repodata/repomd.xml"].Body) || g.took > 5*time.Second {
				t.Errorf("after %v: %d bytes (%s), %v", g.took, len(g.body), g.status, g.err)
			}
		}
		n := 0
		for _, r := range a.asked() {
			if r.name == pointer {
				n++
			}
		}
		if n != 1 {
			t.Errorf("upstream was asked %d times", n)
		}
		// Who asks by hand does not join: that look may have begun before the change that is meant.
		time.Sleep(2 * time.Hour)
		go func() { results <- b.ask(pointer) }()
		synctest.Wait()
		b.look("os")
		<-results
		if list := b.polls(a.asked(), http.StatusNotModified); len(list) != 1 {
			t.Errorf("%d requests, want 2", len(list)+1)
		}
	})
}

// TestFuture: a check that a wrong clock has put into the future does not keep anybody from looking.
func TestFuture(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		a.put("os", one)
		b.meet("os")
		for _, schedule := range []bool{true, false} {
			belief, ok := b.index.Get(base + pointer)
			if !ok {
				t.Fatal("nothing is believed of the pointer")
			}
			belief.Checked = time.Now().Add(1000 * time.Hour)
			b.index.Put(base+pointer, belief)
			b.restart(nil)
			one, two = two, one
			if schedule {
				a.put("os", one)
				a.asked()
				b.run()
				time.Sleep(time.Second)
				if n := len(a.asked()); n == 0 {
					t.Error("the schedule waits for a time of checking in the future")
				}
			}
			b.has(pointer, repo(at(1), "x", "y").Files()["repodata/repomd.xml"].Body)
		}
	})
}

// TestSwap: a new routing table is in force at once: other origins, another refresh.
func TestSwap(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 24h}]", func(b *bubble) {
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		b.hosts["a"].put("os", one)
		b.hosts["b"].put("os", two)
		b.meet("os")
		b.run()
		time.Sleep(2 * time.Hour)
		b.hosts["a"].asked()
		b.profile = strings.ReplaceAll(strings.ReplaceAll(b.profile, "a.test", "b.test"), "24h", "1h")
		b.route()
		time.Sleep(time.Second)
		if n := len(b.hosts["a"].asked()); n != 0 {
			t.Errorf("the old upstream is asked %d times", n)
		}
		if n := len(b.hosts["b"].asked()); n == 0 {
			t.Error("the new upstream is not asked, though two of its hours have passed")
		}
		b.has(pointer, two["repodata/repomd.xml"].Body)
		// No profile has it any more, then one has it again.
		with := b.profile
		b.profile = strings.ReplaceAll(with, "/pub/test", "/pub/other")
		b.route()
		time.Sleep(24 * time.Hour)
		if n := len(b.hosts["b"].asked()); n != 0 {
			t.Errorf("what is not routed is polled %d times", n)
		}
		if r := b.status("os"); r.State != "not routed" {
			t.Errorf("status: %+v", r)
		}
		b.profile = with
		b.route()
		time.Sleep(24 * time.Hour)
		if n := len(b.polls(b.hosts["b"].asked(), http.StatusNotModified)); n < 23 {
			t.Errorf("polled %d times", n)
		}
	})
}

// TestMoving: where a tree may be re-pointed, an older generation is taken when two polls, a refresh apart, agree.
func TestMoving(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h, moving: true}]", func(b *bubble) {
		all := func(files map[string]mirrortest.File) {
			for _, h := range b.hosts {
				h.put("os", files)
			}
		}
		now, old, older := repo(at(2), "x", "y").Files(), repo(at(1), "x").Files(), repo(at(0), "x").Files()
		all(now)
		b.meet("os")
		b.run()
		time.Sleep(time.Minute)
		all(old)
		time.Sleep(time.Hour) // one poll
		if r := b.status("os"); r.Last.What != Refused || r.Refused == 0 {
			t.Errorf("status: %+v", r)
		}
		b.has(pointer, now["repodata/repomd.xml"].Body)
		all(older)
		time.Sleep(time.Hour) // another one, which does not agree
		b.has(pointer, now["repodata/repomd.xml"].Body)
		time.Sleep(time.Hour)
		b.has(pointer, older["repodata/repomd.xml"].Body)
		if r := b.status("os"); r.Last.What != Published && r.Last.What != unchanged || r.Refused != 0 {
			t.Errorf("status: %+v", r)
		}
	})
}

// TestMovingSmaller: likewise one that drops most of what is here.
func TestMovingSmaller(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h, grace: 1s, moving: true}]", func(b *bubble) {
		var names []string
		for i := range 60 {
			names = append(names, fmt.Sprintf("p%02d", i))
		}
		full, few := repo(at(0), names...).Files(), repo(at(1), names[0]).Files()
		a := b.hosts["a"]
		a.put("os", full)
		b.meet("os")
		for _, n := range names {
			b.has("os/"+pkg(n), full[pkg(n)].Body)
		}
		b.run()
		time.Sleep(time.Minute)
		a.put("os", few)
		time.Sleep(time.Hour) // one poll
		if r := b.status("os"); r.Last.What != Vetoed {
			t.Errorf("status: %+v", r)
		}
		b.has(pointer, full["repodata/repomd.xml"].Body)
		time.Sleep(time.Hour) // another one
		b.has(pointer, few["repodata/repomd.xml"].Body)
		time.Sleep(time.Minute)
		if list := b.stored("os/Packages"); len(list) != 1 {
			t.Errorf("%d packages are left", len(list))
		}
		b.sound()
	})
}

// TestGone: a pointer that upstream says does not exist expires nothing, whatever has left before. It is said once.
func TestGone(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h, grace: 1d}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two := repo(at(0), "x", "y").Files(), repo(at(1), "x").Files()
		a.put("os", one)
		b.meet("os")
		b.has("os/"+pkg("x"), one[pkg("x")].Body)
		b.has("os/"+pkg("y"), one[pkg("y")].Body)
		b.run()
		a.put("os", two)
		time.Sleep(time.Hour)
		b.has(pointer, two["repodata/repomd.xml"].Body)
		before := b.stored("os")
		a.put("os", nil)
		time.Sleep(3 * 24 * time.Hour)
		if after := b.stored("os"); strings.Join(before, "\n") != strings.Join(after, "\n") {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if e := b.logged(Gone); len(e) != 1 {
			t.Errorf("said: %+v", e)
		}
		g := b.has(pointer, two["repodata/repomd.xml"].Body)
		if !strings.Contains(g.status, "detail=gone-upstream") {
			t.Error(g.status)
		}
		b.has("os/"+pkg("y"), one[pkg("y")].Body)
		if r := b.status("os"); r.Gone.IsZero() || r.Last.What != Gone {
			t.Errorf("status: %+v", r)
		}
		a.put("os", two)
		time.Sleep(2 * time.Hour)
		if e := b.logged(Back); len(e) != 1 {
			t.Errorf("said: %+v", e)
		}
		if b.holds("os/"+pkg("y")) || !b.status("os").Gone.IsZero() {
			t.Error("what had left is still here")
		}
		b.has("os/"+pkg("x"), two[pkg("x")].Body)
	})
}

// TestGrace: the schedule deletes what has vanished when its grace ends, in its time also after a restart.
func TestGrace(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 10d, grace: 36h}]", func(b *bubble) {
		a := b.hosts["a"]
		one, two := repo(at(0), "x", "y").Files(), repo(at(1), "x").Files()
		for _, restart := range []bool{false, true} {
			a.put("os", one)
			b.force("os")
			if g := b.ask(pointer); g.err != nil {
				t.Fatal(g.err)
			}
			synctest.Wait()
			b.has("os/"+pkg("y"), one[pkg("y")].Body)
			b.run()
			a.put("os", two)
			if r := b.look("os"); r.What != Published {
				t.Fatalf("%+v", r)
			}
			time.Sleep(35 * time.Hour)
			b.has("os/"+pkg("y"), one[pkg("y")].Body)
			if restart {
				b.restart(nil)
				b.run()
			}
			time.Sleep(time.Hour + 2*time.Second)
			if b.holds("os/" + pkg("y")) {
				t.Error("what vanished is still here")
			}
			b.ends()
			b.ends = func() {}
		}
	})
}

// TestRefreshInsists: who says refresh gets upstream's word, also where that is in back-off for what it did a moment ago.
func TestRefreshInsists(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		a.put("os", repo(at(0), "x").Files())
		b.meet("os")
		a.set(func(h *host) { h.status = http.StatusServiceUnavailable })
		for range 5 {
			if r := b.look("os"); r.What != Failed {
				t.Errorf("%+v", r)
			}
		}
		a.set(func(h *host) { h.status = 0 })
		a.put("os", repo(at(1), "x", "y").Files())
		if r := b.look("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
	})
}
