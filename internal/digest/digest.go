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

// Expectation is what a body must satisfy to be committed. The zero value satisfies nobody.
type Expectation struct {
	size   int64 // bytes; -1 unknown
	reason string
}

// Unverified expects a body of size bytes (-1: any number) whose digest is not known, and says why it is not.
func Unverified(size int64, reason string) Expectation {
	return Expectation{size: size, reason: reason}
}

// Size is the expected length in bytes, -1 when unknown.
func (e Expectation) Size() int64 { return e.size }

func (e Expectation) String() string {
	if e.reason == "" {
		return "nothing"
	}
	if e.size < 0 {
		return "any length, unverified: " + e.reason
	}
	return fmt.Sprintf("%d bytes, unverified: %s", e.size, e.reason)
}

// Check reports whether a body of size bytes is what was expected of path: nil, a *MismatchError, or
// ErrNoExpectation.
func (e Expectation) Check(path string, size int64) error {
	if e.reason == "" {
		return fmt.Errorf("checking %s: %w", path, ErrNoExpectation)
	}
	if e.size >= 0 && size != e.size {
		return &MismatchError{Path: path, Want: e.String(), Got: fmt.Sprintf("%d bytes", size)}
	}
	return nil
}

// MismatchError says that the bytes of a path are not what they had to be.
type MismatchError struct {
	Path      string
	Want, Got string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: expected %s, got %s", e.Path, e.Want, e.Got)
}
