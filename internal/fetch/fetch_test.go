package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const path = "os/Packages/h/hello-1.0~rc1^git+x-1.noarch.rpm"

// world is a Group between a real upstream and a real store.
type world struct {
	*Group
	up      *mirrortest.Upstream
	origin  *upstream.Origin
	store   *store.Store
	results chan Result
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{up: mirrortest.NewUpstream(t), results: make(chan Result, 1000)}
	var err error
	if w.store, err = store.Open(t.TempDir(), 0); err != nil {
		t.Fatal(err)
	}
	pool := upstream.NewPool("instantmirror/test")
	if w.origin, err = pool.Origin(upstream.Config{URL: w.up.URL + "/pub"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.Group = New(ctx, w.store, func(r Result) { w.results <- r })
	t.Cleanup(func() {
		cancel()
		w.Wait()
		pool.CloseIdleConnections()
		w.store.Close()
	})
	return w
}

func (w *world) put(body []byte) {
	w.up.PutFile("pub/"+path, mirrortest.File{Body: body, ModTime: time.Unix(1700000000, 0)})
}

func (w *world) job() Job {
	return Job{
		Path: "pub/x/" + path, Keep: true, Order: upstream.Order{Upstreams: []*upstream.Origin{w.origin}},
		Request: upstream.Request{Method: "GET", Path: path},
		Expect:  func() digest.Expectation { return digest.Unverified(-1, "test") },
	}
}

func (w *world) stored() (string, error) {
	b, err := os.ReadFile(filepath.Join(w.store.Dir(), "pub/x/"+path))
	return string(b), err
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// body reads what a flight brings, as the server does.
func body(ctx context.Context, f *Follower) ([]byte, error) {
	defer f.Close()
	if _, err := f.Head(ctx); err != nil {
		return nil, err
	}
	return drainTo(ctx, f, 0)
}

func drainTo(ctx context.Context, r interface {
	CopyTo(context.Context, io.Writer, int64, int64) (int64, error)
}, from int64) ([]byte, error) {
	var b bytes.Buffer
	for {
		_, err := r.CopyTo(ctx, &b, from+int64(b.Len()), 100_000)
		if err == io.EOF {
			return b.Bytes(), nil
		}
		if err != nil {
			return b.Bytes(), err
		}
	}
}

// TestHerd: upstream is asked once, whatever the clients do: come late, leave, or the first one dies.
func TestHerd(t *testing.T) {
	w := newWorld(t)
	want := random(1 << 20)
	w.put(want)
	gate := w.up.Hold("pub/"+path, 1<<18)

	first, joined := w.Join(w.job())
	if joined {
		t.Fatal("the first one joined a flight")
	}
	gone, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { _, err := body(gone, first); left <- err }()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the first client got %v", err)
	}
	var wg sync.WaitGroup
	for i := range 64 {
		f, joined := w.Join(w.job())
		if !joined || f.f != first.f {
			t.Fatalf("client %d has a flight of its own", i)
		}
		wg.Go(func() {
			if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
				t.Errorf("client %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	gate.Release()
	wg.Wait()
	r := <-w.results
	if r.Err != nil || !r.Kept || r.Bytes != int64(len(want)) || r.Status != 200 || r.Origin != w.up.URL {
		t.Errorf("result %+v", r)
	}
	if n, sent := w.up.Count("**"), w.up.BytesSent("**"); n != 1 || sent != int64(len(want)) {
		t.Errorf("upstream saw %d requests, sent %d bytes", n, sent)
	}
	if got, err := w.stored(); got != string(want) {
		t.Errorf("stored: %d bytes, %v", len(got), err)
	}
	if w.Underway(w.job().Path) {
		t.Error("the flight is still under way")
	}
}

// TestFirstBytesAtOnce: a follower has upstream's first bytes while the rest is held back.
func TestFirstBytesAtOnce(t *testing.T) {
	w := newWorld(t)
	want := random(1 << 20)
	w.put(want)
	gate := w.up.Hold("pub/"+path, 1000)
	f, _ := w.Join(w.job())
	if _, err := f.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	for b.Len() < 1000 {
		if _, err := f.CopyTo(t.Context(), &b, int64(b.Len()), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	gate.Release()
	rest, err := drainTo(t.Context(), f, int64(b.Len()))
	if err != nil || !bytes.Equal(append(b.Bytes(), rest...), want) {
		t.Errorf("the rest: %d bytes, %v", len(rest), err)
	}
}

// TestBroken: what fails in the middle fails for all, is not stored, and the next flight is a new one.
func TestBroken(t *testing.T) {
	for name, fault := range map[string]mirrortest.Fault{
		"truncated":         {At: 500_000, Truncate: true},
		"truncated chunked": {At: 500_000, Truncate: true, Chunked: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			want := random(1 << 20)
			// Without a validator nobody can tell that the rest is of the same file.
			w.up.PutFile("pub/"+path, mirrortest.File{Body: want, ETag: "-"})
			w.up.Fault("**", fault.Once())
			f, _ := w.Join(w.job())
			got, err := body(t.Context(), f)
			if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(want, got) {
				t.Errorf("follower got %d bytes, %v", len(got), err)
			}
			if r := <-w.results; r.Err == nil || r.Kept {
				t.Errorf("result %+v", r)
			}
			if _, err := w.stored(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stored: %v", err)
			}
			f, joined := w.Join(w.job())
			if joined {
				t.Error("joined the broken flight")
			}
			if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
				t.Errorf("next: %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestNotKept: these pass through to their followers, and nothing stays.
func TestNotKept(t *testing.T) {
	for name, c := range map[string]struct {
		fault mirrortest.Fault
		keep  bool
	}{
		"not wanted":                 {mirrortest.Fault{}, false},
		"its end is not explicit":    {mirrortest.Fault{Unframed: true}, true},
		"cut, but looks whole":       {mirrortest.Fault{Unframed: true, Truncate: true, At: 1000}, true},
		"not wanted, length unknown": {mirrortest.Fault{Chunked: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			want := random(100_000)
			w.put(want)
			w.up.Fault("**", c.fault)
			job := w.job()
			job.Keep = c.keep
			f, _ := w.Join(job)
			head, err := f.Head(t.Context())
			if err != nil || head.Keep {
				t.Errorf("head %+v, %v", head, err)
			}
			got, err := body(t.Context(), f)
			if err != nil || !bytes.HasPrefix(want, got) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if r := <-w.results; r.Kept || r.Err != nil {
				t.Errorf("result %+v", r)
			}
			if _, err := w.stored(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stored: %v", err)
			}
			w.Wait()
			tmp, _ := os.ReadDir(filepath.Join(w.store.Dir(), store.Private, "tmp"))
			if len(tmp) != 0 {
				t.Errorf("left in tmp: %v", tmp)
			}
		})
	}
}

func TestUnknownLengthIsKept(t *testing.T) {
	w := newWorld(t)
	w.put([]byte("hello"))
	w.up.Fault("**", mirrortest.Fault{Chunked: true})
	f, _ := w.Join(w.job())
	if got, err := body(t.Context(), f); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	<-w.results
	if got, err := w.stored(); got != "hello" {
		t.Errorf("stored %q, %v", got, err)
	}
}

func TestNotModified(t *testing.T) {
	w := newWorld(t)
	w.put([]byte("hello"))
	arrived := make(chan Head, 1)
	job := w.job()
	job.Request.LastModified = time.Unix(1700000000, 0)
	job.Arrived = func(h Head) { arrived <- h }
	f, _ := w.Join(job)
	head, err := f.Head(t.Context())
	if err != nil || !head.NotModified || head.Origin != w.up.URL {
		t.Errorf("head %+v, %v", head, err)
	}
	if h := <-arrived; !h.NotModified {
		t.Errorf("arrived %+v", h)
	}
}

func TestCurrentMeanwhile(t *testing.T) {
	w := newWorld(t)
	job := w.job()
	job.Current = func() bool { return true }
	f, _ := w.Join(job)
	if _, err := f.Head(t.Context()); !errors.Is(err, ErrCurrent) {
		t.Errorf("Head: %v", err)
	}
	if n := w.up.Count("**"); n != 0 {
		t.Errorf("upstream saw %d requests", n)
	}
}

// TestNoRoom: without room for a flight, each client has a request of its own, and nothing is stored.
func TestNoRoom(t *testing.T) {
	w := newWorld(t)
	want := random(300_000)
	w.put(want)
	w.store.SetReserve(1 << 60)
	f, _ := w.Join(w.job())
	if _, err := f.Head(t.Context()); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("Head: %v", err)
	}
	d, err := w.Direct(t.Context(), w.job())
	if err != nil || d.Head.Size != int64(len(want)) || d.Head.Keep {
		t.Fatalf("Direct: %+v, %v", d, err)
	}
	defer d.Close()
	for _, off := range []int64{0, 200_000, 100} {
		if err := d.Ready(t.Context(), off, -1); err != nil {
			t.Errorf("from %d: %v", off, err)
		}
		if got, err := drainTo(t.Context(), d, off); err != nil || !bytes.Equal(got, want[off:]) {
			t.Errorf("from %d: %d bytes, %v", off, len(got), err)
		}
	}
}

// TestRoomRunsOut: a follower goes on with a request of its own where the bytes surely belong together, and breaks
// off where they may not.
func TestRoomRunsOut(t *testing.T) {
	for _, changed := range []bool{false, true} {
		w := newWorld(t)
		want := random(24 << 20)
		w.put(want)
		// Of unknown length, so that not all of the room is claimed beforehand.
		w.up.Fault("**", mirrortest.Fault{Chunked: true}.Once())
		gate := w.up.Hold("pub/"+path, 4<<20)
		f, _ := w.Join(w.job())
		if _, err := f.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := gate.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.store.SetReserve(1 << 60)
		if changed {
			w.put(random(24<<20 + 1)[1:])
		}
		gate.Release()
		got, err := drainTo(t.Context(), f, 0)
		switch {
		case changed && (err == nil || !bytes.HasPrefix(want, got)):
			t.Errorf("after a change, got %d bytes, %v", len(got), err)
		case !changed && (err != nil || !bytes.Equal(got, want)):
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if res := <-w.results; !errors.Is(res.Err, store.ErrNoSpace) || res.Kept {
			t.Errorf("result %+v", res)
		}
	}
}

// TestEndOfDaemon: flights end with the group's context, and their followers learn it.
func TestEndOfDaemon(t *testing.T) {
	w := newWorld(t)
	w.put(random(1 << 20))
	ctx, stop := context.WithCancel(t.Context())
	g := New(ctx, w.store, func(r Result) { w.results <- r })
	gate := w.up.Hold("pub/"+path, 1000)
	f, _ := g.Join(w.job())
	done := make(chan error)
	go func() { _, err := body(t.Context(), f); done <- err }()
	gate.Wait(t.Context())
	stop()
	g.Wait()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("follower got %v", err)
	}
	if _, err := w.stored(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored: %v", err)
	}
}
