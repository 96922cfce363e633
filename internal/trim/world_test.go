package trim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/store"
)

// world is a Trimmer over real parts, in a bubble of synctest whose clock the tests turn.
type world struct {
	*Trimmer
	t       *testing.T
	root    string
	state   string
	store   *store.Store
	index   *index.Index
	journal *journal.Journal

	mu     sync.Mutex
	events []Event
}

// inWorld runs f in a bubble, with a new world.
func inWorld(t *testing.T, f func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		w := &world{t: t, root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
		var err error
		if w.store, err = store.Open(w.root, 0); err != nil {
			t.Fatal(err)
		}
		defer w.store.Close()
		if w.index, _, err = index.Open(w.state); err != nil {
			t.Fatal(err)
		}
		defer w.index.Close()
		if w.journal, err = journal.Open(filepath.Join(w.state, "journal")); err != nil {
			t.Fatal(err)
		}
		defer w.journal.Close()
		flights := fetch.New(t.Context(), w.store, func(fetch.Result) {})
		m := mirror.New(w.store, w.index, flights, w.journal, func(err error) { t.Error(err) })
		w.Trimmer = New(w.store, m, w.index, w.note)
		w.store.SetMakeRoom(w.MakeRoom)
		f(t, w)
	})
}

func (w *world) note(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// reported are all events until now.
func (w *world) reported() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// scope is what is known of room below dir now.
func (w *world) scope(dir string) scope {
	w.Trimmer.mu.Lock()
	defer w.Trimmer.mu.Unlock()
	return *w.scopes[dir]
}

// errors are those that were reported.
func (w *world) errors() (list []error) {
	for _, e := range w.reported() {
		if e.Err != nil {
			list = append(list, e.Err)
		}
	}
	return list
}

// put writes a file as a start finds it, last used so many hours ago; unknown if hours < 0.
func (w *world) put(name string, size, hours int) {
	w.t.Helper()
	file := filepath.Join(w.root, name)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, make([]byte, size), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.use(name, hours)
}

func (w *world) use(name string, hours int) {
	if hours >= 0 {
		w.index.UseAt(name, time.Now().Add(-time.Duration(hours)*time.Hour))
	}
}

func (w *world) link(old, name string, hours int) {
	w.t.Helper()
	file := filepath.Join(w.root, name)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.Link(filepath.Join(w.root, old), file)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.use(name, hours)
}

// start runs the Trimmer until stop, and returns when what is stored was counted and room was made.
func (w *world) start() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	synctest.Wait()
	return func() {
		cancel()
		running.Wait()
	}
}

// store commits a file of so many bytes, as a flight does.
func (w *world) storeFile(name string, size int64) error {
	p, err := w.store.Create(name, digest.Unverified(size, "test"), false)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Write(make([]byte, size)); err != nil {
		return err
	}
	w.index.Use(name)
	return p.Commit(digest.Unverified(size, "test"), digest.Sum{}, time.Now(), nil)
}

// stored is what stands in the tree, by name, looked at without the store.
func (w *world) stored() (names []string, bytes int64) {
	w.t.Helper()
	inodes := map[uint64]bool{}
	err := filepath.WalkDir(w.root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Name() == store.Private:
			return filepath.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		names = append(names, strings.TrimPrefix(file, w.root+"/"))
		if ino := info.Sys().(*syscall.Stat_t).Ino; !inodes[ino] {
			inodes[ino] = true
			bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names, bytes
}

// gone are the paths that were deleted, in order, by the journal.
func (w *world) gone() (names []string) {
	w.t.Helper()
	list, err := w.journal.Find(w.t.Context(), "", 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range slices.Backward(list) {
		if e.Reason != journal.Evicted {
			w.t.Errorf("%s: %s", e.Path, e.Reason)
		}
		names = append(names, e.Path)
	}
	return names
}

func (w *world) wantGone(want ...string) {
	w.t.Helper()
	if got := w.gone(); !slices.Equal(got, want) {
		w.t.Errorf("went:\n%v\nwant\n%v", strings.Join(got, " "), strings.Join(want, " "))
	}
	names, _ := w.stored()
	for _, name := range want {
		if slices.Contains(names, name) {
			w.t.Errorf("%s is still there", name)
		}
	}
}

// breakJournal has the journal take no lines until mend.
func (w *world) breakJournal() (mend func()) {
	file := filepath.Join(w.state, "journal", time.Now().UTC().Format("2006-01")+".jsonl")
	old, _ := os.ReadFile(file)
	if err := errors.Join(os.RemoveAll(file), os.Mkdir(file, 0o755)); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.Remove(file), os.WriteFile(file, bytes.Clone(old), 0o644)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func numbered(format string, from, to int) (list []string) {
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprintf(format, i))
	}
	return list
}
