package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

// vetoFiles is how many stored files a push may always remove, whatever their share.
const vetoFiles = 50

// leaveBatch is how many leaving paths are written at a time.
const leaveBatch = 5000

// Publication is a generation that is ready to be put in force: everything that clients here use of it is in Bundle, or
// stands in the tree already.
type Publication struct {
	Root    string
	Next    index.Repo    // as ReadRepomd gave it, with what else is known of its origin
	Staged  *index.Staged // its packages; nil: the same primary as before
	Bundle  *store.Bundle // the pointer, its companions and records. Publish owns it
	From    string        // the configured origin that has it
	Believe map[string]index.Belief

	Grace     time.Duration
	Veto      float64 // the share of stored files whose loss needs confirmation
	Moving    bool    // then such a loss is no publication before it is Confirmed
	Confirmed bool    // the loss is meant
}

// VetoError says that a publication of a moving tree would remove too much, and was not confirmed.
type VetoError struct{ index.Veto }

func (e *VetoError) Error() string {
	return fmt.Sprintf("veto: it would remove %d of %d stored files: waiting for a second poll that agrees", e.Files, e.Held)
}

// Publish makes a generation current: what it names that is in the bundle appears, the pointer last; stored files that it
// means other bytes by are outdated from that moment on, and deleted; what it does not name any more leaves after its
// grace. The same steps are done by Recover, when a crash came between.
func (m *Mirror) Publish(ctx context.Context, p Publication) (err error) {
	sealed := false
	defer func() {
		if !sealed {
			err = errors.Join(err, p.Bundle.Discard())
		}
	}()
	if _, err := m.Finish(ctx, p.Root); err != nil {
		return err
	}
	old, _ := m.index.Repo(p.Root)
	p.Next.Pointer.Published = time.Now()
	p.Next.Unjudged = true
	if old != nil {
		p.Next.Former = old.Pointer.Generation()
		if !p.Next.Pointer.Published.After(old.Pointer.Published) { // the clock was set back
			p.Next.Pointer.Published = old.Pointer.Published.Add(time.Millisecond)
		}
	}
	plan, err := m.plan(ctx, p, old)
	if err != nil {
		return err
	}
	if veto := plan.veto; veto != nil && !p.Confirmed {
		if p.Moving {
			return &VetoError{*veto}
		}
		p.Next.Veto = veto
	}
	one := &publishing{bundle: p.Bundle, note: bundleNote{p.Root, p.Next, p.Staged, p.Believe}, outdated: plan.outdated}
	note, err := json.Marshal(one.note)
	if err != nil {
		return fmt.Errorf("publishing %s: %w", p.Root, err)
	}
	sealed = true
	if err := p.Bundle.Seal(pointerOf(p.Root), note); err != nil {
		return errors.Join(fmt.Errorf("publishing %s: %w", p.Root, err), m.throwAway(one))
	}
	if err := m.carryOut(one); err != nil {
		return err
	}
	return m.settle(ctx, p.Root, plan.touched)
}

// AddCompanions publishes what goes with the repomd.xml that is in force at root, and what is now known of that.
func (m *Mirror) AddCompanions(root string, p index.Pointer, b *store.Bundle, believe map[string]index.Belief) error {
	names := b.Paths()
	if len(names) > 0 {
		one := &publishing{bundle: b, note: bundleNote{Root: root, Believe: believe}}
		note, err := json.Marshal(one.note)
		if err == nil {
			err = b.Seal(names[len(names)-1], note)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("publishing the signature of %s: %w", root, err), m.throwAway(one))
		}
		if err := m.carryOut(one); err != nil {
			return err
		}
	} else if err := b.Discard(); err != nil {
		return err
	}
	for name, one := range believe {
		m.index.Put(name, one)
	}
	_, err := m.index.Update(root, func(r *index.Repo) {
		if r.Pointer.Sum == p.Sum {
			r.Pointer.Companions, r.Pointer.Signed = p.Companions, p.Signed
		}
	})
	return err
}

// HoldPackages keeps others from learning the packages of the repository at root, from StagePackages until they are in
// force.
func (m *Mirror) HoldPackages(root string) (release func()) { return m.learning.lock(root) }

// Fetch fetches t, if it is not here and valid, and waits until it is.
func (m *Mirror) Fetch(ctx context.Context, t site.Target) error {
	if m.current(t) {
		return nil
	}
	flight, _ := m.flights.Join(m.job(t))
	defer flight.Close()
	if err := flight.Wait(ctx); !errors.Is(err, fetch.ErrCurrent) {
		return err
	}
	return nil
}

// bundleNote is what a bundle says of the publication that it is for.
type bundleNote struct {
	Root    string                  `json:"root"`
	Next    index.Repo              `json:"next"`
	Staged  *index.Staged           `json:"staged,omitempty"`
	Believe map[string]index.Belief `json:"believe,omitempty"`
}

// Recover finishes the publications that a crash interrupted, and finds the files that must not be served. It comes before
// the first request. A publication that cannot be finished is reported and left out: the tree then still has the generation
// before.
func (m *Mirror) Recover(ctx context.Context) error {
	bundles, err := m.store.Bundles()
	if err != nil {
		m.report(err)
	}
	for _, b := range bundles {
		var n bundleNote
		if err := json.Unmarshal(b.Note(), &n); err != nil {
			m.report(errors.Join(fmt.Errorf("an unfinished publication says nothing of itself, and is dropped: %w", err), b.Discard()))
			continue
		}
		if now, ok := m.index.Repo(n.Root); ok && !now.Pointer.Sum.IsZero() && now.Pointer.Sum == n.Next.Pointer.Sum {
			n.Next, n.Staged = *now, nil // in force already
		} else if n.Staged != nil && !m.index.Has(n.Root, n.Staged) {
			n.Staged = nil // the index was lost, or is an older one: the tree has to be looked at
			if err := m.index.Incomplete(); err != nil {
				return err
			}
		}
		one := &publishing{bundle: b, note: n}
		if err := m.putInForce(one); err != nil { // it may stand in the tree by half: it can't be thrown away
			return err
		}
		if err := m.carryOut(one); err != nil {
			return err
		}
	}
	for _, root := range m.index.Roots() {
		repo, _ := m.index.Repo(root)
		if repo != nil && !repo.Pointer.Sum.IsZero() {
			// The tree is the truth: root and state may have come from different backups.
			right, err := m.matches(pointerOf(root), []index.Named{{Size: -1, Sum: repo.Pointer.Sum}})
			if err == nil && !right {
				m.report(fmt.Errorf("%s is not the one that the index knows: what it says is read again", pointerOf(root)))
				if err := errors.Join(m.index.Forget(root), m.index.Incomplete()); err != nil {
					return err
				}
				continue
			}
		}
		if repo == nil || !repo.Unjudged && repo.Veto == nil {
			continue
		}
		if err := m.markOutdated(ctx, root); err != nil {
			return err
		}
		if !packagesKnown(repo) {
			continue // it stays unjudged until its primary has been read
		}
		if err := m.settle(ctx, root, nil); err != nil {
			return err
		}
	}
	return nil
}

// plan is what a publication does to stored files.
type plan struct {
	outdated []string // the new generation means other bytes by these names
	touched  []string // what it says something else of, stored or not
	veto     *index.Veto
}

// plan compares the generation in force with the next one, remembers what leaves, and looks at every stored file of which
// they say different things. It changes nothing that is served.
func (m *Mirror) plan(ctx context.Context, p Publication, old *index.Repo) (*plan, error) {
	out, lost := new(plan), 0
	var going []index.Leaving
	until := time.Now().Add(p.Grace)
	err := m.index.Changes(p.Root, old, &p.Next, p.Staged, func(c index.Change) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !c.IsNamed {
			going = append(going, index.Leaving{
				Path: c.Path, Named: c.Old, Until: until, From: p.Next.Former, To: p.Next.Pointer.Generation(),
			})
			if _, metadata := old.Records[c.Path]; !metadata && m.isStored(c.Path) {
				lost++
			}
			if len(going) == leaveBatch {
				if err := m.index.Leave(p.Root, going...); err != nil {
					return err
				}
				going = going[:0]
			}
		}
		if c.IsNamed && c.New.Sum.IsZero() || p.Bundle.Has(c.Path) {
			return nil
		}
		if !c.IsNamed && len(m.namedElsewhere(p.Root, c.Path)) == 0 {
			return nil
		}
		// What is not stored may be so before the gate closes, by what was expected until then.
		out.touched = append(out.touched, c.Path)
		if !m.isStored(c.Path) {
			return nil
		}
		named := m.namedElsewhere(p.Root, c.Path)
		if c.IsNamed {
			named = append(named, c.New)
		}
		right, err := m.matches(c.Path, named)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		if !right {
			out.outdated = append(out.outdated, c.Path)
			if _, metadata := p.Next.Records[c.Path]; !metadata && c.IsNamed {
				lost++
			}
		}
		return nil
	})
	if err == nil {
		err = m.index.Leave(p.Root, going...)
	}
	if err != nil {
		return nil, fmt.Errorf("comparing the new generation of %s with the tree: %w", p.Root, err)
	}
	if old == nil {
		return out, nil
	}
	if old.Veto != nil && !p.Confirmed {
		// What waited for confirmation waits on, unless this generation has brought it back.
		n, err := m.waiting(p, out.outdated)
		if err != nil || n <= vetoFiles {
			return out, err
		}
		veto := *old.Veto
		if n > veto.Files+vetoFiles { // more than was waited for: it has an hour of its own
			veto.Since, veto.Origin = time.Now(), p.From
		}
		veto.Files = n
		out.veto = &veto
		return out, nil
	}
	if lost <= vetoFiles {
		return out, nil
	}
	held := 0
	count := func(name string, _ index.Named) error {
		if m.isStored(name) {
			held++
		}
		return ctx.Err()
	}
	if err := m.index.EachPackage(p.Root, count); err != nil {
		return nil, err
	}
	if float64(lost) > p.Veto*float64(held) {
		out.veto = &index.Veto{Since: time.Now(), Origin: p.From, Files: lost, Held: held}
	}
	return out, nil
}

// waiting counts the stored files of a repository under veto that would be deleted if p were in force without one: those
// that left and that nothing names, and those that are meant by other bytes. outdated are p's own of these.
func (m *Mirror) waiting(p Publication, outdated []string) (n int, err error) {
	says := func(name string) []index.Named {
		list := m.namedElsewhere(p.Root, name)
		if named, ok := m.index.NextSays(p.Root, &p.Next, p.Staged, name); ok {
			list = append(list, named)
		}
		return list
	}
	err = m.index.EachLeaving(p.Root, func(l index.Leaving) error {
		if _, metadata := repository(l.Path); metadata == "" && m.isStored(l.Path) && len(says(l.Path)) == 0 {
			n++
		}
		return nil
	})
	all := m.outdated.all()
	if all == nil {
		all = make(map[string]bool)
	}
	for _, name := range outdated {
		all[name] = true
	}
	for name := range all {
		if err != nil {
			return 0, err
		}
		list := says(name)
		if _, metadata := repository(name); metadata != "" || len(list) == 0 || !m.concerns(p.Root, name) {
			continue
		}
		right := false
		switch right, err = m.matches(name, list); {
		case errors.Is(err, fs.ErrNotExist):
			err = nil
		case err == nil && !right:
			n++
		}
	}
	return n, err
}

// Holds reports whether a file that n describes stands at name.
func (m *Mirror) Holds(name string, n index.Named) bool {
	right, err := m.matches(name, []index.Named{n})
	return right && err == nil && !n.Sum.IsZero()
}

func (m *Mirror) isStored(name string) bool {
	_, err := m.store.Stat(name)
	return err == nil
}

// namedElsewhere is what other repositories than the one at root say of name.
func (m *Mirror) namedElsewhere(root, name string) []index.Named {
	roots := m.index.Concerned(name)
	if len(roots) == 0 || len(roots) == 1 && roots[0] == root {
		return nil
	}
	return m.index.NamedBut(root, name)
}

// matches reports whether the stored file at name is one of those that list describes. What was verified once is believed,
// what never was is hashed, and believed from then on.
func (m *Mirror) matches(name string, list []index.Named) (bool, error) {
	file, err := m.store.Get(name)
	if err != nil {
		return false, err
	}
	defer file.Close()
	believed := m.lastCheck(name, file).belief
	var sum digest.Sum
	for _, n := range list {
		switch {
		case n.Sum.IsZero():
			return true, nil // nothing vouches for it, nothing speaks against it
		case n.Size >= 0 && n.Size != file.Size:
			continue
		case believed.Sum == n.Sum:
			return true, nil
		case believed.Sum.Algorithm() == n.Sum.Algorithm():
			continue
		case sum.Algorithm() != n.Sum.Algorithm():
			h := n.Sum.Algorithm().New()
			if _, err := io.Copy(h, io.NewSectionReader(file, 0, file.Size)); err != nil {
				return false, fmt.Errorf("reading the stored %s: %w", name, err)
			}
			sum = digest.SumOf(n.Sum.Algorithm(), h)
			if believed.Sum.IsZero() {
				believed.Sum = sum
				m.checks.note(name, check{belief: believed})
				m.index.Put(name, believed)
			}
		}
		if sum == n.Sum {
			return true, nil
		}
	}
	return false, nil
}
