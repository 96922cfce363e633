package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv("DEMO_FAKE"); mode != "" && len(os.Args) > 1 && os.Args[1] == "serve" {
		fake(mode)
		return
	}
	mirrortest.Main(m)
}

// fake is what the tests of the demo itself show instead of the program: a mirror
// that does just what the demo looks at, and, by mode, one thing of it wrong.
func fake(mode string) {
	arg := func(name string) string {
		for i, a := range os.Args[:len(os.Args)-1] {
			if a == name {
				return os.Args[i+1]
			}
		}
		return ""
	}
	if mode == "dies" {
		fmt.Fprintln(os.Stderr, "fake: not today")
		os.Exit(2)
	}
	profile, _ := os.ReadFile(arg("--profile"))
	upstream := strings.TrimSuffix(string(regexp.MustCompile(`http://[^\]]+`).Find(profile)), "/"+prefix)
	root := arg("--root")
	refresh, _ := time.ParseDuration(string(regexp.MustCompile(`[0-9.]+m?s`).Find(profile)))
	var mu sync.Mutex
	checked := make(map[string]time.Time)
	etags := make(map[string]string)
	fetch := func(path string) (int, []byte, error) {
		req, _ := http.NewRequest(http.MethodGet, upstream+path, nil)
		if mode != "forgetful" {
			req.Header.Set("If-None-Match", etags[path])
		}
		resp, err := direct.Do(req)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		etags[path] = resp.Header.Get("ETag")
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, b, err
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		path := r.URL.Path
		if strings.HasPrefix(path, "/-/") {
			return
		}
		name := filepath.Join(root, path)
		stored, err := os.ReadFile(name)
		status := "instantmirror; hit"
		due := strings.HasSuffix(path, pointer) && time.Since(checked[path]) > refresh && mode != "frozen"
		switch {
		case err != nil || due || mode == "forgetful":
			code, b, ferr := fetch(path)
			switch {
			case ferr != nil && err == nil:
				status += "; ttl=-1; detail=stale"
				if mode == "boasts" {
					status = "instantmirror; hit"
				}
			case ferr != nil:
				if mode != "lies" {
					w.WriteHeader(http.StatusBadGateway)
				}
				fmt.Fprintln(w, ferr)
				return
			case code == http.StatusNotModified:
				checked[path] = time.Now()
			case code != http.StatusOK:
				w.WriteHeader(code)
				return
			default:
				if mode == "wrong" {
					b[len(b)-1]++
				}
				os.MkdirAll(filepath.Dir(name), 0o755)
				os.WriteFile(name, b, 0o644)
				if mode == "litters" {
					os.WriteFile(name+".json", nil, 0o644)
				}
				stored, status = b, "instantmirror; fwd=uri-miss; stored"
				checked[path] = time.Now()
			}
		}
		w.Header().Set("Cache-Status", status)
		w.Header().Set("Content-Length", fmt.Sprint(len(stored)))
		w.Write(stored)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: arg("--listen"), Handler: http.HandlerFunc(handler)}
	context.AfterFunc(ctx, func() { server.Close() })
	fmt.Println("fake:", server.ListenAndServe())
	if mode == "ends badly" {
		os.Exit(1)
	}
}

// TestSteps: the demo passes with a mirror that does it, and fails at the right step
// with each one that does not.
func TestSteps(t *testing.T) {
	mirrortest.Need(t, "curl")
	hurry(t)
	for _, tt := range []struct {
		mode, want string
		status     int
	}{
		{"good", "Every step showed", 0},
		{"dies", "instantmirror ended at once: exit status 2\n  The last that instantmirror printed:\n    fake: not today", 1},
		{"wrong", "not upstream's file", 1},
		{"forgetful", "greeter-1.0-1.fc43.noarch.rpm is still not stored", 1},
		{"frozen", "the new repomd.xml does not come through", 1},
		{"boasts", "is not marked stale", 1},
		{"lies", "status 200, where nobody could answer", 1},
		{"litters", ".json is not a file that upstream published", 1},
		{"ends badly", "instantmirror's end: exit status 1", 1},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			status := run(t.Context(), []string{"-binary", script(t, tt.mode), "-client", "curl"}, &out)
			if status != tt.status || !strings.Contains(out.String(), tt.want) {
				t.Errorf("status %d, want %d and %q in\n%s", status, tt.status, tt.want, out.String())
			}
			leftovers(t, out.String())
		})
	}
}

// TestStepsDNF is the same with dnf, where that works.
func TestStepsDNF(t *testing.T) {
	mirrortest.Need(t, "dnf", "rpm")
	if os.Geteuid() != 0 {
		t.Skip("dnf --installroot needs root")
	}
	for mode, want := range map[string]string{
		"good":      "Every step showed",
		"forgetful": "is still not stored",
		"frozen":    "the new repomd.xml does not come through",
	} {
		t.Run(mode, func(t *testing.T) {
			hurry(t)
			var out bytes.Buffer
			status := run(t.Context(), []string{"-binary", script(t, mode), "-client", "dnf"}, &out)
			if (status == 0) != (mode == "good") || !strings.Contains(out.String(), want) {
				t.Errorf("status %d, want %q in\n%s", status, want, out.String())
			}
			leftovers(t, out.String())
		})
	}
}

// TestDemo is `make demo`: the real program.
func TestDemo(t *testing.T) {
	top := filepath.Join("..", "..", "..")
	// What the program is made of, looked at by this process: so the go command knows
	// that a cached result is no answer once that changed.
	err := filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && (filepath.Ext(name) == ".go" || filepath.Ext(name) == ".yaml") {
			_, err = os.Stat(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "instantmirror")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "./cmd/instantmirror")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, client := range []string{"curl", "dnf"} {
		t.Run(client, func(t *testing.T) {
			mirrortest.Need(t, client)
			if client == "dnf" && os.Geteuid() != 0 {
				t.Skip("dnf --installroot needs root")
			}
			var out bytes.Buffer
			if status := run(t.Context(), []string{"-binary", bin, "-client", client}, &out); status != 0 {
				t.Errorf("status %d", status)
			}
			t.Log(out.String())
			leftovers(t, out.String())
		})
	}
}

func TestUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"Build it first: go build":      {"-binary", filepath.Join(t.TempDir(), "none")},
		"-client is dnf or curl, not x": {"-binary", os.Args[0], "-client", "x"},
		"flag provided but not defined": {"-x"},
	} {
		var out bytes.Buffer
		if status := run(t.Context(), args, &out); status != 2 || !strings.Contains(out.String(), want) {
			t.Errorf("status %d, want 2 and %q: %s", status, want, out.String())
		}
	}
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	if status := run(t.Context(), []string{"-binary", os.Args[0]}, &out); status != 2 || !strings.Contains(out.String(), "apt-get install -y curl") {
		t.Errorf("no client at all: status %d: %s", status, out.String())
	}
}

// TestInterrupted: Ctrl-C cleans up too.
func TestInterrupted(t *testing.T) {
	mirrortest.Need(t, "curl")
	hurry(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	w := writer(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("== Hit")) {
			cancel()
		}
		return out.Write(b)
	})
	status := run(ctx, []string{"-binary", script(t, "good"), "-client", "curl"}, w)
	if status != 1 || !strings.Contains(out.String(), "FAILED: context canceled") {
		t.Errorf("status %d\n%s", status, out.String())
	}
	leftovers(t, out.String())
}

// hurry makes waits short: the fake takes a refresh that the program would refuse.
func hurry(t *testing.T) {
	r, p := refresh, patience
	t.Cleanup(func() { refresh, patience = r, p })
	refresh, patience = 100*time.Millisecond, time.Second
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// script is a program that runs the fake in one mode.
func script(t *testing.T, mode string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fake")
	text := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 DEMO_FAKE='%s' exec '%s' \"$@\"\n", mode, os.Args[0])
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// leftovers looks for the temporary directory and the process of a run.
func leftovers(t *testing.T, out string) {
	t.Helper()
	m := regexp.MustCompile(`\$D is (\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("which was the directory?\n%s", out)
	}
	if _, err := os.Stat(m[1]); err == nil {
		t.Errorf("%s was left behind", m[1])
	}
	addr := regexp.MustCompile(`--listen (\S+)`).FindStringSubmatch(out)
	if c, err := net.Dial("tcp", addr[1]); err == nil {
		c.Close()
		t.Errorf("something still listens on %s", addr[1])
	}
}
