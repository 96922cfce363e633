// Package mirrortest is what the tests of every other room stand on: a guard
// against dialling out, a misbehaving upstream that is a real HTTP server, and a
// builder of small real RPM packages and repositories. It imports no room of
// ours, so that each room's tests may import it.
package mirrortest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Main is the body of every package's TestMain:
//
//	func TestMain(m *testing.M) { mirrortest.Main(m) }
//
// It runs the tests where nothing but loopback and unix sockets can be
// reached, and exits with their status, or with 1 and the reason when a test
// tried to reach something else. Two guards, one inside the other:
//
// The strong one needs Linux and root (or CAP_SYS_ADMIN): the test binary moves
// to a new network namespace that holds only lo and executes itself anew, with the
// same process id, arguments and open files. It binds every socket of the process
// and of its children (dnf, nginx, our own binary): all of them get "network is
// unreachable" at once, and the kernel counts them, so that an attempt whose
// error the test swallowed fails the run too (without saying which test it was).
//
// The other one works everywhere: look-ups through net.DefaultResolver, dials
// through http.DefaultTransport, [Dial], and dialers given to [Guard] are refused and
// recorded with address and running test. Where it is alone it cannot see a
// dialer of someone's own to a literal address, UDP without connect, nor children.
// [Isolated] says whether the strong one is there.
//
// To run under a debugger that does not follow exec, set INSTANTMIRROR_NETNS=off.
func Main(m *testing.M) {
	isolated = isolate()
	install()
	before := unroutable()
	code := m.Run()
	report := violations.list()
	if n := unroutable() - before; isolated && n > 0 && len(report) == 0 {
		report = append(report, fmt.Sprintf("%d packets or connections to addresses other than loopback "+
			"(seen by the kernel; they may come from a child process: find them with strace -f -e trace=connect,sendto)", n))
	}
	for _, line := range report {
		fmt.Fprintln(os.Stderr, "mirrortest: dial guard:", line)
	}
	if len(report) > 0 {
		fmt.Fprintln(os.Stderr, "mirrortest: dial guard: tests may reach only 127.0.0.0/8, ::1 and unix sockets: "+
			"use mirrortest.Upstream, or a name below .invalid for a host that does not exist\nFAIL")
		code = max(code, 1)
	}
	os.Exit(code)
}

var isolated bool

// Isolated reports whether this process has only the loopback interface, that is,
// whether the strong guard of [Main] is in force.
func Isolated() bool { return isolated }

// ErrDialOut is what a guarded dial to anything but loopback fails with.
var ErrDialOut = errors.New("mirrortest: tests must not reach anything but loopback")

// Guard makes d refuse (and record as a failure of the test run) every
// connection that leaves the machine, after name look-up. It returns d. A room
// that has a net.Dialer of its own installs it in its tests; an earlier Control or
// ControlContext of d is replaced.
func Guard(d *net.Dialer) *net.Dialer {
	d.Control = nil
	d.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
		if local(network, address) {
			return nil
		}
		violations.add("dial " + network + " " + address)
		return fmt.Errorf("%w: %s %s", ErrDialOut, network, address)
	}
	return d
}

// Dial is net.Dialer.DialContext under the guard.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return Guard(new(net.Dialer)).DialContext(ctx, network, addr)
}

// install puts the in-process guard in place, for good.
func install() {
	t := http.DefaultTransport.(*http.Transport)
	t.DialContext = Guard(&net.Dialer{Timeout: 5 * time.Second}).DialContext
	t.Proxy = nil
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return new(nowhere), nil
	}}
}

// local reports whether a resolved address stays on this machine. The
// unspecified address counts: connecting to it reaches ourselves.
func local(network, address string) bool {
	if strings.HasPrefix(network, "unix") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if h, _, ok := strings.Cut(host, "%"); ok {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// record is what was tried, with the tests that were running then.
type record struct {
	mu    sync.Mutex
	lines []string
}

var violations record

func (r *record) add(what string) {
	line := what + " (" + runningTests() + ")"
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.lines, line) {
		r.lines = append(r.lines, line)
	}
}

func (r *record) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

var testFrame = regexp.MustCompile(`(?m)^[^\s(]*\.((?:Test|Fuzz|Benchmark|Example)[^\s(.]*)`)

// runningTests names the tests that are on any goroutine's stack: a dial happens
// on a goroutine of net/http's, so its own stack does not know.
func runningTests() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var names []string
	for _, m := range testFrame.FindAllSubmatch(buf, -1) {
		if name := string(m[1]); name != "TestMain" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "no test running"
	}
	slices.Sort(names)
	return "during " + strings.Join(names, ", ")
}

// nowhere is the only DNS server that a test sees: it knows no name (NXDOMAIN), and
// a question for a name that could exist is recorded.
type nowhere struct{ answer []byte }

func (c *nowhere) Write(b []byte) (int, error) {
	q := b
	if len(q) > 2 { // not a net.PacketConn, so the resolver frames as on TCP (RFC 1035 4.2.2)
		q = q[2:]
	}
	const header = 12
	var labels []string
	end := header
	for end < len(q) && q[end] != 0 && end+1+int(q[end]) <= len(q) {
		labels = append(labels, string(q[end+1:end+1+int(q[end])]))
		end += 1 + int(q[end])
	}
	end += 5 // the root label, type and class
	if end > len(q) {
		return 0, io.ErrShortWrite
	}
	// RFC 6761: such names never exist, so asking for one is no attempt to leave. In
	// any place, because the resolver tries them below the search domains too.
	reserved := func(l string) bool { return l == "invalid" || l == "test" || l == "example" || l == "localhost" }
	if !slices.ContainsFunc(labels, reserved) {
		violations.add("look up " + strings.Join(labels, "."))
	}
	// QR RD | RA NXDOMAIN, one question, nothing else.
	a := append([]byte{byte(end >> 8), byte(end)}, q[:2]...)
	a = append(a, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0)
	c.answer = append(a, q[header:end]...)
	return len(b), nil
}

func (c *nowhere) Read(b []byte) (int, error) {
	if len(c.answer) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.answer)
	c.answer = c.answer[n:]
	return n, nil
}

func (c *nowhere) Close() error                     { return nil }
func (c *nowhere) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *nowhere) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *nowhere) SetDeadline(time.Time) error      { return nil }
func (c *nowhere) SetReadDeadline(time.Time) error  { return nil }
func (c *nowhere) SetWriteDeadline(time.Time) error { return nil }
