package fetch

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
)

// TestRoomRunsOutVerified: when room runs out in the middle of a file whose digest is known, and of which nobody knows
// the length, so that it was not claimed beforehand, each client gets what it wants by itself; still none of them gets the
// end of a wrong file. With room again, what is here already need not come again.
func TestRoomRunsOutVerified(t *testing.T) {
	const size = 12 << 20
	want := random(size)
	for _, test := range []struct {
		name   string
		off, n int64 // n < 0: all that follows
		wrong  bool  // what is sent from then on
	}{
		{"whole", 0, -1, false},
		{"the end", size - 100_000, -1, false},
		{"a part", 1 << 20, 1 << 20, false},
		{"whole, wrong", 0, -1, true},
		{"the end, wrong", size - 100_000, -1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.put(want)
			w.up.Fault("**", mirrortest.Fault{Chunked: true}.Once())
			job := w.job()
			job.Expect = func() digest.Expectation { return digest.Known(-1, sumOf(want)) }
			gate := w.up.Hold("pub/"+path, 4<<20)
			f, _ := w.Join(job)
			if err := gate.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.store.SetReserve(1 << 60)
			if test.wrong {
				w.put(other(want))
			}
			gate.Release()
			if _, err := f.Head(t.Context()); !errors.Is(err, store.ErrNoSpace) {
				t.Errorf("Head: %v", err)
			}
			if r := <-w.results; !errors.Is(r.Err, store.ErrNoSpace) || r.Kept {
				t.Errorf("result %+v", r)
			}
			d, err := w.Direct(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.Ready(t.Context(), test.off, test.n); err != nil {
				t.Fatal(err)
			}
			right := want[test.off:]
			if test.n >= 0 {
				right = right[:test.n]
			}
			var got bytes.Buffer
			for err == nil && got.Len() < len(right) {
				_, err = d.CopyTo(t.Context(), &got, test.off+int64(got.Len()), int64(len(right)-got.Len()))
			}
			if !test.wrong && (err != nil || !bytes.Equal(got.Bytes(), right)) {
				t.Errorf("got %d of %d bytes, %v", got.Len(), len(right), err)
			}
			if test.wrong && (err == nil || got.Len() > max(0, len(right)-HoldBack)) {
				t.Errorf("got %d of %d bytes of a wrong file, %v", got.Len(), len(right), err)
			}
			if _, err := w.stored(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stored: %v", err)
			}
			f.Close()

			w.put(want)
			w.store.SetReserve(0)
			w.up.Reset()
			again, _ := w.Join(job)
			got2, err := body(t.Context(), again)
			switch r := <-w.results; {
			case test.wrong: // who sent wrong bytes is not asked again
			case err != nil || !bytes.Equal(got2, want) || !r.Kept:
				t.Errorf("with room again: %d bytes, %v, %+v", len(got2), err, r)
			case w.up.BytesSent("**") >= size:
				t.Errorf("all was sent again:\n%s", w.up.Log())
			}
		})
	}
}

// TestCommitFails: who follows a file that can't be committed, for its directory can't be made, gets all of it, early or
// late, also while the next flight tries again.
func TestCommitFails(t *testing.T) {
	for name, verified := range map[string]bool{"digest known": true, "digest unknown": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			want := random(20_000)
			w.put(want)
			job := w.job()
			if verified {
				job = w.known(want)
			}
			inTheWay := filepath.Join(w.store.Dir(), filepath.Dir(job.Path))
			err := os.MkdirAll(filepath.Dir(inTheWay), 0o755)
			if err == nil {
				err = os.WriteFile(inTheWay, nil, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			late, _ := w.Join(job)
			later, _ := w.Join(job)
			if r := <-w.results; r.Err == nil || r.Kept {
				t.Errorf("result %+v", r)
			}
			if got, err := body(t.Context(), late); err != nil || !bytes.Equal(got, want) {
				t.Errorf("late: %d bytes, %v", len(got), err)
			}
			gate := w.up.Hold("pub/"+path, -1)
			next, _ := w.Join(job)
			select { // it may not need upstream
			case <-waited(t, gate):
			case r := <-w.results:
				w.results <- r
			}
			if got, err := body(t.Context(), later); err != nil || !bytes.Equal(got, want) {
				t.Errorf("later, while the next flight is under way: %d bytes, %v", len(got), err)
			}
			gate.Release()
			if got, err := body(t.Context(), next); err != nil || !bytes.Equal(got, want) {
				t.Errorf("next: %d bytes, %v", len(got), err)
			}
			if r := <-w.results; r.Err == nil || r.Kept {
				t.Errorf("result %+v", r)
			}
			w.Wait()
			tmp, _ := filepath.Glob(filepath.Join(w.store.Dir(), store.Private, "tmp", "[0-9]*"))
			if len(tmp) != 0 { // what can be taken up again may stay
				t.Errorf("left in tmp: %v", tmp)
			}
		})
	}
}

// waited is closed when the first answer has come to the gate.
func waited(t *testing.T, gate *mirrortest.Gate) <-chan struct{} {
	reached := make(chan struct{})
	go func() {
		if gate.Wait(t.Context()) == nil {
			close(reached)
		}
	}()
	return reached
}
