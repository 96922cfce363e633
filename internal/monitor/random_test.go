package monitor

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/journal"
)

// TestRandom plays random lives of repositories, upstreams and the mirror, and compares what clients get and what stands in
// the tree with a model after each step. INSTANTMIRROR_SEED repeats a round (but for the jitter of polls),
// INSTANTMIRROR_SOAK=1 plays many.
func TestRandom(t *testing.T) {
	rounds, steps := 7, 30
	if os.Getenv("INSTANTMIRROR_SOAK") != "" {
		rounds, steps = 300, 60
	}
	seed := uint64(time.Now().UnixNano()) % 1_000_000_000
	if s := os.Getenv("INSTANTMIRROR_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed, rounds, steps = n, 1, 60
	}
	for i := range uint64(rounds) {
		if end, ok := t.Deadline(); ok && time.Until(end) < 20*time.Second {
			t.Logf("%d rounds", i)
			return
		}
		if ok := t.Run("", func(t *testing.T) {
			inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h, grace: 1d, back: 2d, idle: 60d}]", func(b *bubble) {
				m := newModel(b, seed+i)
				defer func() {
					if t.Failed() {
						t.Logf("INSTANTMIRROR_SEED=%d repeats this round:\n%s", seed+i, strings.Join(m.log, "\n"))
					}
				}()
				m.play(steps)
			})
		}); !ok {
			return
		}
	}
}

func (m *model) say(format string, a ...any) {
	m.log = append(m.log, fmt.Sprintf("%4d %s ", len(m.log), time.Now().Format("02T15:04:05"))+fmt.Sprintf(format, a...))
}

func (m *model) fail(format string, a ...any) {
	m.t.Helper()
	m.t.Errorf("after step %d: %s", len(m.log)-1, fmt.Sprintf(format, a...))
}

func chance(rng *rand.Rand, percent int) bool { return rng.IntN(100) < percent }

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// play plays steps.
func (m *model) play(steps int) {
	for range steps {
		m.begun = time.Now()
		m.before, m.touched = m.tree(), map[string][]*sum256{}
		what := m.rng.IntN(100)
		var clients chan struct{}
		if what < 56 || what >= 65 { // a restart has none
			clients = m.clients()
		}
		m.step(what)
		for range cap(clients) {
			<-clients
		}
		synctest.Wait()
		m.follow()
		m.check()
		if m.t.Failed() {
			return
		}
	}
}

// clients starts some, who ask for what is named now while a step is done. Each sends when it has ended.
func (m *model) clients() chan struct{} {
	var names []string
	for _, repo := range m.repos {
		if g := m.served[repo]; g != nil && chance(m.rng, 30) {
			names = append(names, slices.Sorted(maps.Keys(g.files))...)
		}
	}
	const n = 4
	ended := make(chan struct{}, n)
	for range n {
		if len(names) == 0 {
			ended <- struct{}{}
			continue
		}
		list := []string{pick(m.rng, names), pick(m.rng, names)}
		go func() {
			defer func() { ended <- struct{}{} }()
			for _, name := range list {
				if g := m.ask(name); g.err == nil && !m.known(name, g.body) {
					m.t.Errorf("%s: a client got %.40q (%s), which no generation has", name, g.body, g.status)
				}
			}
		}()
	}
	return ended
}

// known reports whether any generation has body at p.
func (m *model) known(p string, body []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range m.all {
		for _, g := range list {
			if f, ok := g.files[p]; ok && bytes.Equal(f.Body, body) {
				return true
			}
		}
	}
	return false
}

// step does one thing.
func (m *model) step(n int) {
	repo := pick(m.rng, m.repos)
	switch {
	case n < 20: // a push, that reaches some
		g := m.newGeneration(repo)
		m.changing()
		for _, h := range m.up[:1+m.rng.IntN(3)] {
			h.state[repo] = g
		}
		m.upload()
	case n < 30: // somebody has any generation
		h := pick(m.rng, m.up)
		g := pick(m.rng, m.all[repo])
		m.changing()
		h.state[repo] = g
		m.upload()
		m.say("%s has %v", h.name, g)
	case n < 38: // all have the same one
		g := m.all[repo][len(m.all[repo])-1]
		if chance(m.rng, 30) {
			g = pick(m.rng, m.all[repo])
		}
		m.changing()
		for _, h := range m.up {
			h.state[repo] = g
		}
		m.upload()
		m.say("all have %v", g)
	case n < 46:
		h := pick(m.rng, m.up)
		m.changing()
		h.lies[repo] = pick(m.rng, []string{"", "", "", "pointer", "none", "primary", "noprimary", "packages"})
		m.upload()
		m.say("%s lies about %s: %q", h.name, repo, h.lies[repo])
	case n < 56:
		h := pick(m.rng, m.up)
		m.changing()
		how := pick(m.rng, []string{"", "", "refuses", "503", "hangs"})
		h.set(func(h *host) {
			h.refuses, h.hangs, h.status = how == "refuses", how == "hangs", 0
			if how == "503" {
				h.status = 503
			}
		})
		switch {
		case how != "":
			h.up = time.Time{}
		case h.up.IsZero():
			h.up = time.Now()
		}
		m.say("%s: outage %q", h.name, how)
	case n < 61:
		m.say("restart")
		m.restart(nil)
		m.run()
	case n < 65:
		m.say("restart, the index is lost")
		m.restart(func() {
			if err := os.Remove(filepath.Join(m.dir, "state", "index.db")); err != nil {
				m.t.Fatal(err)
			}
		})
		clear(m.left)
		m.lost = time.Now()
		if chance(m.rng, 50) { // before all is known
			m.say("ask for %s", repo)
			m.ask(repo + "/repodata/repomd.xml")
			synctest.Wait()
		}
		if _, err := m.monitor.Rebuild(m.t.Context()); err != nil && !strings.Contains(err.Error(), "can't be read") {
			m.fail("rebuild: %v", err)
		}
		m.run()
	case n < 69:
		r, err := m.monitor.Refresh(m.t.Context(), base+repo, false)
		m.say("refresh %s: %s, %v", repo, r.What, err)
	case n < 75: // room is needed, or somebody says so
		list := slices.Sorted(maps.Keys(m.before))
		if len(list) == 0 {
			return
		}
		p := pick(m.rng, list)
		m.touched[p] = append(m.touched[p], new(sum256))
		if chance(m.rng, 60) {
			_, err := m.mirror.Evict(base + p)
			m.say("evict %s: %v", p, err)
			return
		}
		t, err := m.table.Resolve("", "/"+base+p)
		if err == nil {
			_, err = m.mirror.Discard(m.t.Context(), t, journal.ByHand)
		}
		m.say("expire %s by hand: %v", p, err)
		if r, ok := strings.CutSuffix(p, "/repodata/repomd.xml"); ok {
			m.unpointed[r] = true
		}
	case n < 77:
		if m.served[repo] == nil {
			return
		}
		m.force = true
		r, err := m.monitor.Refresh(m.t.Context(), base+repo, true)
		m.say("refresh --force %s: %s, %v", repo, r.What, err)
		m.follow()
		m.force = false
	default:
		d := pick(m.rng, []time.Duration{time.Second, 20 * time.Second, 5 * time.Minute, time.Hour, 2 * time.Hour, 2 * time.Hour, 5 * time.Hour, 26 * time.Hour, 60 * time.Hour})
		m.say("%v pass", d)
		time.Sleep(d)
	}
}

// follow takes over into the model what has been published.
func (m *model) follow() {
	m.t.Helper()
	m.mu.Lock()
	events := m.events
	m.events = nil
	m.mu.Unlock()
	for _, e := range events {
		repo := strings.TrimPrefix(e.Root, base)
		line := fmt.Sprintf("       - %s %s %s→%s %s %v", e.What, repo, e.From, e.To, e.Origin, e.Err)
		if e.What == Published || m.said[repo] != e.What+e.Origin { // polls say the same again and again
			m.log = append(m.log, line)
		}
		m.said[repo] = e.What + e.Origin
		if e.What != Published {
			continue
		}
		var g *generation
		for _, one := range m.all[repo] {
			if one.name == e.To {
				g = one
			}
		}
		if g == nil {
			m.fail("%s: generation %s, which is none, was published", repo, e.To)
			continue
		}
		m.publish(g)
	}
}

// check compares the mirror with the model.
func (m *model) check() {
	m.t.Helper()
	m.kept()
	for _, repo := range m.repos {
		m.checkPointer(repo)
	}
	if m.t.Failed() {
		return
	}
	for _, repo := range m.repos {
		if g := m.served[repo]; g != nil {
			for range 3 {
				p := pick(m.rng, slices.Sorted(maps.Keys(g.named)))
				m.checkFile(p)
			}
			m.checkFile(g.main)
			m.checkSignature(g)
		}
	}
	for _, list := range m.left {
		if len(list) > 0 {
			m.checkFile(pick(m.rng, slices.Sorted(maps.Keys(list))))
		}
	}
	synctest.Wait()
	m.follow()
	for _, g := range m.served {
		if !m.holds(g.main) || !m.holds(g.repo+"/repodata/repomd.xml") { // the judge would not know what it says of files that another repository means other bytes by
			return
		}
	}
	m.sound()
}

// kept fails if anything has gone from the tree that should not.
func (m *model) kept() {
	m.t.Helper()
	now := m.tree()
	for p, was := range m.before {
		is, ok := now[p]
		if strings.HasPrefix(path.Base(p), "repomd.xml") {
			continue
		}
		dir, name := path.Split(p)
		if time.Since(m.lost) < time.Minute && (dir == "pool/" || strings.HasSuffix(dir, "repodata/") && !strings.Contains(name, "-")) {
			continue // metadata of fixed names may be fetched before it has been read; who else names what is not known yet
		}
		stays, goes := m.stays(p, was.sum)
		if is == was && goes {
			m.fail("%s should have gone", p)
		}
		if is == was || !stays || slices.ContainsFunc(m.touched[p], func(d *sum256) bool { return *d != was.sum }) {
			continue
		}
		m.fail("%s: %x in %d became %x in %d (still there: %v), and nothing says other bytes", p, was.sum[:3], was.inode, is.sum[:3], is.inode, ok)
	}
}

// checkPointer asks for repo's repomd.xml.
func (m *model) checkPointer(repo string) {
	m.t.Helper()
	name := repo + "/repodata/repomd.xml"
	lead, back := (*generation)(nil), (*generation)(nil)
	before := m.served[repo]
	if before != nil {
		lead, back = m.verdict(repo)
		if m.agree[repo] != back {
			if back != nil || time.Since(m.steady) > pollWindow {
				m.agree[repo], m.agreed[repo] = back, m.steady
			}
		}
	}
	g := m.ask(name)
	synctest.Wait()
	m.follow()
	if before == nil {
		if g.err != nil {
			return
		}
		for _, one := range m.all[repo] {
			if bytes.Equal(one.files[name].Body, g.body) {
				m.log = append(m.log, fmt.Sprintf("       - met %v", one))
				m.publish(one)
			}
		}
		if m.served[repo] == nil {
			m.fail("%s: a client got %q", name, g.body)
		}
		return
	}
	if g.err != nil {
		if !m.unpointed[repo] {
			m.fail("%s: %v", name, g.err)
		}
		return
	}
	if g.took > 5*time.Second && !m.unpointed[repo] {
		m.fail("%s: a client waited %v", name, g.took)
	}
	if m.unpointed[repo] { // it has come by the asking
		for _, one := range m.all[repo] {
			if one != m.served[repo] && bytes.Equal(one.files[name].Body, g.body) {
				m.log = append(m.log, fmt.Sprintf("       - met again: %v", one))
				m.publish(one)
				clear(m.left[repo]) // met for the first time again, it has not left anything
			}
		}
		delete(m.unpointed, repo)
	}
	after := m.served[repo]
	if !bytes.Equal(g.body, before.files[name].Body) && !bytes.Equal(g.body, after.files[name].Body) {
		m.fail("%s: a client got neither %v nor %v", name, before, after)
	}
	if time.Since(m.steady) > pollWindow && lead != nil {
		m.fail("%v is in force, want %v (status %+v)", before, lead, m.status(repo))
	}
}

// checkSignature asks for the signature of g, which is in force.
func (m *model) checkSignature(g *generation) {
	m.t.Helper()
	name := g.repo + "/repodata/repomd.xml.asc"
	got := m.ask(name)
	m.follow()
	is := func(g *generation) bool {
		want, ok := g.files[name]
		return ok && bytes.Equal(got.body, want.Body)
	}
	if got.err == nil && !is(g) && !is(m.served[g.repo]) {
		m.fail("%s: %q, which is not that of %v", name, got.body, g)
	}
}

// checkFile asks for p.
func (m *model) checkFile(p string) {
	m.t.Helper()
	bodies := m.says(p)
	if len(bodies) == 0 {
		return
	}
	is := func(body []byte) bool {
		return slices.ContainsFunc(bodies, func(b []byte) bool { return bytes.Equal(b, body) })
	}
	one := !slices.ContainsFunc(bodies, func(b []byte) bool { return !bytes.Equal(b, bodies[0]) })
	stored, available := m.holds(p), m.available(p, bodies[0])
	g := m.ask(p)
	m.follow()
	switch {
	case g.err == nil && !is(g.body):
		bodies = m.says(p) // it may have been published by the asking
		if !is(g.body) {
			m.fail("%s: a client got other bytes (%s)", p, g.status)
		}
	case g.err != nil && (stored || available && one):
		bodies = m.says(p)
		if len(bodies) > 0 && (m.holds(p) || m.available(p, bodies[0])) {
			m.fail("%s: %v; stored %v, available %v", p, g.err, stored, available)
		}
	}
}
