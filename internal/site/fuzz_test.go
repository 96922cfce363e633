package site

import (
	"errors"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzResolve: whatever a client asks for is refused, or is a clean path within the root, within its profile, with all
// that the other rooms rely on (P11).
func FuzzResolve(f *testing.F) {
	table := build(f, fedora, small("inner", "/pub/fedora/linux/extra"), small("other", "/pub/fedora"))
	rooted := build(f, small("all", "/"), fedora)
	for _, p := range everyday {
		f.Add("", p)
	}
	for _, p := range []string{
		"/", "", "//", "/./", "/../../etc/passwd", "/pub/fedora/linux/..", "/pub/fedora/linux/a/../../b", "/pub//fedora///linux//x/",
		"/.instantmirror/tmp/1", "/-/api/status", "/pub/fedora/linux/\x00", `/pub/fedora/linux/\..\x`, "/pub/fedora/linux/\xff\xfe",
		"/pub/fedora/linux/" + strings.Repeat("a", 256), strings.Repeat("/a", 3000), "/releases/43/Everything/x86_64/os/repodata/repomd.xml",
	} {
		f.Add("", p)
		f.Add("fedora.example.org:80", p)
	}
	f.Fuzz(func(t *testing.T, host, url string) {
		for _, table := range []*Table{table, rooted} {
			r, err := table.Resolve(host, url)
			if err != nil {
				if !errors.Is(err, ErrBadPath) && !errors.Is(err, ErrNoRoute) {
					t.Fatalf("error %v", err)
				}
				if r != (Target{}) {
					t.Fatal("a target beside an error")
				}
				continue
			}
			p := r.Profile
			if r.Path != "" && (!filepath.IsLocal(r.Path) || path.Clean(r.Path) != r.Path || strings.ContainsAny(r.Path, "\x00\\\n\r")) {
				t.Errorf("%q: path %q is not clean", url, r.Path)
			}
			if join(p.dir, r.Rel) != r.Path {
				t.Errorf("%q: path %q is not %q below %q", url, r.Path, r.Rel, p.dir)
			}
			if r.Path == ".instantmirror" || strings.HasPrefix(r.Path, ".instantmirror/") || len(r.Path) > maxPath {
				t.Errorf("%q: path %q", url, r.Path)
			}
			if r.Dir != (strings.HasSuffix(url, "/") || r.Rel == "") {
				t.Errorf("%q: dir %v", url, r.Dir)
			}
			if r.Tree != "" && r.Rel != r.Tree && !strings.HasPrefix(r.Rel, r.Tree+"/") {
				t.Errorf("%q: tree %q does not hold %q", url, r.Tree, r.Rel)
			}
			if r.Rule == nil || r.Class.String() == "" || r.Action.String() == "" || (r.Content == nil && r.Action != Store) {
				t.Errorf("%q: not complete: %+v", url, r)
			}
			p.Origins(r.Rel)
			if r.Layout != nil {
				checkMetalink(t, r)
			}
			// What is stored at a path is found by that path.
			again, err := table.Resolve("", "/"+r.Path)
			if p.dir != "" && len(p.Hosts) == 0 && (err != nil || again.Profile != p || again.Rel != r.Rel) {
				t.Errorf("%q: path %q is resolved as %+v, %v", url, r.Path, again, err)
			}
		}
	})
}

// checkMetalink: whatever a client put into a tree's name, the profile's host is url, for a clean path, and each value
// of the query is what the profile says with the client's word in it.
func checkMetalink(t *testing.T, r Target) {
	origin, rel, query, ok := r.Layout.Metalink(r.Tree)
	if !ok {
		if r.Layout.metalink != nil && !strings.Contains(r.Tree, "..") {
			t.Errorf("no metalink for %q, a tree of %s", r.Tree, r.Layout.Template)
		}
		return
	}
	if origin != r.Layout.metalink.origin || rel != "" && !filepath.IsLocal(rel) || strings.HasSuffix(rel, "/") {
		t.Errorf("%q: metalink at %s, %q", r.Tree, origin.Name(), rel)
	}
	values, err := url.ParseQuery(query)
	if words := r.Layout.template.Captures(r.Tree); query != "" && (err != nil || len(values) != 3 || values.Get("repo") != "fedora-"+words["release"] || values.Get("arch") != words["arch"]) {
		t.Errorf("%q: query %q, %v", r.Tree, query, err)
	}
	if s, _ := r.Layout.MetalinkURL(r.Tree); !strings.HasPrefix(s, "https://mirrors.example/") {
		t.Errorf("%q: metalink %s", r.Tree, s)
	}
}
