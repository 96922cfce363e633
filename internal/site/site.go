// Package site is what runs: the immutable routing table that is made of the enabled profiles, and the one place that
// says what a requested path is. A reload builds a new Table; the origins in it are the Pool's, so that their health
// survives.
package site

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// Table is the routing table. It never changes, and is safe for concurrent use.
type Table struct {
	profiles []*Profile          // by name
	byPath   []*Profile          // longest path first
	hosts    map[string]*Profile // by host name in lower case
}

// Profile is an enabled profile. It and all that it holds must not be changed.
type Profile struct {
	Name, Title string
	Path        string   // URL path without a slash at the end: "/pub/fedora/linux"; "" for a profile at /
	Hosts       []string // host names, in lower case, that serve it at /
	Trees       []*Tree
	Rules       []*Rule        // expiry; the first that matches rules
	Content     []*ContentRule // the first that matches rules
	Upstreams   []*upstream.Origin
	Fallbacks   []*upstream.Origin
	Archives    []*upstream.Origin

	dir                            string // Path without its first slash
	upstreams, fallbacks, archives origins
}

// Tree is one layout entry.
type Tree struct {
	Template string        // as it was written
	Repo     *profile.Repo // nil if it is in no .repo file
	at       profile.Pos
	template *profile.Template
}

// Rule is one expiry entry.
type Rule struct {
	Refresh time.Duration // upstream is asked again when a copy is older than this; 0 if Never
	Never   bool
	Match   string      // the glob as it was written; "default" for the rule of what none matches
	At      profile.Pos // zero for that one
	glob    *profile.Glob
}

// defaultRule is for what no expiry entry matches (DESIGN 3.1).
var defaultRule = &Rule{Refresh: time.Hour, Match: "default"}

// Action says what is done with a file.
type Action int

// What is done with a file.
const (
	Store Action = iota // a copy is kept: what is done where nothing else is said
	Pass                // it passes through, nothing is kept
	Deny                // it is refused
)

// String returns the word that profiles use.
func (a Action) String() string { return [...]string{"store", "pass", "deny"}[a] }

// ContentRule is one content entry.
type ContentRule struct {
	Match  string // the glob as it was written
	Action Action
	At     profile.Pos
	glob   *profile.Glob
}

// origins is one list of them, with what each is for.
type origins []choice

type choice struct {
	origin *upstream.Origin
	match  *profile.Glob // nil: everything
}

// Build makes the table of those of ps that are enabled, which must be right (profile.Load). An error is of type
// profile.Errors: files that profiles name and that cannot be used.
func Build(ps []*profile.Profile, pool *upstream.Pool) (*Table, error) {
	t := &Table{hosts: map[string]*Profile{}}
	var errs profile.Errors
	for _, in := range ps {
		if !in.Enabled {
			continue
		}
		p := &Profile{Name: in.Name, Title: in.Title, Path: strings.TrimSuffix(in.Path, "/"), Hosts: in.Hosts}
		p.dir = strings.TrimPrefix(p.Path, "/")
		for _, l := range in.Layout {
			p.Trees = append(p.Trees, &Tree{l.Tree.String(), l.Repo, l.Pos, l.Tree})
		}
		for _, e := range in.Expiry {
			r := &Rule{Never: e.Refresh == profile.Never, Match: e.Match.String(), At: e.Pos, glob: e.Match}
			if !r.Never {
				r.Refresh = time.Duration(e.Refresh)
			}
			p.Rules = append(p.Rules, r)
		}
		for _, c := range in.Content {
			a := map[string]Action{"store": Store, "pass": Pass, "deny": Deny}[c.Action]
			p.Content = append(p.Content, &ContentRule{c.Match.String(), a, c.Pos, c.Match})
		}
		list := func(key string, from []*profile.Origin) (all []*upstream.Origin, list origins) {
			for _, o := range from {
				if origin := origin(key, o, in.Limits.Connections, pool, &errs); origin != nil {
					all, list = append(all, origin), append(list, choice{origin, o.Match})
				}
			}
			return all, list
		}
		p.Upstreams, p.upstreams = list("upstreams", in.Upstreams)
		p.Fallbacks, p.fallbacks = list("fallbacks", in.Fallbacks)
		p.Archives, p.archives = list("archives", in.Archives)
		t.profiles = append(t.profiles, p)
		for _, h := range p.Hosts {
			t.hosts[h] = p
		}
	}
	slices.SortFunc(t.profiles, func(a, b *Profile) int { return cmp.Compare(a.Name, b.Name) })
	t.byPath = slices.SortedFunc(slices.Values(t.profiles), func(a, b *Profile) int { return len(b.Path) - len(a.Path) })
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return t, nil
}

// origin returns the pool's origin for o, or nil and a mistake.
func origin(key string, o *profile.Origin, connections int, pool *upstream.Pool, errs *profile.Errors) *upstream.Origin {
	origin, err := pool.Origin(upstream.Config{
		URL: o.URL, CA: o.CA, ClientCert: o.ClientCert, ClientKey: o.ClientKey, Username: o.Username, PasswordFile: o.PasswordFile,
		Headers: o.Headers, Connections: cmp.Or(o.Connections, connections), Rate: int64(o.Rate),
	})
	if err == nil {
		return origin
	}
	at, what, write := o.Pos, err.Error(), "correct the file, or name another one"
	for _, f := range []struct{ key, file string }{
		{"ca", o.CA}, {"client_cert", o.ClientCert}, {"client_key", o.ClientKey}, {"password_file", o.PasswordFile},
	} {
		if f.file != "" && strings.Contains(what, f.file) {
			at = o.At(f.key)
			break
		}
	}
	if i := strings.LastIndex(what, ": "); i > 0 { // upstream's errors end in what to do
		what, write = what[:i], what[i+2:]
	}
	errs.Add(at, key+": "+what, write)
	return nil
}

// Profiles returns the enabled profiles by name.
func (t *Table) Profiles() []*Profile { return t.profiles }

// Origins returns whom to ask for the path rel, relative to the profile's: of each list those whose match covers it,
// then those that have none.
func (p *Profile) Origins(rel string) upstream.Order {
	return upstream.Order{Upstreams: p.upstreams.of(rel), Fallbacks: p.fallbacks.of(rel), Archives: p.archives.of(rel)}
}

func (list origins) of(rel string) []*upstream.Origin {
	var matching, rest []*upstream.Origin
	for _, c := range list {
		switch {
		case c.match == nil:
			rest = append(rest, c.origin)
		case c.match.Match(rel):
			matching = append(matching, c.origin)
		}
	}
	return append(matching, rest...)
}
