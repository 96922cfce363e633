package spool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// follow reads the whole of a spool over file as a client does.
func follow(ctx context.Context, s *Spool, file string, step int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var got bytes.Buffer
	for {
		off := int64(got.Len())
		have, err := s.Wait(ctx, off)
		if err == io.EOF {
			return got.Bytes(), nil
		}
		if err != nil {
			return got.Bytes(), err
		}
		if _, err := io.Copy(&got, io.NewSectionReader(f, off, min(step, have-off))); err != nil {
			return got.Bytes(), err
		}
	}
}

// TestFollowers lets many followers of different pace and starting time read what one writer writes.
func TestFollowers(t *testing.T) {
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(rand.N(256))
	}
	file := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := New(f, -1, 0)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			got, err := follow(t.Context(), s, file, int64(1+i*500))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("follower %d: %d bytes, %v", i, len(got), err)
			}
		})
		if i%2 == 0 { // the others come while it is written, or after
			n := len(want) / 32
			if _, err := s.Write(want[i/2*n : (i/2+1)*n]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Write(want[len(want)/32*32:]); err != nil {
		t.Fatal(err)
	}
	s.Finish(nil)
	wg.Wait()
}

func TestFailureComesBehindTheLastByte(t *testing.T) {
	s := New(io.Discard, -1, 0)
	s.Write([]byte("abc"))
	boom := errors.New("boom")
	s.Finish(boom)
	s.Finish(nil) // too late
	if n, err := s.Wait(t.Context(), 2); n != 3 || err != nil {
		t.Errorf("Wait(2) = %d, %v", n, err)
	}
	if n, err := s.Wait(t.Context(), 3); n != 3 || !errors.Is(err, boom) {
		t.Errorf("Wait(3) = %d, %v", n, err)
	}
}

// TestLeaving: a follower leaves with its context, at once, and holds up nobody.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(io.Discard, -1, 0)
		gone := errors.New("client left")
		ctx, leave := context.WithCancelCause(t.Context())
		left := make(chan error, 1)
		stayed := make(chan error, 1)
		go func() { _, err := s.Wait(ctx, 0); left <- err }()
		go func() { _, err := s.Wait(t.Context(), 0); stayed <- err }()
		synctest.Wait()
		leave(gone)
		if err := <-left; !errors.Is(err, gone) {
			t.Errorf("the one that left got %v", err)
		}
		time.Sleep(time.Hour) // of the bubble's clock: nothing times out
		synctest.Wait()
		select {
		case err := <-stayed:
			t.Fatalf("the one that stayed was woken with %v", err)
		default:
		}
		s.Write([]byte("x"))
		if err := <-stayed; err != nil {
			t.Errorf("the one that stayed got %v", err)
		}
	})
}

// TestWriteErrorShowsWhatWasWritten: bytes that reached the file before an error are there for followers.
func TestWriteErrorShowsWhatWasWritten(t *testing.T) {
	full := errors.New("full")
	s := New(writerFunc(func(p []byte) (int, error) { return len(p) / 2, full }), -1, 0)
	if n, err := s.Write([]byte("abcd")); n != 2 || err != full {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if n := s.Len(); n != 2 {
		t.Errorf("Len = %d, want 2", n)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestHoldBack: followers see the end of the file only once it was found right, and never if it was not.
func TestHoldBack(t *testing.T) {
	for _, test := range []struct {
		name             string
		size, hold       int64
		written, visible int64
	}{
		{"in the middle", 100, 10, 50, 50},
		{"at the block", 100, 10, 95, 90},
		{"all of it", 100, 10, 100, 90},
		{"smaller than the block", 5, 10, 5, 0},
		{"length unknown", -1, 10, 50, 40},
		{"length unknown, little", -1, 10, 5, 0},
		{"everything", 100, math.MaxInt64, 100, 0},
		{"more than announced", 100, 10, 200, 90},
	} {
		t.Run(test.name, func(t *testing.T) {
			boom := errors.New("wrong digest")
			for _, verdict := range []error{nil, boom} {
				s := New(io.Discard, test.size, test.hold)
				s.Write(make([]byte, test.written))
				if n, err := s.Written(t.Context(), test.written-1); n != test.written || err != nil {
					t.Errorf("Written = %d, %v", n, err)
				}
				s.Seal()
				if _, err := s.Written(t.Context(), test.written); err != io.EOF {
					t.Errorf("Written at the end: %v", err)
				}
				gone, leave := context.WithCancel(t.Context())
				leave()
				if n, err := s.Wait(gone, test.visible); n != test.visible || !errors.Is(err, context.Canceled) {
					t.Errorf("before the verdict: %d, %v, want %d", n, err, test.visible)
				}
				s.Finish(verdict)
				n, err := s.Wait(t.Context(), test.visible)
				if verdict == nil && test.visible == test.written && err == io.EOF {
					continue
				}
				if verdict == nil && (n != test.written || err != nil) || verdict != nil && (n != test.visible || err != boom) {
					t.Errorf("after verdict %v: %d, %v", verdict, n, err)
				}
			}
		})
	}
}

func TestRestart(t *testing.T) {
	s := New(io.Discard, 100, 100)
	s.Write(make([]byte, 30))
	if !s.Restart() || s.Len() != 0 {
		t.Error("no restart though nobody saw a byte")
	}
	s = New(io.Discard, 100, 60)
	s.Write(make([]byte, 50))
	if s.Restart() {
		t.Error("a restart though 40 bytes were shown")
	}
}
