package mirrortest

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// newNamespace gives a child a network namespace of its own where we may.
func newNamespace(cmd *exec.Cmd) {
	if isolated && os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
}

func TestIsolated(t *testing.T) {
	if !Isolated() {
		t.Skip("only the weaker guard is in force here: run as root, where unshare(CLONE_NEWNET) is allowed")
	}
	if !alone() {
		t.Error("another interface than lo is up")
	}
}
