// Package spool lets many followers read a file while one writer is still writing it.
//
// Each follower reads at its own pace, from any offset, at once, through a file handle of its own: none of them
// slows, ends or waits for another, and none of them slows the writer.
package spool

import (
	"context"
	"io"
	"sync"
)

// Spool counts the bytes of a growing file and wakes those that wait for more. It does not own the file.
//
// It may hold back the end of the file from followers until its writer says that the file is right: the writer then
// Seals it, somebody who follows by Written judges it, and Finish lets the rest go or never does.
type Spool struct {
	w    io.Writer // only the one writer uses it
	size int64     // of the whole file; -1 unknown
	hold int64     // bytes at the end that followers don't see before Finish(nil)

	mu     sync.Mutex
	n      int64         // bytes written
	shown  int64         // bytes that followers may read; never shrinks
	sealed bool          // no byte will be written
	done   bool          // Finish was called
	err    error         // why it ended; nil: the file is whole
	more   chan struct{} // closed at the next change; nil while nobody waits
}

// New returns the empty spool of a file of size bytes (-1: unknown) that is written through w. The last hold bytes are
// not shown before Finish(nil).
func New(w io.Writer, size, hold int64) *Spool {
	return &Spool{w: w, size: size, hold: hold}
}

// Write appends p and then lets followers see it, but for what is held back. Only one goroutine may write.
func (s *Spool) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.Skip(int64(n))
	return n, err
}

// Skip counts n bytes that stand in the file already, as if they had been written.
func (s *Spool) Skip(n int64) {
	if n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += n
	end := s.size // what is held back ends here
	if end < 0 {
		end = s.n
	}
	s.shown = max(s.shown, min(s.n, end-s.hold))
	s.wake()
}

// Seal says that no byte will be written. The writer calls it when it has come to the end, before Finish.
func (s *Spool) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = true
	s.wake()
}

// Finish ends the spool: with nil the file is whole and right, and all of it is shown; else err is why it is not. The
// first call counts.
func (s *Spool) Finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return
	}
	s.sealed, s.done, s.err = true, true, err
	if err == nil {
		s.shown = s.n
	}
	s.wake()
}

// Restart forgets what was written, so that the file can be written anew from its first byte. It does so, and returns
// true, only if no follower can have seen a byte.
func (s *Spool) Restart() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown > 0 || s.done {
		return false
	}
	s.n, s.sealed = 0, false
	return true
}

// Len is the number of bytes written.
func (s *Spool) Len() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// Wait returns the number of bytes that a follower may read, once that is more than off. At the end of a whole file it
// returns io.EOF; after the last byte shown of one that failed, the reason given to Finish; and it gives up with ctx.
func (s *Spool) Wait(ctx context.Context, off int64) (int64, error) {
	return s.wait(ctx, off, func() (int64, bool) { return s.shown, s.done })
}

// Written is Wait for whoever judges the file: it returns the number of bytes written, those held back included, and
// io.EOF at the end once the spool is sealed.
func (s *Spool) Written(ctx context.Context, off int64) (int64, error) {
	return s.wait(ctx, off, func() (int64, bool) { return s.n, s.sealed })
}

// wait returns when state, which is called with mu held, gives more than off bytes or says that no more will come.
func (s *Spool) wait(ctx context.Context, off int64, state func() (have int64, end bool)) (int64, error) {
	for {
		s.mu.Lock()
		have, end := state()
		err := s.err
		if have > off {
			s.mu.Unlock()
			return have, nil
		}
		if end {
			s.mu.Unlock()
			if err == nil {
				err = io.EOF
			}
			return have, err
		}
		if s.more == nil {
			s.more = make(chan struct{})
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return have, context.Cause(ctx)
		}
	}
}

// wake must be called with mu held.
func (s *Spool) wake() {
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
}
