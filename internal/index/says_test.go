package index

import (
	"slices"
	"testing"
)

// TestSays: who says what of a path, and whether somebody else might.
func TestSays(t *testing.T) {
	x := reopen(t, t.TempDir())
	defer x.Close()
	r, primary := records("one")
	if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
		t.Fatal(err)
	}
	want := func(path string, complete bool, list ...Saying) {
		t.Helper()
		if got, all := x.Says(path); all != complete || !slices.Equal(got, list) {
			t.Errorf("%s: %+v, %v; want %+v, %v", path, got, all, list, complete)
		}
	}
	pointer := root + "/repodata/repomd.xml"
	want("elsewhere/x.rpm", true)
	want(primary, true, Saying{r[primary].Named, root, pointer})
	want(root+"/Packages/p1.rpm", false)
	setPackages(t, x, "one", 3)
	want(root+"/Packages/p1.rpm", true, Saying{Named{1, sum("one1"), 9}, root, primary})
	want("pub/pool/shared.rpm", true, Saying{Named{7, sum("oneshared"), 9}, root, primary})
	want(root+"/Packages/p9.rpm", true)
	r, primary = records("two") // whose packages are not known yet
	if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
		t.Fatal(err)
	}
	want(root+"/Packages/p1.rpm", false)
}
