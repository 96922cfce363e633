// Package mirror is the policy: it alone decides whether a file in the tree is valid, and so what a request gets:
// what is stored, what is arriving, what is stale, or nothing.
//
// Of each path it believes one of these:
//
//	immutable   a package, metadata named by its checksum, anything under a `refresh: never` rule: a hit, always
//	fresh       checked upstream less than its rule's refresh ago: a hit
//	due         older than that: upstream is asked once, whoever waits; after patience the stale file is the answer
//	outdated    the generation in force means other bytes under that name: as if it were missing, until it is deleted
//	missing     upstream is asked; absence is remembered for a minute
//
// It is the only one who changes what is valid: Publish puts a generation in force, Expire and Settle delete what upstream
// changed or dropped, Evict what there is no room for. Whoever has reason to calls them.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// patience is how long a request waits for upstream when there is a stored file to answer with.
const patience = 5 * time.Second

// awaited is how long a file of upstream's may be, in bytes, to be awaited before it takes the place of a stored one.
const awaited = 1 << 20

// What Cache-Status says of a file that is due and could not be checked.
const (
	staleFile    = "stale"
	goneUpstream = "gone-upstream"
)

// maxTurns bounds how often a request starts over because the tree changed under it.
const maxTurns = 3

// ErrDenied says that the site's content rules refuse the path.
var ErrDenied = errors.New("refused by the content rules of this mirror")

// Watcher looks upstream whether the repositories' pointers have changed, and publishes what has. Its methods do not wait.
type Watcher interface {
	// Look begins to look for the repository at root, unless somebody does already or has just done so. done is closed when
	// what was found has been carried out.
	Look(root string) (begun time.Time, done <-chan struct{})
	// Met says that the repository at root is here for the first time, and who had its repomd.xml.
	Met(root string, from fetch.Head)
	// Meet looks for the repository at root, of which nothing is here, and waits until its repomd.xml has been judged and is
	// here. The error is fs.ErrNotExist where upstream has none.
	Meet(ctx context.Context, root string) error
}

// Mirror answers for paths. It is safe for concurrent use.
type Mirror struct {
	store   *store.Store
	index   *index.Index
	flights *fetch.Group
	journal *journal.Journal
	watcher Watcher // nil until Watch: then pointers are served as they stand

	report func(error)

	// gate keeps what is expected as it is. Commits hold it for reading from the last look at what is expected until the
	// file has its name; it is held for writing while a generation is put in force, and while files are judged and deleted.
	// It is never held over the network, nor while a body is read.
	gate     sync.RWMutex
	outdated outdated

	unfinished unfinished

	checks     checks
	absence    absence
	learning   keyed // by repository: one primary at a time is read
	relearning keyed // by repository: one at a time is learned again from the tree
	learned    onces // what was looked for in the tree, because the index does not have it
}

// New returns the Mirror of what is stored in s and believed in x, which fetches through g, and says in j what it deletes.
// What goes wrong behind the clients' backs is reported. Call Recover before anything else.
func New(s *store.Store, x *index.Index, g *fetch.Group, j *journal.Journal, report func(error)) *Mirror {
	return &Mirror{store: s, index: x, flights: g, journal: j, report: report}
}

// Watch makes w the one who looks after pointers. It must be called before the first request.
func (m *Mirror) Watch(w Watcher) { m.watcher = w }

// Open answers a request for the file that t names. It waits for the first byte at most, and where something is
// stored for patience at most. Errors: ErrDenied, store.ErrIsDir and *upstream.DirectoryError (a directory),
// fs.ErrNotExist (upstream says so), upstream.ErrUnavailable (nobody could answer). The caller closes the Answer.
func (m *Mirror) Open(ctx context.Context, t site.Target) (*Answer, error) {
	return m.answer(ctx, t, m.miss)
}

// Stat answers as Open does, without a body. A package or image that is not stored is not fetched for it: upstream is
// asked for its head only.
func (m *Mirror) Stat(ctx context.Context, t site.Target) (*Answer, error) {
	if t.Class == site.Pointer {
		return m.answer(ctx, t, m.miss) // small, and asked for next
	}
	return m.answer(ctx, t, m.head)
}

func (m *Mirror) answer(ctx context.Context, t site.Target, miss missFunc) (*Answer, error) {
	if t.Action == site.Deny {
		return nil, fmt.Errorf("%s: %w", t.Path, ErrDenied)
	}
	for range maxTurns {
		a, err := m.open(ctx, t, miss)
		if !errors.Is(err, fetch.ErrCurrent) {
			return a, err
		}
	}
	return nil, fmt.Errorf("%s changes faster than it can be opened: %w", t.Path, upstream.ErrUnavailable)
}

// missFunc answers for a path at which nothing is stored.
type missFunc func(context.Context, site.Target) (*Answer, error)

// open is one turn of Open. fetch.ErrCurrent says that the tree changed meanwhile: start over.
func (m *Mirror) open(ctx context.Context, t site.Target, miss missFunc) (*Answer, error) {
	file, err := m.store.Get(t.Path)
	if err == nil && m.outdated.has(t.Path) {
		file.Close()
		err = fs.ErrNotExist
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := m.companion(ctx, t); err != nil {
			return nil, err
		}
		return miss(ctx, t)
	case err != nil:
		return nil, err
	}
	m.index.Use(t.Path) // before anybody looks whether it is in use
	c, due, valid := m.judgeStored(t, file)
	if valid {
		a := stored(t, file)
		a.hasTTL, a.TTL = !due.IsZero(), time.Until(due)
		return a, nil
	}
	revalidate := m.revalidate
	if _, ok := m.repomd(t); ok {
		revalidate = m.look
	}
	a, err := revalidate(ctx, t, file, c)
	if a == nil || a.file != file {
		file.Close()
	}
	return a, err
}

// judgeStored reports whether the stored file may be served without asking anybody, and until when; due is zero where
// that does not depend on time. c is when it was last checked, where that matters.
//
// A file of a fixed name that repomd.xml names is valid while it was found to be what the repomd.xml here says, and due
// as soon as that says otherwise.
func (m *Mirror) judgeStored(t site.Target, file *store.File) (c check, due time.Time, valid bool) {
	if immutable(t) {
		return c, due, true
	}
	if root, name := repository(t.Path); t.Class == site.Pointer && (name == "repomd.xml.asc" || name == "repomd.xml.key") {
		if _, ok := m.index.Repo(root); ok { // it changes with its repomd.xml
			return c, due, true
		}
	}
	c = m.lastCheck(t.Path, file)
	if t.Class == site.Metadata {
		if n, ok := m.index.Record(t.Path); ok && !n.Sum.IsZero() {
			return c, due, n.Sum == c.belief.Sum
		}
		if l, _, ok := m.index.Left(t.Path); ok && l.Sum == c.belief.Sum && !l.Sum.IsZero() { // in its grace
			return c, due, true
		}
	}
	due = c.due(t.Rule.Refresh)
	return c, due, time.Now().Before(due)
}

// revalidate asks upstream whether file is current. With an error it leaves file to the caller.
func (m *Mirror) revalidate(ctx context.Context, t site.Target, file *store.File, c check) (*Answer, error) {
	stale := func(why string) *Answer {
		a := stored(t, file)
		a.hasTTL, a.TTL, a.Detail = !c.belief.Checked.IsZero(), time.Until(c.due(t.Rule.Refresh)), why
		return a
	}
	if time.Now().Before(c.retry) {
		return stale(c.why), nil
	}
	job := m.job(t)
	job.Arrived = func(h fetch.Head) {
		// A 304 is about the file whose validators were sent, and not about one that was put in its place.
		if now, err := m.store.Get(t.Path); err == nil && h.NotModified {
			defer now.Close()
			if now.Size != file.Size || !now.ModTime.Equal(file.ModTime) {
				return
			}
		}
		m.arrived(t.Path, h)
	}
	// Where it is known what the file must be, and not that it is so, a 304 would tell nothing.
	if job.Expect().Sum().IsZero() {
		job.Request.LastModified = c.belief.LastModified
		if c.belief.ETag != "" {
			job.Request.ETag, job.Request.ETagOrigin = c.belief.ETag, c.belief.Origin
		}
	}
	flight, joined := m.flights.Join(job)
	wait, cancel := context.WithDeadline(ctx, flight.Begun().Add(patience))
	defer cancel()
	head, err := flight.Head(wait)
	if err == nil && !head.NotModified {
		// A small file is awaited, so that one that breaks off does not take the place of what is here.
		if head.Size > 0 && head.Size <= awaited {
			err = flight.Ready(wait, head.Size-1, 1)
		}
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			a := arriving(t, flight, head, joined)
			a.Fwd = "stale"
			return a, nil
		}
	}
	flight.Close()
	if errors.Is(err, store.ErrNoSpace) {
		// What is stored may be stale, but new bytes can be had: pass them through.
		var a *Answer
		if a, err = m.direct(ctx, t, "stale"); err == nil {
			return a, nil
		}
	}
	switch {
	case err == nil:
		a := stored(t, file)
		a.Fwd, a.FwdStatus, a.Collapsed = "stale", 304, joined
		return a, nil
	case ctx.Err() != nil:
		return nil, err
	case errors.Is(err, fetch.ErrCurrent):
		return nil, err
	case errors.Is(err, fs.ErrNotExist):
		// Upstream dropped it. What is here may be the last copy: it is served, and marked.
		m.checks.postpone(t.Path, c, t.Rule.Refresh, goneUpstream)
		return stale(goneUpstream), nil
	case errors.Is(err, context.DeadlineExceeded):
		return stale(staleFile), nil
	default:
		m.checks.postpone(t.Path, c, retryFailed, staleFile)
		return stale(staleFile), nil
	}
}

// miss fetches what is not stored.
func (m *Mirror) miss(ctx context.Context, t site.Target) (*Answer, error) {
	if !m.flights.Underway(t.Path) && time.Since(m.saidAbsent(t)) < absenceFor {
		return nil, &AbsentError{Path: t.Path, Remembered: true}
	}
	if err := m.meet(ctx, t); err != nil {
		return nil, m.absent(ctx, t, err)
	}
	job := m.job(t)
	if len(job.Order.Upstreams) == 0 && len(job.Order.Fallbacks) == 0 {
		return nil, fmt.Errorf("%s: %w: no upstream of the profile %s is for it", t.Path, site.ErrNoRoute, t.Profile.Name)
	}
	want := job.Expect()
	flight, joined := m.flights.Join(job)
	head, err := flight.Head(ctx)
	if err == nil && !head.NotModified {
		m.index.Use(t.Path)
		a := arriving(t, flight, head, joined)
		a.Fwd = whyMissed(t)
		return a, nil
	}
	flight.Close()
	switch {
	case err == nil:
		return nil, fetch.ErrCurrent // it was stored when the flight began
	case errors.Is(err, store.ErrNoSpace):
		var a *Answer
		if a, err = m.direct(ctx, t, whyMissed(t)); err == nil {
			return a, nil
		}
	}
	if m.suspicious(t, want, err) && m.looked(ctx, t) && m.expect(t) != want {
		return nil, fetch.ErrCurrent // upstream had moved on, and so have we
	}
	return nil, m.absent(ctx, t, err)
}

// head asks upstream for the head of what is not stored, or follows the flight that brings it.
func (m *Mirror) head(ctx context.Context, t site.Target) (*Answer, error) {
	job := m.job(t)
	if m.flights.Underway(t.Path) || time.Since(m.saidAbsent(t)) < absenceFor || len(job.Order.Upstreams) == 0 {
		return m.miss(ctx, t)
	}
	job.Request.Method = "HEAD"
	resp, err := upstream.Do(ctx, job.Order, job.Request)
	if err != nil {
		return nil, m.absent(ctx, t, err)
	}
	return &Answer{Target: t, Size: resp.Size, ModTime: resp.LastModified, Framed: resp.Framed, Fwd: whyMissed(t)}, nil
}

// absent makes an AbsentError of err, which ended the request for t, if upstream said now that t does not exist, or
// could not be asked but said so before: optional files that were absent a while ago are so while the line is down.
func (m *Mirror) absent(ctx context.Context, t site.Target, err error) error {
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, fs.ErrNotExist):
		m.absence.learn(t.Path)
		return &AbsentError{Path: t.Path, Err: err}
	case errors.Is(err, upstream.ErrUnavailable) && !m.saidAbsent(t).IsZero():
		return &AbsentError{Path: t.Path, Remembered: true, Err: err}
	}
	return err
}

// whyMissed is the reason for which a request that found nothing stored went upstream (RFC 9211, fwd).
func whyMissed(t site.Target) string {
	if t.Action == site.Pass {
		return "bypass"
	}
	return "uri-miss"
}

// direct passes the file through without storing it, because there is no room.
func (m *Mirror) direct(ctx context.Context, t site.Target, fwd string) (*Answer, error) {
	d, err := m.flights.Direct(ctx, m.job(t))
	if err != nil {
		return nil, err
	}
	return &Answer{Target: t, Size: d.Head.Size, ModTime: d.Head.ModTime, Framed: d.Head.Framed, Fwd: fwd, Detail: "no-room", body: d}, nil
}

// job says how t is fetched.
func (m *Mirror) job(t site.Target) fetch.Job {
	return fetch.Job{
		Path:    t.Path,
		Order:   t.Profile.Origins(t.Rel),
		Request: upstream.Request{Method: "GET", Path: t.Rel, HTML: html(t.Rel)},
		Keep:    t.Action == site.Store,
		Expect:  func() digest.Expectation { return m.expect(t) },
		Judge:   m.judge(t),
		Gate: func() (digest.Expectation, func(), error) {
			m.relearnFor(t) // which takes the gate itself
			m.gate.RLock()
			want, err := m.expectNamed(t)
			if err != nil {
				m.gate.RUnlock()
			}
			return want, m.gate.RUnlock, err
		},
		Time: func() time.Time {
			if n, ok := m.named(t.Path); ok && n.Time > 0 {
				return time.Unix(n.Time, 0)
			}
			return time.Time{}
		},
		Failed: func(err error) {
			if m.suspicious(t, m.expect(t), err) {
				m.suspect(t)
			}
		},
		Current: func() bool { return m.current(t) },
		Arrived: func(h fetch.Head) {
			m.arrived(t.Path, h)
			m.met(t, h)
		},
	}
}

// current reports whether t is stored and need not be asked for.
func (m *Mirror) current(t site.Target) bool {
	file, err := m.store.Get(t.Path)
	if err != nil {
		return false
	}
	defer file.Close()
	_, _, valid := m.judgeStored(t, file)
	return valid && !m.outdated.has(t.Path)
}

// arrived notes that upstream has just vouched for what stands at name.
func (m *Mirror) arrived(name string, h fetch.Head) {
	file, err := m.store.Get(name)
	if err != nil {
		return // removed under us: the next request starts over
	}
	defer file.Close()
	b := index.Belief{
		Size: file.Size, ModTime: file.ModTime, Origin: h.Origin, ETag: h.ETag, LastModified: h.LastModified,
		Checked: time.Now(), Sum: h.Sum,
	}
	if h.NotModified {
		// A 304 need not repeat the validators, and those of another host are not comparable.
		old := m.lastCheck(name, file).belief
		b.Sum = old.Sum
		if b.ETag == "" {
			b.ETag, b.Origin = old.ETag, old.Origin
		}
		if b.LastModified.IsZero() {
			b.LastModified = old.LastModified
		}
	}
	if h.Young { // asked without validators the next time
		b.ETag, b.LastModified = "", time.Time{}
	}
	m.absence.forget(name)
	m.checks.note(name, check{belief: b})
	m.index.Put(name, b)
	if !h.NotModified {
		m.outdated.remove(name)
	}
}
