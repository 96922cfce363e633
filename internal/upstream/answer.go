package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Response is an answer that can be the file that was asked for.
type Response struct {
	Status       int       // 200, 206 or 304
	Size         int64     // of the whole file in bytes; -1 unknown
	Offset       int64     // where Body starts in it: Request.Offset with 206, else 0
	LastModified time.Time // zero if not sent or unreadable
	ETag         string    // with its quotes; "" if not sent or malformed
	ContentType  string    // as sent
	Origin       string    // scheme://host that answered, after redirects
	Configured   *Origin   // which led there
	Final        *Location // where that is, for Request.Near
	// Young says that the file may change again without its validators changing: it is not older than they are exact
	// (RFC 9110 8.8.2.2). Then ask for all of it the next time.
	Young  bool
	Framed bool // the body's end is explicit; false: it ends with the connection, and may be cut without a sign

	// Body is nil for HEAD and 304. Its Read fails with ErrStalled when no byte comes for the stall time, and when it ends
	// early with io.ErrUnexpectedEOF or what the connection said (a reset); io.EOF means that it is whole, if it is Framed.
	// Errors name path and host, and stay. Close may be called at any time and more than once. The connection's slot is
	// free again once Read has failed or returned io.EOF, or Close was called.
	Body io.ReadCloser
}

// validatorGrain is how exact validators are that servers make of modification times, with room for a file that was copied
// into place.
const validatorGrain = 2 * time.Second

// absentError is an origin's word that a path does not exist there. Only Do knows whether that word counts.
type absentError struct{ status int }

func (e *absentError) Error() string { return statusError(e.status).Error() }

func statusError(code int) error {
	return errors.New(strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code))))
}

// ask sends r to this origin and returns its answer. Errors are for one origin: *absentError, *DirectoryError, or why
// it could not answer. ctx stays with the body.
func (o *Origin) ask(ctx context.Context, r Request) (*Response, error) {
	// Not before the slot is there is the trial of a down origin claimed: waiting for one may take long.
	if _, err := o.health.admit(false); err != nil && !r.Insist {
		return nil, err
	}
	if err := o.acquire(ctx); err != nil {
		return nil, err
	}
	trial, err := o.health.admit(true)
	if err != nil && !r.Insist {
		o.release()
		return nil, err
	}
	resp, v, err := o.send(ctx, r)
	if ctx.Err() != nil && err != nil {
		v = neutral
	}
	o.judge(o.health.done(trial, v, err))
	if err != nil || resp.Body == nil {
		o.release()
	}
	return resp, err
}

// send is ask without slot and health. The body of its Response, if any, gives the slot back.
func (o *Origin) send(parent context.Context, r Request) (*Response, verdict, error) {
	ctx, cancel := context.WithCancelCause(parent)
	slow := time.AfterFunc(o.pool.attemptTimeout(), func() { cancel(errSlow) })
	h, v, err := o.follow(ctx, r)
	if inTime := slow.Stop(); err == nil && !inTime {
		h.resp.Body.Close()
		v, err = verdictOf(ctx, h.redirected), h.where(errSlow)
	}
	if err != nil {
		cancel(nil)
		return nil, v, err
	}
	resp, length, v, err := classify(h.resp, r)
	if err != nil {
		drain(h.resp)
		cancel(nil)
		return nil, v, h.where(err)
	}
	resp.Origin, resp.Configured, resp.Final = h.origin, o, newLocation(o, r.Path, h.resp.Request.URL)
	if r.Method == http.MethodHead || resp.Status == http.StatusNotModified {
		h.resp.Body.Close()
		cancel(nil)
		return resp, v, nil
	}
	resp.Body = newBody(ctx, cancel, o, h, r.Path, length)
	return resp, v, nil
}

// classify decides whether hresp can be the file that r asks for, and what it says about its origin if not. length is
// that of the body, -1 if only its end tells. The rules:
//
//	200                      the whole file, also where a range was asked for
//	206                      only where a range was asked for, with the Content-Range that it means
//	304                      only where the request was conditional
//	404, 410                 absent
//	429, 5xx                 refused: three in a row and the origin is down
//	any other                this origin does not give out this path
//	a 200 or 206 encoded or  likewise: not the bytes of the file
//	of another content type
func classify(hresp *http.Response, r Request) (resp *Response, length int64, v verdict, err error) {
	fail := func(format string, a ...any) (*Response, int64, verdict, error) {
		return nil, 0, answered, fmt.Errorf(format, a...)
	}
	sent := hresp.Request.Header
	resp = &Response{
		Status: hresp.StatusCode, Size: hresp.ContentLength, ETag: etag(hresp.Header.Get("ETag")),
		ContentType: hresp.Header.Get("Content-Type"), Framed: framed(hresp),
	}
	resp.LastModified, _ = http.ParseTime(hresp.Header.Get("Last-Modified"))
	if sent, err := http.ParseTime(hresp.Header.Get("Date")); err == nil && !resp.LastModified.IsZero() {
		resp.Young = sent.Sub(resp.LastModified) < validatorGrain
	}
	length = hresp.ContentLength

	switch code := hresp.StatusCode; {
	case code == http.StatusOK:
	case code == http.StatusPartialContent && sent.Get("Range") != "":
		if length, err = resp.partial(hresp, r); err != nil {
			return nil, 0, answered, err
		}
	case code == http.StatusNotModified && (sent.Get("If-None-Match") != "" || sent.Get("If-Modified-Since") != ""):
		resp.Size = -1
		return resp, 0, answered, nil
	case code == http.StatusPartialContent || code == http.StatusNotModified:
		return fail("%w to a request that did not ask for that", statusError(code))
	case code == http.StatusRequestedRangeNotSatisfiable:
		return fail("%w: asked from byte %d on (Content-Range: %.60q)", statusError(code), r.Offset, hresp.Header.Get("Content-Range"))
	case code == http.StatusNotFound || code == http.StatusGone:
		return nil, 0, answered, &absentError{code}
	case code == http.StatusUnauthorized && hresp.Request.Header.Get("Authorization") == "":
		return fail("%w: it wants a user name: set username and password_file", statusError(code))
	case code == http.StatusTooManyRequests || code >= 500:
		return nil, 0, refused, statusError(code)
	default:
		return fail("%w", statusError(code))
	}

	if kind := mediaType(resp.ContentType); !r.HTML && (kind == "text/html" || kind == "application/xhtml+xml") {
		return fail("it sent a page of HTML instead of the file (a login, a challenge or a directory?)")
	}
	if enc := strings.Join(hresp.Header.Values("Content-Encoding"), ","); !unencoded(enc, r.Path) {
		return fail("it sent the file encoded (Content-Encoding: %.60q) though asked not to", enc)
	}
	return resp, length, answered, nil
}

// partial checks a 206 and takes over what it says of the file. It returns the body's length.
func (resp *Response) partial(hresp *http.Response, r Request) (int64, error) {
	value := hresp.Header.Get("Content-Range")
	start, end, size, ok := parseContentRange(value)
	// The rest was asked for: less of it is a file cut short.
	if r.Length > 0 && ok && size >= 0 {
		ok = end == min(r.Offset+r.Length, size)-1
	} else if ok && size >= 0 {
		ok = end == size-1
	}
	if !ok || start != r.Offset {
		return 0, fmt.Errorf("206 with Content-Range %.60q, asked for %s", value, hresp.Request.Header.Get("Range"))
	}
	length := end - start + 1
	if hresp.ContentLength >= 0 && hresp.ContentLength != length {
		return 0, fmt.Errorf("206 with Content-Range %.60q, but Content-Length %d", value, hresp.ContentLength)
	}
	// A server that does not know If-Range sends a part of whatever it has now.
	if date, err := http.ParseTime(r.IfRange); err == nil && !resp.LastModified.IsZero() && !resp.LastModified.Equal(date) ||
		err != nil && r.IfRange != "" && resp.ETag != "" && resp.ETag != r.IfRange {
		return 0, fmt.Errorf("206, but the file has changed: it was %.60q, and is %.60q of %s", r.IfRange, resp.ETag, hresp.Header.Get("Last-Modified"))
	}
	resp.Offset, resp.Size = start, size
	return length, nil
}

var contentRange = regexp.MustCompile(`^(?i:bytes) (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$`)

// parseContentRange reads "bytes START-END/SIZE" (RFC 9110 14.4); size is -1 for *. ok means 0 <= start <= end < size.
func parseContentRange(s string) (start, end, size int64, ok bool) {
	m := contentRange.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, 0, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64) // 18 digits fit
		if err != nil {
			return -1
		}
		return n
	}
	start, end, size = number(m[1]), number(m[2]), number(m[3])
	return start, end, size, start <= end && (size < 0 || end < size)
}

// framed reports whether the end of the body is explicit.
func framed(r *http.Response) bool {
	return r.ContentLength >= 0 || r.ProtoMajor >= 2 || slices.Contains(r.TransferEncoding, "chunked")
}

func mediaType(s string) string {
	s, _, _ = strings.Cut(s, ";")
	return strings.ToLower(strings.TrimSpace(s))
}

var entityTag = regexp.MustCompile(`^(W/)?"[^"\x00-\x20\x7f]{0,1000}"$`)

// etag returns s if it is an entity tag (RFC 9110 8.8.3) of sane length, else "".
func etag(s string) string {
	return entityTag.FindString(s)
}

// storedAs are the encodings that servers wrongly announce for files which are stored that way, by extension.
var storedAs = map[string][]string{
	"gzip": {".gz", ".tgz"}, "x-gzip": {".gz", ".tgz"},
	"bzip2": {".bz2", ".tbz2"}, "x-bzip2": {".bz2", ".tbz2"},
	"xz": {".xz", ".txz"}, "x-xz": {".xz", ".txz"},
	"zstd": {".zst", ".tzst"},
}

// unencoded reports whether a body with this Content-Encoding has the bytes of the file.
func unencoded(encoding, p string) bool {
	encoding = strings.ToLower(strings.TrimSpace(encoding))
	return encoding == "" || encoding == "identity" || slices.Contains(storedAs[encoding], path.Ext(p))
}
