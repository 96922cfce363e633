package upstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxRedirects = 10
	maxLocation  = 8 << 10 // bytes; signed URLs of object stores take about 2 KiB
)

// Request says what to ask for.
type Request struct {
	Method string // GET or HEAD
	// Path is decoded and relative to the origin's prefix, without leading slash: "repodata/repomd.xml". "" is the
	// prefix itself.
	Path string
	// Query, if any, goes with the configured URL as it is, without its question mark: "repo=fedora-43&arch=x86_64". It
	// must be encoded (RFC 3986 3.4). A redirect brings its own.
	Query string
	// Near asks for Path where another file of the same origin was found: at the host, and below the prefix, that this one
	// was redirected to. Files that must fit together come from one mirror that way. It is a hint: an origin that did not
	// make it, and one that cannot tell from it where Path would be, are asked by their configured URL, and may redirect
	// to somebody else. Compare Response.Origin. A 404 from there is final like any other.
	Near *Location
	// ETag and LastModified are those of the file that the caller has: a 304 says that it is current. Mirrors make
	// different ETags for one file, so ETag is sent only on a hop to ETagOrigin, a Response.Origin.
	ETag, ETagOrigin string
	LastModified     time.Time
	// Offset above 0 asks for the file from there on, provided that it is still the one that IfRange (an ETag, or a
	// date as in Last-Modified) stands for; "" where a digest will tell. The answer may be the whole file instead:
	// look at Response.Offset. An ETag that is weak, or of another host than ETagOrigin (unless that is ""), cannot tell:
	// then the whole file is asked for. ETag and LastModified are not used with it.
	Offset  int64
	IfRange string
	// Length above 0 asks for so many bytes from Offset on, instead of all that follow. It means nothing without Offset.
	Length int64
	// Insist asks origins that are in back-off, too: somebody wants to know it now.
	Insist bool
	// HTML says that HTML is a legitimate answer for this path.
	HTML bool
}

func (r *Request) check() error {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return fmt.Errorf("upstream: method %q: %w", r.Method, fs.ErrInvalid)
	case r.Offset < 0 || r.Length < 0 || r.Offset+r.Length < 0:
		return fmt.Errorf("upstream: %d bytes from byte %d of %s: %w", r.Length, r.Offset, r.Path, fs.ErrInvalid)
	case r.Path != "" && !validPath(r.Path):
		return fmt.Errorf("upstream: path %q: %w", r.Path, fs.ErrInvalid)
	case !validQuery(r.Query):
		return fmt.Errorf("upstream: query %.200q of %s: %w", r.Query, r.Path, fs.ErrInvalid)
	}
	return nil
}

// validQuery refuses what could end a query, or the line that it stands in.
func validQuery(q string) bool {
	return len(q) <= maxLocation && !strings.ContainsFunc(q, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' })
}

// validPath refuses what could leave the prefix; all other bytes are safe once escaped.
func validPath(p string) bool {
	for e := range strings.SplitSeq(p, "/") {
		if e == "" || e == "." || e == ".." {
			return false
		}
	}
	return true
}

// url returns where a decoded path is at the origin.
func (o *Origin) url(p string) *url.URL { return join(o.base, p) }

// join returns where a decoded path is below base, which has no slash at its end.
func join(base *url.URL, p string) *url.URL {
	u := *base
	u.Path, u.RawPath = u.Path+"/"+p, u.RawPath+"/"+escape(p)
	return &u
}

// Location is where a file was found: an origin, and the mirror that it led to. It is for Request.Near.
type Location struct {
	origin *Origin
	host   string   // scheme://host that answered
	prefix *url.URL // of all files there, as Origin.base is; nil if the URL of the one that was found did not tell it
}

// newLocation makes of u, where o's file of path p was found, a Location. A mirror has all files below one prefix; a store
// that signs its URLs, or names files by what is in them, has no prefix.
func newLocation(o *Origin, p string, u *url.URL) *Location {
	l := &Location{origin: o, host: originOf(u)}
	prefix, ok := strings.CutSuffix(u.Path, "/"+p)
	if !ok || u.RawQuery != "" || u.ForceQuery {
		return l
	}
	raw := u.EscapedPath()
	for range strings.Count(p, "/") + 1 {
		raw = raw[:max(0, strings.LastIndexByte(raw, '/'))]
	}
	if decoded, err := url.PathUnescape(raw); err == nil && decoded == prefix {
		l.prefix = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: prefix, RawPath: raw}
	}
	return l
}

// String is the scheme and host that answered. A Location never shows more of a URL.
func (l *Location) String() string { return l.host }

// locate returns where r is asked for first.
func (o *Origin) locate(r Request) *url.URL {
	u := o.url(r.Path)
	if l := r.Near; l != nil && l.origin == o && l.prefix != nil {
		u = join(l.prefix, r.Path)
	}
	u.RawQuery = r.Query
	return u
}

// escape encodes all but slashes and the unreserved characters of RFC 3986 2.3, as dnf does. The plus sign is the one
// that matters: object stores read a bare one as a space.
func escape(p string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(p) {
		switch c := p[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// originOf returns u's scheme and host in the form of Response.Origin: lower case, without the scheme's own port.
func originOf(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + strings.TrimSuffix(host, ":")
}

// request builds the request for one hop, u, from nothing but r and the configuration.
func (o *Origin) request(ctx context.Context, r Request, u *url.URL) *http.Request {
	h := http.Header{"User-Agent": {o.pool.userAgent}, "Accept": {"*/*"}}
	to := originOf(u)
	if to == o.origin {
		maps.Copy(h, o.header)
	}
	h.Set("Accept-Encoding", "identity")
	switch {
	case r.Offset > 0 && r.Method == http.MethodHead:
	case r.Offset > 0:
		if r.mayContinue(to) {
			span := "bytes=" + strconv.FormatInt(r.Offset, 10) + "-"
			if r.Length > 0 {
				span += strconv.FormatInt(r.Offset+r.Length-1, 10)
			}
			h.Set("Range", span)
			if r.IfRange != "" {
				h.Set("If-Range", r.IfRange)
			}
		}
	default:
		if r.ETag != "" && r.ETagOrigin == to {
			h.Set("If-None-Match", r.ETag)
		}
		if !r.LastModified.IsZero() {
			h.Set("If-Modified-Since", r.LastModified.UTC().Format(http.TimeFormat))
		}
	}
	hreq := &http.Request{
		Method: r.Method, URL: u, Host: u.Host, Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return hreq.WithContext(ctx)
}

// mayContinue reports whether to can tell by IfRange that it has the same file (RFC 9110 13.1.5: no weak tags).
func (r *Request) mayContinue(to string) bool {
	return r.IfRange == "" || isDate(r.IfRange) || r.IfRange[0] == '"' && (r.ETagOrigin == "" || r.ETagOrigin == to)
}

func isDate(s string) bool { _, err := http.ParseTime(s); return err == nil }

// hop is the last request of a chain of redirects, and its answer.
type hop struct {
	resp       *http.Response
	origin     string // scheme://host
	redirected bool   // to another one than the configured
}

// where returns err with the host that it was met at, if that is not the one that the caller names anyway.
func (h hop) where(err error) error {
	if h.redirected {
		return fmt.Errorf("redirected to %s: %w", h.origin, err)
	}
	return err
}

// follow sends r and goes on to where it is redirected. With an error there is no response to close.
func (o *Origin) follow(ctx context.Context, r Request) (h hop, v verdict, err error) {
	u := o.locate(r)
	var seen []string
	for {
		h.origin = originOf(u)
		h.redirected = h.origin != o.origin
		t := o.own
		if h.redirected {
			t = o.other
		}
		resp, err := t.RoundTrip(o.request(ctx, r, u))
		if err != nil {
			return h, verdictOf(ctx, h.redirected), h.where(describe(ctx, err))
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			h.resp = resp
			return h, answered, nil
		}
		drain(resp)
		seen = append(seen, u.String())
		next, err := location(u, resp.Header.Get("Location"))
		switch {
		case err != nil:
			return h, answered, h.where(err)
		case r.Path != "" && r.Query == "" && strings.HasSuffix(next.Path, "/"+path.Base(r.Path)+"/") && !strings.HasSuffix(u.Path, "/"):
			return h, answered, &DirectoryError{Path: r.Path, Origin: h.origin}
		case slices.Contains(seen, next.String()):
			return h, answered, fmt.Errorf("redirect loop through %s", shown(next))
		case len(seen) > maxRedirects:
			return h, answered, fmt.Errorf("more than %d redirects, the last one to %s", maxRedirects, shown(next))
		}
		u = next
	}
}

// location resolves a redirect from u. What it returns has a host, and is http or https.
func location(u *url.URL, value string) (*url.URL, error) {
	if value == "" {
		return nil, errors.New("redirect without a Location")
	}
	if len(value) > maxLocation {
		return nil, fmt.Errorf("redirect to a Location of %d bytes, more than %d", len(value), maxLocation)
	}
	next, err := u.Parse(value)
	if err != nil {
		return nil, errors.New("redirect to a Location that is not a URL")
	}
	if next.Scheme != "http" && next.Scheme != "https" || next.Hostname() == "" {
		return nil, fmt.Errorf("redirect to %.60q, which is neither http nor https", next.Scheme+"://"+next.Host)
	}
	next.User, next.Fragment, next.RawFragment = nil, "", ""
	return next, nil
}

// shown returns u for an error: a query may hold a signature.
func shown(u *url.URL) string { return fmt.Sprintf("%.200q", originOf(u)+u.EscapedPath()) }
