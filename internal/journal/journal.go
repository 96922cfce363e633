// Package journal keeps the log of deletions: for each file that left the tree one line, which says when, why, by which
// rule, and between which generations.
//
// It is a log, read by `why` and by people (one JSON object a line, in UTC, in the order of writing), and nothing is
// decided by it. So nothing is fsynced: kill -9 loses no line that was added, a power cut may cost the last ones.
package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Reason is why a file was deleted. New ones get a constant here.
type Reason string

// The reasons.
const (
	Vanished Reason = "vanished" // nothing upstream names it any more, and its grace is over
	Replaced Reason = "replaced" // upstream has other bytes under the same name now
	Mismatch Reason = "mismatch" // stored unverified, and not what the metadata, read since, say
	Damaged  Reason = "damaged"  // its bytes were right once, and are not any more
	Evicted  Reason = "evicted"  // it was right; the room was needed
	ByHand   Reason = "by-hand"  // somebody asked for it: expire, prune
)

// Entry is one deletion, and with these keys one line of the journal.
type Entry struct {
	Time time.Time `json:"time"` // in UTC; Add sets it where it is zero
	// Path is the file's path below the root, of any bytes. JSON holds nothing but UTF-8: a path that is none, or that
	// begins with a quotation mark, is written as Go quotes strings ("caf\xe9" with its quotation marks, within those of
	// JSON), and read back as it was.
	Path   string `json:"path"`
	Reason Reason `json:"reason"`
	Rule   string `json:"rule,omitempty"` // the profile's entry that decided, or "prune: " and why
	From   string `json:"from,omitempty"` // the repository's generation before the deletion
	To     string `json:"to,omitempty"`   // and after it
	Size   int64  `json:"size,omitempty"` // of the file, in bytes
	Sum    string `json:"sum,omitempty"`  // of the file, like "sha256:0123…"; "" if it was not known
}

const (
	maxLine = 64 << 10 // bytes that are read of a line; Add writes no longer ones
	maxPath = 4096     // bytes: PATH_MAX
	maxText = 1024     // bytes of every other text: what is longer is cut

	fileSuffix = ".jsonl"
	layout     = "2006-01"
)

// Journal is a directory of files, one a month (2026-11.jsonl) and more if that grows large (2026-11-2.jsonl). Its
// methods may be called from any goroutine, and several processes may have it open.
type Journal struct {
	root *os.Root
	now  func() time.Time

	months      int   // that are kept
	total, part int64 // bytes that are kept of all files, and after which another one is begun

	mu sync.Mutex // held over a call of Add
}

// Open opens the journal in the directory dir, making that if need be. Of it 13 months are kept and 256 MiB; what is
// older is deleted file by file. The caller closes it.
func Open(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the journal: %w: make the directory yourself and let the daemon's user own it, or name another state directory (state, --state)", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	return &Journal{root: root, now: time.Now, months: 13, total: 256 << 20, part: 32 << 20}, nil
}

// Close closes the journal.
func (j *Journal) Close() error { return j.root.Close() }

// Add appends entries, by one write: all of them are there, or after a crash or a full disk the first ones. Those with a
// path longer than 4096 bytes are left out, with an error.
func (j *Journal) Add(entries ...Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.now().UTC()
	var lines bytes.Buffer
	var bad error
	for _, e := range entries {
		if len(e.Path) > maxPath {
			bad = errors.Join(bad, fmt.Errorf("journal: path %.100q… is longer than %d bytes", e.Path, maxPath))
			continue
		}
		if e.Time.IsZero() {
			e.Time = now
		}
		bad = errors.Join(bad, e.write(&lines))
	}
	if lines.Len() == 0 {
		return bad
	}
	if err := j.append(now, lines.Bytes()); err != nil {
		return errors.Join(bad, fmt.Errorf("writing the journal: %w", err))
	}
	return bad
}

// write appends the entry's line. The encoder leaves nothing behind if it fails.
func (e Entry) write(to *bytes.Buffer) error {
	e.Time = e.Time.UTC()
	if !utf8.ValidString(e.Path) || strings.HasPrefix(e.Path, `"`) {
		e.Path = strconv.Quote(e.Path)
	}
	for _, text := range []*string{(*string)(&e.Reason), &e.Rule, &e.From, &e.To, &e.Sum} {
		*text = (*text)[:min(len(*text), maxText)]
	}
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil { // a year of five digits
		return fmt.Errorf("journal: entry of %q: %w", e.Path, err)
	}
	return nil
}

// append writes lines to the month's file. What a crash or a full disk left there of a line gets its end first, so that
// it costs no other. (Another process's line that is being written right now looks the same: then there is an empty line.)
func (j *Journal) append(now time.Time, lines []byte) error {
	f, err := j.current(now.Format(layout))
	if err != nil {
		return err
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], size-1); err != nil || last[0] != '\n' {
			lines = append([]byte{'\n'}, lines...)
		}
	}
	_, err = f.Write(lines)
	return err
}

// current opens the month's last file, or begins another one.
func (j *Journal) current(month string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_APPEND
	files, err := j.files()
	if err != nil {
		return nil, err
	}
	next := file{month: month, part: 1}
	for _, f := range files { // newest first
		if f.month == month {
			if f.size < j.part {
				if o, err := j.root.OpenFile(f.name(), flags, 0); !errors.Is(err, fs.ErrNotExist) {
					return o, err
				}
			}
			next.part = f.part + 1
			break
		}
	}
	o, err := j.root.OpenFile(next.name(), flags|os.O_CREATE, 0o644)
	if err == nil {
		next.size = j.part // it counts as full
		j.prune(files, next)
	}
	return o, err
}

// prune deletes what is older than the newest months, and the oldest files beyond the bytes that are kept. Current, which
// was just begun, stays even if a clock that was wrong left files of later months. What cannot be deleted now can be at
// the next turn.
func (j *Journal) prune(files []file, current file) {
	files = append(files, current)
	slices.SortFunc(files, newest)
	months, total := 0, int64(0)
	for i, f := range files {
		if i == 0 || f.month != files[i-1].month {
			months++
		}
		total += f.size
		if f != current && (months > j.months || total > j.total) {
			_ = j.root.Remove(f.name())
		}
	}
}

// file is one file of the journal.
type file struct {
	month string // 2026-11
	part  int    // 1, 2, …
	size  int64
}

func (f file) name() string {
	if f.part == 1 {
		return f.month + fileSuffix
	}
	return f.month + "-" + strconv.Itoa(f.part) + fileSuffix
}

// parseFile is the opposite of name.
func parseFile(name string) (f file, ok bool) {
	base, ok := strings.CutSuffix(name, fileSuffix)
	if !ok || len(base) < len(layout) {
		return file{}, false
	}
	f.month, f.part = base[:len(layout)], 1
	if rest, ok := strings.CutPrefix(base[len(layout):], "-"); ok {
		f.part, _ = strconv.Atoi(rest)
	}
	_, err := time.Parse(layout, f.month)
	return f, err == nil && f.part > 0 && f.name() == name
}

// newest orders files by age, the newest first.
func newest(a, b file) int {
	return cmp.Or(cmp.Compare(b.month, a.month), cmp.Compare(b.part, a.part))
}

// files lists the files, the newest first.
func (j *Journal) files() ([]file, error) {
	entries, err := fs.ReadDir(j.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var files []file
	for _, e := range entries {
		f, ok := parseFile(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		f.size = info.Size()
		files = append(files, f)
	}
	slices.SortFunc(files, newest)
	return files, nil
}
