package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// TestShortRestIsNoEnd: the room runs out, and the rest that upstream sends then ends before it has come to where it
// should begin. That is no end of the file.
func TestShortRestIsNoEnd(t *testing.T) {
	w := newWorld(t)
	want := random(24 << 20)
	w.put(want)
	w.up.Fault("**", mirrortest.Fault{Unframed: true, Truncate: true, At: 1 << 20, NoRange: true})
	w.up.Fault("**", mirrortest.Fault{Chunked: true}.Once())
	gate := w.up.Hold("pub/"+path, 4<<20)
	f, _ := w.Join(w.job())
	defer f.Close()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.store.SetReserve(1 << 60)
	gate.Release()
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Ready(t.Context(), 0, -1); err != nil {
		t.Fatal(err)
	}
	got, err := drainTo(t.Context(), f, 0)
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d of %d bytes look like the whole: %v", len(got), len(want), err)
	}
}

// TestNobodyLeft: what is not kept is not fetched for nobody; what is kept, is.
func TestNobodyLeft(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := newWorld(t)
		want := random(8 << 20)
		w.put(want)
		gate := w.up.Hold("pub/"+path, 1<<20)
		job := w.job()
		job.Keep = keep
		f, _ := w.Join(job)
		if err := gate.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if !keep { // it ends although upstream holds it
			if r := <-w.results; !errors.Is(r.Err, context.Canceled) {
				t.Errorf("result %+v", r)
			}
			f, joined := w.Join(job) // a newcomer has a flight of its own
			if joined {
				t.Error("joined the flight that was given up")
			}
			gate.Release()
			if got, err := body(t.Context(), f); err != nil || len(got) != len(want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			continue
		}
		gate.Release()
		if r := <-w.results; r.Err != nil || !r.Kept {
			t.Errorf("result %+v", r)
		}
	}
}

// TestFlightsAreBounded: a flood of paths costs no more than so many flights, and is told so.
func TestFlightsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.results = make(chan Result, 2*maxFlights)
	gate := w.up.Hold("**", -1)
	defer gate.Release()
	var all []*Follower
	defer func() {
		for _, f := range all {
			f.Close()
		}
	}()
	for i := range maxFlights + 10 {
		job := w.job()
		job.Path = fmt.Sprint("pub/x/", i)
		f, _ := w.Join(job)
		all = append(all, f)
		if i < maxFlights {
			continue
		}
		if _, err := f.Head(t.Context()); !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("flight %d: %v", i, err)
		}
	}
}

// TestLateJoiner: who comes when upstream has answered gets the answer, however little time it has.
func TestLateJoiner(t *testing.T) {
	w := newWorld(t)
	w.put(random(1 << 20))
	gate := w.up.Hold("**", 1000)
	defer gate.Release()
	f, _ := w.Join(w.job())
	defer f.Close()
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for range 50 {
		if _, err := f.Head(gone); err != nil {
			t.Fatal(err)
		}
	}
}
