package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// drip sends a file of total bytes, piece by piece with pause before each, and hangs once it has sent stop bytes.
func (w *world) drip(total, piece, stop int, pause time.Duration) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set("Content-Length", fmt.Sprint(total))
		rw.WriteHeader(200)
		rw.(http.Flusher).Flush()
		for sent := 0; sent < total; sent += piece {
			if sent >= stop {
				select {
				case <-r.Context().Done():
				case <-w.end:
				}
				return
			}
			time.Sleep(pause)
			if _, err := rw.Write(bytes.Repeat([]byte("x"), min(piece, total-sent))); err != nil {
				return
			}
			rw.(http.Flusher).Flush()
		}
	}
}

func TestStall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(100, 10, 30, 0))
		o := w.origin("http://a.example")
		for i := range strikes {
			resp, err := o.Do(t.Context(), file("x"))
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			b, err := io.ReadAll(resp.Body)
			if len(b) != 30 || !errors.Is(err, ErrStalled) || errors.Is(err, context.Canceled) || time.Since(begun) != w.pool.StallTimeout {
				t.Errorf("%d bytes, %v after %v", len(b), err, time.Since(begun))
			}
			if want := "upstream: reading x from http://a.example: stalled: no byte for 10s"; err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			if down := o.Health().State == Down; down != (i == strikes-1) {
				t.Errorf("stall %d: %+v", i, o.Health())
			}
			resp.Body.Close()
		}
	})
}

// A few bytes now and then, for which no client waits, are a stall.
func TestTrickle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(1000, 1, 1000, time.Second))
		resp, err := w.origin("http://a.example").Do(t.Context(), file("x"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		begun := time.Now()
		b, err := io.ReadAll(resp.Body)
		if !errors.Is(err, ErrStalled) || time.Since(begun) > trickleTime+time.Second {
			t.Errorf("%d bytes, %v after %v", len(b), err, time.Since(begun))
		}
	})
}

// Slow is not stalled, neither upstream nor the reader.
func TestSlow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(100_000, 10_000, 100_000, w.pool.StallTimeout-1))
		w.serve("b.example:80", w.drip(200_000, 1000, 200_000, 0))
		resp, err := w.origin("http://a.example").Do(t.Context(), file("x"))
		if got := get(t, resp, err); len(got) != 100_000 {
			t.Errorf("%d bytes", len(got))
		}
		resp, err = w.origin("http://b.example").Do(t.Context(), file("x"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		n, buf := 0, make([]byte, 50_000)
		for err == nil {
			time.Sleep(10 * w.pool.StallTimeout)
			var m int
			m, err = io.ReadFull(resp.Body, buf)
			n += m
		}
		if err != io.EOF || n != 200_000 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

// An origin that does not answer costs what the time-outs say, and is down at once.
func TestTimeouts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("dial.example:80")
		w.raw("tls.example:443", "", true)
		w.raw("header.example:80", "HTTP/1.1 200 OK\r\n", true)
		w.serve("slow.example:80", func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(4 * time.Second)
			http.Redirect(rw, r, r.URL.Path+"x", 302)
		})
		for url, want := range map[string]time.Duration{
			"http://dial.example": w.pool.DialTimeout, "https://tls.example": w.pool.TLSTimeout, "http://header.example": w.pool.HeaderTimeout,
			"http://slow.example": w.pool.attemptTimeout(), // each hop is in time, but not all of them
		} {
			o := w.origin(url)
			begun := time.Now()
			if _, err := o.Do(t.Context(), file("x")); !errors.Is(err, ErrUnavailable) || time.Since(begun) != want || o.Health().State != Down {
				t.Errorf("%s: %v after %v, %+v", url, err, time.Since(begun), o.Health())
			}
		}
	})
}

// Idle connections of an origin that went down may be dead without a sign: a trial dials anew.
func TestTrialDialsAnew(t *testing.T) {
	ca := mirrortest.NewTLSUpstream(t, mirrortest.TLS{}).CA // so that there are two transports
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", text("x"))
		o := w.origin("http://a.example", func(c *Config) { c.CA = ca })
		for range 3 {
			resp, err := o.Do(t.Context(), file("x"))
			get(t, resp, err)
		}
		if n := w.dials["a.example:80"]; n != 1 {
			t.Fatalf("%d dials for three requests", n)
		}
		o.judge(o.health.done(false, dead, errors.New("why")))
		time.Sleep(time.Second)
		resp, err := o.Do(t.Context(), file("x"))
		get(t, resp, err)
		if n := w.dials["a.example:80"]; n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// Connections are kept over 404s and redirects too, and as many as there are slots.
func TestConnectionsKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var release chan struct{}
		w.serve("a.example:80", func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/gone":
				status(404)(rw, r)
			case "/moved":
				http.Redirect(rw, r, "/there", 301)
			case "/big404":
				rw.WriteHeader(404)
				rw.Write(make([]byte, 1<<20))
			default:
				if release != nil {
					<-release
				}
				text("x")(rw, r)
			}
		})
		o := w.origin("http://a.example")
		for range 3 {
			o.Do(t.Context(), file("gone"))
			resp, err := o.Do(t.Context(), file("moved"))
			get(t, resp, err)
		}
		if n := w.dials["a.example:80"]; n != 1 {
			t.Errorf("%d dials", n)
		}
		for range 2 {
			release = make(chan struct{})
			done := make(chan struct{})
			for range 8 {
				go func() {
					resp, err := o.Do(t.Context(), file("x"))
					get(t, resp, err)
					done <- struct{}{}
				}()
			}
			synctest.Wait()
			close(release)
			for range 8 {
				<-done
			}
		}
		if n := w.dials["a.example:80"]; n != 8 {
			t.Errorf("%d dials for 8 requests at a time, twice", n)
		}
		// A big page is not worth its reading.
		begun := time.Now()
		if _, err := o.Do(t.Context(), file("big404")); err == nil || time.Since(begun) != 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// An error page that never ends holds nobody up.
func TestEndlessPage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.raw("a.example:80", "HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\nslo", true)
		begun := time.Now()
		if _, err := w.origin("http://a.example").Do(t.Context(), file("x")); err == nil || time.Since(begun) != drainTime {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

func TestConnectionBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(10, 5, 5, 0))
		w.serve("b.example:80", text("b"))
		a := w.origin("http://a.example", func(c *Config) { c.Connections = 2 })
		one, err1 := a.Do(t.Context(), file("1"))
		two, err2 := a.Do(t.Context(), file("2"))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		// The next one waits, for as long as its caller does, and then asks the next origin. Waiting is not the
		// origin's failure.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := a.Do(ctx, file("3")); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		begun = time.Now()
		if _, err := a.Do(t.Context(), file("3")); !errors.Is(err, ErrUnavailable) || time.Since(begun) != a.pool.SlotTimeout ||
			!strings.Contains(err.Error(), "all of its 2 connections were in use") || a.Health().State != Up {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		type answer struct {
			resp *Response
			err  error
		}
		third := make(chan answer)
		go func() {
			resp, err := a.Do(t.Context(), file("4"))
			third <- answer{resp, err}
		}()
		synctest.Wait()
		if n := len(w.took()); n != 2 {
			t.Errorf("%d requests with 2 connections", n)
		}
		// Closing gives a slot back once, however often it is done.
		for range 3 {
			one.Body.Close()
		}
		got := <-third
		if got.err != nil || len(a.slots) != 2 {
			t.Errorf("%v, %d slots taken", got.err, len(a.slots))
		}
		two.Body.Close()
		got.resp.Body.Close()
	})
}

// A request that waits for a slot does not hold the trial of a down origin.
func TestWaitingIsNoTrial(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(10, 5, 5, 0))
		a := w.origin("http://a.example", func(c *Config) { c.Connections = 1 })
		resp, err := a.Do(t.Context(), file("1"))
		if err != nil {
			t.Fatal(err)
		}
		a.judge(a.health.done(false, dead, errors.New("why")))
		// In back-off nobody waits for a slot.
		begun := time.Now()
		if _, err := a.Do(t.Context(), file("x")); !errors.Is(err, ErrUnavailable) || time.Since(begun) != 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(time.Second)
		done := make(chan error)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := a.Do(ctx, file("2"))
			done <- err
		}()
		synctest.Wait()
		if a.health.trial {
			t.Error("the waiting request holds the trial")
		}
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		// One whose slot comes when somebody else has found the origin down does not ask it either.
		a.health.done(false, answered, nil)
		go func() {
			_, err := a.Do(t.Context(), file("3"))
			done <- err
		}()
		synctest.Wait()
		a.judge(a.health.done(false, dead, errors.New("why")))
		resp.Body.Close()
		if err := <-done; !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "in back-off") || len(w.took()) != 1 {
			t.Error(err)
		}
	})
}

func TestRate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", text(strings.Repeat("x", 100_000)))
		w.serve("b.example:80", text(strings.Repeat("x", 100)))
		slow := func(c *Config) { c.Rate = 10_000 }
		a, b := w.origin("http://a.example", slow), w.origin("http://b.example", slow)

		// Two bodies share the rate.
		begun := time.Now()
		done := make(chan int)
		for range 2 {
			go func() {
				resp, err := a.Do(t.Context(), file("x"))
				done <- len(get(t, resp, err))
			}()
		}
		if <-done+<-done != 200_000 {
			t.Error("short")
		}
		if took := time.Since(begun); took < 19*time.Second || took > 20*time.Second {
			t.Errorf("200 kB at 10 kB/s took %v", took)
		}
		// Many small ones are bound too.
		begun = time.Now()
		for range 200 {
			resp, err := b.Do(t.Context(), file("x"))
			get(t, resp, err)
		}
		if took := time.Since(begun); took < 1800*time.Millisecond || took > 2*time.Second {
			t.Errorf("20 kB at 10 kB/s took %v", took)
		}
		// Waiting for it ends with the caller.
		for _, cancelled := range []bool{true, false} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			if cancelled {
				ctx, cancel = context.WithCancel(t.Context())
				time.AfterFunc(3*time.Second, cancel)
			}
			resp, err := a.Do(ctx, file("x"))
			if err != nil {
				t.Fatal(err)
			}
			begun = time.Now()
			_, err = io.Copy(io.Discard, resp.Body)
			if want := map[bool]error{true: context.Canceled, false: context.DeadlineExceeded}[cancelled]; !errors.Is(err, want) || time.Since(begun) > 3*time.Second {
				t.Errorf("%v after %v", err, time.Since(begun))
			}
			resp.Body.Close()
			cancel()
		}
		if a.health.bodies != 0 {
			t.Error("giving up counted against the origin")
		}
	})
}

// What ends a body by our own side does not count against the origin, and says what it was.
func TestBodyGivenUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", w.drip(100, 10, 50, 0))
		w.raw("b.example:80", "HTTP/1.1 200 OK\r\n\r\n0123", true) // ends with the connection
		for _, url := range []string{"http://a.example", "http://b.example"} {
			o := w.origin(url)
			for range 2 * strikes {
				ctx, cancel := context.WithCancel(t.Context())
				resp, err := o.Do(ctx, file("x"))
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Second, cancel)
				if b, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) || len(b) == 0 {
					t.Errorf("%s, cancelled: %q, %v", url, b, err)
				}
				resp.Body.Close()

				if resp, err = o.Do(t.Context(), file("x")); err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Second, func() { resp.Body.Close() })
				if b, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, context.Canceled) || len(b) == 0 {
					t.Errorf("%s, closed by another goroutine: %q, %v", url, b, err)
				}
			}
			if o.health.bodies != 0 || o.Health().State != Up {
				t.Errorf("%s: %+v", url, o.Health())
			}
		}
	})
}

// Bodies that break off count apart from answers, so that an origin which is good at nothing else goes down.
func TestBrokenBodies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.raw("a.example:80", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123", false)
		w.serve("b.example:80", text("b"))
		a := w.origin("http://a.example")
		order := Order{Upstreams: []*Origin{a, w.origin("http://b.example")}}
		for i := range strikes + 1 {
			resp, err := Do(t.Context(), order, file("x"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if fromA := i < strikes; errors.Is(err, io.ErrUnexpectedEOF) != fromA || (resp.Configured == a) != fromA {
				t.Errorf("%d: from %s, %v", i, resp.Origin, err)
			}
		}
	})
}
