package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/instantmirror/instantmirror/profiles"
)

// write makes the files of a directory: name → text.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load loads profiles that must be right, by name.
func load(t *testing.T, dirs []string, only ...string) map[string]*Profile {
	t.Helper()
	ps, err := Load(dirs, packaged, only)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]*Profile{}
	for _, p := range ps {
		m[p.Name] = p
	}
	return m
}

func TestMinimal(t *testing.T) {
	p := load(t, []string{write(t, map[string]string{"x.yaml": "name: x\npath: /x\nupstreams: [https://a.example/x]\n"})})["x"]
	if p == nil || p.Title != "x" || p.Path != "/x" || len(p.Upstreams) != 1 || p.Upstreams[0].URL != "https://a.example/x" || p.Enabled {
		t.Errorf("got %+v", p)
	}
	if at := p.Upstreams[0].At("ca"); at.Line != 3 || filepath.Base(at.File) != "x.yaml" {
		t.Errorf("the upstream stands at %v, want x.yaml:3", at)
	}
}

func TestOverride(t *testing.T) {
	dir := write(t, map[string]string{"fedora.yaml": `profile: fedora
enabled: true
upstreams: [{url: "http://near.example/f", headers: {X-Token: "5"}, rate: 10MB}]
limits: {}
layout:
  - tree: releases/{release}/Everything/{arch}/os
    repo: {id: fedora, gpgkey: "file:///key-{release} https://k.example/{arch}"}
expiry:
  - {match: "**", refresh: 1h30m}
`, "readme.txt": "[", "fedora.yaml.rpmnew": "[", ".#fedora.yaml": "[", "a/b/c.yaml": "["})
	p := load(t, []string{dir})["fedora"]
	if !p.Enabled || p.Title != "Fedora Linux" || p.Path != "/pub/fedora/linux" {
		t.Errorf("got %+v", p)
	}
	if u := p.Upstreams; len(u) != 1 || u[0].URL != "http://near.example/f" || u[0].Headers["X-Token"] != "5" || u[0].Rate != 10e6 {
		t.Errorf("upstreams are %+v, want the override's alone", p.Upstreams[0])
	}
	if at := p.Upstreams[0].At("headers.X-Token"); at.String() != dir+"/fedora.yaml:3" {
		t.Errorf("the header stands at %v", at)
	}
	if p.Limits.Connections != 0 {
		t.Errorf("limits.connections is %d, want the whole of limits replaced", p.Limits.Connections)
	}
	if len(p.Layout) != 2 || p.Layout[0].Repo.GPGKey == "" || p.Layout[1].Repo.GPGKey != "" || !p.Layout[0].Repo.Enabled || p.Layout[0].Repo.Name != "fedora" {
		t.Errorf("layout: %d entries, want the override's in front", len(p.Layout))
	}
	if len(p.Expiry) != 2 || time.Duration(p.Expiry[0].Refresh) != 90*time.Minute || p.Expiry[1].Refresh != Never {
		t.Errorf("expiry: %d entries, want the override's in front", len(p.Expiry))
	}
	if len(p.Content) != 1 || p.At("path").File != "embedded:fedora/fedora.yaml" || p.At("enabled").File != dir+"/fedora.yaml" {
		t.Errorf("content: %d entries; path from %v, enabled from %v", len(p.Content), p.At("path"), p.At("enabled"))
	}
}

// A later directory wins over an earlier one, and both over what is embedded.
func TestPrecedence(t *testing.T) {
	const whole = "name: fedora\npath: /fedora\nupstreams: [https://%s.example]\ntitle: %s\n"
	share := write(t, map[string]string{"fedora/fedora.yaml": fmt.Sprintf(whole, "share", "share")})
	etc := write(t, map[string]string{"f.yaml": "profile: fedora\nenabled: true\n"})
	own := write(t, map[string]string{"f.yaml": fmt.Sprintf(whole, "own", "own"), "over.yaml": "profile: fedora\nhosts: [h.example]\n"})

	if p := load(t, []string{share, etc})["fedora"]; p.Title != "share" || !p.Enabled {
		t.Errorf("got %q, enabled %v; want share's, enabled by etc", p.Title, p.Enabled)
	}
	if p := load(t, []string{share, etc, own})["fedora"]; p.Title != "own" || p.Enabled || len(p.Hosts) != 1 {
		t.Errorf("got %q, enabled %v; want own's with own's override only", p.Title, p.Enabled)
	}
	if p := load(t, []string{own, share})["fedora"]; p.Title != "share" || len(p.Hosts) != 1 {
		t.Errorf("got %q; want share's with own's override", p.Title)
	}
}

func TestOnly(t *testing.T) {
	dir := write(t, map[string]string{
		"x.yaml": "name: x\npath: /pub/fedora/linux\nenabled: true\nupstreams: [https://a.example/x]\n",
		"y.yaml": "profile: fedora\nenabled: false\ntitle: mine\n",
	})
	if ps := load(t, []string{dir}, "fedora"); len(ps) != 1 || !ps["fedora"].Enabled || ps["fedora"].Title != "mine" {
		t.Errorf("fedora alone: got %v", ps)
	}
	if ps := load(t, nil, dir+"/x.yaml"); len(ps) != 1 || !ps["x"].Enabled {
		t.Errorf("a whole profile's file: got %v", ps)
	}
	if ps := load(t, nil, dir+"/y.yaml"); len(ps) != 1 || ps["fedora"].Title != "mine" || !ps["fedora"].Enabled {
		t.Errorf("an override's file: got %v", ps)
	}
	for only, want := range map[string]string{
		"fedroa":           "--profile fedroa: there is no profile of this name; write fedora",
		"/nowhere/x.yaml":  "/nowhere/x.yaml: cannot be read: no such file or directory; let the daemon's user read it, or correct its name",
		dir + "/../../etc": dir + "/../../etc: cannot be read: no such file or directory; let the daemon's user read it, or correct its name",
		dir + "/":          dir + "/: cannot be read: it is not a regular file; let the daemon's user read it, or correct its name",
	} {
		if ps, err := Load(nil, packaged, []string{only}); err == nil || err.Error() != want || len(ps) != 0 {
			t.Errorf("only %s: %v, want %s", only, err, want)
		}
	}
	want := "/nowhere: cannot be read: no such file or directory; correct profiles: in the configuration, or make the directory"
	if ps, err := Load([]string{"/nowhere"}, packaged, nil); err == nil || err.Error() != want || len(ps) != 1 {
		t.Errorf("no such directory: %v, want %s", err, want)
	}
}

// A mistake in one profile leaves the others usable, for those who want to say more about them.
func TestPartial(t *testing.T) {
	dir := write(t, map[string]string{"x.yaml": "name: x\n", "y.yaml": "name: y\npath: /y\nupstreams: [https://a.example]\n", "z.yaml": "profile: fedora\nfoo: 1\n"})
	ps, err := Load([]string{dir}, packaged, nil)
	if err == nil || len(ps) != 1 || ps[0].Name != "y" {
		t.Errorf("got %d profiles, %v; want y and mistakes", len(ps), err)
	}
}

func TestDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{"1s": time.Second, "90s": 90 * time.Second, "20m": 20 * time.Minute, "1h30m": 90 * time.Minute,
		"2d": 48 * time.Hour, "1w2d3h4m5s": (7*24+2*24+3)*time.Hour + 4*time.Minute + 5*time.Second, "never": time.Duration(Never)} {
		d, err := ParseDuration(s)
		if err != nil || time.Duration(d) != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", s, time.Duration(d), err, want)
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Errorf("%q is shown as %q, which is read as %v, %v", s, d, again, err)
		}
	}
	for _, s := range []string{"", "h", "1", "-1h", "1h-", "5m1h", "1 h", "1H", "0m", "1e3s", "NEVER", "99999999999999999999w"} {
		if d, err := ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", s, d)
		}
	}
}

func TestSize(t *testing.T) {
	for s, want := range map[string]Size{"0": 0, "4096": 4096, "1kB": 1000, "10MB": 10e6, "3 GB": 3e9, "2TB": 2e12, "1KiB": 1024, "5MiB": 5 << 20, "400GiB": 400 << 30, "1TiB": 1 << 40, "7B": 7} {
		if n, err := ParseSize(s); err != nil || n != want {
			t.Errorf("ParseSize(%q) = %v, %v; want %d", s, n, err, want)
		}
	}
	for _, s := range []string{"", "GiB", "-1", "1.5GiB", "10G", "1gb", "0x10", "99999999TiB"} {
		if n, err := ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %v, want an error", s, n)
		}
	}
}

func TestConfig(t *testing.T) {
	c, err := LoadConfig("/nowhere.yaml", true)
	if err != nil {
		t.Fatal(err)
	}
	if none, err := LoadConfig("", false); err != nil || none.Root != c.Root {
		t.Errorf("no file: %v, %+v", err, none)
	}
	if !reflect.DeepEqual(c.Listen, []string{":8080"}) || c.Root != "/srv/mirror" || c.State != "/var/lib/instantmirror" || len(c.Profiles) != 2 ||
		c.Reserve != 1<<30 || c.TLS != nil || c.Allow != nil || c.Log.Level != "info" || c.Log.Format != "text" || !c.Log.Access {
		t.Errorf("defaults: %+v", c)
	}
	dir := write(t, map[string]string{"empty.yaml": "# nothing\n", "c.yaml": `listen: 127.0.0.1:80
root: /m
state: /s
profiles: [/p, /q]
reserve: 200GiB
tls: {cert: /c.pem, key: /k.pem}
allow: [10.0.0.0/8, 192.0.2.7, "2001:db8::/32"]
log: {level: debug, access: false}
`})
	if c, err = LoadConfig(dir+"/empty.yaml", false); err != nil || c.Root != "/srv/mirror" {
		t.Errorf("a file of comments: %v, %+v", err, c)
	}
	if c, err = LoadConfig(dir+"/c.yaml", false); err != nil {
		t.Fatal(err)
	}
	allow := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32")}
	if !reflect.DeepEqual(c.Listen, []string{"127.0.0.1:80"}) || c.Root != "/m" || c.State != "/s" || len(c.Profiles) != 2 || c.Reserve != 200<<30 ||
		c.TLS.Cert != "/c.pem" || c.TLS.Key != "/k.pem" || !reflect.DeepEqual(c.Allow, allow) || c.Log.Level != "debug" || c.Log.Format != "text" || c.Log.Access {
		t.Errorf("got %+v", c)
	}
	if c.Size != 0 || c.SocketPath() != "/s/admin.sock" {
		t.Errorf("size %d, socket %s", c.Size, c.SocketPath())
	}
	c.State = "/elsewhere" // as a flag might have it
	if c.SocketPath() != "/elsewhere/admin.sock" {
		t.Errorf("the socket does not follow the state: %s", c.SocketPath())
	}
	c.Socket = "a.sock"
	if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), dir+`/c.yaml:1: socket "a.sock" is not absolute`) {
		t.Errorf("a relative socket: %v", err)
	}
	for _, right := range []string{"/m/.instantmirror/state/a.sock", "/run/a.sock", "/mm/a.sock", "/" + strings.Repeat("a", 106)} {
		c.Socket = right
		if err := c.Check(); err != nil || c.SocketPath() != right {
			t.Errorf("socket %s: %v", right, err)
		}
	}
	c.State, c.Socket = "/s", ""
	c.Root = "m" // as a flag might have it
	if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), dir+`/c.yaml:2: root "m" or state "/s" is not absolute`) {
		t.Errorf("a relative root: %v", err)
	}
}

func TestConfigMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"root: /\n":                            "1: root: / would make the whole machine the mirror; write a directory of its own, such as /srv/mirror",
		"root: /m\nstate: /m/s\n":              "2: state: /m/s lies in the mirror /m, where it would be served; write another directory, or /m/.instantmirror/state",
		"root: /m\nstate: /m/\n":               "2: state: /m lies in the mirror /m, where it would be served; write another directory, or /m/.instantmirror/state",
		"root: m\n":                            `1: root: "m" is not an absolute path; write one that begins with a slash, such as /srv/mirror`,
		"listen: 8080\n":                       `1: listen: "8080" is a number or the like to YAML, not text; write it in quotes: "8080"`,
		"listen: [\":99999\"]\n":               `1: listen: ":99999" is not an address to listen on; write :port or host:port, such as :8080 or 192.0.2.7:80`,
		"listen: []\n":                         "1: listen: has no entries; write at least one, after a hyphen",
		"tls: {cert: /c}\n":                    "1: tls: has no key; write key: as well",
		"allow: 10.0.0.1/8\n":                  `1: allow: "10.0.0.1/8" has bits set beyond its length; write 10.0.0.0/8`,
		"allow: [all]\n":                       `1: allow: "all" is neither a network nor an address; write for example 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7`,
		"log: {level: loud}\n":                 `1: log.level: "loud" is none of the choices; write debug or info or warn or error`,
		"size: most\n":                         `1: size: "most" is not a size; write a whole number and its unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB), such as 10MB or 400GiB`,
		"group: wheel\n":                       `1: unknown key "group"; write one of listen, root, state, profiles, socket, size, reserve, tls, allow, log`,
		"socket: admin.sock\n":                 `1: socket: "admin.sock" is not an absolute path; write one that begins with a slash, such as /run/instantmirror/admin.sock`,
		"root: /m\nsocket: /m/a.sock\n":        `2: socket: /m/a.sock lies in the mirror /m, which holds mirrored files only; write another path, such as /run/instantmirror/admin.sock`,
		"root: /m\nsocket: /m/\n":              `2: socket: /m/ lies in the mirror /m, which holds mirrored files only; write another path, such as /run/instantmirror/admin.sock`,
		"socket: /" + strings.Repeat("a", 107): `1: socket: "/` + strings.Repeat("a", 76) + `…" is longer than the 107 bytes that the name of a socket may have; write another path, such as /run/instantmirror/admin.sock`,
		"reserve: 10%\n":                       `1: reserve: "10%" is not a size; write a whole number and its unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB), such as 10MB or 400GiB`,
		"state: /m\nroot: [\n":                 `2: is not YAML: did not find expected node content; indent by spaces, and write values that begin with * or hold { } : # in quotes`,
		"log:\n  acess: true\nroot: /":         `2: log: unknown key "acess"; write access` + "\n\x003: root: / would make the whole machine the mirror; write a directory of its own, such as /srv/mirror",
	} {
		file := filepath.Join(write(t, map[string]string{"c.yaml": text}), "c.yaml")
		_, err := LoadConfig(file, false)
		if want := file + ":" + strings.ReplaceAll(want, "\x00", file+":"); err == nil || err.Error() != want {
			t.Errorf("%q:\n%v\nwant\n%s", text, err, want)
		}
	}
	if _, err := LoadConfig("/nowhere.yaml", false); err == nil {
		t.Error("a file that is asked for and not there: no error")
	}
}

func TestJoin(t *testing.T) {
	a, b := Errors{{Pos: Pos{File: "b", Line: 2}, What: "x", Write: "y"}}, Errors{{Pos: Pos{File: "a", Line: 10}, What: "x", Write: "y"}, {Pos: Pos{File: "a", Line: 9}, What: "x", Write: "y"}}
	if err := Join(nil, a, fmt.Errorf("wrapped: %w", b)); err == nil || err.Error() != "a:9: x; y\na:10: x; y\nb:2: x; y" {
		t.Errorf("got %v", err)
	}
	if err := Join(nil, nil); err != nil {
		t.Errorf("got %v", err)
	}
	if err := Join(a, os.ErrNotExist); err == nil || err.Error() != "b:2: x; y\nfile does not exist" {
		t.Errorf("got %v", err)
	}
}

func TestSchema(t *testing.T) {
	const file = "../../profiles/schema.json"
	got := Schema()
	if !json.Valid(got) {
		t.Fatal("not JSON")
	}
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil { //nolint:gosec // it is source
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what internal/profile says (%v); make it anew: go generate ./internal/profile", file, err)
	}
}

// Every shipped profile loads, be its file embedded or installed.
func TestShipped(t *testing.T) {
	ps, err := Load(nil, profiles.FS, nil)
	if err != nil || len(ps) == 0 {
		t.Fatalf("%d profiles, %v", len(ps), err)
	}
	installed, err := Load([]string{"../../profiles"}, fstest.MapFS{}, nil)
	if err != nil || len(installed) != len(ps) {
		t.Fatalf("%d profiles, %v; want %d", len(installed), err, len(ps))
	}
	for _, p := range ps {
		if p.Enabled {
			t.Errorf("%s is enabled in its package", p.Name)
		}
	}
}
