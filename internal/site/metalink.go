package site

import (
	"net/url"
	"path"
	"strings"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/profile/glob"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// metalink is a layout entry's metalink: whom to ask, and for what.
type metalink struct {
	origin      *upstream.Origin // scheme and host; the pool's, so that all trees, profiles and reloads share it
	path, query string           // templates: the path decoded and without its first slash, the query as it is sent
}

// newMetalink returns the metalink of l, or nil: it has none, or a mistake.
func newMetalink(l *profile.Layout, pool *upstream.Pool, errs *profile.Errors) *metalink {
	if l.Metalink == "" {
		return nil
	}
	u, err := url.Parse(l.Metalink)
	if err == nil {
		var origin *upstream.Origin
		if origin, err = pool.Origin(upstream.Config{URL: u.Scheme + "://" + u.Host}); err == nil {
			return &metalink{origin, strings.TrimPrefix(u.Path, "/"), u.RawQuery}
		}
	}
	mistake(l.At("metalink"), "layout.metalink", err, errs)
	return nil
}

// Metalink returns whom to ask for the metalink of tree, a tree of t as in Target.Tree, and for what: rel and query are
// Path and Query of an upstream.Request. ok is false if t has no metalink, or tree is none of its trees.
func (t *Tree) Metalink(tree string) (origin *upstream.Origin, rel, query string, ok bool) {
	if t.metalink == nil {
		return nil, "", "", false
	}
	words := t.template.Captures(tree)
	if words == nil {
		return nil, "", "", false
	}
	rel, err := glob.Expand(t.metalink.path, func(w string) (string, bool) { v, ok := words[w]; return v, ok })
	if err != nil || path.Clean("/"+rel) != "/"+rel { // a client's path captured ".."
		return nil, "", "", false
	}
	query, err = glob.Expand(t.metalink.query, func(w string) (string, bool) { v, ok := words[w]; return escapeQuery(v), ok })
	return t.metalink.origin, rel, query, err == nil
}

// MetalinkURL returns the URL of what Metalink says, for people.
func (t *Tree) MetalinkURL(tree string) (string, bool) {
	origin, rel, query, ok := t.Metalink(tree)
	if !ok {
		return "", false
	}
	u := url.URL{Path: "/" + rel, RawQuery: query}
	return origin.Name() + u.String(), true
}

// escapeQuery encodes what a client chose, so that it stays one value of the query.
func escapeQuery(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
