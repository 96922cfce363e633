package fetch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/spool"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	// farAhead is how long a client waits for the fill to reach the range that it wants; upstream is asked for ranges
	// beyond that, once each.
	farAhead = 5 * time.Second
	// assumedRate is how fast a fill that has just begun is taken to be, in bytes per second.
	assumedRate = 8 << 20
	// measureAfter is how long a fill must have been going for its rate to mean something.
	measureAfter = 500 * time.Millisecond
	// maxAsides bounds the ranges that are asked for while one file arrives; for more, the fill is awaited.
	maxAsides = 32
)

// aside is a range of a file that is fetched for itself, because the fill is far from it. It carries upstream's word
// only, and never becomes a part of the file.
type aside struct {
	off, end int64
	spool    *spool.Spool
	pending  *store.Pending // made before the first byte is written, closed with the flight; nil: there was no room
}

// Write is the spool's way to the pending file.
func (a *aside) Write(p []byte) (int, error) { return a.pending.Write(p) }

// beside returns the aside from off to end of the file, asking for it if nobody has yet; nil where the fill is to be
// awaited: because it will be there soon, or because the end of the file, which must be verified, is wanted.
func (f *flight) beside(off, end int64) *aside {
	if !f.head.Sum.IsZero() {
		end = min(end, f.head.Size-HoldBack)
	}
	if f.head.Size < 0 || end <= off || !f.isFar(off) {
		return nil
	}
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	for _, a := range f.asides { // one that has it, or soon will
		if a.off <= off && end <= a.end && float64(off-a.off-a.spool.Len()) <= float64(f.group.assumed)*farAhead.Seconds() {
			return a
		}
	}
	if len(f.asides) >= maxAsides || f.ctx.Err() != nil {
		return nil
	}
	a := &aside{off: off, end: end}
	a.spool = spool.New(a, end-off, 0)
	if f.asides == nil {
		f.asides = make(map[[2]int64]*aside)
	}
	f.asides[[2]int64{off, end}] = a
	f.refs++
	f.group.begin(func() {
		a.spool.Finish(f.fetchAside(a))
		f.group.leave(f)
	})
	return a
}

// isFar reports whether the fill will not have reached off within farAhead.
func (f *flight) isFar(off int64) bool {
	have := f.spool.Len()
	rate := float64(f.group.assumed)
	if took := time.Since(f.filling); took > measureAfter {
		rate = float64(have) / took.Seconds()
	}
	return float64(off-have) > rate*farAhead.Seconds()
}

// fetchAside brings a's bytes: where the digest of the file is known from anybody, else from the host that sends the
// file, if it is still the same.
func (f *flight) fetchAside(a *aside) error {
	pending, err := f.group.store.Create(f.job.Path, digest.Unverified(a.end-a.off, "a part of a file"), false)
	if err != nil {
		return err
	}
	a.pending = pending
	req := upstream.Request{
		Method: http.MethodGet, Path: f.job.Request.Path, HTML: f.job.Request.HTML, Offset: a.off, Length: a.end - a.off,
	}
	var resp *upstream.Response
	if f.head.Sum.IsZero() {
		resp, err = continued(f.ctx, f.job, f.from, f.head, req)
	} else {
		var order upstream.Order
		if order, err = f.group.doubts.trusted(f.job.Path, f.head.Sum, f.job.Order); err == nil {
			resp, err = upstream.Do(f.ctx, order, req)
		}
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Offset != a.off || resp.Size != f.head.Size {
		return fmt.Errorf("%s does not give out a part of %s", resp.Origin, f.job.Path)
	}
	n, err := io.Copy(a.spool, io.LimitReader(resp.Body, a.end-a.off))
	if err == nil && n < a.end-a.off {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// closeAsides ends what is left of them. Nobody follows any more.
func (f *flight) closeAsides() {
	for _, a := range f.asides {
		if a.pending != nil {
			a.pending.Close()
		}
	}
}

// copyAside is CopyTo for what is had aside. ok is false for what the fill must bring.
func (fo *Follower) copyAside(ctx context.Context, w io.Writer, off, n int64) (m int64, ok bool, err error) {
	a := fo.aside
	if a == nil {
		return 0, false, nil
	}
	if off < a.off || off >= a.end {
		fo.leaveAside()
		return 0, false, nil
	}
	have, err := a.spool.Wait(ctx, off-a.off)
	if err == nil && fo.asideFile == nil {
		fo.asideFile, err = a.pending.Open()
	}
	if err == nil {
		_, err = fo.asideFile.Seek(off-a.off, io.SeekStart)
	}
	if err != nil {
		fo.leaveAside()
		return 0, ctx.Err() != nil, err // the fill will bring it, unless the client left
	}
	m, err = io.CopyN(w, fo.asideFile, min(n, a.off+have-off))
	return m, true, err
}

// leaveAside goes back to following the fill.
func (fo *Follower) leaveAside() {
	fo.aside = nil
	if fo.asideFile != nil {
		fo.asideFile.Close()
		fo.asideFile = nil
	}
}
