package fsck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestEarlierIsNoJudge: where the current primary is not here, an earlier one says what a package may be, and not that it is
// damaged: it may have been re-signed since.
func TestEarlierIsNoJudge(t *testing.T) {
	root := t.TempDir()
	one := mirrortest.Repo{Packages: []mirrortest.Package{{Name: "x", Seed: 1}}}
	two := mirrortest.Repo{Packages: []mirrortest.Package{{Name: "x", Seed: 2}}, Time: mirrortest.Epoch.Add(1e12)}
	mirrortest.WriteTree(t, filepath.Join(root, "os"), one.Files())
	mirrortest.WriteTree(t, filepath.Join(root, "os"), two.Files())
	judge := func() (s Summary) {
		t.Helper()
		s, err := Check(t.Context(), root, Options{}, func(f Finding) { t.Error(f) })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := judge(); s.Unvouched != 1 { // repomd.xml
		t.Errorf("with the primary: %+v", s)
	}
	for name := range two.Files() {
		if strings.HasSuffix(name, "-primary.xml.gz") {
			if err := os.Remove(filepath.Join(root, "os", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := judge(); s.Unvouched != 2 {
		t.Errorf("without it: %+v", s)
	}
}
