package fsck

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/repodata"
)

// clearSigned begins a text that is signed as it stands (RFC 9580, 7).
const clearSigned = "-----BEGIN PGP SIGNED MESSAGE-----"

// learn reads what names files: each repomd.xml, each .treeinfo and list of checksums, then the current primaries, then
// the earlier ones, whose word counts only where no current one is given.
func (c *checker) learn(ctx context.Context) error {
	type source struct {
		repo    *repository
		path    string
		want    digest.Expectation
		open    int64 // bytes of the document; -1 unknown
		earlier bool
	}
	var current, earlier []source
	for _, root := range slices.Sorted(maps.Keys(c.repos)) {
		r := c.repos[root]
		md := c.readRepomd(r)
		named := make(map[string]bool)
		at := len(c.docs) - 1
		for _, rec := range md.Records {
			p, external, err := repodata.Join(r.path, rec.Base, rec.Href)
			if at, _, ok := inRepodata(p); err != nil || external || !ok || at != r.path || path.Base(p) == "repomd.xml" {
				continue // whatever it is, it does not stand here, or this repository has no say in it
			}
			named[p] = true
			if err := c.names.add(c.docs, p, want{at, rec.Size, rec.Sum}); err != nil {
				return err
			}
			if rec.Type == "primary" && !rec.Sum.IsZero() {
				current = append(current, source{r, p, digest.Known(rec.Size, rec.Sum), rec.OpenSize, false})
			}
		}
		for _, p := range r.primaries {
			if !named[p] {
				_, name, _ := inRepodata(p)
				sum, _ := sumInName(name)
				earlier = append(earlier, source{r, p, digest.Known(-1, sum), -1, true})
			}
		}
	}
	for _, p := range c.listings {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.readListing(p); err != nil {
			return err
		}
	}
	for _, s := range append(current, earlier...) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.docs = append(c.docs, doc{path: s.path, pointer: s.repo.pointer, earlier: s.earlier})
		ok, err := c.readPrimary(ctx, s.repo.path, len(c.docs)-1, s.want, s.open)
		if err != nil {
			return err
		}
		c.docs[len(c.docs)-1].bad = !ok
		if !ok && !s.earlier {
			s.repo.blind = s.path
		}
	}
	return nil
}

// readRepomd reads the repository's repomd.xml, which becomes a doc; one without records if there is none.
func (c *checker) readRepomd(r *repository) *repodata.Repomd {
	none := &repodata.Repomd{}
	if !r.repomd {
		return none
	}
	p := join(r.path, pointerName)
	f, info, err := c.open(p)
	if f == nil {
		c.unreadable(p, "a repomd.xml", err)
		return none
	}
	defer f.Close()
	md, err := repodata.ParseRepomd(f)
	if err != nil {
		c.unreadable(p, "a repomd.xml", err)
		return none
	}
	r.pointer = pointer{p, info}
	c.docs = append(c.docs, doc{path: p, pointer: r.pointer})
	return md
}

// readListing learns what a .treeinfo or a list of checksums names. What has the name of a list need not be one, unless it
// is signed as text is.
func (c *checker) readListing(p string) error {
	f, info, err := c.open(p)
	if f == nil {
		if classOf(p) == treeinfo {
			c.unreadable(p, "a .treeinfo", err)
		}
		return nil
	}
	defer f.Close()
	var images []repodata.Image
	if classOf(p) == treeinfo {
		t, err := repodata.ParseTreeinfo(f)
		if err != nil {
			c.unreadable(p, "a .treeinfo", err)
			return nil
		}
		images = t.Images
	} else {
		in := bufio.NewReader(f)
		head, _ := in.Peek(len(clearSigned))
		if images, err = repodata.ParseChecksums(in); err != nil {
			if string(head) == clearSigned {
				c.unreadable(p, "a list of checksums", err)
			}
			return nil
		}
	}
	at := len(c.docs)
	c.docs = append(c.docs, doc{path: p, pointer: pointer{p, info}})
	for _, img := range images {
		to := path.Join(path.Dir(p), img.Path)
		if img.Sum.IsZero() || classOf(to) != volatile || !c.names.noted(to) {
			continue
		}
		if err := c.names.add(c.docs, to, want{at, img.Size, img.Sum}); err != nil {
			return err
		}
	}
	return nil
}

// readPrimary learns what the primary that is the given doc, of the repository repo, names. Not ok: what it says does not
// count.
func (c *checker) readPrimary(ctx context.Context, repo string, at int, expected digest.Expectation, open int64) (ok bool, err error) {
	p := c.docs[at].path
	f, info, err := c.open(p)
	if f == nil {
		c.unreadable(p, "a primary", err)
		return false, nil
	}
	defer f.Close()
	h := expected.Sum().Algorithm().New()
	in := bufio.NewReader(io.TeeReader(&reader{ctx: ctx, r: f}, h))
	if magic, _ := in.Peek(5); bytes.Equal(magic, []byte("\x00ZCK1")) || bytes.Equal(magic, []byte("\x00ZHR1")) {
		return false, nil // clients that read zchunk have it; we do not
	}
	var full error
	err = repodata.ReadPrimary(in, p, repodata.Limits{Size: info.Size(), OpenSize: open}, func(pkg *repodata.Package) error {
		if to, external, err := repodata.Join(repo, pkg.Base, pkg.Href); err == nil && !external && c.names.noted(to) {
			full = c.names.add(c.docs, to, want{at, pkg.Size, pkg.Sum})
		}
		return full
	})
	if full != nil {
		return false, full
	}
	_, rest := io.Copy(io.Discard, in) // what follows the document counts for the digest
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if rest != nil || expected.Check(p, info.Size(), digest.SumOf(expected.Sum().Algorithm(), h)) != nil {
		return false, nil // judge will find it so
	}
	if err != nil {
		c.unreadable(p, "a primary", err)
		return false, nil
	}
	return true, nil
}

// unreadable tells that p cannot be read, or is not what it should be; no error: it went.
func (c *checker) unreadable(p, what string, err error) {
	if err != nil && within(p, c.under) {
		c.find(Finding{Path: p, Kind: Unreadable, Want: what, Got: err.Error()})
	}
}

// open opens the regular file p. There is neither file nor error if it went meanwhile, or is none.
func (c *checker) open(p string) (*os.File, fs.FileInfo, error) {
	f, err := c.root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold us up
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENXIO) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		return f, info, nil
	}
	f.Close()
	return nil, nil, err
}

// reader reads until ctx ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
