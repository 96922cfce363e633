// Package site is what runs: the immutable routing table that is made of the enabled profiles, and the one place that
// says what a requested path is. A reload builds a new Table; the origins in it are the Pool's, so that their health
// survives.
package site

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/signature"
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
	Keys        *signature.Keyring // who may sign; nil if the profile names no keys
	PollAlways  bool               // pointers are polled though no client asks for them
	Size        int64              // bytes that its files may take; 0: unlimited

	table                          *Table
	dir                            string // Path without its first slash
	upstreams, fallbacks, archives origins
}

// Tree is one layout entry.
type Tree struct {
	Template string        // as it was written
	Repo     *profile.Repo // nil if it is in no .repo file
	template *profile.Template
	metalink *metalink // nil if it has none
}

// Rule is one expiry entry.
type Rule struct {
	Refresh time.Duration // upstream is asked again when a copy is older than this; 0 if Never
	Never   bool          // nothing is polled or revalidated, unless somebody wants it now; then the rest is the default
	Grace   time.Duration // what a generation dropped stays this long
	Idle    time.Duration // a pointer that no client asked for this long sleeps
	Back    time.Duration // an older generation is accepted when every origin has agreed on it this long
	Moving  bool          // the tree is re-pointed now and then: it may go back, and drop most of its packages
	Veto    float64       // share of what is stored of a repository, 0 to 1, beyond which deletion needs confirmation
	Match   string        // the glob as it was written; "default" for the rule of what none matches
	At      profile.Pos   // zero for that one
	glob    *profile.Glob
}

// defaultRule is for what no expiry entry matches (DESIGN 3.1).
var defaultRule = &Rule{Refresh: time.Hour, Grace: day, Idle: 14 * day, Back: day, Veto: 0.5, Match: "default"}

const day = 24 * time.Hour

func newRule(e *profile.Expiry) *Rule {
	r := &Rule{
		Grace: time.Duration(e.Grace), Idle: time.Duration(e.Idle), Back: time.Duration(e.Back),
		Moving: e.Moving, Veto: float64(e.Veto) / 100, Match: e.Match.String(), At: e.Pos, glob: e.Match,
	}
	if r.Never = e.Refresh == profile.Never; !r.Never {
		r.Refresh = time.Duration(e.Refresh)
	}
	return r
}

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
		p := &Profile{
			Name: in.Name, Title: in.Title, Path: strings.TrimSuffix(in.Path, "/"), Hosts: in.Hosts,
			Keys: keys(in, &errs), PollAlways: in.Poll == "always", Size: int64(in.Limits.Size),
		}
		p.table, p.dir = t, strings.TrimPrefix(p.Path, "/")
		for _, l := range in.Layout {
			p.Trees = append(p.Trees, &Tree{l.Tree.String(), l.Repo, l.Tree, newMetalink(l, pool, &errs)})
		}
		for _, e := range in.Expiry {
			p.Rules = append(p.Rules, newRule(e))
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
	at := o.Pos
	for _, f := range []struct{ key, file string }{
		{"ca", o.CA}, {"client_cert", o.ClientCert}, {"client_key", o.ClientKey}, {"password_file", o.PasswordFile},
	} {
		if f.file != "" && strings.Contains(err.Error(), f.file) {
			at = o.At(f.key)
			break
		}
	}
	mistake(at, key, err, errs)
	return nil
}

// keys reads the keys of a profile, or returns nil: there are none, or a mistake.
func keys(in *profile.Profile, errs *profile.Errors) *signature.Keyring {
	if len(in.Keys) == 0 {
		return nil
	}
	ring, err := signature.ReadKeys(in.Keys...)
	if err != nil {
		mistake(in.At("keys"), "keys", err, errs)
		return nil
	}
	return ring
}

// mistake adds the error of a lower room, which ends in what to do if that room knows more than this one.
func mistake(at profile.Pos, key string, err error, errs *profile.Errors) {
	what, write := err.Error(), "correct the file, or name another one"
	errno, system := errors.AsType[syscall.Errno](err)
	if i := strings.LastIndex(what, ": "); i > 0 && (!system || what[i+2:] != errno.Error()) {
		what, write = what[:i], what[i+2:]
	}
	errs.Add(at, key+": "+what, write)
}

// Profiles returns the enabled profiles by name.
func (t *Table) Profiles() []*Profile { return t.profiles }

// Profile returns the enabled profile of that name, or nil.
func (t *Table) Profile(name string) *Profile {
	for _, p := range t.profiles {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Dir returns the mirror path of p, relative to the root: "pub/fedora/linux"; "" for a profile at /.
func (p *Profile) Dir() string { return p.dir }

// Owns returns what the mirror path name is relative to the profile's, and of which class. It is not ok where name belongs
// to another profile, or to none.
func (p *Profile) Owns(name string) (rel string, c Class, ok bool) {
	owner, rel := p.table.find(name)
	if owner != p || rel == "" {
		return "", 0, false
	}
	return rel, classOf(rel), true
}

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
