package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start serves ops and returns a client, and what ends the server and returns how that went.
func start(t *testing.T, ops map[string]Op) (c *Client, stop func() error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, ops, func(string, json.RawMessage, time.Duration, error) {}) }()
	if c, err = Dial(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return c, stop
}

func collect(into *[]string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		*into = append(*into, string(raw))
		return nil
	}
}

func TestCalls(t *testing.T) {
	c, _ := start(t, map[string]Op{
		"ask": {Do: func(_ context.Context, params json.RawMessage, emit func(any)) error {
			emit(params)
			return nil
		}},
		"do": {Changes: true, Do: func(_ context.Context, params json.RawMessage, emit func(any)) error {
			emit(params)
			emit(1)
			return errors.New("it failed")
		}},
		"wrong": {Changes: true, Do: func(context.Context, json.RawMessage, func(any)) error {
			return fmt.Errorf("wrapped: %w", &UsageError{errors.New("no such path")})
		}},
	})
	var got []string
	if err := c.Get(t.Context(), "ask", url.Values{"path": {"/a b+c"}}, collect(&got)); err != nil || len(got) != 1 || got[0] != `{"path":"/a b+c"}` {
		t.Errorf("ask: %v, %v", got, err)
	}
	got = nil
	if err := c.Post(t.Context(), "do", []string{"x"}, collect(&got)); err == nil || err.Error() != "it failed" || strings.Join(got, " ") != `["x"] 1` {
		t.Errorf("do: %v, %v", got, err)
	}
	err := c.Post(t.Context(), "wrong", nil, collect(&got))
	if _, ok := errors.AsType[*UsageError](err); !ok || err.Error() != "wrapped: no such path" {
		t.Errorf("wrong: %v", err)
	}
	if err := c.Post(t.Context(), "none", nil, collect(&got)); err == nil || !strings.Contains(err.Error(), "of another version") {
		t.Errorf("none: %v", err)
	}
	stop := errors.New("enough")
	if err := c.Post(t.Context(), "do", nil, func(json.RawMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a caller that has enough: %v", err)
	}
}

// TestRefused: what was not made to speak to this socket is not understood, and nobody can make it hold much.
func TestRefused(t *testing.T) {
	block, called := make(chan struct{}), make(chan struct{}, 100)
	c, _ := start(t, map[string]Op{
		"status": {Do: func(context.Context, json.RawMessage, func(any)) error { return nil }},
		"change": {Changes: true, Do: func(_ context.Context, _ json.RawMessage, _ func(any)) error {
			called <- struct{}{}
			<-block
			return nil
		}},
	})
	for _, test := range []struct {
		method, path, key, kind, body string
		want                          int
	}{
		{"GET", "/v1/status", "1", "", "", 200},
		{"GET", "/v1/status", "", "", "", 403},
		{"POST", "/v1/change", "", jsonType, "{}", 403},
		{"POST", "/v1/change", "2", jsonType, "{}", 403},
		{"GET", "/v1/change", "1", "", "", 405},
		{"POST", "/v1/status", "1", jsonType, "{}", 405},
		{"PUT", "/v1/change", "1", jsonType, "{}", 405},
		{"POST", "/v1/change", "1", "text/plain", "{}", 415},
		{"POST", "/v1/change", "1", jsonType, strings.Repeat(" ", maxParams+1), 400},
		{"POST", "/change", "1", jsonType, "{}", 404},
		{"POST", "/v1/", "1", jsonType, "{}", 404},
		{"POST", "/v1/../v1/change", "1", jsonType, "{}", 404},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader(test.body))
		req.Header = http.Header{}
		if test.key != "" {
			req.Header.Set(field, test.key)
		}
		if test.kind != "" {
			req.Header.Set("Content-Type", test.kind)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("%s %s %q %q: %d, want %d", test.method, test.path, test.key, test.kind, resp.StatusCode, test.want)
		}
	}
	if len(called) > 0 {
		t.Error("something refused was carried out")
	}

	results := make(chan error, maxCalls)
	for range maxCalls {
		go func() { results <- c.Post(t.Context(), "change", nil, nil) }()
	}
	for range maxCalls {
		<-called
	}
	if err := c.Get(t.Context(), "status", nil, nil); err == nil || !strings.Contains(err.Error(), "under way already") {
		t.Errorf("one call too many: %v", err)
	}
	close(block)
	for range maxCalls {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestClientGone: a call ends with the client that made it, even if that is silent.
func TestClientGone(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	c, _ := start(t, map[string]Op{"wait": {Changes: true, Do: func(ctx context.Context, _ json.RawMessage, emit func(any)) error {
		emit("begun")
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	go func() {
		<-begun
		cancel(why)
	}()
	err := c.Post(ctx, "wait", nil, func(json.RawMessage) error {
		close(begun)
		return nil
	})
	if !errors.Is(err, why) {
		t.Errorf("the client's error is %v", err)
	}
	<-ended // or the test hangs
}

// TestStop: the server's end is that of the calls, and the client is told. It waits for them.
func TestStop(t *testing.T) {
	begun := make(chan struct{})
	finished := false
	c, stop := start(t, map[string]Op{"wait": {Changes: true, Do: func(ctx context.Context, _ json.RawMessage, _ func(any)) error {
		close(begun)
		<-ctx.Done()
		finished = true
		return context.Cause(ctx)
	}}})
	result := make(chan error, 1)
	go func() { result <- c.Post(t.Context(), "wait", nil, nil) }()
	<-begun
	if err := stop(); err != nil || !finished {
		t.Errorf("stopped: %v, finished %v", err, finished)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("the client's error is %v", err)
	}
	if _, err := os.Lstat(c.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := Dial(t.Context(), c.socket); !errors.Is(err, ErrNobody) {
		t.Errorf("a call after the end: %v", err)
	}
}

// TestCut: an answer that breaks off is no success.
func TestCut(t *testing.T) {
	c, _ := start(t, map[string]Op{"die": {Changes: true, Do: func(_ context.Context, _ json.RawMessage, emit func(any)) error {
		emit("one")
		panic(http.ErrAbortHandler)
	}}})
	var got []string
	err := c.Post(t.Context(), "die", nil, collect(&got))
	if err == nil || !strings.Contains(err.Error(), "went away before it was done") || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	defer syscall.Umask(syscall.Umask(0))
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|mode {
		t.Errorf("it is %v, %v", info.Mode(), err)
	}
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "another instantmirror answers") {
		t.Errorf("a live one's: %v", err)
	}
	syscall.Umask(0o777)
	l.(*listener).UnixListener.Close() // as after SIGKILL: the name stays
	if _, err := Dial(t.Context(), socket); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody is behind it: %v", err)
	}
	next, err := Listen(socket)
	if err != nil {
		t.Fatal("a dead one's:", err)
	}
	if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|mode {
		t.Errorf("with another umask it is %v, %v", info.Mode(), err)
	}
	syscall.Umask(0o022)
	l.Close()
	if _, err := Dial(t.Context(), socket); err != nil {
		t.Error("the end of the former one took the name of the next:", err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}

	// What a crash between bind and rename left is no obstacle.
	os.WriteFile(socket+".new", nil, 0o600)
	if l, err = Listen(socket); err != nil {
		t.Fatal(err)
	}
	l.Close()

	for name, want := range map[string]string{
		filepath.Join(dir, "none", "admin.sock"):     "make the directory",
		filepath.Join(dir, strings.Repeat("s", 120)): "is too long",
		dir: "is no socket",
	} {
		if _, err := Listen(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.WriteFile(socket, []byte("mine"), 0o600)
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(socket); string(b) != "mine" {
		t.Errorf("the file is %q, %v", b, err)
	}

	// Two at the same time: one of them waits for nobody.
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	os.Remove(socket)
	syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
	if _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "try again") {
		t.Errorf("while another one opens it: %v", err)
	}
}

// TestLongName: the name of a socket may be longer than the system's names of sockets.
func TestLongName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "admin.sock")
	for range 2 { // the second one replaces it
		l, err := Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(t.Context(), socket)
		if err != nil || c == nil {
			t.Fatal(err)
		}
		l.(*listener).UnixListener.Close()
	}
	if _, err := Dial(t.Context(), filepath.Join(dir, "none/admin.sock")); !errors.Is(err, ErrNobody) {
		t.Errorf("where no directory is: %v", err)
	}
}

// TestOneAtATime: of many that find the same dead socket one gets it.
func TestOneAtATime(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	const many = 20
	got := make(chan net.Listener, many)
	for range many {
		go func() {
			l, err := Listen(socket)
			if err != nil {
				l = nil
			}
			got <- l
		}()
	}
	winners := 0
	for range many {
		if l := <-got; l != nil {
			winners++
			defer l.Close()
		}
	}
	if winners != 1 {
		t.Errorf("%d of them have it", winners)
	}
}

// FuzzAnswer: whatever comes, an answer is a success only with its last line.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"", "{\"item\":1}\n", "{\"item\":{}}\n{\"done\":true}\n", "{\"done\":true}", "{\"error\":\"x\"}\n", "{\"error\":\"x\",\"usage\":true}\n",
		"{\"done\":true,\"error\":\"x\"}\n", "null\n", "[]\n", "<html>\n", "{\"item\":1}\n{\"done\"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := answer(bytes.NewReader(b), func(json.RawMessage) error { return nil })
		if err == nil && !bytes.Contains(bytes.ToLower(b), []byte("true")) {
			t.Errorf("%q is a success", b)
		}
		if cut, ok := errors.AsType[*cutError](err); ok && cut.err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %v", b, err)
		}
	})
}
