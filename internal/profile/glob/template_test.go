package glob

import (
	"reflect"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	tests := []struct {
		template, path, tree string
		ok                   bool
	}{
		{"releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64/os/repodata/repomd.xml", "releases/43/Everything/x86_64/os", true},
		{"releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64/os", "releases/43/Everything/x86_64/os", true},
		{"releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64/oss/x", "", false},
		{"releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64", "", false},
		{"{release}-stream/{arch}", "9-stream/x86_64/a", "9-stream/x86_64", true},
		{"{release}-stream/{arch}", "-stream/x86_64/a", "", false}, // a capture is not empty
		{"7.{minor}", "7.9.2009/os", "7.9.2009", true},
		{"{a}", "", "", false},
		{".", "", "", true},
		{".", "a/b", "", true},
	}
	for _, tt := range tests {
		tm, err := ParseTemplate(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		if tree, ok := tm.Tree(tt.path); tree != tt.tree || ok != tt.ok {
			t.Errorf("%q: the tree of %q is %q, %v; want %q, %v", tt.template, tt.path, tree, ok, tt.tree, tt.ok)
		}
	}
}

func TestCaptures(t *testing.T) {
	for _, tt := range []struct {
		template, tree string
		want           map[string]string
	}{
		{"releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64/os", map[string]string{"release": "43", "arch": "x86_64"}},
		{"SIGs/{release}-stream/{sig}", "SIGs/9-stream/a&b", map[string]string{"release": "9", "sig": "a&b"}},
		{"7.{minor}", "7.9.2009", map[string]string{"minor": "9.2009"}},
		{"updates/{release}", "updates/43/debug", nil}, // lies in a tree, is none
		{"updates/{release}", "updates", nil},
		{"updates/{release}", "", nil},
		{"a/b", "a/b", map[string]string{}},
		{".", "", map[string]string{}},
		{".", "a", nil},
	} {
		tm, err := ParseTemplate(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		if got := tm.Captures(tt.tree); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q captures in %q %v, want %v", tt.template, tt.tree, got, tt.want)
		}
	}
}

func TestParseTemplateErrors(t *testing.T) {
	const word = "write {word}, of lower-case letters, digits and _, such as {release}"
	for template, want := range map[string]string{
		"":              "is empty; write ** for everything, or . for the directory in a tree",
		"/a":            "begins with a slash; write it relative to the profile's path: a",
		"a/*/b":         "holds the character '*'; write {word} for what differs from tree to tree",
		"{a,b}/os":      "holds the character ','; write {word} for what differs from tree to tree",
		"$releasever/x": "holds the character '$'; write {word} for what differs from tree to tree",
		"{}/os":         `has a bad capture in "{}"; ` + word,
		"{Arch}/os":     `has a bad capture in "{Arch}"; ` + word,
		"{arch/os":      `has a bad capture in "{arch"; ` + word,
		"{a}-{b}":       `has more than one capture, or half a one, in "{a}-{b}"; write one {word} in an element`,
		"a}/os":         `has more than one capture, or half a one, in "a}"; write one {word} in an element`,
		"{a}/{a}":       "captures {a} twice; give the second one another word",
	} {
		if _, err := ParseTemplate(template); err == nil || err.Error() != want {
			t.Errorf("ParseTemplate(%q): %v, want %s", template, err, want)
		}
	}
}

func TestTemplateCovers(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a/{x}", "a/{y}/debug", true},
		{"a/{x}/debug", "a/{x}", false},
		{"a/{x}", "a/b", true},
		{"a/b", "a/{x}", false},
		{"{x}-stream/a", "{y}-stream/a", true},
		{"{x}-stream/a", "9-stream/a/b", true},
		{"{x}-stream/a", "{y}/a", false},
		{"{x}/a", "{y}-stream/a", true},
		{"{x}m/a", "{y}-stream/a", true},
		{"{x}-stream/a", "{y}m/a", false},
		{".", "a", true},
		{"a", ".", false},
	} {
		a, err := ParseTemplate(tt.a)
		b, err2 := ParseTemplate(tt.b)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got := a.Covers(b); got != tt.want {
			t.Errorf("%q covers %q: %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestExpand(t *testing.T) {
	value := func(w string) (string, bool) { return strings.ToUpper(w), w == "release" || w == "arch" }
	for text, want := range map[string]string{
		"Fedora {release} - {arch}": "Fedora RELEASE - ARCH",
		"plain":                     "plain",
		"{kind}":                    "uses {kind}, which stands for nothing here; use a word that the tree captures",
		"{release":                  "uses {release}, which stands for nothing here; use a word that the tree captures",
	} {
		got, err := Expand(text, value)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("Expand(%q): %s, want %s", text, got, want)
		}
	}
}

// FuzzTemplate: the tree of a path is the beginning of it, and is the template with what it captured put back.
func FuzzTemplate(f *testing.F) {
	f.Add("releases/{release}/Everything/{arch}/os", "releases/43/Everything/x86_64/os/repodata/repomd.xml")
	f.Add("{a}-stream/x{b}y/.{c}", "9-stream/xzy/.{a}/d")
	f.Add(".", "a")
	f.Fuzz(func(t *testing.T, text, path string) {
		tm, err := ParseTemplate(text)
		if err != nil || !clean(path) {
			return
		}
		tree, ok := tm.Tree(path)
		if !ok {
			if words := tm.Captures(path); words != nil {
				t.Errorf("%q captures %v in %q, which is in no tree of it", text, words, path)
			}
			return
		}
		if tree != path && tree != "" && !strings.HasPrefix(path, tree+"/") {
			t.Errorf("%q: the tree of %q is %q", text, path, tree)
		}
		words := tm.Captures(tree)
		again, err := Expand(text, func(w string) (string, bool) { v, ok := words[w]; return v, ok && v != "" })
		if text == "." {
			again = ""
		}
		if err != nil || again != tree {
			t.Errorf("%q captures %v in %q: put back %q, %v", text, words, tree, again, err)
		}
	})
}
