package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/instantmirror/instantmirror/internal/admin"
)

// TestAdminSocket: who may write to it, and whose it is.
func TestAdminSocket(t *testing.T) {
	w := newAdminWorld(t, "")
	socket := filepath.Join(w.dir, "state/admin.sock")
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Fatalf("the socket is %v, %v", info.Mode(), err)
	}

	// Another daemon, of another root, never takes it.
	other := t.TempDir()
	profileFile(t, other, "one", profileText("one", w.up.URL+"/x", ""))
	configFile(t, other, "socket: "+socket+"\n")
	out, status := once(t, "serve", "--config", filepath.Join(other, "instantmirror.yaml"))
	if status != 1 || !strings.Contains(out, "another instantmirror answers on the admin socket "+socket) {
		t.Errorf("a second daemon: exit status %d: %s", status, out)
	}
	if !object[admin.Status](w, 0, "status").Running {
		t.Error("the first one does not answer any more")
	}

	// One that was removed leaves a daemon that holds the lock and cannot be reached.
	os.Remove(socket)
	w.want(1, "status", nil, "no daemon answers on "+socket, fmt.Sprintf("another instantmirror (pid %d)", w.daemon.Process.Pid))

	// SIGKILL leaves the socket behind. A command takes the lock, the next daemon the socket.
	w.daemon.stop()
	w.daemon = serve(t, w.dir)
	w.daemon.Process.Kill()
	<-w.daemon.done
	w.daemon.Wait()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatal("a killed daemon took its socket along:", err)
	}
	if object[admin.Status](w, 0, "status").Running {
		t.Error("a dead daemon answers")
	}
	w.daemon = serve(t, w.dir)
	if !object[admin.Status](w, 0, "status").Running {
		t.Error("the next daemon does not answer")
	}
	w.daemon.stop()
	if _, err := os.Lstat(socket); err == nil {
		t.Error("a daemon that was stopped left its socket behind")
	}

	// What is no socket is nobody's to replace.
	os.WriteFile(socket, []byte("mine"), 0o644)
	out, status = once(t, "serve", "--config", w.config)
	if b, _ := os.ReadFile(socket); status != 1 || !strings.Contains(out, "is no socket") || string(b) != "mine" {
		t.Errorf("exit status %d: %s", status, out)
	}
	os.Remove(socket)

	// Who may not write to it is told so.
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if os.Geteuid() != 0 {
		return // the rest needs another user
	}
	os.Chmod(socket, 0)
	cmd := program(t, "status", "--config", w.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	exe := filepath.Join(reachable(t, w.dir), "instantmirror")
	b, _ := os.ReadFile(cmd.Path)
	os.WriteFile(exe, b, 0o755)
	cmd.Path = exe
	if b, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(b, []byte("permission denied: be root, or in the group")) {
		t.Errorf("another user: %v: %s", err, b)
	}
}

// reachable opens dir, and what is above it in the temporary directory, to everybody.
func reachable(t *testing.T, dir string) string {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestDeepRoot: a socket whose name is longer than the system's is reached all the same.
func TestDeepRoot(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", ""))
	flags := []string{"--root", filepath.Join(dir, strings.Repeat("deep/", 25)+"mirror"), "--profile", filepath.Join(dir, "profiles.d/one.yaml")}
	d := &daemonProcess{t: t, dir: dir, done: make(chan struct{})}
	d.Cmd = program(t, append([]string{"serve", "--listen", "127.0.0.1:0"}, flags...)...)
	d.begin()
	out, status := once(t, append([]string{"status", "--json"}, flags...)...)
	var st admin.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || status != 0 || !st.Running || st.PID != d.Process.Pid {
		t.Errorf("exit status %d, %v: %s", status, err, out)
	}
}

// TestOtherOwner: what root wrote into another user's mirror, that user's daemon could not change any more.
func TestOtherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := newAdminWorld(t, "")
	w.daemon.stop()
	if err := os.Chown(filepath.Join(w.dir, "root/.instantmirror"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	w.want(1, "status", nil, "run the command as that user")
}
