package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// repomd returns the root of the repository whose repomd.xml t is.
func (m *Mirror) repomd(t site.Target) (root string, ok bool) {
	root, name := repository(t.Path)
	return root, t.Class == site.Pointer && name == "repomd.xml"
}

// PointerOf returns the target of the repomd.xml of the repository at root; an error says that no profile serves it.
func PointerOf(table *site.Table, root string) (site.Target, error) {
	return table.Resolve("", "/"+pointerOf(root))
}

// look answers for a repomd.xml that is due: somebody looks whether it has changed, and whatever that comes to, what stands
// in the tree then is the answer. A client waits for patience at most, counted from when the looking began. The caller
// closes file, unless it is the answer's.
func (m *Mirror) look(ctx context.Context, t site.Target, file *store.File, c check) (*Answer, error) {
	answer := func(file *store.File, c check, why string) *Answer {
		a := stored(t, file)
		a.hasTTL, a.TTL, a.Detail = !c.belief.Checked.IsZero(), time.Until(c.due(t.Rule.Refresh)), why
		return a
	}
	if time.Now().Before(c.retry) {
		return answer(file, c, c.why), nil
	}
	if m.watcher == nil {
		return answer(file, c, staleFile), nil
	}
	root, _ := repository(t.Path)
	begun, done := m.watcher.Look(root)
	switch inTime, err := await(ctx, done, begun.Add(patience)); {
	case err != nil:
		return nil, err
	case !inTime:
		return answer(file, c, staleFile), nil
	}
	now, err := m.store.Get(t.Path)
	if err != nil {
		return nil, fetch.ErrCurrent
	}
	same := now.Size == file.Size && now.ModTime.Equal(file.ModTime)
	c = m.lastCheck(t.Path, now)
	if !time.Now().Before(c.due(t.Rule.Refresh)) {
		why := c.why
		if why == "" {
			why = staleFile
		}
		return answer(now, c, why), nil
	}
	a := stored(t, now)
	a.Fwd = "stale"
	if same {
		a.FwdStatus = 304
	}
	return a, nil
}

// await waits for done until late, and reports whether it came in time. The error is ctx's cause.
func await(ctx context.Context, done <-chan struct{}, late time.Time) (inTime bool, err error) {
	timer := time.NewTimer(time.Until(late))
	defer timer.Stop()
	select {
	case <-done:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// companion answers for a repomd.xml.asc or .key that is not stored, whose repomd.xml is: it comes from the same origin and
// changes with it, so it is there as soon as that was looked for, or does not exist. nil leaves t to miss.
func (m *Mirror) companion(ctx context.Context, t site.Target) error {
	root, name := repository(t.Path)
	if t.Class != site.Pointer || name != "repomd.xml.asc" && name != "repomd.xml.key" {
		return nil
	}
	absent := &AbsentError{Path: t.Path, Remembered: true}
	if err := m.flights.Ended(ctx, pointerOf(root)); err != nil { // whose end begins the look for its companions
		return err
	}
	repo, ok := m.index.Repo(root)
	switch {
	case !ok || m.watcher == nil:
		return nil
	case repo.Pointer.Companions:
		m.index.Use(t.Path) // it may come later than what it signs
		return absent
	}
	begun, done := m.watcher.Look(root)
	if _, err := await(ctx, done, begun.Add(patience)); err != nil {
		return err
	}
	if _, err := m.store.Stat(t.Path); err == nil {
		return fetch.ErrCurrent
	}
	if repo, ok := m.index.Repo(root); ok && repo.Pointer.Companions {
		return absent
	}
	return fmt.Errorf("%s: %w: its repomd.xml is here, and it could not be fetched from where that came from", t.Path, upstream.ErrUnavailable)
}

// meet brings a repomd.xml that must not go out as it comes: its signature is to be checked first, or a generation is in
// force, which another one may replace only as it always does. fetch.ErrCurrent says that it is here now; nil leaves t to
// miss.
func (m *Mirror) meet(ctx context.Context, t site.Target) error {
	root, ok := m.repomd(t)
	if !ok || m.watcher == nil || t.Action != site.Store {
		return nil
	}
	if _, known := m.index.Repo(root); !known && t.Profile.Keys == nil || m.flights.Underway(t.Path) {
		return nil
	}
	if _, err := m.store.Stat(t.Path); err == nil && !m.outdated.has(t.Path) {
		return fetch.ErrCurrent // it has just come
	}
	m.index.Use(t.Path)
	if err := m.watcher.Meet(ctx, root); err != nil {
		return err
	}
	if _, err := m.store.Stat(t.Path); err != nil {
		return fmt.Errorf("%s: %w: it could not be stored", t.Path, upstream.ErrUnavailable)
	}
	return fetch.ErrCurrent
}

// met takes notice of a repomd.xml that a client's request has brought: the first of its repository, or the first after
// somebody removed it.
func (m *Mirror) met(t site.Target, h fetch.Head) {
	root, ok := m.repomd(t)
	if !ok || h.NotModified || !h.Keep {
		return
	}
	overtaken := false // by a newer generation
	_, err := m.index.Update(root, func(r *index.Repo) {
		if overtaken = r.Pointer.Sum != h.Sum; !overtaken {
			r.Pointer.Origin, r.Pointer.LastModified = h.Origin, h.LastModified
		}
	})
	if err != nil {
		m.report(err)
	}
	if m.watcher != nil && !overtaken {
		m.watcher.Met(root, h)
	}
}

// suspicious reports whether err, with which a flight of t ended that expected want, says that upstream has moved on: it
// has other bytes than metadata here say, or does not have what they name.
func (m *Mirror) suspicious(t site.Target, want digest.Expectation, err error) bool {
	if want.Sum().IsZero() || t.Rule.Never {
		return false
	}
	var mismatch *digest.MismatchError
	return errors.As(err, &mismatch) || errors.Is(err, fs.ErrNotExist)
}

// suspect makes somebody look at the repositories that name t. It does not wait.
func (m *Mirror) suspect(t site.Target) (waits []<-chan struct{}) {
	if m.watcher == nil {
		return nil
	}
	for _, root := range m.index.Concerned(t.Path) {
		_, done := m.watcher.Look(root)
		waits = append(waits, done)
	}
	return waits
}

// looked is suspect and waits for what it leads to, for patience at most. It reports whether anybody looked.
func (m *Mirror) looked(ctx context.Context, t site.Target) bool {
	late := time.Now().Add(patience)
	waits := m.suspect(t)
	for _, done := range waits {
		if inTime, err := await(ctx, done, late); err != nil || !inTime {
			return err == nil
		}
	}
	return len(waits) > 0
}

// Unchanged notes that upstream has just said, or shown, that the repomd.xml of t is current. origin and validators are what
// it said them to be.
func (m *Mirror) Unchanged(t site.Target, origin, etag string, lastModified time.Time) {
	m.arrived(t.Path, fetch.Head{NotModified: true, Origin: origin, ETag: etag, LastModified: lastModified})
}

// Postpone notes that looking at t again makes no sense for a while, because upstream could not answer, or says that it is
// gone.
func (m *Mirror) Postpone(t site.Target, gone bool) {
	file, err := m.store.Get(t.Path)
	if err != nil {
		return
	}
	defer file.Close()
	c := m.lastCheck(t.Path, file)
	if gone {
		m.checks.postpone(t.Path, c, t.Rule.Refresh, goneUpstream)
	} else {
		m.checks.postpone(t.Path, c, retryFailed, staleFile)
	}
}

// Checked returns when t was last found current, and the validators to ask upstream with; zero where nothing is stored.
func (m *Mirror) Checked(t site.Target) index.Belief {
	file, err := m.store.Get(t.Path)
	if err != nil {
		return index.Belief{}
	}
	defer file.Close()
	return m.lastCheck(t.Path, file).belief
}
