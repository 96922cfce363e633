package mirrortest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// debian names the Debian package of each tool whose package is called otherwise.
var debian = map[string]string{
	"createrepo_c":  "createrepo-c",
	"mergerepo_c":   "createrepo-c",
	"modifyrepo_c":  "createrepo-c",
	"rpmbuild":      "rpm",
	"rpmkeys":       "rpm",
	"rpmsign":       "rpm",
	"zckdl":         "zchunk",
	"zck":           "zchunk",
	"unzck":         "zchunk",
	"nginx":         "nginx-light",
	"node":          "nodejs",
	"mkisofs":       "genisoimage",
	"isoinfo":       "genisoimage",
	"implantisomd5": "isomd5sum",
	"checkisomd5":   "isomd5sum",
	"xz":            "xz-utils",
	"gpg":           "gnupg",
	"ip":            "iproute2",
	"unshare":       "util-linux",
	"nsenter":       "util-linux",
	"makedeltarpm":  "deltarpm",
	"cc":            "gcc libc6-dev",
}

// Need skips t unless every tool is on the PATH, with a line that says how to get
// it; where CI=true it fails t instead: there `.ci/run` is to install it. The
// line is also appended to the file named by INSTANTMIRROR_SKIPPED, if that is set, for
// `make test` to print at the end. (Let it be a new name in each run: the go command
// then knows that a cached skip is no answer.)
func Need(t testing.TB, tool ...string) {
	t.Helper()
	var missing, packages []string
	for _, name := range tool {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		missing = append(missing, name)
		p := debian[name]
		if p == "" {
			p = name
		}
		packages = append(packages, p)
	}
	if len(missing) > 0 {
		skip(t, fmt.Sprintf("needs %s: apt-get install -y --no-install-recommends %s",
			strings.Join(missing, ", "), strings.Join(packages, " ")))
	}
}

// Fixtures is the path of elem below the directory of real data that
// INSTANTMIRROR_FIXTURES names. Without the variable, or where there is no such
// path, t is skipped as by [Need].
func Fixtures(t testing.TB, elem ...string) string {
	t.Helper()
	dir := os.Getenv("INSTANTMIRROR_FIXTURES")
	if dir == "" {
		skip(t, "needs real data: set INSTANTMIRROR_FIXTURES to the directory of fixtures")
	}
	name := filepath.Join(append([]string{dir}, elem...)...)
	if _, err := os.Stat(name); err != nil {
		skip(t, fmt.Sprintf("needs real data below INSTANTMIRROR_FIXTURES: %v", err))
	}
	return name
}

func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	if name := os.Getenv("INSTANTMIRROR_SKIPPED"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
		if err == nil {
			_, err = fmt.Fprintf(f, "%s: %s\n", t.Name(), why)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Errorf("note the skip in INSTANTMIRROR_SKIPPED: %v", err)
		}
	}
	t.Skip(why)
}
