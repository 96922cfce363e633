package store

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSymlinksThatLeadOut(t *testing.T) {
	outside := t.TempDir()
	for target, refused := range map[string]bool{
		outside:               true,
		"../../../elsewhere":  true,
		"/etc/passwd":         true,
		"/no/such/place":      true,
		"epel-10":             false, // leads nowhere, but inside
		"Everything":          false,
		"../pub/a/Everything": false,
	} {
		root := t.TempDir()
		os.MkdirAll(filepath.Join(root, "pub/a/Everything"), 0o755)
		link := filepath.Join(root, "pub/a/link")
		if err := os.Symlink(strings.ReplaceAll(target, "../pub/", "../../pub/"), link); err != nil {
			t.Fatal(err)
		}
		s, err := Open(root, 0)
		if err == nil {
			s.Close()
		}
		if (err != nil) != refused || err != nil && (!strings.Contains(err.Error(), link) || !strings.Contains(err.Error(), "remove it")) {
			t.Errorf("a link to %s: %v", target, err)
		}
	}
	// The root itself may be reached by a symlink.
	real, link := t.TempDir(), filepath.Join(t.TempDir(), "root")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	s, err := Open(link, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestMountsBelow(t *testing.T) {
	root := t.TempDir()
	at := filepath.Join(root, "pub", "with space")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", at, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	defer syscall.Unmount(at, syscall.MNT_DETACH)
	if _, err := Open(root, 0); err == nil || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "one file system") {
		t.Errorf("a mount below the root: %v", err)
	}
	s, err := Open(at, 0) // a mount as the root is right
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestFirstStart: a crash at the very first start, and a strict umask, leave a root that works.
func TestFirstStart(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	root := filepath.Join(t.TempDir(), "root")
	for range 2 {
		s, err := Open(root, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("the root is %v, %v", info.Mode(), err)
		}
		if b, err := os.ReadFile(filepath.Join(root, formatFile)); string(b) != format {
			t.Errorf("the format is %q, %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(root, formatFile), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(Private, filepath.Join(root, "priv")); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(root, 0); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("a link into what is private: %v", err)
		if s != nil {
			s.Close()
		}
	}
}
