package trim

import (
	"fmt"
	"testing"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// TestPointers: what is a pointer here is one for site.
func TestPointers(t *testing.T) {
	table, err := site.Build([]*profile.Profile{{Name: "a", Path: "/pub/a", Enabled: true}}, upstream.NewPool("test"))
	if err != nil {
		t.Fatal(err)
	}
	pointers := 0
	for _, dir := range []string{"", "os/", "repodata/", "os/repodata/", "os/repodata/sub/", "norepodata/", "os/myrepodata/"} {
		for _, base := range []string{
			"repomd.xml", "repomd.xml.asc", "repomd.xml.key", "repomd.xml.old", ".treeinfo", "treeinfo", "x.treeinfo", "CHECKSUM", "Fedora-CHECKSUM-43",
			"SHA256SUMS", "SHA512SUM", "MYSHASUM", "SUMSHA", "SHA", "CHECKSUM-1.rpm", "SHASUM.drpm", "a.rpm", "primary.xml.gz", "boot.iso",
		} {
			name := "pub/a/" + dir + base
			target, err := table.Resolve("", "/"+name)
			if err != nil {
				t.Fatal(err)
			}
			want := target.Class == site.Pointer
			if isPointer(name) != want {
				t.Errorf("%s: %v, want %v", name, !want, want)
			}
			if want {
				pointers++
			}
		}
	}
	if pointers < 20 {
		t.Errorf("only %d pointers", pointers)
	}
}

// TestManyLinks: where there are more linked files than one walk keeps in mind, none goes by less than all of its names.
func TestManyLinks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.linked = 3
		for i := range 5 {
			w.put(fmt.Sprintf("p/a/%d.rpm", i), 100, 200-i)
			w.link(fmt.Sprintf("p/a/%d.rpm", i), fmt.Sprintf("p/z/%d.rpm", i), 200-i)
		}
		w.put("p/a/used.rpm", 100, 1)
		w.link("p/a/used.rpm", "p/z/used.rpm", 1000)
		w.put("p/other.rpm", 100, 100)
		w.store.SetQuotas([]store.Quota{{Dir: "p", Limit: 250}})
		defer w.start()()
		w.wantGone("p/a/0.rpm", "p/z/0.rpm", "p/a/1.rpm", "p/z/1.rpm", "p/a/2.rpm", "p/z/2.rpm", "p/other.rpm", "p/a/3.rpm", "p/z/3.rpm")
	})
	inWorld(t, func(t *testing.T, w *world) { // that they are many one after the other does not matter
		w.linked = 3
		for i := range 5 {
			w.put(fmt.Sprintf("%da.rpm", i), 100, 200+i)
			w.link(fmt.Sprintf("%da.rpm", i), fmt.Sprintf("%db.rpm", i), 200+i)
		}
		w.store.SetQuotas([]store.Quota{{Dir: "", Limit: 350}})
		defer w.start()()
		w.wantGone("4a.rpm", "4b.rpm", "3a.rpm", "3b.rpm")
	})
}
