package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/instantmirror/instantmirror/internal/digest"
)

var (
	repositories = []byte("repositories 1") // slash, root → JSON of a Repo
	packages     = []byte("packages 1")     // root NUL side → path → Named
)

const (
	// batch is how many packages one transaction writes: enough to be quick, little enough to need no memory to speak of.
	batch = 5000
	// generationLen is how many hex digits of its digest name a generation.
	generationLen = 12
)

// Named is what metadata say of a file.
type Named struct {
	Size int64      `json:"size"` // bytes; -1 unknown
	Sum  digest.Sum `json:"sum"`
	Time int64      `json:"time,omitempty"` // modification time, Unix seconds; 0 unknown
}

// Same reports whether n and o speak of the same bytes.
func (n Named) Same(o Named) bool { return n.Sum == o.Sum && !n.Sum.IsZero() }

// Staged are a repository's packages that are not in force yet. Its fields are for a publication's notes.
type Staged struct {
	Primary digest.Sum `json:"primary"`
	Side    string     `json:"side"`
	Outside []string   `json:"outside,omitempty"`
	Count   int        `json:"count"` // packages
}

// Stage writes the packages of the repository at root, as each yields them from the primary whose digest is primary, so
// that Publish can put them in force. What was staged before and not published is gone. For one root one call at a time.
func (x *Index) Stage(root string, primary digest.Sum, each func(yield func(path string, n Named) error) error) (*Staged, error) {
	s := &Staged{Primary: primary, Side: "a"}
	if old, ok := x.Repo(root); ok && old.Side == "a" {
		s.Side = "b"
	}
	bucket := side(root, s.Side)
	if err := x.update(func(tx *bbolt.Tx) error { return dropSide(tx, bucket) }); err != nil {
		return nil, fmt.Errorf("staging the packages of %s: %w", root, err)
	}
	type entry struct {
		path  string
		named Named
	}
	pending := make([]entry, 0, batch)
	outside := make(map[string]bool)
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
		if dir := path.Dir(p); !below(dir, root) && !outside[dir] {
			outside[dir] = true
			s.Outside = append(s.Outside, dir)
		}
		s.Count++
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
		return nil, fmt.Errorf("staging the packages of %s: %w", root, err)
	}
	s.Outside = outermost(s.Outside)
	return s, nil
}

// Has reports whether what was staged is still there.
func (x *Index) Has(root string, s *Staged) (ok bool) {
	_ = x.view(func(tx *bbolt.Tx) error { // what can't be read is not there
		ok = bucketOf(tx, root, s.Side) != nil
		return nil
	})
	return ok
}

// SetPackages puts what was staged in force for the generation that is there.
func (x *Index) SetPackages(root string, s *Staged) error {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	old, ok := x.Repo(root)
	if !ok {
		return fmt.Errorf("no repository is known at %q", root)
	}
	return x.publish(root, *old, s, nil)
}

func side(root, side string) []byte { return []byte(root + "\x00" + side) }

func dropSide(tx *bbolt.Tx, bucket []byte) error {
	all := tx.Bucket(packages)
	if all == nil || all.Bucket(bucket) == nil {
		return nil
	}
	return all.DeleteBucket(bucket)
}

// bucketOf returns the bucket of a repository's packages, nil if there is none.
func bucketOf(tx *bbolt.Tx, root, of string) *bbolt.Bucket {
	if all := tx.Bucket(packages); all != nil && of != "" {
		return all.Bucket(side(root, of))
	}
	return nil
}

// Change is a path of which two generations of a repository say different things.
type Change struct {
	Path              string
	Old, New          Named
	WasNamed, IsNamed bool
}

// tells reports whether the two generations mean other bytes.
func (c Change) tells() bool { return !c.WasNamed || !c.IsNamed || c.Old.Sum != c.New.Sum }

// Changes calls yield for each path of which the generation in force and the next one say different things, records
// first, then packages in their order; where other bytes stay unnamed by a digest, nothing is said. An error of yield
// ends it. A nil old means that nothing was known before: everything is new.
func (x *Index) Changes(root string, old, next *Repo, staged *Staged, yield func(Change) error) error {
	if old == nil {
		old = new(Repo)
	}
	paths := make([]string, 0, len(old.Records)+len(next.Records))
	for p := range old.Records {
		paths = append(paths, p)
	}
	for p := range next.Records {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range slices.Compact(paths) {
		was, wasNamed := old.Records[p]
		is, isNamed := next.Records[p]
		if c := (Change{p, was.Named, is.Named, wasNamed, isNamed}); c.tells() {
			if err := yield(c); err != nil {
				return err
			}
		}
	}
	if staged == nil {
		return nil
	}
	from := ""
	if old.current() {
		from = old.Side
	}
	var after []byte
	for {
		changes, next, err := x.someChanges(root, from, staged.Side, after)
		if err != nil {
			return fmt.Errorf("comparing two generations of %s: %w", root, err)
		}
		for _, c := range changes {
			if err := yield(c); err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		after = next
	}
}

// someChanges compares two sides from the first path after after on, in one transaction that ends before anybody acts on
// it; next is nil at the end.
func (x *Index) someChanges(root, from, to string, after []byte) (list []Change, next []byte, err error) {
	err = x.view(func(tx *bbolt.Tx) error {
		walk := func(of string) (key, value []byte, step func() ([]byte, []byte)) {
			b := bucketOf(tx, root, of)
			if b == nil {
				return nil, nil, nil
			}
			c := b.Cursor()
			key, value = c.Seek(after)
			if key != nil && after != nil && bytes.Equal(key, after) {
				key, value = c.Next()
			}
			return key, value, c.Next
		}
		k1, v1, step1 := walk(from)
		k2, v2, step2 := walk(to)
		var last []byte
		for n := 0; k1 != nil || k2 != nil; n++ {
			if len(list) == batch || n == 20*batch {
				next = bytes.Clone(last)
				return nil
			}
			order := bytes.Compare(k1, k2)
			switch {
			case k1 == nil:
				order = 1
			case k2 == nil:
				order = -1
			}
			c := Change{WasNamed: order <= 0, IsNamed: order >= 0}
			if c.WasNamed {
				last = k1
				c.Old, _ = parseNamed(v1)
			}
			if c.IsNamed {
				last = k2
				c.New, _ = parseNamed(v2)
			}
			if c.tells() {
				c.Path = string(last)
				list = append(list, c)
			}
			if c.WasNamed {
				k1, v1 = step1()
			}
			if c.IsNamed {
				k2, v2 = step2()
			}
		}
		return nil
	})
	return list, next, err
}

// NextSays returns what a generation of the repository at root that is not in force yet says of p. Its packages are staged;
// nil: they are those in force.
func (x *Index) NextSays(root string, next *Repo, staged *Staged, p string) (n Named, ok bool) {
	if rec, ok := next.Records[p]; ok {
		return rec.Named, true
	}
	of := ""
	if staged != nil {
		of = staged.Side
	} else if now, known := x.Repo(root); known && now.current() {
		of = now.Side
	}
	_ = x.view(func(tx *bbolt.Tx) error { // what can't be read is not known
		if b := bucketOf(tx, root, of); b != nil {
			n, ok = parseNamed(b.Get([]byte(p)))
		}
		return nil
	})
	return n, ok
}

// EachPackage calls yield for each path that the packages in force of the repository at root name, in order.
func (x *Index) EachPackage(root string, yield func(path string, n Named) error) error {
	r, ok := x.Repo(root)
	if !ok || r.Packages.IsZero() {
		return nil
	}
	var after []byte
	for {
		list, next, err := x.someChanges(root, "", r.Side, after)
		if err != nil {
			return fmt.Errorf("reading the packages of %s: %w", root, err)
		}
		for _, c := range list {
			if err := yield(c.Path, c.New); err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		after = next
	}
}

// Named returns what the generations in force say of path, the one that was published last first. It is empty where none
// names it, or where the packages of one that might are not known.
func (x *Index) Named(p string) []Named { return x.named(p, "", false) }

// NamedBut is Named without what the repository at root says.
func (x *Index) NamedBut(root, p string) []Named { return x.named(p, root, true) }

func (x *Index) named(p, but string, skip bool) []Named {
	type answer struct {
		named Named
		since time.Time
	}
	type place struct {
		root, side string
		since      time.Time
	}
	var answers []answer
	var places []place
	x.mu.Lock()
	for _, root := range x.concerned(p) {
		if skip && root == but {
			continue
		}
		r := x.repos[root]
		if n, ok := r.Records[p]; ok {
			answers = append(answers, answer{n.Named, r.Pointer.Published})
		} else if r.current() {
			places = append(places, place{root, r.Side, r.Pointer.Published})
		}
	}
	x.mu.Unlock()
	if len(places) > 0 {
		// What can't be read is not known: the file is fetched unverified, and verified once it is.
		_ = x.view(func(tx *bbolt.Tx) error {
			for _, at := range places {
				if b := bucketOf(tx, at.root, at.side); b != nil {
					if n, ok := parseNamed(b.Get([]byte(p))); ok {
						answers = append(answers, answer{n, at.since})
					}
				}
			}
			return nil
		})
	}
	slices.SortStableFunc(answers, func(a, b answer) int { return b.since.Compare(a.since) })
	var list []Named
	for _, a := range answers {
		list = append(list, a.named)
	}
	return list
}

// Record returns what the repomd.xml in force says of path, from memory.
func (x *Index) Record(p string) (Named, bool) {
	root, ok := rootOf(p)
	if !ok {
		return Named{}, false
	}
	r, ok := x.Repo(root)
	if !ok {
		return Named{}, false
	}
	n, ok := r.Records[p]
	return n.Named, ok
}

// rootOf returns the root of the repository in whose repodata/ p is.
func rootOf(p string) (root string, ok bool) {
	if i := strings.LastIndex(p, "/repodata/"); i >= 0 {
		return p[:i], true
	}
	return "", strings.HasPrefix(p, "repodata/")
}

func below(dir, root string) bool {
	return root == "" || dir == root || strings.HasPrefix(dir, root+"/")
}

// appendBinary is the form of Named on disk: length in bytes and time as varints, and the digest.
func (n Named) appendBinary(b []byte) []byte {
	return n.Sum.AppendBinary(binary.AppendVarint(binary.AppendVarint(b, n.Size), n.Time))
}

func parseNamed(b []byte) (Named, bool) {
	size, l := binary.Varint(b)
	if l <= 0 {
		return Named{}, false
	}
	t, m := binary.Varint(b[l:])
	if m <= 0 {
		return Named{}, false
	}
	sum, err := digest.ParseBinary(b[l+m:])
	return Named{size, sum, t}, err == nil
}
