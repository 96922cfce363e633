// Package fetch brings files from upstream: one flight per path, however many want it.
//
// A flight belongs to the Group, and so to the daemon: whoever asked first may leave, be slow, or be one of many.
// It asks upstream once, writes what arrives into a pending file that its followers read as it grows, and commits it
// when it is whole. While it is under way, everybody who wants the path joins it.
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

// ErrCurrent ends a flight that found, before it asked upstream, that its path has become current meanwhile.
var ErrCurrent = errors.New("current meanwhile")

// bufferSize is how much is read from upstream at a time, in bytes: enough to be cheap, little enough that
// followers get a slow line's bytes as they come.
const bufferSize = 128 << 10

// Job says what a flight is to do.
type Job struct {
	Path    string           // mirror path, below the root
	Order   upstream.Order   // whom to ask
	Request upstream.Request // what to ask, with the validators of the stored file if there is one
	Keep    bool             // commit it; else it is gone when its last follower is
	// Current, if not nil, is asked before upstream is: true ends the flight with ErrCurrent.
	Current func() bool
	// Arrived, if not nil, is called when upstream's answer has been carried out: the file is committed, or
	// upstream said that the stored one is current.
	Arrived func(Head)
}

// Head is what is known of a file before its body.
type Head struct {
	NotModified bool // the stored file is current: there is no body
	Size        int64
	ModTime     time.Time // which the file has once it is stored
	Keep        bool      // it will be stored, if all goes well

	Origin       string    // scheme://host that sends it
	ETag         string    // as that origin sent it, for that origin only
	LastModified time.Time // as sent; zero if it was not
}

// Result is how a flight ended, for whoever keeps the log.
type Result struct {
	Path   string
	Origin string // "" if nobody answered
	Status int    // upstream's
	Bytes  int64  // received
	Kept   bool   // committed
	Time   time.Duration
	Err    error // nil, or why it failed
}

// Group holds the flights under way, at most one for each path.
type Group struct {
	ctx    context.Context // of the daemon: flights end with it
	store  *store.Store
	report func(Result)
	wg     sync.WaitGroup

	mu      sync.Mutex // map operations only
	flights map[string]*flight
}

// New returns a Group whose flights run until ctx ends. report is called at the end of each.
func New(ctx context.Context, s *store.Store, report func(Result)) *Group {
	return &Group{ctx: ctx, store: s, report: report, flights: make(map[string]*flight)}
}

// Wait returns when all flights have ended. No Join may follow.
func (g *Group) Wait() { g.wg.Wait() }

// flight is one shared download in progress.
type flight struct {
	begun   time.Time
	job     Job
	group   *Group
	started chan struct{} // closed once what follows is set; it is constant from then on
	head    Head
	err     error
	from    *upstream.Origin // the configured origin that answered
	pending *store.Pending   // nil: there is no body
	spool   *spool.Spool

	refs int // followers and the flight itself, under group.mu; pending is closed when it is 0
}

// Join follows the flight of job's path, beginning it if there is none; joined says that there was. Only the first
// one's job is carried out. The caller closes the Follower.
func (g *Group) Join(job Job) (fo *Follower, joined bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, joined := g.flights[job.Path]
	if !joined {
		f = &flight{begun: time.Now(), job: job, group: g, started: make(chan struct{}), refs: 1}
		g.flights[job.Path] = f
		g.wg.Go(f.run)
	}
	f.refs++
	return &Follower{f: f}, joined
}

// Underway reports whether there is a flight of path.
func (g *Group) Underway(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flights[path] != nil
}

// leave takes back one reference to f.
func (g *Group) leave(f *flight) {
	g.mu.Lock()
	f.refs--
	last := f.refs == 0
	g.mu.Unlock()
	if last && f.pending != nil {
		f.pending.Close()
	}
}

func (f *flight) run() {
	res := Result{Path: f.job.Path}
	res.Err = f.fly(&res)
	f.group.mu.Lock()
	delete(f.group.flights, f.job.Path)
	f.group.mu.Unlock()
	f.group.leave(f)
	res.Time = time.Since(f.begun)
	f.group.report(res)
}

// fly carries the job out. It fills in res as it goes.
func (f *flight) fly(res *Result) (err error) {
	begin := func(err error) error {
		f.err = err
		close(f.started)
		return err
	}
	if f.job.Current != nil && f.job.Current() {
		return begin(ErrCurrent)
	}
	if err := f.group.store.Room(f.job.Path); err != nil {
		return begin(err)
	}
	resp, err := upstream.Do(f.group.ctx, f.job.Order, f.job.Request)
	if err != nil {
		return begin(err)
	}
	if resp.Body != nil {
		defer resp.Body.Close()
	}
	f.from, f.head = resp.Configured, headOf(resp, f.job.Keep)
	res.Origin, res.Status = resp.Origin, resp.Status
	if f.head.NotModified {
		f.arrived()
		return begin(nil)
	}

	f.pending, err = f.group.store.Create(f.job.Path, resp.Size)
	if err != nil {
		return begin(err)
	}
	f.spool = spool.New(f.pending)
	_ = begin(nil)
	res.Bytes, err = io.CopyBuffer(f.spool, struct{ io.Reader }{resp.Body}, make([]byte, bufferSize))
	if err == nil && resp.Size >= 0 && res.Bytes != resp.Size {
		err = fmt.Errorf("%s sent %d of %d bytes of %s: %w", resp.Origin, res.Bytes, resp.Size, f.job.Path, io.ErrUnexpectedEOF)
	}
	// Followers have the last byte before the disk has: an fsync must not hold them up.
	f.spool.Finish(err)
	if err != nil || !f.head.Keep {
		return err
	}
	want := digest.Unverified(resp.Size, "no metadata of its repository was read")
	if err := f.pending.Commit(want, f.head.ModTime); err != nil {
		return err
	}
	res.Kept = true
	f.arrived()
	return nil
}

func (f *flight) arrived() {
	if f.job.Arrived != nil {
		f.job.Arrived(f.head)
	}
}

// headOf is what resp says of the file. A body that just ends with the connection may be cut without a sign: it is
// never kept.
func headOf(resp *upstream.Response, keep bool) Head {
	h := Head{
		NotModified: resp.Status == 304, Size: resp.Size, ModTime: resp.LastModified, Keep: keep && resp.Framed,
		Origin: resp.Origin, ETag: resp.ETag, LastModified: resp.LastModified,
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Now().Truncate(time.Second)
	}
	return h
}
