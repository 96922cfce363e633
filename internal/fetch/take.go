package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/spool"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	// bufferSize is how much is read from upstream at a time, in bytes: enough to be cheap, little enough that
	// followers get a slow line's bytes as they come.
	bufferSize = 128 << 10
	// A body that breaks off is gone on with, as long as it grows: maxIdleParts is how many parts in a row may bring
	// less than partGrowth bytes.
	maxIdleParts = 5
	partGrowth   = 1 << 20
)

// wrongError says that a body came whole and is not what it has to be.
type wrongError struct {
	err    error            // a *digest.MismatchError, or what Judge said
	origin *upstream.Origin // who sent all of it; nil: several parts were put together, and nobody knows which is wrong
}

func (e *wrongError) Error() string { return e.err.Error() }
func (e *wrongError) Unwrap() error { return e.err }

// take gets the body once, whole, from one origin or in parts from several, verifies and commits it. A *wrongError
// says that the bytes are not right: another take, of other origins, may be.
func (f *flight) take(res *Result) error {
	order, err := f.group.doubts.trusted(f.job.Path, f.want.Sum(), f.job.Order)
	if err != nil {
		return err
	}
	resp, err := f.ask(order)
	if err != nil {
		return err
	}
	if resp.Body != nil {
		defer func() { resp.Body.Close() }() // the last one
	}
	res.Origin, res.Status = resp.Origin, resp.Status
	if resp.Status == http.StatusNotModified {
		f.head = f.headOf(resp)
		f.arrived(digest.Sum{})
		return nil
	}
	if err := f.begin(resp); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	sum := f.follow(ctx)
	parts, err := f.fill(order, &resp, res)
	if err != nil {
		return err
	}
	f.spool.Seal()
	var found digest.Sum
	if sum != nil {
		r := <-sum
		if r.err != nil {
			return r.err
		}
		found = r.sum
	}
	if refused, err := f.judge(found); refused {
		return f.wrong(resp, parts, err)
	} else if err != nil {
		return err
	}
	// Followers have the last byte before the disk has: an fsync must not hold them up.
	f.spool.Finish(nil)
	f.start(nil)
	if !f.head.Keep {
		return nil
	}
	if err := f.commit(found, res); err != nil {
		f.pending.Discard()
		return err
	}
	f.arrived(res.Sum)
	return nil
}

// wrong blames who sent resp for err, if all of the file came from there.
func (f *flight) wrong(resp *upstream.Response, parts int, err error) error {
	if parts > 1 {
		return &wrongError{err: err}
	}
	return &wrongError{err: err, origin: resp.Configured}
}

// judge is the verdict over the whole body: refused, with the reason, or an error of our own.
func (f *flight) judge(found digest.Sum) (refused bool, err error) {
	if err := f.want.Check(f.job.Path, f.pending.Size(), found); err != nil {
		return true, err
	}
	if f.job.Judge == nil {
		return false, nil
	}
	file, err := f.pending.Open()
	if err != nil {
		return false, err
	}
	defer file.Close()
	if err := f.job.Judge(file); err != nil {
		return true, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return false, nil
}

// ask makes the first request of a take. Where a part of the bytes is here already, from an earlier flight, it asks
// for the rest.
func (f *flight) ask(order upstream.Order) (*upstream.Response, error) {
	if !f.want.Sum().IsZero() && f.pending == nil {
		p, err := f.group.store.Create(f.job.Path, f.want, f.job.Keep)
		if err != nil {
			return nil, err
		}
		f.pending = p
	}
	req := f.job.Request
	if f.pending != nil && f.pending.Size() > 0 {
		if f.oneOriginOnly() {
			if err := f.pending.Cut(0); err != nil {
				return nil, err
			}
		} else if f.pending.Size() == f.want.Size() { // all of it was here, but not committed
			if err := f.pending.Cut(f.want.Size() - 1); err != nil {
				return nil, err
			}
		}
	}
	if f.pending != nil && f.pending.Size() > 0 {
		rest := req
		rest.Offset, rest.ETag, rest.LastModified = f.pending.Size(), "", time.Time{}
		resp, err := f.request(order, rest)
		var wrong *wrongError
		switch {
		case err == nil && resp.Offset == 0: // all of it, asked for or not
			if err := f.pending.Cut(0); err != nil {
				resp.Body.Close()
				return nil, err
			}
			return resp, nil
		case err == nil, errors.As(err, &wrong), errors.Is(err, fs.ErrNotExist), f.ctx.Err() != nil:
			return resp, err
		}
		// It may be the range that nobody could answer. If it is not, what is here stays for a better day.
		if resp, err = f.request(order, req); err != nil {
			return nil, err
		}
		if err := f.pending.Cut(0); err != nil {
			resp.Body.Close()
			return nil, err
		}
		return resp, nil
	}
	return f.request(order, req)
}

// request asks order. An upstream's 404 is not final where metadata here name the path: the other upstreams and the
// fallbacks may still have what the first one dropped.
func (f *flight) request(order upstream.Order, req upstream.Request) (*upstream.Response, error) {
	resp, err := upstream.Do(f.ctx, order, req)
	if errors.Is(err, fs.ErrNotExist) && !f.want.Sum().IsZero() {
		rest := upstream.Order{Fallbacks: slices.Concat(order.Upstreams[1:], order.Fallbacks)}
		if other, oerr := upstream.Do(f.ctx, rest, req); oerr == nil {
			resp, err = other, nil
		} else if last := f.group.doubts.why(f.job.Path, f.want.Sum()); last != nil {
			err = last // who has the path has other bytes than those that are wanted
		}
	}
	if err != nil {
		return nil, err
	}
	if resp.Body != nil && f.want.Size() >= 0 && resp.Size >= 0 && resp.Size != f.want.Size() {
		resp.Body.Close() // no need to see the digest
		return nil, &wrongError{origin: resp.Configured, err: &digest.MismatchError{
			Path: f.job.Path, Want: f.want, Got: fmt.Sprintf("%d bytes", resp.Size), Origin: resp.Origin,
		}}
	}
	return resp, nil
}

// begin makes ready to receive the body of resp, and lets followers have its head if they will see some of the body
// before its end is found right. (Else the head may still change with the next take.)
func (f *flight) begin(resp *upstream.Response) error {
	size := max(resp.Size, f.want.Size())
	if f.pending == nil {
		p, err := f.group.store.Create(f.job.Path, digest.Unverified(size, "its length is what upstream announced"), false)
		if err != nil {
			return err
		}
		f.pending = p
	}
	if !f.hasStarted() {
		hold := int64(0)
		switch {
		case !f.want.Sum().IsZero():
			hold = HoldBack
		case f.job.Judge != nil:
			hold = math.MaxInt64
		}
		f.from, f.head = resp.Configured, f.headOf(resp)
		f.head.Size = size
		f.spool, f.filling = spool.New(f.pending, size, hold), time.Now()
		if hold < size || hold == 0 {
			f.start(nil)
		}
	}
	f.spool.Skip(f.pending.Size())
	return nil
}

// fill copies resp's body into the spool, and goes on with other requests when it breaks off; *resp is the last one.
// It returns of how many parts the file is made.
func (f *flight) fill(order upstream.Order, resp **upstream.Response, res *Result) (parts int, err error) {
	parts = 1
	if (*resp).Offset > 0 {
		parts++ // the one that was here
	}
	idle := 0
	buffer := make([]byte, bufferSize)
	for {
		res.Parts++
		body := io.Reader((*resp).Body)
		if f.head.Size >= 0 { // and one more, which tells that there are too many
			body = io.LimitReader(body, f.head.Size-f.spool.Len()+1)
		}
		ours := &diskWriter{w: f.spool}
		n, err := io.CopyBuffer(ours, struct{ io.Reader }{body}, buffer)
		res.Bytes += n
		if err == nil && f.want.Size() >= 0 && f.spool.Len() < f.want.Size() && (*resp).Framed {
			// It ended as it should, and too early: no file that broke off, but another one.
			return parts, f.wrong(*resp, parts, &digest.MismatchError{
				Path: f.job.Path, Want: f.want, Got: fmt.Sprintf("%d bytes", f.spool.Len()), Origin: (*resp).Origin,
			})
		}
		if err == nil && f.head.Size >= 0 && f.spool.Len() < f.head.Size {
			err = fmt.Errorf("%s sent %d of %d bytes of %s: %w", (*resp).Origin, f.spool.Len(), f.head.Size, f.job.Path, io.ErrUnexpectedEOF)
		}
		if err == nil || f.ctx.Err() != nil || ours.failed {
			return parts, err
		}
		err = fmt.Errorf("%w to the end: %w", upstream.ErrUnavailable, err)
		if idle++; n >= partGrowth {
			idle = 0
		}
		if idle >= maxIdleParts || f.spool.Len() == 0 && f.want.Sum().IsZero() {
			return parts, err
		}
		(*resp).Body.Close()
		if parts == 1 && f.oneOriginOnly() && len(order.Upstreams)+len(order.Fallbacks)+len(order.Archives) > 1 {
			return parts, &wrongError{err: err, origin: (*resp).Configured} // one that can send all of it is wanted
		}
		next, nerr := f.goOn(order, (*resp).Configured)
		if nerr != nil {
			return parts, fmt.Errorf("%w; going on: %w", err, nerr)
		}
		*resp = next
		res.Origin = next.Origin
		parts++
	}
}

// oneOriginOnly reports whether parts of several origins did not make the file a while ago.
func (f *flight) oneOriginOnly() bool {
	return !f.want.Sum().IsZero() && f.group.doubts.mixture(f.job.Path, f.want.Sum())
}

// diskWriter notes that it was the disk that failed, and not upstream.
type diskWriter struct {
	w      io.Writer
	failed bool
}

func (d *diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	d.failed = d.failed || err != nil
	return n, err
}

// goOn asks for the rest of a body that broke off. Where the digest is known anybody may have it, the one that failed
// last of all; else only the same host with the same strong validator (RFC 9110 13.1.5, 15.3.7.3).
func (f *flight) goOn(order upstream.Order, failed *upstream.Origin) (*upstream.Response, error) {
	off := f.spool.Len()
	if f.want.Sum().IsZero() {
		rest := f.job.Request
		rest.Offset = off
		return continued(f.ctx, f.job, f.from, f.head, rest)
	}
	if f.oneOriginOnly() {
		return nil, errors.New("it is fetched from one origin only, after parts of several did not make the file")
	}
	var list []*upstream.Origin
	for _, origins := range [][]*upstream.Origin{order.Upstreams, order.Fallbacks, order.Archives} {
		for _, o := range origins {
			if o != failed {
				list = append(list, o)
			}
		}
	}
	req := upstream.Request{Method: http.MethodGet, Path: f.job.Request.Path, HTML: f.job.Request.HTML, Offset: off}
	// As fallbacks: that one of them does not have the file decides nothing.
	resp, err := upstream.Do(f.ctx, upstream.Order{Fallbacks: append(list, failed)}, req)
	if err != nil {
		return nil, err
	}
	if resp.Size >= 0 && f.head.Size >= 0 && resp.Size != f.head.Size {
		resp.Body.Close()
		return nil, fmt.Errorf("%s has another file, of %d bytes", resp.Origin, resp.Size)
	}
	return resp, skip(resp, off)
}

// skip reads over what resp has before off: some servers know no ranges.
func skip(resp *upstream.Response, off int64) error {
	_, err := io.CopyN(io.Discard, resp.Body, off-resp.Offset)
	if errors.Is(err, io.EOF) { // bare, it would be taken for the end of a whole file
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		resp.Body.Close()
	}
	return err
}

// continued asks the origin that began the file for what req says of it, from its Offset on. Without a digest only the
// same host and the same validator make the two parts one file.
func continued(ctx context.Context, job Job, from *upstream.Origin, head Head, req upstream.Request) (*upstream.Response, error) {
	off := req.Offset
	validator := head.ETag
	if validator == "" && !head.LastModified.IsZero() {
		validator = head.LastModified.UTC().Format(http.TimeFormat)
	}
	if validator == "" || strings.HasPrefix(validator, "W/") {
		return nil, fmt.Errorf("%s can't be continued at byte %d: %s gave it no strong validator", job.Path, off, head.Origin)
	}
	req.LastModified = time.Time{}
	req.IfRange, req.ETagOrigin = validator, head.Origin
	resp, err := from.Do(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Origin != head.Origin || head.Size >= 0 && resp.Size != head.Size || head.Size < 0 && !resp.Framed || resp.ETag != head.ETag ||
		!resp.LastModified.Equal(head.LastModified) {
		resp.Body.Close()
		return nil, fmt.Errorf("%s can't be continued at byte %d: %s now has another file than %s had", job.Path, off, resp.Origin, head.Origin)
	}
	return resp, skip(resp, off)
}

// verdict is what a follower of the growing file found.
type verdict struct {
	sum digest.Sum
	err error
}

// follow begins to make the digest of what is written, beside the writing: hashed in line it would cost a fast fill
// two fifths of its rate. The channel is nil where no digest is known, else it gives one verdict once the spool is
// sealed.
func (f *flight) follow(ctx context.Context) <-chan verdict {
	a := f.want.Sum().Algorithm()
	if a == digest.None {
		return nil
	}
	out := make(chan verdict, 1)
	file, err := f.pending.Open()
	if err != nil {
		out <- verdict{err: err}
		return out
	}
	go func() { // ends with ctx, which take cancels
		defer file.Close()
		h := a.New()
		for off := int64(0); ; {
			have, err := f.spool.Written(ctx, off)
			if errors.Is(err, io.EOF) {
				out <- verdict{sum: digest.SumOf(a, h)}
				return
			}
			if err == nil {
				_, err = io.CopyN(h, file, have-off)
				off = have
			}
			if err != nil {
				out <- verdict{err: fmt.Errorf("making the digest of %s: %w", f.job.Path, err)}
				return
			}
		}
	}()
	return out
}

// headOf is headOf for the flight's job.
func (f *flight) headOf(resp *upstream.Response) Head { return headOf(resp, f.job, f.job.Keep, f.want) }

// headOf is what resp says of the file. A body that just ends with the connection may be cut without a sign: unless its
// digest is known, it is never kept.
func headOf(resp *upstream.Response, job Job, keep bool, want digest.Expectation) Head {
	h := Head{
		NotModified: resp.Status == http.StatusNotModified, Size: resp.Size, ModTime: resp.LastModified,
		Keep: keep && (resp.Framed || !want.Sum().IsZero()), Sum: want.Sum(),
		Framed: resp.Framed || !want.Sum().IsZero(),
		Origin: resp.Origin, ETag: resp.ETag, LastModified: resp.LastModified, Young: resp.Young, Configured: resp.Configured, Final: resp.Final,
	}
	if h.ModTime.IsZero() && job.Time != nil {
		h.ModTime = job.Time()
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Now().Truncate(time.Second)
	}
	return h
}
