package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

// Answer is a file that can be sent: stored, or still arriving. It is for one goroutine, which closes it.
type Answer struct {
	Target  site.Target
	Size    int64 // bytes; -1 while upstream has not said and the file is still arriving
	ModTime time.Time
	Framed  bool // its end will be seen to be one; false only where Size is -1

	// How the answer came about, in the words of RFC 9211. A hit has no Fwd.
	Fwd       string // why upstream was asked: uri-miss, stale, bypass
	FwdStatus int    // what upstream said, where that matters
	Stored    bool   // what arrives will be stored
	Collapsed bool   // the request joined a flight of others
	TTL       time.Duration
	Detail    string
	hasTTL    bool

	file *store.File
	body follower
}

// follower reads what is not in the tree yet: a flight's body, or one passed through.
type follower interface {
	Ready(ctx context.Context, off, n int64) error
	CopyTo(ctx context.Context, w io.Writer, off, n int64) (int64, error)
	Close()
}

// stored answers with a file of the tree, which it then owns.
func stored(t site.Target, f *store.File) *Answer {
	return &Answer{Target: t, Size: f.Size, ModTime: f.ModTime, Framed: true, file: f}
}

// arriving answers with the body of a flight, whose follower it then owns.
func arriving(t site.Target, f *fetch.Follower, h fetch.Head, joined bool) *Answer {
	return &Answer{Target: t, Size: h.Size, ModTime: h.ModTime, Framed: h.Framed, Stored: h.Keep, Collapsed: joined, body: f}
}

// Hit reports whether the answer needed nothing of upstream.
func (a *Answer) Hit() bool { return a.Fwd == "" }

// CacheStatus is the answer's Cache-Status field (RFC 9211).
func (a *Answer) CacheStatus() string {
	var b strings.Builder
	b.WriteString("instantmirror")
	if a.Hit() {
		b.WriteString("; hit")
	} else {
		b.WriteString("; fwd=" + a.Fwd)
	}
	if a.FwdStatus != 0 {
		fmt.Fprintf(&b, "; fwd-status=%d", a.FwdStatus)
	}
	if a.Stored {
		b.WriteString("; stored")
	}
	if a.Collapsed {
		b.WriteString("; collapsed")
	}
	if a.hasTTL {
		fmt.Fprintf(&b, "; ttl=%.0f", math.Floor(a.TTL.Seconds()))
	}
	if a.Detail != "" {
		b.WriteString("; detail=" + a.Detail)
	}
	return b.String()
}

// CacheControl is what downstream caches may do with the answer: ask each time for what may change, keep what its
// name's checksum vouches for. "" leaves it to them.
func (a *Answer) CacheControl() string {
	switch {
	case a.Target.Class == site.Metadata && checksummed(a.Target.Rel):
		return "public, max-age=31536000, immutable"
	case a.Target.Class == site.Package:
		return ""
	default:
		return "no-cache"
	}
}

// Ready waits until the first of the n bytes from off on (n < 0: all that follow) can be copied. Before anything was
// sent, its error can still be told to the client in words.
func (a *Answer) Ready(ctx context.Context, off, n int64) error {
	if a.file != nil {
		return nil
	}
	return a.body.Ready(ctx, off, n)
}

// CopyTo waits until the byte at off is there and copies what is there from off on to w, n bytes at most. It returns
// io.EOF at the end of the file; any other error means that the client must not take what it got for the whole.
// Ready must have been called for the part that off lies in. From a stored file it copies by way of an *os.File, so that w's ReadFrom may use sendfile.
func (a *Answer) CopyTo(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	if a.file == nil {
		return a.body.CopyTo(ctx, w, off, n)
	}
	if off >= a.Size {
		return 0, io.EOF
	}
	if _, err := a.file.Seek(off, io.SeekStart); err != nil {
		return 0, fmt.Errorf("reading %s: %w", a.Target.Path, err)
	}
	m, err := io.CopyN(w, a.file.File, min(n, a.Size-off))
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("reading %s: it was cut while it was served: %w", a.Target.Path, io.ErrUnexpectedEOF)
	}
	return m, err
}

// Close gives back what the answer holds.
func (a *Answer) Close() {
	switch {
	case a.file != nil:
		a.file.Close()
	case a.body != nil: // nil of Stat
		a.body.Close()
	}
}

// AbsentError says that upstream does not have the path. It is fs.ErrNotExist.
type AbsentError struct {
	Path       string
	Remembered bool  // upstream said so a while ago
	Err        error // what it said now
}

func (e *AbsentError) Error() string {
	if e.Remembered {
		return e.Path + " does not exist upstream (as it said a while ago)"
	}
	return e.Err.Error()
}

// Is makes it the one "not found".
func (e *AbsentError) Is(target error) bool { return target == fs.ErrNotExist }

// immutable reports whether what is stored at t stays right without asking.
func immutable(t site.Target) bool {
	switch {
	case t.Rule.Never, t.Class == site.Package:
		return true
	case t.Class == site.Metadata:
		return checksummed(t.Rel)
	}
	return false
}

// checksummed reports whether a file carries its checksum in its name, as createrepo_c makes them
// (<hex digits>-primary.xml.gz): then another content has another name.
func checksummed(rel string) bool {
	sum, _, ok := strings.Cut(path.Base(rel), "-")
	if !ok || len(sum) < 32 {
		return false
	}
	return strings.Trim(sum, "0123456789abcdef") == ""
}

// html reports whether a file of that name may be HTML. Anything else that comes as HTML is a captive portal, an
// error page or a listing.
func html(rel string) bool {
	switch path.Ext(rel) {
	case ".html", ".htm", ".shtml", ".xhtml":
		return true
	}
	return false
}
