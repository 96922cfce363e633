// Package index remembers what is believed of the files in the tree: who gave them, by what validators, and when
// that was last checked. The tree is the truth; to lose the index costs revalidation, never data.
//
// It is the one owner of bbolt. Values are JSON, so that an operator can read them with any bbolt tool.
package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	// flushEvery is how long a belief may stay in memory only. A crash loses that much of them.
	flushEvery = time.Second
	// maxDirty bounds the beliefs that wait for a disk which takes no writes; what comes on top is not remembered.
	maxDirty = 100_000
)

var (
	beliefs  = []byte("beliefs 1")  // path → JSON of a Belief
	used     = []byte("used 1")     // path → Unix time of its last use
	complete = []byte("complete 1") // holds its own name once the tree was looked at
)

// Belief is what is known of the file at one path. It holds for a file of just this size and modification time.
type Belief struct {
	Size         int64      `json:"size"`                   // bytes
	ModTime      time.Time  `json:"mtime"`                  // of the stored file
	Origin       string     `json:"origin,omitempty"`       // scheme://host that sent it, after redirects
	ETag         string     `json:"etag,omitempty"`         // as that origin sent it; means nothing to any other
	LastModified time.Time  `json:"last_modified,omitzero"` // as sent; zero if it was not
	Sum          digest.Sum `json:"sum,omitzero"`           // which it was found to have; zero: it was never verified
	Checked      time.Time  `json:"checked"`                // when upstream last said that this is current
}

// Index is an open index. It is safe for concurrent use.
type Index struct {
	db *bbolt.DB

	mu     sync.Mutex
	dirty  map[string]Belief   // not yet in db; the zero Belief: nothing is believed any more
	repos  map[string]*Repo    // all of them, by root; those in it are never changed
	places map[string][]string // directories outside of repositories → the roots whose packages they hold

	// repoMu is held over each change of a Repo, from reading the old one until the new one is in repos: bbolt calls
	// OnCommit when its own lock is free already.
	repoMu sync.Mutex

	uses  uses
	fresh atomic.Bool // it was begun anew: what the tree holds is not known yet
}

// Open opens the index in the directory dir, making both if need be. A damaged file is put aside as index.db.bad
// and a new one begun; the returned note says so.
func Open(dir string) (x *Index, note string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", fmt.Errorf("making the state directory: %w: make it yourself and let the daemon's user own it, or name another (state, --state)", err)
	}
	file := filepath.Join(dir, "index.db")
	x, err = open(file)
	if damaged(err) {
		note = fmt.Sprintf("%s is damaged (%v) and was put aside as %s.bad; what it held will be asked of upstream again", file, err, file)
		if err := os.Rename(file, file+".bad"); err != nil {
			return nil, "", fmt.Errorf("putting the damaged index aside: %w", err)
		}
		x, err = open(file)
	}
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, "", fmt.Errorf("%s is in use by another instantmirror: stop that one, or give this one a --state directory of its own", file)
	}
	if err != nil {
		return nil, "", fmt.Errorf("opening the index %s: %w", file, err)
	}
	return x, note, nil
}

// open opens the file, reads what is kept in memory, and sees whether it can be written.
func open(file string) (*Index, error) {
	x := &Index{dirty: make(map[string]Belief)}
	err := guard(func() (err error) {
		x.db, err = bbolt.Open(file, 0o644, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
		if err != nil {
			return err
		}
		err = x.db.Update(func(tx *bbolt.Tx) error {
			for _, name := range [][]byte{beliefs, used, complete} {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			x.fresh.Store(tx.Bucket(complete).Get(complete) == nil)
			return nil
		})
		return errors.Join(err, x.loadRepos())
	})
	if err != nil {
		return nil, err // with what is damaged left open: closing it could wait for ever
	}
	return x, nil
}

// view and update are the database's own, guarded.
func (x *Index) view(f func(*bbolt.Tx) error) error {
	return guard(func() error { return x.db.View(f) })
}

func (x *Index) update(f func(*bbolt.Tx) error) error {
	return guard(func() error { return x.db.Update(f) })
}

// errDamaged is what a damaged page is turned into, on which bbolt panics or faults.
var errDamaged = errors.New("the index is damaged")

// guard calls f, which uses the database, and turns its panics and faults into errDamaged.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

func damaged(err error) bool {
	return errors.Is(err, errDamaged) || errors.Is(err, bbolterrors.ErrInvalid) || errors.Is(err, bbolterrors.ErrChecksum) ||
		errors.Is(err, bbolterrors.ErrVersionMismatch)
}

// Get returns what is believed of path, if anything is.
func (x *Index) Get(path string) (Belief, bool) {
	x.mu.Lock()
	b, ok := x.dirty[path]
	x.mu.Unlock()
	if ok {
		return b, b != Belief{}
	}
	// A belief that can't be read is no belief: upstream is asked instead.
	err := x.view(func(tx *bbolt.Tx) error {
		v := tx.Bucket(beliefs).Get([]byte(path))
		if v == nil {
			return nil
		}
		ok = true
		return json.Unmarshal(v, &b)
	})
	if err != nil {
		return Belief{}, false
	}
	return b, ok
}

// Put remembers b of path, in memory at once and on disk with the next flush.
func (x *Index) Put(path string, b Belief) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.dirty) < maxDirty {
		x.dirty[path] = b
	}
}

// Drop forgets what is believed of paths, whose files are gone.
func (x *Index) Drop(paths ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, path := range paths {
		x.dirty[path] = Belief{}
	}
}

// Fresh reports whether the index was begun anew, because it was lost or never there, and Complete not been called since:
// what stands in the tree has to be looked at.
func (x *Index) Fresh() bool { return x.fresh.Load() }

// Incomplete remembers that the tree has to be looked at.
func (x *Index) Incomplete() error {
	x.fresh.Store(true)
	return x.update(func(tx *bbolt.Tx) error { return tx.Bucket(complete).Delete(complete) })
}

// Complete remembers that the tree was looked at.
func (x *Index) Complete() error {
	err := x.update(func(tx *bbolt.Tx) error { return tx.Bucket(complete).Put(complete, []byte{}) })
	if err == nil {
		x.fresh.Store(false)
	}
	return err
}

// Run flushes what was put, until ctx ends. A flush that fails is reported, once until one succeeds, and tried
// again: a full disk stops nobody.
func (x *Index) Run(ctx context.Context, report func(error)) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := x.flush()
			if err != nil && !failing {
				report(err)
			}
			failing = err != nil
		}
	}
}

// flush writes what was put since the last flush in one transaction.
func (x *Index) flush() error {
	x.mu.Lock()
	batch := make(map[string]Belief, len(x.dirty))
	for path, b := range x.dirty {
		batch[path] = b
	}
	x.mu.Unlock()
	used := x.uses.batch()
	if len(batch) == 0 && len(used) == 0 {
		return nil
	}
	err := x.update(func(tx *bbolt.Tx) error {
		for path, b := range batch {
			if err := putBelief(tx, path, b); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		return putUses(tx, used)
	})
	if err != nil {
		return fmt.Errorf("writing the index %s: %w", x.db.Path(), err)
	}
	x.uses.written(used)
	x.mu.Lock()
	defer x.mu.Unlock()
	for path, b := range batch {
		if x.dirty[path] == b { // not put anew meanwhile
			delete(x.dirty, path)
		}
	}
	return nil
}

// putBelief writes b, or forgets path if b is zero.
func putBelief(tx *bbolt.Tx, path string, b Belief) error {
	if b == (Belief{}) {
		return tx.Bucket(beliefs).Delete([]byte(path))
	}
	v, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return tx.Bucket(beliefs).Put([]byte(path), v)
}

// Close flushes and closes the index.
func (x *Index) Close() error {
	return errors.Join(x.flush(), x.db.Close())
}
