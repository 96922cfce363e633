package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Find returns the entries of path, "" for those of all paths, the one that was written last first, and at most so many.
// Lines that are too long or no entries are passed over.
func (j *Journal) Find(ctx context.Context, path string, most int) ([]Entry, error) {
	files, err := j.files()
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	var found []Entry
	for _, f := range files {
		if len(found) >= most {
			break
		}
		entries, err := j.findIn(ctx, f, path, most-len(found))
		if err != nil {
			return nil, fmt.Errorf("reading the journal, %s: %w", f.name(), err)
		}
		found = append(found, entries...)
	}
	return found, nil
}

// findIn is Find in one file.
func (j *Journal) findIn(ctx context.Context, f file, path string, most int) ([]Entry, error) {
	o, err := j.root.Open(f.name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it was deleted meanwhile
	}
	if err != nil {
		return nil, err
	}
	defer o.Close()
	// The last ones are kept, in a ring.
	var ring []Entry
	n := 0
	err = read(ctx, o, path, func(e Entry) {
		if len(ring) < most {
			ring = append(ring, e)
		} else {
			ring[n%most] = e
		}
		n++
	})
	if err != nil {
		return nil, err
	}
	if len(ring) > 0 {
		at := n % len(ring)
		ring = slices.Concat(ring[at:], ring[:at])
	}
	slices.Reverse(ring)
	return ring, nil
}

// read calls yield for each entry of path in r, "" for all of them.
func read(ctx context.Context, r io.Reader, path string, yield func(Entry)) error {
	in := bufio.NewReaderSize(r, maxLine)
	plain := []byte(longestPlain(path))
	for long := false; ; {
		line, err := in.ReadSlice('\n')
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		tooLong := long
		long = errors.Is(err, bufio.ErrBufferFull)
		if !long && !tooLong && bytes.Contains(line, plain) { // which is much quicker than to parse it
			if e, ok := parse(line); ok && (path == "" || e.Path == path) {
				yield(e)
			}
		}
		switch {
		case err == nil, long:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// parse reads a line.
func parse(line []byte) (e Entry, ok bool) {
	if json.Unmarshal(line, &e) != nil {
		return Entry{}, false
	}
	if strings.HasPrefix(e.Path, `"`) {
		var err error
		if e.Path, err = strconv.Unquote(e.Path); err != nil {
			return Entry{}, false
		}
	}
	return e, e.Path != "" && !e.Time.IsZero()
}

// longestPlain is the longest part of path that stands in a line as it is, however its path is quoted.
func longestPlain(path string) (longest string) {
	for part := range strings.FieldsFuncSeq(path, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_'
	}) {
		if len(part) > len(longest) {
			longest = part
		}
	}
	return longest
}
