package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

// removeBatch is how many files are deleted while the gate is held.
const removeBatch = 64

// outdated are stored files that must not be served: the generation in force means other bytes by their names, and they
// could not be deleted yet. There are few, and mostly none.
type outdated struct {
	mu sync.RWMutex // map operations only
	m  map[string]bool
}

func (o *outdated) has(name string) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.m[name]
}

func (o *outdated) add(names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = make(map[string]bool)
	}
	for _, name := range names {
		o.m[name] = true
	}
}

func (o *outdated) remove(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.m, name)
}

func (o *outdated) all() map[string]bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return maps.Clone(o.m)
}

// doomed is a stored file that is to be deleted.
type doomed struct {
	path string
	// still, if not nil, is asked when nothing can change any more: false spares the file.
	still func() bool
	entry journal.Entry // but for Path, Size and Sum
	use   bool          // its use stays remembered
}

// remove deletes files, each with its line in the journal, and returns how many bytes that freed and how many files went.
func (m *Mirror) remove(list []doomed) (freed int64, n int, err error) {
	for len(list) > 0 && err == nil {
		some := list[:min(len(list), removeBatch)]
		list = list[len(some):]
		var f int64
		var gone []string
		f, gone, err = m.removeSome(some)
		freed += f
		n += len(gone)
		var unused []string
		for _, d := range some {
			if !d.use && slices.Contains(gone, d.path) {
				unused = append(unused, d.path)
			}
		}
		if len(unused) > 0 {
			err = errors.Join(err, m.index.ForgetUse(unused...))
		}
	}
	return freed, n, err
}

// removeSome deletes a few files, and returns which of them went.
func (m *Mirror) removeSome(list []doomed) (freed int64, paths []string, err error) {
	m.gate.Lock()
	defer m.gate.Unlock()
	var entries []journal.Entry
	for _, d := range list {
		info, err := m.store.Stat(d.path)
		if err != nil || d.still != nil && !d.still() {
			continue
		}
		e := d.entry
		e.Path, e.Size = d.path, info.Size
		if b, ok := m.index.Get(d.path); ok && !b.Sum.IsZero() && b.Size == info.Size && b.ModTime.Equal(info.ModTime) {
			e.Sum = b.Sum.String()
		}
		paths, entries = append(paths, d.path), append(entries, e)
	}
	if len(paths) == 0 {
		return 0, nil, nil
	}
	// The line comes first: better one that says too much than a file that is gone and nobody knows why. Where there is no
	// room for it, it comes when the files have made some.
	full := m.journal.Add(entries...)
	if full != nil && !errors.Is(full, syscall.ENOSPC) && !errors.Is(full, syscall.EDQUOT) {
		return 0, nil, full
	}
	freed, err = m.store.Remove(paths...)
	if err != nil {
		return freed, nil, err
	}
	if full != nil {
		if err := m.journal.Add(entries...); err != nil {
			m.report(err)
		}
	}
	m.index.Drop(paths...)
	for _, p := range paths {
		m.checks.forget(p)
		m.outdated.remove(p)
	}
	return freed, paths, nil
}

// markOutdated finds the stored files that the generation in force of the repository at root means other bytes by.
func (m *Mirror) markOutdated(ctx context.Context, root string) error {
	repo, ok := m.index.Repo(root)
	if !ok {
		return nil
	}
	look := func(name string, n index.Named) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.Sum.IsZero() || !m.isStored(name) {
			return nil
		}
		right, err := m.matches(name, append(m.namedElsewhere(root, name), n))
		if err == nil && !right {
			m.outdated.add(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	for p, rec := range repo.Records {
		if err := look(p, rec.Named); err != nil {
			return err
		}
	}
	if !packagesKnown(repo) {
		return nil // what is known is of another generation
	}
	return m.index.EachPackage(root, look)
}

// packagesKnown reports whether the packages that are known are those of the generation in force.
func packagesKnown(r *index.Repo) bool {
	return !r.Packages.IsZero() && r.Packages == r.Records[r.Primary].Sum
}

// Settle compares every stored file that the generation in force of the repository at root names with it, and deletes what
// it means other bytes by: after first contact, and after the index was lost.
func (m *Mirror) Settle(ctx context.Context, root string) error {
	if err := m.markOutdated(ctx, root); err != nil {
		return fmt.Errorf("comparing what is stored of %s with its metadata: %w", root, err)
	}
	return m.settle(ctx, root, nil)
}

// settle deletes what is outdated of the repository at root, unless a veto keeps it; touched are further paths to look at,
// which may have been stored meanwhile. Then the repository is judged.
func (m *Mirror) settle(ctx context.Context, root string, touched []string) error {
	repo, ok := m.index.Repo(root)
	if !ok {
		return nil
	}
	for _, name := range touched { // unverified ones may have come between the comparing and the publishing
		if !m.isStored(name) {
			continue
		}
		named := m.index.Named(name)
		if len(named) == 0 {
			continue // it may be in its grace
		}
		switch right, err := m.matches(name, named); {
		case err == nil && right: // again, perhaps: a veto may have kept it
			m.outdated.remove(name)
		case err == nil:
			m.outdated.add(name)
		}
	}
	if repo.Veto != nil {
		return nil
	}
	var list []doomed
	for name := range m.outdated.all() {
		if !m.concerns(root, name) {
			continue
		}
		list = append(list, doomed{
			path: name, use: true,
			still: func() bool {
				named := m.index.Named(name)
				right, err := m.matches(name, named)
				return err == nil && !right && len(named) > 0
			},
			entry: journal.Entry{Reason: journal.Replaced, From: repo.Former, To: repo.Pointer.Generation()},
		})
	}
	if _, _, err := m.remove(list); err != nil {
		return err
	}
	if ctx.Err() != nil || !repo.Unjudged {
		return ctx.Err()
	}
	_, err := m.index.Update(root, func(r *index.Repo) {
		if r.Pointer.Sum == repo.Pointer.Sum && r.Known() { // else it may still name what is stored unverified
			r.Unjudged = false
		}
	})
	return err
}

func (m *Mirror) concerns(root, name string) bool {
	for _, r := range m.index.Concerned(name) {
		if r == root {
			return true
		}
	}
	return false
}

// Confirm lifts the veto on the repository at root: what waited for it is deleted.
func (m *Mirror) Confirm(ctx context.Context, root string) error {
	if _, err := m.index.Update(root, func(r *index.Repo) { r.Veto = nil }); err != nil {
		return err
	}
	return m.settle(ctx, root, nil)
}

// Expire deletes what has left the repository at root and whose grace has ended, unless a veto keeps it or the pointer is
// gone upstream: then ours may be the last copy. It returns how many files went, and when to come again; zero: not before
// the next generation. rule is for the journal.
func (m *Mirror) Expire(ctx context.Context, root, rule string) (n int, next time.Time, err error) {
	repo, ok := m.index.Repo(root)
	if !ok || repo.Veto != nil || !repo.Gone.IsZero() {
		return 0, time.Time{}, nil
	}
	now := time.Now()
	var list []doomed
	var stay []string
	flush := func() error {
		_, k, err := m.remove(list)
		n += k
		if err == nil && len(stay) > 0 {
			err = m.index.Stay(root, stay...)
		}
		list, stay = list[:0], stay[:0]
		return err
	}
	err = m.index.EachLeaving(root, func(l index.Leaving) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.Until.After(now) {
			if next.IsZero() || l.Until.Before(next) {
				next = l.Until
			}
			return nil
		}
		if says, complete := m.index.Says(l.Path); len(says) == 0 && (!complete || !strings.HasPrefix(l.Path, root+"/") && root != "" && m.index.Gaps()) {
			if again := now.Add(time.Hour); next.IsZero() || again.Before(next) {
				next = again // a repository may name it whose packages are not known
			}
			return nil
		}
		stay = append(stay, l.Path)
		if m.isStored(l.Path) {
			list = append(list, doomed{
				path: l.Path,
				still: func() bool { // named again, or in its grace elsewhere
					if len(m.index.Named(l.Path)) > 0 {
						return false
					}
					return !m.index.LeavesBut(root, l.Path, now)
				},
				entry: journal.Entry{Reason: journal.Vanished, Rule: rule, From: l.From, To: l.To},
			})
		}
		if len(stay) < leaveBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return n, next, fmt.Errorf("expiring what has left %s: %w", root, err)
	}
	return n, next, nil
}

// Evict deletes the stored file at name because its room is needed, and returns how many bytes that freed. A pointer is
// never evicted: without it nobody would know that the rest has changed.
func (m *Mirror) Evict(names ...string) (freed int64, err error) {
	var list []doomed
	for _, name := range names {
		if _, base := repository(name); base == "repomd.xml" {
			continue
		}
		list = append(list, doomed{path: name, entry: journal.Entry{Reason: journal.Evicted}})
	}
	freed, _, err = m.remove(list)
	return freed, err
}

// Discard deletes what is stored at t, a file or all of a directory, by hand or because it was found damaged, and returns
// how many files went. What is asked for again is fetched again.
func (m *Mirror) Discard(ctx context.Context, t site.Target, reason journal.Reason) (n int, err error) {
	flush := func(list []doomed) error {
		_, k, err := m.remove(list)
		n += k
		return err
	}
	one := func(name string) doomed {
		return doomed{path: name, entry: journal.Entry{Reason: reason}}
	}
	if !t.Dir {
		err := flush([]doomed{one(t.Path)})
		m.absence.forget(t.Path)
		return n, err
	}
	var list []doomed
	err = m.store.Walk(ctx, t.Path, func(i store.Info) error {
		if list = append(list, one(i.Path)); len(list) < removeBatch {
			return nil
		}
		err := flush(list)
		list = list[:0]
		return err
	})
	if err == nil {
		err = flush(list)
	}
	return n, err
}
