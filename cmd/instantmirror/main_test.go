package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// asProgram makes the test binary be the program: tests start it as users start instantmirror.
const asProgram = "INSTANTMIRROR_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		os.Exit(run(os.Args[1:], output{os.Stdout, os.Stderr}))
	}
	mirrortest.Main(m)
}

// program returns the command `instantmirror args...`.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...) // ended by its test, not with its context: how it stops is looked at
	// Under the race detector a program takes another second to end, unless it is told not to.
	cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=10 "+os.Getenv("GORACE"))
	return cmd
}

// once runs `instantmirror args...` to its end.
func once(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	b, err := program(t, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("DATA RACE")) {
		t.Errorf("%s", b)
	}
	if exit != nil {
		status = exit.ExitCode()
	}
	return string(b), status
}

// daemonProcess is a running `instantmirror serve`.
type daemonProcess struct {
	*exec.Cmd
	t    *testing.T
	url  string // http://127.0.0.1:port
	dir  string // of root, state and profiles
	done chan struct{}

	mu  sync.Mutex
	log strings.Builder
}

// root is the directory of the mirror.
func (d *daemonProcess) root() string { return filepath.Join(d.dir, "root") }

// profileFile writes a profile file for the daemons that use dir.
func profileFile(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, "profiles.d", name+".yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// configFile writes the operator's configuration into dir and returns its name.
func configFile(t *testing.T, dir, more string) string {
	t.Helper()
	file := filepath.Join(dir, "instantmirror.yaml")
	text := fmt.Sprintf("root: %s/root\nstate: %s/state\nlisten: 127.0.0.1:0\nprofiles: [%s/profiles.d]\n%s", dir, dir, dir, more)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// serve starts a daemon on what dir holds and waits until it serves. It is stopped with the test.
func serve(t *testing.T, dir string, args ...string) *daemonProcess {
	t.Helper()
	d := &daemonProcess{t: t, dir: dir, done: make(chan struct{})}
	d.Cmd = program(t, append([]string{"serve", "--config", filepath.Join(dir, "instantmirror.yaml")}, args...)...)
	d.begin()
	return d
}

// begin starts the command and waits until it serves.
func (d *daemonProcess) begin() {
	d.t.Helper()
	if !d.serves() {
		d.t.Fatalf("the daemon ended:\n%s", d.logged())
	}
}

// serves starts the command and waits until it serves, or has ended before.
func (d *daemonProcess) serves() bool {
	d.t.Helper()
	stderr, err := d.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	d.Stdout = io.Discard
	if err := d.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.stop)
	addr := make(chan string, 1)
	go func() {
		defer close(d.done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			d.mu.Lock()
			d.log.WriteString(lines.Text() + "\n")
			d.mu.Unlock()
			if _, rest, ok := strings.Cut(lines.Text(), "msg=serving addr="); ok {
				select {
				case addr <- strings.Fields(rest)[0]:
				default:
				}
			}
		}
	}()
	select {
	case a := <-addr:
		d.url = "http://" + a
	case <-d.done:
		return false
	case <-time.After(20 * time.Second):
		d.t.Fatalf("the daemon does not serve:\n%s", d.logged())
	}
	return true
}

func (d *daemonProcess) logged() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// complaints are the lines of the log that are not about what went well.
func (d *daemonProcess) complaints() string {
	var b strings.Builder
	for line := range strings.Lines(d.logged()) {
		if !strings.Contains(line, "level=INFO") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// stop ends the daemon as an operator does, and reports what it did wrong.
func (d *daemonProcess) stop() {
	if d.ProcessState != nil {
		return
	}
	d.Process.Signal(syscall.SIGTERM)
	d.wait()
}

func (d *daemonProcess) wait() {
	d.t.Helper()
	<-d.done
	if err := d.Wait(); err != nil {
		d.t.Errorf("the daemon ended with %v:\n%s", err, d.complaints())
	}
	for _, bad := range []string{"DATA RACE", "panic", "level=ERROR"} {
		if strings.Contains(d.logged(), bad) {
			d.t.Errorf("the daemon's log has %q:\n%s", bad, d.complaints())
		}
	}
}

// get asks the daemon for a path.
func (d *daemonProcess) get(path string) (status int, body, cache string) {
	d.t.Helper()
	resp, err := http.Get(d.url + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header.Get("Cache-Status")
}

// files lists the stored files, relative to the root.
func (d *daemonProcess) files() []string {
	d.t.Helper()
	var names []string
	err := filepath.WalkDir(d.root(), func(file string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == ".instantmirror" {
			return filepath.SkipDir
		}
		if !e.IsDir() {
			rel, _ := filepath.Rel(d.root(), file)
			names = append(names, rel)
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return names
}
