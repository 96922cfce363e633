package digest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReader(t *testing.T) {
	text := strings.Repeat("0123456789", 50_000)
	right := Known(int64(len(text)), sumOf(text))
	const hold = 1000
	for _, test := range []struct {
		name string
		body string
		want Expectation
		got  int // bytes that come
		ok   bool
	}{
		{"right", text, right, len(text), true},
		{"right, length unknown", text, Known(-1, sumOf(text)), len(text), true},
		{"short", text[:len(text)-1], right, len(text) - 1 - hold, false},
		{"wrong at the end", text[:len(text)-1] + "x", right, len(text) - hold, false},
		{"wrong at the start", "x" + text[1:], right, len(text) - hold, false},
		{"smaller than what is held back, right", "abc", Known(3, sumOf("abc")), 3, true},
		{"smaller than what is held back, wrong", "abd", Known(3, sumOf("abc")), 0, false},
		{"empty", "", Known(0, sumOf("")), 0, true},
		{"unverified", text, Unverified(-1, "test"), len(text), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{
				func(r io.Reader) io.Reader { return r }, iotest.HalfReader, iotest.DataErrReader,
			} {
				got, err := io.ReadAll(NewReader(wrap(strings.NewReader(test.body)), test.want, "a/b", hold))
				var mismatch *MismatchError
				if (err == nil) != test.ok || err != nil && !errors.As(err, &mismatch) {
					t.Errorf("error %v, want ok %v", err, test.ok)
				}
				if len(got) != test.got || !bytes.HasPrefix([]byte(test.body), got) {
					t.Errorf("%d bytes came, want %d", len(got), test.got)
				}
			}
		})
	}
}

func TestReaderEndlessBody(t *testing.T) {
	endless := io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(errors.New("read on")))
	_, err := io.ReadAll(NewReader(io.MultiReader(strings.NewReader("abcd"), endless), Known(3, sumOf("abc")), "a/b", 10))
	var mismatch *MismatchError
	if !errors.As(err, &mismatch) {
		t.Errorf("got %v", err)
	}
}

func TestReaderError(t *testing.T) {
	boom := errors.New("boom")
	got, err := io.ReadAll(NewReader(io.MultiReader(strings.NewReader("0123456789"), iotest.ErrReader(boom)), Known(20, sumOf("x")), "a/b", 4))
	if string(got) != "012345" || !errors.Is(err, boom) {
		t.Errorf("got %q, %v", got, err)
	}
}
