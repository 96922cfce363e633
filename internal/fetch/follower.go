package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// Follower is one client's place in a flight. It is for one goroutine.
type Follower struct {
	f    *flight
	file *os.File // a handle of its own to the growing file; nil before the first CopyTo
	rest *Direct  // once the flight ran out of room
}

// Begun is when the flight began.
func (fo *Follower) Begun() time.Time { return fo.f.begun }

// Head waits for upstream's answer. Errors are those of upstream.Do, store.ErrNoSpace where the file can't be spooled
// (then Direct passes it through), and ErrCurrent.
func (fo *Follower) Head(ctx context.Context) (Head, error) {
	select {
	case <-fo.f.started:
		return fo.f.head, fo.f.err
	case <-ctx.Done():
		return Head{}, context.Cause(ctx)
	}
}

// CopyTo waits until the byte at off is there and copies what is there from off on, n bytes at most. It returns
// io.EOF at the end of a whole file, and why the flight failed behind the last byte of one that did. When the disk
// is full the follower goes on with a request of its own, where upstream can vouch that the bytes belong together.
// Head must have returned without error.
func (fo *Follower) CopyTo(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	if fo.rest != nil {
		return fo.rest.CopyTo(ctx, w, off, n)
	}
	have, err := fo.f.spool.Wait(ctx, off)
	if errors.Is(err, store.ErrNoSpace) {
		fo.rest = &Direct{job: fo.f.job, from: fo.f.from, Head: fo.f.head}
		return fo.rest.CopyTo(ctx, w, off, n)
	}
	if err != nil {
		return 0, err
	}
	if fo.file == nil {
		if fo.file, err = fo.f.pending.Open(); err != nil {
			return 0, err
		}
	}
	if _, err := fo.file.Seek(off, io.SeekStart); err != nil {
		return 0, fmt.Errorf("following %s: %w", fo.f.job.Path, err)
	}
	return io.CopyN(w, fo.file, min(n, have-off))
}

// Close leaves. The flight goes on.
func (fo *Follower) Close() {
	if fo.rest != nil {
		fo.rest.Close()
	}
	if fo.file != nil {
		fo.file.Close()
	}
	fo.f.group.leave(fo.f)
}

// Direct passes a body from upstream to one client without storing it. It is for one goroutine.
type Direct struct {
	Head Head
	job  Job
	from *upstream.Origin
	resp *upstream.Response
	pos  int64 // where resp.Body stands
	buf  []byte
}

// Direct asks upstream for job's file, for one client only: what to do when there is no room for a flight. Errors are
// those of upstream.Do. The caller closes it.
func (g *Group) Direct(ctx context.Context, job Job) (*Direct, error) {
	job.Request.ETag, job.Request.LastModified = "", time.Time{} // a 304 would be of no use
	resp, err := upstream.Do(ctx, job.Order, job.Request)
	if err != nil {
		return nil, err
	}
	return &Direct{Head: headOf(resp, false), job: job, from: resp.Configured, resp: resp}, nil
}

// CopyTo copies what upstream sends of the file from off on, n bytes at most; io.EOF at its end.
func (d *Direct) CopyTo(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	if d.resp == nil || d.pos != off {
		if err := d.reopen(ctx, off); err != nil {
			return 0, err
		}
	}
	if d.buf == nil {
		d.buf = make([]byte, 32<<10)
	}
	m, err := d.resp.Body.Read(d.buf[:min(n, int64(len(d.buf)))])
	d.pos += int64(m)
	if m == 0 {
		return 0, err // an error behind the last bytes comes again with the next read
	}
	m, err = w.Write(d.buf[:m])
	return int64(m), err
}

// reopen asks the origin that began the file for the rest of it from off on. Without a digest only the same host and
// the same validator make the two parts one file.
func (d *Direct) reopen(ctx context.Context, off int64) error {
	d.Close()
	validator := d.Head.ETag
	if validator == "" && !d.Head.LastModified.IsZero() {
		validator = d.Head.LastModified.UTC().Format(http.TimeFormat)
	}
	if validator == "" || strings.HasPrefix(validator, "W/") {
		return fmt.Errorf("%s can't be continued at byte %d: %s gave it no strong validator", d.job.Path, off, d.Head.Origin)
	}
	req := d.job.Request
	req.LastModified = time.Time{}
	req.Offset, req.IfRange, req.ETagOrigin = off, validator, d.Head.Origin
	resp, err := d.from.Do(ctx, req)
	if err != nil {
		return err
	}
	if resp.Origin != d.Head.Origin || d.Head.Size >= 0 && resp.Size != d.Head.Size || resp.ETag != d.Head.ETag ||
		!resp.LastModified.Equal(d.Head.LastModified) {
		resp.Body.Close()
		return fmt.Errorf("%s can't be continued at byte %d: %s now has another file than %s had", d.job.Path, off, resp.Origin, d.Head.Origin)
	}
	d.resp, d.pos = resp, resp.Offset
	if _, err := io.CopyN(io.Discard, resp.Body, off-d.pos); err != nil {
		return err
	}
	d.pos = off
	return nil
}

// Close ends the request.
func (d *Direct) Close() {
	if d.resp != nil {
		d.resp.Body.Close()
		d.resp = nil
	}
}
