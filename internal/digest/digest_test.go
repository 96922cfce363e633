package digest

import (
	"errors"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		name string
		want Expectation
		size int64
		ok   bool
	}{
		{"right length", Unverified(10, "why"), 10, true},
		{"short", Unverified(10, "why"), 9, false},
		{"long", Unverified(10, "why"), 11, false},
		{"empty file", Unverified(0, "why"), 0, true},
		{"any length", Unverified(-1, "why"), 7, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.want.Check("a/b", test.size)
			var mismatch *MismatchError
			if (err == nil) != test.ok || err != nil && !errors.As(err, &mismatch) {
				t.Errorf("Check = %v, want ok %v", err, test.ok)
			}
		})
	}
}

func TestZeroExpectationSatisfiesNobody(t *testing.T) {
	for _, e := range []Expectation{{}, Unverified(3, "")} {
		if err := e.Check("a/b", 3); !errors.Is(err, ErrNoExpectation) {
			t.Errorf("Check of %#v = %v, want ErrNoExpectation", e, err)
		}
	}
}
