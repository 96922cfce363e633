package profile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/instantmirror/instantmirror/internal/profile/glob"
	"github.com/instantmirror/instantmirror/internal/profile/strict"
)

// check completes a merged profile and returns what is wrong with it as a whole.
func (p *Profile) check() Errors {
	var errs Errors
	for _, k := range []string{"name", "path", "upstreams"} {
		if !p.Has(k) {
			errs.Add(p.Pos, "has no "+k, "write "+k+": as well (or profile:, to override a packaged profile)")
		}
	}
	if p.Title == "" {
		p.Title = p.Name
	}
	for i, h := range p.Hosts {
		p.Hosts[i] = strings.ToLower(h)
		if slices.Contains(p.Hosts[:i], p.Hosts[i]) {
			errs.Add(p.At("hosts"), "hosts: "+h+" stands twice", "keep one of them")
		}
	}
	// What an override puts in front may hide what is packaged; in one file nothing may hide what follows.
	for i, l := range p.Layout {
		shadow(&errs, "layout", p.Layout[:i], l, func(l *Layout) (*Template, Pos) { return l.Tree, l.Pos })
		for _, m := range p.Layout[:i] {
			if m.Pos.File == l.Pos.File && m.Repo != nil && l.Repo != nil && m.Repo.ID == l.Repo.ID && l.Repo.ID != "" {
				errs.Add(l.Repo.At("id"), fmt.Sprintf("layout.repo.id: %s is that of the tree in line %d too", l.Repo.ID, m.Repo.At("id").Line),
					"give one of them another id")
			}
		}
	}
	for i, e := range p.Expiry {
		shadow(&errs, "expiry", p.Expiry[:i], e, func(e *Expiry) (*Glob, Pos) { return e.Match, e.Pos })
	}
	for i, c := range p.Content {
		shadow(&errs, "content", p.Content[:i], c, func(c *Content) (*Glob, Pos) { return c.Match, c.Pos })
	}
	return errs
}

// pattern is a glob or a tree template; P is its own type.
type pattern[P any] interface {
	comparable
	fmt.Stringer
	Covers(P) bool
}

// shadow finds the first of earlier that leaves nothing to entry, of the same list and file.
func shadow[E any, P pattern[P]](errs *Errors, key string, earlier []E, entry E, of func(E) (P, Pos)) {
	var none P
	pat, at := of(entry)
	for _, e := range earlier {
		if p, first := of(e); pat != none && p != none && first.File == at.File && p.Covers(pat) {
			errs.Add(at, fmt.Sprintf("%s: %q is never reached: %q in line %d matches all of it", key, pat, p, first.Line),
				fmt.Sprintf("write it above line %d, or remove it", first.Line))
			return
		}
	}
}

// Check finds contradictions; key says in which list o stands. Package strict calls it.
func (o *Origin) Check(key string) (errs Errors) {
	both := func(a, b string) {
		if o.Has(a) != o.Has(b) {
			if !o.Has(a) {
				a, b = b, a
			}
			errs.Add(o.At(a), fmt.Sprintf("%s: %s without %s", key, a, b), "write both, or none")
		}
	}
	both("client_cert", "client_key")
	both("username", "password_file")
	for _, k := range []string{"ca", "client_cert"} {
		if o.Has(k) && strings.HasPrefix(o.URL, "http:") {
			errs.Add(o.At(k), fmt.Sprintf("%s: %s for an http URL, where no certificate is shown", key, k), "write https:// in url, or remove "+k)
		}
	}
	if strings.Contains(o.Username, ":") { // RFC 7617, section 2
		errs.Add(o.At("username"), key+": username holds a colon, which basic authentication cannot say", "write it without the colon")
	}
	seen := map[string]bool{}
	for _, h := range slices.Sorted(maps.Keys(o.Headers)) {
		at, lower := o.At("headers."+h), strings.ToLower(h)
		switch {
		case !tokenRE.MatchString(h):
			errs.Add(at, key+".headers: "+strict.Quote(h)+" is not the name of a header", "write letters, digits and hyphens, such as X-Token")
		case slices.Contains(ownHeaders, lower):
			errs.Add(at, key+".headers: "+h+" is set by InstantMirror itself", "remove it")
		case lower == "authorization" && o.Has("username"):
			errs.Add(at, key+".headers: Authorization beside username", "keep one of them")
		case seen[lower]:
			errs.Add(at, key+".headers: "+h+" stands twice, in upper and lower case", "keep one of them")
		}
		seen[lower] = true
	}
	return errs
}

var (
	tokenRE = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$") // RFC 9110, section 5.6.2
	// ownHeaders are set by InstantMirror itself or belong to the connection.
	ownHeaders = []string{"host", "range", "if-range", "if-none-match", "if-modified-since", "if-match", "if-unmodified-since",
		"accept-encoding", "content-length", "content-encoding", "connection", "keep-alive", "proxy-connection", "te", "trailer",
		"transfer-encoding", "upgrade", "expect"}
)

// RepoVariable returns the variable that stands for a captured word in a client's .repo file.
func RepoVariable(word string) (string, bool) {
	v, ok := map[string]string{"release": "$releasever", "arch": "$basearch"}[word]
	return v, ok
}

// Check finds what repo and metalink ask for and the tree, or a .repo file, cannot say. Package strict calls it.
func (l *Layout) Check(string) (errs Errors) {
	if l.Tree == nil {
		return nil
	}
	words := l.Tree.Words()
	// speaks reports whether text, the value of key at at, uses no word that the tree does not capture; used are those
	// that it does use.
	speaks := func(at Pos, key, text string) (used []string, ok bool) {
		_, err := glob.Expand(text, func(w string) (string, bool) {
			used = append(used, w)
			return "", slices.Contains(words, w)
		})
		if ge := (*glob.Error)(nil); errors.As(err, &ge) {
			errs.Add(at, fmt.Sprintf("%s: %s %s", key, strict.Quote(text), ge.What), ge.Write)
			return nil, false
		}
		return used, true
	}
	if l.Metalink != "" {
		used, ok := speaks(l.At("metalink"), "layout.metalink", l.Metalink)
		for _, w := range words {
			if ok && !slices.Contains(used, w) {
				errs.Add(l.At("metalink"), fmt.Sprintf("layout.metalink: %s does not say {%s}: trees that differ in it would have one metalink", strict.Quote(l.Metalink), w),
					"use each word that the tree captures, or write a layout entry of its own for the tree that has this metalink")
			}
		}
	}
	if l.Repo == nil {
		return errs
	}
	for _, w := range words {
		if _, ok := RepoVariable(w); !ok {
			errs.Add(l.At("tree"), fmt.Sprintf("layout.tree: a .repo file cannot say {%s}", w),
				"capture only {release} and {arch} in a tree with repo:, or remove repo:")
		}
	}
	speaks(l.Repo.At("name"), "layout.repo.name", l.Repo.Name)
	speaks(l.Repo.At("gpgkey"), "layout.repo.gpgkey", l.Repo.GPGKey)
	if l.Repo.Name == "" {
		l.Repo.Name = l.Repo.ID
	}
	return errs
}

// Check finds keys that can have no effect. Package strict calls it.
func (e *Expiry) Check(string) (errs Errors) {
	for _, k := range []string{"grace", "moving", "idle", "veto", "back"} {
		if e.Refresh == Never && e.Has(k) {
			errs.Add(e.At(k), fmt.Sprintf("expiry: %s beside refresh: never, by which nothing is polled and nothing changes", k), "remove "+k+", or write how often to look, such as refresh: 1d")
		}
	}
	return errs
}

// Check finds what is wrong with the configuration as a whole, be it from the file or from flags. Directories must have
// been made absolute.
func (c *Config) Check() error {
	var errs Errors
	root, state := filepath.Clean(c.Root), filepath.Clean(c.State)
	inside, _ := filepath.Rel(root, state)
	switch {
	case c.Root == "" || c.State == "": // said already
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.State):
		errs.Add(c.At("root"), fmt.Sprintf("root %q or state %q is not absolute", c.Root, c.State), "write paths that begin with a slash, such as /srv/mirror")
	case root == "/":
		errs.Add(c.At("root"), "root: / would make the whole machine the mirror", "write a directory of its own, such as /srv/mirror")
	case filepath.IsLocal(inside) && inside != filepath.Join(".instantmirror", "state"):
		errs.Add(c.At("state"), fmt.Sprintf("state: %s lies in the mirror %s, where it would be served", state, root),
			"write another directory, or "+filepath.Join(root, ".instantmirror", "state"))
	}
	c.checkSocket(root, &errs)
	return errs.Err()
}

// checkSocket checks a socket that was written; the default one is as right as state is.
func (c *Config) checkSocket(root string, errs *Errors) {
	inside, _ := filepath.Rel(root, filepath.Clean(c.Socket))
	switch at, write := c.At("socket"), "write another path, such as /run/instantmirror/admin.sock"; {
	case c.Socket == "":
	case !filepath.IsAbs(c.Socket):
		errs.Add(at, fmt.Sprintf("socket %q is not absolute", c.Socket), "write a path that begins with a slash, such as /run/instantmirror/admin.sock")
	case len(c.Socket) > maxSocket:
		errs.Add(at, fmt.Sprintf("socket: %s is longer than the %d bytes that the name of a socket may have", strict.Quote(c.Socket), maxSocket), write)
	case filepath.IsLocal(inside) && !strings.HasPrefix(inside, ".instantmirror/"):
		errs.Add(at, fmt.Sprintf("socket: %s lies in the mirror %s, which holds mirrored files only", c.Socket, root), write)
	}
}

// maxSocket is how long a socket's path may be: sun_path of Linux without the NUL at its end.
const maxSocket = 107

// SocketPath returns the path of the admin socket: socket, or admin.sock in the state directory as it is now.
func (c *Config) SocketPath() string {
	return cmp.Or(c.Socket, filepath.Join(c.State, "admin.sock"))
}
