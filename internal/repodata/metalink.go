package repodata

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	maxMetalink   = 4 << 20 // bytes; real ones have 3 to 60 kB
	maxURLs       = 2000    // real ones have up to 200
	maxAlternates = 1000    // real ones have up to 30
)

// Metalink is what a MirrorManager says of a repository: which repomd.xml is the latest that it knows of, which ones
// before it may still be served, and where.
type Metalink struct {
	Main       MetalinkEntry
	Alternates []MetalinkEntry
	URLs       []MetalinkURL // in their order: the one to be asked first is first
}

// MetalinkEntry describes one repomd.xml.
type MetalinkEntry struct {
	Timestamp int64        // the greatest of its records', in Unix seconds; 0 unknown
	Size      int64        // in bytes; -1 unknown
	Sums      []digest.Sum // those that we know how to make
}

// MetalinkURL is where a mirror has its repomd.xml.
type MetalinkURL struct {
	URL        string // http or https, without user information
	Location   string // country, "US"; "" unknown
	Preference int    // 100 is asked before 1; 0 unknown
}

// Repository is the URL of the repository that u.URL is the repomd.xml of, without a slash at its end; "" if it is not
// named like one.
func (u MetalinkURL) Repository() string {
	base, ok := strings.CutSuffix(u.URL, "/repodata/repomd.xml")
	if !ok {
		return ""
	}
	return base
}

// Knows reports whether a repomd.xml of size bytes is m's main entry, and whether it is an alternate. SumOf makes its
// digest; it is called once for each algorithm at most. The strongest digest of an entry decides. An entry that has none
// is no entry.
func (m *Metalink) Knows(size int64, sumOf func(digest.Algorithm) digest.Sum) (main, alternate bool) {
	made := make(map[digest.Algorithm]digest.Sum)
	is := func(e *MetalinkEntry) bool {
		var best digest.Sum
		for _, s := range e.Sums {
			if s.Algorithm() > best.Algorithm() { // in the order of their strength
				best = s
			}
		}
		if best.IsZero() || e.Size >= 0 && e.Size != size {
			return false
		}
		got, ok := made[best.Algorithm()]
		if !ok {
			got = sumOf(best.Algorithm())
			made[best.Algorithm()] = got
		}
		return got == best
	}
	for i := range m.Alternates {
		alternate = alternate || is(&m.Alternates[i])
	}
	return is(&m.Main), alternate
}

// ParseMetalink reads what a MirrorManager answers for a repository: a metalink 3.0 with a <file name="repomd.xml">, of up
// to 4 MiB, 2000 URLs and 1000 alternates. What it says of other files, and URLs other than http and https, are left out.
func ParseMetalink(r io.Reader) (*Metalink, error) {
	m, err := parseMetalink(&bounded{r: r, what: "file", most: maxMetalink})
	if err != nil {
		return nil, fmt.Errorf("reading metalink: %w", err)
	}
	return m, nil
}

// place is what an element of a metalink is. The zero place is no part of what is read.
type place uint8

const (
	_ place = iota
	inMetalink
	inFiles
	inFile // repomd.xml
	inAlternates
	inAlternate
	inVerification
	inResources
	atTimestamp // this and the following have the text that is read
	atSize
	atHash
	atURL
)

type step struct {
	parent place
	name   string
}

// places says what an element is. Name spaces do not count: MirrorManagers differ in that of the mm0 elements.
var places = map[step]place{
	{inMetalink, "files"}:         inFiles,
	{inFiles, "file"}:             inFile,
	{inFile, "timestamp"}:         atTimestamp,
	{inFile, "size"}:              atSize,
	{inFile, "verification"}:      inVerification,
	{inFile, "alternates"}:        inAlternates,
	{inFile, "resources"}:         inResources,
	{inAlternates, "alternate"}:   inAlternate,
	{inAlternate, "timestamp"}:    atTimestamp,
	{inAlternate, "size"}:         atSize,
	{inAlternate, "verification"}: inVerification,
	{inVerification, "hash"}:      atHash,
	{inResources, "url"}:          atURL,
}

func parseMetalink(r io.Reader) (*Metalink, error) {
	d := newDocument(r)
	if _, err := d.root("metalink"); err != nil {
		return nil, err
	}
	var (
		m     = Metalink{Main: MetalinkEntry{Size: -1}}
		alt   MetalinkEntry
		entry *MetalinkEntry      // what is read: nil before the file, then &m.Main or &alt
		at    [maxDepth + 1]place // by depth
		elem  xml.StartElement    // with the text that is read
		text  []byte
	)
	for at[1] = inMetalink; ; {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case nil:
			if entry == nil {
				return nil, errors.New(`has no <file name="repomd.xml">`)
			}
			return &m, nil
		case xml.StartElement:
			if d.depth == 1 {
				return nil, errors.New("something follows the root element")
			}
			here := places[step{at[d.depth-1], t.Name.Local}]
			switch {
			case here == inFile && (entry != nil || attribute(t, "", "name") != "repomd.xml"):
				here = 0
			case here == inFile:
				entry = &m.Main
			case here == inAlternate:
				alt = MetalinkEntry{Size: -1}
				entry = &alt
			case here >= atTimestamp:
				elem, text = t, text[:0]
			}
			at[d.depth] = here
		case xml.CharData:
			if at[d.depth] < atTimestamp {
				break
			}
			if text = append(text, t...); len(text) > maxField {
				return nil, fmt.Errorf("text of <%s> is longer than %d bytes", elem.Name.Local, maxField)
			}
		case xml.EndElement:
			switch text := bytes.TrimSpace(text); at[d.depth] {
			case atTimestamp:
				entry.Timestamp = max(0, count(string(text)))
			case atSize:
				entry.Size = count(string(text))
			case atHash:
				if s := sum(attribute(elem, "", "type"), text); !s.IsZero() {
					entry.Sums = append(entry.Sums, s)
				}
			case atURL:
				if err := m.addURL(elem, string(text)); err != nil {
					return nil, err
				}
			case inAlternate:
				if len(m.Alternates) == maxAlternates {
					return nil, fmt.Errorf("more than %d alternates", maxAlternates)
				}
				m.Alternates = append(m.Alternates, alt)
				entry = &m.Main
			}
		}
	}
}

// addURL adds a URL, if it can be asked.
func (m *Metalink) addURL(elem xml.StartElement, text string) error {
	if !askable(text) {
		return nil
	}
	if len(m.URLs) == maxURLs {
		return fmt.Errorf("more than %d URLs", maxURLs)
	}
	add := MetalinkURL{URL: text, Preference: int(max(0, min(100, count(attribute(elem, "", "preference")))))}
	if country := attribute(elem, "", "location"); len(country) == 2 {
		add.Location = country
	}
	m.URLs = append(m.URLs, add)
	return nil
}

func askable(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil
}
