package mirrortest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTool(t *testing.T) {
	t.Setenv("INSTANTMIRROR_SKIPPED", "")
	t.Setenv("CI", "")
	for _, dir := range []string{"INSTANTMIRROR_TOOLS", "XDG_CACHE_HOME"} {
		t.Setenv("INSTANTMIRROR_TOOLS", "")
		t.Setenv("XDG_CACHE_HOME", "")
		top := t.TempDir()
		t.Setenv(dir, top)
		if dir == "XDG_CACHE_HOME" {
			top = filepath.Join(top, "instantmirror-test")
		}
		want := filepath.Join(top, "zypper", "bin", "x")
		const missing = "skip: needs zypper: run internal/mirrortest/zypper.sh ("
		if got := verdict(func(t testing.TB) { Tool(t, "zypper", "bin", "x") }); !strings.HasPrefix(got, missing) || !strings.Contains(got, want) {
			t.Errorf("%s: %q", dir, got)
		}
		if err := os.MkdirAll(want, 0o755); err != nil {
			t.Fatal(err)
		}
		if got := Tool(t, "zypper", "bin", "x"); got != want {
			t.Errorf("%s: %s is not %s", dir, got, want)
		}
	}
	t.Setenv("CI", "true")
	if got := verdict(func(t testing.TB) { Tool(t, "none") }); !strings.HasPrefix(got, "fatal: needs none: ") {
		t.Errorf("in CI: %q", got)
	}
}
