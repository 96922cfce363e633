package mirrortest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsEnv = "INSTANTMIRROR_NETNS"

// isolate executes the test binary anew in a network namespace of its own, where
// that is allowed, and reports whether this process is in such a one. It does
// not fork: the thread that enters the namespace is the one that calls execve, and the
// process goes on with its id, files and limits (so signals, -test.timeout, coverage
// files and a fuzz worker's pipes need no care). A fuzz worker finds itself
// in its coordinator's namespace already.
func isolate() bool {
	if alone() {
		return raiseLo() == nil
	}
	if os.Getenv(netnsEnv) != "" {
		return false
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return false // not root, or a container that forbids it
	}
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), netnsEnv+"=inside"))
	// This thread is in the new namespace and the others are not: no way on from here.
	fmt.Fprintf(os.Stderr, "mirrortest: execute the test binary in its own network namespace: %v (set %s=off to go without)\n", err, netnsEnv)
	os.Exit(1)
	return false
}

// alone reports whether no interface but loopback is up. (A new namespace may hold
// tunnel devices; they are down.)
func alone() bool {
	ifs, err := net.Interfaces()
	if err != nil {
		return false
	}
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return false
		}
	}
	return true
}

// raiseLo sets lo up: in a new namespace it is down, and 127.0.0.1 unreachable.
func raiseLo() error {
	if lo, err := net.InterfaceByName("lo"); err == nil && lo.Flags&net.FlagUp != 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// unroutable is how many packets and connections of this network namespace found
// no route so far: in one that has only lo, those that were meant to leave.
func unroutable() int {
	total := 0
	// IPv4: a line of names, then a line of values.
	if b, err := os.ReadFile("/proc/self/net/snmp"); err == nil {
		var names []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != "Ip:" {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i, name := range names {
				if name == "OutNoRoutes" && i < len(f) {
					n, _ := strconv.Atoi(f[i])
					total += n
				}
			}
		}
	}
	if b, err := os.ReadFile("/proc/self/net/snmp6"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "Ip6OutNoRoutes" {
				n, _ := strconv.Atoi(f[1])
				total += n
			}
		}
	}
	return total
}
