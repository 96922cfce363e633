// Package repodata reads what a repository says of itself: repomd.xml, and primary, which names its packages; what is
// said of generations of it: metalinks; and what an install tree says: .treeinfo, which names its images, and lists of
// checksums.
//
// All of it comes from outside and is read before anything vouches for it. So everything is bounded, nothing is kept
// that was not asked for, and errors quote no more than a few words of it.
package repodata

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	maxRepomd  = 4 << 20 // bytes; real ones have 2 to 20 kB
	maxRecords = 1000    // real ones have 3 to 30
)

// Repomd is what repomd.xml says.
type Repomd struct {
	Revision string   // as written, "" if there is none
	Records  []Record // in their order
}

// Record is one <data> element: a file that belongs to the repository.
type Record struct {
	Type           string     // "primary", "group", …
	Href, Base     string     // where it is, as written; see Join. Href is never empty
	Size, OpenSize int64      // in bytes; -1 unknown
	Sum, OpenSum   digest.Sum // zero if there is none, or none that we know how to make: then nothing vouches for the file
	Timestamp      int64      // Unix seconds; 0 unknown. Fractions, which old createrepo wrote, are dropped
}

// Age is how old a generation says it is. Zero is unknown.
type Age struct{ Timestamp, Revision int64 }

// Compare returns -1 if a is older than b, 1 if it is newer, and 0 if what both say does not tell. Revisions count only
// where timestamps do not decide: some are constants, some are dates, some are numbers of a generation.
func (a Age) Compare(b Age) int {
	if a.Timestamp > 0 && b.Timestamp > 0 && a.Timestamp != b.Timestamp {
		return cmp.Compare(a.Timestamp, b.Timestamp)
	}
	if a.Revision > 0 && b.Revision > 0 {
		return cmp.Compare(a.Revision, b.Revision)
	}
	return 0
}

// Age is the greatest timestamp of a record, and the revision if that is a number.
func (r *Repomd) Age() Age {
	var a Age
	for _, rec := range r.Records {
		a.Timestamp = max(a.Timestamp, rec.Timestamp)
	}
	a.Revision = max(0, count(r.Revision))
	return a
}

// Record is the first record of a type, nil if there is none.
func (r *Repomd) Record(kind string) *Record {
	for i := range r.Records {
		if r.Records[i].Type == kind {
			return &r.Records[i]
		}
	}
	return nil
}

// ParseRepomd reads a repomd.xml of up to 4 MiB and 1000 records. Records without a location are left out.
func ParseRepomd(r io.Reader) (*Repomd, error) {
	md, err := parseRepomd(&bounded{r: r, what: "file", most: maxRepomd})
	if err != nil {
		return nil, fmt.Errorf("reading repomd.xml: %w", err)
	}
	return md, nil
}

func parseRepomd(r io.Reader) (*Repomd, error) {
	var (
		md  Repomd
		rec Record
	)
	f := format{
		root: "repomd", entry: "data", beside: "revision", fields: " location checksum open-checksum size open-size timestamp ",
		begin: func(t xml.StartElement) { rec = Record{Type: attribute(t, "", "type"), Size: -1, OpenSize: -1} },
		set: func(t xml.StartElement, text []byte) {
			switch t.Name.Local {
			case "revision":
				md.Revision = string(text)
			case "location":
				rec.Href, rec.Base = attribute(t, "", "href"), attribute(t, xmlSpace, "base")
			case "checksum":
				rec.Sum = sum(attribute(t, "", "type"), text)
			case "open-checksum":
				rec.OpenSum = sum(attribute(t, "", "type"), text)
			case "size":
				rec.Size = count(string(text))
			case "open-size":
				rec.OpenSize = count(string(text))
			case "timestamp":
				if f, err := strconv.ParseFloat(string(text), 64); err == nil && f >= 0 && f < math.MaxInt64 {
					rec.Timestamp = int64(f)
				}
			}
		},
		end: func() error {
			if rec.Href == "" {
				return nil
			}
			if len(md.Records) == maxRecords {
				return fmt.Errorf("more than %d records", maxRecords)
			}
			md.Records = append(md.Records, rec)
			return nil
		},
	}
	if err := f.read(r); err != nil {
		return nil, err
	}
	return &md, nil
}

// Bounds on a path: those of Linux file systems (NAME_MAX, PATH_MAX).
const (
	maxName = 255
	maxPath = 4096
)

// Join says which mirror path clients ask for when they want what href and base of a <location> name. The repository's
// root is repo, "" if that is the mirror's. An href may lead out of the repository ("../"); where it leads out of the
// mirror, or to no file, is an error. external means that clients get it somewhere else, and there is no path.
//
// It does what dnf and librepo do: base and href are put behind the repository's URL as they are (a base is a directory
// with or without a slash at its end, slashes at the beginning of href do not count), and characters that URLs reserve
// stand for themselves, for createrepo_c encodes none: "%2B" in an href is a file whose name has a percent sign, which
// clients ask for as "%252B". A base of "media:#2" says on which disc the file is; all discs of a set share one tree.
func Join(repo, base, href string) (name string, external bool, err error) {
	if strings.Contains(href, "://") || elsewhere(base) {
		return "", true, nil
	}
	if strings.HasPrefix(base, "media:") {
		base = ""
	}
	name, err = join(repo, base, strings.TrimLeft(href, "/"))
	if err != nil {
		return "", false, fmt.Errorf("location %.200q, base %.100q, of repository %.200q: %w", href, base, repo, err)
	}
	return name, false, nil
}

// elsewhere reports whether base is a URL with a scheme, or relative to a host that need not have our paths.
func elsewhere(base string) bool {
	if strings.HasPrefix(base, "/") || strings.Contains(base, "://") {
		return true
	}
	scheme, _, ok := strings.Cut(base, ":")
	return ok && scheme != "media" && !strings.Contains(scheme, "/")
}

func join(repo, base, href string) (string, error) {
	whole := repo + "/" + base + "/" + href
	for _, c := range []byte(whole) {
		if c < ' ' || c == bad || c == '\\' {
			return "", fmt.Errorf("holds the character %q", c)
		}
	}
	if last := href[strings.LastIndexByte(href, '/')+1:]; last == "" || last == "." || last == ".." {
		return "", errors.New("names no file")
	}
	name := path.Clean(strings.TrimLeft(whole, "/"))
	first, _, _ := strings.Cut(name, "/")
	if first == ".." || first == ".instantmirror" {
		return "", errors.New("leads out of the mirror")
	}
	if len(name) > maxPath {
		return "", fmt.Errorf("longer than %d bytes", maxPath)
	}
	for elem := range strings.SplitSeq(name, "/") {
		if len(elem) > maxName {
			return "", fmt.Errorf("has an element longer than %d bytes", maxName)
		}
	}
	return name, nil
}
