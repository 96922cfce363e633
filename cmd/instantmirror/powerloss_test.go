package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// crashDisk is what a record of system calls makes of an empty root: what the processes see, and what power loss leaves of
// it. POSIX promises no more of the latter than what was fsynced: the bytes of a file by an fsync of the file, its name
// by an fsync of its directory, each complete before the lights go out.
type crashDisk struct {
	root *diskNode
	dir  string // of the root

	syncing map[*sysCall]func() // what an fsync under way makes durable
}

// diskNode is a file or directory.
type diskNode struct {
	dir       bool
	names     map[string]*diskNode // of a directory
	safeNames map[string]*diskNode // that power loss leaves
	size      int
	safeSize  int
	stamped   bool // it has upstream's time
	safeStamp bool
	mode      os.FileMode
	safeMode  os.FileMode

	born  *sysCall // by which a file was begun
	mtime int64    // that it was given, Unix seconds
}

func newDir() *diskNode {
	return &diskNode{dir: true, names: map[string]*diskNode{}, safeNames: map[string]*diskNode{}}
}

// find gives what stands at an absolute path, nil if nothing does.
func (d *crashDisk) find(path string) *diskNode {
	rel, err := filepath.Rel(d.dir, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return nil
	}
	n := d.root
	if rel == "." {
		return n
	}
	for name := range strings.SplitSeq(rel, "/") {
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[name]
	}
	return n
}

// stampOf finds the modification time in the arguments of utimensat: the last one.
var stampOf = regexp.MustCompile(`.*tv_sec=(\d+)`)

// begin notes that a call has begun: an fsync is about what is there now.
func (d *crashDisk) begin(c *sysCall) {
	if c.name != "fsync" && c.name != "fdatasync" {
		return
	}
	n := d.find(c.fd(0))
	if n == nil {
		return
	}
	names, size, stamped, mode := maps.Clone(n.names), n.size, n.stamped, n.mode
	d.syncing[c] = func() { n.safeNames, n.safeSize, n.safeStamp, n.safeMode = names, size, stamped, mode }
}

// end applies a call that has ended well.
func (d *crashDisk) end(c *sysCall) {
	enter := func(path string, n *diskNode) {
		if dir := d.find(filepath.Dir(path)); dir != nil {
			dir.names[filepath.Base(path)] = n
		}
	}
	leave := func(path string) {
		if dir := d.find(filepath.Dir(path)); dir != nil {
			delete(dir.names, filepath.Base(path))
		}
	}
	switch {
	case c.name == "fsync", c.name == "fdatasync":
		if f := d.syncing[c]; f != nil {
			f()
			delete(d.syncing, c)
		}
	case c.name == "openat" && strings.Contains(c.args[2], "O_CREAT"):
		n := d.find(c.at(0))
		if n == nil {
			n = &diskNode{mode: 0o600, born: c}
			enter(c.at(0), n)
		}
		if strings.Contains(c.args[2], "O_TRUNC") {
			n.size = 0
		}
	case c.name == "write":
		if n := d.find(c.fd(0)); n != nil {
			n.size += c.ret
		}
	case c.name == "ftruncate":
		if n := d.find(c.fd(0)); n != nil {
			fmt.Sscan(c.args[1], &n.size)
			n.safeSize = min(n.safeSize, n.size) // what is cut off may be lost at once
		}
	case c.name == "fchmod":
		if n := d.find(c.fd(0)); n != nil {
			var mode uint32
			fmt.Sscanf(c.args[1], "%o", &mode)
			n.mode = os.FileMode(mode)
		}
	case c.name == "utimensat":
		if n := d.find(c.at(0)); n != nil {
			n.stamped = true
			if m := stampOf.FindStringSubmatch(strings.Join(c.args, " ")); m != nil {
				fmt.Sscan(m[1], &n.mtime)
			}
		}
	case c.name == "mkdirat":
		if c.at(0) != d.dir {
			enter(c.at(0), newDir())
		}
	case strings.HasPrefix(c.name, "rename"):
		n := d.find(c.at(0))
		leave(c.at(0))
		enter(c.at(2), n)
	case strings.HasPrefix(c.name, "unlink"):
		leave(c.at(0))
	}
}

// powerLoss is which power loss it is.
type powerLoss struct {
	name  string
	names bool // directories hold what they held, synced or not
	sizes bool // files have the length that they had, with zeros where the bytes were not synced
}

var powerLosses = []powerLoss{
	{"all that was not synced is gone", false, false},
	{"names are kept, bytes are gone", true, false},
	{"names and lengths are kept, bytes are zeros", true, true},
}

// each calls f for all that power loss leaves, parents first.
func (d *crashDisk) each(l powerLoss, f func(rel string, n *diskNode)) {
	var walk func(rel string, n *diskNode)
	walk = func(rel string, n *diskNode) {
		if rel != "." {
			f(rel, n)
		}
		names := n.safeNames
		if l.names {
			names = n.names
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			walk(filepath.Join(rel, name), names[name])
		}
	}
	walk(".", d.root)
}

// traceRecord is a run of a daemon, as strace saw it.
type traceRecord struct {
	calls []*sysCall // those on the root that took effect
	dir   string     // the root
	fates map[*sysCall]fate
	kept  map[string][]byte // private files that are gone at its end
}

// fate is where a file came to stand, and how many stood there before it.
type fate struct {
	path string
	nth  int
}

// replay makes the disk as it was at each moment up to the line last of the record, and calls after, if it is not nil,
// when it has changed.
func (r *traceRecord) replay(last int, after func(at int, d *crashDisk)) *crashDisk {
	type event struct {
		at    int
		begin bool
		c     *sysCall
	}
	var events []event
	for _, c := range r.calls {
		events = append(events, event{c.begin, true, c}, event{c.end, false, c})
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at - b.at })
	d := &crashDisk{root: newDir(), dir: r.dir, syncing: map[*sysCall]func(){}}
	commits := map[string]int{}
	for _, e := range events {
		if e.at > last {
			break
		}
		if e.begin {
			d.begin(e.c)
			continue
		}
		if strings.HasPrefix(e.c.name, "rename") {
			if n, to := d.find(e.c.at(0)), e.c.at(2); n != nil && last == math.MaxInt {
				r.fates[n.born] = fate{to, commits[to]}
				commits[to]++
			}
		}
		d.end(e.c)
		if after != nil && e.c.name != "write" && e.c.name != "openat" {
			after(e.at, d)
		}
	}
	return d
}

// TestPowerLoss records the system calls of a daemon under load, and looks at what power loss could have left at any
// moment: no file of the tree is ever short, and a daemon that starts on what is left mends it.
func TestPowerLoss(t *testing.T) {
	needStrace(t)
	w := newCrashWorld(t)
	r, paths := w.record()
	r.order(t, len(w.truth))
	moments := 0
	r.replay(math.MaxInt, func(at int, d *crashDisk) {
		moments++
		for _, l := range powerLosses {
			d.each(l, func(rel string, n *diskNode) { w.survives(r, fmt.Sprintf("%s after line %d", l.name, at), rel, n) })
		}
	})
	t.Logf("%d calls, %d moments", len(r.calls), moments)

	// Now for the daemon. The moments are those inside of commits.
	var lines []int
	for _, c := range r.calls {
		if c.name == "fsync" || strings.HasPrefix(c.name, "rename") || c.name == "mkdirat" {
			lines = append(lines, c.begin, c.end)
		}
	}
	w.rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	n := 12
	switch {
	case os.Getenv("INSTANTMIRROR_SOAK") != "":
		n = 150
	case testing.Short():
		n = 3
	}
	index, err := os.ReadFile(filepath.Join(w.dir, "state/index.db"))
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range lines[:min(n, len(lines))] {
		if t.Failed() {
			return
		}
		l := powerLosses[i%len(powerLosses)]
		when := fmt.Sprintf("line %d: %s", at, l.name)
		w.dir = t.TempDir()
		w.configure()
		if err := os.MkdirAll(filepath.Join(w.dir, "root"), 0o755); err != nil {
			t.Fatal(err)
		}
		r.replay(at, nil).each(l, func(rel string, n *diskNode) { w.make(r, l, rel, n) })
		if i%2 == 1 { // another file system, which lost less
			when += "; the index is ahead"
			if err := os.MkdirAll(filepath.Join(w.dir, "state"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(w.dir, "state/index.db"), index, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w.walk(when)
		w.spoiled = l.sizes
		w.mended(when, paths, nil)
	}
}

// record runs a daemon under load from its first start to its stop.
func (w *crashWorld) record() (*traceRecord, []string) {
	w.t.Helper()
	paths := w.stage("a")
	d := w.daemon()
	log := d.traced("-e", fileCalls, "-e", "abbrev=!utimensat", "--seccomp-bpf")
	d.begin()
	w.load(d.url, paths)()
	w.settle("the record")
	// Something that stands is replaced.
	live := strings.TrimPrefix(paths[len(paths)-1], "pub/one/")
	w.put(live, mirrortest.File{Body: mirrortest.Bytes(99, 70_000), ModTime: mirrortest.Epoch.Add(time.Hour)})
	<-time.After(1100 * time.Millisecond)
	if _, body, _ := d.get("/pub/one/" + live); body != string(w.newest("pub/one/"+live)) {
		w.t.Errorf("%s was not replaced", live)
	}
	w.settle("the record")
	_ = d.Process.Signal(syscall.SIGTERM)
	d.wait()
	r := &traceRecord{dir: filepath.Join(w.dir, "root"), fates: map[*sysCall]fate{}}
	for _, c := range readTrace(w.t, log) {
		about := slices.ContainsFunc(c.args, func(a string) bool { return strings.Contains(a, r.dir) })
		if about && c.succeeded() {
			r.calls = append(r.calls, c)
		}
	}
	for _, c := range r.calls {
		switch c.name {
		case "openat", "write", "ftruncate", "fsync", "mkdirat", "renameat", "unlinkat", "fchmod", "fchmodat", "utimensat":
		default:
			w.t.Errorf("what does %v do? Teach it to disk.end", c)
		}
	}
	return r, paths
}

// order fails the test unless each file that appears in the tree, want at least, came there by the protocol of
// store/durable.go: last write, mode and time, then fsync of the file, then the directories that are missing, each with an
// fsync of its parent, then rename, then fsync of the directory.
func (r *traceRecord) order(t *testing.T, want int) {
	t.Helper()
	committed := 0
	for i, mv := range r.calls {
		if !strings.HasPrefix(mv.name, "rename") || strings.HasPrefix(mv.at(2), filepath.Join(r.dir, ".instantmirror")) {
			continue
		}
		committed++
		from, to := mv.at(0), mv.at(2)
		// The file in tmp, as it was since it was begun.
		var synced *sysCall
		for _, c := range slices.Backward(r.calls[:i]) {
			var what string
			switch c.name {
			case "write", "ftruncate", "fsync", "fchmod":
				what = c.fd(0)
			case "utimensat", "openat":
				what = c.at(0)
			}
			if strings.HasPrefix(c.name, "rename") && c.at(2) == from { // into a bundle
				from = c.at(0)
			}
			if what != from {
				continue
			}
			if c.name == "openat" && strings.Contains(c.args[2], "O_CREAT") {
				break
			}
			switch {
			case c.name == "fsync" && synced == nil:
				if synced = c; c.end >= mv.begin {
					t.Errorf("%s: its fsync ended after it had been moved:\n%v\n%v", to, c, mv)
				}
			case c.name == "openat":
			case synced == nil:
				t.Errorf("%s: not synced after\n%v", to, c)
			case c.end >= synced.begin:
				t.Errorf("%s: its fsync began before\n%v", to, c)
			}
		}
		if synced == nil {
			t.Errorf("%s: never synced", to)
		}
		if r.synced(filepath.Dir(to), mv.end, 1<<30) == nil {
			t.Errorf("%s: its directory was not synced after\n%v", to, mv)
		}
		for dir := filepath.Dir(to); dir != r.dir; dir = filepath.Dir(dir) {
			for _, mk := range r.calls {
				if mk.name == "mkdirat" && mk.at(0) == dir && r.synced(filepath.Dir(dir), mk.end, mv.begin) == nil {
					t.Errorf("%s was moved to its directory before %s was durable in its parent:\n%v\n%v", to, dir, mk, mv)
				}
			}
		}
	}
	if committed < want {
		t.Errorf("only %d files were moved to the tree, not %d", committed, want)
	}
	for _, c := range r.calls {
		if c.name == "openat" && strings.Contains(c.args[2], "O_CREAT") && !strings.HasPrefix(c.at(0), filepath.Join(r.dir, ".instantmirror")) {
			t.Errorf("a file was begun in the tree: %v", c)
		}
	}
}

// synced is an fsync of the directory that began after the line from and ended before to, or nil.
func (r *traceRecord) synced(dir string, from, to int) *sysCall {
	for _, c := range r.calls {
		if c.name == "fsync" && c.fd(0) == dir && c.begin > from && c.end < to {
			return c
		}
	}
	return nil
}

// whole is what a file was to become, if that is known.
func (w *crashWorld) whole(r *traceRecord, n *diskNode) (c fileContent, ok bool) {
	f, ok := r.fates[n.born]
	if !ok {
		return fileContent{}, false
	}
	rel, _ := filepath.Rel(r.dir, f.path)
	all := w.truth[rel]
	if f.nth < len(all) && all[f.nth].mtime.Unix() == n.mtime {
		return all[f.nth], true
	}
	for _, c := range slices.Backward(all) { // one that was had more than once
		if c.mtime.Unix() == n.mtime && len(c.body) == n.size {
			return c, true
		}
	}
	if body, ok := r.kept[f.path]; ok {
		return fileContent{body: body}, true
	}
	body, err := os.ReadFile(f.path) // not of the tree
	return fileContent{body: body}, err == nil
}

// survives fails the test unless what power loss leaves at rel is whole, if it is in the tree.
func (w *crashWorld) survives(r *traceRecord, when, rel string, n *diskNode) {
	if n.dir || strings.HasPrefix(rel, ".instantmirror") {
		return
	}
	if c, _ := w.whole(r, n); n.safeSize != len(c.body) || !n.safeStamp || n.safeMode != 0o644 {
		w.t.Errorf("%s: %s has %d of %d bytes, its time %v, its mode %v", when, rel, n.safeSize, len(c.body), n.safeStamp, n.safeMode)
	}
}

// make makes what power loss leaves at rel.
func (w *crashWorld) make(r *traceRecord, l powerLoss, rel string, n *diskNode) {
	w.t.Helper()
	to := filepath.Join(w.dir, "root", rel)
	mode := os.FileMode(0o755)
	if strings.HasPrefix(rel, ".instantmirror") {
		mode = 0o700
	}
	if n.dir {
		if err := os.MkdirAll(to, mode); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	c, ok := w.whole(r, n)
	if !ok {
		c.body, _ = os.ReadFile(filepath.Join(r.dir, rel)) // the lock
	}
	body := slices.Clone(c.body[:min(n.safeSize, len(c.body))])
	if l.sizes && n.size > len(body) {
		body = append(body, make([]byte, n.size-len(body))...)
	}
	err := os.MkdirAll(filepath.Dir(to), mode)
	if err == nil {
		err = os.WriteFile(to, body, max(n.safeMode, 0o600))
	}
	if err == nil && n.safeStamp {
		err = os.Chtimes(to, c.mtime, c.mtime)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
