package index

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// Repo is what is known of a repository: its generation, as its repomd.xml says it, from which primary its packages are
// known, and what has to be remembered between polls. The packages themselves are on disk only. A Repo that the Index
// returned must not be changed.
type Repo struct {
	Pointer  Pointer           `json:"pointer,omitzero"`
	Records  map[string]Record `json:"records"`           // of the files that repomd.xml names, by mirror path
	Primary  string            `json:"primary,omitempty"` // which of them is primary
	Packages digest.Sum        `json:"packages,omitzero"` // the primary whose packages are known; zero: none are
	Outside  []string          `json:"outside,omitempty"` // directories outside of the repository that hold its packages
	Side     string            `json:"side,omitempty"`    // the bucket that they are in

	// Unjudged is set from the moment that a generation is in force until every stored file that it speaks of has been
	// compared with it.
	Unjudged bool `json:"unjudged,omitempty"`
	// Partial says why only primary was fetched before this generation was published; "" if all that is used here was.
	Partial string `json:"partial,omitempty"`
	// Veto, if not nil, keeps everything of the repository from being deleted.
	Veto *Veto `json:"veto,omitempty"`
	// Back is the older generation that all origins have, if they do.
	Back *Back `json:"back,omitempty"`
	// Refused counts the older generations that were refused since this one is in force.
	Refused int `json:"refused,omitempty"`
	// Gone is since when upstream says that the pointer does not exist; zero while it does.
	Gone time.Time `json:"gone,omitzero"`
	// Former is the generation before this one; "" if this is the first.
	Former string `json:"former,omitempty"`
}

// Record is what repomd.xml says of one file.
type Record struct {
	Named
	Type string `json:"type"` // "primary", "group", …
}

// Pointer is a repomd.xml that is in force.
type Pointer struct {
	Sum          digest.Sum `json:"sum,omitzero"`           // sha256 of its bytes
	Origin       string     `json:"origin,omitempty"`       // scheme://host that sent it, after redirects
	Timestamp    int64      `json:"timestamp,omitempty"`    // the greatest of its records', Unix seconds
	Revision     int64      `json:"revision,omitempty"`     // if that is a number
	LastModified time.Time  `json:"last_modified,omitzero"` // as sent
	Published    time.Time  `json:"published,omitzero"`     // since when it is in force here
	// Companions says that .asc and .key were looked for at its origin: what is not in the tree does not exist.
	Companions bool `json:"companions,omitempty"`
	// Signed is who signed it, where that was checked.
	Signed string `json:"signed,omitempty"`
}

// Generation names the generation: the beginning of its repomd.xml's digest.
func (p *Pointer) Generation() string {
	if p.Sum.IsZero() {
		return ""
	}
	return p.Sum.Hex()[:generationLen]
}

// Veto is a push that would delete more than a sane share of what is stored.
type Veto struct {
	Since  time.Time `json:"since"`
	Origin string    `json:"origin"` // the configured origin that had that generation first
	Files  int       `json:"files"`  // stored that would go
	Held   int       `json:"held"`   // stored in all
}

// Back is an older generation.
type Back struct {
	Sum   digest.Sum `json:"sum"`   // of its repomd.xml
	Since time.Time  `json:"since"` // since when every origin that answers has it
}

// current reports whether the packages that are known are those of the repository as its repomd.xml has it.
func (r *Repo) current() bool {
	return !r.Packages.IsZero() && r.Records[r.Primary].Sum == r.Packages
}

// Known reports whether the packages of the generation in force are known, as far as they can be.
func (r *Repo) Known() bool { return r.Records[r.Primary].Sum.IsZero() || r.current() }

// Gaps reports whether the packages of any repository are not known: it might name what lies outside of the others.
func (x *Index) Gaps() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range x.repos {
		if !r.Known() {
			return true
		}
	}
	return false
}

// loadRepos reads all repositories into memory.
func (x *Index) loadRepos() error {
	x.repos, x.places = make(map[string]*Repo), make(map[string][]string)
	return x.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(repositories)
		if b == nil {
			return nil
		}
		return b.ForEach(func(root, v []byte) error {
			r := new(Repo)
			if err := json.Unmarshal(v, r); err == nil { // one that can't be read is learned anew
				x.setRepo(string(root[1:]), r)
			}
			return nil
		})
	})
}

// setRepo puts r in force in memory; nil takes it out. The caller holds mu, or has x for itself.
func (x *Index) setRepo(root string, r *Repo) {
	if old := x.repos[root]; old != nil {
		for _, dir := range old.Outside {
			x.places[dir] = slices.DeleteFunc(slices.Clone(x.places[dir]), func(s string) bool { return s == root })
			if len(x.places[dir]) == 0 {
				delete(x.places, dir)
			}
		}
	}
	if r == nil {
		delete(x.repos, root)
		return
	}
	x.repos[root] = r
	for _, dir := range r.Outside {
		x.places[dir] = append(slices.Clone(x.places[dir]), root)
	}
}

// Repo returns what is known of the repository at root, a mirror path. It must not be changed.
func (x *Index) Repo(root string) (*Repo, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.repos[root]
	return r, ok
}

// Roots returns the roots of all repositories that are known, sorted.
func (x *Index) Roots() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.repos))
}

// Concerned returns the roots of the repositories that may name p: those above it, the nearest one first, and those that
// have packages in its directory.
func (x *Index) Concerned(p string) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.concerned(p)
}

func (x *Index) concerned(p string) []string {
	var roots []string
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if _, ok := x.repos[dir]; ok {
			roots = append(roots, dir)
		}
		if dir == "" {
			break
		}
	}
	if len(x.places) > 0 {
		for dir := path.Dir(p); ; dir = path.Dir(dir) {
			for _, root := range x.places[dir] {
				if !slices.Contains(roots, root) {
					roots = append(roots, root)
				}
			}
			if dir == "." || dir == "/" {
				break
			}
		}
	}
	return roots
}

// SetRecords remembers what the repomd.xml of the repository at root says that is there at first contact, or again. If
// primary, the path of one of the records, has the digest that it had, the packages stay known.
func (x *Index) SetRecords(root string, pointer Pointer, records map[string]Record, primary string) error {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	r := &Repo{Pointer: pointer, Records: records, Primary: primary, Unjudged: true}
	if old, ok := x.Repo(root); ok {
		r.Packages, r.Outside, r.Side, r.Former = old.Packages, old.Outside, old.Side, old.Pointer.Generation()
	}
	return x.update(func(tx *bbolt.Tx) error { return x.putRepo(tx, root, r) })
}

// Update changes what is known of the repository at root by f, which gets a copy. It reports whether there is one.
func (x *Index) Update(root string, f func(*Repo)) (bool, error) {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	old, ok := x.Repo(root)
	if !ok {
		return false, nil
	}
	r := *old
	f(&r)
	return true, x.update(func(tx *bbolt.Tx) error { return x.putRepo(tx, root, &r) })
}

// Publish puts next in force for the repository at root, with the packages that were staged (nil: those that are known
// stay so), and what is believed of the files that change with it, all at once.
func (x *Index) Publish(root string, next Repo, staged *Staged, believed map[string]Belief) error {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	return x.publish(root, next, staged, believed)
}

// publish is Publish. The caller holds x.repoMu.
func (x *Index) publish(root string, next Repo, staged *Staged, believed map[string]Belief) error {
	old, ok := x.Repo(root)
	if !ok {
		old = new(Repo)
	}
	next.Packages, next.Side, next.Outside = old.Packages, old.Side, old.Outside
	if staged != nil {
		// What was outside stays looked at: packages that are leaving may be there.
		next.Packages, next.Side, next.Outside = staged.Primary, staged.Side, outermost(append(staged.Outside, old.Outside...))
	}
	err := x.update(func(tx *bbolt.Tx) error {
		if err := x.putRepo(tx, root, &next); err != nil {
			return err
		}
		for p, b := range believed {
			if err := putBelief(tx, p, b); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		if old.Side == "" || old.Side == next.Side {
			return nil
		}
		return dropSide(tx, side(root, old.Side))
	})
	if err != nil {
		return fmt.Errorf("publishing %s: %w", root, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for p := range believed { // an older belief that waits for its flush must not take their place
		delete(x.dirty, p)
	}
	return nil
}

// Forget forgets the repository at root.
func (x *Index) Forget(root string) error {
	x.repoMu.Lock()
	defer x.repoMu.Unlock()
	return x.update(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(repositories); b != nil {
			if err := b.Delete([]byte("/" + root)); err != nil {
				return err
			}
		}
		for _, s := range []string{"a", "b"} {
			if err := dropSide(tx, side(root, s)); err != nil {
				return err
			}
		}
		if all := tx.Bucket(leaving); all != nil && all.Bucket([]byte("/"+root)) != nil {
			if err := all.DeleteBucket([]byte("/" + root)); err != nil {
				return err
			}
		}
		tx.OnCommit(func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.setRepo(root, nil)
		})
		return nil
	})
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
		x.setRepo(root, r)
	})
	return nil
}

// maxOutside is of how many directories outside a repository may have packages, before directories above them stand
// for them.
const maxOutside = 100

// outermost returns dirs, sorted and each once, without those that lie below another one; if they are too many, the
// directories above them.
func outermost(dirs []string) []string {
	for {
		slices.Sort(dirs)
		var out []string
		for _, dir := range slices.Compact(dirs) {
			if n := len(out); n == 0 || !below(dir, out[n-1]) {
				out = append(out, dir)
			}
		}
		if len(out) <= maxOutside {
			return out
		}
		deepest := 0
		for _, dir := range out {
			deepest = max(deepest, strings.Count(dir, "/"))
		}
		for i, dir := range out {
			if strings.Count(dir, "/") == deepest {
				out[i] = path.Dir(dir)
			}
		}
		dirs = out
	}
}
