package fsck

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/signature"
)

func TestUnder(t *testing.T) {
	root, files := small(t, mirrortest.Repo{})
	place(t, root, "pub/other", mirrortest.Repo{Packages: packages("dog"), Dir: "../os/Packages/d"})
	place(t, root, "pub/osx", mirrortest.Repo{Packages: packages("eel")})
	const dog = "pub/os/Packages/d/dog-1.0-1.noarch.rpm"
	flip(t, root, ant)
	flip(t, root, dog)
	flip(t, root, "pub/osx/Packages/e/eel-1.0-1.noarch.rpm")
	write(t, root, "pub/other/repodata/repomd.xml.bak", nil)
	must(t, os.Symlink("os", filepath.Join(root, "pub/latest")))
	must(t, os.Mkdir(filepath.Join(root, private), 0o700))
	all := []string{ant, dog, "pub/osx/Packages/e/eel-1.0-1.noarch.rpm"}
	for under, want := range map[string]struct {
		paths []string
		files int64
	}{
		"": {all, 18}, "/": {all, 18}, "pub": {all, 18}, "/pub/": {all, 18},
		"pub/os": {all[:2], 8}, "/pub/latest": {all[:2], 8}, "pub/latest/Packages/a": {all[:1], 1},
		"pub/other": {nil, 5}, dog: {all[1:2], 1}, bee: {nil, 1}, filepath.Dir(one(t, files, "primary.xml.gz")): {nil, 4},
	} {
		sum, found := check(t, root, Options{Under: under})
		var paths []string
		for _, f := range found {
			paths = append(paths, f.Path)
		}
		if !slices.Equal(paths, want.paths) || sum.Files != want.files || sum.Repositories != 3 {
			t.Errorf("under %q: found %v, %+v", under, paths, sum)
		}
	}
	for _, under := range []string{"pub/nothing", private, "..", "../" + filepath.Base(root) + "x", ant + "/x"} {
		_, err := Check(t.Context(), root, Options{Under: under}, func(Finding) { t.Error("a finding") })
		if err == nil || !strings.Contains(err.Error(), "judging ") {
			t.Errorf("under %q: %v", under, err)
		}
	}
	if _, err := Check(t.Context(), filepath.Join(root, "nothing"), Options{}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no root: %v", err)
	}
}

// TestUnreadableElsewhere: what cannot be read is found below Under only.
func TestUnreadableElsewhere(t *testing.T) {
	root, _ := small(t, mirrortest.Repo{})
	write(t, root, "pub/bad/repodata/repomd.xml", []byte("<html/>"))
	if _, found := check(t, root, Options{Under: "pub/os"}); len(found) > 0 {
		t.Errorf("found\n%s", list(found))
	}
	if sum, _ := check(t, root, Options{Under: "pub/bad"}); sum.Unreadable != 1 {
		t.Errorf("%+v", sum)
	}
}

func TestSignature(t *testing.T) {
	root, files := small(t, mirrortest.Repo{})
	const repomd, asc = "pub/os/repodata/repomd.xml", "pub/os/repodata/repomd.xml.asc"
	signer, stranger := mirrortest.NewSigner(t), mirrortest.NewSigner(t)
	keys := func(s *mirrortest.Signer) func(string) *signature.Keyring {
		k, err := signature.ParseKeys(s.Public())
		must(t, err)
		return func(path string) *signature.Keyring {
			if path != repomd {
				t.Errorf("asked for the keys of %s", path)
			}
			return k
		}
	}
	none := func(string) *signature.Keyring { return nil }
	body := files[repomd].Body
	bad := "bad signature " + asc + "\n"
	for name, test := range map[string]struct {
		asc     []byte
		keys    func(string) *signature.Keyring
		want    string
		vouched int64
	}{
		"none":         {nil, keys(signer), "", 6},
		"right":        {signer.Sign(body), keys(signer), "", 7},
		"no keys":      {signer.Sign(body), nil, "", 6},
		"no keys here": {signer.Sign(body), none, "", 6},
		"stranger":     {signer.Sign(body), keys(stranger), bad, 6},
		"other bytes":  {signer.Sign(append([]byte("x"), body...)), keys(signer), bad, 6},
		"cut":          {signer.Sign(body)[:100], keys(signer), bad, 6},
		"empty":        {[]byte{}, keys(signer), bad, 6},
		"huge":         {bytes.Repeat([]byte{'\n'}, 2<<20), keys(signer), bad, 6},
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(filepath.Join(root, asc))
			if test.asc != nil {
				write(t, root, asc, test.asc)
			}
			sum, found := check(t, root, Options{Keys: test.keys})
			if list(found) != test.want || sum.Vouched != test.vouched {
				t.Errorf("found %q, %+v", found, sum)
			}
		})
	}
}

// TestUnjudged: packages are told of whose primary is not there or wrong, and those that something else vouches for are not.
func TestUnjudged(t *testing.T) {
	root, files := small(t, mirrortest.Repo{})
	write(t, root, "pub/elsewhere/x.rpm", []byte("x")) // of no repository
	primary := ""
	for name := range files {
		if strings.Contains(name, "-primary.xml") {
			primary = name
		}
	}
	unjudged := func() (list []string) {
		check(t, root, Options{Unjudged: func(path, by string) {
			if list = append(list, path); by != primary {
				t.Errorf("%s: its primary is %s", path, by)
			}
		}})
		slices.Sort(list)
		return list
	}
	if got := unjudged(); len(got) > 0 {
		t.Errorf("with the primary: %v", got)
	}
	var all []string
	for name := range files {
		if strings.HasSuffix(name, ".rpm") {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	write(t, root, primary, []byte("damaged"))
	if got := unjudged(); !slices.Equal(got, all) || len(all) == 0 {
		t.Errorf("damaged: %v, want %v", got, all)
	}
	must(t, os.Remove(filepath.Join(root, primary)))
	if got := unjudged(); !slices.Equal(got, all) {
		t.Errorf("not there: %v, want %v", got, all)
	}
}

func TestCancel(t *testing.T) {
	root, _ := small(t, mirrortest.Repo{})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := Check(ctx, root, Options{}, nil); !errors.Is(err, why) {
		t.Errorf("cancelled before: %v", err)
	}
	// In the middle of a large file: its damage is not told of.
	must(t, os.Truncate(filepath.Join(root, ant), 3*progressStep))
	ctx, cancel = context.WithCancelCause(t.Context())
	sum, err := Check(ctx, root, Options{Under: ant, Progress: func(_ string, done, total int64) {
		if done < progressStep || done >= total || total != 3*progressStep {
			t.Errorf("%d of %d bytes", done, total)
		}
		cancel(why)
	}}, func(f Finding) { t.Errorf("found %v", f) })
	if !errors.Is(err, why) || sum.Files != 0 {
		t.Errorf("cancelled in a file: %+v, %v", sum, err)
	}
}

func TestLeftovers(t *testing.T) {
	root := t.TempDir()
	left := func(want ...string) {
		t.Helper()
		got, err := Leftovers(root)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("left %v, %v, want %v", got, err, want)
		}
	}
	left()
	write(t, root, private+"/format", nil)
	write(t, root, private+"/lock", nil)
	must(t, os.Mkdir(filepath.Join(root, private, "tmp"), 0o700))
	left()
	write(t, root, private+"/tmp/1", nil)
	write(t, root, private+"/gen/pub/bundle", nil)
	left(private+"/tmp/1", private+"/gen/pub", private+"/gen/pub/bundle")
	if _, err := Leftovers(filepath.Join(root, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no root: %v", err)
	}
}
