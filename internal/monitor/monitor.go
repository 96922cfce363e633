// Package monitor watches the repositories that clients here use: it looks upstream at their pointers when that is due or
// somebody has reason to, gathers what a changed one names, and has it published whole.
//
// What is valid is not decided here but in mirror; what is asked, of whom and when, is.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	// maxLooks bounds the scheduled looks that are under way. What clients wait for is not held up by it.
	maxLooks = 8
	// jitter is by which part of its refresh a look may come early, so that repositories that came together do not stay so.
	jitter = 0.1
	// gap is how soon after one look ended the next one may begin unasked-for, and retryFirst and retryLast bound the time
	// until the next scheduled one after a failure.
	gap        = 10 * time.Second
	retryFirst = 10 * time.Second
	retryLast  = 10 * time.Minute
	// confirmAfter is how much later than the first a look at the same origin confirms a push under veto (issue: an hour).
	confirmAfter = time.Hour
)

// Event is something that the log should have. What is not known is zero.
type Event struct {
	Root   string
	What   string // one of the constants below
	From   string // generation before
	To     string // and after
	Origin string
	Files  int   // concerned
	Bytes  int64 // fetched
	Time   time.Duration
	Err    error // why, where something went wrong
}

// What an Event says.
const (
	Published = "published"  // a generation is current
	Refused   = "refused"    // what an origin sent did not become current
	Failed    = "failed"     // nobody could be asked, or something that the generation needs could not be had
	Vetoed    = "veto"       // a push would delete too much
	Confirmed = "confirmed"  // and it is meant
	Gone      = "gone"       // upstream has the pointer no more
	Back      = "back again" // it has
	Expired   = "expired"    // files went whose grace had ended
)

// Monitor watches repositories. It is safe for concurrent use.
type Monitor struct {
	ctx     context.Context // of the daemon: looks end with it
	mirror  *mirror.Mirror
	index   *index.Index
	store   *store.Store
	flights *fetch.Group
	report  func(Event)
	table   atomic.Pointer[site.Table]
	wg      sync.WaitGroup // looks
	wake    chan struct{}  // the schedule may have changed

	mu      sync.Mutex // map operations and fields of watches only
	watches map[string]*watch
	looking int // scheduled looks under way
}

// watch is one repository, as the monitor sees it. Its fields are guarded by Monitor.mu, but for those of the look that is
// under way.
type watch struct {
	root string
	look *look // under way; nil: none
	met  *met  // at first contact, for the look that begins next

	begun, ended time.Time // of the last look
	next         time.Time // when the next is due; zero: not scheduled
	placed       bool      // next is right: a sleeping one stays so until a client has it looked at
	expire       time.Time // when the first file's grace ends; zero: none's
	swept        bool      // expire was set at least once
	failures     int       // in a row
	result       Result    // of the last look

	work work // of the look under way, kept for the next one
}

// met is who had the pointer that came to stand in the tree, and which that is.
type met struct {
	resp *upstream.Response
	sum  digest.Sum // zero: not known
}

// look is one look under way.
type look struct {
	begun time.Time
	done  chan struct{} // closed when it has ended
}

// manner is how a look is done.
type manner struct {
	force     bool // an older generation is taken, too, and one that removes much
	insist    bool // origins that are in back-off are asked, too: somebody wants to know it now
	scheduled bool // nobody waits for it
}

// Result is how a look ended.
type Result struct {
	At      time.Time `json:"at"`
	What    string    `json:"what"`             // "unchanged", Published, Refused, Failed, Gone, Vetoed
	Origin  string    `json:"origin,omitempty"` // who answered
	Err     error     `json:"-"`
	Message string    `json:"error,omitempty"` // Err's
	retry   bool      // it is to be tried again sooner than its refresh says
}

const unchanged = "unchanged"

// New returns a Monitor of the repositories that x knows, for what t routes. Looks run until ctx ends. What the log should
// have is reported.
func New(ctx context.Context, m *mirror.Mirror, x *index.Index, s *store.Store, g *fetch.Group, t *site.Table, report func(Event)) *Monitor {
	mon := &Monitor{ctx: ctx, mirror: m, index: x, store: s, flights: g, report: report, wake: make(chan struct{}, 1), watches: make(map[string]*watch)}
	mon.table.Store(t)
	return mon
}

// Swap changes the routing table.
func (m *Monitor) Swap(t *site.Table) {
	m.table.Store(t)
	m.mu.Lock()
	for _, w := range m.watches {
		w.placed = false
	}
	m.mu.Unlock()
	m.poke()
}

// Wait returns when all looks have ended. None may begin any more.
func (m *Monitor) Wait() {
	m.mu.Lock()   // whoever was about to begin one has done so, or sees that the daemon ends
	m.mu.Unlock() //nolint:staticcheck // nothing is to be done under it
	m.wg.Wait()
}

func (m *Monitor) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// watchOf returns the watch of root, making one. The caller holds m.mu.
func (m *Monitor) watchOf(root string) *watch {
	w := m.watches[root]
	if w == nil {
		w = &watch{root: root}
		m.watches[root] = w
	}
	return w
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Look implements mirror.Watcher.
func (m *Monitor) Look(root string) (begun time.Time, done <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.watchOf(root)
	if w.look == nil && time.Since(w.ended) < m.gapOf(w) {
		return w.begun, closed
	}
	l := m.begin(w, manner{})
	return l.begun, l.done
}

// gapOf is how soon w may be looked at again: at least every 10 s while nobody could be asked, as the schedule does while what
// upstream has is not usable. The caller holds m.mu.
func (m *Monitor) gapOf(w *watch) time.Duration {
	t, err := mirror.PointerOf(m.table.Load(), w.root)
	switch {
	case err != nil || t.Rule.Never:
		return gap
	case w.failures > 0 && !errors.Is(w.result.Err, upstream.ErrUnavailable):
		return backoff(w.failures, t.Rule.Refresh)
	case w.failures > 0:
		return gap
	}
	return min(gap, t.Rule.Refresh/2)
}

// backoff is how long to wait after so many failures in a row.
func backoff(failures int, refresh time.Duration) time.Duration {
	return min(retryFirst<<min(failures-1, 10), retryLast, max(refresh, time.Second))
}

// Meet implements mirror.Watcher.
func (m *Monitor) Meet(ctx context.Context, root string) error {
	m.mu.Lock()
	w := m.watchOf(root)
	if w.look == nil && w.result.Err != nil && time.Since(w.ended) < m.gapOf(w) {
		defer m.mu.Unlock()
		return w.result.Err
	}
	l := m.begin(w, manner{})
	m.mu.Unlock()
	select {
	case <-l.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return w.result.Err
}

// Met implements mirror.Watcher.
func (m *Monitor) Met(root string, from fetch.Head) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.watchOf(root)
	w.met = &met{sum: from.Sum, resp: &upstream.Response{
		Status: http.StatusNotModified, Origin: from.Origin, Configured: from.Configured, Final: from.Final, ETag: from.ETag, LastModified: from.LastModified,
	}}
	m.begin(w, manner{})
}

// meetAgain makes another look follow the one at w that is under way, which does what first contact left to do.
func (m *Monitor) meetAgain(w *watch, who *met) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.met = who
}

// begin begins a look at w, unless one is under way. The caller holds m.mu.
func (m *Monitor) begin(w *watch, how manner) *look {
	if w.look != nil {
		return w.look
	}
	l := &look{begun: time.Now(), done: make(chan struct{})}
	if m.ctx.Err() != nil { // the daemon ends
		close(l.done)
		return l
	}
	met := w.met
	w.met = nil
	w.look, w.begun = l, l.begun
	if how.scheduled {
		m.looking++
	}
	m.wg.Go(func() {
		r := m.lookAt(m.ctx, w, met, how)
		m.mu.Lock()
		w.look, w.ended, w.result = nil, time.Now(), r
		if r.Err != nil && r.retry {
			w.failures++
		} else {
			w.failures = 0
		}
		if how.scheduled {
			m.looking--
		}
		w.placed, w.next = true, m.after(w)
		w.expire = time.Now() // whatever changed, see what is left to do

		if _, known := m.index.Repo(w.root); !known {
			delete(m.watches, w.root) // clients choose for what they ask
		} else if w.met != nil && m.ctx.Err() == nil { // it came while we looked
			m.begin(w, manner{})
		}
		m.mu.Unlock()
		close(l.done)
		m.poke()
	})
	return l
}

// Refresh looks at the repository at root now, even if its rule says never, and waits for the result. With force an older
// generation is taken, too, and one that removes most of what is stored.
func (m *Monitor) Refresh(ctx context.Context, root string, force bool) (Result, error) {
	for {
		m.mu.Lock()
		w := m.watchOf(root)
		joined := w.look != nil
		if !joined {
			w.met = nil // upstream is asked anyway
		}
		l := m.begin(w, manner{force: force, insist: true})
		m.mu.Unlock()
		select {
		case <-l.done:
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
		if joined { // it may have begun before the change that is meant
			continue
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return w.result, w.result.Err
	}
}

// Run looks at each repository in use when its rule says so, and expires what has left, until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.wake:
		}
		timer.Reset(m.startDue(ctx))
	}
}

// idleCheck is how long Run sleeps at most.
const idleCheck = time.Minute

// startDue starts what is due, and returns how long to sleep.
func (m *Monitor) startDue(ctx context.Context) time.Duration {
	roots := m.index.Roots()
	m.mu.Lock()
	defer m.mu.Unlock()
	now, sleep := time.Now(), idleCheck
	var due []*watch
	for _, root := range roots {
		w := m.watchOf(root)
		if w.look != nil {
			continue
		}
		if !w.placed {
			w.placed, w.next = true, m.after(w)
		}
		if !w.swept { // what left before we came
			w.swept, w.expire = true, now
		}
		if at := w.next; !at.IsZero() {
			if at.After(now) {
				sleep = min(sleep, at.Sub(now))
			} else {
				due = append(due, w)
			}
		}
		if at := w.expire; !at.IsZero() {
			if at.After(now) {
				sleep = min(sleep, at.Sub(now))
			} else if len(due) == 0 || due[len(due)-1] != w {
				m.startExpiry(ctx, w)
			}
		}
	}
	slices.SortFunc(due, func(a, b *watch) int { return a.next.Compare(b.next) })
	for _, w := range due {
		if m.looking >= maxLooks {
			break // the end of one wakes us
		}
		if !m.awake(w) {
			w.next = time.Time{}
			continue
		}
		m.begin(w, manner{scheduled: true})
	}
	return max(sleep, time.Millisecond)
}

// startExpiry deletes what has left w and whose grace has ended. The caller holds m.mu.
func (m *Monitor) startExpiry(ctx context.Context, w *watch) {
	w.expire = time.Time{}
	m.wg.Go(func() {
		rule := ""
		if t, err := mirror.PointerOf(m.table.Load(), w.root); err == nil {
			rule = RuleName(t)
		}
		begun := time.Now()
		n, next, err := m.mirror.Expire(ctx, w.root, rule)
		if n > 0 {
			m.report(Event{Root: w.root, What: Expired, Files: n, Time: time.Since(begun)})
		}
		if err != nil && ctx.Err() == nil {
			m.report(Event{Root: w.root, What: Failed, Err: err})
			next = time.Now().Add(retryLast)
		}
		m.mu.Lock()
		if w.expire.IsZero() {
			w.expire = next
		}
		m.mu.Unlock()
		m.poke()
	})
}

// RuleName says where the expiry rule of t was written.
func RuleName(t site.Target) string {
	if t.Rule.At.File == "" {
		return t.Rule.Match
	}
	return fmt.Sprintf("%s:%d", t.Rule.At.File, t.Rule.At.Line)
}

// awake reports whether w is to be looked at by the schedule. The caller holds m.mu.
func (m *Monitor) awake(w *watch) bool {
	t, err := mirror.PointerOf(m.table.Load(), w.root)
	if err != nil || t.Rule.Never || t.Action != site.Store {
		return false
	}
	return t.Profile.PollAlways || time.Since(m.index.Used(t.Path)) < t.Rule.Idle
}

// after is when w is to be looked at next; zero: not by the schedule. The caller holds m.mu.
func (m *Monitor) after(w *watch) time.Time {
	t, err := mirror.PointerOf(m.table.Load(), w.root)
	if err != nil || !m.awake(w) {
		return time.Time{}
	}
	if w.failures > 0 {
		return w.ended.Add(early(backoff(w.failures, t.Rule.Refresh)))
	}
	checked := m.mirror.Checked(t).Checked
	if checked.After(time.Now()) { // a clock's mistake
		checked = time.Time{}
	}
	if next := checked.Add(early(t.Rule.Refresh)); next.After(w.ended) || w.ended.IsZero() {
		return next
	}
	return w.ended.Add(early(t.Rule.Refresh))
}

// early is d, or a little less.
func early(d time.Duration) time.Duration {
	return d - time.Duration(jitter*rand.Float64()*float64(d))
}

// Repository is what is known of one repository, for people.
type Repository struct {
	Root       string      `json:"root"`
	Profile    string      `json:"profile"`
	Rule       string      `json:"rule"`
	Refresh    string      `json:"refresh"`    // "never", or how often it is looked at
	Generation string      `json:"generation"` // the beginning of its repomd.xml's sha256
	Timestamp  time.Time   `json:"timestamp,omitzero"`
	Revision   int64       `json:"revision,omitempty"`
	Published  time.Time   `json:"published"` // since when it is in force here
	Origin     string      `json:"origin"`    // of its pointer
	Signed     string      `json:"signed,omitempty"`
	Checked    time.Time   `json:"checked,omitzero"` // when it was last found current
	Used       time.Time   `json:"used,omitzero"`    // when a client last asked for it
	State      string      `json:"state"`            // "watched", "asleep", "never polled", "not routed"
	Next       time.Time   `json:"next,omitzero"`    // when it is looked at next
	Last       Result      `json:"last,omitzero"`
	Stale      bool        `json:"stale,omitempty"` // overdue, because nobody could be asked
	Leaving    int         `json:"leaving,omitempty"`
	Veto       *index.Veto `json:"veto,omitempty"`
	Back       *index.Back `json:"back,omitempty"`
	Refused    int         `json:"refused,omitempty"` // older generations since this one is in force
	Partial    string      `json:"partial,omitempty"`
	Gone       time.Time   `json:"gone,omitzero"`
}

// Repositories says what is known of each repository, by root.
func (m *Monitor) Repositories() []Repository {
	var list []Repository
	for _, root := range m.index.Roots() {
		if r, ok := m.Repository(root); ok {
			list = append(list, r)
		}
	}
	return list
}

// Repository says what is known of the repository at root.
func (m *Monitor) Repository(root string) (Repository, bool) {
	repo, ok := m.index.Repo(root)
	if !ok {
		return Repository{}, false
	}
	r := Repository{
		Root: root, Generation: repo.Pointer.Generation(), Revision: repo.Pointer.Revision, Published: repo.Pointer.Published,
		Origin: repo.Pointer.Origin, Signed: repo.Pointer.Signed, Veto: repo.Veto, Back: repo.Back, Refused: repo.Refused,
		Partial: repo.Partial, Gone: repo.Gone, State: "not routed",
	}
	if repo.Pointer.Timestamp > 0 {
		r.Timestamp = time.Unix(repo.Pointer.Timestamp, 0).UTC()
	}
	r.Leaving, _, _ = m.index.CountLeaving(root) // what can't be read is not counted
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.watchOf(root)
	r.Last, r.Next = w.result, w.next
	if r.Last.Err != nil {
		r.Last.Message = r.Last.Err.Error()
	}
	t, err := mirror.PointerOf(m.table.Load(), root)
	if err != nil {
		return r, true
	}
	r.Profile, r.Rule, r.Refresh = t.Profile.Name, RuleName(t), "never"
	r.Checked, r.Used = m.mirror.Checked(t).Checked, m.index.Used(t.Path)
	switch {
	case t.Rule.Never:
		r.State = "never polled"
	case m.awake(w):
		r.State = "watched"
	default:
		r.State = "asleep"
	}
	if !t.Rule.Never {
		r.Refresh = t.Rule.Refresh.String()
		r.Stale = r.State == "watched" && time.Since(r.Checked) > t.Rule.Refresh && w.failures > 0
	}
	return r, true
}
