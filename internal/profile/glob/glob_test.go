package glob

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestMatch(t *testing.T) {
	tests := []struct{ glob, yes, no string }{ // paths separated by spaces; <> is the empty one
		{"**", "<> a .a a/b/.c", ""},
		{"*", "a .a a.b", "<> a/b"},
		{"releases/**", "releases releases/43 releases/43/Everything/x86_64/os/.treeinfo", "releases2 a/releases"},
		{"releases/*", "releases/43", "releases releases/43/x"},
		{"releases/*/**", "releases/43 releases/43/x/y", "releases"},
		{"**/{source,debug}/**", "source a/source a/b/debug/c/d debug/x", "sources a/xdebug/b a/debug.rpm <>"},
		{"**/*.iso", "x.iso a/b/x.iso a/.iso .iso", "a/x.iso/b x.is"},
		{"**/a/**/b", "a/b a/x/b x/a/a/y/b/b", "a b b/a a/b/c"},
		{"**/a/*/b", "a/x/b a/a/x/b a/a/a/b", "a/b a/x/y/b"},
		{"**/a/b/c/**/d", "a/b/a/b/c/d x/a/b/c/e/d", "a/b/c a/b/d/c"},
		{"{a,b}{c,d}", "ac ad bc bd", "a ab cd abcd"},
		{"repomd.xml{,.asc,.key}", "repomd.xml repomd.xml.asc", "repomd.xml. repomd.xml.as"},
		{"{*.iso,*-CHECKSUM}", "x.iso Fedora-43-CHECKSUM", "CHECKSUM.x"},
		{"a?c", "abc aéc", "ac abbc a/c"},
		{"*a*b*", "ab xaxbx aab abb", "ba a b"},
		{"*.*/**", "7.9.2009 7.9.2009/os", "9-stream/os"},
		{"**/**/x", "x a/x", "xx"},
		{"kernel-*", "kernel-6.0~rc1^git+1.rpm", "xkernel-6"},
	}
	for _, tt := range tests {
		g, err := Parse(tt.glob)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.glob, err)
			continue
		}
		for want, paths := range map[bool]string{true: tt.yes, false: tt.no} {
			for p := range strings.FieldsSeq(paths) {
				p = strings.ReplaceAll(p, "<>", "")
				if got := g.Match(p); got != want {
					t.Errorf("%q matches %q: %v, want %v", tt.glob, p, got, want)
				}
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	for glob, want := range map[string]string{
		"":                         "is empty; write ** for everything, or . for the directory in a tree",
		"/releases/**":             "begins with a slash; write it relative to the profile's path: releases/**",
		"releases/":                "ends in a slash; leave the slash out (a glob matches all below a directory by dir/**)",
		"a//b":                     `has an element "", which no path has; leave it out`,
		"a/../b":                   `has an element "..", which no path has; leave it out`,
		"a/**b":                    `has ** within the element "**b"; write * there, or ** as an element of its own`,
		"{a,**}/b":                 `has ** within the element "{a,**}"; write * there, or ** as an element of its own`,
		"[ab]":                     "holds the character '['; leave it out, or write ? for one character, {a,b} for alternatives",
		`a\*`:                      `holds the character '\\'; leave it out, or write ? for one character, {a,b} for alternatives`,
		"a\x00":                    `holds the character '\x00'; leave it out, or write ? for one character, {a,b} for alternatives`,
		"{a,b":                     `has a brace without its partner in "{a,b"; write {a,b}, within one element, not nested`,
		"a}":                       `has a brace without its partner in "a}"; write {a,b}, within one element, not nested`,
		"{a,{b,c}}":                `has a brace without its partner in "{a,{b,c}}"; write {a,b}, within one element, not nested`,
		"{a/b,c}":                  `has a brace without its partner in "{a"; write {a,b}, within one element, not nested`,
		"releases/{release}/**":    `has only one alternative in "{release}"; write * for any name, {a,b} for alternatives ({word} is for tree templates)`,
		"{a,}":                     `has in "{a,}" an alternative "", which no element is; leave it out`,
		strings.Repeat("{a,b}", 9): "stands for more than 64 alternatives in one element; write several entries",
		strings.Repeat("a", 1025):  "is longer than 1024 bytes; write several shorter entries",
		strings.TrimRight(strings.Repeat("a/", 65), "/"): "has more than 64 elements; write fewer",
	} {
		if _, err := Parse(glob); err == nil || err.Error() != want {
			t.Errorf("Parse(%.40q): %v, want %s", glob, err, want)
		}
	}
}

// A pattern that makes a backtracking matcher try every way to share out the path must cost no more than length times
// length.
func TestMatchHostile(t *testing.T) {
	start := time.Now()
	for glob, path := range map[string]string{
		strings.Repeat("**/a/", 31) + "b":   strings.TrimSuffix(strings.Repeat("a/", 2000), "/"),
		strings.Repeat("**/*a*/", 31) + "b": strings.TrimSuffix(strings.Repeat("aaaaaaa/", 500), "/"),
		strings.Repeat("*a", 500) + "*b":    strings.Repeat("a", 4096),
	} {
		g, err := Parse(glob)
		if err != nil {
			t.Fatal(err)
		}
		if g.Match(path) {
			t.Errorf("%.20q matches", glob)
		}
	}
	if d := time.Since(start); d > 2*time.Second { // some milliseconds; exponential would be for ever
		t.Errorf("took %v", d)
	}
}

func TestCovers(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"**", "**", true},
		{"**", "a/{b,c}/**", true},
		{"a/**", "a/**", true},
		{"a/**", "a/b/**", true},
		{"a/**", "a", true},
		{"a/**", "a/*", true},
		{"a/*", "a/**", false},
		{"*/**", "**", false},
		{"**/x/**", "a/x/b/**", true},
		{"**/x/**", "a/**/x", true},
		{"**/x/**", "a/**", false},
		{"{a,b}/**", "a/c", true},
		{"{a,b}/**", "{b,a}/c", true},
		{"{a,b}/**", "{b,c}/d", false},
		{"a*/**", "abc/**", true},
		{"a*", "a*", true},
		{"a*", "ab*", false}, // true, but not proven
		{"*.iso", "x.iso", true},
		{"**/*.iso", "**/x/y.iso", true},
	}
	for _, tt := range tests {
		a, err := Parse(tt.a)
		b, err2 := Parse(tt.b)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got := a.Covers(b); got != tt.want {
			t.Errorf("%q covers %q: %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestMatchAllocates(t *testing.T) {
	g, err := Parse("**/{source,debug}/**/*.rpm")
	if err != nil {
		t.Fatal(err)
	}
	tm, err := ParseTemplate("releases/{release}-stream/{arch}/os")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		g.Match("releases/43/Everything/source/tree/Packages/b/bash-5.3.0-2.fc43.src.rpm")
		tm.Tree("releases/9-stream/x86_64/os/Packages/x.rpm")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// reference is the glob as a regular expression, the independent opinion of FuzzGlob.
func reference(glob string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	for s := range strings.SplitSeq(glob, "/") {
		if s == "**" {
			b.WriteString("(?:/[^/]+)*")
			continue
		}
		b.WriteString("/")
		brace := false
		for _, r := range s {
			switch {
			case r == '*':
				b.WriteString("[^/]*")
			case r == '?':
				b.WriteString("[^/]")
			case r == '{':
				b.WriteString("(?:")
				brace = true
			case r == '}':
				b.WriteString(")")
				brace = false
			case r == ',' && brace:
				b.WriteString("|")
			default:
				b.WriteString(regexp.QuoteMeta(string(r)))
			}
		}
	}
	b.WriteString("$")
	return regexp.MustCompile(b.String())
}

func FuzzGlob(f *testing.F) {
	f.Add("**/{source,debug}/**", "**/source/x", "a/source/b")
	f.Add("*a*?/**/b", "a", "xay/z/b")
	f.Add("{a,b*}{,c}/**/d/**/e", "{a,b}/d/e", "bc/d/d/e")
	f.Fuzz(func(t *testing.T, text, other, path string) {
		g, err := Parse(text)
		h, err2 := Parse(other)
		if err != nil || err2 != nil || !clean(path) {
			return
		}
		// Bytes that are not UTF-8 are not what regexp takes them for.
		if utf8.ValidString(text) && utf8.ValidString(path) && !strings.Contains(path, "\n") {
			slashed := "/" + path
			if path == "" {
				slashed = ""
			}
			if got, want := g.Match(path), reference(text).MatchString(slashed); got != want {
				t.Errorf("%q matches %q: %v, want %v", text, path, got, want)
			}
		}
		if g.Covers(h) && h.Match(path) && !g.Match(path) {
			t.Errorf("%q covers %q, but does not match %q", text, other, path)
		}
	})
}

// clean reports whether path is one that site lets through.
func clean(path string) bool {
	for s := range strings.SplitSeq(path, "/") {
		if s == "" && path != "" || s == "." || s == ".." {
			return false
		}
	}
	return true
}
