package repodata

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
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

// token returns the next start, end or text. Other kinds are of no interest.
func (d *document) token() (xml.Token, error) {
	for {
		if d.leaving {
			d.depth--
			d.leaving = false
		}
		d.in.left = maxToken
		t, err := d.dec.Token()
		if err != nil {
			if d.in.err != nil && d.in.err != io.EOF {
				return nil, d.in.err
			}
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
		if err == io.EOF {
			return xml.StartElement{}, fmt.Errorf("has no root element <%s>", name)
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
	switch {
	case err == io.EOF:
		return err
	case errors.As(err, &syntax): // without its line, which counts from where encoding/xml began
		return fmt.Errorf("malformed XML: %.100s", syntax.Msg)
	}
	return fmt.Errorf("%.100s", err.Error())
}

// text is the text of an element that we take.
type text struct{ b []byte }

func (t *text) add(element string, data []byte) error {
	if len(t.b)+len(data) > maxField {
		return fmt.Errorf("text of <%s> is longer than %d bytes", element, maxField)
	}
	t.b = append(t.b, data...)
	return nil
}

// mender reads UTF-8 and puts bad in the place of each byte that XML does not allow.
type mender struct {
	r    io.Reader
	left int   // bytes that may be read for the token at hand
	err  error // what r ended with
	part [utf8.UTFMax]byte
	n    int // bytes in part: the beginning of a character
}

func (m *mender) Read(p []byte) (int, error) {
	if m.left <= 0 && m.err == nil {
		m.err = fmt.Errorf("a tag or text is longer than %d bytes", maxToken)
	}
	for m.err == nil {
		n := copy(p, m.part[:m.n])
		var k int
		k, m.err = m.r.Read(p[n:])
		n += k
		m.left -= k
		whole := mend(p[:n], m.err != nil)
		m.n = copy(m.part[:], p[whole:n])
		if whole > 0 {
			return whole, nil
		}
	}
	return 0, m.err
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
