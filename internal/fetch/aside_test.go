package fetch

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestFarAhead: a range that the fill would not reach soon is asked upstream once for itself, while the whole file
// fills behind it once.
func TestFarAhead(t *testing.T) {
	const size, off, n = 3 << 20, 2 << 20, 100 << 10
	for name, known := range map[string]bool{"digest known": true, "digest unknown": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.assumed = 1000
			want := random(size)
			w.put(want)
			gate := w.up.Hold("pub/"+path, 100<<10) // the fill does not get far
			job := w.job()
			if known {
				job = w.known(want)
			}
			f, _ := w.Join(job)
			defer f.Close()
			if _, err := f.Head(t.Context()); err != nil {
				t.Fatal(err)
			}
			read := func() {
				f, _ := w.Join(job)
				defer f.Close()
				f.Head(t.Context())
				if err := f.Ready(t.Context(), off, n); err != nil {
					t.Error(err)
				}
				var b bytes.Buffer
				for b.Len() < n {
					if _, err := f.CopyTo(t.Context(), &b, off+int64(b.Len()), n-int64(b.Len())); err != nil {
						t.Error(err)
						return
					}
				}
				if !bytes.Equal(b.Bytes(), want[off:off+n]) {
					t.Error("wrong bytes")
				}
			}
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(read)
			}
			wg.Wait()
			gate.Release()
			if err := f.Ready(t.Context(), 0, -1); err != nil {
				t.Error(err)
			}
			if got, err := drainTo(t.Context(), f, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the whole: %d bytes, %v", len(got), err)
			}
			if r := <-w.results; !r.Kept {
				t.Errorf("result %+v", r)
			}
			ranges := 0
			for _, r := range w.up.Requests() {
				if r.Header.Get("Range") != "" {
					ranges++
				}
			}
			if n := w.up.Count("**"); n != 2 || ranges != 1 {
				t.Errorf("upstream saw\n%s", w.up.Log())
			}
		})
	}
}

// TestAsidesAreShared: a range that lies in one that is being had aside is not asked for again.
func TestAsidesAreShared(t *testing.T) {
	const size, off, n = 3 << 20, 2 << 20, 100 << 10
	w := newWorld(t)
	w.assumed = 1000
	want := random(size)
	w.put(want)
	gate := w.up.Hold("pub/"+path, 100<<10)
	f, _ := w.Join(w.job())
	defer f.Close()
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range int64(10) {
		if err := f.Ready(t.Context(), off+i, n-2*i); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for int64(b.Len()) < n-2*i {
			if _, err := f.CopyTo(t.Context(), &b, off+i+int64(b.Len()), n-2*i-int64(b.Len())); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(b.Bytes(), want[off+i:off+n-i]) {
			t.Errorf("range %d: wrong bytes", i)
		}
	}
	gate.Release()
	if n := w.up.Count("**"); n != 2 {
		t.Errorf("upstream saw\n%s", w.up.Log())
	}
}

// TestFarAheadOfTheEnd: what includes the last byte is not taken on upstream's word: its end comes from the fill.
func TestFarAheadOfTheEnd(t *testing.T) {
	const size = 3 << 20
	w := newWorld(t)
	w.assumed = 1000
	want := random(size)
	wrong := bytes.Clone(want)
	wrong[0] ^= 1
	w.put(wrong)
	gate := w.up.Hold("pub/"+path, 100<<10)
	job := w.known(want)
	f, _ := w.Join(job)
	defer f.Close()
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	const off = size - 100_000
	if err := f.Ready(t.Context(), off, -1); err != nil {
		t.Fatal(err)
	}
	gate.Release()
	got, err := drainTo(t.Context(), f, off)
	if err == nil || len(got) > 100_000-HoldBack {
		t.Errorf("%d bytes of a wrong file went out, %v", len(got), err)
	}
}

// TestFarAheadWithoutRanges: where upstream gives out no ranges, the fill is awaited.
func TestFarAheadWithoutRanges(t *testing.T) {
	const size, off, n = 3 << 20, 2 << 20, 1000
	w := newWorld(t)
	w.assumed = 1000
	want := random(size)
	w.put(want)
	w.up.Fault("**", mirrortest.Fault{NoRange: true})
	gate := w.up.Hold("pub/"+path, 100<<10)
	f, _ := w.Join(w.known(want))
	defer f.Close()
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, leave := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		f, _ := w.Join(w.known(want))
		defer f.Close()
		f.Head(left)
		done <- f.Ready(left, off, n)
	}()
	if err := w.up.WaitRequests(t.Context(), "**", 2); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left: %v", err)
	}
	gate.Release()
	if err := f.Ready(t.Context(), off, n); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for b.Len() < n {
		if _, err := f.CopyTo(t.Context(), &b, off+int64(b.Len()), n-int64(b.Len())); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(b.Bytes(), want[off:off+n]) {
		t.Error("wrong bytes")
	}
	if !strings.Contains(w.up.Log(), "Range: bytes=") {
		t.Error("nobody asked for the range")
	}
}
