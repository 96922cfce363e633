// Package trim decides what has to go when room is short: least recently used files first, the metadata of the generations
// in force last, their pointers never.
//
// In the background it keeps the room from becoming short; where a download does not fit all the same, MakeRoom makes room
// for it at once. What is deleted is deleted by mirror, so that it is a line of the journal.
package trim

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/store"
)

const (
	// lookEvery is how often it is seen whether room is short, unasked.
	lookEvery = 5 * time.Second
	// patience is how long MakeRoom takes at most, but for the deletion under way: a client waits.
	patience = 2 * time.Second
	// batch is how many files are deleted at once.
	batch = 64
	// fresh is how long after a walk what was stored since it began does not matter.
	fresh = time.Minute
	// keep is how long what a walk found is kept. Until then it stays right, but for metadata that are not current any more.
	keep = 24 * time.Hour
	// retryFirst and retryLast bound how long it is until the next walk where nothing could be deleted.
	retryFirst = 10 * time.Second
	retryLast  = 10 * time.Minute
	// measureEvery is how often what is stored is counted anew, because others may have changed the tree, and measureAgain
	// how soon where that failed.
	measureEvery = 24 * time.Hour
	measureAgain = 10 * time.Minute
	// reportEvery is how often it is reported that files went.
	reportEvery = time.Minute
)

// Event is something that the log should have.
type Event struct {
	Dir   string    // below which room was short last; "" the tree
	Files int       // that went since the last Event that said so
	Bytes int64     // of them
	Used  time.Time // when the one of them that was used last was; zero: unknown
	Err   error     // what went wrong, or why nothing more can go
}

// Trimmer deletes what there is no room for. It is safe for concurrent use.
type Trimmer struct {
	store  *store.Store
	mirror *mirror.Mirror
	index  *index.Index
	report func(Event)
	most   int // maxNames, and
	linked int // maxLinked; tests set them

	wake    chan struct{} // Run is to look now
	measure chan struct{} // and what is stored to be counted

	mu      sync.Mutex // fields of scopes and what follows only
	running bool
	scopes  map[string]*scope // by directory, "" the tree
	gone    Event             // what went and was not reported yet
	used    int64             // Event.Used of it, Unix seconds
	told    time.Time         // when what went was reported last
}

// scope is a directory below which room is or was short. Its fields are guarded by Trimmer.mu.
type scope struct {
	dir    string
	choice *choice       // nil: a walk is needed
	walked time.Time     // when choice was found
	idle   bool          // nothing went since then
	wanted chan struct{} // closed when the walk has ended that somebody waits for; nil: nobody does
	retry  time.Time     // there is no walk before
	wait   time.Duration // how long it was until then; 0: something went since
	told   bool          // it was reported that nothing goes
}

// New returns a Trimmer of s, which deletes through m what x says was not used for the longest time. While Run does not
// run, MakeRoom makes none. report may be called by many goroutines at once.
func New(s *store.Store, m *mirror.Mirror, x *index.Index, report func(Event)) *Trimmer {
	return &Trimmer{
		store: s, mirror: m, index: x, report: report, most: maxNames, linked: maxLinked,
		wake: make(chan struct{}, 1), measure: make(chan struct{}, 1), scopes: make(map[string]*scope),
	}
}

// Poke has the Trimmer count anew what is stored, and look whether room is short: the limits have changed. It does not
// wait.
func (t *Trimmer) Poke() {
	t.mu.Lock()
	for _, s := range t.scopes {
		s.retry, s.wait, s.told = time.Time{}, 0, false
	}
	t.mu.Unlock()
	poke(t.measure)
	poke(t.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run counts what is stored, then deletes what there is no room for whenever room is short, until ctx ends.
func (t *Trimmer) Run(ctx context.Context) {
	var counting sync.WaitGroup
	defer counting.Wait()
	counting.Go(func() { t.count(ctx) })
	t.setRunning(true)
	defer t.setRunning(false)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		for t.walkWanted(ctx) {
		}
		t.trim(ctx)
		t.tell()
		t.tidy()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-t.wake:
		}
	}
}

// setRunning says whether there is somebody who walks.
func (t *Trimmer) setRunning(running bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = running
	for _, s := range t.scopes {
		s.walkEnded()
	}
}

// walkEnded tells those who wait for a walk. The caller holds Trimmer.mu.
func (s *scope) walkEnded() {
	if s.wanted != nil {
		close(s.wanted)
	}
	s.wanted = nil
}

// count measures what is stored, at first and whenever there is reason to.
func (t *Trimmer) count(ctx context.Context) {
	for {
		next := measureEvery
		if err := t.store.Measure(ctx); err != nil && ctx.Err() == nil {
			next = measureAgain
			t.report(Event{Err: fmt.Errorf("%w: until it is known how much is stored, no limit but that of the disk is kept", err)})
		}
		poke(t.wake)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-t.measure:
			timer.Stop()
		}
	}
}

// trim deletes as much as room is short of now. Whether it still is comes out next time: some file systems need a moment to
// say what is free.
func (t *Trimmer) trim(ctx context.Context) {
	over, dir := t.store.Pressure()
	for over > 0 && ctx.Err() == nil {
		if t.walkWanted(ctx) { // for somebody who waits, or for us
			continue
		}
		c, _, ok := t.choiceOf(dir)
		if !ok {
			t.tellStuck(dir, over)
			return
		}
		if c == nil {
			continue
		}
		bytes, err := t.evict(c, dir, over)
		if err != nil {
			return
		}
		over -= bytes
		t.tell()
	}
}

// choiceOf returns what goes next below dir. If that needs a walk, it asks for one, which ends when walked is closed; ok is
// false if there can be none now, because nothing could be deleted a while ago or nobody walks.
func (t *Trimmer) choiceOf(dir string) (c *choice, walked <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.scopes[dir]
	if s == nil {
		s = &scope{dir: dir}
		t.scopes[dir] = s
	}
	switch {
	case !t.running:
		return nil, nil, false
	case s.choice != nil:
		return s.choice, nil, true
	case time.Now().Before(s.retry):
		return nil, nil, false
	case s.wanted == nil:
		s.wanted = make(chan struct{})
		poke(t.wake)
	}
	return nil, s.wanted, true
}

// evict deletes files of c, below dir, that come to need bytes, but no more than a batch, and returns what they come to; an
// error says that none went. When c is used up, whoever asks for it next gets another one.
func (t *Trimmer) evict(c *choice, dir string, need int64) (bytes int64, err error) {
	t.mu.Lock()
	s := t.scopes[dir]
	recent := time.Since(s.walked) < fresh
	t.mu.Unlock()
	list := c.pick(need, batch, recent, t.look)
	var names []string
	var used, others int64
	for _, f := range list {
		names = append(names, f.names...)
		used = max(used, f.used)
		if f.other > 0 { // its room is below dir, and not free
			others += f.size
		}
	}
	bytes, err = t.mirror.Evict(names...)
	if err == nil {
		bytes += others
	}
	t.mu.Lock()
	if bytes > 0 {
		s.idle, s.wait = false, 0
		t.gone.Dir = dir
		t.gone.Files += len(names)
		t.gone.Bytes += bytes
		t.used = max(t.used, used)
		if err == nil {
			s.told = false
		}
	}
	failed := err != nil && bytes == 0
	if s.choice == c && (failed || len(list) == 0) {
		s.choice = nil
		if s.idle && recent { // another walk would not help
			s.backOff()
		}
	}
	first := err != nil && !s.told
	s.told = s.told || first
	t.mu.Unlock()
	if first {
		t.report(Event{Dir: dir, Err: fmt.Errorf("making room: %w", err)})
	}
	if !failed {
		return bytes, nil
	}
	return 0, err
}

// backOff puts off the next walk. The caller holds Trimmer.mu.
func (s *scope) backOff() {
	s.wait = min(max(2*s.wait, retryFirst), retryLast)
	s.retry = time.Now().Add(s.wait)
}

// walkWanted does a walk that somebody waits for, and reports whether there was one.
func (t *Trimmer) walkWanted(ctx context.Context) bool {
	t.mu.Lock()
	var s *scope
	for _, other := range t.scopes {
		if other.wanted != nil {
			s = other
		}
	}
	t.mu.Unlock()
	if s == nil {
		return false
	}
	c, err := t.walk(ctx, s.dir)
	t.mu.Lock()
	if err == nil {
		s.choice, s.walked, s.idle = c, time.Now(), true
	} else {
		s.backOff()
	}
	s.walkEnded()
	first := err != nil && ctx.Err() == nil && !s.told
	s.told = s.told || first
	t.mu.Unlock()
	if first {
		t.report(Event{Dir: s.dir, Err: fmt.Errorf("looking for what can go: %w", err)})
	}
	return true
}

// tell reports what went, now and then.
func (t *Trimmer) tell() {
	t.mu.Lock()
	e := t.gone
	if e.Files == 0 || time.Since(t.told) < reportEvery {
		t.mu.Unlock()
		return
	}
	if t.used > 0 {
		e.Used = time.Unix(t.used, 0)
	}
	t.gone, t.used, t.told = Event{}, 0, time.Now()
	t.mu.Unlock()
	t.report(e)
}

// tellStuck reports once that nothing can go.
func (t *Trimmer) tellStuck(dir string, over int64) {
	t.mu.Lock()
	s := t.scopes[dir]
	first := !s.told && t.running
	s.told = true
	t.mu.Unlock()
	if first {
		what, do := "the root or its disk", "raise size, lower reserve, or remove other files from the disk"
		if dir != "" {
			what, do = dir, "raise the limits of its profile"
		}
		t.report(Event{Dir: dir, Err: fmt.Errorf("%s is short of %d bytes, and nothing is left there that may go: what does not fit passes through unstored; %s", what, over, do)})
	}
}

// tidy lets go of what was found long ago.
func (t *Trimmer) tidy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.scopes {
		if s.choice != nil && time.Since(s.walked) > keep {
			s.choice = nil
		}
	}
}

// MakeRoom deletes files until n bytes are free for the file that is to stand at name, and reports whether some were. It
// is for store.SetMakeRoom.
func (t *Trimmer) MakeRoom(name string, n int64) bool {
	dir := t.short(name, n)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	made := int64(0)
	for made < n && ctx.Err() == nil {
		c, walked, ok := t.choiceOf(dir)
		if !ok {
			break
		}
		if c != nil {
			bytes, err := t.evict(c, dir, n-made)
			if err != nil {
				break
			}
			made += bytes
			continue
		}
		select {
		case <-walked:
		case <-ctx.Done():
		}
	}
	return made > 0
}

// short returns the directory below which n bytes have to go for the file at name to fit: its profile's where that is
// what is full, "" where it is the site or the disk. The store does not say which; where it can't be told, what helps in
// either case is taken.
func (t *Trimmer) short(name string, n int64) string {
	var dirs []string // with quotas, above name
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		used, limit, measured := t.store.Usage(dir)
		if limit == 0 || !measured {
			continue
		}
		if limit-used < n {
			return dir
		}
		if used >= n {
			dirs = append(dirs, dir)
		}
	}
	over, dir := t.store.Pressure()
	switch {
	case len(dirs) == 0, over > 0 && dir == "":
		return ""
	case slices.Contains(dirs, dir):
		return dir
	}
	return dirs[0]
}
