package monitor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzRebuild: whatever stands in the tree when the index is made again from it, that ends, and what can't be read is served
// as it stands.
func FuzzRebuild(f *testing.F) {
	files := repo(at(0), "x").Files()
	var primary []byte
	for name, file := range files {
		if strings.Contains(name, "-primary") {
			primary = file.Body
		}
	}
	f.Add(files["repodata/repomd.xml"].Body, primary, files[pkg("x")].Body)
	f.Add([]byte(`<repomd><data type="primary"><location href="repodata/primary.xml"/></data></repomd>`), []byte("<metadata/>"), []byte("x"))
	f.Add([]byte(`<repomd><data type="primary"><checksum type="sha256">00</checksum><location href="../../../repodata/repomd.xml"/></data></repomd>`), []byte{}, []byte{})
	f.Add([]byte("<repomd"), []byte("\x1f\x8b"), []byte{})
	f.Fuzz(func(t *testing.T, md, primary, body []byte) {
		w := newWorld(t, oneOrigin)
		w.stop()
		if err := os.RemoveAll(filepath.Join(w.dir, "state")); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(w.dir, "root", base, "os")
		for name, content := range map[string][]byte{"repodata/repomd.xml": md, "repodata/primary.xml": primary, pkg("x"): body} {
			to := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w.begin()
		begun := time.Now()
		n, err := w.monitor.Rebuild(t.Context())
		if n != 1 || time.Since(begun) > 10*time.Second {
			t.Errorf("%d repositories after %v, %v", n, time.Since(begun), err)
		}
		if got, err := w.store.Get(base + "os/repodata/repomd.xml"); err != nil {
			t.Error("the pointer is gone:", err)
		} else {
			got.Close()
		}
	})
}
