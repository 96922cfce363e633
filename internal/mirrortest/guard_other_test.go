//go:build !linux

package mirrortest

import "os/exec"

const netnsEnv = "INSTANTMIRROR_NETNS"

func newNamespace(*exec.Cmd) {}
