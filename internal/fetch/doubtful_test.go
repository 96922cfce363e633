package fetch

import (
	"bytes"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
)

// TestPartialIsNotRewritten: a client that has wrong bytes of a flight that ran out of room does not get the right end
// of the next flight's, which began anew.
func TestPartialIsNotRewritten(t *testing.T) {
	w := newWorld(t)
	fallback := mirrortest.NewUpstream(t)
	want := random(3 << 20)
	w.put(other(want)) // wrong at 1 MiB
	w.up.Fault("**", mirrortest.Fault{Truncate: true, At: 5 << 19, NoRange: true})
	gate := w.up.Hold("pub/"+path, 2<<20)
	f, _ := w.Join(w.known(want, fallback))
	defer f.Close()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	size := int64(len(want))
	if err := f.Ready(t.Context(), 0, size); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for got.Len() < 5<<18 {
		if _, err := f.CopyTo(t.Context(), &got, int64(got.Len()), 1<<18); err != nil {
			t.Fatal(err)
		}
	}
	f.f.spool.Finish(store.ErrNoSpace) // as if the disk were full
	gate.Release()
	<-w.results

	w.up.Heal()
	w.put(want)
	fallback.Put("pub/"+path, want)
	for _, up := range []*mirrortest.Upstream{w.up, fallback} {
		up.Fault("**", mirrortest.Fault{NoRange: true})
	}
	next, _ := w.Join(w.known(want, fallback))
	if b, err := body(t.Context(), next); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the next client got %d bytes, %v", len(b), err)
	}
	for int64(got.Len()) < size {
		if _, err := f.CopyTo(t.Context(), &got, int64(got.Len()), 1<<18); err != nil {
			break
		}
	}
	if int64(got.Len()) > size-HoldBack {
		t.Errorf("%d of %d bytes of two files look like one", got.Len(), size)
	}
}

// TestWrongAndCut: an origin whose bytes are wrong and never whole does not keep clients from one that is well.
func TestWrongAndCut(t *testing.T) {
	for name, test := range map[string]struct {
		body  func(want []byte) []byte
		fault mirrortest.Fault
	}{
		"cut":          {other, mirrortest.Fault{Truncate: true, At: 600_000}},
		"ends early":   {func(b []byte) []byte { return other(b)[:600_000] }, mirrortest.Fault{Chunked: true}},
		"right, early": {func(b []byte) []byte { return b[:600_000] }, mirrortest.Fault{Chunked: true}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fallback := mirrortest.NewUpstream(t)
			want := random(1 << 20)
			w.put(test.body(want))
			w.up.Fault("**", test.fault)
			fallback.Put("pub/"+path, want)
			for i := range 4 {
				f, _ := w.Join(w.known(want, fallback))
				b, err := body(t.Context(), f)
				<-w.results
				if i >= 2 && (err != nil || !bytes.Equal(b, want)) {
					t.Errorf("client %d got %d bytes, %v", i, len(b), err)
				}
			}
		})
	}
}

// TestReadyTwice: a follower that went direct may be made ready again, for the same part or another, and has the bytes
// in their places.
func TestReadyTwice(t *testing.T) {
	w := newWorld(t)
	want := random(3 << 20)
	w.put(want)
	gate := w.up.Hold("pub/"+path, 1<<20)
	f, _ := w.Join(w.known(want))
	defer f.Close()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.f.spool.Finish(store.ErrNoSpace)
	gate.Release()
	size := int64(len(want))
	for _, part := range [][2]int64{{size - 1, 1}, {0, size}, {5, 10}, {0, size}, {0, size}} {
		if err := f.Ready(t.Context(), part[0], part[1]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := drainTo(t.Context(), f, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
