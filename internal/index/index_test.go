package index

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

var belief = Belief{
	Size: 7, ModTime: time.Unix(1700000000, 5).UTC(), Origin: "https://dl.example.org", ETag: `"x"`,
	LastModified: time.Unix(1700000000, 0).UTC(), Checked: time.Unix(1800000000, 0).UTC(),
}

func reopen(t *testing.T, dir string) *Index {
	t.Helper()
	x, note, err := Open(dir)
	if err != nil || note != "" {
		t.Fatalf("Open: %q, %v", note, err)
	}
	return x
}

func TestBeliefsOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	x := reopen(t, dir)
	if _, ok := x.Get("pub/x"); ok {
		t.Error("something is believed of what was never put")
	}
	x.Put("pub/x", belief)
	if got, ok := x.Get("pub/x"); !ok || got != belief {
		t.Errorf("before the flush: %+v, %v", got, ok)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = reopen(t, dir)
	defer x.Close()
	if got, ok := x.Get("pub/x"); !ok || got != belief {
		t.Errorf("after reopening: %+v, %v", got, ok)
	}
}

func TestRunFlushes(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	defer x.Close()
	synctest.Test(t, func(t *testing.T) {
		go x.Run(t.Context(), func(err error) { t.Error(err) })
		x.Put("pub/x", belief)
		time.Sleep(flushEvery + time.Millisecond)
		synctest.Wait()
		x.mu.Lock()
		defer x.mu.Unlock()
		if len(x.dirty) != 0 {
			t.Error("not flushed after flushEvery")
		}
	})
}

// TestFailingFlush: what can't be written is reported once, kept in memory, and bounded.
func TestFailingFlush(t *testing.T) {
	x := reopen(t, t.TempDir())
	x.db.Close()
	synctest.Test(t, func(t *testing.T) {
		reports := 0
		go x.Run(t.Context(), func(err error) {
			reports++
			if !errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
				t.Error(err)
			}
		})
		x.Put("pub/x", belief)
		time.Sleep(10 * flushEvery)
		synctest.Wait()
		if reports != 1 {
			t.Errorf("reported %d times", reports)
		}
		if got, ok := x.Get("pub/x"); !ok || got != belief {
			t.Errorf("got %+v, %v", got, ok)
		}
	})
}

func TestDamagedFileIsPutAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.db"), []byte(strings.Repeat("no database ", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	x, note, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if !strings.Contains(note, "put aside") {
		t.Errorf("note %q", note)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.db.bad")); err != nil {
		t.Error(err)
	}
	x.Put("pub/x", belief)
	if err := x.flush(); err != nil {
		t.Error(err)
	}
}

func TestUnreadableBeliefIsNone(t *testing.T) {
	x := reopen(t, t.TempDir())
	defer x.Close()
	err := x.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(beliefs).Put([]byte("pub/x"), []byte(`{"size":"`)) })
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := x.Get("pub/x"); ok {
		t.Errorf("got %+v", b)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	defer x.Close()
	if _, _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "another instantmirror") {
		t.Errorf("second Open: %v", err)
	}
}

// TestDamagedPages: bbolt panics or faults on pages that are not what they should be; the index is put aside, or says
// that it does not know, and nothing else stops.
func TestDamagedPages(t *testing.T) {
	filled := func(t *testing.T, dir string) {
		t.Helper()
		x := reopen(t, dir)
		for i := range 2000 {
			x.Put(fmt.Sprintf("pub/%d", i), belief)
		}
		r, primary := records("one")
		if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
			t.Fatal(err)
		}
		setPackages(t, x, "one", 2000)
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	filled(t, dir)
	good, err := os.ReadFile(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	damages := map[string][]byte{"cut": good[:2*page], "cut in the middle": good[:len(good)/2/page*page]}
	for at := 2; at < len(good)/page; at += 7 {
		b := bytes.Clone(good)
		for i := range page {
			b[at*page+i] = byte(i * 7)
		}
		damages[fmt.Sprintf("page %d", at)] = b
	}
	for name, b := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "index.db"), b, 0o644); err != nil {
				t.Fatal(err)
			}
			x, _, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 2000 {
				x.Get(fmt.Sprintf("pub/%d", i))
				x.Named(fmt.Sprintf("%s/Packages/p%d.rpm", root, i))
			}
			x.Put("pub/new", belief)
			_ = x.flush()
			if got, ok := x.Get("pub/new"); !ok || got != belief {
				t.Errorf("what is new is not known: %v, %v", got, ok)
			}
		})
	}
}
