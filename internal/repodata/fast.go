package repodata

import (
	"bytes"
	"io"
	"strings"
)

// The fast reader knows documents as createrepo_c and its like write them. It reads one <package> element at a time, and
// takes it only if each tag in it is of the plainest form and closed by its own end, so that encoding/xml would find
// the same. A package that holds anything else goes to encoding/xml by itself; anything else between packages (a
// comment, another element), or where it is not sure where a package ends, makes it leave the rest to encoding/xml.

const (
	scanBuffer = 128 << 10
	maxElement = 4 << 20  // bytes of a package; the largest of CentOS Stream 9 has 290 kB
	fastToken  = 64 << 10 // bytes of a tag or text: less than maxToken, which slow observes only roughly
	fastDepth  = 8        // of elements in a package, which is 1 itself
)

var (
	packageStart = []byte("<package")
	packageEnd   = []byte("</package>")
	rootEnd      = []byte("</metadata>")
	xmlns        = []byte("xmlns")
)

// scanner is a window on a document.
type scanner struct {
	r          io.Reader
	buf        []byte
	start, end int    // of what is in buf and not yet used
	err        error  // r's
	tag        []byte // the root's, once used
	pkg        Package
}

// Read reads on from where the scanner is.
func (s *scanner) Read(p []byte) (int, error) {
	if s.start < s.end {
		n := copy(p, s.buf[s.start:s.end])
		s.start += n
		return n, nil
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.r.Read(p)
}

func (s *scanner) window() []byte { return s.buf[s.start:s.end] }

// more adds to the window and reports whether there was anything to add and room for it.
func (s *scanner) more() bool {
	if s.start > 0 {
		s.end = copy(s.buf, s.window())
		s.start = 0
	}
	if s.end == len(s.buf) {
		if len(s.buf) >= maxElement {
			return false
		}
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	for range 100 { // as bufio: a reader may return nothing a few times
		if s.err != nil {
			return false
		}
		var n int
		n, s.err = s.r.Read(s.buf[s.end:])
		s.end += n
		if n > 0 {
			return true
		}
	}
	s.err = io.ErrNoProgress
	return false
}

// fill makes the window at least n bytes long, if the document is.
func (s *scanner) fill(n int) {
	for s.end-s.start < n && s.more() {
	}
}

func (s *scanner) skipSpace() {
	for {
		for s.start < s.end && space(s.buf[s.start]) {
			s.start++
		}
		if s.start < s.end || !s.more() {
			return
		}
	}
}

// root reads up to the end of the root's tag, and reports whether all is as it should be. If not, nothing was used.
func (s *scanner) root() bool {
	s.fill(4 << 10)
	b := s.window()
	if head, rest, ok := bytes.Cut(b, []byte("?>")); ok && len(head) < 80 {
		switch strings.ToLower(string(head)) {
		case `<?xml version="1.0" encoding="utf-8"`, `<?xml version='1.0' encoding='utf-8'`, `<?xml version="1.0" encoding="utf-8" standalone="yes"`, `<?xml version="1.0"`:
			b = rest
		}
	}
	b = bytes.TrimLeft(b, " \t\r\n")
	if !bytes.HasPrefix(b, []byte("<metadata")) {
		return false
	}
	var kept [8]attr
	attrs, n, empty, ok := attributes(b, len("<metadata"), kept[:0], true)
	if !ok || empty || bytes.IndexByte(b[:n], '&') >= 0 {
		return false
	}
	ours := false
	for _, a := range attrs {
		switch {
		case string(a.name) == "xmlns" && string(a.value) == commonSpace:
			ours = true
		case string(a.name) == "xmlns":
			return false
		case bytes.HasPrefix(a.name, []byte("xmlns:")) && (!plain(a.value) || string(a.value) == commonSpace || string(a.value) == xmlSpace):
			return false // now what we look for may be written otherwise, too
		}
	}
	if ours {
		s.tag = bytes.Clone(b[:n])
		s.start = s.end - len(b) + n
	}
	return ours
}

// packages reads packages until it comes to something else: the root's end, if all is as it should be. What it leaves is
// for encoding/xml.
func (s *scanner) packages(p *primary) error {
	for {
		s.skipSpace()
		s.fill(len(packageStart))
		if !bytes.HasPrefix(s.window(), packageStart) {
			return nil
		}
		n, from := -1, 0
		for {
			if n = bytes.Index(s.window()[from:], packageEnd); n >= 0 {
				n += from + len(packageEnd)
				break
			}
			from = max(0, s.end-s.start-len(packageEnd))
			if !s.more() {
				return nil
			}
		}
		b := s.window()[:n]
		s.pkg = Package{Size: -1, Arch: s.pkg.Arch}
		pkg := &s.pkg
		if !pkg.scan(b) {
			if pkg = s.alone(b); pkg == nil {
				return nil
			}
		}
		s.start += n // whatever comes now, this one is done
		if err := p.add(pkg); err != nil {
			return err
		}
	}
}

// alone lets encoding/xml read one package, and returns nil if b is not one package. (It is less if the end that was
// found stands in a comment or belongs to a package within the package, and more if the first end is written otherwise.
// Then encoding/xml meets the root's end in the wrong place: it reads from left to right, so that what it finds without
// an error is what it would find in the whole document.)
func (s *scanner) alone(b []byte) *Package {
	pkg := Package{}
	one := primary{yield: func(p *Package) error { pkg = *p; return nil }}
	err := one.slow(io.MultiReader(bytes.NewReader(s.tag), bytes.NewReader(b), bytes.NewReader(rootEnd)))
	if err != nil || one.count != 1 {
		return nil
	}
	return &pkg
}

type attr struct{ name, value []byte }

// scan takes what b says, which begins with <package and ends with the first </package>. It reports false if there is
// anything in b of which it cannot tell what encoding/xml would make. Then pkg is of no use.
func (pkg *Package) scan(b []byte) bool {
	if bytes.Contains(b, []byte("]]>")) || !entities(b) {
		return false
	}
	_, i, empty, ok := attributes(b, len(packageStart), nil, false)
	if !ok || empty {
		return false
	}
	var (
		open  [fastDepth][]byte // names of elements
		depth = 1
		kept  [8]attr
		arch  bool
	)
	open[0] = packageStart[1:]
	for {
		n := bytes.IndexByte(b[i:], '<')
		if n < 0 || n > fastToken || i+n+1 >= len(b) {
			return false
		}
		i += n + 1
		if b[i] == '/' {
			depth--
			name := open[depth]
			i++
			if end := i + len(name); end >= len(b) || string(b[i:end]) != string(name) || b[end] != '>' {
				return false
			}
			i += len(name) + 1
			if depth == 0 {
				if !arch {
					pkg.Arch = ""
				}
				return i == len(b)
			}
			continue
		}
		end := nameEnd(b, i)
		if end < 0 || depth == fastDepth {
			return false
		}
		name := b[i:end]
		ours := depth == 1
		if ours {
			switch string(name) {
			case "name", "arch", "checksum", "size", "time", "location":
			default:
				ours = false
			}
		}
		attrs, next, empty, ok := attributes(b, end, kept[:0], ours)
		if !ok || next-i > fastToken {
			return false
		}
		i = next
		if !ours {
			if !empty {
				open[depth] = name
				depth++
			}
			continue
		}
		var text []byte
		switch name[0] {
		case 'n', 'a', 'c': // whose text we take: it must be all that is in them
			if !empty {
				n := bytes.IndexByte(b[i:], '<')
				if n < 0 || n > maxField {
					return false
				}
				text = b[i : i+n]
				i += n
				if !plain(text) || !bytes.HasPrefix(b[i:], []byte("</")) {
					return false
				}
			}
		}
		if !pkg.take(string(name), attrs, text) {
			return false
		}
		arch = arch || name[0] == 'a'
		if !empty {
			open[depth] = name
			depth++
		}
	}
}

// take takes one element.
func (pkg *Package) take(name string, attrs []attr, text []byte) bool {
	var value, base []byte
	wanted := attributeOf(name)
	for _, a := range attrs {
		switch {
		case string(a.name) == wanted:
			value = a.value
		case string(a.name) == "xml:base":
			base = a.value
		case bytes.HasPrefix(a.name, xmlns):
			return false // names may mean something else here
		}
	}
	if !plain(value) || !plain(base) {
		return false
	}
	pkg.set(name, string(value), string(base), bytes.TrimSpace(text))
	return true
}

// attributes reads a start tag's attributes from b[i], which is behind its name, and says where the tag ends. It keeps
// them in kept, if so told and if they fit.
func attributes(b []byte, i int, kept []attr, keep bool) (attrs []attr, next int, empty, ok bool) {
	for {
		before := i
		for i < len(b) && space(b[i]) {
			i++
		}
		if i+1 >= len(b) {
			return kept, i + 1, false, i < len(b) && b[i] == '>'
		}
		switch b[i] {
		case '>':
			return kept, i + 1, false, true
		case '/':
			return kept, i + 2, true, b[i+1] == '>'
		}
		end := nameEnd(b, i)
		if end < 0 || before == i || end+1 >= len(b) || b[end] != '=' {
			return nil, 0, false, false
		}
		name, quote := b[i:end], b[end+1]
		if quote != '"' && quote != '\'' {
			return nil, 0, false, false
		}
		value := end + 2
		for i = value; i < len(b) && b[i] != quote; i++ {
			if b[i] == '<' {
				return nil, 0, false, false
			}
		}
		if i == len(b) {
			return nil, 0, false, false
		}
		if keep {
			if len(kept) == cap(kept) {
				return nil, 0, false, false
			}
			kept = append(kept, attr{name, b[value:i]})
		} else if name[0] == 'x' && bytes.HasPrefix(name, xmlns) {
			return nil, 0, false, false // below it, names may mean something else
		}
		i++
	}
}

const (
	other = iota
	letter
	digit // or another that a name does not begin with
	colon
)

var class = func() (c [256]byte) {
	for b := range c {
		switch {
		case b|0x20 >= 'a' && b|0x20 <= 'z', b == '_':
			c[b] = letter
		case b >= '0' && b <= '9', b == '-', b == '.':
			c[b] = digit
		case b == ':':
			c[b] = colon
		}
	}
	return c
}()

// nameEnd is where the name that begins at b[i] ends, or -1 if there is none, or one that only encoding/xml knows.
func nameEnd(b []byte, i int) int {
	colons := 0
	for start := i; i < len(b); i++ {
		switch class[b[i]] {
		case other:
			if i == start || colons > 1 {
				return -1
			}
			return i
		case digit:
			if i == start {
				return -1
			}
		case colon:
			colons++
		}
	}
	return -1
}

// plain reports whether b is printable ASCII without references.
func plain(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' || c == '&' {
			return false
		}
	}
	return true
}

// entities reports whether each & in b begins one of the five references that XML itself has.
func entities(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '&')
		if i < 0 {
			return true
		}
		b = b[i+1:]
		end := bytes.IndexByte(b[:min(len(b), 5)], ';')
		if end < 0 {
			return false
		}
		switch string(b[:end]) {
		case "amp", "lt", "gt", "quot", "apos":
		default:
			return false
		}
	}
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }
