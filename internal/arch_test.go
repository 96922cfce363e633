package internal_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/instantmirror/instantmirror/"

// floors are the rooms of the house. A room imports only lower floors, never its neighbours.
var floors = map[string]int{
	"internal/digest":    0,
	"internal/signature": 0,
	"internal/spool":     0,
	"internal/upstream":  0,
	"internal/profile":   1,
	"internal/repodata":  1,
	"internal/store":     1,
	"internal/index":     1,
	"internal/journal":   1,
	"internal/site":      2,
	"internal/fetch":     3,
	"internal/fsck":      3,
	"internal/mirror":    4,
	"internal/monitor":   5,
	"internal/trim":      5,
	"internal/admin":     6,
	"internal/server":    6,
	"internal/daemon":    7,
	"cmd/instantmirror":  8,
	"profiles":           0, // data
}

// owners are the rooms that alone may import a library.
var owners = map[string]string{
	"gopkg.in/yaml.v3":                "internal/profile",
	"go.etcd.io/bbolt":                "internal/index",
	"github.com/alecthomas/kong":      "cmd/instantmirror",
	"github.com/coreos/go-systemd":    "internal/daemon",
	"github.com/ProtonMail/go-crypto": "internal/signature",
	"github.com/schollz/progressbar":  "cmd/instantmirror",
	"golang.org/x/term":               "cmd/instantmirror",
	"github.com/klauspost/compress":   "internal/repodata",
	"github.com/ulikunitz/xz":         "internal/repodata",
	"golang.org/x/time/rate":          "internal/upstream",
}

// testsOnly are rooms that no program imports.
const testsOnly = "internal/mirrortest"

// TestFloors parses the imports of every file: a test that asked `go list` would be cached and miss changes.
func TestFloors(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir("..", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || file == "../mirror") {
			return filepath.SkipDir
		}
		if path.Ext(file) != ".go" {
			return nil
		}
		dir := strings.TrimPrefix(path.Dir(filepath.ToSlash(file)), "../")
		if dir == "internal" {
			return nil // this test
		}
		room := roomOf(dir)
		floor, ok := floors[room]
		if !ok && !under(dir, testsOnly) {
			t.Errorf("%s: %s is no room: give it a floor in internal/arch_test.go and a line in ARCHITECTURE.md", file, dir)
			return nil
		}
		seen[room] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		test := strings.HasSuffix(file, "_test.go")
		for _, spec := range parsed.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			for lib, owner := range owners {
				if under(imp, lib) && room != owner && !test && !under(dir, testsOnly) {
					t.Errorf("%s imports %s, which belongs to %s", file, imp, owner)
				}
			}
			ours, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			switch {
			case under(dir, testsOnly):
				if !under(ours, testsOnly) {
					t.Errorf("%s imports %s: %s stands below every room's tests and imports none of them", file, ours, testsOnly)
				}
			case under(ours, testsOnly):
				if !test {
					t.Errorf("%s imports %s, which is for tests only", file, ours)
				}
			case test, under(ours, room): // tests may look at anything
			case floors[roomOf(ours)] >= floor:
				t.Errorf("%s (floor %d) imports %s (floor %d): a room imports only lower floors", file, floor, ours, floors[roomOf(ours)])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range floors {
		if !seen[room] {
			t.Errorf("%s has a floor, but is not there", room)
		}
	}
}

// roomOf is the room that a directory belongs to: internal/profile/glob is a part of internal/profile.
func roomOf(dir string) string {
	parts := strings.SplitN(dir, "/", 3)
	if parts[0] == "profiles" {
		return "profiles"
	}
	return path.Join(parts[:min(len(parts), 2)]...)
}

func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
