package strict

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pos is where something was written. Line is 0 where a file as a whole is meant.
type Pos struct {
	File string
	Line int
}

// String returns file:line.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Where is where a mapping was written; the struct that it is decoded into embeds it, with the tag yaml:"-".
type Where struct {
	Pos  Pos
	keys map[string]Pos
}

// At returns where key was written (in a map: "key.name"), or where the mapping begins if it was not.
func (w *Where) At(key string) Pos {
	if p, ok := w.keys[key]; ok {
		return p
	}
	return w.Pos
}

// Has reports whether key was written at all.
func (w *Where) Has(key string) bool {
	_, ok := w.keys[key]
	return ok
}

// Error is one mistake in one file.
type Error struct {
	Pos
	What  string // what is wrong
	Write string // what to write instead, or to do
}

// Error returns "file:line: what; write". What a flag says stands in no file.
func (e *Error) Error() string {
	if e.Pos == (Pos{}) {
		return e.What + "; " + e.Write
	}
	return fmt.Sprintf("%s: %s; %s", e.Pos, e.What, e.Write)
}

// Errors is every mistake that was found. As an error it is never empty.
type Errors []*Error

// Error returns one line for each mistake.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns es by file and line, or nil if there are none.
func (es Errors) Err() error {
	if len(es) == 0 {
		return nil
	}
	sorted := slices.Clone(es)
	slices.SortStableFunc(sorted, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return sorted
}

// Add appends a mistake.
func (es *Errors) Add(at Pos, what, write string) {
	*es = append(*es, &Error{at, what, write})
}

// Join returns the mistakes of all errs as one Errors, so that they can be reported at once; with other errors among
// them it is errors.Join of all. It is nil if all are.
func Join(errs ...error) error {
	var all Errors
	for _, err := range errs {
		var es Errors
		switch {
		case errors.As(err, &es):
			all = append(all, es...)
		case err != nil:
			return errors.Join(errs...)
		}
	}
	return all.Err()
}

// fault is what is wrong with a value, whose place is not known yet.
type fault struct{ what, write string }

func (f *fault) Error() string { return f.what + "; " + f.write }

// Bad returns the error of a Scalar or a Form: what is wrong with the value (it comes first in the message), and what
// to write instead.
func Bad(what, write string) error { return &fault{what, write} }
