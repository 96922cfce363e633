// Package digest says what the bytes of a file must be.
//
// An Expectation is made before a body is asked for and checked before it is committed. There is no way to commit
// without one: a body of which nothing is known is committed as Unverified, with the reason said.
package digest

import (
	"errors"
	"fmt"
)

// ErrNoExpectation is what checking the zero Expectation returns: somebody forgot to say what is expected.
var ErrNoExpectation = errors.New("no expectation: say what the bytes must be, or why that is not known")

// Expectation is what a body must satisfy to be committed. The zero value satisfies nobody. Expectations can be
// compared with ==.
type Expectation struct {
	size   int64 // bytes; -1 unknown
	sum    Sum
	reason string // why sum is zero
}

// Known expects a body of size bytes (-1: any number) whose digest is sum, which must not be zero.
func Known(size int64, sum Sum) Expectation {
	return Expectation{size: size, sum: sum}
}

// Unverified expects a body of size bytes (-1: any number) whose digest is not known, and says why it is not.
func Unverified(size int64, reason string) Expectation {
	return Expectation{size: size, reason: reason}
}

// Size is the expected length in bytes, -1 when unknown.
func (e Expectation) Size() int64 { return e.size }

// Sum is the expected digest; zero when it is not known.
func (e Expectation) Sum() Sum { return e.sum }

func (e Expectation) String() string {
	size := "any length"
	if e.size >= 0 {
		size = fmt.Sprintf("%d bytes", e.size)
	}
	switch {
	case !e.sum.IsZero():
		return size + ", " + e.sum.String()
	case e.reason != "":
		return size + ", unverified: " + e.reason
	}
	return "nothing"
}

// Check reports whether a body of size bytes with the digest sum, made by the expected digest's algorithm, is what was
// expected of path: nil, a *MismatchError, or ErrNoExpectation. Where no digest is expected, sum does not count.
func (e Expectation) Check(path string, size int64, sum Sum) error {
	if e.sum.IsZero() && e.reason == "" {
		return fmt.Errorf("checking %s: %w", path, ErrNoExpectation)
	}
	if e.size >= 0 && size != e.size || sum != e.sum && !e.sum.IsZero() {
		got := fmt.Sprintf("%d bytes", size)
		if !sum.IsZero() {
			got += ", " + sum.String()
		}
		return &MismatchError{Path: path, Want: e, Got: got}
	}
	return nil
}

// MismatchError says that the bytes of a path are not what they had to be.
type MismatchError struct {
	Path   string
	Want   Expectation
	Got    string // length and digest
	Origin string // who sent them; "" if that is not known, or they came from several
}

func (e *MismatchError) Error() string {
	from := ""
	if e.Origin != "" {
		from = " from " + e.Origin
	}
	return fmt.Sprintf("%s%s: expected %s, got %s", e.Path, from, e.Want, e.Got)
}
