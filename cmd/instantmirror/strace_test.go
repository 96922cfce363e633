package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// fileCalls are the system calls by which a daemon changes what stands on the disk, as strace's -e trace. (A ? before
// a name: not every machine has it; ! strace may not know it yet.)
const fileCalls = "trace=openat,?open,?creat,write,pwrite64,ftruncate,?fallocate,?copy_file_range,fsync,fdatasync," +
	"/^rename,/^mkdir,/^link,/^unlink,/^rmdir,fchmod,?fchmodat,utimensat"

// needStrace skips t where processes can't be traced.
func needStrace(t *testing.T) {
	t.Helper()
	mirrortest.Need(t, "strace")
	if out, err := exec.CommandContext(t.Context(), "strace", "-D", "-f", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("processes can't be traced here (%v: %s): allow ptrace, in a container by --cap-add=SYS_PTRACE", err, out)
	}
}

// traced makes d run under strace, which writes to the file that is returned. The process of d is the daemon itself;
// d.done is closed when strace has ended, too.
func (d *daemonProcess) traced(options ...string) (log string) {
	log = filepath.Join(d.t.TempDir(), "strace")
	args := append([]string{"-D", "-f", "-qq", "-y", "-s0", "-e", "signal=none", "-o", log}, options...)
	cmd := exec.Command("strace", append(append(args, d.Path), d.Args[1:]...)...)
	cmd.Env = d.Env
	d.Cmd = cmd
	return log
}

// sysCall is one system call of a record.
type sysCall struct {
	name  string
	args  []string
	ret   int  // -1: failed
	ended bool // it returned before the process died

	// When it began and when it ended, in the order of all that happened.
	begin, end int
}

// fd is the path of the open file that argument i is.
func (c *sysCall) fd(i int) string {
	_, path, _ := strings.Cut(c.args[i], "<")
	return strings.TrimSuffix(strings.TrimSuffix(path, "(deleted)"), ">")
}

// at is the path that the arguments i, a directory, and i+1 are.
func (c *sysCall) at(i int) string {
	name, err := strconv.Unquote(c.args[i+1])
	if err != nil {
		return c.args[i+1]
	}
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.fd(i), name)
}

func (c *sysCall) String() string {
	return fmt.Sprintf("%d-%d %s(%s) = %d", c.begin, c.end, c.name, strings.Join(c.args, ", "), c.ret)
}

var (
	wholeCall   = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (.*)$`)
	begunCall   = regexp.MustCompile(`^(\d+) +(\w+)\((.*?),? ?<unfinished \.\.\.>$`)
	resumedCall = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (.*)$`)
)

// readTrace reads what strace wrote, in the order in which the calls began.
func readTrace(t *testing.T, log string) []*sysCall {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var calls []*sysCall
	open := map[string]*sysCall{} // by thread
	finish := func(c *sysCall, args, ret string, at int) {
		c.args = strings.Split(args, ", ")
		n, err := strconv.Atoi(strings.FieldsFunc(ret, func(r rune) bool { return r == ' ' || r == '<' })[0])
		c.ended, c.ret, c.end = err == nil, n, at // "?": the process died
		if !c.ended {
			c.ret = -1
		}
	}
	for i, line := range strings.Split(string(text), "\n") {
		if m := wholeCall.FindStringSubmatch(line); m != nil {
			c := &sysCall{name: m[2], begin: i}
			finish(c, m[3], m[4], i)
			calls = append(calls, c)
		} else if m := begunCall.FindStringSubmatch(line); m != nil {
			c := &sysCall{name: m[2], args: strings.Split(m[3], ", "), ret: -1, begin: i, end: 1 << 30}
			open[m[1]] = c
			calls = append(calls, c)
		} else if m := resumedCall.FindStringSubmatch(line); m != nil && open[m[1]] != nil {
			c := open[m[1]]
			delete(open, m[1])
			first := strings.Join(c.args, ", ")
			rest := strings.TrimPrefix(m[3], ", ")
			if first != "" && rest != "" {
				first += ", "
			}
			finish(c, first+rest, m[4], i)
		}
	}
	return calls
}

// succeeded reports whether the call took effect.
func (c *sysCall) succeeded() bool { return c.ended && c.ret >= 0 }

// insideCommit reports whether the process of a record died inside a commit: between the beginning of the fsync of a
// file in tmp and the end of the fsync of the directory that it was moved to.
func insideCommit(calls []*sysCall, root string) bool {
	tmp := filepath.Join(root, ".instantmirror", "tmp")
	open := map[string]bool{}        // files in tmp whose fsync began
	moved := map[string][]*sysCall{} // by directory: renames whose directory's fsync has not ended
	for _, c := range calls {
		switch {
		case c.name == "fsync" && filepath.Dir(c.fd(0)) == tmp:
			open[c.fd(0)] = true
		case c.name == "fsync":
			if c.succeeded() {
				moved[c.fd(0)] = slices.DeleteFunc(moved[c.fd(0)], func(r *sysCall) bool { return r.end < c.begin })
			}
		case strings.HasPrefix(c.name, "rename") && c.succeeded():
			delete(open, c.at(0))
			moved[filepath.Dir(c.at(2))] = append(moved[filepath.Dir(c.at(2))], c)
		case strings.HasPrefix(c.name, "unlink") && c.succeeded():
			delete(open, c.at(0))
		}
	}
	n := len(open)
	for _, list := range moved {
		n += len(list)
	}
	return n > 0
}
