package profile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/instantmirror/instantmirror/internal/profile/strict"
)

// LoadConfig reads the operator's configuration. If file is "", or optional and not there, all is default. An error is
// of type Errors; the Config that is returned with it holds what was right.
func LoadConfig(file string, optional bool) (*Config, error) {
	c := &Config{}
	var data []byte
	var err error
	if file != "" {
		data, err = readFile(os.DirFS("/"), strings.TrimPrefix(abs(file), "/"))
	}
	d := format.Parse(file, data, "")
	if err != nil && (!optional || !errors.Is(err, fs.ErrNotExist)) {
		d.Fail(0, "", "cannot be read: "+reason(err), "correct the name of the file, or let the daemon's user read it")
	}
	if d.OK() {
		d.Decode(c)
	} else {
		format.Parse(file, nil, "").Decode(c)
	}
	return c, Join(d.Errs.Err(), c.Check())
}

// source is one file of profiles. One of a greater rank wins over one of a smaller.
type source struct {
	*strict.Document
	rank int
	of   string   // the profile that it overrides
	p    *Profile // the profile that it holds, if it is no override
}

// Load reads the profiles: those embedded in the program (vendor: DISTRO/NAME.yaml), then every *.yaml directly below
// each of dirs or one level down. A whole profile (it has the key name) wins over an embedded one of its name and over
// those of earlier dirs; so does an override (key profile) over an override. Of dirs, those that a Config has by default
// need not exist.
//
// If only is given, it names profiles, or (with a slash or .yaml in it) files to be read last; just these are returned,
// and are enabled. Otherwise all are returned, by name, be they enabled or not.
//
// An error is of type Errors; the profiles returned with it are those that are right in themselves.
func Load(dirs []string, vendor fs.FS, only []string) ([]*Profile, error) {
	var errs Errors
	var sources []*source
	if vendor != nil {
		sources = readDir(vendor, "embedded:", 0, &errs)
	}
	for i, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			if !errors.Is(err, fs.ErrNotExist) || !slices.Contains(defaultDirs(), dir) {
				errs.Add(Pos{File: dir}, "cannot be read: "+reason(err), "correct profiles: in the configuration, or make the directory")
			}
			continue
		}
		sources = append(sources, readDir(os.DirFS(dir), dir+"/", i+1, &errs)...)
	}
	for _, name := range only {
		if isFile(name) {
			sources = append(sources, readSource(os.DirFS("/"), strings.TrimPrefix(abs(name), "/"), name, len(dirs)+1))
		}
	}

	wholes, overrides := map[string]*source{}, map[string]*source{}
	for _, s := range sources {
		switch {
		case !s.OK():
		case s.of != "":
			win(overrides, s.of, s, "profile", &errs)
		case s.p.Name != "":
			win(wholes, s.p.Name, s, "name", &errs)
		default:
			s.Errs = append(s.Errs, s.p.check()...) // says that it has no name
		}
	}
	names := slices.Sorted(maps.Keys(wholes))
	bad := map[*Profile]bool{}
	for of, s := range overrides {
		if w := wholes[of]; w != nil {
			s.Decode(w.p)
			bad[w.p] = len(s.Errs) > 0
		} else {
			s.Decode(&Profile{})
			_, line := s.Text("profile")
			s.Fail(line, "profile", "there is no profile "+strict.Quote(of), "write "+strict.Nearest(of, names))
		}
	}
	var ps []*Profile
	for _, name := range names {
		w := wholes[name]
		faults := w.p.check()
		errs = append(errs, faults...)
		if len(w.Errs)+len(faults) == 0 && !bad[w.p] {
			ps = append(ps, w.p)
		}
	}
	for _, s := range sources {
		errs = append(errs, s.Errs...)
	}
	if len(only) > 0 {
		ps = choose(ps, names, sources, only, &errs)
	}
	conflicts(ps, &errs)
	return ps, errs.Err()
}

// readDir reads every *.yaml of fsys, directly in it or one level down.
func readDir(fsys fs.FS, shown string, rank int, errs *Errors) []*source {
	var sources []*source
	_ = fs.WalkDir(fsys, ".", func(name string, e fs.DirEntry, err error) error {
		switch hidden := strings.HasPrefix(path.Base(name), ".") && name != "."; {
		case err != nil:
			errs.Add(Pos{File: shown + name}, "cannot be read: "+reason(err), "let the daemon's user read it")
			return fs.SkipDir
		case e.IsDir() && (hidden || strings.Contains(name, "/")):
			return fs.SkipDir
		case !e.IsDir() && !hidden && path.Ext(name) == ".yaml":
			sources = append(sources, readSource(fsys, name, shown+name, rank))
		}
		return nil
	})
	return sources
}

// readSource reads and decodes one file; an override is only parsed yet.
func readSource(fsys fs.FS, name, shown string, rank int) *source {
	data, err := readFile(fsys, name)
	if err != nil {
		s := &source{Document: &strict.Document{File: shown}}
		s.Fail(0, "", "cannot be read: "+reason(err), "let the daemon's user read it, or correct its name")
		return s
	}
	s := &source{rank: rank, Document: format.Parse(shown, data,
		"write at least name, path and upstreams, or profile and enabled, or remove the file")}
	if !s.OK() {
		return s
	}
	if s.of, _ = s.Text("profile"); s.of != "" {
		if _, line := s.Text("name"); line != 0 {
			s.Fail(line, "", "name beside profile", "write profile: alone to override a packaged profile, name: alone for a whole one")
		}
		return s
	}
	s.p = &Profile{}
	s.Decode(s.p)
	return s
}

// readFile reads a regular file; of one that is too large it reads enough for parse to see that.
func readFile(fsys fs.FS, name string) ([]byte, error) {
	if fi, err := fs.Stat(fsys, name); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, strict.MaxFile+1))
}

// win puts s into m unless a source of a greater rank stands there; one of the same rank is a mistake.
func win(m map[string]*source, name string, s *source, key string, errs *Errors) {
	old := m[name]
	if old != nil && old.rank == s.rank {
		_, line := s.Text(key)
		_, first := old.Text(key)
		errs.Add(Pos{File: s.File, Line: line}, fmt.Sprintf("%s: %s stands in %s:%d too", key, strict.Quote(name), old.File, first),
			"write another one, or remove one of the files")
	}
	if old == nil || s.rank > old.rank {
		m[name] = s
	}
}

// choose returns those of ps that only names, enabled.
func choose(ps []*Profile, names []string, sources []*source, only []string, errs *Errors) []*Profile {
	var chosen []*Profile
	for _, name := range only {
		if isFile(name) {
			i := slices.IndexFunc(sources, func(s *source) bool { return s.File == name })
			if s := sources[i]; s.p != nil {
				name = s.p.Name
			} else {
				name = s.of
			}
		} else if !slices.Contains(names, name) {
			errs.Add(Pos{File: "--profile " + name}, "there is no profile of this name", "write "+strict.Nearest(name, names))
		}
		for _, p := range ps {
			if p.Name == name && !slices.Contains(chosen, p) {
				p.Enabled = true
				chosen = append(chosen, p)
			}
		}
	}
	return chosen
}

// conflicts finds enabled profiles that claim the same path or host.
func conflicts(ps []*Profile, errs *Errors) {
	ps = slices.DeleteFunc(slices.Clone(ps), func(p *Profile) bool { return !p.Enabled })
	slices.SortStableFunc(ps, func(a, b *Profile) int { // the packaged one is right, the operator's new one is to change
		return cmp.Compare(strings.Index(b.At("path").File, "embedded:"), strings.Index(a.At("path").File, "embedded:"))
	})
	for i, p := range ps {
		for _, q := range ps[:i] {
			if p.Path == q.Path {
				errs.Add(p.At("path"), fmt.Sprintf("path: %s is that of profile %s (%s) too", p.Path, q.Name, q.At("path")),
					"write another path, or disable one of them")
			}
			for _, h := range p.Hosts {
				if slices.Contains(q.Hosts, h) {
					errs.Add(p.At("hosts"), fmt.Sprintf("hosts: %s is a host of profile %s (%s) too", h, q.Name, q.At("hosts")),
						"write another host, or disable one of them")
				}
			}
		}
	}
}

// isFile reports whether an argument names a file rather than a profile.
func isFile(s string) bool { return strings.Contains(s, "/") || strings.HasSuffix(s, ".yaml") }

func abs(name string) string {
	a, err := filepath.Abs(name)
	if err != nil {
		return name
	}
	return a
}

// reason returns what an error of the file system says without the path, which the message begins with.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// defaultDirs are the directories of profiles that a Config has by default.
func defaultDirs() []string {
	var c Config
	format.Parse("", nil, "").Decode(&c)
	return c.Profiles
}
