// Package fetch brings files from upstream: one flight per path, however many want it.
//
// A flight belongs to the Group, and so to the daemon: whoever asked first may leave, be slow, or be one of many.
// It asks upstream once, writes what arrives into a pending file that its followers read as it grows, verifies it, and
// commits it. While it is under way, everybody who wants the path joins it.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/spool"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// ErrCurrent ends a flight that found, before it asked upstream or at the gate, that its path has become current meanwhile.
var ErrCurrent = errors.New("current meanwhile")

// ErrRefused says that what upstream sent was refused by its Judge.
var ErrRefused = errors.New("what upstream sent is refused")

// maxFlights bounds the flights under way, each of which costs a goroutine and, once it has a body, two open files.
const maxFlights = 4096

// errBusy ends a request for which there is no flight to be had.
var errBusy = fmt.Errorf("%w: %d files are being fetched already", upstream.ErrUnavailable, maxFlights)

// HoldBack is how many bytes at the end of a file no follower gets before its digest was found right: less than a
// client could take for the whole, little enough to be there at once. A shorter file is held back whole.
const HoldBack = 32 << 10

// Job says what a flight is to do.
type Job struct {
	Path    string           // mirror path, below the root
	Order   upstream.Order   // whom to ask
	Request upstream.Request // what to ask, with the validators of the stored file if there is one
	Keep    bool             // commit it; else it is gone when its last follower is
	// Stage, if not nil, gets the file in place of the tree: it is to appear at Path together with others. Nobody who wants
	// what is at Path, or wants it in another bundle, joins such a flight.
	Stage *store.Bundle
	// Time, if not nil, says what the file's modification time is where upstream does not; zero: now.
	Time func() time.Time
	// Gate, if not nil, says in place of Expect what the bytes must be when only the name is missing, or why they must not
	// have it. That stays so until leave is called, when the file has its name.
	Gate func() (want digest.Expectation, leave func(), err error)

	// Expect says what the bytes must be. It is asked by Join, and it or Gate again when the bytes are on the
	// disk and only the name is missing: if it has changed by then, it is the last word that counts.
	Expect func() digest.Expectation
	// Judge, if not nil, reads the file when all else is right, and may still refuse it; until it returns, followers
	// get nothing of the file if its digest is unknown, and not the end of it if it is known.
	Judge func(io.Reader) error
	// Current, if not nil, is asked before upstream is: true ends the flight with ErrCurrent.
	Current func() bool
	// Arrived, if not nil, is called when upstream's answer has been carried out: the file is committed, or
	// upstream said that the stored one is current.
	Arrived func(Head)
	// Failed, if not nil, is called when the flight failed.
	Failed func(error)
}

// Head is what is known of a file before its body.
type Head struct {
	NotModified bool // the stored file is current: there is no body
	Size        int64
	ModTime     time.Time  // which the file has once it is stored
	Keep        bool       // it will be stored, if all goes well
	Framed      bool       // its end will be seen to be one; else it is wherever the connection ends
	Sum         digest.Sum // which it must have, and has once it arrived; zero if nothing says so

	Origin       string    // scheme://host that sends it
	ETag         string    // as that origin sent it, for that origin only
	LastModified time.Time // as sent; zero if it was not

	Young      bool               // its validators may stand for another file a moment later
	Configured *upstream.Origin   // who led there
	Final      *upstream.Location // where that was
}

// Result is how a flight ended, for whoever keeps the log.
type Result struct {
	Path   string
	Origin string // who sent the last of it; "" if nobody answered
	Status int    // upstream's first
	Bytes  int64  // received
	Parts  int    // requests that it took to get the body
	Kept   bool   // committed
	Sum    digest.Sum
	Time   time.Duration
	Err    error // nil, or why it failed
}

// Group holds the flights under way, at most one for each path, and for each path of a bundle, that new followers join.
type Group struct {
	ctx    context.Context // of the daemon: flights end with it
	store  *store.Store
	report func(Result)
	doubts doubts
	// assumed is assumedRate. Tests, whose files are small, set it.
	assumed int64

	running int           // goroutines, under mu
	idle    chan struct{} // closed when the last of them has ended; nil while there is none; under mu
	mu      sync.Mutex    // map operations only
	flights map[key]*flight
}

// New returns a Group whose flights run until ctx ends. report is called at the end of each.
func New(ctx context.Context, s *store.Store, report func(Result)) *Group {
	return &Group{ctx: ctx, store: s, report: report, flights: make(map[key]*flight), assumed: assumedRate}
}

// Wait returns when no flight is under way.
func (g *Group) Wait() {
	for {
		g.mu.Lock()
		idle := g.idle
		g.mu.Unlock()
		if idle == nil {
			return
		}
		<-idle
	}
}

// begin runs f in a goroutine that Wait waits for. The caller holds g.mu.
func (g *Group) begin(f func()) {
	if g.running++; g.idle == nil {
		g.idle = make(chan struct{})
	}
	go func() {
		f()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.running--; g.running == 0 {
			close(g.idle)
			g.idle = nil
		}
	}()
}

// flight is one shared download in progress.
type flight struct {
	begun   time.Time
	job     Job
	group   *Group
	ctx     context.Context // the group's; cancelled too when nobody wants what is not kept
	cancel  context.CancelFunc
	ended   chan struct{} // closed once result is set
	result  error         // of the whole flight, commit included
	want    digest.Expectation
	started chan struct{} // closed once what follows is set; it is constant from then on
	head    Head
	err     error
	from    *upstream.Origin // the configured origin that answered first
	pending *store.Pending   // nil: there is no body
	spool   *spool.Spool
	filling time.Time // when the body began

	refs   int                 // followers, asides and the flight itself, under group.mu; pending is closed when it is 0
	asides map[[2]int64]*aside // by offset and end, under group.mu
}

// key is what no two flights have in common.
type key struct {
	path  string
	stage *store.Bundle
}

func (j *Job) key() key { return key{j.Path, j.Stage} }

// Join follows the flight of job's path, beginning it if there is none, or if that was not begun for the bytes that job is
// known to need by now; joined says that there was one. Only the first one's job is carried out. The caller closes the
// Follower.
func (g *Group) Join(job Job) (fo *Follower, joined bool) {
	want := job.Expect()
	g.mu.Lock()
	defer g.mu.Unlock()
	f, joined := g.flights[job.key()]
	if joined && !want.Sum().IsZero() && f.want.Sum() != want.Sum() {
		joined = false // it goes on for those who follow it
	}
	if !joined {
		f = &flight{begun: time.Now(), job: job, want: want, group: g, started: make(chan struct{}), ended: make(chan struct{}), refs: 1}
		f.ctx, f.cancel = context.WithCancel(g.ctx)
		if len(g.flights) >= maxFlights {
			f.cancel()
			f.start(errBusy)
			f.end(errBusy)
		} else {
			g.flights[job.key()] = f
			g.begin(f.run)
		}
	}
	f.refs++
	return &Follower{f: f}, joined
}

// Underway reports whether there is a flight of path.
func (g *Group) Underway(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flights[key{path: path}] != nil
}

// Ended waits until the flight of path has ended, if there is one.
func (g *Group) Ended(ctx context.Context, path string) error {
	g.mu.Lock()
	f := g.flights[key{path: path}]
	g.mu.Unlock()
	if f == nil {
		return nil
	}
	select {
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave takes back one reference to f.
func (g *Group) leave(f *flight) {
	g.mu.Lock()
	f.refs--
	last := f.refs == 0
	if f.refs == 1 && !f.job.Keep && g.flights[f.job.key()] == f {
		// Nobody is left to get what nobody keeps.
		delete(g.flights, f.job.key())
		f.cancel()
	}
	g.mu.Unlock()
	if last && f.pending != nil {
		f.closeAsides()
		f.pending.Close()
	}
}

func (f *flight) run() {
	res := Result{Path: f.job.Path}
	res.Err = f.fly(&res)
	if res.Err != nil && f.job.Failed != nil {
		f.job.Failed(res.Err)
	}
	f.start(res.Err) // at the latest
	if f.pending != nil {
		f.pending.End()
	}
	f.group.mu.Lock()
	if f.group.flights[f.job.key()] == f {
		delete(f.group.flights, f.job.key())
	}
	f.group.mu.Unlock()
	f.end(res.Err)
	f.cancel()
	f.group.leave(f)
	res.Time = time.Since(f.begun)
	f.group.report(res)
}

// start tells those who wait for the head what there is: the first call does. err ends the flight.
func (f *flight) start(err error) {
	if !f.hasStarted() {
		f.err = err
		close(f.started)
	}
}

// end tells those who wait for all of it how the flight ended.
func (f *flight) end(err error) {
	f.result = err
	close(f.ended)
}

func (f *flight) hasStarted() bool {
	select {
	case <-f.started:
		return true
	default:
		return false
	}
}

// fly carries the job out. It fills in res as it goes.
func (f *flight) fly(res *Result) error {
	if f.job.Current != nil && f.job.Current() {
		return ErrCurrent
	}
	if f.job.Request.ETag == "" && f.job.Request.LastModified.IsZero() { // else there may be no body
		if err := f.group.store.Room(f.job.Path); err != nil {
			return err
		}
	}
	err := f.take(res)
	for wrong := (*wrongError)(nil); errors.As(err, &wrong); err = f.take(res) {
		// What one origin sent, or several together, is not what it has to be: another one is asked, unless
		// followers have some of it. Then they are broken off, not fed a second beginning.
		f.group.doubts.note(f.job.Path, f.want.Sum(), wrong)
		if f.spool == nil {
			continue // it announced another length, and did not begin
		}
		if !f.spool.Restart() {
			f.spool.Finish(wrong.err)
			f.pending.Discard()
			return wrong.err
		}
		if err := f.pending.Cut(0); err != nil {
			return errors.Join(wrong.err, err)
		}
	}
	if f.spool != nil {
		f.spool.Finish(err)
	}
	if err != nil && f.pending != nil && f.pending.Size() == 0 {
		f.pending.Discard()
	}
	return err
}

// commit makes the file appear, or stages it, if it is still what is expected.
func (f *flight) commit(sum digest.Sum, res *Result) error {
	want := f.want
	if want.Sum().IsZero() && want.Size() < 0 {
		want = digest.Unverified(f.head.Size, want.String())
	}
	if f.job.Stage != nil {
		if err := f.pending.Stage(f.job.Stage, want, sum, f.head.ModTime); err != nil {
			return err
		}
		res.Kept, res.Sum = true, sum
		return nil
	}
	gate := func() (func(), error) {
		for {
			now, leave, err := f.gate()
			if err != nil {
				return nil, err
			}
			a := now.Sum().Algorithm()
			if now == f.want || a == digest.None {
				return leave, nil
			}
			if a == sum.Algorithm() {
				err := now.Check(f.job.Path, f.pending.Size(), sum)
				if err == nil {
					return leave, nil
				}
				leave()
				return nil, err
			}
			leave() // nobody waits at the gate while we hash
			if sum, err = f.sumOf(a); err != nil {
				return nil, err
			}
		}
	}
	if err := f.pending.Commit(want, sum, f.head.ModTime, gate); err != nil {
		return err
	}
	res.Kept, res.Sum = true, sum
	return nil
}

// gate is the job's, or stands open.
func (f *flight) gate() (want digest.Expectation, leave func(), err error) {
	if f.job.Gate != nil {
		return f.job.Gate()
	}
	return f.job.Expect(), func() {}, nil
}

// sumOf is the digest of what stands in the pending file.
func (f *flight) sumOf(a digest.Algorithm) (digest.Sum, error) {
	file, err := f.pending.Open()
	if err != nil {
		return digest.Sum{}, err
	}
	defer file.Close()
	h := a.New()
	if _, err := io.Copy(h, file); err != nil {
		return digest.Sum{}, err
	}
	return digest.SumOf(a, h), nil
}

func (f *flight) arrived(sum digest.Sum) {
	if f.job.Arrived != nil {
		h := f.head
		h.Sum = sum
		f.job.Arrived(h)
	}
}
