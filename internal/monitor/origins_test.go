package monitor

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// primaryOf is the name of the primary among files.
func primaryOf(files map[string]mirrortest.File) string { return recordOf(files, "primary") }

// recordOf is the name of the record of that kind among files.
func recordOf(files map[string]mirrortest.File, kind string) string {
	for name := range files {
		if strings.HasPrefix(name, "repodata/") && strings.Contains(name, kind+".xml") {
			return name
		}
	}
	return ""
}

// TestBroken: an upstream whose newest generation cannot be had does not keep back what another one has.
func TestBroken(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		one, two, three := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files(), repo(at(2), "x", "z").Files()
		for _, h := range b.hosts {
			h.put("os", one)
		}
		b.meet("os")
		b.run()
		p := primaryOf(two)
		two[p] = mirrortest.File{Body: bytes.Repeat([]byte("x"), len(two[p].Body)), ModTime: at(1)}
		b.hosts["a"].put("os", two)
		time.Sleep(2 * time.Hour)
		b.has(pointer, one["repodata/repomd.xml"].Body)
		if e := b.logged(Refused); len(e) == 0 || e[0].Origin != "http://a.test" {
			t.Errorf("said: %+v", e)
		}
		if r := b.status("os"); r.Last.Err == nil || !strings.Contains(r.Last.Message, "a.test") {
			t.Errorf("status: %+v", r)
		}
		b.hosts["b"].put("os", three)
		time.Sleep(2 * time.Hour)
		b.has(pointer, three["repodata/repomd.xml"].Body)
		b.has("os/"+pkg("z"), three[pkg("z")].Body)
	})
}

// TestHalfPushed: a generation that upstream is still being filled with is published soon after it is whole, though others
// have the one before.
func TestHalfPushed(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 6h}]", func(b *bubble) {
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		for _, h := range b.hosts {
			h.put("os", one)
		}
		b.meet("os")
		b.run()
		half := map[string]mirrortest.File{"repodata/repomd.xml": two["repodata/repomd.xml"]}
		b.hosts["a"].put("os", half)
		time.Sleep(6 * time.Hour)
		b.has(pointer, one["repodata/repomd.xml"].Body)
		b.hosts["a"].put("os", two)
		time.Sleep(15 * time.Minute)
		b.has(pointer, two["repodata/repomd.xml"].Body)
	})
}

// TestCut: where a pointer breaks off, the next one is asked.
func TestCut(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		for _, h := range b.hosts {
			h.put("os", one)
		}
		b.meet("os")
		b.hosts["a"].put("os", two)
		b.hosts["b"].put("os", two)
		b.hosts["a"].set(func(h *host) {
			h.change = func(name string, f mirrortest.File, ok bool) (mirrortest.File, bool) {
				if name == pointer {
					f.Size, f.Body = int64(len(f.Body)), f.Body[:len(f.Body)/2]
				}
				return f, ok
			}
		})
		if r := b.look("os"); r.What != Published || r.Origin != "http://b.test" {
			t.Errorf("%+v", r)
		}
		b.has(pointer, two["repodata/repomd.xml"].Body)
	})
}

// TestRefusedAndAbsent: that one has an older generation and the other none is not taken for the end of the repository.
func TestRefusedAndAbsent(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		old, now := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		b.hosts["a"].put("os", now)
		b.meet("os")
		b.hosts["a"].put("os", old)
		if r := b.look("os"); r.What != Refused {
			t.Errorf("%+v", r)
		}
		if r := b.status("os"); !r.Gone.IsZero() {
			t.Errorf("status: %+v", r)
		}
		b.has(pointer, now["repodata/repomd.xml"].Body)
	})
}

// TestBack: an older generation is taken once all have had it for as long as the rule says, without a break.
func TestBack(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h, back: 1d}]", func(b *bubble) {
		older, old, now := repo(at(0), "w").Files(), repo(at(1), "x").Files(), repo(at(2), "x", "y").Files()
		all := func(files map[string]mirrortest.File) {
			for _, h := range b.hosts {
				h.put("os", files)
			}
		}
		stays := func(d time.Duration, why string) {
			t.Helper()
			time.Sleep(d)
			if g := b.ask(pointer); !bytes.Equal(g.body, now["repodata/repomd.xml"].Body) {
				t.Errorf("it went back though %s", why)
			}
		}
		all(now)
		b.meet("os")
		b.run()
		all(old)
		b.hosts["b"].put("os", now)
		stays(3*24*time.Hour, "b has what is here")
		b.hosts["b"].put("os", old)
		stays(20*time.Hour, "it is too early")
		b.hosts["b"].put("os", now)
		stays(3*time.Hour, "b has it again")
		b.hosts["b"].put("os", old)
		stays(20*time.Hour, "it is too early again")
		b.hosts["a"].put("os", older)
		stays(3*time.Hour, "a has another one")
		b.hosts["a"].put("os", old)
		stays(20*time.Hour, "a had another one 20 hours ago")
		if r := b.status("os"); r.Back == nil || r.Refused == 0 || r.Last.What != Refused {
			t.Errorf("status: %+v", r)
		}
		time.Sleep(6 * time.Hour)
		b.has(pointer, old["repodata/repomd.xml"].Body)
		b.has("os/"+pkg("x"), old[pkg("x")].Body)
	})
}

// TestVetoLagging: a mirror that lags does not confirm a push under veto.
func TestVetoLagging(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h, grace: 1s}]", func(b *bubble) {
		var names []string
		for _, c := range "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz" {
			names = append(names, string(c)+string(rune('a'+len(names)/26))+"x")
		}
		full, few := repo(at(0), names...).Files(), repo(at(1), names[0]).Files()
		for _, h := range b.hosts {
			h.put("os", full)
		}
		b.meet("os")
		for _, n := range names {
			b.has("os/"+pkg(n), full[pkg(n)].Body)
		}
		synctest.Wait() // all are stored
		b.hosts["a"].put("os", few)
		if r := b.look("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
		if b.status("os").Veto == nil {
			t.Fatal("no veto")
		}
		b.hosts["a"].set(func(h *host) { h.status = http.StatusServiceUnavailable })
		if r := b.look("os"); r.What != Refused {
			t.Errorf("%+v", r)
		}
		if b.status("os").Veto == nil {
			t.Error("one who has the generation before confirms")
		}
		b.hosts["b"].put("os", few)
		b.look("os")
		if r := b.status("os"); r.Veto != nil {
			t.Errorf("status: %+v", r)
		}
	})
}

// TestNewlyNamed: what upstream did not have a moment ago is asked for when a generation names it.
func TestNewlyNamed(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		one, two := repo(at(0), "x").Files(), repo(at(1), "x", "y").Files()
		for _, h := range b.hosts {
			h.put("os", one)
		}
		b.meet("os")
		if g := b.ask("os/" + pkg("y")); !errors.Is(g.err, fs.ErrNotExist) {
			t.Errorf("%v", g.err)
		}
		for _, h := range b.hosts {
			h.put("os", two)
		}
		if r := b.look("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
		b.has("os/"+pkg("y"), two[pkg("y")].Body)
	})
}

// TestAstride: a package that was asked for before a push and arrives while that is being carried out is not left with its
// old bytes.
func TestAstride(t *testing.T) {
	for name, where := range map[string]func(step, path string) bool{
		"before it is sealed":      func(step, path string) bool { return step == "fsyncdir" && strings.Contains(path, "/gen") },
		"before the first rename":  func(step, path string) bool { return step == "rename" && strings.Contains(path, "primary.xml") },
		"before the pointer comes": func(step, path string) bool { return step == "rename" && strings.HasSuffix(path, "repomd.xml") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
				one, two := repo(at(0), "x=1", "y").Files(), repo(at(1), "x=2", "y", "z=1").Files()
				for _, h := range b.hosts {
					h.put("os", one)
				}
				b.meet("os")
				b.hosts["a"].put("os", two)
				old := map[string]mirrortest.File{pkg("z"): repo(at(1), "z=0").Files()[pkg("z")]}
				for name, f := range one {
					old[name] = f
				}
				b.hosts["b"].put("os", old)
				reached, goOn := make(chan bool), make(chan bool)
				var once sync.Once
				b.store.SetFault(func(step, path string, before bool) error {
					if before && where(step, path) {
						once.Do(func() {
							close(reached)
							<-goOn
						})
					}
					return nil
				})
				done := make(chan Result)
				go func() { done <- b.look("os") }()
				<-reached
				b.hosts["a"].set(func(h *host) { h.status = http.StatusServiceUnavailable }) // so that b is asked
				for _, n := range []string{"x", "z"} {
					g := b.ask("os/" + pkg(n))
					t.Logf("%s, in between: %d bytes, %v", n, len(g.body), g.err)
				}
				close(goOn)
				if r := <-done; r.What != Published {
					t.Fatalf("%+v", r)
				}
				synctest.Wait()
				b.hosts["a"].set(func(h *host) { h.status = 0 })
				time.Sleep(12 * time.Second)
				b.has("os/"+pkg("x"), two[pkg("x")].Body)
				b.has("os/"+pkg("z"), two[pkg("z")].Body)
				b.sound()
			})
		})
	}
}

// TestReplacedAtOnce: from the moment that the new repomd.xml stands in the tree, nobody gets the old bytes of what it has
// replaced.
func TestReplacedAtOnce(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		one, two := repo(at(0), "x=1").Files(), repo(at(1), "x=2").Files()
		b.hosts["a"].put("os", one)
		b.meet("os")
		b.has("os/"+pkg("x"), one[pkg("x")].Body)
		synctest.Wait()
		b.hosts["a"].put("os", two)
		reached, goOn := make(chan bool), make(chan bool)
		var once sync.Once
		var named atomic.Bool
		b.store.SetFault(func(step, path string, before bool) error {
			switch {
			case !before && step == "rename" && strings.HasSuffix(path, "repomd.xml"):
				named.Store(true)
			case before && step == "fsyncdir" && named.Load():
				once.Do(func() {
					close(reached)
					<-goOn
				})
			}
			return nil
		})
		done := make(chan Result)
		go func() { done <- b.look("os") }()
		<-reached
		b.has(pointer, two["repodata/repomd.xml"].Body)
		b.has("os/"+pkg("x"), two[pkg("x")].Body)
		close(goOn)
		if r := <-done; r.What != Published {
			t.Fatalf("%+v", r)
		}
		synctest.Wait()
		b.has("os/"+pkg("x"), two[pkg("x")].Body)
		b.sound()
	})
}
