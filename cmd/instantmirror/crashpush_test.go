package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fsck"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// killWorld is a crashWorld whose upstream pushes one generation after the other of two repositories, one with unique and
// one with fixed names of metadata.
type killWorld struct {
	*crashWorld
	repos []*killRepo
}

// killRepo is a repository of upstream.
type killRepo struct {
	name     string // and directory below the profile
	fixed    bool
	packages []mirrortest.Package
	gens     []map[string]mirrortest.File // by path below the repository
	seen     int                          // which of gens was last found in force here
}

const killPointer = "repodata/repomd.xml"

func newKillWorld(t *testing.T) *killWorld {
	t.Helper()
	p := &killWorld{crashWorld: newCrashWorld(t), repos: []*killRepo{{name: "unique"}, {name: "fixed", fixed: true}}}
	for _, r := range p.repos {
		for i := range 10 {
			r.packages = append(r.packages, mirrortest.Package{Name: fmt.Sprintf("%c-pkg%d", 'a'+i%3, i), Size: 1000 << (i % 7), Seed: uint64(i)})
		}
		p.push(r)
	}
	return p
}

// poll writes the configuration: pointers are looked at often, or never.
func (p *killWorld) poll(often bool) {
	p.t.Helper()
	expiry := "{match: '**', refresh: 1s, grace: 1s}"
	if !often {
		expiry = "{match: '**', refresh: never}"
	}
	profileFile(p.t, p.dir, "one", profileText("one", p.up.URL+"/x", "expiry: ["+expiry+"]"))
}

// push makes upstream have a new generation of r, in the order in which masters do: packages, metadata, pointer; then
// it drops what the generation does not name.
func (p *killWorld) push(r *killRepo) {
	n := len(r.gens)
	for i := range r.packages {
		switch p.rng.IntN(5) {
		case 0: // signed anew
			r.packages[i].Seed += 1000
		case 1: // gone, and something else came
			r.packages[i].Name = fmt.Sprintf("%s-%d", r.packages[i].Name[:strings.IndexByte(r.packages[i].Name, 'g')+2], n)
		}
	}
	repo := mirrortest.Repo{
		Packages: r.packages, Fixed: r.fixed, Time: mirrortest.Epoch.Add(time.Duration(n) * time.Hour),
		Extra: map[string][]byte{"group": []byte("<comps/>"), "updateinfo": fmt.Appendf(nil, "<updates n=%q/>", fmt.Sprint(n))},
	}
	files := repo.Files()
	if p.rng.IntN(3) > 0 || n == 0 {
		files[killPointer+".asc"] = mirrortest.File{Body: fmt.Appendf(nil, "signature %d of %s", n, r.name), ModTime: repo.Time}
		if p.rng.IntN(2) > 0 {
			files[killPointer+".key"] = mirrortest.File{Body: fmt.Appendf(nil, "key %d of %s", n, r.name), ModTime: repo.Time}
		}
	}
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int { return strings.Compare(pushOrder(a), pushOrder(b)) })
	for _, name := range names {
		p.put(r.name+"/"+name, files[name])
	}
	if n > 0 {
		for name := range r.gens[n-1] {
			if _, ok := files[name]; !ok {
				p.up.Remove("x/" + r.name + "/" + name)
			}
		}
	}
	r.gens = append(r.gens, files)
}

// pushOrder sorts packages before metadata, and the pointer last.
func pushOrder(name string) string {
	switch {
	case name == killPointer:
		return "3"
	case strings.HasPrefix(name, killPointer):
		return "2" + name
	case strings.HasPrefix(name, "repodata/"):
		return "1" + name
	}
	return "0" + name
}

// hammer has clients ask for the newest generations, and then for what is in them, until the daemon is dead or all is
// asked for. Whatever comes is something that upstream had there: ask sees to that. Errors are for dead daemons, and for
// clients whose files went upstream before the mirror knew.
func (p *killWorld) hammer(base string) (wait func()) {
	var clients sync.WaitGroup
	for _, r := range p.repos {
		newest := r.gens[len(r.gens)-1]
		names := slices.SortedFunc(maps.Keys(newest), func(a, b string) int { return strings.Compare(pushOrder(b), pushOrder(a)) })
		for range 2 {
			clients.Go(func() {
				for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
					body, err := p.pointer(base, r)
					if err != nil {
						return
					}
					if string(body) == string(newest[killPointer].Body) {
						break
					}
				}
				for _, name := range names {
					_ = p.ask(p.t.Context(), base, "pub/one/"+r.name+"/"+name, 0, 0)
				}
			})
		}
	}
	return clients.Wait
}

// pointer asks the mirror at base for the pointer of r.
func (p *killWorld) pointer(base string, r *killRepo) ([]byte, error) {
	resp, err := http.Get(base + "/pub/one/" + r.name + "/" + killPointer)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// used are the files of a generation that a mirror must have before it publishes it.
func used(name string) bool {
	return strings.HasPrefix(name, "repodata/") && !strings.Contains(name, "other.xml")
}

// whole fails the test unless a client finds one whole generation of r, not older than the one before, while upstream is
// down: all that is used of it, and no package of another one.
func (p *killWorld) whole(when string, d *daemonProcess, r *killRepo) {
	p.t.Helper()
	status, body, cache := d.get("/pub/one/" + r.name + "/" + killPointer)
	found := slices.IndexFunc(r.gens, func(g map[string]mirrortest.File) bool { return string(g[killPointer].Body) == body })
	if found != r.seen && found != len(r.gens)-1 {
		p.t.Errorf("%s: %s is at generation %d (%d, %s), was at %d; upstream had %d", when, r.name, found, status, cache, r.seen, len(r.gens)-1)
		return
	}
	r.seen = found
	g := r.gens[found]
	for _, name := range slices.Sorted(maps.Keys(g)) {
		status, body, cache := d.get("/pub/one/" + r.name + "/" + name)
		if status == 200 && body != string(g[name].Body) || status != 200 && used(name) {
			p.t.Errorf("%s: who has generation %d of %s gets %d with %d bytes of %s (%s), want %d", when, found, r.name, status, len(body), name, cache, len(g[name].Body))
		}
	}
	for _, ext := range []string{".asc", ".key"} {
		if _, ok := g[killPointer+ext]; ok {
			continue
		}
		if status, body, cache := d.get("/pub/one/" + r.name + "/" + killPointer + ext); status == 200 {
			p.t.Errorf("%s: generation %d of %s has no %s, and a client gets %q (%s)", when, found, r.name, ext, body, cache)
		}
	}
}

// judged fails the test if fsck finds anything, or if something that is no download is left in the private directory.
func (p *killWorld) judged(when string) {
	p.t.Helper()
	_, err := fsck.Check(p.t.Context(), filepath.Join(p.dir, "root"), fsck.Options{}, func(f fsck.Finding) {
		p.t.Errorf("%s: fsck: %v", when, f)
	})
	if err != nil {
		p.t.Errorf("%s: fsck: %v", when, err)
	}
	if _, others := p.tmp(); len(others) > 0 {
		p.t.Errorf("%s: left in tmp: %v", when, others)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, "root/.instantmirror/gen")); err != nil || len(left) > 0 {
		p.t.Errorf("%s: left in gen: %v, %v", when, left, err)
	}
}

// recovered starts a daemon on what a crash left, while upstream is down, and looks at what clients find.
func (p *killWorld) recovered(when string, rebuilt bool) {
	p.t.Helper()
	p.up.Stop()
	p.poll(false)
	d := p.daemon()
	d.begin()
	for deadline := time.Now().Add(10 * time.Second); rebuilt && !strings.Contains(d.logged(), "the index was made again"); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Errorf("%s: the index is not made again:\n%s", when, d.logged())
			break
		}
	}
	for _, r := range p.repos {
		p.whole(when, d, r)
	}
	d.stopIdle()
	p.judged(when)
	p.walk(when + ", and restart")
	if p.t.Failed() {
		p.t.Logf("%s: the log after the restart:\n%s", when, d.logged())
	}
	if err := p.up.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.poll(true)
}

// upToDate starts a daemon and waits until it has the newest generations, whole.
func (p *killWorld) upToDate(when string) {
	p.t.Helper()
	d := p.daemon()
	d.begin()
	for _, r := range p.repos {
		newest := r.gens[len(r.gens)-1]
		for deadline := time.Now().Add(20 * time.Second); ; <-time.After(20 * time.Millisecond) {
			_, body, cache := d.get("/pub/one/" + r.name + "/" + killPointer)
			if body == string(newest[killPointer].Body) {
				break
			}
			if time.Now().After(deadline) {
				p.t.Errorf("%s: %s does not get up to date: %s\n%s", when, r.name, cache, d.logged())
				break
			}
		}
		r.seen = len(r.gens) - 1
		for name, f := range newest {
			if status, body, cache := d.get("/pub/one/" + r.name + "/" + name); body != string(f.Body) {
				p.t.Errorf("%s: up to date, %s of %s: %d, %d bytes, %s; want %d bytes", when, name, r.name, status, len(body), cache, len(f.Body))
			}
		}
	}
	d.stopIdle()
	p.judged(when + ", up to date")
	p.walk(when + ", up to date")
}

// killPushes are the ends of rounds, by turns. At "place" the daemon dies when a file of the new generation, or its
// pointer, is about to get its name.
var killPushes = []killAt{
	{call: "place"}, {call: "place"}, {call: "/^renameat", from: 1, most: 12}, {call: "place"}, {free: true},
	{call: "place"}, {call: "unlinkat", from: 3, most: 8}, {call: "place"}, {call: "fsync", from: 2, most: 30},
	{call: "place"}, {call: "fdatasync", from: 3, most: 12}, {call: "place"}, {},
}

// TestKillPush: SIGKILL at any moment of a push leaves clients one whole generation, the old one or the new one, and the
// next start finishes or undoes what was begun. INSTANTMIRROR_SOAK=1 makes 200 rounds.
func TestKillPush(t *testing.T) {
	needStrace(t)
	defer syscall.Umask(syscall.Umask(0o077))
	rounds := 12
	switch {
	case os.Getenv("INSTANTMIRROR_SOAK") != "":
		rounds = 200
	case testing.Short():
		rounds = 3
	}
	p := newKillWorld(t)
	p.poll(true)
	p.upToDate("before")
	between := 0
	for i := range rounds {
		for _, r := range p.repos {
			p.push(r)
		}
		k := killPushes[i%len(killPushes)]
		when := p.killed(i, k)
		in := p.between()
		if in {
			between++
		}
		lost := i%8 == 5
		if lost {
			when += ", the index is lost"
			if err := os.RemoveAll(filepath.Join(p.dir, "state")); err != nil {
				t.Fatal(err)
			}
		}
		p.walk(when)
		p.recovered(when, lost)
		if i%4 == 3 || i == rounds-1 {
			p.upToDate(when)
		}
		if t.Failed() {
			t.Fatalf("%s; between the first rename and the pointer: %v", when, in)
		}
	}
	t.Logf("%d rounds, %d of them were killed between the first rename and the pointer", rounds, between)
	if 4*between < rounds {
		t.Errorf("only %d of %d kills were between the first rename and the pointer", between, rounds)
	}
}

// killed runs a daemon that is killed during a push. It tells when.
func (p *killWorld) killed(i int, k killAt) (when string) {
	p.t.Helper()
	d := p.daemon()
	when, limit := fmt.Sprintf("round %d, at a random time", i), 20*time.Second
	const calls = "trace=fsync,fdatasync,/^renameat,unlinkat"
	switch {
	case k.call == "place":
		r := p.repos[p.rng.IntN(len(p.repos))]
		name := p.placed(r)
		when = fmt.Sprintf("round %d, at the place of %s in %s", i, name, r.name)
		d.traced("-e", "trace=/^renameat", "-e", "inject=/^renameat:signal=KILL", "-P", name)
	case k.call != "":
		n := k.from + p.rng.IntN(k.most)
		when = fmt.Sprintf("round %d, at %s number %d", i, k.call, n)
		d.traced("-e", calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", k.call, n))
	case !k.free:
		d.traced("-e", calls, "--seccomp-bpf")
	}
	if k.call == "" {
		limit = time.Duration(p.rng.Int64N(int64(400 * time.Millisecond)))
	}
	if !d.serves() { // it looks upstream by itself, and died of that
		d.dead()
		return when
	}
	wait := p.hammer(d.url)
	ended := make(chan struct{})
	go func() {
		wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(limit):
	}
	_ = d.Process.Kill()
	d.dead()
	<-ended
	return when
}

// placed is one of the files of the newest generation of r that are new, or its pointer.
func (p *killWorld) placed(r *killRepo) string {
	newest, before := r.gens[len(r.gens)-1], r.gens[r.seen]
	var names []string
	for _, name := range slices.Sorted(maps.Keys(newest)) {
		if used(name) && string(newest[name].Body) != string(before[name].Body) {
			names = append(names, filepath.Base(name))
		}
	}
	return names[p.rng.IntN(len(names))]
}

// between reports whether a publication stopped between its first rename into the tree and that of its pointer.
func (p *killWorld) between() bool {
	p.t.Helper()
	manifests, err := filepath.Glob(filepath.Join(p.dir, "root/.instantmirror/gen/*.json"))
	if err != nil {
		p.t.Error(err)
	}
	for _, name := range manifests {
		var m struct{ Files []struct{ Name string } }
		text, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			p.t.Errorf("%s: %v", name, err)
			continue
		}
		waiting := 0
		for i, f := range m.Files {
			if _, err := os.Lstat(filepath.Join(strings.TrimSuffix(name, ".json"), f.Name)); err == nil {
				waiting++
			} else if i == len(m.Files)-1 {
				waiting = 0
			}
		}
		if waiting > 0 && waiting < len(m.Files) {
			return true
		}
	}
	return false
}
