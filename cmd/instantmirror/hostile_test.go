package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestSlowloris: clients that say nothing, never end their header, or never read their answer take neither the
// descriptors of a daemon that has few, nor its memory, nor the room of those who come next. (How long each may take is
// tested in the daemon's room, where the clock can be turned.)
func TestSlowloris(t *testing.T) {
	const files, limit = 400, 50 // open files; the connections that the daemon then allows for
	dir := t.TempDir()
	body := mirrortest.Bytes(1, 8<<20)
	stored := filepath.Join(dir, "root/pub/one/big.rpm")
	if err := os.MkdirAll(filepath.Dir(stored), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stored, body, 0o644); err != nil {
		t.Fatal(err)
	}
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", ""))
	inner := program(t, "serve", "--config", configFile(t, dir, ""))
	d := &daemonProcess{t: t, dir: dir, done: make(chan struct{})}
	d.Cmd = exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files)}, inner.Args...)...)
	d.Env = inner.Env
	d.begin()
	d.logs(fmt.Sprintf("connections=%d", limit), 1)
	before := d.memory()

	var clients []net.Conn
	hold := func(n int, text string) {
		t.Helper()
		for range n {
			c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
			io.WriteString(c, text)
		}
	}
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	next := func() { // a client that comes then, on a connection of its own
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.url+"/pub/one/big.rpm", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=-1000")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("the next client, behind %d: %v", len(clients), err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 206 || !bytes.Equal(b, body[len(body)-1000:]) {
			t.Fatalf("the next client, behind %d: %s, %d bytes, %v", len(clients), resp.Status, len(b), err)
		}
	}
	const request = "GET /pub/one/big.rpm HTTP/1.1\r\nHost: x\r\n"
	hold(20, request+"\r\n") // reads nothing
	for _, c := range clients {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if line, err := bufio.NewReaderSize(c, 16).ReadString(' '); err != nil || line != "HTTP/1.1 " {
			t.Fatalf("a client that will read no more: %q, %v", line, err)
		}
	}
	for range 20 {
		hold(5, "")
		hold(5, request+"X-Never: ")
		hold(5, "GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n") // then idle
		next()
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) > 2*limit+30 {
		t.Errorf("the daemon has %d descriptors", len(fds))
	}
	if grown := d.memory() - before; grown > 100<<10 {
		t.Errorf("the daemon has grown by %d kB", grown)
	}
	if n := strings.Count(d.logged(), "too many connections"); n != 1 {
		t.Errorf("the log tells it %d times:\n%s", n, d.complaints())
	}
}

// memory is what the daemon has in RAM, in kB.
func (d *daemonProcess) memory() (kB int) {
	d.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		d.t.Fatal(err)
	}
	return kB
}
