package server

import (
	"errors"
	"fmt"
	"net/textproto"
	"strconv"
	"strings"
)

// maxRanges is how many ranges of one request are answered: zchunk asks for 256 at a time.
const maxRanges = 256

// errUnsatisfiable says that no requested range overlaps the file: 416 (RFC 9110 15.5.17).
var errUnsatisfiable = errors.New("range not satisfiable")

// byteRange is the bytes [off, off+n) of a file.
type byteRange struct{ off, n int64 }

func (r byteRange) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", r.off, r.off+r.n-1, size)
}

// parseRange reads a Range field for a file of size bytes (RFC 9110 14.1.2 and 14.2). It returns nil where the field
// is to be ignored, and so the whole file sent: another unit, an invalid field, more than maxRanges, or ranges that
// together ask for more than the file. Ranges stay in the order of the request; those behind the end are left out.
func parseRange(field string, size int64) ([]byteRange, error) {
	unit, set, ok := strings.Cut(field, "=")
	if !ok || !strings.EqualFold(textproto.TrimString(unit), "bytes") {
		return nil, nil
	}
	if strings.Count(set, ",") >= 2*maxRanges { // empty list elements are allowed, within reason
		return nil, nil
	}
	var ranges []byteRange
	var sum int64
	asked := 0
	for spec := range strings.SplitSeq(set, ",") {
		spec = textproto.TrimString(spec)
		if spec == "" {
			continue
		}
		asked++
		r, ok := parseSpec(spec, size)
		if !ok {
			return nil, nil
		}
		if r.n == 0 {
			continue
		}
		ranges = append(ranges, r)
		if sum += r.n; sum > size {
			return nil, nil
		}
	}
	switch {
	case asked == 0:
		return nil, nil
	case len(ranges) == 0:
		return nil, errUnsatisfiable
	case len(ranges) > maxRanges:
		return nil, nil
	}
	return ranges, nil
}

// parseSpec reads one range; n is 0 if it is valid but lies behind the end of the file.
func parseSpec(spec string, size int64) (r byteRange, ok bool) {
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return r, false
	}
	if first == "" { // the last so many bytes
		n, ok := parseDigits(last)
		n = min(n, size)
		return byteRange{size - n, n}, ok
	}
	off, ok := parseDigits(first)
	if !ok {
		return r, false
	}
	end := size
	if last != "" {
		l, ok := parseDigits(last)
		if !ok || l < off {
			return r, false
		}
		if l < size {
			end = l + 1
		}
	}
	if off >= size {
		return r, true
	}
	return byteRange{off, end - off}, true
}

// parseDigits reads a number of digits only; one too large for int64 is as good as the largest.
func parseDigits(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}
