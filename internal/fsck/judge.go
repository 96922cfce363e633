package fsck

import (
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/instantmirror/instantmirror/internal/digest"
)

const (
	bufferSize   = 256 << 10
	progressStep = 64 << 20 // bytes of a file between two calls of Progress
	maxSignature = 1 << 20  // bytes of a repomd.xml.asc that are read; a longer one is none
)

// judgeAll looks at all that is to be judged.
func (c *checker) judgeAll(ctx context.Context) error {
	files := make(chan string)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := make([]byte, bufferSize)
			for p := range files {
				c.judge(ctx, p, buf)
			}
		})
	}
	failed := func(p string, err error) {
		c.find(Finding{Path: p, Kind: Unreadable, Want: "a directory", Got: err.Error()})
	}
	err := c.walk(ctx, c.under, failed, func(p string, info fs.FileInfo) error {
		if c.foreign(p, info) {
			select {
			case files <- p:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	close(files)
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// file is a file that is judged.
type file struct {
	*os.File
	path string
	info fs.FileInfo
	told int64 // bytes of it that Progress knows of
}

// judge judges the bytes of the file p and counts it.
func (c *checker) judge(ctx context.Context, p string, buf []byte) {
	o, info, err := c.open(p)
	if o == nil && err == nil {
		return // it went
	}
	f, count := &file{File: o, path: p, info: info}, &c.sum.Unvouched
	if o != nil {
		defer o.Close()
		count, err = c.judgeFile(ctx, f, buf)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.find(Finding{Path: p, Kind: Unreadable, Want: "a file that can be read", Got: err.Error()})
		count = &c.sum.Unvouched
	}
	size := int64(0)
	if o != nil {
		size = info.Size()
	}
	c.mu.Lock()
	if primary := c.blindFor(p); count == &c.sum.Unvouched && primary != "" && c.o.Unjudged != nil {
		c.o.Unjudged(p, primary)
	}
	c.sum.Files++
	c.sum.Bytes += size
	if count != nil {
		*count++
	}
	c.mu.Unlock()
	c.progress(p, size-f.told)
}

// blindFor is the path of the primary that would speak of the package p, if it vouches for nothing; else "".
func (c *checker) blindFor(p string) string {
	if !strings.HasSuffix(p, ".rpm") && !strings.HasSuffix(p, ".drpm") {
		return ""
	}
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if r := c.repos[dir]; r != nil || dir == "" {
			if r == nil {
				return ""
			}
			return r.blind
		}
	}
}

// judgeFile judges the bytes of f. It returns which counter f belongs to, nil if f was found damaged, which counts it.
// An error says that f cannot be read.
func (c *checker) judgeFile(ctx context.Context, f *file, buf []byte) (count *int64, err error) {
	wants, right := c.wants(f.path)
	_, name, inside := inRepodata(f.path)
	switch {
	case len(wants) > 0:
		return c.compare(ctx, f, wants, right, buf)
	case notable(f.path) && !c.names.noted(f.path): // it came after what names it was read
		return &c.sum.Changed, nil
	case inside && name == "repomd.xml":
		return c.judgeSignature(f)
	}
	return &c.sum.Unvouched, nil
}

// noDoc is the want.doc of what the file's own name says.
const noDoc = -1

// wants is what the file p may be, and the counter that it belongs to if it is.
func (c *checker) wants(p string) (wants []want, right *int64) {
	right = &c.sum.Vouched
	known := false
	for w := range c.names.wants(c.names.key(p)) {
		if d := c.docs[w.doc]; !d.bad {
			if d.earlier {
				right = &c.sum.Earlier
			}
			known = known || !w.sum.IsZero()
			wants = append(wants, w)
		}
	}
	if _, name, ok := inRepodata(p); ok && !known { // then the digest in its name counts
		if sum, _ := sumInName(name); !sum.IsZero() {
			if len(wants) == 0 {
				wants = []want{{doc: noDoc, size: -1}}
			}
			for i := range wants {
				wants[i].sum = sum
			}
			right = &c.sum.ByName
		}
	}
	return wants, right
}

// compare reads f, once, and compares it with wants, one of which it must be.
func (c *checker) compare(ctx context.Context, f *file, wants []want, right *int64, buf []byte) (count *int64, err error) {
	hashes := make(map[digest.Algorithm]hash.Hash)
	for _, w := range wants {
		if a := w.sum.Algorithm(); a != digest.None && hashes[a] == nil {
			hashes[a] = a.New()
		}
	}
	size := f.info.Size()
	if len(hashes) > 0 {
		if size, err = c.read(ctx, f, hashes, buf); err != nil {
			return nil, err
		}
	}
	var wrong *digest.MismatchError // of what was said first, which stands last
	loose := false
	for _, w := range wants {
		var got digest.Sum
		expected := digest.Unverified(w.size, "metadata give no digest")
		if a := w.sum.Algorithm(); a != digest.None {
			expected, got = digest.Known(w.size, w.sum), digest.SumOf(a, hashes[a])
		}
		switch err := expected.Check(f.path, size, got); {
		case errors.As(err, &wrong):
		case err != nil:
			return nil, err
		case w.sum.IsZero():
			loose = true
		default:
			return right, nil
		}
	}
	switch {
	case loose, right == &c.sum.Earlier && c.blindFor(f.path) != "": // what the current primary says is not known
		return &c.sum.Unvouched, nil
	case c.replaced(f, wants):
		return &c.sum.Changed, nil
	}
	by := ""
	if d := wants[len(wants)-1].doc; d != noDoc {
		by = c.docs[d].path
	}
	c.find(Finding{Path: f.path, Kind: Damaged, Want: wrong.Want.String(), Got: wrong.Got, By: by})
	return nil, nil
}

// read reads f through hashes, and returns its length in bytes.
func (c *checker) read(ctx context.Context, f *file, hashes map[digest.Algorithm]hash.Hash, buf []byte) (size int64, err error) {
	for {
		n, err := f.Read(buf)
		for _, h := range hashes {
			h.Write(buf[:n])
		}
		size += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return size, nil
		case err != nil:
			return size, err
		case ctx.Err() != nil:
			return size, context.Cause(ctx)
		case size-f.told >= progressStep:
			c.progress(f.path, size-f.told)
			f.told = size
		}
	}
}

// replaced reports whether f, or the pointer of what says what f must be, is not what stands in the tree any more.
func (c *checker) replaced(f *file, wants []want) bool {
	now, err := c.root.Stat(f.path)
	if err != nil || !os.SameFile(now, f.info) {
		return true
	}
	for _, w := range wants {
		if w.doc == noDoc || c.docs[w.doc].pointer.info == nil {
			continue
		}
		then := c.docs[w.doc].pointer
		now, err := c.root.Stat(then.path)
		if err != nil || !os.SameFile(now, then.info) || now.Size() != then.info.Size() || !now.ModTime().Equal(then.info.ModTime()) {
			return true
		}
	}
	return false
}

// judgeSignature judges the repomd.xml f by the signature beside it, if there are one and keys.
func (c *checker) judgeSignature(f *file) (count *int64, err error) {
	count = &c.sum.Unvouched
	if c.o.Keys == nil {
		return count, nil
	}
	c.mu.Lock()
	keys := c.o.Keys(f.path)
	c.mu.Unlock()
	asc := f.path + ".asc"
	s, info, err := c.open(asc)
	if s == nil || keys == nil {
		return count, nil // what cannot be opened is found when it is judged itself
	}
	defer s.Close()
	sig, err := io.ReadAll(io.LimitReader(s, maxSignature))
	if err != nil {
		return count, nil
	}
	if _, err = keys.Detached(f, sig); err == nil {
		return &c.sum.Vouched, nil
	}
	if c.replaced(f, nil) || c.replaced(&file{path: asc, info: info}, nil) {
		return &c.sum.Changed, nil
	}
	c.find(Finding{Path: asc, Kind: BadSignature, Want: "a signature of " + pointerName + " by one of the keys", Got: err.Error(), By: ""})
	return count, nil
}
