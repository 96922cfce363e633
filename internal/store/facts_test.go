package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFacts: what others ask of the store beside its files.
func TestFacts(t *testing.T) {
	s := open(t)
	s.SetReserve(7)
	free, total, reserve, err := s.Space()
	if err != nil || free <= 0 || total < free || reserve != 7 {
		t.Errorf("%d of %d free, %d kept, %v", free, total, reserve, err)
	}
	broken := errors.New("no disk")
	s.space = func() (int64, int64, error) { return 0, 0, broken }
	if _, _, _, err := s.Space(); !errors.Is(err, broken) {
		t.Errorf("a disk that says nothing: %v", err)
	}

	file := filepath.Join(s.Dir(), "a/b")
	old := time.Unix(1000, 0)
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	if at, err := s.Placed("a/b"); err != nil || time.Since(at) > time.Minute {
		t.Errorf("placed %v, %v", at, err)
	}
	for name, want := range map[string]error{
		"a/none": fs.ErrNotExist, "a/b/c": fs.ErrNotExist, "a": ErrIsDir, ".instantmirror/lock": fs.ErrNotExist, "../x": fs.ErrNotExist, "": fs.ErrNotExist,
	} {
		if _, err := s.Placed(name); !errors.Is(err, want) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
