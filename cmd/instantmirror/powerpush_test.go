package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pushRecord is the record of a daemon through first contact, a push and an expiry.
type pushRecord struct {
	*traceRecord
	pushed int    // the line from which on the push was on the way
	before []byte // the index as it was then
}

// TestPowerLossPush records the system calls of a daemon through first contact, a push and an expiry, and starts daemons on
// what power loss could have left at any moment: clients find one whole generation, and fsck finds nothing.
func TestPowerLossPush(t *testing.T) {
	needStrace(t)
	p := newKillWorld(t)
	r := p.recordPush()
	r.order(t, len(p.truth))
	r.publications(t)
	moments := 0
	r.replay(math.MaxInt, func(at int, d *crashDisk) {
		moments++
		for _, l := range powerLosses {
			d.each(l, func(rel string, n *diskNode) { p.survives(r.traceRecord, l.name, rel, n) })
		}
	})
	t.Logf("%d calls, %d moments", len(r.calls), moments)

	var lines []int // of which a step of a publication or an expiry begins or ends
	for _, c := range r.calls {
		if c.begin >= r.pushed && (c.name == "fsync" || strings.HasPrefix(c.name, "rename") || strings.HasPrefix(c.name, "unlink")) {
			lines = append(lines, c.begin, c.end)
		}
	}
	p.rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	n := 12
	switch {
	case os.Getenv("INSTANTMIRROR_SOAK") != "":
		n = 150
	case testing.Short():
		n = 3
	}
	for i, at := range lines[:min(n, len(lines))] {
		if t.Failed() {
			return
		}
		p.lost(r, at, powerLosses[i%len(powerLosses)], i%2 == 1)
	}
}

// recordPush runs a daemon through the life of the repositories.
func (p *killWorld) recordPush() *pushRecord {
	p.t.Helper()
	p.poll(true)
	d := p.daemon()
	// Manifests live for a moment only. They are copied while their removal is delayed.
	log := d.traced("-e", fileCalls, "-e", "abbrev=!utimensat", "-e", "inject=/^unlinkat:delay_enter=20000", "--seccomp-bpf")
	r := &pushRecord{traceRecord: &traceRecord{dir: filepath.Join(p.dir, "root"), fates: map[*sysCall]fate{}, kept: map[string][]byte{}}}
	done := make(chan struct{})
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			names, _ := filepath.Glob(filepath.Join(r.dir, ".instantmirror/gen/*.json"))
			for _, name := range names {
				if text, err := os.ReadFile(name); err == nil && len(text) > 0 {
					r.kept[name] = text
				}
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	d.begin()
	p.hammer(d.url)()
	p.idle(d)
	index := filepath.Join(p.dir, "state/index.db")
	var err error
	if r.before, err = os.ReadFile(index); err != nil {
		p.t.Fatal(err)
	}
	r.pushed = strings.Count(readFile(p.t, log), "\n")
	for _, repo := range p.repos {
		p.push(repo)
	}
	p.hammer(d.url)()
	for _, repo := range p.repos { // what is not in the second generation goes when its grace ends
		for name := range repo.gens[0] {
			if _, ok := repo.gens[1][name]; ok || !strings.HasSuffix(name, ".rpm") {
				continue
			}
			for deadline := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
				if _, err := os.Lstat(filepath.Join(r.dir, "pub/one", repo.name, name)); errors.Is(err, fs.ErrNotExist) {
					break
				}
				if time.Now().After(deadline) {
					p.t.Fatalf("%s of %s does not expire:\n%s", name, repo.name, d.logged())
				}
			}
		}
	}
	p.idle(d)
	close(done)
	copying.Wait()
	_ = d.Process.Signal(syscall.SIGTERM)
	d.wait()
	for _, c := range readTrace(p.t, log) {
		if c.succeeded() && slices.ContainsFunc(c.args, func(a string) bool { return strings.Contains(a, r.dir) }) {
			r.calls = append(r.calls, c)
		}
	}
	return r
}

// idle waits until nothing is in the private directory.
func (p *killWorld) idle(d *daemonProcess) {
	p.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
		gen, err := os.ReadDir(filepath.Join(p.dir, "root/.instantmirror/gen"))
		if err != nil {
			p.t.Fatal(err)
		}
		if partials, others := p.tmp(); len(partials)+len(others)+len(gen) == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("it does not come to rest:\n%s", d.logged())
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// publications fails the test unless each pointer that came out of a bundle came after the other files of the bundle were
// durable under their names, and those after its manifest was.
func (r *traceRecord) publications(t *testing.T) {
	t.Helper()
	gen := filepath.Join(r.dir, ".instantmirror/gen")
	pointers, others := 0, 0
	for i, c := range r.calls {
		if !strings.HasPrefix(c.name, "rename") || filepath.Dir(filepath.Dir(c.at(0))) != gen {
			continue
		}
		bundle := filepath.Dir(c.at(0))
		sealed := slices.IndexFunc(r.calls[:i], func(s *sysCall) bool {
			return strings.HasPrefix(s.name, "rename") && s.at(2) == bundle+".json" && r.synced(gen, s.end, c.begin) != nil
		})
		if sealed < 0 {
			t.Errorf("the manifest of %s was not durable before\n%v", bundle, c)
		}
		if filepath.Base(c.at(2)) != "repomd.xml" {
			others++
			continue
		}
		pointers++
		for _, other := range r.calls {
			if strings.HasPrefix(other.name, "rename") && filepath.Dir(other.at(0)) == bundle && other != c {
				if other.end > c.begin || r.synced(filepath.Dir(other.at(2)), other.end, c.begin) == nil {
					t.Errorf("%s came before this was durable:\n%v", c.at(2), other)
				}
			}
		}
	}
	if pointers < 2 || others < 6 {
		t.Errorf("only %d pointers and %d other files came out of bundles", pointers, others)
	}
}

// lost makes what power loss at a line of the record leaves, starts a daemon on it, and looks at what clients find. behind
// says that the index is as it was before the push; else it is lost.
func (p *killWorld) lost(r *pushRecord, at int, l powerLoss, behind bool) {
	p.t.Helper()
	when := fmt.Sprintf("line %d: %s", at, l.name)
	p.dir = p.t.TempDir()
	p.configure()
	if err := os.MkdirAll(filepath.Join(p.dir, "root"), 0o755); err != nil {
		p.t.Fatal(err)
	}
	r.replay(at, nil).each(l, func(rel string, n *diskNode) { p.make(r.traceRecord, l, rel, n) })
	if behind {
		when += "; the index is behind"
		state := filepath.Join(p.dir, "state")
		if err := errors.Join(os.MkdirAll(state, 0o755), os.WriteFile(filepath.Join(state, "index.db"), r.before, 0o644)); err != nil {
			p.t.Fatal(err)
		}
	}
	rebuilt := !behind
	for _, repo := range p.repos {
		repo.seen = 0
		pointer, err := os.ReadFile(filepath.Join(p.dir, "root/pub/one", repo.name, killPointer))
		rebuilt = rebuilt || err == nil && !bytes.Equal(pointer, repo.gens[0][killPointer].Body)
	}
	sealed, err := filepath.Glob(filepath.Join(p.dir, "root/.instantmirror/gen/*.json"))
	rebuilt = rebuilt || len(sealed) > 0 || err != nil
	p.walk(when)
	p.recovered(when, rebuilt)
	if !l.sizes { // else what is left of downloads is wrong, and the first transfers of them break off
		p.upToDate(when)
	}
	if p.t.Failed() {
		p.t.Logf("%s", when)
	}
}
