package site

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

func TestMetalink(t *testing.T) {
	table := build(t, fedora, small("one", "/one")+`layout: [{tree: ., metalink: "http://m.example?repo=one%26x"}]
`, small("sub", "/sub")+`layout: [{tree: "{v}-stream/{arch}", metalink: "https://m.example:8443/a%20b/{v}/{arch}"}]
`)
	for _, tt := range []struct{ path, origin, rel, query, url string }{
		{"pub/fedora/linux/releases/43/Everything/x86_64/os/repodata/repomd.xml", "https://mirrors.example", "metalink",
			"repo=fedora-43&arch=x86_64&protocol=https,http", "https://mirrors.example/metalink?repo=fedora-43&arch=x86_64&protocol=https,http"},
		// What a client chose stays one value of the query.
		{"pub/fedora/linux/releases/4&arch=a+b c%2F#?;/Everything/x/os/f", "https://mirrors.example", "metalink",
			"repo=fedora-4%26arch%3Da%2Bb%20c%252F%23%3F%3B&arch=x&protocol=https,http",
			"https://mirrors.example/metalink?repo=fedora-4%26arch%3Da%2Bb%20c%252F%23%3F%3B&arch=x&protocol=https,http"},
		{"pub/fedora/linux/releases/43/Server/x?y/os/repodata/repomd.xml", "https://mirrors.example", "43/x+Server/x?y.meta4", "",
			"https://mirrors.example/43/x+Server/x%3Fy.meta4"},
		{"pub/fedora/linux/updates/43/Everything/source/repodata/repomd.xml", "", "", "", ""}, // has none
		{"pub/fedora/linux/other/repodata/repomd.xml", "", "", "", ""},                        // is in no layout entry
		{"one/repodata/repomd.xml", "http://m.example", "", "repo=one%26x", "http://m.example/?repo=one%26x"},
		{"sub/9-stream/x86_64/f", "https://m.example:8443", "a b/9/x86_64", "", "https://m.example:8443/a%20b/9/x86_64"},
		{"sub/..-stream/x86_64/f", "", "", "", ""}, // leads elsewhere
		{"sub/.-stream/x86_64/f", "", "", "", ""},
	} {
		r, err := table.Resolve("", "/"+tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Layout == nil {
			if tt.origin != "" {
				t.Errorf("%s: no layout entry", tt.path)
			}
			continue
		}
		origin, rel, query, ok := r.Layout.Metalink(r.Tree)
		url, ok2 := r.Layout.MetalinkURL(r.Tree)
		name := ""
		if origin != nil {
			name = origin.Name()
		}
		if name != tt.origin || rel != tt.rel || query != tt.query || url != tt.url || ok != (tt.origin != "") || ok2 != ok {
			t.Errorf("%s:\n%s %q %q %v %q\nwant\n%s %q %q %q", tt.path, name, rel, query, ok, url, tt.origin, tt.rel, tt.query, tt.url)
		}
	}
	layout := table.Profile("fedora").Trees[1]
	for _, tree := range []string{"", "releases/43", "releases/43/Everything/x86_64/os/x", "releases/43/Server/x86_64/os"} {
		if _, _, _, ok := layout.Metalink(tree); ok {
			t.Errorf("%q is no tree of %s, but has a metalink", tree, layout.Template)
		}
	}
}

// One host is one origin, for all trees, all profiles and after a reload: whether it is down is known to all.
func TestMetalinkOrigin(t *testing.T) {
	pool := upstream.NewPool("test")
	seen := map[*upstream.Origin]bool{}
	for range 2 {
		ps, err := profile.Load(nil, fstest.MapFS{"a.yaml": {Data: []byte(fedora)},
			"b.yaml": {Data: []byte(small("one", "/one") + `layout: [{tree: ., metalink: "https://mirrors.example/other"}]
limits: {connections: 1}
`)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		table, err := Build(ps, pool)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range table.Profiles() {
			for _, l := range p.Trees {
				if l.metalink != nil {
					seen[l.metalink.origin] = true
				}
			}
		}
	}
	if len(seen) != 1 {
		t.Errorf("%d origins, want one", len(seen))
	}
}

// Keys are read when the table is built, so that a reload sees what has changed in them.
func TestKeys(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	load := func() (*Table, error) {
		ps, err := profile.Load(nil, fstest.MapFS{"x.yaml": {Data: []byte(small("x", "/x") + "title: X\nkeys:\n  - " + file + "\n")}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return Build(ps, upstream.NewPool("test"))
	}
	var es profile.Errors
	_, err := load()
	want := "embedded:x.yaml:6: keys: reading keys: open " + file + ": no such file or directory; name a file that the daemon's user may read"
	if !errors.As(err, &es) || err.Error() != want {
		t.Errorf("no file: %v\nwant %s", err, want)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = load()
	want = "embedded:x.yaml:6: keys: reading keys: read " + file + ": is a directory; correct the file, or name another one"
	if err == nil || err.Error() != want {
		t.Errorf("a directory: %v\nwant %s", err, want)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = load()
	if !errors.As(err, &es) || len(es) != 1 || es[0].Line != 6 || !strings.HasPrefix(es[0].What, "keys: reading keys: "+file+": ") || es[0].Write == "" {
		t.Errorf("junk: %v", err)
	}
	if err := os.WriteFile(file, publicKey(t), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := load()
	if err != nil || table.Profile("x").Keys == nil {
		t.Errorf("a key: %v", err)
	}
}

// publicKey makes a key and returns its public part, armoured.
func publicKey(t *testing.T) []byte {
	t.Helper()
	e, err := openpgp.NewEntity("Test", "", "test@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := armor.Encode(&b, "PGP PUBLIC KEY BLOCK", nil)
	if err == nil {
		if err = e.Serialize(w); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
