package repodata

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	commonSpace = "http://linux.duke.edu/metadata/common"
	xmlSpace    = "http://www.w3.org/XML/1998/namespace" // of xml:base
)

// maxPackages is far more than any repository has (Fedora: 80,000).
const maxPackages = 4 << 20

// Package is what primary says of a package.
type Package struct {
	Name, Arch string
	Href, Base string     // where it is, as written; see Join. Href is never empty
	Size       int64      // in bytes; -1 unknown
	Sum        digest.Sum // zero if there is none, or none that we know how to make
	FileTime   int64      // modification time in Unix seconds; 0 unknown
}

// ReadPrimary calls yield for each package of the primary.xml that is stored in r, in whatever compression but zchunk;
// name is for messages. Yield gets the same *Package each time: it must copy what it keeps. An error of yield ends the
// reading and is returned as it is.
//
// Packages without a location are left out. What was yielded before an error is what the document said, but a document
// that ends in an error is not one to act upon. Memory stays within some MiB and the compression's window (at most 64
// MiB), however long the document is.
func ReadPrimary(r io.Reader, name string, lim Limits, yield func(*Package) error) error {
	doc, done, err := openFile(r, lim)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	defer done()
	p := primary{yield: yield}
	switch err = p.read(&scanner{r: doc, buf: make([]byte, scanBuffer)}); {
	case p.stopped != nil:
		return p.stopped
	case err != nil:
		return fmt.Errorf("reading %s, after %d packages: %w", name, p.count, err)
	}
	return nil
}

// primary reads one document.
type primary struct {
	yield   func(*Package) error
	count   int   // packages, with those that have no location
	stopped error // yield's
}

func (p *primary) add(pkg *Package) error {
	if p.count++; p.count > maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	if pkg.Href == "" {
		return nil
	}
	p.stopped = p.yield(pkg)
	return p.stopped
}

// read takes the fast way as far as it leads.
func (p *primary) read(s *scanner) error {
	if s.root() {
		if end, err := s.packages(p); end || err != nil {
			return err
		}
	}
	// The slow reader gets the root's tag, unless that is still to be read, and what is left.
	return p.slow(io.MultiReader(bytes.NewReader(s.tag), s))
}

// slow reads a document by encoding/xml. It says what is right: the fast reader yields the same, or leaves it to slow.
func (p *primary) slow(r io.Reader) error {
	d := newDocument(r)
	root, err := d.root("metadata")
	if err != nil {
		return err
	}
	var (
		pkg    Package
		inside bool   // a package
		field  string // the element in it whose text we take
		kind   string // of the checksum
		text   text
	)
	for {
		t, err := d.token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			ours := t.Name.Space == root.Name.Space
			switch {
			case d.depth == 1:
				return errTwoRoots
			case d.depth == 2:
				inside = ours && t.Name.Local == "package"
				pkg = Package{Size: -1}
			case d.depth == 3 && inside && ours:
				text.b = text.b[:0]
				switch t.Name.Local {
				case "name", "arch":
					field = t.Name.Local
				case "checksum":
					field, kind = t.Name.Local, attribute(t, "", "type")
				case "size":
					pkg.Size = count(attribute(t, "", "package"))
				case "time":
					pkg.FileTime = max(0, count(attribute(t, "", "file")))
				case "location":
					pkg.Href, pkg.Base = attribute(t, "", "href"), attribute(t, xmlSpace, "base")
				}
			}
		case xml.CharData:
			if field != "" && d.depth == 3 {
				if err := text.add(field, t); err != nil {
					return err
				}
			}
		case xml.EndElement:
			switch {
			case d.depth == 3 && field != "":
				pkg.set(field, kind, text.b)
				field = ""
			case d.depth == 2 && inside:
				if err := p.add(&pkg); err != nil {
					return err
				}
			}
		}
	}
}

var errTwoRoots = errors.New("something follows the root element")

// set takes the text of an element; kind is the type of a checksum.
func (pkg *Package) set(element, kind string, text []byte) {
	text = bytes.TrimSpace(text)
	switch element {
	case "name":
		pkg.Name = string(text)
	case "arch":
		if pkg.Arch != string(text) { // the fast reader left the last one's, which is mostly the same
			pkg.Arch = string(text)
		}
	case "checksum":
		pkg.Sum = sum(kind, string(text))
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

// count reads a number of bytes or seconds; -1 is what is none.
func count(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// sum reads a digest. What is malformed or of a kind that we do not know is none: it is no reason to refuse the rest of a
// repository, and what it should have vouched for is then vouched for by nothing.
func sum(kind, hex string) digest.Sum {
	a, err := digest.ParseAlgorithm(kind)
	if err != nil {
		return digest.Sum{}
	}
	s, err := digest.ParseSum(a, hex)
	if err != nil {
		return digest.Sum{}
	}
	return s
}
