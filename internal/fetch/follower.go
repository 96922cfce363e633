package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/instantmirror/instantmirror/internal/store"
)

// Follower is one client's place in a flight. It is for one goroutine.
type Follower struct {
	f    *flight
	file *os.File // a handle of its own to the growing file; nil before the first CopyTo
	end  int64    // of the part that the client wants; -1: the file's
	rest *Direct  // once the flight ran out of room

	aside     *aside   // where some of what the client wants is had sooner; nil: nowhere
	asideFile *os.File // a handle of its own to that
}

// Begun is when the flight began.
func (fo *Follower) Begun() time.Time { return fo.f.begun }

// Head waits for upstream's answer. Errors are those of upstream.Do, *digest.MismatchError, store.ErrNoSpace where the
// file can't be spooled (then Direct passes it through), and ErrCurrent.
func (fo *Follower) Head(ctx context.Context) (Head, error) {
	if fo.f.hasStarted() { // however late it is
		return fo.f.head, fo.f.err
	}
	select {
	case <-fo.f.started:
		return fo.f.head, fo.f.err
	case <-ctx.Done():
		return Head{}, context.Cause(ctx)
	}
}

// Wait waits until the flight has ended, and its file stands in the tree or is staged; the error says why it does not.
func (fo *Follower) Wait(ctx context.Context) error {
	select {
	case <-fo.f.ended:
		return fo.f.result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Ready waits until the first of the n bytes from off on (n < 0: all that follow) can be copied. An error before any
// byte went out can still be told to the client in words. Head must have returned without error.
func (fo *Follower) Ready(ctx context.Context, off, n int64) error {
	fo.end = -1
	if n >= 0 {
		fo.end = off + n
	}
	if fo.rest != nil {
		return fo.rest.Ready(ctx, off, n)
	}
	fo.leaveAside()
	end := fo.end
	if end < 0 {
		end = fo.f.head.Size
	}
	if fo.aside = fo.f.beside(off, end); fo.aside != nil {
		if _, err := fo.aside.spool.Wait(ctx, off-fo.aside.off); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return err
		}
		fo.leaveAside() // the fill will bring it
	}
	_, err := fo.f.spool.Wait(ctx, off)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, store.ErrNoSpace):
		return fo.goDirect(ctx, off)
	}
	return err
}

// goDirect goes on, from off, with a request of its own, because the flight ran out of room.
func (fo *Follower) goDirect(ctx context.Context, off int64) error {
	fo.rest = &Direct{Head: fo.f.head, group: fo.f.group, job: fo.f.job, want: fo.f.want, from: fo.f.from}
	if file, err := fo.f.pending.Open(); err == nil {
		fo.rest.prefix, fo.rest.have = file, fo.f.spool.Len()
	}
	n := int64(-1)
	if fo.end >= 0 {
		n = fo.end - off
	}
	return fo.rest.Ready(ctx, off, n)
}

// CopyTo waits until the byte at off is there and copies what is there from off on, n bytes at most. It returns
// io.EOF at the end of a whole file, and why the flight failed behind the last byte of one that did. When the disk
// is full the follower goes on with a request of its own, where it can be told that the bytes belong together. Ready
// must have been called for the part that off lies in.
func (fo *Follower) CopyTo(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	if fo.rest != nil {
		return fo.rest.CopyTo(ctx, w, off, n)
	}
	if m, ok, err := fo.copyAside(ctx, w, off, n); ok {
		return m, err
	}
	have, err := fo.f.spool.Wait(ctx, off)
	if errors.Is(err, store.ErrNoSpace) {
		if err := fo.goDirect(ctx, off); err != nil {
			return 0, err
		}
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
	m, err := io.CopyN(w, fo.file, min(n, have-off))
	if errors.Is(err, io.EOF) { // io.EOF is the end of a whole file, and this is not
		err = fmt.Errorf("following %s: %w", fo.f.job.Path, io.ErrUnexpectedEOF)
	}
	return m, err
}

// Close leaves. The flight goes on.
func (fo *Follower) Close() {
	if fo.rest != nil {
		fo.rest.Close()
	}
	fo.leaveAside()
	if fo.file != nil {
		fo.file.Close()
	}
	fo.f.group.leave(fo.f)
}
