package site

import (
	"errors"
	"fmt"
	"strings"
)

// What Resolve fails with; the messages say more.
var (
	// ErrBadPath: no mirror has such a path.
	ErrBadPath = errors.New("bad path")
	// ErrNoRoute: the path is in no enabled profile.
	ErrNoRoute = errors.New("no enabled profile has this path")
)

// Bounds on a path: those of Linux file systems (NAME_MAX, PATH_MAX).
const (
	maxName = 255
	maxPath = 4096
)

// Class is what governs a file's validity. It comes from the path alone.
type Class int

// The classes (DESIGN 2).
const (
	Volatile Class = iota // revalidated after an age
	Pointer               // a fixed name that vouches for others
	Metadata              // below repodata/: what a repomd.xml names
	Package               // *.rpm, *.drpm
)

// String returns the word that DESIGN uses.
func (c Class) String() string { return [...]string{"volatile", "pointer", "metadata", "package"}[c] }

// Target is one resolved request.
type Target struct {
	Profile *Profile
	Path    string       // mirror path, relative to the root: "pub/fedora/linux/releases/…"; clean, "" for the root itself
	Rel     string       // the same relative to the profile's path: "releases/…"
	Dir     bool         // the request was for a directory: it ended in a slash, or was the profile's own path
	Tree    string       // the tree's path, relative to the profile's; "" if there is none, or it is the profile itself
	Layout  *Tree        // the layout entry that names the tree; nil if it was found by its repodata/, or there is none
	Class   Class        // Volatile for a directory
	Rule    *Rule        // never nil
	Action  Action       // what Content says, or Store
	Content *ContentRule // nil if none matches
}

// Resolve says what the decoded URL path is, on the host that the client named ("" or any other: the profiles' paths
// count). Slashes that follow one another are one. An error is ErrBadPath or ErrNoRoute, with a reason.
func (t *Table) Resolve(host, path string) (Target, error) {
	name, dir, err := clean(path)
	if err != nil {
		return Target{}, err
	}
	switch first(name) {
	case "-": // /-/ is the server's, on any host
		return Target{}, ErrNoRoute
	case ".instantmirror":
		return Target{}, fmt.Errorf("%w: .instantmirror is not part of the mirror", ErrBadPath)
	}
	var r Target
	if r.Profile = t.Host(host); r.Profile != nil {
		r.Rel, r.Path = name, join(r.Profile.dir, name)
		if inner, rel := t.find(r.Path); inner != nil && len(inner.dir) > len(r.Profile.dir) {
			r.Profile, r.Rel = inner, rel // a profile of its own below this one
		}
		if len(r.Path) > maxPath {
			return Target{}, fmt.Errorf("%w: longer than %d bytes", ErrBadPath, maxPath)
		}
	} else if r.Profile, r.Rel = t.find(name); r.Profile != nil {
		r.Path = name
	} else {
		return Target{}, ErrNoRoute
	}
	r.Dir = dir || r.Rel == ""
	if !r.Dir {
		r.Class = classOf(r.Rel)
	}
	r.Tree, r.Layout = r.Profile.tree(r.Rel)
	r.Rule = defaultRule
	for _, e := range r.Profile.Rules {
		if e.glob.Match(r.Rel) {
			r.Rule = e
			break
		}
	}
	for _, c := range r.Profile.Content {
		if c.glob.Match(r.Rel) {
			r.Content, r.Action = c, c.Action
			break
		}
	}
	return r, nil
}

// clean checks path and returns it without slashes at its ends or twice in a row, and whether one was at its end.
func clean(path string) (name string, dir bool, err error) {
	if path == "" || path[0] != '/' {
		return "", false, fmt.Errorf("%w: does not begin with a slash", ErrBadPath)
	}
	if len(path) > maxPath {
		return "", false, fmt.Errorf("%w: longer than %d bytes", ErrBadPath, maxPath)
	}
	double := false
	for start, i := 1, 1; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			switch elem := path[start:i]; {
			case elem == "":
				double = double || i < len(path)
			case elem == "." || elem == "..":
				return "", false, fmt.Errorf("%w: has an element %q", ErrBadPath, elem)
			case len(elem) > maxName:
				return "", false, fmt.Errorf("%w: has an element longer than %d bytes", ErrBadPath, maxName)
			}
			start = i + 1
		} else if c := path[i]; c < ' ' || c == 0x7f || c == '\\' {
			return "", false, fmt.Errorf("%w: holds the character %q", ErrBadPath, c)
		}
	}
	dir = path[len(path)-1] == '/'
	if double {
		path = strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
	}
	return strings.Trim(path, "/"), dir, nil
}

// Host returns the profile that is served at / for the host that a client named, or nil.
func (t *Table) Host(host string) *Profile { return t.hosts[hostName(host)] }

// hostName returns a request's host without its port, in lower case.
func hostName(host string) string {
	if i := strings.IndexByte(host, ':'); i >= 0 { // an IPv6 address is no host name: what is left of it is in no profile
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// find returns the profile with the longest path that name is or lies in, and what is below it.
func (t *Table) find(name string) (p *Profile, rel string) {
	for _, p := range t.byPath {
		switch {
		case p.dir == "":
			return p, name
		case name == p.dir:
			return p, ""
		case len(name) > len(p.dir) && name[len(p.dir)] == '/' && name[:len(p.dir)] == p.dir:
			return p, name[len(p.dir)+1:]
		}
	}
	return nil, ""
}

// tree returns the tree that rel lies in.
func (p *Profile) tree(rel string) (string, *Tree) {
	for _, l := range p.Trees {
		if tree, ok := l.template.Tree(rel); ok {
			return tree, l
		}
	}
	if i := strings.LastIndex(rel, "/repodata/"); i > 0 {
		return rel[:i], nil
	}
	return "", nil
}

// classOf returns the class of the file rel.
func classOf(rel string) Class {
	dir, base := "", rel
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		dir, base = rel[:i], rel[i+1:]
	}
	switch base {
	case "repomd.xml", "repomd.xml.asc", "repomd.xml.key":
		if dir == "repodata" || strings.HasSuffix(dir, "/repodata") {
			return Pointer
		}
	case ".treeinfo", "treeinfo":
		return Pointer
	}
	if strings.HasPrefix(rel, "repodata/") || strings.Contains(rel, "/repodata/") {
		return Metadata
	}
	if strings.HasSuffix(base, ".rpm") || strings.HasSuffix(base, ".drpm") {
		return Package
	}
	_, sum, sha := strings.Cut(base, "SHA")
	if strings.Contains(base, "CHECKSUM") || sha && strings.Contains(sum, "SUM") {
		return Pointer
	}
	return Volatile
}

// first returns the first element of path.
func first(path string) string {
	elem, _, _ := strings.Cut(path, "/")
	return elem
}

func join(dir, name string) string {
	if dir == "" || name == "" {
		return dir + name
	}
	return dir + "/" + name
}
