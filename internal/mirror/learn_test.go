package mirror

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const osTree = "/pub/test/43/os/"

// publish puts a repository of one package, whose content comes from seed, upstream, and returns the paths of its
// repomd.xml, primary and package here.
func (w *world) publish(seed uint64, fixed bool) (md, primary, pkg string) {
	w.t.Helper()
	r := mirrortest.Repo{Fixed: fixed, Packages: []mirrortest.Package{{Name: "hello", Size: 200_000, Seed: seed}}}
	r.Time = mirrortest.Epoch.AddDate(0, 0, int(seed))
	files := r.Files()
	w.up.PutTree("up/43/os", files)
	for name := range files {
		switch {
		case strings.HasSuffix(name, "repomd.xml"):
			md = osTree + name
		case strings.Contains(name, "primary"):
			primary = osTree + name
		case strings.HasSuffix(name, ".rpm"):
			pkg = osTree + name
		}
	}
	return md, primary, pkg
}

func (w *world) must(paths ...string) {
	w.t.Helper()
	for _, p := range paths {
		if _, _, err := w.get(p); err != nil {
			w.t.Fatal(err)
		}
	}
}

// corrupt makes upstream's file other bytes of the same length.
func (w *world) corrupt(path string) {
	w.t.Helper()
	w.up.Fault("up"+strings.TrimPrefix(path, "/pub/test"), mirrortest.Fault{Wrong: true, At: 100})
}

// known fails the test unless the package is known by its digest, or is not.
func (w *world) known(path string, want bool) {
	w.t.Helper()
	target, err := w.table.Resolve("", path)
	if err != nil {
		w.t.Fatal(err)
	}
	if e := w.expect(target); e.Sum().IsZero() == want {
		w.t.Errorf("%s is expected to be %v", path, e)
	}
}

func TestPackagesAreKnownFromPrimary(t *testing.T) {
	w := newWorld(t)
	md, primary, pkg := w.publish(1, false)
	w.known(pkg, false)
	w.must(md)
	w.known(primary, true)
	w.known(pkg, false)
	w.must(primary)
	w.known(pkg, true)

	w.corrupt(pkg)
	_, _, err := w.get(pkg)
	var mismatch *digest.MismatchError
	if !errors.As(err, &mismatch) {
		t.Errorf("a corrupt package: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "root", pkg)); err == nil {
		t.Error("a corrupt package is stored")
	}
	w.up.Heal()

	// It is known after a restart, and after the index is lost, from the tree.
	w.restart()
	w.known(pkg, true)
	w.stop()
	os.RemoveAll(filepath.Join(w.dir, "state"))
	w.begin()
	w.known(pkg, true)
	w.must(pkg)
}

// TestCorruptMetadata: metadata that are not what repomd.xml says are not let through, and not learned from.
func TestCorruptMetadata(t *testing.T) {
	w := newWorld(t)
	md, primary, pkg := w.publish(1, false)
	w.must(md)
	w.corrupt(primary)
	var mismatch *digest.MismatchError
	if _, _, err := w.get(primary); !errors.As(err, &mismatch) {
		t.Errorf("a corrupt primary: %v", err)
	}
	w.known(pkg, false)
}

// TestBadPointer: what is no repomd.xml never takes the place of one that is.
func TestBadPointer(t *testing.T) {
	w := newWorld(t)
	md, _, _ := w.publish(1, false)
	w.up.Put("up/44/os/repodata/repomd.xml", []byte("<html>login</html>"))
	if _, _, err := w.get("/pub/test/44/os/repodata/repomd.xml"); !errors.Is(err, fetch.ErrRefused) {
		t.Errorf("first contact: %v", err)
	}
	w.must(md)
	before, _, _ := w.get(md)
	w.up.Put("up/43/os/repodata/repomd.xml", []byte("truncated <repomd"))
	w.age(md, 2*60*60*1e9)
	after, status, err := w.get(md)
	if err != nil || after != before || !strings.Contains(status, "detail=stale") {
		t.Errorf("%s, %v", status, err)
	}
}

// TestHostilePrimary: a primary that can't be read is let through when its digest is right, and nothing is known.
func TestHostilePrimary(t *testing.T) {
	w := newWorld(t)
	md, primary, pkg := w.publish(1, false)
	body := []byte("<metadata><package>")
	h := digest.SHA256.New()
	h.Write(body)
	w.up.Put("up"+strings.TrimPrefix(primary, "/pub/test"), body)
	w.up.Put("up"+strings.TrimPrefix(md, "/pub/test"), []byte(`<repomd><data type="primary"><checksum type="sha256">`+
		digest.SumOf(digest.SHA256, h).Hex()+`</checksum><location href="`+strings.TrimPrefix(primary, osTree)+`"/></data></repomd>`))
	w.must(md, primary)
	w.known(primary, true)
	w.known(pkg, false)
	w.must(pkg)
}

// TestOutsideOfTheRepository: packages may lie beside their repository, and never outside of the mirror.
func TestOutsideOfTheRepository(t *testing.T) {
	w := newWorld(t)
	r := mirrortest.Repo{Packages: []mirrortest.Package{{Name: "hello"}}, Dir: "../pool"}
	files := r.Files()
	var md, primary string
	for name, f := range files {
		w.up.PutFile("up/43/os/"+name, f)
		if strings.Contains(name, "primary") {
			primary = osTree + name
		}
	}
	md = osTree + "repodata/repomd.xml"
	w.up.PutFile("up/43/pool/hello-1.0-1.noarch.rpm", files["../pool/hello-1.0-1.noarch.rpm"])
	w.must(md, primary)
	w.known("/pub/test/43/pool/hello-1.0-1.noarch.rpm", true)
	w.must("/pub/test/43/pool/hello-1.0-1.noarch.rpm")
}

// TestGoneEverywhere: what metadata name and nobody has is absent.
func TestGoneEverywhere(t *testing.T) {
	w := newWorld(t)
	md, primary, pkg := w.publish(1, false)
	w.must(md, primary)
	w.up.Remove("up" + strings.TrimPrefix(pkg, "/pub/test"))
	_, _, err := w.get(pkg)
	var absent *AbsentError
	if !errors.As(err, &absent) || errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}
