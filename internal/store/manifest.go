package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	manifestSuffix = ".json"
	nextSuffix     = ".new" // of a manifest that is being written
	// maxManifest bounds a manifest, in bytes.
	maxManifest = 4 << 20
)

// manifest is what seals a bundle.
type manifest struct {
	Note   []byte         `json:"note,omitempty"`
	Remove []string       `json:"remove,omitempty"` // paths
	Files  []manifestFile `json:"files"`            // the last one is the pointer
}

// manifestFile is a staged file.
type manifestFile struct {
	Path    string    `json:"path"`
	Name    string    `json:"name"` // in the directory of the bundle, a number
	Size    int64     `json:"size"`
	ModTime time.Time `json:"mtime"`
}

// encode gives the text of b's manifest. The caller holds b.mu.
func (b *Bundle) encode() ([]byte, error) {
	m := manifest{Note: b.note, Remove: b.removals}
	for _, f := range b.files {
		m.Files = append(m.Files, manifestFile{f.path, f.name, f.size, f.mtime.UTC()})
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(m)
	if err == nil && len(text) > maxManifest {
		err = fmt.Errorf("%d files and a note of %d bytes are too much for one", len(m.Files), len(m.Note))
	}
	return text, err
}

// parseManifest reads a manifest that may be damaged, or made by somebody else.
func parseManifest(text []byte) (*manifest, error) {
	var m manifest
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	return &m, m.check()
}

// check says what is wrong with m: it must not lead out of the tree, and can be carried out.
func (m *manifest) check() error {
	if len(m.Files) == 0 {
		return errors.New("it holds no file")
	}
	paths := make([]string, 0, len(m.Files)+len(m.Remove))
	names := make(map[string]bool)
	for _, f := range m.Files {
		if n, err := strconv.ParseUint(f.Name, 10, 64); err != nil || strconv.FormatUint(n, 10) != f.Name || names[f.Name] {
			return fmt.Errorf("%q is not the name of a file of its own", f.Name)
		}
		if f.Size < 0 {
			return fmt.Errorf("%s has %d bytes", f.Path, f.Size)
		}
		names[f.Name] = true
		paths = append(paths, f.Path)
	}
	paths = append(paths, m.Remove...)
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	// What is below a path follows it at once.
	slices.SortFunc(paths, func(a, b string) int { return strings.Compare(walkOrder(a), walkOrder(b)) })
	for i, p := range paths[1:] {
		if below(p, paths[i]) {
			return fmt.Errorf("%s and %s exclude each other", paths[i], p)
		}
	}
	return nil
}

// sweepBundles removes the bundles that were not sealed, and notes those that were.
func (s *Store) sweepBundles() error {
	entries, err := fs.ReadDir(s.root.FS(), genDir)
	if err != nil {
		return err
	}
	sealed := make(map[string]bool) // names that stay
	for _, e := range entries {
		name, isManifest := strings.CutSuffix(e.Name(), manifestSuffix)
		n, err := strconv.ParseUint(name, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != name {
			continue
		}
		s.gens.Store(max(s.gens.Load(), n))
		if isManifest && e.Type().IsRegular() {
			s.unread = append(s.unread, n)
			sealed[name], sealed[e.Name()] = true, true
		}
	}
	slices.Sort(s.unread)
	for _, e := range entries {
		if !sealed[e.Name()] {
			err = errors.Join(err, s.root.RemoveAll(genDir+"/"+e.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("sweeping unfinished bundles: %w", err)
	}
	return nil
}

// Bundles returns the sealed bundles that Open found and that have not been applied or discarded since, the oldest first:
// the caller applies them, in this order, before anything else changes the tree. One that is damaged is discarded and
// reported; the others are returned all the same.
func (s *Store) Bundles() ([]*Bundle, error) {
	s.found.Lock()
	defer s.found.Unlock()
	var all error
	for _, n := range s.unread {
		b := &Bundle{store: s, n: n, written: true}
		if err := b.load(); err != nil {
			err = fmt.Errorf("%s: %w; what it holds is discarded", b.manifest(), err)
			all = errors.Join(all, err, b.Discard())
			continue
		}
		s.read = append(s.read, b)
	}
	s.unread = nil
	s.read = slices.DeleteFunc(s.read, func(b *Bundle) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.state == ended
	})
	return slices.Clone(s.read), all
}

// load reads the manifest of a bundle that Open found.
func (b *Bundle) load() error {
	s := b.store
	f, err := s.root.Open(b.manifest())
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return err
	}
	if len(text) > maxManifest {
		return errors.New("it is too large")
	}
	m, err := parseManifest(text)
	if err != nil {
		return err
	}
	var files, here []*stagedFile
	for _, f := range m.Files {
		file := &stagedFile{path: f.Path, name: f.Name, size: f.Size, mtime: f.ModTime, charge: &charge{path: f.Path}}
		files = append(files, file)
		staged, now := s.lstat(b.dir()+"/"+f.Name), s.lstat(f.Path)
		switch {
		case staged.Links > 0 && staged.Size == f.Size:
			here = append(here, file)
		case staged.Links > 0:
			return fmt.Errorf("%s has %d bytes, not %d", f.Path, staged.Size, f.Size)
		case now.Links == 0 || now.Size != f.Size || !now.ModTime.Equal(f.ModTime): // else it has its name already
			return fmt.Errorf("%s is missing", f.Path)
		}
	}
	for _, file := range here {
		s.room.charge(file.charge, file.size)
	}
	b.files, b.removals, b.note, b.state = files, m.Remove, m.Note, sealed
	return nil
}
