package fsck

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// walk calls visit for dir, unless that is the root, and for all that is below it but the private directory. Symlinks
// are not followed. Failed, if not nil, is told which directories could not be read. What goes meanwhile is passed over.
func (c *checker) walk(ctx context.Context, dir string, failed func(p string, err error), visit func(p string, info fs.FileInfo) error) error {
	if dir != "" {
		info, err := c.root.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = visit(dir, info)
		}
		if err != nil || !info.IsDir() {
			return err
		}
	}
	return c.walkIn(ctx, dir, failed, visit)
}

func (c *checker) walkIn(ctx context.Context, dir string, failed func(string, error), visit func(string, fs.FileInfo) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	entries, err := c.readDir(dir)
	if err != nil && failed != nil && !errors.Is(err, fs.ErrNotExist) {
		failed(dir, err)
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if p == private {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = visit(p, info)
		}
		if err == nil && info.IsDir() && e.Name() != private {
			err = c.walkIn(ctx, p, failed, visit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) readDir(dir string) ([]fs.DirEntry, error) {
	if dir == "" {
		dir = "."
	}
	f, err := c.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// survey finds the repositories and what else names files, the files that it may name, and how much there is to read.
func (c *checker) survey(ctx context.Context) error {
	return c.walk(ctx, "", nil, func(p string, info fs.FileInfo) error {
		if info.IsDir() {
			return nil
		}
		if root, name, ok := inRepodata(p); ok {
			sum, rest := sumInName(name)
			if primary := !sum.IsZero() && strings.HasPrefix(rest, "primary.xml"); primary || name == "repomd.xml" {
				r := c.repos[root]
				if r == nil {
					r = &repository{path: root}
					c.repos[root] = r
				}
				if primary {
					r.primaries = append(r.primaries, p)
				} else {
					r.repomd = true
					c.sum.Repositories++
				}
			}
		}
		if k := classOf(p); k == treeinfo || k == checksums {
			c.listings = append(c.listings, p)
		}
		if within(p, c.under) {
			if info.Mode().IsRegular() {
				c.total += info.Size()
			}
			if notable(p) {
				c.names.note(p)
			}
		}
		return nil
	})
}

// foreign finds what is wrong with an entry of the tree, whatever its bytes are. file reports whether it has some.
func (c *checker) foreign(p string, info fs.FileInfo) (file bool) {
	wrong := func(want, got string) {
		c.find(Finding{Path: p, Kind: Foreign, Want: want, Got: got})
	}
	mode := info.Mode()
	switch name := path.Base(p); {
	case name == private:
		wrong("this directory at the root only", "another one")
		return false
	case temporary(name):
		wrong("downloads in progress in "+private+" only", "one in the tree")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(name):
		wrong("a name of UTF-8 without control characters", fmt.Sprintf("%q", name))
	}
	switch {
	case mode.IsDir():
		if mode.Perm()&0o001 == 0 {
			wrong("a world-searchable directory", fmt.Sprintf("mode %04o", mode.Perm()))
		}
		return false
	case mode&fs.ModeSymlink != 0:
		return c.symlink(p, wrong)
	case !mode.IsRegular():
		wrong("a file or directory", mode.Type().String())
		return false
	case mode.Perm()&0o004 == 0:
		wrong("a world-readable file", fmt.Sprintf("mode %04o", mode.Perm()))
	}
	return true
}

// symlink judges where a symlink leads. One that leads nowhere does no harm; what one to a directory leads to is judged
// by its own path.
func (c *checker) symlink(p string, wrong func(want, got string)) (file bool) {
	target, err := c.root.Readlink(p)
	if err != nil {
		return false // it went
	}
	const want = "a relative symlink that stays in the tree"
	if slices.Contains(strings.Split(target, "/"), private) {
		wrong(want, fmt.Sprintf("one to %q", target))
		return false
	}
	info, err := c.root.Stat(p)
	switch {
	case err == nil:
		return info.Mode().IsRegular()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
	default: // it is absolute, leads out, or in a circle: os.Root has no name for these errors
		wrong(want, fmt.Sprintf("one to %q: %v", target, errors.Unwrap(err)))
	}
	return false
}

// temporary reports whether name is that of a download in progress.
func temporary(name string) bool {
	key, ok := strings.CutPrefix(name, "partial-")
	_, err := digest.ParseSum(digest.SHA256, key)
	return ok && err == nil
}

// inRepodata splits the path of a file directly in a repodata/ into the repository's path and the file's name.
func inRepodata(p string) (root, name string, ok bool) {
	dir, name := path.Split(p)
	if dir == "repodata/" {
		return "", name, true
	}
	root, ok = strings.CutSuffix(dir, "/repodata/")
	return root, name, ok
}

// class is what a path alone says about a file. The rule is that of site, which is not asked: see TestClass.
type class int

const (
	volatile  class = iota // an image, if a .treeinfo or a list of checksums names it
	pkg                    // a package
	metadata               // what a repomd.xml names, and what belongs to it
	treeinfo               // a .treeinfo
	checksums              // a list of checksums
)

func classOf(p string) class {
	dir, name := path.Split(p)
	switch _, sum, sha := strings.Cut(name, "SHA"); {
	case name == ".treeinfo", name == "treeinfo":
		return treeinfo
	case strings.HasPrefix(dir, "repodata/"), strings.Contains(dir, "/repodata/"):
		return metadata
	case isPackage(name):
		return pkg
	case strings.Contains(name, "CHECKSUM"), sha && strings.Contains(sum, "SUM"):
		return checksums
	}
	return volatile
}

// notable reports whether it is noted that the file p stands in the tree, for others may name it in great numbers.
func notable(p string) bool { return classOf(p) == volatile || isPackage(p) }

func isPackage(p string) bool {
	return strings.HasSuffix(p, ".rpm") || strings.HasSuffix(p, ".drpm")
}

// sumInName is the digest that the name of a metadata file begins with (<hex>-primary.xml.gz), told by its length, and
// the rest of the name. Zero: there is none.
func sumInName(name string) (sum digest.Sum, rest string) {
	text, rest, ok := strings.Cut(name, "-")
	if !ok || rest == "" {
		return digest.Sum{}, name
	}
	for a := digest.MD5; a <= digest.SHA512; a++ {
		if hex.DecodedLen(len(text)) == a.New().Size() {
			if sum, err := digest.ParseSum(a, text); err == nil {
				return sum, rest
			}
		}
	}
	return digest.Sum{}, name
}

// Leftovers lists the files, with their paths below root, that wait for something in the private directory: downloads
// and publications in progress, or what a crash left of them.
func Leftovers(root string) ([]string, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	var left []string
	for _, dir := range []string{private + "/tmp", private + "/gen"} {
		err := fs.WalkDir(r.FS(), dir, func(p string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && p != dir {
				left = append(left, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("listing what is in progress: %w", err)
		}
	}
	return left, nil
}
