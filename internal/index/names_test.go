package index

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/instantmirror/instantmirror/internal/digest"
)

func sum(text string) digest.Sum {
	h := digest.SHA256.New()
	h.Write([]byte(text))
	return digest.SumOf(digest.SHA256, h)
}

const root = "pub/os"

// records are a repomd.xml's, whose primary has a digest made of text.
func records(text string) (map[string]Record, string) {
	p := root + "/repodata/primary.xml.gz"
	return map[string]Record{
		p:                            {Named{10, sum(text), 0}, "primary"},
		root + "/repodata/comps.xml": {Named{-1, sum("comps"), 0}, "group"},
	}, p
}

// setPackages remembers n packages, whose digests are made of text.
func setPackages(t *testing.T, x *Index, text string, n int) {
	t.Helper()
	staged, err := x.Stage(root, sum(text), func(yield func(string, Named) error) error {
		for i := range n {
			if err := yield(fmt.Sprintf("%s/Packages/p%d.rpm", root, i), Named{int64(i), sum(text + fmt.Sprint(i)), 9}); err != nil {
				return err
			}
		}
		return yield("pub/pool/shared.rpm", Named{7, sum(text + "shared"), 9})
	})
	if err == nil {
		err = x.SetPackages(root, staged)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	x := reopen(t, dir)
	set := func(text string) {
		t.Helper()
		r, primary := records(text)
		if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
			t.Fatal(err)
		}
	}
	want := func(path string, named ...Named) {
		t.Helper()
		if got := x.Named(path); !slices.Equal(got, named) {
			t.Errorf("%s: %v, want %v", path, got, named)
		}
	}
	const last = 2*batch + 17
	pkg := fmt.Sprintf("%s/Packages/p%d.rpm", root, last-1)

	want(pkg)
	set("one")
	want(root+"/repodata/primary.xml.gz", Named{10, sum("one"), 0})
	want(root+"/repodata/comps.xml", Named{-1, sum("comps"), 0})
	want(pkg)
	setPackages(t, x, "one", last)
	check := func(text string) {
		t.Helper()
		want(pkg, Named{last - 1, sum(text + fmt.Sprint(last-1)), 9})
		want("pub/pool/shared.rpm", Named{7, sum(text + "shared"), 9})
		want(root + "/Packages/none.rpm")
		want("pub/pool/none.rpm")
		want("elsewhere/p1.rpm")
	}
	check("one")
	x.Close()
	x = reopen(t, dir)
	defer func() { x.Close() }()
	check("one")

	// The same primary again: the packages stay known. Another one: they are not, until it was read.
	set("one")
	check("one")
	set("two")
	want(pkg)
	want("pub/pool/shared.rpm")
	setPackages(t, x, "two", last)
	check("two")

	// What fails in the middle changes nothing.
	boom := errors.New("boom")
	_, err := x.Stage(root, sum("three"), func(yield func(string, Named) error) error {
		for i := range last {
			if err := yield(fmt.Sprintf("%s/Packages/p%d.rpm", root, i), Named{0, sum("wrong"), 0}); err != nil {
				return err
			}
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("Stage: %v", err)
	}
	check("two")
	setPackages(t, x, "two", last)
	check("two")
	if err := x.SetPackages("unknown", new(Staged)); err == nil {
		t.Error("packages of an unknown repository are remembered")
	}
}

func TestRecord(t *testing.T) {
	x := reopen(t, t.TempDir())
	defer x.Close()
	r, primary := records("one")
	if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
		t.Fatal(err)
	}
	if n, ok := x.Record(primary); !ok || n.Sum != sum("one") {
		t.Errorf("%s: %v, %v", primary, n, ok)
	}
	for _, p := range []string{root + "/repodata/none", root + "/primary.xml.gz", "repodata/primary.xml.gz", "x"} {
		if n, ok := x.Record(p); ok {
			t.Errorf("%s: %v", p, n)
		}
	}
	if err := x.SetRecords("", Pointer{}, map[string]Record{"repodata/primary.xml": {Named{1, sum("root"), 0}, "primary"}}, "repodata/primary.xml"); err != nil {
		t.Fatal(err)
	}
	if n, ok := x.Record("repodata/primary.xml"); !ok || n.Sum != sum("root") {
		t.Errorf("a repository at the root: %v, %v", n, ok)
	}
}

// TestRecordsBesidePackages: a repomd.xml that comes again while its packages are being learned loses none of them.
func TestRecordsBesidePackages(t *testing.T) {
	x := reopen(t, t.TempDir())
	defer x.Close()
	r, primary := records("one")
	if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				if err := x.SetRecords(root, Pointer{}, r, primary); err != nil {
					t.Error(err)
				}
			}
		}()
		setPackages(t, x, "one", 10)
		<-done
		if len(x.Named(root+"/Packages/p3.rpm")) == 0 {
			t.Fatal("the packages are lost")
		}
	}
}
