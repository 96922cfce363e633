package monitor

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestOvertakenFlight: a client's download of a pointer that is committed after a newer generation was published does
// not take its place.
func TestOvertakenFlight(t *testing.T) {
	for _, name := range []string{"repomd.xml", "repomd.xml.asc"} {
		t.Run(name, func(t *testing.T) {
			f := &faultTable{t: t, gens: faultGens(false)}
			w := newWorld(t, oneOrigin)
			w.push("a/os", f.gens[0].files)
			reached, release := make(chan struct{}), make(chan struct{})
			var hit atomic.Bool
			w.store.SetFault(func(step, path string, before bool) error {
				if step == "fsync" && before && path == base+"os/repodata/"+name && hit.CompareAndSwap(false, true) {
					close(reached)
					<-release
				}
				return nil
			})
			var client sync.WaitGroup
			client.Go(func() { _, _ = w.get("os/repodata/" + name) })
			<-reached
			if name != "repomd.xml" {
				w.meet("os")
			}
			w.push("a/os", f.gens[1].files)
			w.is(w.look("os"), Published)
			close(release)
			client.Wait()
			w.idle()
			f.whole(w, "afterwards", 1)
			w.is(w.look("os"), unchanged)
			f.whole(w, "after the next look", 1)
			w.sound()
		})
	}
}

// TestOvertakenDownload: whoever asks for a package that was signed anew gets just that, though the one before is still on
// its way to somebody.
func TestOvertakenDownload(t *testing.T) {
	test := func(t *testing.T, verified bool) {
		f := &faultTable{t: t, gens: faultGens(false)}
		w := newWorld(t, oneOrigin)
		w.push("a/os", f.gens[0].files)
		if verified {
			w.meet("os")
		}
		name := "os/" + pkg("signed")
		gate := w.up.Hold("a/"+name, 1000)
		defer gate.Release()
		var client sync.WaitGroup
		client.Go(func() { w.want(name, f.gens[0].files[pkg("signed")].Body) })
		if err := gate.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.push("a/os", f.gens[1].files)
		if verified {
			w.is(w.look("os"), Published)
		} else {
			w.meet("os")
		}
		client.Go(func() { w.want(name, f.gens[1].files[pkg("signed")].Body) })
		soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := w.up.WaitRequests(soon, "a/"+name, 2); err != nil {
			t.Errorf("upstream is not asked for it: %v", err)
		}
		gate.Release()
		client.Wait()
		w.idle()
		f.whole(w, "in the end", 1)
		w.sound()
	}
	t.Run("verified", func(t *testing.T) { test(t, true) })
	t.Run("unverified", func(t *testing.T) { test(t, false) })
}

// TestLandsMeanwhile: a package that is committed while a publication that means another one by its name is on the way is
// not served after it.
func TestLandsMeanwhile(t *testing.T) {
	f := &faultTable{t: t, gens: faultGens(false)}
	w := newWorld(t, oneOrigin)
	w.push("a/os", f.gens[0].files)
	w.meet("os")
	name := "os/" + pkg("signed")
	landing, landed := make(chan struct{}), make(chan struct{})
	w.store.SetFault(func(step, path string, before bool) error {
		switch {
		case step == "fsync" && path == base+name && before:
			<-landing
		case step == "rename" && path == base+name && !before:
			close(landed)
		case step == "fsyncdir" && strings.HasPrefix(path, ".instantmirror/gen/") && before: // all has been compared
			close(landing)
			<-landed
		}
		return nil
	})
	w.want(name, f.gens[0].files[pkg("signed")].Body)
	w.push("a/os", f.gens[1].files)
	w.is(w.look("os"), Published)
	w.store.SetFault(nil)
	w.idle()
	f.whole(w, "afterwards", 1)
	w.idle()
	w.sound()
}
