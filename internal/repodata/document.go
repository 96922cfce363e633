package repodata

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Bounds of a document's parts, so that one of any length takes little memory. The longest text in Fedora's metadata has
// some ten kB.
const (
	maxToken = 512 << 10 // bytes of one tag with its attributes, of one text
	maxField = 4 << 10   // bytes of the text of an element that we take
	maxDepth = 100
)

// bad stands for each byte that XML does not allow: what is neither UTF-8 nor space nor printable. Clients differ in what
// they make of such a byte in a description; to us it matters only in a path, and Join refuses bad there.
const bad = 0x7f

// document reads XML by encoding/xml, within bounds.
type document struct {
	in      mender
	dec     *xml.Decoder
	depth   int // of elements, including the one whose start or end was read last
	leaving bool
}

func newDocument(r io.Reader) *document {
	d := &document{in: mender{r: r}}
	d.dec = xml.NewDecoder(&d.in)
	d.dec.CharsetReader = func(string, io.Reader) (io.Reader, error) { return nil, errors.New("only UTF-8 is read") }
	return d
}

// token returns the next start, end or text, and nil at the end of the document. Other kinds are of no interest.
func (d *document) token() (xml.Token, error) {
	for {
		if d.leaving {
			d.depth--
			d.leaving = false
		}
		d.in.left = maxToken
		t, err := d.dec.Token()
		switch {
		case err == nil:
		case d.in.err != nil: // also if it wraps io.EOF
			return nil, d.in.err
		case errors.Is(err, io.EOF):
			return nil, nil
		default:
			return nil, short(err)
		}
		switch t.(type) {
		case xml.StartElement:
			if d.depth++; d.depth > maxDepth {
				return nil, fmt.Errorf("elements are nested more than %d deep", maxDepth)
			}
			return t, nil
		case xml.EndElement:
			d.leaving = true
			return t, nil
		case xml.CharData:
			return t, nil
		case xml.Directive:
			return nil, errors.New("holds a <!DOCTYPE>: metadata never do, web pages do")
		}
	}
}

// root reads up to the root element, which must be a name.
func (d *document) root(name string) (xml.StartElement, error) {
	for {
		t, err := d.token()
		if err == nil && t == nil {
			err = fmt.Errorf("has no root element <%s>", name)
		}
		if err != nil {
			return xml.StartElement{}, err
		}
		if start, ok := t.(xml.StartElement); ok {
			if start.Name.Local != name {
				return start, fmt.Errorf("root element is <%.40s>, not <%s>", start.Name.Local, name)
			}
			return start, nil
		}
	}
}

// short keeps input out of an error of encoding/xml: a name may be half a megabyte long.
func short(err error) error {
	var syntax *xml.SyntaxError
	if errors.As(err, &syntax) { // without its line, which counts from where encoding/xml began
		return fmt.Errorf("malformed XML: %.100s", syntax.Msg)
	}
	return fmt.Errorf("%.100s", err.Error())
}

// format is what there is to know of a kind of document: in its root stand entries, and in these the fields that we take.
type format struct {
	root, entry string
	fields      string // their names, with a space before and after each
	beside      string // a field that stands beside the entries
	begin       func(entry xml.StartElement)
	set         func(field xml.StartElement, text []byte)
	end         func() error // of an entry
}

// read reads a document. Elements of other name spaces than the root's are somebody else's.
func (f *format) read(r io.Reader) error {
	d := newDocument(r)
	root, err := d.root(f.root)
	if err != nil {
		return err
	}
	var (
		inside bool // an entry
		field  xml.StartElement
		at     int    // field's depth; 0: in none
		text   []byte // field's
	)
	for {
		t, err := d.token()
		if t == nil || err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			ours := t.Name.Space == root.Name.Space
			switch {
			case d.depth == 1:
				return errors.New("something follows the root element")
			case d.depth == 2 && ours && t.Name.Local == f.entry:
				inside = true
				f.begin(t)
			case d.depth == 2 && ours && t.Name.Local == f.beside,
				d.depth == 3 && ours && inside && strings.Contains(f.fields, " "+t.Name.Local+" "):
				field, at, text = t, d.depth, text[:0]
			}
		case xml.CharData:
			if at == 0 || d.depth != at {
				break
			}
			if text = append(text, t...); len(text) > maxField {
				return fmt.Errorf("text of <%s> is longer than %d bytes", field.Name.Local, maxField)
			}
		case xml.EndElement:
			switch {
			case d.depth == at:
				f.set(field, bytes.TrimSpace(text))
				at = 0
			case d.depth == 2 && inside:
				inside = false
				if err := f.end(); err != nil {
					return err
				}
			}
		}
	}
}

// attribute is the value of an attribute, the last one's if it is there twice.
func attribute(t xml.StartElement, space, local string) (value string) {
	for _, a := range t.Attr {
		if a.Name.Space == space && a.Name.Local == local {
			value = a.Value
		}
	}
	return value
}

// mender reads UTF-8 and puts bad in the place of each byte that XML does not allow.
type mender struct {
	r     io.Reader
	left  int   // bytes that may be read for the token at hand
	err   error // r's, or that there are none left; not the end
	ended bool
	part  [utf8.UTFMax]byte
	n     int // bytes in part: the beginning of a character
}

func (m *mender) Read(p []byte) (int, error) {
	if m.left <= 0 && m.err == nil {
		m.err = fmt.Errorf("a tag or text is longer than %d bytes", maxToken)
	}
	for m.err == nil && !m.ended {
		n := copy(p, m.part[:m.n])
		k, err := m.r.Read(p[n:])
		if err == io.EOF {
			m.ended = true
		} else {
			m.err = err
		}
		n += k
		m.left -= k
		whole := mend(p[:n], err != nil)
		m.n = copy(m.part[:], p[whole:n])
		if whole > 0 {
			return whole, nil
		}
	}
	if m.err != nil {
		return 0, m.err
	}
	return 0, io.EOF
}

// mend mends b, and returns the length of b without a character that is not whole, unless b is final.
func mend(b []byte, final bool) int {
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\n' && c != '\t' && c != '\r' {
				b[i] = bad
			}
			i++
			continue
		}
		if !final && !utf8.FullRune(b[i:]) {
			return i
		}
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 || r == 0xfffe || r == 0xffff {
			for j := range size {
				b[i+j] = bad
			}
		}
		i += size
	}
	return len(b)
}
