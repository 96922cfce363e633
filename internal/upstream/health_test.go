package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		why := errors.New("why")
		h.done(false, dead, why)
		for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
			if got := time.Until(h.now.Retry); got != want*time.Second {
				t.Fatalf("back-off %v, want %v s", got, want)
			}
			// Those who were under way when it went down do not count again.
			h.done(false, dead, why)
			h.done(false, refused, why)
			time.Sleep(want*time.Second - 1)
			if _, err := h.admit(true); err == nil || !errors.Is(err, why) || !strings.Contains(err.Error(), "in back-off until") {
				t.Fatalf("admitted in back-off: %v", err)
			}
			time.Sleep(1)
			if trial, err := h.admit(false); trial || err != nil {
				t.Fatalf("looking: %v, %v", trial, err)
			}
			trial, err := h.admit(true)
			if !trial || err != nil {
				t.Fatalf("not admitted: %v", err)
			}
			if _, err := h.admit(true); err == nil || !strings.Contains(err.Error(), "being tried again") {
				t.Fatalf("second trial: %v", err)
			}
			h.done(trial, dead, why)
		}
		// A trial that its caller gave up leaves the way free for the next.
		time.Sleep(10 * time.Second)
		if trial, _ := h.admit(true); !trial {
			t.Fatal("no trial")
		}
		h.done(true, neutral, context.Canceled)
		if trial, _ := h.admit(true); !trial {
			t.Fatal("no trial after one that was given up")
		}
		h.done(true, answered, nil)
		if h.now.State != Up || h.now.Err != nil || !h.now.Retry.IsZero() || h.now.Since != time.Now() {
			t.Errorf("not up: %+v", h.now)
		}
		h.done(false, dead, why)
		if got := time.Until(h.now.Retry); got != time.Second {
			t.Errorf("back-off after a recovery: %v", got)
		}
	})
}

func TestStrikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		why := errors.New("why")
		for _, v := range []verdict{refused, refused, answered, refused, refused, neutral} {
			if h.done(false, v, why); h.now.State == Down {
				t.Fatal("down")
			}
		}
		if gone := h.done(false, refused, why); !gone || h.now.State != Down {
			t.Fatal("three refusals in a row, and not down")
		}
		time.Sleep(time.Second)
		h.admit(true)
		h.done(true, refused, why)
		if got := time.Until(h.now.Retry); got != 2*time.Second {
			t.Errorf("back-off after a refused trial: %v", got)
		}
		h.done(false, answered, nil)

		// An origin that answers at once and always breaks off goes down too, for longer and longer.
		h = health{}
		h.done(false, answered, nil)
		h.body(why)
		h.body(nil)
		h.body(why)
		h.body(why)
		for _, want := range []time.Duration{1, 2, 4} {
			h.done(false, answered, nil)
			if h.body(why); h.now.State != Down || time.Until(h.now.Retry) != want*time.Second {
				t.Fatalf("want %v s of back-off, %+v", want, h.now)
			}
			time.Sleep(want * time.Second)
			h.admit(true)
			h.done(true, answered, nil)
		}
		h.body(nil)
		h.body(why)
		if h.now.State != Up {
			t.Errorf("one failed body after a whole one: %+v", h.now)
		}
	})
}

// TestDownOrigin follows a dead origin through Do: at once down, skipped, tried by one, up again.
func TestDownOrigin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("b.example:80", text("file of b"))
		a, b := w.origin("http://a.example"), w.origin("http://b.example")
		order := Order{Upstreams: []*Origin{a, b}}
		if h := a.Health(); h.State != Untried || !h.Since.IsZero() {
			t.Errorf("%+v", h)
		}
		for range 5 {
			if resp, err := Do(t.Context(), order, file("x")); get(t, resp, err) != "file of b" || resp.Configured != b {
				t.Error("not from b")
			}
		}
		if n := w.dials["a.example:80"]; n != 1 {
			t.Errorf("a was dialled %d times in its back-off", n)
		}
		h := a.Health()
		if h.State != Down || h.Err == nil || h.Since != time.Now() || h.Retry != time.Now().Add(time.Second) {
			t.Errorf("%+v", h)
		}

		// Alone, it is unavailable at once.
		_, err := a.Do(t.Context(), file("x"))
		var un *UnavailableError
		if !errors.As(err, &un) || un.Retry != time.Second || len(un.Attempts) != 1 || w.dials["a.example:80"] != 1 {
			t.Errorf("%#v", err)
		}
		for _, part := range []string{"x: no origin could answer", "http://a.example: in back-off until 0", "after: dial tcp", "connection refused"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in: %v", part, err)
			}
		}

		// Its time comes while it hangs: one request tries it, the others pass by.
		time.Sleep(time.Second)
		w.blackHole("a.example:80")
		tried := make(chan error)
		go func() {
			resp, err := Do(t.Context(), order, file("x"))
			if err == nil {
				resp.Body.Close()
			}
			tried <- err
		}()
		synctest.Wait()
		begun := time.Now()
		for range 5 {
			if resp, err := Do(t.Context(), order, file("x")); get(t, resp, err) != "file of b" || time.Since(begun) != 0 {
				t.Error("held up by the trial")
			}
		}
		_, err = a.Do(t.Context(), file("x"))
		if !errors.As(err, &un) || un.Retry != time.Second || !strings.Contains(err.Error(), "being tried again by another request") {
			t.Errorf("during a trial: %v", err)
		}
		if err := <-tried; err != nil || time.Since(begun) != w.pool.DialTimeout || w.dials["a.example:80"] != 2 {
			t.Errorf("trial: %v after %v, %d dials", err, time.Since(begun), w.dials["a.example:80"])
		}

		// It comes back.
		w.serve("a.example:80", text("file of a"))
		time.Sleep(2 * time.Second)
		if resp, err := Do(t.Context(), order, file("x")); get(t, resp, err) != "file of a" || a.Health().State != Up {
			t.Errorf("not back: %+v", a.Health())
		}
	})
}

// What only one path suffers from does not make an origin down; being overloaded does, after three times.
func TestRefusals(t *testing.T) {
	for code, wantDown := range map[int]bool{401: false, 403: false, 404: false, 429: true, 500: true, 503: true} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.serve("a.example:80", status(code))
				a := w.origin("http://a.example")
				for range 5 {
					if _, err := a.Do(t.Context(), file("x")); err == nil {
						t.Fatal("no error")
					}
				}
				want := 5
				if wantDown {
					want = 3
				}
				if n := len(w.took()); n != want || (a.Health().State == Down) != wantDown {
					t.Errorf("%d requests, %+v", n, a.Health())
				}
			})
		})
	}
}

// A caller that gives up says nothing about the origin, and never keeps its trial.
func TestGivenUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("a.example:80")
		w.serve("b.example:80", text("b"))
		a := w.origin("http://a.example")
		order := Order{Upstreams: []*Origin{a, w.origin("http://b.example")}}
		for name, makeDown := range map[string]bool{"fresh": false, "trial": true} {
			if makeDown {
				a.health.done(false, dead, errors.New("why"))
				time.Sleep(time.Second)
			}
			before := a.Health()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if _, err := Do(ctx, order, file("x")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
			if h := a.Health(); h != before {
				t.Errorf("%s: health %+v, was %+v", name, h, before)
			}
			if _, err := a.health.admit(false); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Do(ctx, order, file("x")); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got := w.took(); len(got) != 0 {
			t.Errorf("b was asked for one that is gone: %v", got)
		}
	})
}

func TestProbe(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for code, wantErr := range map[int]bool{200: false, 301: false, 403: false, 404: false, 429: false, 500: true} {
			w.serve("a.example:80", func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Location", "/elsewhere")
				rw.WriteHeader(code)
			})
			a := w.origin(fmt.Sprintf("http://a.example/pub/%d", code))
			err := a.Probe(t.Context())
			if (err != nil) != wantErr || (a.Health().State == Up) == wantErr {
				t.Errorf("%d: %v, %+v", code, err, a.Health())
			}
			if got := fmt.Sprint(w.took()); got != fmt.Sprintf("[HEAD a.example/pub/%d/]", code) {
				t.Errorf("requests %s", got)
			}
			w.pool.CloseIdleConnections()
		}
		b := w.origin("http://b.example/x/")
		if err := b.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "http://b.example/x: dial") || b.Health().State != Down {
			t.Errorf("%v, %+v", err, b.Health())
		}
		// It asks a down origin too, and finds it up.
		w.serve("b.example:80", text(""))
		if err := b.Probe(t.Context()); err != nil || b.Health().State != Up {
			t.Errorf("%v, %+v", err, b.Health())
		}
		w.raw("c.example:80", "", true)
		c := w.origin("http://c.example")
		begun := time.Now()
		if err := c.Probe(t.Context()); err == nil || time.Since(begun) != w.pool.HeaderTimeout || c.Health().State != Down {
			t.Errorf("%v after %v, %+v", err, time.Since(begun), c.Health())
		}
	})
}
