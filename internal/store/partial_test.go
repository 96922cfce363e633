package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// known is the expectation of just these bytes.
func known(body string) digest.Expectation {
	h := digest.SHA256.New()
	io.WriteString(h, body)
	return digest.Known(int64(len(body)), digest.SumOf(digest.SHA256, h))
}

// TestPartial: a download whose digest is known is taken up again, also by the next process; one that was thrown away,
// or of other bytes, is not.
func TestPartial(t *testing.T) {
	s := open(t)
	want := known("hello world")
	begin := func() *Pending {
		t.Helper()
		p, err := s.Create("pub/f", want, true)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := begin()
	io.WriteString(p, "hello ")
	p.Close()
	if s.claimed.Load() != 0 {
		t.Errorf("%d bytes are still claimed", s.claimed.Load())
	}
	s.Close()
	s, err := Open(s.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	other, err := s.Create("pub/f", known("other bytes"), true)
	if err != nil || other.Size() != 0 {
		t.Fatalf("other bytes begin with %d, %v", other.Size(), err)
	}
	other.Close()

	p = begin()
	if p.Size() != 6 {
		t.Fatalf("%d bytes are taken up", p.Size())
	}
	io.WriteString(p, "world")
	if err := p.Commit(want, want.Sum(), mtime, nil); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if got, err := get(s, "pub/f"); got != "hello world" {
		t.Errorf("got %q, %v", got, err)
	}

	p = begin()
	if p.Size() != 0 {
		t.Errorf("after the commit, %d bytes are taken up", p.Size())
	}
	io.WriteString(p, "wrong")
	p.Discard()
	p.Close()
	p = begin()
	if p.Size() != 0 {
		t.Errorf("after discarding, %d bytes are taken up", p.Size())
	}
	io.WriteString(p, "wrong")
	if err := p.Cut(0); err != nil || p.Size() != 0 {
		t.Errorf("restarted with %d bytes, %v", p.Size(), err)
	}
	io.WriteString(p, "hello world, and more than announced")
	p.Close()
	p = begin()
	defer p.Close()
	if p.Size() != 0 {
		t.Errorf("more than was announced: %d bytes are taken up", p.Size())
	}
}

// TestOldPartialsAreSwept: their age is counted from their last change, and not from the time that upstream gave them.
func TestOldPartialsAreSwept(t *testing.T) {
	s := open(t)
	p, err := s.Create("pub/f", known("hello"), true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(p, "hello")
	p.Close()
	old := time.Now().Add(-100 * partialAge)
	if err := os.Chtimes(filepath.Join(s.dir, partialName("pub/f", known("hello"))), old, old); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		keep time.Duration
		left int
	}{{partialAge, 1}, {0, 0}} {
		if err := s.sweep(test.keep); err != nil {
			t.Fatal(err)
		}
		if left := pending(t, s); len(left) != test.left {
			t.Errorf("those younger than %v are left: %v", test.keep, left)
		}
	}
}

// TestGate: what changed during a long fsync forbids the name; and the gate is held while the file gets its name, no longer.
func TestGate(t *testing.T) {
	s := open(t)
	put(t, s, "pub/f", "old")
	want := known("new")
	begin := func() *Pending {
		p, err := s.Create("pub/f", want, true)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(p, "new"[p.Size():])
		return p
	}
	p := begin()
	changed := errors.New("changed meanwhile")
	if err := p.Commit(want, want.Sum(), mtime, func() (func(), error) { return nil, changed }); !errors.Is(err, changed) {
		t.Errorf("Commit: %v", err)
	}
	if got, _ := get(s, "pub/f"); got != "old" {
		t.Errorf("pub/f is %q", got)
	}
	p.Close()

	var order []string
	gate := func() (func(), error) {
		order = append(order, "passed")
		return func() { order = append(order, "left") }, nil
	}
	for _, fail := range []bool{true, false} {
		order = nil
		s.SetFault(func(step, _ string, before bool) error {
			if before {
				order = append(order, step)
			}
			if step == "rename" && fail {
				return changed
			}
			return nil
		})
		p = begin()
		err := p.Commit(want, want.Sum(), mtime, gate)
		p.Close()
		wantOrder := []string{"write", "chmod", "chtimes", "fsync", "passed", "rename", "left", "fsyncdir"}
		if fail {
			wantOrder = wantOrder[:7]
		}
		if (err != nil) != fail || !slices.Equal(order, wantOrder) {
			t.Errorf("rename fails %v: %v, %v", fail, order, err)
		}
	}
	p = begin()
	defer p.Close()
	if err := p.Commit(want, want.Sum(), mtime, func() (func(), error) { return nil, nil }); err != nil {
		t.Errorf("a gate that need not be left: %v", err)
	}
}

func TestWrongDigestIsNotCommitted(t *testing.T) {
	s := open(t)
	want := known("right")
	p, err := s.Create("pub/f", want, true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	io.WriteString(p, "wrong")
	for _, sum := range []digest.Sum{known("wrong").Sum(), {}} {
		var mismatch *digest.MismatchError
		if err := p.Commit(want, sum, mtime, nil); !errors.As(err, &mismatch) {
			t.Errorf("Commit: %v", err)
		}
	}
	if _, err := get(s, "pub/f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stored: %v", err)
	}
}

// TestPartialAlone: who begins the same bytes while somebody is at it does so in a file of his own, and changes nothing of
// what is committed meanwhile.
func TestPartialAlone(t *testing.T) {
	s := open(t)
	want := known("hello world")
	one, err := s.Create("pub/f", want, true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(one, "hello ")
	two, err := s.Create("pub/f", want, true)
	if err != nil || two.Size() != 0 {
		t.Fatalf("%d bytes are taken up, %v", two.Size(), err)
	}
	io.WriteString(one, "world")
	if err := one.Commit(want, want.Sum(), mtime, nil); err != nil {
		t.Fatal(err)
	}
	io.WriteString(two, "some other bytes")
	two.Close()
	if got, err := get(s, "pub/f"); got != "hello world" {
		t.Errorf("got %q, %v", got, err)
	}
	one.End()
	three, err := s.Create("pub/f", want, true)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(three, "hello")
	three.Close()
	one.Close()
	four, err := s.Create("pub/f", want, true)
	if err != nil || four.Size() != 5 {
		t.Errorf("%d bytes are taken up, %v", four.Size(), err)
	}
	four.Close()
}
