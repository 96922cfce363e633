package glob

import (
	"fmt"
	"slices"
	"strings"
)

// Template is a compiled tree template, such as "releases/{release}/Everything/{arch}/os": "{word}" captures one path
// element or, as in "{release}-stream", a part of one that is not empty. "." stands for the profile's own directory.
type Template struct {
	text  string
	parts []part
}

// part is one element: before, then what word captures, then after; or (no word) the text before alone.
type part struct{ before, word, after string }

// ParseTemplate compiles a tree template. An error is an *Error.
func ParseTemplate(text string) (*Template, error) {
	if text == "." {
		return &Template{text: text}, nil
	}
	if err := checkText(text, "*?[]\\,$%\"' #", "write {word} for what differs from tree to tree"); err != nil {
		return nil, err
	}
	t := &Template{text: text}
	for _, s := range strings.Split(text, "/") {
		p := part{before: s}
		if i := strings.IndexByte(s, '{'); i >= 0 {
			word, after, ok := strings.Cut(s[i+1:], "}")
			if !ok || !isWord(word) {
				return nil, &Error{fmt.Sprintf("has a bad capture in %q", s),
					"write {word}, of lower-case letters, digits and _, such as {release}"}
			}
			if slices.Contains(t.Words(), word) {
				return nil, &Error{fmt.Sprintf("captures {%s} twice", word), "give the second one another word"}
			}
			p = part{s[:i], word, after}
		}
		if strings.ContainsAny(p.before+p.after, "{}") {
			return nil, &Error{fmt.Sprintf("has more than one capture, or half a one, in %q", s),
				"write one {word} in an element"}
		}
		t.parts = append(t.parts, p)
	}
	return t, nil
}

func isWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// String returns the template as it was written.
func (t *Template) String() string { return t.text }

// Words returns the words that t captures.
func (t *Template) Words() []string {
	var words []string
	for _, p := range t.parts {
		if p.word != "" {
			words = append(words, p.word)
		}
	}
	return words
}

// Tree returns the tree of t that path, a clean relative path, is or lies in: the beginning of path ("" for the
// template "."). ok is false if there is none.
func (t *Template) Tree(path string) (tree string, ok bool) {
	end := -1
	for i := range t.parts {
		at := end + 1
		if at >= len(path) {
			return "", false
		}
		end = elemEnd(path, at)
		if !t.parts[i].match(path[at:end]) {
			return "", false
		}
	}
	return path[:max(end, 0)], true
}

// Captures returns what each word of t captures in tree, a tree of t as Tree returns it; nil if it is none.
func (t *Template) Captures(tree string) map[string]string {
	if found, ok := t.Tree(tree); !ok || found != tree {
		return nil
	}
	words := map[string]string{}
	elems := strings.Split(tree, "/")
	for i, p := range t.parts {
		if p.word != "" {
			words[p.word] = elems[i][len(p.before) : len(elems[i])-len(p.after)]
		}
	}
	return words
}

func (p *part) match(s string) bool {
	if p.word == "" {
		return s == p.before
	}
	return len(s) > len(p.before)+len(p.after) && strings.HasPrefix(s, p.before) && strings.HasSuffix(s, p.after)
}

// Covers reports whether every path that lies in a tree of u lies in one of t.
func (t *Template) Covers(u *Template) bool {
	if len(t.parts) > len(u.parts) {
		return false
	}
	for i, p := range t.parts {
		q := u.parts[i]
		if q.word == "" && !p.match(q.before) ||
			q.word != "" && (p.word == "" || !strings.HasPrefix(q.before, p.before) || !strings.HasSuffix(q.after, p.after)) {
			return false
		}
	}
	return true
}

// Expand returns text with each {word} in it replaced by what value returns for it; an error is an *Error. Text is a
// template's own or one that speaks of its words.
func Expand(text string, value func(word string) (string, bool)) (string, error) {
	var b strings.Builder
	for rest := text; ; {
		before, more, ok := strings.Cut(rest, "{")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		word, after, ok := strings.Cut(more, "}")
		v, known := value(word)
		if !ok || !known {
			return "", &Error{fmt.Sprintf("uses {%s}, which stands for nothing here", word),
				"use a word that the tree captures"}
		}
		b.WriteString(v)
		rest = after
	}
}
