// Package glob compiles the two kinds of pattern that a profile holds: globs, which say what a rule applies to, and
// tree templates, which name the trees of a distribution. Both are matched element by element against clean relative
// paths ("releases/43/Everything"), without allocating and without ever going back further than one wildcard.
package glob

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Error says what is wrong with a pattern and what to write instead.
type Error struct{ What, Write string }

// Error implements error.
func (e *Error) Error() string { return e.What + "; " + e.Write }

// Bounds on one pattern: generous for people, small enough that no pattern is slow.
const (
	maxText  = 1024 // bytes of a pattern
	maxElems = 64   // elements of a pattern
	maxAlts  = 64   // patterns that the braces of one element stand for
)

// Glob is a compiled glob: "*" stands for any characters within a path element, "?" for one character, "**" for zero or
// more elements, "{a,b}" for alternatives within an element. Names that begin with a dot are matched like any other.
type Glob struct {
	text  string
	elems []elem
}

// elem is one element of a glob; many: "**"; else alts, of which one must match.
type elem struct {
	many bool
	alts []alt
}

// alt is what is left of an element when its braces are resolved: text with "*" and "?", or (lit) without.
type alt struct {
	text string
	lit  bool
}

// Parse compiles a glob. An error is an *Error.
func Parse(text string) (*Glob, error) {
	if err := checkText(text, `[]\`, "leave it out, or write ? for one character, {a,b} for alternatives"); err != nil {
		return nil, err
	}
	g := &Glob{text: text}
	for _, s := range strings.Split(text, "/") {
		if s == "**" {
			if n := len(g.elems); n == 0 || !g.elems[n-1].many { // **/** is **
				g.elems = append(g.elems, elem{many: true})
			}
			continue
		}
		alts, err := expand(s)
		if err != nil {
			return nil, err
		}
		g.elems = append(g.elems, elem{alts: alts})
	}
	return g, nil
}

// checkText refuses what neither globs nor templates may hold.
func checkText(text, forbidden, instead string) error {
	switch {
	case text == "":
		return &Error{"is empty", "write ** for everything, or . for the directory in a tree"}
	case len(text) > maxText:
		return &Error{fmt.Sprintf("is longer than %d bytes", maxText), "write several shorter entries"}
	case strings.Count(text, "/") >= maxElems:
		return &Error{fmt.Sprintf("has more than %d elements", maxElems), "write fewer"}
	case text[0] == '/':
		return &Error{"begins with a slash", "write it relative to the profile's path: " + strings.TrimLeft(text, "/")}
	case text[len(text)-1] == '/':
		return &Error{"ends in a slash", "leave the slash out (a glob matches all below a directory by dir/**)"}
	}
	for i := 0; i < len(text); i++ {
		if c := text[i]; c < ' ' || c == 0x7f || strings.IndexByte(forbidden, c) >= 0 {
			return &Error{fmt.Sprintf("holds the character %q", c), instead}
		}
	}
	for _, s := range strings.Split(text, "/") {
		if s == "" || s == "." || s == ".." {
			return &Error{fmt.Sprintf("has an element %q, which no path has", s), "leave it out"}
		}
	}
	return nil
}

// expand resolves the braces of one element.
func expand(s string) ([]alt, error) {
	texts := []string{""}
	for rest := s; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			i = len(rest)
		}
		if i > 0 {
			for j := range texts {
				texts[j] += rest[:i]
			}
			rest = rest[i:]
			continue
		}
		end := strings.IndexAny(rest[1:], "{}") + 1
		if rest[0] == '}' || end == 0 || rest[end] == '{' {
			return nil, &Error{fmt.Sprintf("has a brace without its partner in %q", s),
				"write {a,b}, within one element, not nested"}
		}
		choices := strings.Split(rest[1:end], ",")
		if len(choices) < 2 {
			return nil, &Error{fmt.Sprintf("has only one alternative in %q", rest[:end+1]),
				"write * for any name, {a,b} for alternatives ({word} is for tree templates)"}
		}
		if len(texts)*len(choices) > maxAlts {
			return nil, &Error{fmt.Sprintf("stands for more than %d alternatives in one element", maxAlts),
				"write several entries"}
		}
		var next []string
		for _, t := range texts {
			for _, c := range choices {
				next = append(next, t+c)
			}
		}
		texts, rest = next, rest[end+1:]
	}
	alts := make([]alt, len(texts))
	for i, t := range texts {
		switch {
		case t == "" || t == "." || t == "..":
			return nil, &Error{fmt.Sprintf("has in %q an alternative %q, which no element is", s, t), "leave it out"}
		case strings.Contains(t, "**"):
			return nil, &Error{fmt.Sprintf("has ** within the element %q", s),
				"write * there, or ** as an element of its own"}
		}
		alts[i] = alt{text: t, lit: !strings.ContainsAny(t, "*?")}
	}
	return alts, nil
}

// String returns the glob as it was written.
func (g *Glob) String() string { return g.text }

// Match reports whether g matches path, a clean relative path ("" is the directory itself: no elements).
func (g *Glob) Match(path string) bool {
	e, at := 0, 0 // the next element of g, and where the next one of path begins; beyond its end: none is left
	if path == "" {
		at = 1
	}
	// After a "**" only the shortest way to match what stands before the next "**" needs to be known: whatever
	// matches after a longer one matches after the shortest too. So there is one place to go back to, not a stack.
	backE, backAt := -1, 0
	for {
		if e < len(g.elems) && g.elems[e].many {
			e++
			if e == len(g.elems) {
				return true
			}
			backE, backAt = e, at
			continue
		}
		if at > len(path) {
			return e == len(g.elems)
		}
		end := elemEnd(path, at)
		if e < len(g.elems) && g.elems[e].match(path[at:end]) {
			e, at = e+1, end+1
			continue
		}
		if backE < 0 {
			return false
		}
		backAt = elemEnd(path, backAt) + 1
		e, at = backE, backAt
	}
}

// elemEnd returns where the element of path that begins at i ends.
func elemEnd(path string, i int) int {
	if n := strings.IndexByte(path[i:], '/'); n >= 0 {
		return i + n
	}
	return len(path)
}

func (e *elem) match(s string) bool {
	for i := range e.alts {
		if a := &e.alts[i]; a.lit && a.text == s || !a.lit && wild(a.text, s) {
			return true
		}
	}
	return false
}

// wild matches "*" and "?" within one element, going back to the last "*" only (see Match).
func wild(pat, s string) bool {
	p, i, backP, backI := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pat) && pat[p] == '*':
			p++
			if p == len(pat) {
				return true
			}
			backP, backI = p, i
		case p < len(pat) && pat[p] == '?':
			_, n := utf8.DecodeRuneInString(s[i:])
			p, i = p+1, i+n
		case p < len(pat) && pat[p] == s[i]:
			p, i = p+1, i+1
		case backP >= 0:
			_, n := utf8.DecodeRuneInString(s[backI:])
			backI += n
			p, i = backP, backI
		default:
			return false
		}
	}
	for p < len(pat) && pat[p] == '*' {
		p++
	}
	return p == len(pat)
}

// Covers reports whether g certainly matches every path that h matches. It may say no where the answer is yes, never
// the other way round.
func (g *Glob) Covers(h *Glob) bool {
	// below[j]: the elements of g from i+1 on cover those of h from j on.
	n := len(h.elems)
	below := make([]bool, n+1)
	below[n] = true
	for i := len(g.elems) - 1; i >= 0; i-- {
		row := make([]bool, n+1)
		for j := n; j >= 0; j-- {
			if g.elems[i].many {
				row[j] = below[j] || j < n && row[j+1]
			} else {
				row[j] = j < n && g.elems[i].covers(&h.elems[j]) && below[j+1]
			}
		}
		below = row
	}
	return below[0]
}

func (e *elem) covers(f *elem) bool {
	if f.many {
		return false
	}
	for _, b := range f.alts {
		if !slices.ContainsFunc(e.alts, func(a alt) bool {
			return a.text == "*" || a.text == b.text || !a.lit && b.lit && wild(a.text, b.text)
		}) {
			return false
		}
	}
	return true
}
