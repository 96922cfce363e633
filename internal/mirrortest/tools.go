package mirrortest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Tool is the path of elem below the directory of the tool called name, which the script
// internal/mirrortest/<name>.sh fetches for the tests: they cannot, having only loopback.
// It is a directory in that of INSTANTMIRROR_TOOLS, else in instantmirror-test in
// the user's cache directory. Without it t is skipped as by [Need].
func Tool(t testing.TB, name string, elem ...string) string {
	t.Helper()
	dir, err := os.Getenv("INSTANTMIRROR_TOOLS"), error(nil)
	if dir == "" {
		dir, err = os.UserCacheDir()
		dir = filepath.Join(dir, "instantmirror-test")
	}
	file := filepath.Join(append([]string{dir, name}, elem...)...)
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		skip(t, fmt.Sprintf("needs %s: run internal/mirrortest/%s.sh (%v)", name, name, err))
	}
	return file
}
