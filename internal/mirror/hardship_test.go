package mirror

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const treeinfo = "/pub/test/43/os/.treeinfo"

// TestFullDiskIsNoReasonToForget: without room, what is stored is still checked conditionally and served stale, and
// what is absent is remembered.
func TestFullDiskIsNoReasonToForget(t *testing.T) {
	w := newWorld(t)
	w.put(treeinfo, "one", 1000)
	w.want(treeinfo, "one", miss, 1)
	w.store.SetReserve(1 << 60)

	w.age(treeinfo, 2*time.Hour)
	w.want(treeinfo, "one", "instantmirror; fwd=stale; fwd-status=304", 1)

	w.put(treeinfo, "two", 2000)
	w.age(treeinfo, 2*time.Hour)
	if b, s, err := w.get(treeinfo); b != "two" || s != "instantmirror; fwd=stale; detail=no-room" || err != nil {
		t.Errorf("changed: %q, %s, %v", b, s, err)
	}
	w.up.Reset()

	for range 3 {
		if _, _, err := w.get(rpm); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent: %v", err)
		}
	}
	if n := w.up.Count("**"); n != 1 {
		t.Errorf("upstream was asked %d times for what is absent", n)
	}
	w.up.Reset()

	w.up.Remove("up/43/os/.treeinfo")
	w.age(treeinfo, 2*time.Hour)
	if b, s, err := w.get(treeinfo); b != "one" || !strings.HasSuffix(s, "detail=gone-upstream") || err != nil {
		t.Errorf("gone upstream: %q, %s, %v", b, s, err)
	}
	w.up.Stop()
	w.age(treeinfo, 2*time.Hour)
	if b, s, err := w.get(treeinfo); b != "one" || !strings.HasSuffix(s, "detail=stale") || err != nil {
		t.Errorf("upstream stopped: %q, %s, %v", b, s, err)
	}
}

// TestStaleRatherThanBroken: a new version that breaks off does not take the place of the stored one.
func TestStaleRatherThanBroken(t *testing.T) {
	w := newWorld(t)
	w.put(treeinfo, strings.Repeat("one", 100), 1000)
	w.want(treeinfo, strings.Repeat("one", 100), miss, 1)
	w.up.PutFile("up/43/os/.treeinfo", mirrortest.File{Body: []byte(strings.Repeat("two", 100)), ETag: "-"})
	w.up.Fault("**", mirrortest.Fault{Truncate: true, At: 10})
	w.age(treeinfo, 2*time.Hour)
	for range 2 {
		if b, s, err := w.get(treeinfo); b != strings.Repeat("one", 100) || !strings.HasSuffix(s, "detail=stale") || err != nil {
			t.Errorf("got %q, %s, %v", b, s, err)
		}
	}
	if n := w.up.Count("**"); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
}

// TestNotModifiedIsAboutTheOldFile: a 304 says nothing of a file that was put in the place of the one it is about.
func TestNotModifiedIsAboutTheOldFile(t *testing.T) {
	w := newWorld(t)
	w.put(treeinfo, "one", 1000)
	w.want(treeinfo, "one", miss, 1)
	w.age(treeinfo, 2*time.Hour)
	gate := w.up.Hold("**", -1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.get(treeinfo)
	}()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(w.dir, "root", treeinfo)
	if err := os.WriteFile(name+".new", []byte("foreign"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	gate.Release()
	<-done
	w.up.Reset()
	w.get(treeinfo)
	if r := w.up.Requests(); len(r) != 1 || r[0].Header.Get("If-None-Match") != "" {
		t.Errorf("the new file is checked by the old one's ETag:\n%s", w.up.Log())
	}
}

// TestOldFileDoesNotForgetTheNewCheck: a request that still holds the replaced file leaves what is known of the new one.
func TestOldFileDoesNotForgetTheNewCheck(t *testing.T) {
	w := newWorld(t)
	w.put(treeinfo, "one", 1000)
	w.want(treeinfo, "one", miss, 1)
	old, err := w.store.Get(treeinfo[1:])
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	w.put(treeinfo, "three", 2000)
	w.age(treeinfo, 2*time.Hour)
	w.want(treeinfo, "three", "instantmirror; fwd=stale; stored", 1)
	w.lastCheck(treeinfo[1:], old)
	w.want(treeinfo, "three", hit+"; ttl=3599", 0)
}
