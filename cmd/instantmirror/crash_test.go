package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// killAt is how a round ends.
type killAt struct {
	call string // the system call at whose beginning the daemon dies; "": at a random time
	from int    // which one at the earliest, of those of one thread: the first ones belong to the start
	most int    // one of that many
	free bool   // the daemon is not traced
}

// killRounds are the ends of rounds, by turns.
var killRounds = []killAt{
	{call: "fsync", from: 4, most: 5}, {}, {call: "/^renameat", from: 2, most: 4}, {free: true},
	{call: "fsync", from: 5, most: 8}, {}, {call: "mkdirat", from: 5, most: 3}, {free: true},
	{call: "/^renameat", from: 2, most: 8}, {}, {call: "fdatasync", from: 5, most: 8}, {free: true},
	{call: "fsync", from: 4, most: 3}, {},
}

// TestKill: SIGKILL at any moment under load costs at most the work in flight. INSTANTMIRROR_SOAK=1 makes 200 rounds.
func TestKill(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // the mirror is readable whatever it is
	rounds := 30
	switch {
	case os.Getenv("INSTANTMIRROR_SOAK") != "":
		rounds = 200
	case testing.Short():
		rounds = 6
	}
	traced := false // else all die at random times, and nobody counts
	t.Run("strace", func(t *testing.T) {
		needStrace(t)
		traced = true
	})
	w := newCrashWorld(t)
	inside, resumed := 0, 0
	for i := range rounds {
		if t.Failed() {
			break
		}
		if i%7 == 0 {
			w.fresh()
			d := w.daemon() // makes what only the first start makes
			d.begin()
			d.stop()
		}
		k := killRounds[i%len(killRounds)]
		if !traced {
			k = killAt{free: true}
		}
		in, kept := w.round(i, k)
		resumed += kept
		if in {
			inside++
		}
	}
	t.Logf("%d rounds, %d of them were killed inside a commit; %d downloads were taken up again", rounds, inside, resumed)
	if !t.Failed() && traced && 4*inside < rounds {
		t.Errorf("only %d of %d kills were inside a commit", inside, rounds)
	}
	if !t.Failed() && rounds >= 30 && resumed == 0 {
		t.Error("no kill left a download that could be taken up again")
	}
}

// round is one life and death of a daemon. It tells whether that was inside a commit, and how many downloads were
// taken up again afterwards.
func (w *crashWorld) round(i int, k killAt) (inside bool, resumed int) {
	w.t.Helper()
	paths := w.stage(fmt.Sprintf("round-%d", i))
	w.up.SetRate(3 << 20)
	d := w.daemon()
	const calls = "trace=fsync,fdatasync,mkdirat,/^renameat,unlinkat"
	when, log, limit := fmt.Sprintf("round %d, at a random time", i), "", 20*time.Second
	switch {
	case k.call != "":
		n := k.from + w.rng.IntN(k.most)
		when = fmt.Sprintf("round %d, at %s number %d", i, k.call, n)
		log = d.traced("-e", calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", k.call, n))
	case !k.free:
		log = d.traced("-e", calls, "--seccomp-bpf")
	}
	if k.call == "" {
		limit = time.Duration(w.rng.Int64N(int64(500 * time.Millisecond)))
	}
	d.begin()
	wait := w.load(d.url, paths)
	ended := make(chan struct{})
	go func() {
		wait()
		close(ended)
	}()
	select {
	case <-ended: // it is dead, or died of nothing: the end of the load is as good a moment as any
	case <-time.After(limit):
	}
	_ = d.Process.Kill()
	d.dead()
	<-ended
	if log != "" {
		inside = insideCommit(readTrace(w.t, log), filepath.Join(w.dir, "root"))
	}
	w.up.SetRate(0)
	w.walk(when)
	kept := w.partials(paths)
	w.mended(when, paths, kept)
	if w.t.Failed() {
		w.t.Logf("%s; inside a commit: %v", when, inside)
	}
	return inside, len(kept)
}

// TestKillAtStart: a daemon that dies while it makes its root and state leaves nothing that the next one stumbles over.
func TestKillAtStart(t *testing.T) {
	needStrace(t)
	w := newCrashWorld(t)
	paths := w.stage("a")[:3]
	died := 0
	for _, test := range []struct {
		file, call string // on which file, "" on any
		n          int
	}{
		{"", "mkdirat", 1}, {"", "mkdirat", 2}, {"", "mkdirat", 3},
		{"root/.instantmirror/lock", "ftruncate", 1}, {"root/.instantmirror/lock", "write", 1},
		{"root/.instantmirror/format", "write", 1}, {"root/.instantmirror/tmp/format", "write", 1},
		{"state/index.db", "pwrite64", 1}, {"state/index.db", "fdatasync", 1}, {"state/index.db", "ftruncate", 1},
		{"state/index.db", "pwrite64", 2}, {"state/index.db", "fdatasync", 2},
		{"", "fsync", 1}, {"", "fsync", 2}, {"", "renameat", 1},
	} {
		t.Run(fmt.Sprintf("%s %s %d", path.Base(test.file), test.call, test.n), func(t *testing.T) {
			dir := t.TempDir()
			profileFile(t, dir, "one", profileText("one", w.up.URL+"/x", ""))
			configFile(t, dir, "")
			d := newDaemon(t, dir)
			options := []string{"-e", "trace=" + test.call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", test.call, test.n)}
			if test.file != "" {
				options = append(options, "-P", filepath.Join(dir, test.file))
			}
			d.traced(options...)
			// It dies by itself, unless there is no such call: then it is told to stop, once it serves.
			out, err := d.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Start(); err != nil {
				t.Fatal(err)
			}
			limit := time.AfterFunc(20*time.Second, func() { _ = d.Process.Kill() })
			served := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.Contains(lines.Text(), "msg=serving") {
					served = true
					_ = d.Process.Signal(syscall.SIGTERM)
				}
			}
			_ = d.Wait()
			if !limit.Stop() {
				t.Error("it neither served nor died")
			}
			if !served {
				died++
			}
			next := newDaemon(t, dir)
			next.begin()
			for _, p := range paths {
				if err := w.ask(t.Context(), next.url, p, 0, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	if died < 5 {
		t.Errorf("only %d daemons died", died)
	}
}

// TestIndexLost: who comes first after the index was lost is not served unverified while it is learned anew from the tree.
func TestIndexLost(t *testing.T) {
	w := newCrashWorld(t)
	paths := w.stage("a")
	d := w.daemon()
	d.begin()
	for _, p := range paths[:2] { // repomd.xml and primary
		if err := w.ask(t.Context(), d.url, p, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.settle("before")
	_ = d.Process.Kill()
	d.dead()
	if err := os.RemoveAll(filepath.Join(w.dir, "state")); err != nil {
		t.Fatal(err)
	}
	// Packages are other ones now, of the same length. The truth stays what metadata say.
	for rel, f := range w.repo {
		if strings.HasSuffix(rel, ".rpm") {
			wrong := bytes.Clone(f.Body)
			wrong[len(wrong)/2] ^= 1
			w.up.PutFile("x/a/"+rel, mirrortest.File{Body: wrong, ModTime: f.ModTime})
		}
	}
	d = w.daemon()
	d.begin()
	w.spoiled = true // transfers break off, but none may end well
	var clients sync.WaitGroup
	for _, p := range paths {
		if strings.HasSuffix(p, ".rpm") {
			clients.Go(func() {
				if err := w.ask(t.Context(), d.url, p, 0, 0); err == nil {
					t.Errorf("%s: wrong bytes came as a whole file", p)
				}
			})
		}
	}
	clients.Wait()
	d.stopIdle()
	w.walk("after the restart")
}
