package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/store"
)

// unfinished are the publications that a failing disk has interrupted, by repository. Until such a one is carried out to
// its end, or thrown away, nothing else is published there: the next start would put it over what came later.
type unfinished struct {
	mu sync.Mutex // map operations only
	m  map[string]*publishing
}

func (u *unfinished) of(root string) *publishing {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.m[root]
}

func (u *unfinished) set(root string, p *publishing) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if p == nil {
		delete(u.m, root)
		return
	}
	if u.m == nil {
		u.m = make(map[string]*publishing)
	}
	u.m[root] = p
}

// publishing is a bundle that is to be put in force, or was. For one root there is one at a time, and one goroutine that
// does something with it: the look at the repository.
type publishing struct {
	bundle *store.Bundle
	note   bundleNote
	// outdated are the stored files that must not be served any more.
	outdated []string
	// inForce says that what is expected is what the bundle brings. Until then it can be thrown away.
	inForce bool
}

// carryOut puts a sealed bundle in force: first what is expected, then the names, the pointer last. What fails before
// anything has changed is thrown away; else Finish goes on with it.
func (m *Mirror) carryOut(p *publishing) error {
	if err := m.putInForce(p); err != nil {
		return errors.Join(err, m.throwAway(p))
	}
	err := p.bundle.Apply()
	if err != nil { // clients find neither generation whole now: what fails for a moment only should not leave that
		err = p.bundle.Apply()
	}
	if err != nil {
		m.unfinished.set(p.note.Root, p)
		return fmt.Errorf("publishing %s: the next look or start finishes it: %w", p.note.Root, err)
	}
	for name, believed := range p.note.Believe {
		m.checks.note(name, check{belief: believed})
		m.absence.forget(name)
		m.outdated.remove(name)
	}
	m.unfinished.set(p.note.Root, nil)
	return nil
}

// putInForce makes what p brings what is expected, once.
func (m *Mirror) putInForce(p *publishing) error {
	if p.inForce || p.note.Next.Pointer.Sum.IsZero() { // companions only
		p.inForce = true
		return nil
	}
	m.gate.Lock()
	defer m.gate.Unlock()
	if err := m.index.Publish(p.note.Root, p.note.Next, p.note.Staged, p.note.Believe); err != nil {
		return err
	}
	m.outdated.add(p.outdated...)
	p.inForce = true
	return nil
}

// throwAway discards the bundle of p, of which nothing is in force.
func (m *Mirror) throwAway(p *publishing) error {
	if err := p.bundle.Discard(); err != nil {
		m.unfinished.set(p.note.Root, p)
		return err
	}
	m.unfinished.set(p.note.Root, nil)
	return nil
}

// Finish carries out to its end, or throws away, what a failing disk interrupted of a publication of the repository at
// root. generation is the one that is in force by that, "" if none is. It comes before anything else that is published
// there.
func (m *Mirror) Finish(ctx context.Context, root string) (generation string, err error) {
	p := m.unfinished.of(root)
	switch {
	case p == nil:
		return "", nil
	case !p.inForce:
		return "", m.throwAway(p)
	}
	if err := m.carryOut(p); err != nil {
		return "", err
	}
	if p.note.Next.Pointer.Sum == (digest.Sum{}) {
		return "", nil
	}
	return p.note.Next.Pointer.Generation(), m.settle(ctx, root, p.outdated)
}
