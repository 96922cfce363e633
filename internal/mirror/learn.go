package mirror

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/repodata"
	"github.com/instantmirror/instantmirror/internal/site"
)

// expect says what the bytes of t must be, from what the metadata that were read here say.
func (m *Mirror) expect(t site.Target) digest.Expectation {
	if t.Class != site.Metadata && t.Class != site.Package {
		return digest.Unverified(-1, "no metadata name such files")
	}
	m.relearn(t.Path)
	for _, n := range m.index.Named(t.Path) {
		if !n.Sum.IsZero() {
			return digest.Known(n.Size, n.Sum)
		}
	}
	return digest.Unverified(-1, "no metadata that were read here name it")
}

// judge is how the body of t is looked at before its end goes out, nil if it is not: repomd.xml must be one, and both
// it and primary are learned from, so that whoever has them finds their files verified.
func (m *Mirror) judge(t site.Target) func(io.Reader) error {
	root, name := repository(t.Path)
	switch {
	case name == "repomd.xml" && t.Class == site.Pointer:
		return func(r io.Reader) error { return m.learnRecords(root, r) }
	case name != "" && t.Class == site.Metadata:
		m.relearn(t.Path)
		repo, ok := m.index.Repo(root)
		if !ok || repo.Primary != t.Path || repo.Records[t.Path].Sum.IsZero() {
			return nil
		}
		return func(r io.Reader) error {
			// Its digest is right, so the client gets it, be it of any use to us or not.
			if err := m.learnPackages(root, t.Path, repo.Records[t.Path], r); err != nil {
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

// learnRecords reads a repomd.xml. An error says that it is none.
func (m *Mirror) learnRecords(root string, r io.Reader) error {
	md, err := repodata.ParseRepomd(r)
	if err != nil {
		return fmt.Errorf("%s/repodata/repomd.xml: %w", root, err)
	}
	records, primary := make(map[string]index.Named), ""
	for _, rec := range md.Records {
		p, external, err := repodata.Join(root, rec.Base, rec.Href)
		switch {
		case err != nil:
			m.report(fmt.Errorf("%s/repodata/repomd.xml: its %s is left to the clients: %w", root, rec.Type, err))
		case external:
			m.report(fmt.Errorf("%s/repodata/repomd.xml: its %s is on another host, %.200s: that is left to the clients", root, rec.Type, rec.Base))
		default:
			records[p] = index.Named{Size: rec.Size, Sum: rec.Sum}
			if rec.Type == "primary" {
				primary = p
			}
		}
	}
	// Without a working index the mirror works on, unverified.
	if err := m.index.SetRecords(root, records, primary); err != nil {
		m.report(err)
	}
	return nil
}

// learnPackages reads the primary at p of the repository at root, which want describes.
func (m *Mirror) learnPackages(root, p string, want index.Named, r io.Reader) error {
	defer m.learning.lock(root)()
	if want.Sum.IsZero() {
		return fmt.Errorf("%s: repomd.xml gives it no digest that we can make: its packages are not verified", p)
	}
	if repo, ok := m.index.Repo(root); ok && repo.Packages == want.Sum {
		return nil
	}
	verified := digest.NewReader(r, digest.Known(want.Size, want.Sum), p, 0)
	outside, first := 0, ""
	err := m.index.SetPackages(root, want.Sum, func(yield func(string, index.Named) error) error {
		err := repodata.ReadPrimary(verified, p, repodata.Limits{Size: want.Size}, func(pkg *repodata.Package) error {
			to, external, err := repodata.Join(root, pkg.Base, pkg.Href)
			if err != nil || external {
				if outside++; outside == 1 {
					first = pkg.Base + " " + pkg.Href
				}
				return nil
			}
			return yield(to, index.Named{Size: pkg.Size, Sum: pkg.Sum})
		})
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, verified) // what follows the document counts for the digest
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: its packages are not verified: %w", p, err)
	}
	if outside > 0 {
		m.report(fmt.Errorf("%s: %d packages are on other hosts or outside of the mirror and are left to the clients; the first is %.200s", p, outside, first))
	}
	return nil
}

// relearn learns from the tree what the index has lost or never had: of each repository that p may belong to, once.
func (m *Mirror) relearn(p string) {
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		root := dir
		if dir == "." {
			root = ""
		}
		if repo, ok := m.index.Repo(root); !ok || repo.Packages.IsZero() || repo.Packages != repo.Records[repo.Primary].Sum {
			m.relearnAt(root)
		}
		if root == "" {
			return
		}
	}
}

func (m *Mirror) relearnAt(root string) {
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
	read := func(p string, learn func(io.Reader) error) {
		file, err := m.store.Get(p)
		if err == nil {
			defer file.Close()
			err = learn(io.NewSectionReader(file, 0, file.Size))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.learned.forget(key)
			m.report(fmt.Errorf("reading the stored %s: %w", p, err))
		}
	}
	if !known {
		read(strings.TrimPrefix(root+"/repodata/repomd.xml", "/"), func(r io.Reader) error { return m.learnRecords(root, r) })
	}
	if repo, known = m.index.Repo(root); known && repo.Primary != "" {
		read(repo.Primary, func(r io.Reader) error { return m.learnPackages(root, repo.Primary, repo.Records[repo.Primary], r) })
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

// onces remembers what was done, as far as it is bounded.
type onces struct {
	mu sync.Mutex
	m  map[string]bool
}

// forget makes key new again.
func (o *onces) forget(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.m, key)
}

// first reports whether key is seen for the first time.
func (o *onces) first(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m[key] {
		return false
	}
	o.m = bounded(o.m)
	o.m[key] = true
	return true
}
