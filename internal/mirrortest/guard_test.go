package mirrortest

import (
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// outside is an address that is nobody's (RFC 5737), should a guard fail.
const outside = "192.0.2.1:9"

// TestGuardChild is not a test: it is what the child processes of
// TestGuard do, chosen by GUARD_CHILD.
func TestGuardChild(t *testing.T) {
	switch what := os.Getenv("GUARD_CHILD"); what {
	case "":
		t.Skip("runs in a child of TestGuard")
	case "loopback":
		u := NewUpstream(t)
		u.Put("a", []byte("x"))
		for _, c := range []*http.Client{http.DefaultClient, {Transport: new(http.Transport)}} {
			resp, err := c.Get(u.URL + "/a")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := Dial(t.Context(), "unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	case "reserved":
		_, err := net.DefaultResolver.LookupHost(t.Context(), "dead.invalid")
		if dns, ok := errors.AsType[*net.DNSError](err); !ok || !dns.IsNotFound {
			t.Errorf("look-up of dead.invalid: %v, want not found", err)
		}
	case "default client":
		_, err := http.Get("http://" + outside)
		if !errors.Is(err, ErrDialOut) {
			t.Errorf("http.Get: %v", err)
		}
	case "look-up":
		if _, err := new(net.Dialer).DialContext(t.Context(), "tcp", "mirror.fedora-project.org:80"); err == nil {
			t.Error("reached the internet")
		}
	case "own dialer", "udp":
		network := map[string]string{"own dialer": "tcp", "udp": "udp"}[what]
		if c, err := new(net.Dialer).DialContext(t.Context(), network, outside); err == nil {
			c.Close()
			t.Error("reached the internet")
		}
	case "udp without connect":
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9}); err == nil {
			t.Error("sent to the internet")
		}
	case "a child of its own":
		if out, err := exec.CommandContext(t.Context(), "curl", "-sS", "-m5", "http://"+outside).CombinedOutput(); err == nil {
			t.Errorf("curl reached the internet: %s", out)
		}
	default:
		t.Fatal("what is", what)
	}
}

func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		name   string
		want   string // in the child's output; empty: the child passes
		strong bool   // only the network namespace catches it
	}{
		{name: "loopback"},
		{name: "reserved"},
		{name: "default client", want: "dial tcp4 192.0.2.1:9 (during TestGuardChild)"},
		{name: "look-up", want: "look up mirror.fedora-project.org (during TestGuardChild)"},
		{name: "own dialer", want: "addresses other than loopback", strong: true},
		{name: "udp", want: "addresses other than loopback", strong: true},
		{name: "udp without connect", want: "addresses other than loopback", strong: true},
		{name: "a child of its own", want: "addresses other than loopback", strong: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.strong && !Isolated() {
				t.Skip("needs a network namespace: run the tests as root")
			}
			if tt.name == "a child of its own" {
				Need(t, "curl")
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGuardChild$", "-test.v")
			cmd.Env = append(os.Environ(), "GUARD_CHILD="+tt.name)
			newNamespace(cmd) // its own counters, so that ours stay at zero
			out, err := cmd.CombinedOutput()
			exit, _ := errors.AsType[*exec.ExitError](err)
			switch {
			case !strings.Contains(string(out), "--- PASS: TestGuardChild"):
				t.Errorf("the child's own test did not pass: %v\n%s", err, out)
			case tt.want == "" && err != nil:
				t.Errorf("refused what is allowed: %v\n%s", err, out)
			case tt.want != "" && (exit == nil || exit.ExitCode() != 1 || !strings.Contains(string(out), tt.want)):
				t.Errorf("%v, output\n%s\nwant exit status 1 and %q", err, out, tt.want)
			}
		})
	}
}

func TestLocal(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "127.8.0.1:80": true, "[::1]:80": true, "0.0.0.0:80": true, ":80": true, "[::]:1": true,
		"192.0.2.1:80": false, "[fe80::1%lo]:80": false, "[2001:db8::1]:80": false, "localhost.example.org:80": false, "x": false,
	} {
		if got := local("tcp", address); got != want {
			t.Errorf("local(tcp, %s) = %v", address, got)
		}
	}
	if !local("unix", "/run/x") {
		t.Error("a unix socket is local")
	}
}

// TestGuardDialer is about dialers that a room makes itself: refused before a packet
// leaves, in every kind of guard.
func TestGuardDialer(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGuardDialerChild$", "-test.v")
	cmd.Env = append(os.Environ(), "GUARD_CHILD=1", netnsEnv+"=off")
	newNamespace(cmd)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- PASS") || !strings.Contains(string(out), "dial tcp4 "+outside+" (during TestGuardDialerChild)") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestGuardDialerChild(t *testing.T) {
	if os.Getenv("GUARD_CHILD") == "" {
		t.Skip("runs in a child of TestGuardDialer")
	}
	d := Guard(&net.Dialer{Timeout: time.Second})
	if _, err := d.DialContext(t.Context(), "tcp", outside); !errors.Is(err, ErrDialOut) {
		t.Errorf("%v", err)
	}
}

// fakeTB takes the verdict of a helper that ends a test.
type fakeTB struct {
	testing.TB
	verdict string
}

func (f *fakeTB) Helper()           {}
func (f *fakeTB) Name() string      { return "TestFake" }
func (f *fakeTB) Fatal(args ...any) { f.end("fatal", args...) }
func (f *fakeTB) Skip(args ...any)  { f.end("skip", args...) }
func (f *fakeTB) Errorf(format string, args ...any) {
	f.verdict += "error "
}
func (f *fakeTB) end(how string, args ...any) {
	f.verdict += how + ": " + args[0].(string)
	panic(f)
}

func verdict(f func(t testing.TB)) string {
	fake := &fakeTB{}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(fake) {
				panic(p)
			}
		}()
		f(fake)
	}()
	return fake.verdict
}

func TestNeed(t *testing.T) {
	list := filepath.Join(t.TempDir(), "skipped")
	t.Setenv("INSTANTMIRROR_SKIPPED", list)
	t.Setenv("CI", "")
	t.Setenv("PATH", t.TempDir()) // no tool at all
	const createrepo = "needs createrepo_c, dnf: apt-get install -y --no-install-recommends createrepo-c dnf"
	if got := verdict(func(t testing.TB) { Need(t, "createrepo_c", "dnf") }); got != "skip: "+createrepo {
		t.Errorf("got %q", got)
	}
	t.Setenv("INSTANTMIRROR_FIXTURES", "")
	if got := verdict(func(t testing.TB) { Fixtures(t, "x") }); !strings.HasPrefix(got, "skip: needs real data: set INSTANTMIRROR_FIXTURES") {
		t.Errorf("got %q", got)
	}
	b, err := os.ReadFile(list)
	if lines := strings.Split(string(b), "\n"); err != nil || len(lines) != 3 || lines[0] != "TestFake: "+createrepo {
		t.Errorf("skips noted: %q, %v", b, err)
	}

	t.Setenv("CI", "true")
	if got := verdict(func(t testing.TB) { Need(t, "dnf") }); !strings.HasPrefix(got, "fatal: needs dnf: ") {
		t.Errorf("in CI: %q", got)
	}
	if got := verdict(func(t testing.TB) { Fixtures(t, "x") }); !strings.HasPrefix(got, "fatal: ") {
		t.Errorf("in CI: %q", got)
	}
	dir := t.TempDir()
	t.Setenv("INSTANTMIRROR_FIXTURES", dir)
	if got := verdict(func(t testing.TB) { Fixtures(t, "x") }); !strings.HasPrefix(got, "fatal: needs real data below") {
		t.Errorf("in CI: %q", got)
	}
	if got := verdict(func(t testing.TB) {
		Need(t)
		if Fixtures(t) != dir {
			t.Errorf("wrong directory")
		}
	}); got != "" {
		t.Errorf("nothing is missing: %q", got)
	}
}
