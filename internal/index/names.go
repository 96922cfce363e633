package index

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/instantmirror/instantmirror/internal/digest"
)

var (
	repositories = []byte("repositories 1") // slash, root → JSON of a Repo
	packages     = []byte("packages 1")     // root NUL side → path → Named
)

// batch is how many packages one transaction writes: enough to be quick, little enough to need no memory to speak of.
const batch = 5000

// Named is what metadata say of a file.
type Named struct {
	Size int64      `json:"size"` // bytes; -1 unknown
	Sum  digest.Sum `json:"sum"`
}

// Repo is what is known of a repository: what its repomd.xml says, and from which primary its packages are known. The
// packages themselves are on disk only.
type Repo struct {
	Records  map[string]Named `json:"records"`           // of the files that repomd.xml names, by mirror path
	Primary  string           `json:"primary,omitempty"` // which of them is primary
	Packages digest.Sum       `json:"packages,omitzero"` // the primary whose packages are known; zero: none are
	Outside  []string         `json:"outside,omitempty"` // directories outside of the repository that hold its packages
	Side     string           `json:"side,omitempty"`    // the bucket that they are in
}

// current reports whether the packages that are known are those of the repository as its repomd.xml has it.
func (r *Repo) current() bool {
	return !r.Packages.IsZero() && r.Records[r.Primary].Sum == r.Packages
}

// loadRepos reads all repositories into memory.
func (x *Index) loadRepos() error {
	x.repos = make(map[string]*Repo)
	return x.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(repositories)
		if b == nil {
			return nil
		}
		return b.ForEach(func(root, v []byte) error {
			r := new(Repo)
			if err := json.Unmarshal(v, r); err == nil { // one that can't be read is learned anew
				x.repos[string(root[1:])] = r
			}
			return nil
		})
	})
}

// Repo returns what is known of the repository at root, a mirror path. It must not be changed.
func (x *Index) Repo(root string) (*Repo, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.repos[root]
	return r, ok
}

// SetRecords remembers what the repomd.xml of the repository at root says. If primary, the path of one of the records,
// has the digest that it had, the packages stay known.
func (x *Index) SetRecords(root string, records map[string]Named, primary string) error {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	r := &Repo{Records: records, Primary: primary}
	if old, ok := x.Repo(root); ok {
		r.Packages, r.Outside, r.Side = old.Packages, old.Outside, old.Side
	}
	return x.update(func(tx *bbolt.Tx) error { return x.putRepo(tx, root, r) })
}

// putRepo writes r, and puts it in force when the transaction is on disk.
func (x *Index) putRepo(tx *bbolt.Tx, root string, r *Repo) error {
	b, err := tx.CreateBucketIfNotExists(repositories)
	if err != nil {
		return err
	}
	v, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := b.Put([]byte("/"+root), v); err != nil { // bbolt knows no empty key
		return fmt.Errorf("remembering the repository %s: %w", root, err)
	}
	tx.OnCommit(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.repos[root] = r
	})
	return nil
}

// SetPackages remembers the packages of the repository at root, as each yields them from the primary whose digest is
// primary: path and what it must be. They take the place of those known before at once when each has ended well, and
// not at all if it fails. For one root one call at a time.
func (x *Index) SetPackages(root string, primary digest.Sum, each func(yield func(path string, n Named) error) error) error {
	old, ok := x.Repo(root)
	if !ok {
		return fmt.Errorf("no repository is known at %q", root)
	}
	r := *old
	r.Packages, r.Side = primary, "a"
	if old.Side == "a" {
		r.Side = "b"
	}
	bucket := side(root, r.Side)
	if err := x.update(func(tx *bbolt.Tx) error { return dropSide(tx, bucket) }); err != nil {
		return err
	}
	type entry struct {
		path  string
		named Named
	}
	pending := make([]entry, 0, batch)
	outside := map[string]bool{}
	flush := func() error {
		slices.SortFunc(pending, func(a, b entry) int { return strings.Compare(a.path, b.path) })
		err := x.update(func(tx *bbolt.Tx) error {
			all, err := tx.CreateBucketIfNotExists(packages)
			if err != nil {
				return err
			}
			b, err := all.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			for _, e := range pending {
				if err := b.Put([]byte(e.path), e.named.appendBinary(nil)); err != nil {
					return fmt.Errorf("%s: %w", e.path, err)
				}
			}
			return nil
		})
		pending = pending[:0]
		return err
	}
	err := each(func(p string, n Named) error {
		if dir := path.Dir(p); !below(dir, root) {
			outside[dir] = true
		}
		pending = append(pending, entry{p, n})
		if len(pending) < batch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("remembering the packages of %s: %w", root, err)
	}
	r.Outside = slices.Sorted(maps.Keys(outside))
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	return x.update(func(tx *bbolt.Tx) error {
		now, ok := x.Repo(root)
		if !ok {
			return nil
		}
		r.Records, r.Primary = now.Records, now.Primary // a new repomd.xml may have come meanwhile
		if err := x.putRepo(tx, root, &r); err != nil {
			return err
		}
		if old.Side == "" {
			return nil
		}
		return dropSide(tx, side(root, old.Side))
	})
}

func side(root, side string) []byte { return []byte(root + "\x00" + side) }

func dropSide(tx *bbolt.Tx, bucket []byte) error {
	all := tx.Bucket(packages)
	if all == nil || all.Bucket(bucket) == nil {
		return nil
	}
	return all.DeleteBucket(bucket)
}

// Named returns what the repositories that are known say of path, the nearest one first. It is empty where none names
// it, or where the packages of one that might are not known.
func (x *Index) Named(p string) []Named {
	var list []Named
	x.mu.Lock()
	var places [][]byte // buckets
	look := func(root string, r *Repo) {
		if n, ok := r.Records[p]; ok {
			list = append(list, n)
		} else if r.current() {
			places = append(places, side(root, r.Side))
		}
	}
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if r, ok := x.repos[dir]; ok {
			look(dir, r)
		}
		if dir == "" {
			break
		}
	}
	for root, r := range x.repos {
		if len(r.Outside) > 0 && slices.Contains(r.Outside, path.Dir(p)) {
			look(root, r)
		}
	}
	x.mu.Unlock()
	if len(places) == 0 {
		return list
	}
	// What can't be read is not known: the file is fetched unverified, and verified once it is.
	_ = x.view(func(tx *bbolt.Tx) error {
		all := tx.Bucket(packages)
		if all == nil {
			return nil
		}
		for _, at := range places {
			if b := all.Bucket(at); b != nil {
				if n, ok := parseNamed(b.Get([]byte(p))); ok {
					list = append(list, n)
				}
			}
		}
		return nil
	})
	return list
}

// Record returns what a repomd.xml that is known says of path, from memory.
func (x *Index) Record(p string) (Named, bool) {
	root, _, ok := cutLast(p, "/repodata/")
	if !ok {
		if _, ok = strings.CutPrefix(p, "repodata/"); !ok {
			return Named{}, false
		}
		root = ""
	}
	r, ok := x.Repo(root)
	if !ok {
		return Named{}, false
	}
	n, ok := r.Records[p]
	return n, ok
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func below(dir, root string) bool {
	return root == "" || dir == root || strings.HasPrefix(dir, root+"/")
}

// appendBinary is the form of Named on disk: the length in bytes as a varint, and the digest.
func (n Named) appendBinary(b []byte) []byte {
	return n.Sum.AppendBinary(binary.AppendVarint(b, n.Size))
}

func parseNamed(b []byte) (Named, bool) {
	size, l := binary.Varint(b)
	if l <= 0 {
		return Named{}, false
	}
	sum, err := digest.ParseBinary(b[l:])
	return Named{size, sum}, err == nil
}
