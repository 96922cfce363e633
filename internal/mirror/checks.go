package mirror

import (
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

const (
	// retryFailed is how long a stale file is served without asking after upstream could not answer.
	retryFailed = 10 * time.Second
	// absenceFor is how long upstream's 404 is believed without asking again.
	absenceFor = time.Minute
	// maxKnown bounds each of the two maps below, in paths. They are shortcuts: what falls out is asked again.
	maxKnown = 1 << 16
)

// check is when a stored file was last found current.
type check struct {
	belief index.Belief
	retry  time.Time // not before this, for upstream could not answer
	why    string    // what to say of the file until then
}

// due is when upstream is to be asked again. A time of checking that lies in the future is a clock's mistake: due now.
func (c check) due(refresh time.Duration) time.Time {
	if c.belief.Checked.After(time.Now()) {
		return time.Time{}
	}
	return c.belief.Checked.Add(refresh)
}

// checks keeps the last check of paths in memory, so that a hit reads no database.
type checks struct {
	mu sync.Mutex
	m  map[string]check
}

func (k *checks) get(path string) (check, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.m[path]
	return c, ok
}

func (k *checks) note(path string, c check) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m = bounded(k.m)
	k.m[path] = c
}

// learn notes c, unless something was noted meanwhile: then it returns that.
func (k *checks) learn(path string, c check) check {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now, ok := k.m[path]; ok {
		return now
	}
	k.m = bounded(k.m)
	k.m[path] = c
	return c
}

// postpone notes that asking again makes no sense for a while. It keeps a check that was noted meanwhile.
func (k *checks) postpone(path string, c check, d time.Duration, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m = bounded(k.m)
	if now, ok := k.m[path]; ok {
		c = now
	}
	c.retry, c.why = time.Now().Add(d), why
	k.m[path] = c
}

func (k *checks) forget(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.m, path)
}

// lastCheck is what is known of the stored file: from memory, else from the index; a belief about another file that
// stood there before is none. The file's own time stands in for a Last-Modified that is not known.
func (m *Mirror) lastCheck(path string, file *store.File) check {
	c, ok := m.checks.get(path)
	if !ok {
		c.belief, _ = m.index.Get(path)
		c = m.checks.learn(path, c)
	}
	if c.belief.Size != file.Size || !c.belief.ModTime.Equal(file.ModTime) {
		// Not noted: file may be the one that was just replaced.
		c.belief = index.Belief{Size: file.Size, ModTime: file.ModTime, LastModified: file.ModTime}
	}
	return c
}

// saidAbsent is when upstream said that t does not exist; zero if it did not, or said so before a generation came that
// names t.
func (m *Mirror) saidAbsent(t site.Target) time.Time {
	at := m.absence.said(t.Path)
	if at.IsZero() {
		return at
	}
	for _, root := range m.index.Concerned(t.Path) {
		repo, ok := m.index.Repo(root)
		if !ok || !repo.Pointer.Published.After(at) {
			continue
		}
		if _, named := m.named(t.Path); named {
			return time.Time{}
		}
	}
	return at
}

// absence remembers what upstream said does not exist.
type absence struct {
	mu sync.Mutex
	m  map[string]time.Time // when upstream said so
}

// said is when upstream said so; zero if it never did, as far as we remember.
func (a *absence) said(path string) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m[path]
}

func (a *absence) learn(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.m = bounded(a.m)
	a.m[path] = time.Now()
}

func (a *absence) forget(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.m, path)
}

// bounded makes room in m for one more, at the cost of any other.
func bounded[V any](m map[string]V) map[string]V {
	if m == nil {
		m = make(map[string]V)
	}
	for path := range m {
		if len(m) < maxKnown {
			break
		}
		delete(m, path)
	}
	return m
}
