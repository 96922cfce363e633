package server

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// The fault table: each fault × {digest known, unknown} × {one upstream, with fallback} × {whole, range, tail, ranges}.
//
// The rules:
//
//  1. An origin that does not answer with the file costs nothing but time: the fallback brings it. Without one the
//     client gets 502 (504 where time ran out) with Retry-After, in words that name the origin.
//  2. A body that breaks off is gone on with: where the digest is known by anybody who has the file, the fallback
//     first; else by the same host only, and only with the same validator. Where nobody goes on, a client that has
//     bytes is broken off, and they were right; one that has none gets the error of rule 1.
//  3. Where the digest is known, the last fetch.HoldBack bytes never go out before it is right; a file of no more than
//     that not at all. So the client of a wrong file is broken off, or gets the error, or, if nobody had a byte yet,
//     another origin's file. For ten minutes the origin that sent it is not asked for it again.
//  4. Where it is unknown, upstream's word is all there is: another file is taken for the file.
//  5. What has no length is sent and stored if its end is marked, and a range of it may be answered with all of it.
//  6. An origin is asked once; again only for the rest of what it broke off, until three bodies in a row have failed.
//  7. The tree has the file if it came whole and right, with upstream's time, and nothing else.
//  8. The next client gets right bytes: of the tree, or with one request to one origin; an origin that is down is first
//     tried again.
//
// The exceptions, by the words of P2:
//
//   - A range that excludes the end of an arriving file carries upstream's word only: fate wrong, shape range.
//   - What has neither length nor digest and ends with the connection passes through, and is never stored: fates
//     passes and short.
type fate string

const (
	arrives  fate = "arrives"  // right bytes, and stored
	believed fate = "believed" // likewise, but they are another file's (rule 4)
	passes   fate = "passes"   // right bytes, not stored
	short    fate = "short"    // the same, of a body that is cut without a sign
	missing  fate = "missing"  // nothing came
	breaks   fate = "breaks"   // it broke off before two thirds of it were here
	wrong    fate = "wrong"    // all of it came, and is wrong
	mixed    fate = "mixed"    // likewise, but nobody knows whose fault it is
	unlike   fate = "unlike"   // it is wrong, and that was found before a client had a byte of it
)

// cell is what becomes of a file, and how often the origins are asked for it at most.
type cell struct {
	fate
	upstream, fallback int
}

type cells struct{ alone, backed cell } // with one upstream; with a fallback that has the right file

// What most faults do.
var (
	harmless = cells{cell{arrives, 1, 0}, cell{arrives, 1, 0}}
	once     = cells{cell{arrives, 2, 0}, cell{arrives, 2, 0}} // upstream goes on
	noAnswer = cells{cell{missing, 1, 0}, cell{arrives, 1, 1}}
	takeOver = cells{cell{breaks, 3, 0}, cell{arrives, 1, 1}} // the fallback goes on
	nobody   = cells{cell{breaks, 3, 0}, cell{breaks, 3, 0}}
	another  = cells{cell{believed, 1, 0}, cell{believed, 1, 0}}
)

var faultTable = []struct {
	name           string
	fault          mirrortest.Fault
	shut           bool                      // upstream refuses connections
	set            func(w *faultWorld)       // instead of fault
	during         func(w *faultWorld)       // while the client waits
	pool           func(pool *upstream.Pool) // shorter time-outs
	late           bool                      // 504 in place of 502
	unsized        bool                      // upstream does not tell the length (rule 5)
	known, unknown cells
	tiny           *cells // where a file that is held back whole fares otherwise than known
}{
	{name: "stall", fault: mirrortest.Fault{Stall: true}, late: true, known: takeOver, unknown: nobody,
		pool: func(p *upstream.Pool) { p.StallTimeout = time.Second }},
	{name: "no header", fault: mirrortest.Fault{Delay: time.Minute}, late: true, known: noAnswer, unknown: noAnswer,
		pool: func(p *upstream.Pool) { p.HeaderTimeout = 2 * time.Second }},

	{name: "none", known: harmless, unknown: harmless},
	{name: "truncated", fault: mirrortest.Fault{Truncate: true}, known: takeOver, unknown: nobody},
	{name: "truncated once", fault: mirrortest.Fault{Truncate: true}.Once(), unknown: once,
		known: cells{cell{arrives, 2, 0}, cell{arrives, 1, 1}}},
	{name: "truncated at once", set: func(w *faultWorld) { w.up.Fault("**", mirrortest.Fault{Truncate: true}) },
		known:   cells{cell{missing, 3, 0}, cell{arrives, 1, 1}},
		unknown: cells{cell{missing, 1, 0}, cell{missing, 1, 0}}},
	{name: "truncated, no validators", known: takeOver,
		unknown: cells{cell{breaks, 1, 0}, cell{breaks, 1, 0}},
		set: func(w *faultWorld) {
			w.up.PutFile("up/"+w.path, mirrortest.File{Body: w.right, ETag: "-"})
			w.modTime = time.Time{}
			w.strike(mirrortest.Fault{Truncate: true})
		}},
	{name: "chunked", fault: mirrortest.Fault{Chunked: true}, known: harmless, unknown: harmless},
	{name: "chunked, truncated", fault: mirrortest.Fault{Chunked: true, Truncate: true}, unsized: true, known: takeOver, unknown: nobody},
	{name: "unframed", fault: mirrortest.Fault{Unframed: true}, known: harmless,
		unknown: cells{cell{passes, 1, 0}, cell{passes, 1, 0}}},
	{name: "unframed, truncated", fault: mirrortest.Fault{Unframed: true, Truncate: true},
		// The first end is no failure that anybody could count.
		known:   cells{cell{breaks, 4, 0}, cell{arrives, 1, 1}},
		unknown: cells{cell{short, 1, 0}, cell{short, 1, 0}}},
	{name: "ignores ranges", unknown: once,
		known: cells{cell{arrives, 2, 0}, cell{arrives, 1, 1}},
		set: func(w *faultWorld) {
			for _, u := range w.origins() {
				u.Fault("**", mirrortest.Fault{NoRange: true})
			}
			w.strike(mirrortest.Fault{Truncate: true, NoRange: true}.Once())
		}},

	{name: "wrong bytes", set: func(w *faultWorld) { w.putOther(w.other) }, unknown: another,
		known: cells{cell{wrong, 1, 0}, cell{wrong, 1, 0}},
		tiny:  &cells{cell{unlike, 1, 0}, cell{arrives, 1, 1}}},
	{name: "wrong length", set: func(w *faultWorld) { w.putOther(append(w.other, 'x')) }, unknown: another,
		known: cells{cell{unlike, 1, 0}, cell{arrives, 1, 1}}},
	{name: "longer, chunked", unknown: another,
		set: func(w *faultWorld) {
			w.putOther(append(w.other, 'x'))
			w.up.Fault("**", mirrortest.Fault{Chunked: true})
		},
		known: cells{cell{wrong, 1, 0}, cell{wrong, 1, 0}},
		tiny:  &cells{cell{unlike, 1, 0}, cell{arrives, 1, 1}}},
	{name: "changes midway",
		set: func(w *faultWorld) {
			w.strike(mirrortest.Fault{Truncate: true}.Once())
			w.gate = w.up.Hold("**", w.eighth())
		},
		during: func(w *faultWorld) {
			if err := w.gate.Wait(w.t.Context()); err != nil {
				w.t.Error(err)
			}
			w.putOther(w.other)
			w.gate.Release()
		},
		known:   cells{cell{mixed, 2, 0}, cell{arrives, 1, 1}},
		unknown: cells{cell{breaks, 2, 0}, cell{breaks, 2, 0}},
		// Nobody has a byte of the mixture, so it is fetched anew, from one origin, which has the wrong file.
		tiny: &cells{cell{unlike, 3, 0}, cell{arrives, 1, 1}}},

	{name: "503 once", fault: mirrortest.Fault{Status: 503}.Once(), known: noAnswer, unknown: noAnswer},
	{name: "503", fault: mirrortest.Fault{Status: 503}, known: noAnswer, unknown: noAnswer},
	{name: "403", fault: mirrortest.Fault{Status: 403}, known: noAnswer, unknown: noAnswer},
	{name: "HTML", fault: mirrortest.CaptivePortal, known: noAnswer, unknown: noAnswer},
	{name: "gzip", fault: mirrortest.Fault{Gzip: true}, known: noAnswer, unknown: noAnswer},
	{name: "redirect loop", fault: mirrortest.Loop, known: noAnswer, unknown: noAnswer},
	{name: "redirect to a dead host", known: noAnswer, unknown: noAnswer,
		set: func(w *faultWorld) { w.strike(mirrortest.Fault{Redirect: newDoor(w.t).url + "/*"}) }},
	{name: "drops the connection", fault: mirrortest.Fault{Drop: true}, known: noAnswer, unknown: noAnswer},
	{name: "refuses connections", shut: true,
		known:   cells{cell{missing, 0, 0}, cell{arrives, 0, 1}},
		unknown: cells{cell{missing, 0, 0}, cell{arrives, 0, 1}}},
}

// shape is how a client asks.
type shape struct {
	name   string
	ranges func(n int) [][2]int // first and last byte of each range; nil: the whole file
}

// shapes of a file of n bytes. Those that do not begin with the first byte begin behind all that fate breaks leaves.
var shapes = []shape{
	{"whole", nil},
	{"range", func(n int) [][2]int { return [][2]int{{n * 2 / 3, n*2/3 + n/30}} }},
	{"tail", func(n int) [][2]int { return [][2]int{{n * 2 / 3, n - 1}} }},
	{"ranges", func(n int) [][2]int { return [][2]int{{0, 99}, {n * 2 / 3, n*2/3 + n/30}, {n - 100, n - 1}} }},
}

// TestFaults is the table.
func TestFaults(t *testing.T) {
	// Hundreds of mirrors fsync more than a disk that others use too can do in time.
	if dir, err := os.MkdirTemp("/dev/shm", ""); err == nil {
		os.Remove(dir)
		t.Setenv("TMPDIR", "/dev/shm")
	}
	stock := newFaultStock(t)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 24) // they wait for disks and time-outs more than they work
	for _, row := range faultTable {
		tiny := row.known
		if row.tiny != nil {
			tiny = *row.tiny
		}
		for file, want := range map[string]cells{"package": row.known, "tiny package": tiny, "image": row.unknown} {
			for origins, want := range map[string]cell{"one upstream": want.alone, "with fallback": want.backed} {
				for _, shape := range shapes {
					if file == "tiny package" && shape.name != "whole" && shape.name != "ranges" || file == "image" && shape.name == "tail" {
						continue // held back whole, or not at all: no part of it is special
					}
					wg.Go(func() {
						slots <- struct{}{}
						defer func() { <-slots }()
						t.Run(strings.Join([]string{row.name, file, origins, shape.name}, "/"), func(t *testing.T) {
							w := newFaultWorld(t, stock, file, row.shut, origins == "with fallback", row.pool)
							if row.set != nil {
								row.set(w)
							} else {
								w.strike(row.fault)
							}
							w.shape, w.late, w.unsized = shape, row.late, row.unsized && file == "image"
							w.cell(want, row.during)
						})
					})
				}
			}
		}
	}
	wg.Wait()
}

// cell lets a client ask for the file, then heals the fault and lets others ask.
func (w *faultWorld) cell(want cell, during func(*faultWorld)) {
	w.t.Helper()
	begun := make(chan reply, 1)
	go func() { begun <- w.ask(w.shape) }()
	if during != nil {
		during(w)
	}
	first := <-begun
	w.quiet()

	truth := w.right
	if want.fate == believed {
		truth = w.upstreamHas
	}
	w.checkFirst(want.fate, first, truth)
	stored := want.fate == arrives || want.fate == believed
	if want.fate == believed {
		w.modTime = w.modTime.Add(-time.Hour) // as putOther gave it
	}
	w.checkTree(stored, truth)
	if up, fb := w.asked(); up > want.upstream || fb > want.fallback {
		w.t.Errorf("upstream was asked %d times, at most %d are needed; the fallback %d, %d:\n%s",
			up, want.upstream, fb, want.fallback, w.log())
	}
	if want.fallback == 1 && w.up.BytesSent("**") == w.eighth() {
		if got := w.fallback.Requests()[0].Header.Get("Range"); got != fmt.Sprintf("bytes=%d-", w.eighth()) {
			w.t.Errorf("the fallback was not asked for the rest: %q", got)
		}
	}
	w.reset()

	w.heal()
	if !stored || want.fate == believed {
		w.modTime = w.stock.files[w.path].ModTime
	}
	w.checkNext(want.fate, truth, stored)

	// From then on it is as if nothing had been.
	w.reset()
	for _, s := range shapes {
		if s.name != w.shape.name && s.ranges != nil {
			continue
		}
		if outcome := w.outcome(s, w.ask(s), w.right); outcome != right {
			w.t.Errorf("when all is well, %s: %s", s.name, outcome)
		}
	}
	w.quiet()
	w.checkTree(true, w.right)
	if up, fb := w.asked(); up+fb > 0 {
		w.t.Errorf("for what is stored upstream was asked:\n%s", w.log())
	}
}

// checkFirst judges what the client got.
func (w *faultWorld) checkFirst(f fate, got reply, truth []byte) {
	w.t.Helper()
	whole := w.shape.ranges == nil || w.unsized               // it is sent the file from the first byte on
	front := whole || w.shape.ranges(len(w.right))[0][0] == 0 // some of what it wants comes first
	var want []string
	switch {
	case f == short:
		if got.status != http.StatusOK || got.err != nil || !bytes.Equal(got.body, w.right[:w.eighth()]) {
			w.t.Errorf("status %d, %d bytes, %v: not what upstream sent", got.status, len(got.body), got.err)
		}
		return
	case f == arrives || f == believed || f == passes:
		want = []string{right}
	case f == missing || f == unlike || f == breaks && (w.tiny() || !front):
		want = []string{refused}
	case (f == wrong || f == mixed) && w.shape.name == "range":
		want = []string{broken, right} // of upstream's file, in the length of the right one
		truth = w.upstreamHas[:len(w.right)]
	default:
		want = []string{broken}
	}
	outcome := w.outcome(w.shape, got, truth)
	if !slices.Contains(want, outcome) {
		w.t.Errorf("the client got: %s; should be %s; upstream saw\n%s", outcome, strings.Join(want, " or "), w.log())
	}
	if outcome == refused {
		w.checkRefusal(got, f == unlike)
	}
	if outcome == broken && whole {
		if f == breaks && !bytes.HasPrefix(w.right, got.body) {
			w.t.Errorf("the %d bytes before it broke off are wrong", len(got.body))
		}
		if f != breaks && len(got.body) > len(w.right)-fetch.HoldBack {
			w.t.Errorf("of %d wrong bytes %d went out", len(w.right), len(got.body))
		}
	}
}

// checkRefusal judges an error: it must be one of upstream's, say so, and say when to ask again.
func (w *faultWorld) checkRefusal(got reply, wrong bool) {
	w.t.Helper()
	status := http.StatusBadGateway
	if w.late {
		status = http.StatusGatewayTimeout
	}
	if got.status != status {
		w.t.Errorf("status %d, should be %d: %.500q", got.status, status, got.body)
	}
	if n, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || n < 1 || n > 10 {
		w.t.Errorf("Retry-After: %q", got.header.Get("Retry-After"))
	}
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Etag")+got.header.Get("Last-Modified")+got.header.Get("Content-Range") != "" {
		w.t.Errorf("an error looks like a file: %v", got.header)
	}
	words := []string{w.upURL}
	if wrong { // what was expected, what was found
		words = append(words, fmt.Sprintf("%x", sha256.Sum256(w.right)), fmt.Sprintf("%d bytes", len(w.upstreamHas)))
	}
	for _, word := range words {
		if !strings.Contains(string(got.body), word) {
			w.t.Errorf("the error does not tell %s: %.500q", word, got.body)
		}
	}
}

// checkNext lets a client ask after the fault was healed, until it has got the file.
func (w *faultWorld) checkNext(f fate, truth []byte, stored bool) {
	w.t.Helper()
	var backOff time.Time // its end; zero: none
	next := func(when, want string, truth []byte, most int) reply {
		w.t.Helper()
		got := w.ask(w.shape)
		w.quiet()
		outcome := w.outcome(w.shape, got, truth)
		if outcome == right && !backOff.IsZero() && time.Now().After(backOff) {
			return got
		}
		if outcome != want {
			w.t.Errorf("%s, the next client got: %s; should be %s", when, outcome, want)
		}
		if up, fb := w.asked(); up+fb > most {
			w.t.Errorf("%s, at most %d requests are needed; there were:\n%s", when, most, w.log())
		}
		if f == breaks && w.path != faultImage && most == 1 && !strings.Contains(w.log(), " Range: bytes=") {
			w.t.Errorf("what had come was not gone on with:\n%s", w.log())
		}
		w.reset()
		return got
	}
	switch {
	case stored:
		next("stored", right, truth, 0)
		if f == believed { // the index says that it is fresh; who does not know asks
			w.restart()
			next("asked whether it is current", right, w.right, 1)
		}
		return
	case (f == wrong || f == unlike) && w.fallback == nil:
		w.checkRefusal(next("for ten minutes", refused, w.right, 0), true)
		w.restart() // which forgets that
	case w.fallback == nil && w.origin.Health().State == upstream.Down:
		backOff = w.origin.Health().Retry
		got := next("in back-off", refused, w.right, 0)
		if got.status < 500 {
			return // this machine is so slow that it was over
		}
		w.checkRefusal(got, false)
		backOff = time.Time{}
		if err := w.origin.Probe(w.t.Context()); err != nil {
			w.t.Error(err)
		}
		w.reset()
	}
	next("healed", right, w.right, 1)
}

// checkTree walks the root: it holds what upstream has, and nothing else.
func (w *faultWorld) checkTree(stored bool, truth []byte) {
	w.t.Helper()
	found := false
	err := filepath.WalkDir(w.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.root, name)
		switch {
		case err != nil:
			return err
		case rel == ".":
		case rel == store.Private:
			if info.Mode().Perm() != 0o700 {
				w.t.Errorf("%s has mode %v", rel, info.Mode())
			}
			return filepath.SkipDir
		case d.IsDir():
			if info.Mode().Perm() != 0o755 {
				w.t.Errorf("%s has mode %v", rel, info.Mode())
			}
		default:
			got, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			path := strings.TrimPrefix(filepath.ToSlash(rel), "pub/test/")
			want, ok := w.stock.files[path]
			if path == w.path {
				found, want.Body = true, truth
				if !w.modTime.IsZero() && !info.ModTime().Equal(w.modTime) {
					w.t.Errorf("its time is %v, upstream's is %v", info.ModTime(), w.modTime)
				}
			}
			if !ok || !info.Mode().IsRegular() || !bytes.Equal(got, want.Body) {
				w.t.Errorf("in the tree stands %s, %d bytes that upstream does not have", rel, len(got))
			}
			if info.Mode().Perm() != 0o644 {
				w.t.Errorf("%s has mode %v", rel, info.Mode())
			}
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
	if found != stored {
		w.t.Errorf("stored: %v, should be %v", found, stored)
	}
	// Only the bytes of a known digest, that may still become the file, are kept.
	left, err := os.ReadDir(filepath.Join(w.root, store.Private, "tmp"))
	if err != nil || len(left) > 1 || len(left) > 0 && (stored || w.path == faultImage) {
		w.t.Errorf("left in tmp: %v, %v", left, err)
	}
}
