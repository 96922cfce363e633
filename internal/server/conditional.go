package server

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"time"
)

// etag is the entity tag of a file, as nginx makes it: the seconds of its modification time and its size, in hex. It
// needs no database and is the same on every server of the tree. "" where the size is not known yet.
func etag(modTime time.Time, size int64) string {
	if size < 0 || modTime.IsZero() {
		return ""
	}
	return fmt.Sprintf(`"%x-%x"`, modTime.Unix(), size)
}

// precondition evaluates the conditional fields of r in the order of RFC 9110 13.2.2, If-Range excepted. It returns
// the status with which to answer instead of the file, or 0.
func precondition(r *http.Request, tag string, modTime time.Time) int {
	if match := r.Header.Values("If-Match"); len(match) > 0 {
		if !tagListed(match, tag, strongEqual) {
			return http.StatusPreconditionFailed
		}
	} else if t, ok := date(r.Header.Get("If-Unmodified-Since")); ok && modTime.Truncate(time.Second).After(t) {
		return http.StatusPreconditionFailed
	}
	if match := r.Header.Values("If-None-Match"); len(match) > 0 {
		if tagListed(match, tag, weakEqual) {
			return http.StatusNotModified
		}
	} else if t, ok := date(r.Header.Get("If-Modified-Since")); ok && !modTime.IsZero() && !modTime.Truncate(time.Second).After(t) {
		return http.StatusNotModified
	}
	return 0
}

// rangeApplies evaluates If-Range (RFC 9110 13.1.5): true if the Range field is to be honoured.
func rangeApplies(r *http.Request, tag string, modTime time.Time) bool {
	v := textproto.TrimString(r.Header.Get("If-Range"))
	if v == "" {
		return true
	}
	if strings.HasPrefix(v, `"`) || strings.HasPrefix(v, "W/") {
		return strongEqual(v, tag)
	}
	t, ok := date(v)
	return ok && !modTime.IsZero() && modTime.Truncate(time.Second).Equal(t)
}

func date(field string) (time.Time, bool) {
	if field == "" {
		return time.Time{}, false
	}
	t, err := http.ParseTime(field)
	return t, err == nil
}

// tagListed reports whether a list of entity tags, or "*", matches tag. Our own tags hold no comma; a foreign one
// that does is cut, and matches nothing.
func tagListed(fields []string, tag string, equal func(a, b string) bool) bool {
	for _, field := range fields {
		for item := range strings.SplitSeq(field, ",") {
			item = textproto.TrimString(item)
			if item == "*" || equal(item, tag) {
				return true
			}
		}
	}
	return false
}

func strongEqual(a, b string) bool { return a == b && strings.HasPrefix(a, `"`) }

func weakEqual(a, b string) bool {
	return strongEqual(strings.TrimPrefix(a, "W/"), strings.TrimPrefix(b, "W/"))
}
