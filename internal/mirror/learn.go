package mirror

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/repodata"
	"github.com/instantmirror/instantmirror/internal/site"
)

// expect says what the bytes of t must be, from what the metadata that were read here say.
func (m *Mirror) expect(t site.Target) digest.Expectation {
	m.relearnFor(t)
	return m.expectNow(t)
}

// expectNow is expect, from what is known already.
func (m *Mirror) expectNow(t site.Target) digest.Expectation {
	if !vouchedFor(t) {
		return digest.Unverified(-1, "no metadata name such files")
	}
	if n, ok := m.named(t.Path); ok {
		return digest.Known(n.Size, n.Sum)
	}
	return digest.Unverified(-1, "no metadata that were read here name it")
}

// expectNamed is expectNow for what is about to get its name. A repomd.xml must be the one that is in force; the file that
// goes with it comes with it, if somebody looks after that.
func (m *Mirror) expectNamed(t site.Target) (digest.Expectation, error) {
	root, name := repository(t.Path)
	if t.Class != site.Pointer || name == "" {
		return m.expectNow(t), nil
	}
	repo, ok := m.index.Repo(root)
	switch {
	case !ok || repo.Pointer.Sum.IsZero():
	case name == "repomd.xml":
		return digest.Known(-1, repo.Pointer.Sum), nil
	case (name == "repomd.xml.asc" || name == "repomd.xml.key") && m.watcher != nil:
		return digest.Expectation{}, fmt.Errorf("%s: %w: it is kept as it goes with its repomd.xml", t.Path, fetch.ErrCurrent)
	}
	return m.expectNow(t), nil
}

// vouchedFor reports whether metadata name files of t's class.
func vouchedFor(t site.Target) bool { return t.Class == site.Metadata || t.Class == site.Package }

// relearnFor learns from the tree what is needed to know what t must be.
func (m *Mirror) relearnFor(t site.Target) {
	if vouchedFor(t) {
		m.relearn(t.Profile, t.Path)
	}
}

// named is what path must be: what the generation in force says that was published last, or else the last one that named
// the path, during its grace.
func (m *Mirror) named(p string) (index.Named, bool) {
	for _, n := range m.index.Named(p) {
		if !n.Sum.IsZero() {
			return n, true
		}
	}
	if l, _, ok := m.index.Left(p); ok && !l.Sum.IsZero() {
		return l.Named, true
	}
	return index.Named{}, false
}

// judge is how the body of t is looked at before its end goes out, nil if it is not: repomd.xml must be one, and both
// it and primary are learned from, so that whoever has them finds their files verified.
func (m *Mirror) judge(t site.Target) func(io.Reader) error {
	root, name := repository(t.Path)
	switch {
	case name == "repomd.xml" && t.Class == site.Pointer:
		return func(r io.Reader) error {
			return m.learnRecords(t.Profile, root, r, time.Time{}, t.Action == site.Store)
		}
	case name != "" && t.Class == site.Metadata:
		m.relearn(t.Profile, t.Path)
		repo, ok := m.index.Repo(root)
		if !ok || repo.Primary != t.Path || repo.Records[t.Path].Sum.IsZero() {
			return nil
		}
		return func(r io.Reader) error {
			// Its digest is right, so the client gets it, be it of any use to us or not.
			if err := m.learnPackages(t.Profile, root, t.Path, repo.Records[t.Path].Named, r); err != nil {
				m.report(err)
			}
			return nil
		}
	}
	return nil
}

// repository splits the path of a file directly in a repository's repodata; name is "" for any other.
func repository(p string) (root, name string) {
	dir, name := path.Split(p)
	if dir == "repodata/" {
		return "", name
	}
	root, ok := strings.CutSuffix(dir, "/repodata/")
	if !ok {
		return "", ""
	}
	return root, name
}

// ReadRepomd reads the repomd.xml of the repository at root, of the profile p. What it names elsewhere than in its own
// repodata/ is left to the clients, and reported: a repository has no say in what belongs to others.
func (m *Mirror) ReadRepomd(p *site.Profile, root string, r io.Reader) (index.Repo, error) {
	h := digest.SHA256.New()
	md, err := repodata.ParseRepomd(io.TeeReader(r, h))
	if err == nil {
		_, err = io.Copy(h, r) // what follows the document counts for the digest
	}
	if err != nil {
		return index.Repo{}, fmt.Errorf("%s: %w", pointerOf(root), err)
	}
	age := md.Age()
	repo := index.Repo{
		Pointer: index.Pointer{Sum: digest.SumOf(digest.SHA256, h), Timestamp: age.Timestamp, Revision: age.Revision},
		Records: make(map[string]index.Record),
	}
	for _, rec := range md.Records {
		name, external, err := repodata.Join(root, rec.Base, rec.Href)
		if _, class, ours := p.Owns(name); err == nil && !external && (!ours || class != site.Metadata || !isIn(name, root)) {
			err = fmt.Errorf("%.200q is not in its repodata/", rec.Href)
		}
		switch {
		case err != nil:
			m.report(fmt.Errorf("%s: its %s is left to the clients: %w", pointerOf(root), rec.Type, err))
		case external:
			m.report(fmt.Errorf("%s: its %s is on another host, %.200s: that is left to the clients", pointerOf(root), rec.Type, rec.Base))
		default:
			repo.Records[name] = index.Record{Named: index.Named{Size: rec.Size, Sum: rec.Sum, Time: rec.Timestamp}, Type: rec.Type}
			if rec.Type == "primary" {
				repo.Primary = name
			}
		}
	}
	return repo, nil
}

// isIn reports whether name stands in the repodata/ of the repository at root.
func isIn(name, root string) bool {
	at, _ := repository(name)
	return at == root && name != pointerOf(root)
}

// pointerOf is the path of the repomd.xml of the repository at root.
func pointerOf(root string) string { return strings.TrimPrefix(root+"/repodata/repomd.xml", "/") }

// learnRecords reads a repomd.xml where no generation is in force. An error says that it is none, or older than what is in
// force. modified is what is known of its time; unless keep is set it is only read.
func (m *Mirror) learnRecords(p *site.Profile, root string, r io.Reader, modified time.Time, keep bool) error {
	repo, err := m.ReadRepomd(p, root, r)
	if err != nil || !keep {
		return err
	}
	repo.Pointer.LastModified = modified
	if old, ok := m.index.Repo(root); ok {
		if old.Pointer.Sum == repo.Pointer.Sum {
			// Somebody removed it from the tree, and may have done so with what goes with it.
			_, err := m.index.Update(root, func(r *index.Repo) { r.Pointer.Companions = false })
			if err != nil {
				m.report(err)
			}
			return nil
		}
		if Older(&repo.Pointer, &old.Pointer) {
			return fmt.Errorf("%s: it is older than what was here before", pointerOf(root))
		}
	}
	repo.Pointer.Published = time.Now()
	// Without a working index the mirror works on, unverified.
	if err := m.index.SetRecords(root, repo.Pointer, repo.Records, repo.Primary); err != nil {
		m.report(err)
	}
	return nil
}

// Older reports whether a is older than b, as far as they tell: by the greatest timestamp of a record, then the revision
// if that is a number, then Last-Modified (DESIGN P5).
func Older(a, b *index.Pointer) bool {
	x, y := repodata.Age{Timestamp: a.Timestamp, Revision: a.Revision}, repodata.Age{Timestamp: b.Timestamp, Revision: b.Revision}
	if c := x.Compare(y); c != 0 {
		return c < 0
	}
	decided := a.Timestamp > 0 && b.Timestamp > 0 || a.Revision > 0 && b.Revision > 0
	return !decided && !a.LastModified.IsZero() && a.LastModified.Before(b.LastModified)
}

// learnPackages reads the primary at p of the repository at root, which want describes.
func (m *Mirror) learnPackages(owner *site.Profile, root, p string, want index.Named, r io.Reader) error {
	defer m.learning.lock(root)()
	if repo, ok := m.index.Repo(root); ok && (repo.Packages == want.Sum || repo.Records[repo.Primary].Sum != want.Sum) {
		return nil // known already, or overtaken
	}
	staged, err := m.StagePackages(owner, root, p, want, r)
	if err != nil {
		return err
	}
	m.gate.Lock()
	defer m.gate.Unlock()
	return m.index.SetPackages(root, staged)
}

// StagePackages reads the primary at p of the repository at root, of the profile owner, which want describes, for a
// Publication. What it names that is no package, or of another profile, is left to the clients: a repository has no say in
// that. For one root one call at a time.
func (m *Mirror) StagePackages(owner *site.Profile, root, p string, want index.Named, r io.Reader) (*index.Staged, error) {
	if want.Sum.IsZero() {
		return nil, fmt.Errorf("%s: repomd.xml gives it no digest that we can make: its packages are not verified", p)
	}
	verified := digest.NewReader(r, digest.Known(want.Size, want.Sum), p, 0)
	outside, first := 0, ""
	staged, err := m.index.Stage(root, want.Sum, func(yield func(string, index.Named) error) error {
		err := repodata.ReadPrimary(verified, p, repodata.Limits{Size: want.Size}, func(pkg *repodata.Package) error {
			to, external, err := repodata.Join(root, pkg.Base, pkg.Href)
			if _, class, ours := owner.Owns(to); err != nil || external || !ours || class != site.Package {
				if outside++; outside == 1 {
					first = pkg.Base + " " + pkg.Href
				}
				return nil
			}
			return yield(to, index.Named{Size: pkg.Size, Sum: pkg.Sum, Time: pkg.FileTime})
		})
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, verified) // what follows the document counts for the digest
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: its packages are not verified: %w", p, err)
	}
	if outside > 0 {
		m.report(fmt.Errorf("%s: %d packages are on other hosts, or outside of the profile, and are left to the clients; the first is %.200s", p, outside, first))
	}
	return staged, nil
}

// relearn learns from the tree what the index has lost or never had: of each repository of the profile owner that p may
// belong to, once.
func (m *Mirror) relearn(owner *site.Profile, p string) {
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		root := dir
		if dir == "." {
			root = ""
		}
		if _, _, ours := owner.Owns(pointerOf(root)); !ours {
			return
		}
		if repo, ok := m.index.Repo(root); !ok || repo.Packages.IsZero() || repo.Packages != repo.Records[repo.Primary].Sum {
			m.relearnAt(owner, root)
		}
		if root == "" {
			return
		}
	}
}

// Relearn learns the repository whose repomd.xml t is from the tree, as far as it is not known.
func (m *Mirror) Relearn(t site.Target) {
	root, _ := repository(t.Path)
	m.relearnAt(t.Profile, root)
}

// RootOf is the root of the repository whose repomd.xml is at name.
func RootOf(name string) (root string, ok bool) {
	root, base := repository(name)
	return root, base == "repomd.xml"
}

func (m *Mirror) relearnAt(owner *site.Profile, root string) {
	// Whoever comes while another one learns waits for it: unverified bytes would be stored for good.
	defer m.relearning.lock(root)()
	repo, known := m.index.Repo(root)
	key := root
	if known {
		key += "\x00" + repo.Records[repo.Primary].Sum.String()
	}
	if !m.learned.first(key) {
		return
	}
	read := func(p string, learn func(io.Reader, time.Time) error) {
		file, err := m.store.Get(p)
		if err == nil {
			defer file.Close()
			err = learn(io.NewSectionReader(file, 0, file.Size), file.ModTime)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			m.learned.again(key, time.Now()) // it costs nothing to look
		case err != nil:
			m.learned.again(key, time.Now().Add(relearnFailed))
			m.report(fmt.Errorf("reading the stored %s: %w", p, err))
		}
	}
	if !known {
		read(pointerOf(root), func(r io.Reader, modified time.Time) error {
			return m.learnRecords(owner, root, r, modified, true)
		})
	}
	if repo, known = m.index.Repo(root); known && repo.Primary != "" {
		read(repo.Primary, func(r io.Reader, _ time.Time) error {
			return m.learnPackages(owner, root, repo.Primary, repo.Records[repo.Primary].Named, r)
		})
	}
}

// keyed locks by key. It holds only the keys that are locked or waited for: clients choose them.
type keyed struct {
	mu sync.Mutex
	m  map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int // who hold it or wait for it, under keyed.mu
}

// lock locks key and returns what unlocks it.
func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.m == nil {
		k.m = make(map[string]*keyLock)
	}
	one := k.m[key]
	if one == nil {
		one = new(keyLock)
		k.m[key] = one
	}
	one.users++
	k.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(k.m, key)
		}
	}
}

// relearnFailed is how long metadata that could not be read are left alone.
const relearnFailed = 10 * time.Minute

// onces remembers what was done, as far as it is bounded.
type onces struct {
	mu sync.Mutex
	m  map[string]time.Time // key → when it counts as new again; zero: never
}

// again makes key new at a time.
func (o *onces) again(key string, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.m[key] = at
}

// first reports whether key is new.
func (o *onces) first(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, ok := o.m[key]; ok && (at.IsZero() || time.Now().Before(at)) {
		return false
	}
	o.m = bounded(o.m)
	o.m[key] = time.Time{}
	return true
}
