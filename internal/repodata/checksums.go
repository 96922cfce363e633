package repodata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// maxImage is the size in bytes above which what a list of checksums says is absurd.
const maxImage = 1 << 40

// ParseChecksums reads a list of checksums (CHECKSUM, SHA256SUMS, …) of up to 1 MiB and 10,000 files. It returns the
// files that have a digest, sorted by path. Read are "SHA256 (name) = hex", "hex  name", "hex *name", and for the size
// "# name: 123 bytes". Other lines do not count, nor do names that are not below the list's directory; a list without
// any file is an error. Of one that is clear-signed only what was signed counts; the signature is not checked here.
func ParseChecksums(r io.Reader) ([]Image, error) {
	list, err := parseChecksums(&bounded{r: r, what: "file", most: maxListing})
	if err != nil {
		return nil, fmt.Errorf("reading checksums: %w", err)
	}
	return list, nil
}

func parseChecksums(r io.Reader) ([]Image, error) {
	var (
		in    = clearSigned{in: newLines(r)}
		sums  = make(map[string]vouched)
		sizes = make(map[string]int64) // -1 where two contradict each other
	)
	for {
		line, err := in.next()
		if in.begins {
			clear(sums)
			clear(sizes)
		}
		if err != nil {
			return nil, err
		}
		if line == nil {
			break
		}
		name, s, size := checksum(string(bytes.TrimSpace(line)))
		if size > maxImage {
			return nil, fmt.Errorf("line %d: %.60q has %d bytes: more than %d are absurd", in.in.n, name, size, int64(maxImage))
		}
		if size < 0 && s.IsZero() {
			continue
		}
		path, err := inside(name)
		if err != nil {
			continue
		}
		if size >= 0 {
			if was, ok := sizes[path]; ok && was != size {
				size = -1
			}
			sizes[path] = size
		} else {
			v := sums[path]
			v.add(s)
			sums[path] = v
		}
		if len(sums) > maxEntries || len(sizes) > maxEntries {
			return nil, fmt.Errorf("more than %d files", maxEntries)
		}
	}
	var list []Image
	for _, path := range slices.Sorted(maps.Keys(sums)) {
		img := Image{Path: path, Sum: sums[path].sum, Size: -1}
		if size, ok := sizes[path]; ok {
			img.Size = size
		}
		if !img.Sum.IsZero() {
			list = append(list, img)
		}
	}
	if list == nil {
		return nil, errors.New("names no file with a digest that we know how to make")
	}
	return list, nil
}

// checksum reads a line: a name with a digest, or (from a comment) with a size, which is -1 otherwise; or nothing.
func checksum(line string) (name string, s digest.Sum, size int64) {
	if comment, ok := strings.CutPrefix(line, "#"); ok {
		comment, ok = strings.CutSuffix(comment, " bytes")
		if at := strings.LastIndex(comment, ": "); ok && at >= 0 {
			if size = count(comment[at+2:]); size >= 0 {
				return strings.TrimSpace(comment[:at]), s, size
			}
		}
		return "", s, -1
	}
	if kind, rest, ok := strings.Cut(line, "("); ok { // BSD
		if at := strings.LastIndexByte(rest, ')'); at >= 0 {
			if hex, ok := strings.CutPrefix(strings.TrimSpace(rest[at+1:]), "="); ok {
				if s = sum(kind, []byte(hex)); !s.IsZero() {
					return rest[:at], s, -1
				}
			}
		}
	}
	at := strings.IndexAny(line, " \t") // GNU
	if at < 0 {
		return "", digest.Sum{}, -1
	}
	name = strings.TrimPrefix(line[at+1:], "*") // it was read as binary
	return strings.TrimSpace(name), bareSum(line[:at]), -1
}

var algorithmOf = map[int]digest.Algorithm{ // by digits of the digest
	32: digest.MD5, 40: digest.SHA1, 56: digest.SHA224, 64: digest.SHA256, 96: digest.SHA384, 128: digest.SHA512,
}

// bareSum reads a digest whose length must tell its algorithm.
func bareSum(hex string) digest.Sum {
	a, ok := algorithmOf[len(hex)]
	if !ok {
		return digest.Sum{}
	}
	s, err := digest.ParseSum(a, hex)
	if err != nil {
		return digest.Sum{}
	}
	return s
}

// clearSigned reads a text that may be clear-signed (RFC 9580, 7): then what stands around the signed message is left
// out, and so is what was put into it for the transport.
type clearSigned struct {
	in     *lines
	signed bool // in the message
	begins bool // the message began since the last line: what was read before was not signed
}

// next returns the next line, and nil when there is none. A message that has no signature was cut off.
func (c *clearSigned) next() ([]byte, error) {
	c.begins = false
	line, err := c.in.next()
	if !c.signed && isArmour(line, "SIGNED MESSAGE") {
		for len(bytes.TrimSpace(line)) > 0 { // the headers of the armour, and the empty line after them
			line, err = c.in.next()
		}
		c.signed, c.begins = true, true
		if line != nil {
			line, err = c.in.next()
		}
	}
	switch {
	case err != nil || !c.signed:
		return line, err
	case line == nil:
		return nil, errors.New("ends before its signature")
	case isArmour(line, "SIGNATURE"):
		return nil, nil
	case bytes.HasPrefix(line, []byte("-----")): // in a message they are "- -----"
		return nil, fmt.Errorf("line %d: %.60q is no line of a signed message", c.in.n, bytes.TrimSpace(line))
	}
	return bytes.TrimPrefix(line, []byte("- ")), nil
}

func isArmour(line []byte, what string) bool {
	return string(bytes.TrimSpace(line)) == "-----BEGIN PGP "+what+"-----"
}
