package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

// open opens a journal in dir whose clock the test sets.
func open(t testing.TB, dir string) (*Journal, *time.Time) {
	t.Helper()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	now := noon
	j.now = func() time.Time { return now }
	return j, &now
}

func add(t testing.TB, j *Journal, entries ...Entry) {
	t.Helper()
	if err := j.Add(entries...); err != nil {
		t.Fatal(err)
	}
}

func find(t testing.TB, j *Journal, path string, most int) []Entry {
	t.Helper()
	found, err := j.Find(t.Context(), path, most)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// rules are the entries' rules, which the tests use as marks.
func rules(entries []Entry) string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Rule)
	}
	return strings.Join(list, " ")
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func read1(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLine: the form of a line is read by people and scripts.
func TestLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "journal")
	j, _ := open(t, dir)
	whole := Entry{Time: noon.In(time.FixedZone("", 3600)), Path: "pub/a&b/<x>-1.0~rc1^2+1.rpm", Reason: Replaced, Rule: "updates/**",
		From: "1764072000", To: "1764075600", Size: 1234, Sum: "sha256:00ff"}
	add(t, j, whole)
	add(t, j, Entry{Path: "b", Reason: Evicted})
	got := read1(t, filepath.Join(dir, "2026-11.jsonl"))
	want := `{"time":"2026-11-25T12:00:00.123456789Z","path":"pub/a&b/<x>-1.0~rc1^2+1.rpm","reason":"replaced","rule":"updates/**","from":"1764072000","to":"1764075600","size":1234,"sum":"sha256:00ff"}
{"time":"2026-11-25T12:00:00.123456789Z","path":"b","reason":"evicted"}
`
	if got != want {
		t.Errorf("the file holds\n%swant\n%s", got, want)
	}
	whole.Time = noon
	if found := find(t, j, whole.Path, 9); len(found) != 1 || found[0] != whole {
		t.Errorf("found %+v", found)
	}
}

func TestFindNewestFirst(t *testing.T) {
	j, now := open(t, t.TempDir())
	for i := range 10 {
		if i == 5 {
			*now = noon.AddDate(0, 1, 0)
		}
		add(t, j, Entry{Path: "a.rpm", Rule: fmt.Sprint(i)}, Entry{Path: "aa.rpm"}, Entry{Path: "a.rpm/b"})
	}
	for most, want := range map[int]string{
		-1: "", 0: "", 1: "9", 3: "9 8 7", 5: "9 8 7 6 5", 7: "9 8 7 6 5 4 3", 10: "9 8 7 6 5 4 3 2 1 0", 99: "9 8 7 6 5 4 3 2 1 0",
	} {
		if got := rules(find(t, j, "a.rpm", most)); got != want {
			t.Errorf("at most %d: %q, want %q", most, got, want)
		}
	}
	if n := len(find(t, j, "", 99)); n != 30 {
		t.Errorf("%d entries of all paths, want 30", n)
	}
	if n := len(find(t, j, "rpm", 99)); n != 0 {
		t.Errorf("%d entries of a path that is none", n)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := j.Find(ctx, "a.rpm", 9); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
}

// odd are paths that JSON, or an encoding of ours, might not bring back.
var odd = []string{
	"caf\xe9.rpm", "caf\xe9/\"q\\.rpm", "é.rpm", `"a"`, `"`, `"\x41"`, `\xe9`, "\xff", "\ufffd", "\u2028", "a\x7fb", "\xed\xa0\x80",
	"+", "日本/", "a b\tc\n", "<&>", strings.Repeat("\xff", maxPath), strings.Repeat("\x01", maxPath), "a\x00",
}

func TestOddPaths(t *testing.T) {
	j, _ := open(t, t.TempDir())
	for _, p := range odd {
		add(t, j, Entry{Path: p, Rule: "first"}, Entry{Path: p[1:] + ".", Rule: "other"}, Entry{Path: p, Rule: "last"})
		found := find(t, j, p, 9)
		if rules(found) != "last first" || found[0].Path != p {
			t.Errorf("%q: found %+v", p, found)
		}
	}
}

func TestTooLong(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	text := strings.Repeat("\x01", 10*maxText)
	path := strings.Repeat("\x01", maxPath)
	err := j.Add(Entry{Path: "a", Rule: "1"}, Entry{Path: strings.Repeat("a", maxPath+1)}, Entry{Path: "a", Rule: "2"},
		Entry{Path: path, Reason: Reason(text), Rule: text, From: text, To: text, Sum: text})
	if err == nil || !strings.Contains(err.Error(), "longer than 4096") {
		t.Errorf("error %v", err)
	}
	if got := rules(find(t, j, "a", 9)); got != "2 1" {
		t.Errorf("beside a path that is too long: %q", got)
	}
	if found := find(t, j, path, 9); len(found) != 1 || len(found[0].Rule) != maxText {
		t.Errorf("the longest line is not read: %d entries", len(found))
	}
	before := read1(t, filepath.Join(dir, "2026-11.jsonl"))
	if err := j.Add(Entry{Path: "a", Time: time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
		t.Error("a time that JSON cannot hold")
	}
	if after := read1(t, filepath.Join(dir, "2026-11.jsonl")); after != before {
		t.Errorf("which wrote %q", after[len(before):])
	}
}

// TestTorn: what a crash, a full disk or a power cut left of a line costs no other.
func TestTorn(t *testing.T) {
	for name, rest := range map[string]string{
		"half a line":             `{"time":"2026-11-25T12:00:00Z","path":"a","rul`,
		"its end is gone":         `{"time":"2026-11-25T12:00:00Z","path":"a","rule":"torn"}`,
		"zeros":                   strings.Repeat("\x00", 5000),
		"zeros after lines":       "\n" + strings.Repeat("\x00", 3*maxLine),
		"long":                    strings.Repeat("x", maxLine),
		"longer":                  strings.Repeat("x", maxLine+1),
		"long, and then an entry": strings.Repeat("x", maxLine) + `{"time":"2026-11-25T12:00:00Z","path":"a","rule":"glued"}` + "\n",
		"no entries":              "{}\n[]\nnull\n\n7\n" + `{"time":"2026-11-25T12:00:00Z","path":7}` + "\n" + `{"path":"a","rule":"no time"}` + "\n" + `{"time":"2026-11-25T12:00:00Z","path":"\"a"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j, _ := open(t, dir)
			add(t, j, Entry{Path: "a", Rule: "before"})
			f, err := os.OpenFile(filepath.Join(dir, "2026-11.jsonl"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteString(rest)
			f.Close()
			add(t, j, Entry{Path: "a", Rule: "after"})
			got := strings.Replace(rules(find(t, j, "a", 9)), "torn ", "", 1)
			if got != "after before" {
				t.Errorf("found %q", got)
			}
		})
	}
}

func TestMonthsAreBounded(t *testing.T) {
	dir := t.TempDir()
	j, now := open(t, dir)
	for _, name := range []string{"2020-01.txt", "2020-13.jsonl", "2020-01-1.jsonl", "2020-01-02.jsonl", "notes.jsonl", "2020-01x.jsonl"} { // not ours
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	others := len(names(t, dir))
	for i := range 20 {
		*now = time.Date(2026, time.Month(1+i), 1, 0, 0, 0, 0, time.UTC)
		add(t, j, Entry{Path: "a", Rule: fmt.Sprint(i)})
	}
	list := names(t, dir)
	if len(list) != others+13 || !slices.Contains(list, "2026-08.jsonl") || !slices.Contains(list, "2027-08.jsonl") {
		t.Errorf("files %v", list)
	}
	if got := rules(find(t, j, "a", 99)); got != "19 18 17 16 15 14 13 12 11 10 9 8 7" {
		t.Errorf("found %q", got)
	}
	// A clock that was years ahead, now right again: the month is written nevertheless, and stays.
	*now = noon.AddDate(-5, 0, 0)
	add(t, j, Entry{Path: "b", Rule: "back"})
	add(t, j, Entry{Path: "b", Rule: "again"})
	if got := rules(find(t, j, "b", 9)); got != "again back" {
		t.Errorf("after the clock was set back: %q", got)
	}
}

func TestBytesAreBounded(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	j.part, j.total = 1000, 12_000
	const lines = 1000
	for i := range lines {
		add(t, j, Entry{Path: "some/path.rpm", Reason: Vanished, Rule: fmt.Sprint(i)})
	}
	total := int64(0)
	for _, name := range names(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > j.total || total < j.total-2*j.part {
		t.Errorf("%d bytes are kept of %d", total, j.total)
	}
	found := find(t, j, "some/path.rpm", lines)
	for i, e := range found { // parts above 9 are newer than those below
		if e.Rule != fmt.Sprint(lines-1-i) {
			t.Fatalf("entry %d is %s", i, e.Rule)
		}
	}
	if len(found) < 50 {
		t.Errorf("%d entries are kept", len(found))
	}
}

// TestConcurrent: the entries of one call stand together, whoever else writes, and are read while others are written.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	a, _ := open(t, dir)
	b, _ := open(t, dir) // another process
	const writers, calls = 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			j := []*Journal{a, b}[w%2]
			for c := range calls {
				e := Entry{Path: fmt.Sprintf("%d-%d", w, c)}
				e1, e2, e3 := e, e, e
				e1.Rule, e2.Rule, e3.Rule = "1", "2", "3"
				if err := j.Add(e1, e2, e3); err != nil {
					t.Error(err)
				}
				if got := rules(find(t, j, e.Path, 9)); got != "3 2 1" {
					t.Errorf("found %q", got)
				}
			}
		})
	}
	wg.Wait()
	found := find(t, a, "", 9999)
	if len(found) != 3*writers*calls {
		t.Fatalf("%d entries, want %d", len(found), 3*writers*calls)
	}
	for c := range slices.Chunk(found, 3) {
		if c[0].Path != c[1].Path || c[0].Path != c[2].Path || rules(c) != "3 2 1" {
			t.Fatalf("%+v do not stand together", c)
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "journal")); err == nil || !strings.Contains(err.Error(), "--state") {
		t.Errorf("error %v", err)
	}
}

// FuzzRead: whatever stands in the file, the entries that follow on a line of their own are read, their paths as they
// were; and nothing is found under a path that is not its.
func FuzzRead(f *testing.F) {
	line := `{"time":"2026-11-25T12:00:00Z","path":"a","reason":"vanished","size":1}`
	for i, p := range odd {
		f.Add([]byte(line), p)
		f.Add([]byte(line+"\n"+line[:i]), p)
	}
	for _, junk := range []string{
		"", "\n", "{}", `{"time":"2026-11-25T12:00:00Z","path":"\"\\x61\""}`, strings.Repeat("x", maxLine), strings.Repeat("\x00", maxLine-1) + "\n",
		`{"time":"2026-11-25T12:00:00Z","path":"\u0061"}`, `{"path":"a","path":7}`, strings.Repeat("[", 20_000), `{"time":"0000-00-00T00:00:00Z"}`,
	} {
		f.Add([]byte(junk), "a")
	}
	f.Fuzz(func(t *testing.T, junk []byte, path string) {
		if path == "" || len(path) > maxPath {
			return
		}
		in := bytes.NewBuffer(append(slices.Clone(junk), '\n'))
		want := Entry{Time: noon, Path: path, Reason: Evicted, Rule: "r", Size: 5}
		for range 2 {
			if err := want.write(in); err != nil {
				t.Fatal(err)
			}
		}
		n, last := 0, Entry{}
		err := read(t.Context(), in, path, func(e Entry) {
			if e.Path != path || e.Time.IsZero() {
				t.Errorf("found %+v", e)
			}
			n, last = n+1, e
		})
		if err != nil || n < 2 || last != want {
			t.Errorf("%d entries, the last %+v, %v", n, last, err)
		}
	})
}
