package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// hourly is the rule by which the mirror looks only when it is told to.
const hourly = "expiry: [{match: '**', refresh: 1h}]"

// TestPush: upstream's repository changes, and dnf, with and without metadata of before, finds what it should.
func TestPush(t *testing.T) {
	needDNF(t, "gpg", "gpgconf")
	rpms := buildPushed(t)
	for name, test := range map[string]func(*testing.T, map[string]string){
		"emptied": testPushEmptied, "fallback behind": testPushFallback, "signed": testPushSigned, "grace": testPushGrace, "under way": testPushUnderWay,
	} {
		t.Run(name, func(t *testing.T) { test(t, rpms) })
	}
	for _, test := range []struct {
		naming, step string
		flags        []string
		test         func(*testing.T, *pushWorld)
	}{
		{"unique names", "added", nil, testPushAdded},
		{"unique names", "removed", nil, testPushRemoved},
		{"unique names", "rebuilt", nil, testPushRebuilt},
		{"unique names", "rolled back", nil, testPushRolledBack},
		{"fixed names", "added", fixedNames, testPushAdded},
		{"fixed names", "removed", fixedNames, testPushRemoved},
		{"fixed names", "rebuilt", fixedNames, testPushRebuilt},
		{"constant revision", "rebuilt", streamRevision, testPushRebuilt},
		{"constant revision", "rolled back", streamRevision, testPushRolledBack},
	} {
		t.Run(test.step+" with "+test.naming, func(t *testing.T) {
			w := newPushWorld(t, rpms, hourly, test.flags...)
			test.test(t, w)
			w.sound()
		})
	}
}

// What createrepo_c is told otherwise than by default.
var (
	fixedNames     = []string{"--simple-md-filenames"}
	streamRevision = []string{"--revision", "9-stream"} // as CentOS Stream's always is
)

func testPushAdded(t *testing.T, w *pushWorld) {
	w.push(hello1)
	old := w.newMachine(t)
	old.dnf("install", "hello")
	w.refresh("unchanged")
	w.absent(world1) // and is remembered to be, but not longer than until a generation names it

	w.up.Reset()
	w.pushed(hello1, world1, hello2)
	old.sees(hello1) // its metadata are of before
	old.dnf("reinstall", "hello")
	old.refreshed(hello1, hello2, world1)
	old.dnf("upgrade")
	old.has(hello2)
	fresh := w.newMachine(t)
	fresh.sees(hello1, hello2, world1)
	fresh.dnf("install", "hello-1", "world")
	fresh.has(hello1, world1)
	w.fetchedOnly(hello2, world1)
	w.holds(hello1, hello2, world1)
}

func testPushRemoved(t *testing.T, w *pushWorld) {
	w.push(hello1, world1, extra1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")

	w.up.Reset()
	w.pushed(hello1, hello2)
	fresh := w.newMachine(t)
	fresh.sees(hello1, hello2)
	fresh.refused("No match", "install", "world")
	old.sees(hello1, world1, extra1)
	old.dnf("install", "world", "hello")
	old.has(world1, hello1)
	old.refused("extra-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "extra") // nobody here ever had it
	old.refreshed(hello1, hello2)
	old.dnf("upgrade")
	old.has(hello2, world1)
	for _, rpm := range []string{hello1, world1} {
		if n := w.up.Count("x/os/Packages/" + filepath.Base(w.rpms[rpm])); n != 0 {
			t.Errorf("%s was asked for %d times", rpm, n)
		}
	}
	w.holds(hello1, hello2, world1)
}

func testPushRebuilt(t *testing.T, w *pushWorld) {
	w.push(hello1, world1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")
	before, err := os.Stat(w.place(world1))
	if err != nil {
		t.Fatal(err)
	}

	w.up.Reset()
	w.pushed(hello1Again, world1)
	w.holds(world1) // what has other bytes now is gone at once
	old.dnf("install", "world")
	old.has(world1)
	// There is no hello any more that its metadata mean, and none it may take for it.
	old.refused("hello-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "hello")
	old.dnf("--refresh", "install", "hello")
	old.has(hello1Again)
	fresh := w.newMachine(t)
	fresh.dnf("install", "hello", "world")
	fresh.has(hello1Again, world1)
	w.fetchedOnly(hello1Again)
	w.holds(hello1Again, world1)
	if after, err := os.Stat(w.place(world1)); err != nil || !os.SameFile(before, after) {
		t.Errorf("what did not change was touched: %v", err)
	}
}

func testPushRolledBack(t *testing.T, w *pushWorld) {
	first := w.push(hello1, world1)
	old := w.newMachine(t)
	old.dnf("install", "hello")
	w.refresh("unchanged")
	second := w.pushed(hello2, world1)

	w.put(first)
	w.refresh("refused")
	w.serves(second)
	old.refreshed(hello2, world1)
	w.newMachine(t).sees(hello2, world1)
	old.dnf("install", "world") // upstream has it, be it of another generation
	old.has(world1)
	old.refused("hello-2-1.fc99.noarch.rpm", "--setopt=retries=1", "upgrade") // upstream has it no more
	old.has(hello1)

	w.pushed(hello1Again, hello2)
	old.refreshed(hello1, hello2)
	old.dnf("upgrade")
	old.has(hello2)
	w.put(first)
	w.refresh("refused")
	w.refresh("published", "--force")
	w.serves(first)
	old.refreshed(hello1, world1)
}

// testPushEmptied: a push that empties the repository deletes nothing until it is confirmed.
func testPushEmptied(t *testing.T, _ map[string]string) {
	const many = 60
	rpms, names, dir := make(map[string]string), []string{}, t.TempDir()
	for i := range many {
		p := mirrortest.Package{Name: fmt.Sprintf("tiny%02d", i)}
		name := p.Name + "-1.0"
		rpms[name], names = filepath.Join(dir, p.FileName()), append(names, name)
		mirrortest.WriteTree(t, dir, map[string]mirrortest.File{p.FileName(): {Body: p.Build().Bytes}})
	}
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1h, grace: 1s}]")
	full := w.push(names...)
	old := w.newMachine(t)
	old.dnf("install", "tiny*")
	w.holds(names...)
	w.refresh("unchanged")

	w.up.Reset()
	empty := w.push()
	if out := w.refresh("published"); !strings.Contains(out, "veto: it would delete 60 of 60 stored files") {
		t.Errorf("no veto: %s", out)
	}
	w.serves(empty)
	old.sees(names...)
	old.dnf("reinstall", "tiny07")
	old.refreshed()
	w.newMachine(t).sees()
	w.holds(names...)
	// It was a mistake.
	again := w.push(names...)
	if out := w.refresh("published"); strings.Contains(out, "veto") {
		t.Errorf("the veto outlives its reason: %s", out)
	}
	w.serves(again)
	fresh := w.newMachine(t)
	fresh.dnf("install", "tiny*")
	old.refreshed(names...)
	w.fetchedOnly()

	// It is meant.
	w.put(full)
	w.refresh("refused")
	w.createrepo(empty)
	w.put(empty)
	w.refresh("published")
	w.holds(names...)
	w.refresh("unchanged", "--force")
	w.gone(names...)
	w.holds()
	w.newMachine(t).sees()
	w.sound()
}

// testPushGrace: what vanished goes when its grace has ended, and only that; until then an archive is asked for it, too.
func testPushGrace(t *testing.T, rpms map[string]string) {
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1h, grace: 2h}]\narchives: [%s/wrong, %s/old]")
	first := w.push(hello1, world1, extra1)
	w.newMachine(t).dnf("install", "hello", "world")
	old := w.newMachine(t)
	old.dnf("makecache")
	w.refresh("unchanged")
	w.up.PutDir("old/os", first)
	w.up.Put("wrong/os/Packages/"+filepath.Base(rpms[extra1]), []byte("what extra-1 never was"))
	w.pushed(hello1)
	old.dnf("install", "extra") // neither here nor upstream; what it was is known
	old.has(extra1)
	w.holds(hello1, world1, extra1)
	w.stop()

	// The grace is another one now, for what leaves from now on.
	profileFile(t, w.dir, "one", profileText("one", w.up.URL+"/x", "expiry: [{match: '**', refresh: 1h, grace: 1s}]"))
	w.daemonProcess = serve(t, w.dir)
	w.pushed(hello2)
	w.gone(hello1)
	w.holds(world1, extra1)
	fresh := w.newMachine(t)
	fresh.sees(hello2)
	fresh.dnf("install", "hello")
	fresh.has(hello2)
	w.sound()
}

// testPushFallback: upstream is down, and the fallback is a generation behind: nothing of that is mixed in.
func testPushFallback(t *testing.T, rpms map[string]string) {
	fallback := mirrortest.NewUpstream(t)
	w := newPushWorld(t, rpms, hourly+"\nfallbacks: ["+fallback.URL+"/f]")
	first := w.generation(hello1, world1)
	fallback.PutDir("f/os", first)
	// At first the fallback is all there is.
	w.up.Stop()
	old := w.newMachine(t)
	old.dnf("install", "hello")
	old.has(hello1)
	w.put(first)
	w.back()
	w.refresh("unchanged")
	second := w.pushed(hello1Again, world1, extra1)
	w.holds()
	w.newMachine(t).dnf("install", "extra")

	w.up.Stop()
	w.refresh("refused")
	w.serves(second)
	old.refreshed(hello1, world1, extra1)
	fresh := w.newMachine(t)
	fresh.dnf("install", "extra", "world") // the fallback's world is the right one
	fresh.has(extra1, world1)
	fresh.refused("hello-1-1.fc99.noarch.rpm", "--setopt=retries=1", "install", "hello") // its hello is not
	w.holds(extra1, world1)
	w.serves(second)
	w.stop()
	w.daemonProcess = serve(t, w.dir)
	w.refresh("refused")
	w.serves(second)
	w.newMachine(t).sees(hello1, world1, extra1)

	w.back()
	last := w.newMachine(t)
	last.dnf("install", "hello")
	last.has(hello1Again)
	w.refresh("unchanged")
	w.sound()
}

// testPushSigned: a client that checks the signature of repomd.xml lives through pushes, whether the mirror checks it or not.
func testPushSigned(t *testing.T, rpms map[string]string) {
	public, sign := gpgKey(t)
	_, other := gpgKey(t)
	for name, keys := range map[string]string{"checked here": "\nkeys: [" + public + "]", "not checked here": ""} {
		t.Run(name, func(t *testing.T) {
			w := newPushWorld(t, rpms, hourly+keys)
			w.sign = sign
			check := []string{"repo_gpgcheck=1", "gpgkey=file://" + public}
			w.push(hello1)
			old := w.newMachine(t, check...)
			old.dnf("install", "hello")
			old.has(hello1)
			w.refresh("unchanged")
			for i, push := range [][]string{{hello1, world1}, {hello2}} {
				w.pushed(push...)
				old.refreshed(push...)
				fresh := w.newMachine(t, check...)
				fresh.dnf("install", "hello")
				fresh.has(push[0])
				if i == 1 {
					old.dnf("upgrade")
					old.has(hello2)
				}
			}
			if keys == "" {
				w.sound()
				return
			}
			// Somebody else's signature, and none at all.
			good := w.generation(hello2)
			w.refresh("unchanged")
			served, err := os.ReadFile(filepath.Join(w.root(), pushPath, "repodata/repomd.xml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []func(string){other, nil} {
				w.sign = bad
				w.push(hello1, extra1)
				w.refresh("refused")
				if _, now, _ := w.get(pushPath + "/repodata/repomd.xml"); now != string(served) {
					t.Error("an unsigned repomd.xml was published")
				}
				old.refreshed(hello2)
				w.newMachine(t, check...).sees(hello2)
			}
			w.put(good)
			w.refresh("published")
			w.serves(good)
			old.refreshed(hello2)
			w.sound()
		})
	}
}

// testPushUnderWay: dnf runs again and again while upstream is pushed. None may fail.
func testPushUnderWay(t *testing.T, built map[string]string) {
	pushes := 10
	if os.Getenv("INSTANTMIRROR_SOAK") != "" {
		pushes = 200
	}
	rpms, dir := map[string]string{hello1: built[hello1], world1: built[world1]}, t.TempDir()
	version := func(i int) string { return fmt.Sprintf("churn-%d", i) }
	for i := range pushes + 1 {
		p := mirrortest.Package{Name: "churn", Version: fmt.Sprint(i), Size: 20_000, Seed: uint64(i)}
		rpms[version(i)] = filepath.Join(dir, p.FileName())
		mirrortest.WriteTree(t, dir, map[string]mirrortest.File{p.FileName(): {Body: p.Build().Bytes}})
	}
	w := newPushWorld(t, rpms, "expiry: [{match: '**', refresh: 1s}]")
	// Masters keep packages a little longer than the metadata that name them.
	w.up.PutDir("x/os/Packages", dir)
	w.push(hello1, world1, version(0))
	old := w.newMachine(t)
	old.dnf("install", "churn")
	w.refresh("unchanged")

	last := ""
	ran, stop := make(chan struct{}), make(chan struct{})
	var loops sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		loops.Wait()
	})
	defer end()
	loop := func(run func()) {
		loops.Go(func() {
			for {
				run()
				select {
				case ran <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	loop(func() {
		m := w.newMachine(t)
		m.dnf("install", "churn", "hello")
		m.has(hello1)
	})
	loop(func() { old.dnf("--refresh", "upgrade", "churn") })
	for i := range pushes {
		<-ran
		if last = w.push(hello1, version(i), version(i+1)); i%2 == 0 {
			w.refresh("") // published, by this look or another one
			w.serves(last)
		}
	}
	<-ran
	end()
	w.refresh("")
	w.serves(last)
	old.refreshed(hello1, version(pushes-1), version(pushes))
	w.newMachine(t).sees(hello1, version(pushes-1), version(pushes))
	w.sound()
}
