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
type Spool struct {
	w io.Writer // only the one writer uses it

	mu   sync.Mutex
	n    int64         // bytes that followers may read; never shrinks
	done bool          // no byte will be added
	err  error         // why it ended; nil: the file is whole
	more chan struct{} // closed at the next change; nil while nobody waits
}

// New returns the empty spool of a file that is written through w.
func New(w io.Writer) *Spool { return &Spool{w: w} }

// Write appends p and then lets followers see it. Only one goroutine may write.
func (s *Spool) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if n > 0 {
		s.mu.Lock()
		s.n += int64(n)
		s.wake()
		s.mu.Unlock()
	}
	return n, err
}

// Finish says that no byte will be added: with nil the file is whole, else err is why it is not. The first call
// counts.
func (s *Spool) Finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return
	}
	s.done, s.err = true, err
	s.wake()
}

// Len is the number of bytes that may be read now.
func (s *Spool) Len() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// Wait returns the number of bytes that may be read, once that is more than off. At the end of a whole file it
// returns io.EOF; after the last byte of one that failed, the reason given to Finish; and it gives up with ctx.
func (s *Spool) Wait(ctx context.Context, off int64) (int64, error) {
	for {
		s.mu.Lock()
		n, done, err := s.n, s.done, s.err
		if n > off {
			s.mu.Unlock()
			return n, nil
		}
		if done {
			s.mu.Unlock()
			if err == nil {
				err = io.EOF
			}
			return n, err
		}
		if s.more == nil {
			s.more = make(chan struct{})
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return n, context.Cause(ctx)
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
