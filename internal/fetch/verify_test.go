package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

func sumOf(b []byte) digest.Sum {
	h := digest.SHA256.New()
	h.Write(b)
	return digest.SumOf(digest.SHA256, h)
}

// known is a job whose bytes must be want's.
func (w *world) known(want []byte, more ...*mirrortest.Upstream) Job {
	job := w.job()
	job.Expect = func() digest.Expectation { return digest.Known(int64(len(want)), sumOf(want)) }
	for _, up := range more {
		job.Order.Fallbacks = append(job.Order.Fallbacks, w.also(up))
	}
	return job
}

// also makes another upstream an origin.
func (w *world) also(up *mirrortest.Upstream) *upstream.Origin {
	o, err := upstream.NewPool("instantmirror/test").Origin(upstream.Config{URL: up.URL + "/pub"})
	if err != nil {
		panic(err)
	}
	return o
}

func other(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/3] ^= 1
	return b
}

// TestWrongBytes: the end never goes out, nothing is stored, and the origin is not asked for it again.
func TestWrongBytes(t *testing.T) {
	for name, size := range map[string]int{"large": 1 << 20, "small": 1000} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			want := random(size)
			w.put(other(want))
			f, _ := w.Join(w.known(want))
			got, err := body(t.Context(), f)
			var mismatch *digest.MismatchError
			if !errors.As(err, &mismatch) || !strings.Contains(err.Error(), sumOf(want).Hex()) ||
				!strings.Contains(err.Error(), sumOf(other(want)).Hex()) || !strings.Contains(err.Error(), w.up.URL) {
				t.Errorf("error %v", err)
			}
			if most := max(size-HoldBack, 0); len(got) > most {
				t.Errorf("%d bytes went out, at most %d may", len(got), most)
			}
			if _, err := w.stored(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stored: %v", err)
			}
			w.Wait()
			tmp, _ := os.ReadDir(filepath.Join(w.store.Dir(), store.Private, "tmp"))
			if len(tmp) != 0 {
				t.Errorf("left in tmp: %v", tmp)
			}
			<-w.results
			// It is not asked again, and the error stays the same.
			f, _ = w.Join(w.known(want))
			if _, err := body(t.Context(), f); !errors.As(err, &mismatch) {
				t.Errorf("again: %v", err)
			}
			if n := w.up.Count("**"); n != 1 {
				t.Errorf("upstream saw %d requests", n)
			}
			<-w.results
			// For other bytes it is.
			f, _ = w.Join(w.known(other(want)))
			if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, other(want)) {
				t.Errorf("other bytes: %d, %v", len(got), err)
			}
		})
	}
}

// TestWrongBytesElsewhereRight: where nobody has a byte yet the same flight asks the next origin; else the next one does.
func TestWrongBytesElsewhereRight(t *testing.T) {
	for name, size := range map[string]int{"large": 1 << 20, "small": 1000} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fallback := mirrortest.NewUpstream(t)
			want := random(size)
			w.put(other(want))
			fallback.Put("pub/"+path, want)
			f, _ := w.Join(w.known(want, fallback))
			got, err := body(t.Context(), f)
			<-w.results
			switch {
			case size > HoldBack && err == nil:
				t.Error("wrong bytes and right ones in one body")
			case size > HoldBack: // the next request goes elsewhere
				f, _ = w.Join(w.known(want, fallback))
				got, err = body(t.Context(), f)
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if a, b := w.up.Count("**"), fallback.Count("**"); a != 1 || b != 1 {
				t.Errorf("asked %d and %d times", a, b)
			}
			w.Wait()
			if got, err := w.stored(); got != string(want) {
				t.Errorf("stored: %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestWrongLength: an origin that announces another length need not send anything.
func TestWrongLength(t *testing.T) {
	w := newWorld(t)
	fallback := mirrortest.NewUpstream(t)
	want := random(1 << 20)
	w.put(want[1:])
	fallback.Put("pub/"+path, want)
	f, _ := w.Join(w.known(want, fallback))
	if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	<-w.results
	f, _ = w.Join(w.known(want[1:])) // what upstream has, is asked of it
	if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want[1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// TestGoingOn: a body that breaks off is gone on with, and followers notice nothing.
func TestGoingOn(t *testing.T) {
	want := random(1 << 20)
	cut := mirrortest.Fault{Truncate: true, At: 300_000}
	for _, test := range []struct {
		name     string
		known    bool
		fallback bool
		fault    mirrortest.Fault
		parts    int
		whole    bool
	}{
		{"digest known, same origin", true, false, cut.Once(), 2, true},
		{"digest known, fallback", true, true, cut, 2, true},
		{"digest known, same origin without ranges", true, false, mirrortest.Fault{Truncate: true, At: 300_000, NoRange: true, Times: 1}, 2, true},
		{"digest unknown, same validator", false, false, cut.Once(), 2, true},
		{"digest known, cut again and again", true, false, mirrortest.Fault{Truncate: true, At: 150_000}, 5, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.put(want)
			w.up.Fault("**", test.fault)
			job := w.job()
			if test.known {
				job = w.known(want)
			}
			if test.fallback {
				fallback := mirrortest.NewUpstream(t)
				fallback.Put("pub/"+path, want)
				job.Order.Fallbacks = append(job.Order.Fallbacks, w.also(fallback))
			}
			f, _ := w.Join(job)
			got, err := body(t.Context(), f)
			if (err == nil) != test.whole || !bytes.HasPrefix(want, got) || test.whole && len(got) != len(want) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if r := <-w.results; test.whole && (r.Parts != test.parts || !r.Kept) {
				t.Errorf("result %+v", r)
			}
			if got, _ := w.stored(); test.whole && got != string(want) {
				t.Errorf("stored %d bytes", len(got))
			}
		})
	}
}

// TestMixture: parts of several origins that do not make the file are thrown away, and then it comes from one origin.
func TestMixture(t *testing.T) {
	w := newWorld(t)
	fallback := mirrortest.NewUpstream(t)
	want := random(1 << 20)
	w.put(want)
	wrong := bytes.Clone(want)
	wrong[len(wrong)-1] ^= 1
	fallback.Put("pub/"+path, wrong)
	w.up.Fault("**", mirrortest.Fault{Truncate: true, At: 300_000}.Once())
	f, _ := w.Join(w.known(want, fallback))
	got, err := body(t.Context(), f)
	var mismatch *digest.MismatchError
	if !errors.As(err, &mismatch) || !bytes.HasPrefix(want, got) || len(got) > len(want)-HoldBack {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	<-w.results
	f, _ = w.Join(w.known(want, fallback))
	if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("anew: %d bytes, %v", len(got), err)
	}
	last := w.up.Requests()[w.up.Count("**")-1]
	if last.Header.Get("Range") != "" {
		t.Errorf("the last request was %v", last)
	}
}

// TestResume: what a broken flight left is taken up by the next, also by that of the next process; if it is damaged the
// digest tells, and no origin is blamed for it.
func TestResume(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		w := newWorld(t)
		want := random(1 << 20)
		w.put(want)
		w.up.Fault("**", mirrortest.Fault{Truncate: true, At: 400_000, Times: maxIdleParts, Skip: 0, NoRange: true})
		w.up.Fault("**", mirrortest.Fault{Status: 503, Skip: 1, Times: 1})
		f, _ := w.Join(w.known(want))
		if _, err := body(t.Context(), f); err == nil {
			t.Fatal("the flight did not break")
		}
		<-w.results
		w.up.Heal()
		w.up.Reset()
		tmp, err := filepath.Glob(filepath.Join(w.store.Dir(), store.Private, "tmp", "*"))
		if err != nil || len(tmp) != 1 {
			t.Fatal(tmp, err)
		}
		if damaged {
			file, err := os.OpenFile(tmp[0], os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			file.WriteAt([]byte("damage"), 1000)
			file.Close()
		}
		f, _ = w.Join(w.known(want))
		got, err := body(t.Context(), f)
		if damaged {
			if err == nil {
				t.Error("damaged bytes went out as whole")
			}
			<-w.results
			f, _ = w.Join(w.known(want))
			got, err = body(t.Context(), f)
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("damaged %v: %d bytes, %v", damaged, len(got), err)
		}
		if first := w.up.Requests()[0]; !strings.HasPrefix(first.Header.Get("Range"), "bytes=") || first.Header.Get("Range") == "bytes=0-" {
			t.Errorf("resumed by %v", first)
		}
	}
}

// TestChangedMeanwhile: the expectation that counts is the one at the end.
func TestChangedMeanwhile(t *testing.T) {
	want := random(100_000)
	for name, test := range map[string]struct {
		then digest.Expectation
		kept bool
	}{
		"now its digest is known, and right": {digest.Known(-1, sumOf(want)), true},
		"now its digest is known, and wrong": {digest.Known(-1, sumOf(other(want))), false},
		"now its length is known, and wrong": {digest.Known(5, sumOf(want)), false},
		"now nothing is known any more":      {digest.Unverified(-1, "gone"), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put(want)
			job := w.job()
			asked := 0
			job.Expect = func() digest.Expectation {
				if asked++; asked == 1 {
					return digest.Unverified(-1, "not yet")
				}
				return test.then
			}
			f, _ := w.Join(job)
			if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			r := <-w.results
			if r.Kept != test.kept {
				t.Errorf("result %+v", r)
			}
			if _, err := w.stored(); (err == nil) != test.kept {
				t.Errorf("stored: %v", err)
			}
		})
	}
}

// TestJudge: a body of unknown digest that its judge refuses is seen by nobody, and another origin is asked.
func TestJudge(t *testing.T) {
	w := newWorld(t)
	fallback := mirrortest.NewUpstream(t)
	w.put([]byte("nonsense"))
	fallback.Put("pub/"+path, []byte("<repomd/>"))
	job := w.job()
	job.Order.Fallbacks = append(job.Order.Fallbacks, w.also(fallback))
	job.Judge = func(r io.Reader) error {
		if b, err := io.ReadAll(r); err != nil || !bytes.HasPrefix(b, []byte("<")) {
			return errors.New("it is no XML")
		}
		return nil
	}
	f, _ := w.Join(job)
	if got, err := body(t.Context(), f); string(got) != "<repomd/>" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	w.Wait()
	if got, _ := w.stored(); got != "<repomd/>" {
		t.Errorf("stored %q", got)
	}
}

// TestNamedPathMissing: what metadata name is asked of the other origins too, when the first one has dropped it.
func TestNamedPathMissing(t *testing.T) {
	w := newWorld(t)
	fallback := mirrortest.NewUpstream(t)
	want := random(1000)
	fallback.Put("pub/"+path, want)
	f, _ := w.Join(w.known(want, fallback))
	if got, err := body(t.Context(), f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	job := w.job() // nothing names it
	job.Path += "x"
	job.Request.Path += "x"
	f, _ = w.Join(job)
	if _, err := body(t.Context(), f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if n := fallback.Count("**"); n != 1 {
		t.Errorf("the fallback saw %d requests", n)
	}
}

// TestDirectVerifies: without room, too, the end is held back until the whole is right.
func TestDirectVerifies(t *testing.T) {
	for _, right := range []bool{true, false} {
		w := newWorld(t)
		want := random(300_000)
		w.put(want)
		if !right {
			w.put(other(want))
		}
		w.store.SetReserve(1 << 60)
		d, err := w.Direct(t.Context(), w.known(want))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Ready(t.Context(), 1000, -1); err != nil {
			t.Fatal(err)
		}
		got, err := drainTo(t.Context(), d, 1000)
		if right && (err != nil || !bytes.Equal(got, want[1000:])) || !right && (err == nil || len(got) > len(want)-1000-HoldBack) {
			t.Errorf("right %v: %d bytes, %v", right, len(got), err)
		}
		if err := d.Ready(t.Context(), 5, 10); right && err != nil {
			t.Error(err)
		}
	}
}

func TestDoubtsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d doubts
		o := new(upstream.Origin)
		order := upstream.Order{Upstreams: []*upstream.Origin{o}}
		boom := errors.New("wrong")
		d.note("a", digest.Sum{}, &wrongError{err: boom, origin: o})
		if _, err := d.trusted("a", digest.Sum{}, order); !errors.Is(err, boom) {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(doubtFor)
		if left, err := d.trusted("a", digest.Sum{}, order); err != nil || len(left.Upstreams) != 1 {
			t.Errorf("ten minutes later: %v, %v", left, err)
		}
		for range 3 {
			d.note("a", digest.Sum{}, &wrongError{err: boom})
		}
		if !d.mixture("a", digest.Sum{}) {
			t.Error("the mixture is not remembered")
		}
	})
}

func TestEndlessBody(t *testing.T) {
	w := newWorld(t)
	want := random(100_000)
	w.put(append(bytes.Clone(want), random(10<<20)...))
	w.up.Fault("**", mirrortest.Fault{Chunked: true})
	f, _ := w.Join(w.known(want))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if got, err := body(ctx, f); err == nil || len(got) > len(want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if r := <-w.results; r.Bytes > 2*int64(len(want)) {
		t.Errorf("%d bytes were read", r.Bytes)
	}
}
