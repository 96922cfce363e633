package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrStalled is what a body's Read fails with when no byte came for the Pool's StallTimeout, or so few that a client
// would give up (librepo: below 1000 B/s for 30 s).
var ErrStalled = errors.New("stalled")

var errTrickle = fmt.Errorf("%w: fewer than %d bytes in %v", ErrStalled, trickleBytes, trickleTime)

const (
	trickleTime  = 30 * time.Second // of waiting for the origin
	trickleBytes = 30_000
)

// body is Response.Body. Read is for one goroutine; Close may be called by another.
type body struct {
	rc       io.ReadCloser
	ctx      context.Context // the request's, below the caller's
	cancel   context.CancelCauseFunc
	watchdog *time.Timer // runs only inside Read: a slow reader is not a stall
	origin   *Origin
	what     string // path and host, for errors
	framed   bool
	left     int64         // bytes to come; below 0 from the start: only the end tells
	counted  bool          // left means something
	err      error         // what Read returns from now on
	waited   time.Duration // inside rc.Read, for the last got bytes
	got      int64
	release  func()
}

func newBody(ctx context.Context, cancel context.CancelCauseFunc, o *Origin, h hop, path string, length int64) *body {
	b := &body{
		rc: h.resp.Body, ctx: ctx, cancel: cancel, origin: o,
		what: path + " from " + h.origin, framed: framed(h.resp), left: length, counted: length >= 0,
		release: sync.OnceFunc(o.release),
	}
	b.watchdog = time.AfterFunc(o.pool.StallTimeout, func() { cancel(ErrStalled) })
	b.watchdog.Stop()
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.origin.limit != nil {
		p = p[:min(len(p), b.origin.limit.Burst())]
	}
	b.watchdog.Reset(b.origin.pool.StallTimeout)
	begun := time.Now()
	n, err := b.rc.Read(p)
	b.watchdog.Stop()
	b.waited, b.got = b.waited+time.Since(begun), b.got+int64(n)
	b.origin.pool.received.Add(int64(n))
	if b.waited >= trickleTime {
		if b.got < trickleBytes && err == nil {
			b.cancel(errTrickle)
			err = errTrickle
		}
		b.waited, b.got = 0, 0
	}

	if b.counted {
		if int64(n) > b.left {
			n, err = int(b.left), errors.New("more bytes than announced")
		}
		b.left -= int64(n)
	}
	switch {
	case errors.Is(err, io.EOF) && b.counted && b.left > 0:
		err = io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF) && !b.framed && b.ctx.Err() != nil:
		err = context.Cause(b.ctx) // the connection was ours to end
	}
	if limit := b.origin.limit; limit != nil && n > 0 && (err == nil || errors.Is(err, io.EOF)) {
		if werr := limit.WaitN(b.ctx, n); werr != nil {
			b.cancel(context.DeadlineExceeded) // if it isn't cancelled: the wait would last beyond the deadline
			err = werr
		}
	}
	if err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

// end settles the account of a body that Read can get no more of, and returns the error to tell.
func (b *body) end(err error) error {
	cause := context.Cause(b.ctx)
	defer b.release()
	defer b.cancel(nil)
	switch {
	case errors.Is(err, io.EOF):
		b.origin.health.body(nil)
		return io.EOF
	case errors.Is(cause, ErrStalled):
		if err = cause; cause == ErrStalled { //nolint:errorlint // errTrickle says more
			err = fmt.Errorf("%w: no byte for %v", ErrStalled, b.origin.pool.StallTimeout)
		}
	case cause != nil: // the caller gave up, or closed it
		return fmt.Errorf("upstream: reading %s: %w", b.what, cause)
	}
	b.origin.judge(b.origin.health.body(err))
	return fmt.Errorf("upstream: reading %s: %w", b.what, err)
}

// errClosed is the cause with which Close ends the request.
var errClosed = errors.New("closed")

// Close ends the request. A body that was not read to its end takes its connection with it.
func (b *body) Close() error {
	b.cancel(errClosed)
	b.watchdog.Stop()
	err := b.rc.Close()
	b.release()
	return err
}
