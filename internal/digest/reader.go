package digest

import (
	"errors"
	"hash"
	"io"
)

// Reader passes bytes on and keeps the last of them back until the whole is what was expected.
type Reader struct {
	r    io.Reader
	want Expectation
	path string
	hold int

	h    hash.Hash // nil: no digest is known
	n    int64     // bytes read
	buf  []byte    // read and not passed on
	err  error     // of r; io.EOF once the whole was found right
	size int       // of one read
}

// NewReader returns a Reader of r's bytes, which want expects of path. The last hold bytes come when all of them were
// found right; else a *MismatchError comes in their place.
func NewReader(r io.Reader, want Expectation, path string, hold int) *Reader {
	d := &Reader{r: r, want: want, path: path, hold: hold, size: 64 << 10}
	if a := want.Sum().Algorithm(); a != None {
		d.h = a.New()
	}
	return d
}

// Read implements io.Reader.
func (d *Reader) Read(p []byte) (int, error) {
	for d.err == nil && len(d.buf) <= d.hold {
		at := len(d.buf)
		d.buf = append(d.buf, make([]byte, d.size)...)
		n, err := d.r.Read(d.buf[at:])
		d.buf = d.buf[:at+n]
		d.n += int64(n)
		if d.h != nil {
			d.h.Write(d.buf[at:])
		}
		if d.want.Size() >= 0 && d.n > d.want.Size() {
			err = io.EOF // an endless body is wrong already
		}
		if errors.Is(err, io.EOF) {
			var sum Sum
			if d.h != nil {
				sum = SumOf(d.want.Sum().Algorithm(), d.h)
			}
			if wrong := d.want.Check(d.path, d.n, sum); wrong != nil {
				err = wrong
			}
		}
		d.err = err
	}
	free := len(d.buf) - d.hold
	if errors.Is(d.err, io.EOF) {
		free = len(d.buf)
	}
	if free <= 0 {
		return 0, d.err
	}
	n := copy(p, d.buf[:free])
	d.buf = d.buf[:copy(d.buf, d.buf[n:])]
	return n, nil
}
