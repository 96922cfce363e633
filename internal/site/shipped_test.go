package site

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/upstream"
	"github.com/instantmirror/instantmirror/profiles"
)

var update = flag.Bool("update", false, "rewrite the .repo and .trees files in testdata/shipped")

// sample is one line of a profile's paths.txt: a real path, and what the profile must make of it.
type sample struct {
	line                            int
	path, tree, class, rule, action string
}

// shipped returns the embedded profiles, enabled, by the directory below profiles/ that they are in.
func shipped(t testing.TB) map[string]*profile.Profile {
	t.Helper()
	files, err := fs.Glob(profiles.FS, "*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d profiles, %v", len(files), err)
	}
	ps, err := profile.Load(nil, profiles.FS, nil)
	if err != nil {
		t.Fatal(err)
	}
	byDir := map[string]*profile.Profile{}
	for _, p := range ps {
		p.Enabled = true
		dir := path.Dir(strings.TrimPrefix(p.Pos.File, "embedded:"))
		if byDir[dir] != nil {
			t.Fatalf("two profiles in %s: paths.txt can be one's only", dir)
		}
		byDir[dir] = p
	}
	return byDir
}

// samples reads profiles/DIR/paths.txt: PATH TREE CLASS RULE ACTION, with "-" for no tree of the layout and "default" for no rule.
func samples(t testing.TB, dir string) []sample {
	t.Helper()
	file := "../../profiles/" + dir + "/paths.txt"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []sample
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
		case len(f) == 5:
			all = append(all, sample{n, f[0], f[1], f[2], f[3], f[4]})
		default:
			t.Errorf("%s:%d: %d fields, want PATH TREE CLASS RULE ACTION", file, n, len(f))
		}
	}
	if len(all) == 0 {
		t.Errorf("%s: no paths", file)
	}
	return all
}

// differ returns what the profile p makes otherwise than the samples, and its .repo and .trees files in testdata/shipped,
// say. (The .repo file shows the tree updates/{release}/SRPMS, which is one of updates/{release}/{arch} too.) Into reached,
// if it is not nil, go the layout entries that samples lie in.
func differ(t testing.TB, p *profile.Profile, all []sample, pool *upstream.Pool, reached map[string]bool) []string {
	t.Helper()
	table, err := Build([]*profile.Profile{p}, pool)
	if err != nil {
		t.Fatal(err)
	}
	var bad []string
	for file, got := range map[string][]byte{
		p.Name + ".repo":  ClientRepo(table.Profiles()[0], "http://mirror.example.org"+table.Profiles()[0].Path),
		p.Name + ".trees": trees(table, p, all),
	} {
		file = "testdata/shipped/" + file
		if *update && reached != nil {
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			bad = append(bad, fmt.Sprintf("%s (%v) is another one: look at it after go test ./internal/site -run 'TestShipped$' -update", file, err))
		}
	}
	for _, s := range all {
		r, err := table.Resolve("", p.Path+"/"+s.path)
		if err != nil {
			bad = append(bad, fmt.Sprintf("paths.txt:%d: %s: %v", s.line, s.path, err))
			continue
		}
		tree := "-" // a repository that no layout entry names is no tree
		if r.Layout != nil {
			tree = r.Tree
			if reached != nil {
				reached[r.Layout.Template] = true
			}
		}
		got := []string{tree, r.Class.String(), r.Rule.Match, r.Action.String()}
		if want := []string{s.tree, s.class, s.rule, s.action}; !slices.Equal(got, want) {
			bad = append(bad, fmt.Sprintf("paths.txt:%d: %s: got %v, want %v", s.line, s.path, got, want))
		}
	}
	return bad
}

// trees says how each tree that samples lie in is watched: refresh, what of its rule is not as by default, its metalink.
func trees(table *Table, p *profile.Profile, all []sample) []byte {
	var lines []string
	for _, s := range all {
		r, err := table.Resolve("", p.Path+"/"+s.path)
		if err != nil || r.Layout == nil {
			continue
		}
		line := []string{r.Tree, profile.Span(r.Rule.Refresh).String()}
		if r.Rule.Never {
			line[1] = "never"
		}
		for _, d := range []struct {
			key       string
			is, usual time.Duration
		}{{"grace", r.Rule.Grace, defaultRule.Grace}, {"idle", r.Rule.Idle, defaultRule.Idle}, {"back", r.Rule.Back, defaultRule.Back}} {
			if d.is != d.usual {
				line = append(line, d.key+"="+profile.Span(d.is).String())
			}
		}
		if r.Rule.Veto != defaultRule.Veto {
			line = append(line, fmt.Sprintf("veto=%v", r.Rule.Veto))
		}
		if r.Rule.Moving {
			line = append(line, "moving")
		}
		if url, ok := r.Layout.MetalinkURL(r.Tree); ok {
			line = append(line, url)
		}
		if text := strings.Join(line, " ") + "\n"; !slices.Contains(lines, text) {
			lines = append(lines, text)
		}
	}
	return []byte(strings.Join(lines, ""))
}

// TestShipped: each shipped profile makes of the real paths beside it what is written there, and none of its layout,
// expiry and content entries can be taken away without that showing.
func TestShipped(t *testing.T) {
	pool := upstream.NewPool("test")
	for dir, p := range shipped(t) {
		t.Run(dir, func(t *testing.T) {
			all := samples(t, dir)
			reached := map[string]bool{}
			for _, s := range differ(t, p, all, pool, reached) {
				t.Error(s)
			}
			for i, l := range p.Layout {
				if !reached[l.Tree.String()] {
					t.Errorf("%s: no path in paths.txt lies in the tree %s", l.Pos, l.Tree)
				}
				without := *p
				without.Layout = slices.Delete(slices.Clone(p.Layout), i, i+1)
				if len(differ(t, &without, all, pool, nil)) == 0 {
					t.Errorf("%s: the tree %s can be taken away and no path in paths.txt shows it", l.Pos, l.Tree)
				}
				if l.Metalink == "" {
					continue
				}
				bare := *l
				bare.Metalink = ""
				without.Layout = slices.Clone(p.Layout)
				without.Layout[i] = &bare
				if len(differ(t, &without, all, pool, nil)) == 0 {
					t.Errorf("%s: the metalink can be taken away and no path in paths.txt shows it", l.At("metalink"))
				}
			}
			for i, e := range p.Expiry {
				without := *p
				without.Expiry = slices.Delete(slices.Clone(p.Expiry), i, i+1)
				if len(differ(t, &without, all, pool, nil)) == 0 {
					t.Errorf("%s: the expiry rule %s can be taken away and no path in paths.txt shows it", e.Pos, e.Match)
				}
				for _, key := range []string{"grace", "moving", "idle", "veto", "back"} {
					if !e.Has(key) {
						continue
					}
					without.Expiry = slices.Clone(p.Expiry)
					without.Expiry[i] = unset(e, key)
					if len(differ(t, &without, all, pool, nil)) == 0 {
						t.Errorf("%s: %s is what it is by default", e.At(key), key)
					}
				}
			}
			for i, c := range p.Content {
				without := *p
				without.Content = slices.Delete(slices.Clone(p.Content), i, i+1)
				if len(differ(t, &without, all, pool, nil)) == 0 {
					t.Errorf("%s: the content rule %s can be taken away and no path in paths.txt shows it", c.Pos, c.Match)
				}
			}
			if entries := len(p.Layout) + len(p.Expiry) + len(p.Content); entries == 0 {
				t.Error("no entries at all")
			}
		})
	}
}

// unset returns e with one key as it is by default.
func unset(e *profile.Expiry, key string) *profile.Expiry {
	c := *e
	switch key {
	case "grace":
		c.Grace = profile.Span(defaultRule.Grace)
	case "moving":
		c.Moving = defaultRule.Moving
	case "idle":
		c.Idle = profile.Span(defaultRule.Idle)
	case "veto":
		c.Veto = profile.Percent(100 * defaultRule.Veto)
	case "back":
		c.Back = profile.Span(defaultRule.Back)
	}
	return &c
}

// TestShippedTogether: all can be enabled at once, and each makes a .repo file whose sections differ from the others'.
func TestShippedTogether(t *testing.T) {
	var ps []*profile.Profile
	for _, p := range shipped(t) {
		ps = append(ps, p)
	}
	table, err := Build(ps, upstream.NewPool("test"))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, p := range table.Profiles() {
		repo := ClientRepo(p, "http://m.example"+p.Path)
		if len(repo) == 0 {
			t.Errorf("%s has no repositories", p.Name)
		}
		for line := range strings.Lines(string(repo)) {
			line = strings.TrimSpace(line)
			if strings.ContainsAny(line, "{}") {
				t.Errorf("%s: a word is left in %q", p.Name, line)
			}
			if strings.HasPrefix(line, "[") {
				if other, ok := ids[line]; ok {
					t.Errorf("%s and %s both have a repository %s", other, p.Name, line)
				}
				ids[line] = p.Name
			}
		}
	}
}

// everyday are requests as a fleet sends them.
var everyday = []string{
	"/pub/fedora/linux/updates/43/Everything/x86_64/repodata/repomd.xml",
	"/pub/fedora/linux/updates/43/Everything/x86_64/Packages/b/bash-5.3.0-2.fc43.x86_64.rpm",
	"/pub/fedora/linux/releases/43/Everything/x86_64/os/Packages/z/zlib-ng-2.2.5-1.fc43.x86_64.rpm",
	"/pub/centos/10-stream/AppStream/x86_64/os/Packages/python3-requests-2.32.3-2.el10.noarch.rpm",
	"/pub/rpmfusion/nonfree/fedora/updates/43/x86_64/s/steam-1.0.0.83-1.fc43.i686.rpm",
}

func TestResolveAllocates(t *testing.T) {
	table := everydayTable(t)
	for _, p := range everyday {
		if n := testing.AllocsPerRun(100, func() { table.Resolve("mirror.example.org:8080", p) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", p, n)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	table := everydayTable(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := table.Resolve("mirror.example.org:8080", everyday[i%len(everyday)]); err != nil {
			b.Fatal(err)
		}
	}
}

func everydayTable(t testing.TB) *Table {
	t.Helper()
	var ps []*profile.Profile
	for _, p := range shipped(t) {
		ps = append(ps, p)
	}
	table, err := Build(ps, upstream.NewPool("test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range everyday {
		if r, err := table.Resolve("", p); err != nil || r.Layout == nil {
			t.Fatalf("%s: %v, in no tree", p, err)
		}
	}
	return table
}
