package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// daemon is the program that is shown, as a process of its own.
type daemon struct {
	cmd  *exec.Cmd
	log  string // file of what it prints
	done chan struct{}
	err  error  // of its end, once done is closed
	kept string // the end of log
}

func (m *daemon) start(binary string, args []string, log string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	m.cmd, m.log, m.done = exec.Command(binary, args...), log, make(chan struct{})
	m.cmd.Stdout, m.cmd.Stderr, m.cmd.Env = f, f, environment()
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we stop it in order
	if err := m.cmd.Start(); err != nil {
		return err
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.done)
	}()
	return nil
}

// ready waits until it answers.
func (m *daemon) ready(ctx context.Context, health string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("instantmirror does not answer"))
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, health, nil)
		if err != nil {
			return err
		}
		resp, err := direct.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		select {
		case <-m.done:
			return fmt.Errorf("instantmirror ended at once: %w", m.err)
		case <-ctx.Done():
			return fmt.Errorf("%w at %s: %w", context.Cause(ctx), health, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends it as systemd would, and says when that did not go well.
func (m *daemon) stop() error {
	if m.cmd == nil || m.cmd.Process == nil {
		return nil
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it fails where the process has ended: then done is closed
	select {
	case <-m.done:
		if m.err != nil {
			return fmt.Errorf("instantmirror's end: %w", m.err)
		}
		return nil
	case <-time.After(25 * time.Second): // it may drain for 20
		_ = m.cmd.Process.Kill()
		<-m.done
		return errors.New("instantmirror did not stop within 25 s")
	}
}

// tail is the end of what it printed, for people who see a step fail. The log is
// in the temporary directory, so it is read before that goes.
func (m *daemon) tail() string {
	if m.kept == "" {
		return ""
	}
	return "  The last that instantmirror printed:\n" + m.kept
}

// keep reads the end of the log.
func (m *daemon) keep() {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return // it was never started
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	lines = lines[max(0, len(lines)-15):]
	m.kept = "    " + strings.Join(lines, "\n    ") + "\n"
}

// direct asks without a proxy.
var direct = &http.Client{Transport: &http.Transport{Proxy: nil}}

// environment is ours without proxies, in English.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, v := range os.Environ() {
		key, _, _ := strings.Cut(strings.ToLower(v), "=")
		if !strings.HasSuffix(key, "_proxy") && key != "lc_all" {
			env = append(env, v)
		}
	}
	return env
}
