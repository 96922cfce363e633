package site

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const fedora = `name: fedora
title: Fedora Linux
path: /pub/fedora/linux
hosts: [Fedora.example.org]
enabled: true
upstreams:
  - https://dl.example/pub/fedora/linux
  - {url: "https://secondary.example", match: "**/{ppc64le,s390x}/**"}
fallbacks: [https://fb.example/fedora]
archives: [{url: "https://archive.example/fedora", match: "{releases,updates}/**"}]
layout:
  - tree: releases/{release}/Everything/{arch}/debug/tree
  - tree: releases/{release}/Everything/{arch}/os
    repo: {id: fedora, name: "Fedora {release} - {arch}", gpgkey: "file:///etc/pki/rpm-gpg/K-{release}-{arch} https://k.example/2"}
    metalink: https://mirrors.example/metalink?repo=fedora-{release}&arch={arch}&protocol=https,http
  - tree: releases/{release}/{variant}/{arch}/os
    metalink: https://Mirrors.example/{release}/x+{variant}/{arch}.meta4
  - tree: updates/{release}/Everything/source
    repo: {id: updates-source, enabled: false}
expiry:
  - {match: "releases/**", refresh: never}
  - {match: "updates/**", refresh: 15m}
content:
  - {match: "**/secret/**", action: deny}
  - {match: "**/{source,debug}/**", action: pass}
limits: {connections: 3}
`

// build makes a table of profiles that must be right.
func build(t testing.TB, texts ...string) *Table {
	t.Helper()
	fsys := fstest.MapFS{}
	for i, text := range texts {
		fsys[string(rune('a'+i))+".yaml"] = &fstest.MapFile{Data: []byte(text)}
	}
	ps, err := profile.Load(nil, fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	table, err := Build(ps, upstream.NewPool("test"))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func small(name, path string) string {
	return "name: " + name + "\npath: " + path + "\nenabled: true\nupstreams: [https://" + name + ".example]\n"
}

func TestResolve(t *testing.T) {
	table := build(t, fedora, small("inner", "/pub/fedora/linux/extra"), small("other", "/pub/fedora"),
		"name: off\npath: /off\nupstreams: [https://off.example]\n")
	tests := []struct {
		host, path, profile, mirror, rel, tree string
		dir                                    bool
		layout                                 int // index, -1: none
		class                                  Class
		rule                                   string
		action                                 Action
	}{
		{"", "/pub/fedora/linux/releases/43/Everything/x86_64/os/repodata/repomd.xml", "fedora",
			"pub/fedora/linux/releases/43/Everything/x86_64/os/repodata/repomd.xml", "releases/43/Everything/x86_64/os/repodata/repomd.xml",
			"releases/43/Everything/x86_64/os", false, 1, Pointer, "releases/**", Store},
		{"mirror.example:8080", "//pub/fedora///linux/updates/43/Everything/source/x.rpm", "fedora",
			"pub/fedora/linux/updates/43/Everything/source/x.rpm", "updates/43/Everything/source/x.rpm",
			"updates/43/Everything/source", false, 3, Package, "updates/**", Pass},
		{"", "/pub/fedora/linux/releases/43/Server/x86_64/os/", "fedora",
			"pub/fedora/linux/releases/43/Server/x86_64/os", "releases/43/Server/x86_64/os", "releases/43/Server/x86_64/os", true, 2, Volatile, "releases/**", Store},
		{"", "/pub/fedora/linux/some/secret/debug/repodata/x.xml.gz", "fedora",
			"pub/fedora/linux/some/secret/debug/repodata/x.xml.gz", "some/secret/debug/repodata/x.xml.gz", "some/secret/debug", false, -1, Metadata, "default", Deny},
		{"", "/pub/fedora/linux", "fedora", "pub/fedora/linux", "", "", true, -1, Volatile, "default", Store},
		{"", "/pub/fedora/linux//", "fedora", "pub/fedora/linux", "", "", true, -1, Volatile, "default", Store},
		{"", "/pub/fedora/linux/extra/repodata/repomd.xml.asc", "inner",
			"pub/fedora/linux/extra/repodata/repomd.xml.asc", "repodata/repomd.xml.asc", "", false, -1, Pointer, "default", Store},
		{"", "/pub/fedora/linuxes", "other", "pub/fedora/linuxes", "linuxes", "", false, -1, Volatile, "default", Store},
		{"FEDORA.example.org.:8443", "/releases/43/Everything/x86_64/os/.treeinfo", "fedora",
			"pub/fedora/linux/releases/43/Everything/x86_64/os/.treeinfo", "releases/43/Everything/x86_64/os/.treeinfo",
			"releases/43/Everything/x86_64/os", false, 1, Pointer, "releases/**", Store},
		{"fedora.example.org", "/", "fedora", "pub/fedora/linux", "", "", true, -1, Volatile, "default", Store},
		{"[::1]:8080", "/pub/fedora/x", "other", "pub/fedora/x", "x", "", false, -1, Volatile, "default", Store},
	}
	for _, tt := range tests {
		r, err := table.Resolve(tt.host, tt.path)
		if err != nil {
			t.Errorf("%s%s: %v", tt.host, tt.path, err)
			continue
		}
		layout := -1
		for i, l := range r.Profile.Trees {
			if l == r.Layout {
				layout = i
			}
		}
		if r.Profile.Name != tt.profile || r.Path != tt.mirror || r.Rel != tt.rel || r.Dir != tt.dir {
			t.Errorf("%s%s: profile %s, path %q, rel %q, dir %v; want %s, %q, %q, %v", tt.host, tt.path, r.Profile.Name, r.Path, r.Rel, r.Dir,
				tt.profile, tt.mirror, tt.rel, tt.dir)
		}
		if r.Tree != tt.tree || layout != tt.layout || r.Class != tt.class || r.Rule.Match != tt.rule || r.Action != tt.action || (r.Content == nil) != (tt.action == Store) {
			t.Errorf("%s%s: tree %q (layout %d), class %v, rule %s, action %v; want %q (%d), %v, %s, %v", tt.host, tt.path, r.Tree, layout, r.Class, r.Rule.Match,
				r.Action, tt.tree, tt.layout, tt.class, tt.rule, tt.action)
		}
	}
}

func TestResolveErrors(t *testing.T) {
	table := build(t, fedora, small("root", "/r"))
	long := strings.Repeat("x", 250)
	for path, want := range map[string]error{
		"":                                     ErrBadPath,
		"pub/fedora/linux/x":                   ErrBadPath,
		"/pub/fedora/linux/../x":               ErrBadPath,
		"/pub/fedora/linux/.":                  ErrBadPath,
		"/pub/fedora/linux/..":                 ErrBadPath,
		"/pub/fedora/linux/a\x00":              ErrBadPath,
		"/pub/fedora/linux/a\nb":               ErrBadPath,
		"/pub/fedora/linux/a\x7f":              ErrBadPath,
		`/pub/fedora/linux/a\b`:                ErrBadPath,
		"/pub/fedora/linux/123456" + long:      ErrBadPath,
		"/pub/" + strings.Repeat(long+"/", 17): ErrBadPath,
		"/.instantmirror/tmp/x":                ErrBadPath,
		"//.instantmirror":                     ErrBadPath,
		"/-/healthz":                           ErrNoRoute,
		"/-":                                   ErrNoRoute,
		"/":                                    ErrNoRoute,
		"/pub":                                 ErrNoRoute,
		"/pub/fedora":                          ErrNoRoute,
		"/pub/fedora/linux2/x":                 ErrNoRoute,
		"/favicon.ico":                         ErrNoRoute,
		"/pub/fedora/linux/a~b^c+d..e/.f/" + long: nil,
	} {
		if _, err := table.Resolve("", path); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", path, err, want)
		}
	}
	// Host names change nothing about what is reserved, nor about how long a path may become.
	for path, want := range map[string]error{"/-/": ErrNoRoute, "/.instantmirror/x": ErrBadPath, "/a/../b": ErrBadPath,
		"/" + strings.Repeat("x/", 2047): ErrBadPath, "/" + strings.Repeat("x/", 2000): nil} {
		if _, err := table.Resolve("fedora.example.org", path); !errors.Is(err, want) {
			t.Errorf("%.40q by host name: %v, want %v", path, err, want)
		}
	}
}

// A profile may stand at / itself: beside the reserved names everything is its own.
func TestRootProfile(t *testing.T) {
	table := build(t, small("all", "/"), small("x", "/x"))
	for path, want := range map[string]string{"/": "all ", "/a/b.rpm": "all a/b.rpm", "/x/y": "x y", "/-x": "all -x"} {
		r, err := table.Resolve("", path)
		if err != nil || r.Profile.Name+" "+r.Rel != want || r.Path != strings.Trim(path, "/") {
			t.Errorf("%s: %v, %q, want %q", path, err, r.Path, want)
		}
	}
	for path, want := range map[string]error{"/-/x": ErrNoRoute, "/.instantmirror": ErrBadPath} {
		if _, err := table.Resolve("", path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if p := table.Profiles()[0]; p.Path != "" {
		t.Errorf("path %q, want none", p.Path)
	}
}

func TestClass(t *testing.T) {
	for rel, want := range map[string]Class{
		"repodata/repomd.xml":                    Pointer,
		"a/repodata/repomd.xml.asc":              Pointer,
		"a/repodata/repomd.xml.key":              Pointer,
		"a/repodata/repomd.xml.zck":              Metadata,
		"a/repomd.xml":                           Volatile,
		"repomd.xml":                             Volatile,
		"a/xrepodata/repomd.xml":                 Volatile,
		"a/.treeinfo":                            Pointer,
		"treeinfo":                               Pointer,
		"a/repodata/abc-primary.xml.zst":         Metadata,
		"repodata/primary.xml.gz":                Metadata,
		"repodata/x/y":                           Metadata,
		"a/repodata":                             Volatile,
		"a/Packages/b/bash-5.3~rc1^1+2.rpm":      Package,
		"a/x.drpm":                               Package,
		"a/x.rpm.asc":                            Volatile,
		"a/Fedora-Server-43-1.6-x86_64-CHECKSUM": Pointer,
		"a/CHECKSUM":                             Pointer,
		"a/SHA256SUMS":                           Pointer,
		"a/x.iso.SHA256SUM":                      Pointer,
		"a/SHA1SUM.gpg":                          Pointer,
		"CHECKSUM/x":                             Volatile,
		"a/sha256sums":                           Volatile,
		"a/SUMSHA":                               Volatile,
		"a/images/install.img":                   Volatile,
	} {
		if got := classOf(rel); got != want {
			t.Errorf("%s: %v, want %v", rel, got, want)
		}
	}
}

func TestRules(t *testing.T) {
	table := build(t, small("x", "/x")+`expiry:
  - {match: "never/**", refresh: never}
  - {match: "short/**", refresh: 15m}
  - {match: "all/**", refresh: 2h, grace: 2d, moving: true, idle: 1h, veto: 5%, back: 90s}
`)
	for path, want := range map[string]Rule{
		"never/x": {Never: true, Grace: day, Idle: 14 * day, Veto: 0.5, Back: day, Match: "never/**"},
		"short/x": {Refresh: 15 * time.Minute, Grace: day, Idle: 14 * day, Veto: 0.5, Back: day, Match: "short/**"},
		"all/x":   {Refresh: 2 * time.Hour, Grace: 2 * day, Moving: true, Idle: time.Hour, Veto: 0.05, Back: 90 * time.Second, Match: "all/**"},
		"x":       {Refresh: time.Hour, Grace: day, Idle: 14 * day, Veto: 0.5, Back: day, Match: "default"},
	} {
		r, err := table.Resolve("", "/x/"+path)
		if err != nil {
			t.Fatal(err)
		}
		got := *r.Rule
		if got.At.Line == 0 != (got.Match == "default") {
			t.Errorf("%s: the rule stands at %v", path, got.At)
		}
		got.At, got.glob = profile.Pos{}, nil
		if got != want {
			t.Errorf("%s: %+v; want %+v", path, got, want)
		}
	}
}

func TestProfile(t *testing.T) {
	table := build(t, small("all", "/"), small("x", "/pub/x")+"poll: always\nlimits: {size: 3GiB}\n",
		"name: off\npath: /off\nupstreams: [https://off.example]\n")
	all, x := table.Profile("all"), table.Profile("x")
	if all == nil || all.Name != "all" || all.Dir() != "" || all.PollAlways || all.Size != 0 || all.Keys != nil {
		t.Errorf("all: %+v", all)
	}
	if x == nil || x.Name != "x" || x.Dir() != "pub/x" || !x.PollAlways || x.Size != 3<<30 {
		t.Errorf("x: %+v", x)
	}
	if p := table.Profile("off"); p != nil {
		t.Errorf("a profile that is not enabled: %+v", p)
	}
}

func names(os []*upstream.Origin) string {
	var s []string
	for _, o := range os {
		s = append(s, strings.TrimPrefix(o.Name(), "https://"))
	}
	return strings.Join(s, " ")
}

func TestOrigins(t *testing.T) {
	p := build(t, fedora).Profiles()[0]
	for rel, want := range map[string]string{
		"releases/43/Everything/x86_64/os/x": "dl.example/pub/fedora/linux | fb.example/fedora | archive.example/fedora",
		"releases/43/Everything/s390x/os/x":  "secondary.example dl.example/pub/fedora/linux | fb.example/fedora | archive.example/fedora",
		"development/rawhide":                "dl.example/pub/fedora/linux | fb.example/fedora | ",
	} {
		o := p.Origins(rel)
		if got := names(o.Upstreams) + " | " + names(o.Fallbacks) + " | " + names(o.Archives); got != want {
			t.Errorf("%s: %s, want %s", rel, got, want)
		}
	}
	if got := names(p.Upstreams); got != "dl.example/pub/fedora/linux secondary.example" {
		t.Errorf("all upstreams: %s", got)
	}
}

// Origins are the pool's: those of a new table are those of the old one, with their health.
func TestReloadKeepsOrigins(t *testing.T) {
	pool := upstream.NewPool("test")
	var last *upstream.Origin
	for range 2 {
		ps, err := profile.Load(nil, fstest.MapFS{"f.yaml": {Data: []byte(fedora)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		table, err := Build(ps, pool)
		if err != nil {
			t.Fatal(err)
		}
		o := table.Profiles()[0].Upstreams[0]
		if last != nil && o != last {
			t.Error("a second table has another origin")
		}
		last = o
	}
}

// Files that profiles name are looked at when the table is built; all that are wrong are reported, each at its key.
func TestBuildErrors(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `name: x
path: /x
enabled: true
upstreams:
  - url: https://a.example
    ca: ` + junk + `
  - url: https://b.example
    username: me
    password_file: ` + dir + `/none
`
	ps, err := profile.Load(nil, fstest.MapFS{"x.yaml": {Data: []byte(text)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	table, err := Build(ps, upstream.NewPool("test"))
	var es profile.Errors
	if table != nil || !errors.As(err, &es) || len(es) != 2 {
		t.Fatalf("%v, want two mistakes", err)
	}
	want := "embedded:x.yaml:6: upstreams: upstream https://a.example: ca: " + junk + " holds no PEM certificate; name a file that does\n" +
		"embedded:x.yaml:9: upstreams: upstream https://b.example: password_file: open " + dir + "/none: no such file or directory; name a file that the daemon's user may read"
	if err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestClientRepo(t *testing.T) {
	const want = `# Fedora Linux, from the mirror at http://mirror.example:8080/pub/fedora/linux/

[fedora]
name=Fedora $releasever - $basearch
baseurl=http://mirror.example:8080/pub/fedora/linux/releases/$releasever/Everything/$basearch/os/
enabled=1
gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/K-$releasever-$basearch https://k.example/2

[updates-source]
name=updates-source
baseurl=http://mirror.example:8080/pub/fedora/linux/updates/$releasever/Everything/source/
enabled=0
gpgcheck=0
`
	if got := string(ClientRepo(build(t, fedora).Profiles()[0], "http://mirror.example:8080/pub/fedora/linux")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	one := build(t, small("one", "/one")+"layout: [{tree: ., repo: {id: one}}]\n").Profiles()[0]
	if got := string(ClientRepo(one, "https://m/one")); !strings.Contains(got, "\nbaseurl=https://m/one/\n") {
		t.Errorf("a repository at the profile's path: got\n%s", got)
	}
	if got := ClientRepo(build(t, small("none", "/none")).Profiles()[0], "https://m"); len(got) != 0 {
		t.Errorf("without repo blocks: got %q", got)
	}
}
