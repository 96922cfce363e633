// Package fsck judges a mirror's tree on disk by what stands in it, and by nothing else: it knows neither the store nor
// the index nor what the mirror believes, so that its tests, and those who run verify, have an oracle of their own. It
// changes nothing, and reads everything through one os.Root, so that no symlink leads out of the tree.
//
// What vouches for a file, the first that there is:
//
//   - current metadata: a record of a repomd.xml, or a primary that one of its records names and vouches for. Any
//     repository of the tree may name any path of it. If several do, the file must be what one of them says.
//     For files that are neither packages nor in a repodata/, and name no others themselves, a .treeinfo or a list of
//     checksums that gives their digest is one more: it stands in their directory or above it.
//   - for packages, an earlier primary: one that stands in a repodata/ whose repomd.xml does not name it (any more), and
//     that is what the checksum in its name says.
//   - in a repodata/, the checksum in the file's name.
//
// A primary that is not what vouches for it, that nothing vouches for, or that cannot be read to its end (zchunk is not
// read here) vouches for nothing. A .treeinfo has no say about a repomd.xml, which may be newer. Names like those of lists
// of checksums are no promise: only one that begins as signed text does must be one. What nothing vouches for is counted,
// and is no finding. What is not there is none either: the tree is a partial mirror.
//
// To be judged a file is read once, for all that name it, and not at all if nothing vouches for it; what names files is
// read once more before. Symlinks to directories are not followed: what they lead to has a path of its own. For each
// file that stands below Options.Under, in no repodata/, it takes up to 90 bytes of memory (40 while nothing names it),
// and half as much again while that grows; beside it the names in the largest directory, and a few MiB to read a primary
// (see repodata.ReadPrimary).
package fsck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/instantmirror/instantmirror/internal/signature"
)

// private is the directory below the root that is no part of the mirror.
const private = ".instantmirror"

// pointerName is what a repository is known by.
const pointerName = "repodata/repomd.xml"

// workers is how many files are read at the same time: one disk and a core or two should have time for clients as well.
const workers = 2

// Kind is what is wrong. There are no others than these.
type Kind string

// The kinds of findings.
const (
	Damaged      Kind = "damaged"       // its bytes are not what vouches for it says
	Foreign      Kind = "foreign"       // it is nothing that belongs in a mirror's tree, or others cannot read it
	Unreadable   Kind = "unreadable"    // a repomd.xml, primary, .treeinfo or signed list that is none; a file or directory that cannot be read
	BadSignature Kind = "bad signature" // a repomd.xml.asc is no signature of its repomd.xml by one of the keys
)

// Finding is one thing that is wrong.
type Finding struct {
	Path string // below the root
	Kind Kind
	Want string // what had to be there
	Got  string // what is there
	By   string // the path of what says so; "" if that is the file's own name, or what a tree must be
}

func (f Finding) String() string {
	by := ""
	if f.By != "" {
		by = " (" + f.By + ")"
	}
	return fmt.Sprintf("%s: %s: expected %s%s, found %s", f.Path, f.Kind, f.Want, by, f.Got)
}

// Summary counts what was looked at. Each file is one of Vouched, Earlier, ByName, Unvouched, Damaged and Changed; the
// other findings come on top.
type Summary struct {
	Repositories int64 // that have a repomd.xml, in all of the tree
	Files, Bytes int64 // below Options.Under; a symlink to a file is one

	Vouched   int64 // right by current metadata, .treeinfo or list, or by its signature
	Earlier   int64 // packages that are right by an earlier generation's metadata
	ByName    int64 // right by the checksum in their name
	Unvouched int64 // nothing says what they must be, or they cannot be read
	Changed   int64 // they, or what says so, came or were replaced while we looked: look again

	Damaged, Foreign, Unreadable, BadSignature int64 // findings
}

// Findings is how many findings there were.
func (s Summary) Findings() int64 { return s.Damaged + s.Foreign + s.Unreadable + s.BadSignature }

// Options say what is looked at.
type Options struct {
	// Under is the path below the root, of a directory or a file, that is judged; "" is all of it. What other parts of
	// the tree say about files there counts. It may lead through symlinks; findings have the real path.
	Under string
	// Keys gives the keys that must have signed the repomd.xml at path, if a signature stands beside it; nil if there
	// are none.
	Keys func(path string) *signature.Keyring
	// Progress is called after each file, and now and then during a large one, with the bytes that are done, and those
	// that there are.
	Progress func(path string, done, total int64)
	// Unjudged is called for each package that is Unvouched because the current primary of its repository is not there,
	// is damaged, or cannot be read.
	Unjudged func(path, primary string)
}

// Check judges the tree at root and calls found for each finding, in no order. Found, and what Options has, are called by one
// goroutine at a time. The error says why it is not judged to its end: ctx, or that there is nothing at root or Under.
//
// The tree may be in use. Files that are replaced meanwhile are counted as Changed, not found damaged, with one
// exception: metadata and images of fixed names, between whose change and that of their pointer a publication takes a
// moment. Judge a repository again before acting on what is found in it.
func Check(ctx context.Context, root string, o Options, found func(Finding)) (Summary, error) {
	c := &checker{o: o, found: found, repos: make(map[string]*repository)}
	c.names.init()
	var err error
	if c.under, err = resolve(root, o.Under); err == nil {
		c.root, err = os.OpenRoot(root)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("judging %s: %w", filepath.Join(root, o.Under), err)
	}
	defer func() { _ = c.root.Close() }()
	for _, step := range []func(context.Context) error{c.survey, c.learn, c.judgeAll} {
		if err := step(ctx); err != nil {
			return c.sum, fmt.Errorf("judging %s: %w", filepath.Join(root, o.Under), err)
		}
	}
	return c.sum, nil
}

// resolve gives the path below root that under leads to, by symlinks too: what vouches for a file knows its real path.
func resolve(root, under string) (string, error) {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return "", err
	}
	to, err := filepath.EvalSymlinks(filepath.Join(real, under))
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(real, to)
	switch {
	case err != nil:
		return "", err
	case rel == ".":
		return "", nil
	case !filepath.IsLocal(rel) || within(rel, private):
		return "", errors.New("is no part of the mirror")
	}
	return rel, nil
}

// checker is one Check.
type checker struct {
	root  *os.Root
	o     Options
	under string

	// Made by survey and learn, then only read.
	repos    map[string]*repository // by path
	listings []string               // paths of what are .treeinfo and lists of checksums by their names
	docs     []doc
	names    names

	mu          sync.Mutex // held over found and what o has, and guards what follows
	found       func(Finding)
	sum         Summary
	done, total int64 // bytes
}

// repository is a directory that holds a repodata/.
type repository struct {
	path      string // "" the root
	pointer   pointer
	repomd    bool     // there is one
	primaries []string // paths of files in repodata/ that are primaries by their names, which carry a checksum
	blind     string   // path of the current primary, if that vouches for nothing
}

// pointer is what says that a doc is current. If it is replaced while we look, what the doc names may be as well.
type pointer struct {
	path string
	info fs.FileInfo // as it was read; nil if there is none that parses
}

// doc is something that names files: a repomd.xml, a primary, a .treeinfo or a list of checksums.
type doc struct {
	path    string
	pointer pointer // the doc itself, if it is no primary
	earlier bool
	bad     bool // what it says does not count
}

// find tells of a finding.
func (c *checker) find(f Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f.Kind {
	case Damaged:
		c.sum.Damaged++
	case Foreign:
		c.sum.Foreign++
	case Unreadable:
		c.sum.Unreadable++
	case BadSignature:
		c.sum.BadSignature++
	}
	c.found(f)
}

// progress notes that n more bytes are done.
func (c *checker) progress(p string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
	if c.o.Progress != nil {
		c.o.Progress(p, c.done, max(c.done, c.total))
	}
}

// within reports whether p is dir or below it; "" is the root.
func within(p, dir string) bool {
	return dir == "" || p == dir || strings.HasPrefix(p, dir+"/")
}
