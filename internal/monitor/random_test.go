package monitor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
)

// TestRandom plays random lives of repositories, upstreams and the mirror, and compares what clients get and what stands in
// the tree with a model after each step. INSTANTMIRROR_SEED repeats a round (but for the jitter of polls),
// INSTANTMIRROR_SOAK=1 plays many.
func TestRandom(t *testing.T) {
	rounds, steps := 10, 30
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

// Tolerances of the model, which does not know when exactly polls are.
const (
	pollWindow = 75 * time.Minute // in which a pointer is polled, also after failures
	graceTime  = 24 * time.Hour
	backTime   = 48 * time.Hour
	doubtTime  = 10*time.Minute + time.Second // for which who sent wrong bytes is not asked for them
	downTime   = 11 * time.Second             // for which an upstream that was down is not asked
)

// generation is one state of a repository.
type generation struct {
	repo  string
	desc  mirrortest.Repo
	name  string                     // as the log has it
	files map[string]mirrortest.File // by path below the profile
	named map[string][]byte          // those that its metadata name, without the pointer
	main  string                     // path of primary
}

func (g *generation) older(than *generation) bool { return g.desc.Time.Before(than.desc.Time) }

func (g *generation) String() string {
	return g.repo + " " + g.name + g.desc.Time.Format(" 02T15:04:05")
}

// mirrorHost is what the model knows of an upstream.
type mirrorHost struct {
	*host
	name  string
	state map[string]*generation // by repository: what it has; nil: nothing
	lies  map[string]string      // by repository
	up    time.Time              // since when it answers; zero: it does not
	right map[string]time.Time   // by path: since when it has not had other bytes there
}

type model struct {
	*bubble
	rng   *rand.Rand
	said  map[string]string // what was last logged, by repository
	log   []string
	repos []string
	all   map[string][]*generation
	up    []*mirrorHost // a, b, c

	served map[string]*generation
	left   map[string]map[string]leaves // by repository and path
	// agreed is since when all who answer have the same older generation, by repository.
	agreed map[string]time.Time
	agree  map[string]*generation
	steady time.Time // since when nothing has changed upstream
	force  bool
	// unpointed are repositories whose pointer was removed by hand.
	unpointed map[string]bool
	begun     time.Time // of the step
	lost      time.Time // when the index was

	before  map[string]state     // the tree, at the beginning of the step
	touched map[string][]*sum256 // what generations in force said of paths meanwhile
}

// leaves is a path that no generation in force names.
type leaves struct {
	body            []byte
	earliest, until time.Time // between which its grace ends
}

// state is a stored file.
type state struct {
	inode uint64
	sum   sum256
}

type sum256 [sha256.Size]byte

func newModel(b *bubble, seed uint64) *model {
	m := &model{
		bubble: b, rng: rand.New(rand.NewPCG(seed, 5)), repos: []string{"os", "fx", "os/sub", "p1", "p2"}, all: map[string][]*generation{},
		served: map[string]*generation{}, left: map[string]map[string]leaves{}, agreed: map[string]time.Time{}, unpointed: map[string]bool{}, said: map[string]string{}, agree: map[string]*generation{},
	}
	for _, name := range []string{"a", "b", "c"} {
		m.up = append(m.up, &mirrorHost{
			host: b.hosts[name], name: name, state: map[string]*generation{}, lies: map[string]string{}, up: time.Now().Add(-time.Hour), right: map[string]time.Time{},
		})
	}
	for _, repo := range m.repos {
		g := m.newGeneration(repo)
		for _, h := range m.up {
			h.state[repo] = g
		}
	}
	m.upload()
	b.run()
	return m
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

// newGeneration changes the last one of repo at random.
func (m *model) newGeneration(repo string) *generation {
	var desc mirrortest.Repo
	if list := m.all[repo]; len(list) > 0 {
		desc = list[len(list)-1].desc
		desc.Packages = slices.Clone(desc.Packages)
	} else {
		desc = mirrortest.Repo{Fixed: repo == "fx"}
		for i := range 4 {
			desc.Packages = append(desc.Packages, m.newPackage(i))
		}
		if repo == "p1" || repo == "p2" {
			desc.Dir = "../pool"
		}
	}
	var did []string
	for range 1 + m.rng.IntN(3) {
		n := len(desc.Packages)
		switch what := m.rng.IntN(10); {
		case what < 3 && n < 8:
			p := m.newPackage(m.rng.IntN(10))
			if !slices.ContainsFunc(desc.Packages, func(q mirrortest.Package) bool { return q.Name == p.Name }) {
				desc.Packages = append(desc.Packages, p)
				did = append(did, "+"+p.Name)
			}
		case what < 5 && n > 0:
			i := m.rng.IntN(n)
			did = append(did, "-"+desc.Packages[i].Name)
			desc.Packages = slices.Delete(desc.Packages, i, i+1)
		case what < 8 && n > 0:
			p := &desc.Packages[m.rng.IntN(n)]
			p.Seed = uint64(m.rng.IntN(3))
			did = append(did, "~"+p.Name)
		case what < 9 && repo == "os":
			desc.Fixed = !desc.Fixed
			did = append(did, fmt.Sprintf("fixed=%v", desc.Fixed))
		case repo == "os" || repo == "fx":
			if desc.Dir == "" {
				desc.Dir = "."
			} else {
				desc.Dir = ""
			}
			did = append(did, "moved")
		}
	}
	desc.Extra = nil
	if chance(m.rng, 50) {
		desc.Extra = map[string][]byte{"group": fmt.Appendf(nil, "<comps>%d</comps>", m.rng.IntN(4))}
	}
	desc.Time = time.Now().Truncate(time.Second).Add(-time.Duration(m.rng.IntN(3)) * time.Second)
	if list := m.all[repo]; len(list) > 0 {
		if last := list[len(list)-1].desc.Time; !desc.Time.After(last) {
			desc.Time = last.Add(time.Duration(m.rng.IntN(2)) * time.Second) // of the same age, or just newer
		}
	}
	g := &generation{repo: repo, desc: desc, files: map[string]mirrortest.File{}, named: map[string][]byte{}}
	for name, f := range desc.Files() {
		p := path.Join(repo, name)
		g.files[p] = f
		if name == "repodata/repomd.xml" {
			sum := sha256.Sum256(f.Body)
			g.name = hex.EncodeToString(sum[:])[:12]
			// With other bytes comes another time, as its own digest has no effect on a question by time.
			for _, old := range m.all[repo] {
				if t := old.files[p].ModTime; !f.ModTime.After(t) {
					f.ModTime = t.Add(time.Second)
				}
			}
			g.files[p] = f
			if chance(m.rng, 40) {
				g.files[p+".asc"] = mirrortest.File{Body: []byte("signs " + g.name), ModTime: f.ModTime}
			}
			continue
		}
		g.named[p] = f.Body
		if strings.HasSuffix(name, "primary.xml.gz") {
			g.main = p
		}
	}
	// The same bytes again are the same generation.
	for _, old := range m.all[repo] {
		if old.name == g.name {
			return old
		}
	}
	m.mu.Lock()
	m.all[repo] = append(m.all[repo], g)
	m.mu.Unlock()
	m.say("%v: %s", g, strings.Join(did, " "))
	return g
}

func (m *model) newPackage(i int) mirrortest.Package {
	return mirrortest.Package{Name: string(rune('g' + i)), Size: 500, Seed: uint64(m.rng.IntN(3))}
}

// upload makes the hosts have what the model says.
func (m *model) upload() {
	for _, h := range m.up {
		files := map[string]mirrortest.File{}
		list := slices.Collect(maps.Values(h.state))
		slices.SortFunc(list, func(a, b *generation) int { return strings.Compare(a.repo, b.repo) })
		slices.SortStableFunc(list, func(a, b *generation) int { return a.desc.Time.Compare(b.desc.Time) })
		for _, g := range list {
			for p, f := range g.files {
				switch lie := h.lies[g.repo]; {
				case lie == "pointer" && path.Base(p) == "repomd.xml":
					f.Body = []byte("<html>")
				case lie == "none" && path.Base(p) == "repomd.xml":
					continue
				case lie == "primary" && p == g.main, lie == "packages" && path.Ext(p) == ".rpm":
					f.Body = bytes.Repeat([]byte("x"), len(f.Body))
				case lie == "noprimary" && p == g.main:
					continue
				}
				files[p] = f
			}
		}
		h.set(func(now *host) {
			for p, f := range files {
				if old, ok := now.files[p]; ok && !bytes.Equal(old.Body, f.Body) || h.right[p].IsZero() {
					h.right[p] = time.Now()
				}
			}
			for p := range h.right {
				if _, ok := files[p]; !ok {
					delete(h.right, p)
				}
			}
			now.files = map[string]mirrortest.File{}
			for p, f := range files {
				now.files[p] = f
			}
		})
	}
}

// available reports whether somebody has body at p and is asked for it.
func (m *model) available(p string, body []byte) bool {
	for _, h := range m.up {
		f, ok := h.files[p]
		if ok && bytes.Equal(f.Body, body) && f.Size == 0 && h.answers() && time.Since(h.right[p]) >= doubtTime {
			return true
		}
	}
	return false
}

func (h *mirrorHost) answers() bool { return !h.up.IsZero() && time.Since(h.up) >= downTime }

// verdict is what a look at repo comes to, from what is served. lead is the generation that is taken; nil: nothing changes.
// back is an older one that all have.
func (m *model) verdict(repo string) (lead, back *generation) {
	now := m.served[repo]
	var olds []*generation
	refused := 0
	for i, h := range m.up {
		if !h.answers() {
			continue
		}
		f, ok := h.files[repo+"/repodata/repomd.xml"]
		g := h.state[repo]
		switch {
		case !ok && i < 2:
			return nil, nil
		case !ok:
			continue
		case h.lies[repo] == "pointer" || !bytes.Equal(f.Body, g.files[repo+"/repodata/repomd.xml"].Body):
			refused++
			continue
		case g == now:
			return nil, nil
		case g.desc.Time.Equal(now.desc.Time) && f.ModTime.Before(now.files[repo+"/repodata/repomd.xml"].ModTime):
			return nil, nil // as new as what is here; asked by time, that host says that it has nothing newer
		case g.older(now):
			olds = append(olds, g)
			continue
		}
		if m.available(g.main, g.named[g.main]) || m.tree()[g.main].sum == sha256.Sum256(g.named[g.main]) {
			return g, nil
		}
		refused++
	}
	if refused == 0 && len(olds) > 0 && !slices.ContainsFunc(olds, func(g *generation) bool { return g != olds[0] }) {
		return nil, olds[0]
	}
	return nil, nil
}

// changing is called before anything changes upstream.
func (m *model) changing() { m.steady = time.Now() }

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
		m.bubble.run()
	case n < 65:
		m.say("restart, the index is lost")
		m.restart(func() {
			if err := os.Remove(filepath.Join(m.dir, "state", "index.db")); err != nil {
				m.t.Fatal(err)
			}
		})
		clear(m.left)
		m.lost = time.Now()
		// Before all is known a file that two repositories may name can be lost.
		if chance(m.rng, 50) && repo != "p1" && repo != "p2" {
			m.say("ask for %s", repo)
			m.ask(repo + "/repodata/repomd.xml")
			synctest.Wait()
		}
		if _, err := m.monitor.Rebuild(m.t.Context()); err != nil && !strings.Contains(err.Error(), "can't be read") {
			m.fail("rebuild: %v", err)
		}
		m.bubble.run()
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

// publish puts g in force in the model.
func (m *model) publish(g *generation) {
	m.t.Helper()
	old := m.served[g.repo]
	if old != nil && g.older(old) && !m.force && (m.agree[g.repo] != g || time.Since(m.agreed[g.repo]) < backTime-pollWindow) {
		m.fail("%v was replaced by the older %v (all agree on %v since %v)", old, g, m.agree[g.repo], m.agreed[g.repo])
	}
	m.served[g.repo] = g
	if old != nil {
		for p, body := range old.named {
			if _, ok := g.named[p]; !ok {
				for _, other := range m.served { // what is named counts for more than what leaves
					if body, ok := other.named[p]; ok && other != old {
						sum := sum256(sha256.Sum256(body))
						m.touched[p] = append(m.touched[p], &sum)
					}
				}
				if m.left[g.repo] == nil {
					m.left[g.repo] = map[string]leaves{}
				}
				m.left[g.repo][p] = leaves{body: body, earliest: m.begun.Add(graceTime), until: time.Now().Add(graceTime)}
			}
		}
	}
	for p, body := range g.named {
		if l, ok := m.left[g.repo][p]; ok && !time.Now().Before(l.earliest) {
			m.touched[p] = append(m.touched[p], new(sum256)) // it may have gone before
		}
		delete(m.left[g.repo], p)
		sum := sum256(sha256.Sum256(body))
		m.touched[p] = append(m.touched[p], &sum)
	}
}

// says is what the generations in force, or the last one that named it, say of p.
func (m *model) says(p string) (bodies [][]byte) {
	for _, g := range m.served {
		if body, ok := g.named[p]; ok {
			bodies = append(bodies, body)
		}
	}
	if len(bodies) == 0 {
		for _, list := range m.left {
			if l, ok := list[p]; ok && time.Now().Before(l.earliest) {
				bodies = append(bodies, l.body)
			}
		}
	}
	return bodies
}

// stays reports whether a file of that sum at p must not be deleted, and goes whether it must not be there.
func (m *model) stays(p string, sum sum256) (stays, goes bool) {
	named := false
	for _, g := range m.served {
		if body, ok := g.named[p]; ok {
			if sha256.Sum256(body) == sum {
				return true, false
			}
			named = true
		}
	}
	if named {
		return false, true
	}
	left := false
	for _, list := range m.left {
		if l, ok := list[p]; ok {
			left = true
			stays = stays || time.Now().Before(l.earliest)
			goes = goes || time.Since(l.until) > time.Minute
		}
	}
	return stays || !left, goes && !stays && !slices.ContainsFunc(m.repos, func(repo string) bool {
		r, ok := m.index.Repo(base + repo)
		return ok && !r.Gone.IsZero()
	})
}

// tree is what stands in the tree.
func (m *model) tree() map[string]state {
	list := map[string]state{}
	err := m.store.Walk(m.t.Context(), base[:len(base)-1], func(i store.Info) error {
		file := filepath.Join(m.store.Dir(), i.Path)
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		body, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		list[strings.TrimPrefix(i.Path, base)] = state{info.Sys().(*syscall.Stat_t).Ino, sha256.Sum256(body)}
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return list
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
		if dir, name := path.Split(p); time.Since(m.lost) < time.Minute && strings.HasSuffix(dir, "repodata/") && !strings.Contains(name, "-") {
			continue // before it has been read it is not known to be right, and may be fetched anew
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
