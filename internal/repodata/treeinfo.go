package repodata

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// Bounds of .treeinfo and of lists of checksums. Real ones have 0.3 to 25 kB and up to 200 entries.
const (
	maxListing = 1 << 20 // bytes
	maxEntries = 10_000
	maxLine    = 8 << 10 // bytes of a line, and of a value with all lines that it goes on over: a path and a digest fit in
	maxLabel   = 255     // bytes of a family, a version, …
)

// Treeinfo is what the .treeinfo (or treeinfo) of an install tree says.
type Treeinfo struct {
	Family, Version, Arch string // "Fedora", "43", "x86_64"; "" unknown
	Variant               string // the main one, "Server"; "" unknown
	Timestamp             int64  // when the tree was built, in Unix seconds; 0 unknown. Fractions are dropped
	Disc, Discs           int    // which one of how many; 0 unknown

	Images   []Image   // all files that it names, sorted by path. One may be repodata/repomd.xml
	Variants []Variant // in their order, add-ons too; last that of [general], if it is another one: before productmd it is the only one
}

// Image is a file that a .treeinfo or a list of checksums names.
type Image struct {
	Path string     // relative to the directory of the file that names it, clean, never outside of it
	Sum  digest.Sum // zero if there is none, none that we know how to make, or several that contradict each other
	Size int64      // in bytes; -1 unknown, as in every .treeinfo
}

// Variant is a part of the product that a tree installs. Its paths are as written, see JoinRepository, and "" if there
// are none.
type Variant struct {
	ID                                               string // "BaseOS", "Server-HighAvailability"
	Repository, SourceRepository, DebugRepository    string
	PackagesDir, SourcePackagesDir, DebugPackagesDir string
}

// ParseTreeinfo reads a .treeinfo of up to 1 MiB and 10,000 entries, of productmd or from before it. It reads INI as
// Python's configparser does, but for what that refuses: keys and sections may come twice (the last value of a key
// counts, all images do). A file that names an image outside of its tree is refused.
func ParseTreeinfo(r io.Reader) (*Treeinfo, error) {
	t, err := parseTreeinfo(&bounded{r: r, what: "file", most: maxListing})
	if err != nil {
		return nil, fmt.Errorf("reading .treeinfo: %w", err)
	}
	return t, nil
}

func parseTreeinfo(r io.Reader) (*Treeinfo, error) {
	var (
		t        Treeinfo
		images   = make(map[string]vouched)
		said     = make(map[string]string) // "section key": value, of the sections that have single values
		variants = make(map[string]int)    // by section
		known    bool                      // a section that belongs here
	)
	name := func(path string, s digest.Sum) error {
		clean, err := inside(path)
		if err != nil {
			return fmt.Errorf("image %.60q %w", path, err)
		}
		v := images[clean]
		v.add(s)
		images[clean] = v
		return nil
	}
	err := readINI(r, func(section, key, value string) error {
		field := strings.ToLower(key)
		kind, id, _ := strings.Cut(section, "-")
		switch {
		case section == "general", section == "release", section == "product", section == "tree", section == "media":
			said[section+" "+field] = value
		case section == "checksums":
			known = true
			return name(key, treeSum(value))
		case section == "stage2" && (field == "mainimage" || field == "instimage"), kind == "images" && id != "":
			known = true
			if value != "" {
				return name(value, digest.Sum{})
			}
		case (kind == "variant" || kind == "addon") && id != "":
			i, ok := variants[section]
			if !ok {
				i = len(t.Variants)
				variants[section] = i
				t.Variants = append(t.Variants, Variant{ID: label(id)})
			}
			t.Variants[i].set(field, value)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case !known && len(said)+len(t.Variants) == 0:
		return nil, errors.New("has none of the sections of a .treeinfo")
	}
	first := func(keys ...string) string {
		for _, key := range keys {
			if text := label(said[key]); text != "" {
				return text
			}
		}
		return ""
	}
	t.Family = first("general family", "release name", "product name")
	t.Version = first("general version", "release version", "product version")
	t.Arch = first("general arch", "tree arch")
	t.Variant = first("general variant")
	t.Timestamp = seconds(first("tree build_timestamp", "general timestamp"))
	t.Disc = disc(first("media discnum", "general discnum"))
	t.Discs = disc(first("media totaldiscs", "general totaldiscs"))
	for _, path := range slices.Sorted(maps.Keys(images)) {
		t.Images = append(t.Images, Image{Path: path, Sum: images[path].sum, Size: -1})
	}
	v := Variant{ID: t.Variant, Repository: said["general repository"], PackagesDir: said["general packagedir"]}
	listed := func(o Variant) bool { return o.ID == v.ID || o.Repository == v.Repository }
	if v != (Variant{}) && !slices.ContainsFunc(t.Variants, listed) {
		t.Variants = append(t.Variants, v)
	}
	return &t, nil
}

func (v *Variant) set(field, value string) {
	switch field {
	case "repository":
		v.Repository = value
	case "source_repository":
		v.SourceRepository = value
	case "debug_repository":
		v.DebugRepository = value
	case "packages":
		v.PackagesDir = value
	case "source_packages":
		v.SourcePackagesDir = value
	case "debug_packages":
		v.DebugPackagesDir = value
	}
}

// Repositories are the mirror paths of the repositories that t's variants name, in their order, each once. The mirror
// path of the tree is tree. If t names none, it is the tree itself, as before productmd. One that is not on this mirror
// is an error.
func (t *Treeinfo) Repositories(tree string) ([]string, error) {
	var all []string
	seen := make(map[string]bool)
	for _, v := range t.Variants {
		for _, written := range []string{v.Repository, v.SourceRepository, v.DebugRepository} {
			if written == "" {
				continue
			}
			repo, err := JoinRepository(tree, written)
			if err != nil {
				return nil, fmt.Errorf("variant %.60q: %w", v.ID, err)
			}
			if !seen[repo] {
				seen[repo] = true
				all = append(all, repo)
			}
		}
	}
	if len(all) == 0 {
		return []string{tree}, nil
	}
	return all, nil
}

// JoinRepository is the mirror path of the directory that a variant's repository, as written in the .treeinfo of tree,
// is in; "" is the mirror's root. It may be beside the tree ("../../../AppStream/x86_64/os"). One that is on another host
// or leads out of the mirror is an error.
func JoinRepository(tree, written string) (string, error) {
	const pointer = "repodata/repomd.xml"
	dir := strings.TrimRight(written, "/")
	switch {
	case elsewhere(written), strings.HasPrefix(written, "media:"):
		return "", fmt.Errorf("repository %.60q is not on this mirror", written)
	case dir == "repodata":
		dir = ""
	default: // RHEL 6 names the repodata directory
		dir = strings.TrimSuffix(dir, "/repodata")
	}
	name, err := join(tree, dir, pointer)
	if err != nil {
		return "", fmt.Errorf("repository %.60q of %.200q %w", written, tree, err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(name, pointer), "/"), nil
}

// inside cleans the path of a file that must be in the directory of the file that names it.
func inside(name string) (string, error) {
	if strings.HasPrefix(name, "/") || strings.Contains(name, "://") {
		return "", errors.New("is not relative to the tree")
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == ".." {
			return "", errors.New("leads out of the tree")
		}
	}
	return join("", "", name)
}

// vouched is the digest of a file, of all that are given for it: the strongest. Two of the same kind that differ are
// none, for nobody knows which one is right.
type vouched struct {
	sum  digest.Sum
	best digest.Algorithm // seen
}

func (v *vouched) add(s digest.Sum) {
	switch a := s.Algorithm(); {
	case a > v.best: // in the order of their strength
		v.sum, v.best = s, a
	case a == v.best && s != v.sum:
		v.sum = digest.Sum{}
	}
}

// treeSum reads "sha256:0123…", and "0123…" as before productmd.
func treeSum(text string) digest.Sum {
	if kind, hex, ok := strings.Cut(text, ":"); ok {
		return sum(kind, []byte(hex))
	}
	return bareSum(text)
}

// label is a text to be shown and compared: without control characters, and "" if it is absurdly long.
func label(text string) string {
	if len(text) > maxLabel {
		return ""
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == bad {
			return ' '
		}
		return r
	}, text))
}

func seconds(text string) int64 {
	if f, err := strconv.ParseFloat(text, 64); err == nil && f >= 0 && f < math.MaxInt64 {
		return int64(f)
	}
	return 0
}

func disc(text string) int {
	if n := count(text); n > 0 && n <= 1000 {
		return int(n)
	}
	return 0
}

// readINI calls each for every key of an INI file, in their order. Lines are those of Python's configparser: comments
// are whole lines that begin with # or ;, a key ends at the first = or :, and a value goes on over lines that are
// indented deeper than its key (they stay lines).
func readINI(r io.Reader, each func(section, key, value string) error) error {
	var (
		in           = newLines(r)
		section, key string // key is "" where no value can go on
		value        []byte
		begun        int // the key's line
		indent       int // of the last key or section
		entries      int // and sections
	)
	end := func() error {
		if key == "" {
			return nil
		}
		if err := each(section, key, string(bytes.TrimSpace(value))); err != nil {
			return fmt.Errorf("line %d: %w", begun, err)
		}
		key = ""
		return nil
	}
	for {
		line, err := in.next()
		if err != nil {
			return err
		}
		if line == nil {
			return end()
		}
		text := bytes.TrimSpace(line)
		if len(text) == 0 || text[0] == '#' || text[0] == ';' {
			continue
		}
		depth := len(line) - len(bytes.TrimLeft(line, " \t"))
		if key != "" && depth > indent {
			if value = append(append(value, '\n'), text...); len(value) > maxLine {
				return fmt.Errorf("line %d: its value is longer than %d bytes", begun, maxLine)
			}
			continue
		}
		if err := end(); err != nil {
			return err
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		indent, begun = depth, in.n
		if text[0] == '[' {
			name, _, ok := bytes.Cut(text[1:], []byte("]"))
			if !ok || len(name) == 0 {
				return fmt.Errorf("line %d: %.60q is no [section]", in.n, text)
			}
			section = string(name)
			continue
		}
		at := bytes.IndexAny(text, "=:")
		if at < 1 || section == "" {
			return fmt.Errorf("line %d: %.60q is no key = value of a [section]", in.n, text)
		}
		key, value = string(bytes.TrimSpace(text[:at])), append(value[:0], bytes.TrimSpace(text[at+1:])...)
	}
}

// lines reads a text line by line. What XML would not allow in it is mended as in a document.
type lines struct {
	in *bufio.Reader
	n  int // of the line that was read last, from 1
}

func newLines(r io.Reader) *lines { return &lines{in: bufio.NewReaderSize(r, maxLine)} }

// next returns the next line, with its end, until the next call; and nil when there is none.
func (l *lines) next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("line %d is longer than %d bytes", l.n+1, maxLine)
	case err == io.EOF && len(line) == 0:
		return nil, nil
	case err != nil && err != io.EOF:
		return nil, err
	}
	if l.n++; l.n == 1 {
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	mend(line, true)
	return line, nil
}
