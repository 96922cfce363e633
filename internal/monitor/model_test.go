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
	"strings"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/store"
)

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

// model plays a life and knows what has to come of it: which generation is in force, what has left, and so what clients
// get and what stands in the tree.
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

// stores reports whether body stands at p in the tree.
func (m *model) stores(p string, body []byte) bool {
	is, err := os.ReadFile(filepath.Join(m.store.Dir(), base+p))
	return err == nil && bytes.Equal(is, body)
}

// answers reports whether h is asked.
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
		if m.available(g.main, g.named[g.main]) || m.stores(g.main, g.named[g.main]) {
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
