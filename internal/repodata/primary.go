package repodata

import (
	"bytes"
	"encoding/xml"
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
// name is for messages. Yield must copy of the *Package what it keeps: the next one may stand in the same place. An error
// of yield ends the reading and is returned as it is.
//
// Packages without a location are left out. What was yielded before an error is what the document said, but a document
// that ends in an error is not one to act upon. However long it is, reading it takes some MiB, and for xz and zstd what
// the file asks for, up to 32 MiB.
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
		if err := s.packages(p); err != nil {
			return err
		}
	}
	// The slow reader gets the root's tag, unless that is still to be read, and what is left: at best the root's end.
	return p.slow(io.MultiReader(bytes.NewReader(s.tag), s))
}

// slow reads a document by encoding/xml. It says what is right: the fast reader yields the same, or leaves it to slow.
func (p *primary) slow(r io.Reader) error {
	var pkg Package
	f := format{
		root: "metadata", entry: "package", fields: " name arch checksum size time location ",
		begin: func(xml.StartElement) { pkg = Package{Size: -1} },
		set: func(t xml.StartElement, text []byte) {
			pkg.set(t.Name.Local, attribute(t, "", attributeOf(t.Name.Local)), attribute(t, xmlSpace, "base"), text)
		},
		end: func() error { return p.add(&pkg) },
	}
	return f.read(r)
}

// attributeOf is the attribute that we take of an element besides xml:base.
func attributeOf(element string) string {
	switch element {
	case "checksum":
		return "type"
	case "size":
		return "package"
	case "time":
		return "file"
	case "location":
		return "href"
	}
	return ""
}

// set takes an element: its attribute, its xml:base and its text.
func (pkg *Package) set(element, value, base string, text []byte) {
	switch element {
	case "name":
		pkg.Name = string(text)
	case "arch":
		if pkg.Arch != string(text) { // the fast reader leaves the last one's there, which is mostly the same
			pkg.Arch = string(text)
		}
	case "checksum":
		pkg.Sum = sum(value, text)
	case "size":
		pkg.Size = count(value)
	case "time":
		pkg.FileTime = max(0, count(value))
	case "location":
		pkg.Href, pkg.Base = value, base
	}
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
func sum(kind string, hex []byte) digest.Sum {
	a, err := digest.ParseAlgorithm(kind)
	if err != nil {
		return digest.Sum{}
	}
	s, err := digest.ParseSum(a, string(hex))
	if err != nil {
		return digest.Sum{}
	}
	return s
}
