package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// Direct passes a body from upstream to one client without storing it. It is for one goroutine.
//
// Where the digest is known and the client wants the end of the file, all of the file is read, so that the end can be
// held back until it was found right. A part without the end carries upstream's word only, and is asked for as it is.
type Direct struct {
	Head  Head
	group *Group
	job   Job
	want  digest.Expectation
	from  *upstream.Origin

	prefix *os.File // the bytes before have, if a flight left some behind
	have   int64

	resp  *upstream.Response
	fresh bool      // nothing was read of resp's body, which begins at have
	body  io.Reader // of the client's bytes, from pos on
	pos   int64
	whole bool // body is verified to its end
	buf   []byte
}

// Direct asks upstream for job's file, for one client only: what to do when there is no room for a flight. Errors are
// those of upstream.Do, and *digest.MismatchError. The caller closes it.
func (g *Group) Direct(ctx context.Context, job Job) (*Direct, error) {
	d := &Direct{group: g, job: job, want: job.Expect()}
	if err := d.open(ctx, 0); err != nil {
		return nil, err
	}
	d.from, d.Head = d.resp.Configured, headOf(d.resp, d.job, false, d.want)
	d.Head.Size = max(d.Head.Size, d.want.Size())
	return d, nil
}

// open asks for the file from off on, of anybody who is trusted with it.
func (d *Direct) open(ctx context.Context, off int64) error {
	d.close()
	order, err := d.group.doubts.trusted(d.job.Path, d.want.Sum(), d.job.Order)
	if err != nil {
		return err
	}
	req := d.job.Request
	req.ETag, req.LastModified = "", time.Time{} // a 304 would be of no use
	req.Offset = off
	resp, err := upstream.Do(ctx, order, req)
	if err != nil {
		return err
	}
	if err := skip(resp, off); err != nil {
		return err
	}
	d.resp, d.body, d.pos, d.fresh, d.whole = resp, resp.Body, off, off == d.have, false
	return nil
}

// Ready makes ready to copy the n bytes from off on (n < 0: all that follow).
func (d *Direct) Ready(ctx context.Context, off, n int64) error {
	end := n < 0 || off+n == d.Head.Size
	if end && !d.want.Sum().IsZero() {
		return d.verified(ctx, off)
	}
	if d.resp != nil && d.pos == off && !d.whole {
		return nil
	}
	return d.reopen(ctx, off)
}

// verified makes ready to copy from off to the end, which is held back until the whole is right.
func (d *Direct) verified(ctx context.Context, off int64) error {
	if d.whole && d.pos == off {
		return nil
	}
	if d.resp == nil || !d.fresh {
		if err := d.open(ctx, d.have); err != nil {
			return err
		}
	}
	var whole io.Reader = d.resp.Body
	if d.have > 0 {
		whole = io.MultiReader(io.NewSectionReader(d.prefix, 0, d.have), whole)
	}
	d.body = digest.NewReader(whole, d.want, d.job.Path, HoldBack)
	d.pos, d.fresh, d.whole = off, false, true
	_, err := io.CopyN(io.Discard, d.body, off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return d.blame(err)
}

// blame remembers who sent wrong bytes.
func (d *Direct) blame(err error) error {
	var mismatch *digest.MismatchError
	if errors.As(err, &mismatch) {
		wrong := &wrongError{err: err, origin: d.resp.Configured}
		if d.have > 0 {
			wrong.origin = nil
		}
		d.group.doubts.note(d.job.Path, d.want.Sum(), wrong)
	}
	return err
}

// CopyTo copies what upstream sends of the file from off on, n bytes at most; io.EOF at its end. Ready must have been
// called for the part that off lies in.
func (d *Direct) CopyTo(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	if d.body == nil || d.pos != off {
		return 0, fmt.Errorf("passing %s through: asked for byte %d at byte %d", d.job.Path, off, d.pos)
	}
	if d.buf == nil {
		d.buf = make([]byte, 32<<10)
	}
	d.fresh = false
	m, err := d.body.Read(d.buf[:min(n, int64(len(d.buf)))])
	d.pos += int64(m)
	if m == 0 {
		return 0, d.blame(err) // an error behind the last bytes comes again with the next read
	}
	m, err = w.Write(d.buf[:m])
	return int64(m), err
}

// reopen asks for the file from off on, which must be the one that Head is about.
func (d *Direct) reopen(ctx context.Context, off int64) error {
	if !d.want.Sum().IsZero() {
		return d.open(ctx, off)
	}
	d.close()
	req := d.job.Request
	req.Offset = off
	resp, err := continued(ctx, d.job, d.from, d.Head, req)
	if err != nil {
		return err
	}
	d.resp, d.body, d.pos, d.fresh, d.whole = resp, resp.Body, off, false, false
	return nil
}

func (d *Direct) close() {
	if d.resp != nil {
		d.resp.Body.Close()
		d.resp, d.body = nil, nil
	}
}

// Close ends the request.
func (d *Direct) Close() {
	d.close()
	if d.prefix != nil {
		d.prefix.Close()
	}
}
