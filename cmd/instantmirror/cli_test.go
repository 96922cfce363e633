package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", ""))
	config := configFile(t, dir, "")
	broken := filepath.Join(dir, "broken.yaml")
	os.WriteFile(broken, []byte("name: broken\npath: pub\nupstreams: [ftp://x]\nrefresh: 1h\n"), 0o644)
	for _, test := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"--help"}, 0, []string{"serve", "check", "version"}},
		{[]string{"version"}, 0, []string{"instantmirror "}},
		{[]string{}, 2, []string{"--help"}},
		{[]string{"srve"}, 2, []string{"srve"}},
		{[]string{"serve", "--prot", "1"}, 2, []string{"--prot"}},
		{[]string{"check", "--config", config}, 0, []string{"one", "/pub/one"}},
		{[]string{"check", broken}, 2, []string{"broken.yaml:2: ", "broken.yaml:3: ", "broken.yaml:4: "}},
		{[]string{"serve", "--profile", broken}, 2, []string{"broken.yaml:2: ", "broken.yaml:3: ", "broken.yaml:4: "}},
		{[]string{"check", "--config", dir + "/none.yaml"}, 2, []string{"none.yaml: cannot be read"}},
		{[]string{"check", "--profile", "fedroa"}, 2, []string{"fedroa", "fedora"}},
		{[]string{"check", "--profile", "fedora", "--profile", "centos", "--profile", "rpmfusion"}, 0, []string{"/pub/fedora/linux", "/pub/centos", "/pub/rpmfusion"}},
		{[]string{"serve", "--config", config, "--root", "/"}, 2, []string{"directory of its own"}},
		{[]string{"serve", "--config", config, "--root", dir + "/r", "--state", dir + "/r/x"}, 2, []string{"lies in the mirror"}},
		{[]string{"serve", "--config", config, "--listen", "8080"}, 2, []string{"--listen 8080", ":8080"}},
		{[]string{"serve", "--config", config, "--listen", "127.0.0.1:http-no-port"}, 1, []string{"listening", "name an address"}},
	} {
		out, status := once(t, test.args...)
		if status != test.status {
			t.Errorf("%v: exit status %d, want %d:\n%s", test.args, status, test.status, out)
		}
		for _, part := range test.want {
			if !strings.Contains(out, part) {
				t.Errorf("%v: %q is not in\n%s", test.args, part, out)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "r")); err == nil {
		t.Error("a wrong configuration made a root")
	}
}

func TestNothingEnabled(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", "profile: fedora\nenabled: false\n")
	out, status := once(t, "serve", "--config", configFile(t, dir, ""))
	if status != 2 || !strings.Contains(out, "no profile is enabled") || !strings.Contains(out, "enabled: true") {
		t.Errorf("exit status %d: %s", status, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "root")); err == nil {
		t.Error("it made a root")
	}
}

func TestOneDaemonPerRoot(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	out, status := once(t, "serve", "--config", filepath.Join(dir, "instantmirror.yaml"), "--state", t.TempDir())
	if status != 1 || !strings.Contains(out, fmt.Sprintf("another instantmirror (pid %d)", d.Process.Pid)) {
		t.Errorf("exit status %d: %s", status, out)
	}
}

// TestWelcome: without --config, one line is a mirror; it says where clients point, and which upstream fails.
func TestWelcome(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", "layout: [{tree: '{release}/{arch}', repo: {id: one}}]"))
	cmd := program(t, "serve", "--listen", "127.0.0.1:0", "--root", filepath.Join(dir, "mirror"), "--profile", filepath.Join(dir, "profiles.d/one.yaml"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for !strings.Contains(got.String(), "make demo") {
		if _, err := io.CopyN(&got, out, 1); err != nil {
			t.Fatalf("%v after\n%s", err, got.String())
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, part := range []string{"/pub/one/", "/-/repo/one.repo", "instantmirror status --root " + dir + "/mirror\n", "FAILS http://127.0.0.1:9/x: ", "connection refused", "No upstream can be reached"} {
		if !strings.Contains(got.String(), part) {
			t.Errorf("%q is not in\n%s", part, got.String())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "mirror/.instantmirror/state/index.db")); err != nil {
		t.Error(err)
	}
}

// logs waits until the daemon's log has text, n times.
func (d *daemonProcess) logs(text string, n int) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); strings.Count(d.logged(), text) < n; {
		if time.Now().After(deadline) {
			d.t.Fatalf("the log never has %q %d times:\n%s", text, n, d.logged())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestReload: SIGHUP puts the whole new table in force, or nothing of it.
func TestReload(t *testing.T) {
	up := mirrortest.NewUpstream(t)
	up.Put("x/a.rpm", []byte("a"))
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/x", ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	status := func(path string) int {
		t.Helper()
		s, _, _ := d.get(path)
		return s
	}
	if status("/pub/one/a.rpm") != 200 || status("/pub/two/a.rpm") != 404 {
		t.Fatal("before")
	}

	profileFile(t, dir, "two", profileText("two", up.URL+"/x", ""))
	configFile(t, dir, "allow: [127.0.0.1]\nlog: {level: debug}\n")
	d.Process.Signal(syscall.SIGHUP)
	d.logs("msg=reloaded", 1)
	if status("/pub/one/a.rpm") != 200 || status("/pub/two/a.rpm") != 200 {
		t.Error("the new profile is not in force")
	}

	profileFile(t, dir, "two", profileText("two", up.URL+"/x", "bogus: 1"))
	configFile(t, dir, "allow: [192.0.2.1]\n")
	d.Process.Signal(syscall.SIGHUP)
	d.logs("reload refused", 1)
	if !strings.Contains(d.logged(), "two.yaml:5: ") {
		t.Errorf("the log does not say where:\n%s", d.logged())
	}
	if status("/pub/one/a.rpm") != 200 || status("/pub/two/a.rpm") != 200 {
		t.Error("something of the refused configuration is in force")
	}

	// What can't be changed while it runs is refused too, with all else.
	os.Remove(filepath.Join(dir, "profiles.d/two.yaml"))
	config := configFile(t, dir, "allow: [192.0.2.1]\n")
	text, _ := os.ReadFile(config)
	os.WriteFile(config, bytes.Replace(text, []byte("/root\n"), []byte("/root2\n"), 1), 0o644)
	d.Process.Signal(syscall.SIGHUP)
	d.logs("reload refused", 2)
	if !strings.Contains(d.logged(), "root changed: that needs a restart") || status("/pub/two/a.rpm") != 200 {
		t.Errorf("a new root:\n%s", d.logged())
	}

	configFile(t, dir, "allow: [192.0.2.1]\n")
	d.Process.Signal(syscall.SIGHUP)
	d.logs("msg=reloaded", 2)
	if status("/pub/one/a.rpm") != 403 {
		t.Error("allow is not in force")
	}
	d.mu.Lock()
	log := d.log.String()
	d.log.Reset() // the refusals were errors, rightly
	d.mu.Unlock()
	if strings.Count(log, "level=ERROR") != 2 {
		t.Errorf("the log:\n%s", log)
	}
}

// TestRestart: the listening socket outlives the daemon; a transfer that is under way when the daemon is told to stop
// ends whole, and clients that come meanwhile are answered by the next daemon.
func TestRestart(t *testing.T) {
	up := mirrortest.NewUpstream(t)
	body := mirrortest.Bytes(1, 3<<20)
	up.Put("x/big.img", body)
	up.Put("x/a.rpm", []byte("a"))
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/x", ""))
	configFile(t, dir, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	begin := func() *daemonProcess {
		t.Helper()
		d := &daemonProcess{t: t, dir: dir, done: make(chan struct{})}
		inner := program(t, "serve", "--config", filepath.Join(dir, "instantmirror.yaml"))
		// LISTEN_PID is the daemon's own: the shell becomes it.
		d.Cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`}, inner.Args...)...)
		d.Env = append(inner.Env, "LISTEN_FDS=1")
		d.ExtraFiles = []*os.File{socket}
		d.begin()
		if d.url != "http://"+l.Addr().String() {
			t.Fatalf("it serves on %s, not on the socket it was passed", d.url)
		}
		return d
	}
	d := begin()
	gate := up.Hold("x/big.img", 1<<20)
	type result struct {
		body []byte
		err  error
	}
	transfer := make(chan result, 1)
	go func() {
		resp, err := http.Get(d.url + "/pub/one/big.img")
		if err != nil {
			transfer <- result{nil, err}
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		transfer <- result{b, err}
	}()
	if err := gate.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Process.Signal(syscall.SIGTERM)
	d.logs("msg=stopping", 1)

	answered := make(chan int, 1)
	go func() { // comes between the daemons
		resp, err := (&http.Client{Transport: &http.Transport{}}).Get(d.url + "/pub/one/a.rpm")
		if err != nil {
			t.Error("a client between the daemons:", err)
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	begun := time.Now()
	gate.Release()
	if r := <-transfer; r.err != nil || !bytes.Equal(r.body, body) {
		t.Errorf("the transfer under way: %d bytes, %v", len(r.body), r.err)
	}
	d.wait()
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	next := begin()
	if status := <-answered; status != 200 {
		t.Errorf("the client between the daemons got %d", status)
	}
	if _, got, cache := next.get("/pub/one/big.img"); got != string(body) || !strings.HasPrefix(cache, "instantmirror; hit") {
		t.Errorf("after the restart: %d bytes, %s", len(got), cache)
	}
}

// TestDrainEnds: a transfer that does not end in time is broken off, and is seen to be.
func TestDrainEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the 20 s of a drain")
	}
	up := mirrortest.NewUpstream(t)
	up.Put("x/big.img", mirrortest.Bytes(1, 3<<20))
	up.SetRate(50_000)
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/x", ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	resp, err := http.Get(d.url + "/pub/one/big.img")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begun := time.Now()
	d.Process.Signal(syscall.SIGTERM)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the cut transfer looks whole")
	}
	d.wait()
	if took := time.Since(begun); took < 15*time.Second || took > 25*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	if files := d.files(); len(files) != 0 {
		t.Errorf("stored: %v", files)
	}
}

// TestTLS: HTTPS with HTTP/2, and a renewed certificate after a reload.
func TestTLS(t *testing.T) {
	up := mirrortest.NewUpstream(t)
	up.Put("x/a.img", mirrortest.Bytes(1, 1<<20))
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/x", ""))
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := newCertificate(t, cert, key)
	configFile(t, dir, fmt.Sprintf("tls: {cert: %s, key: %s}\nlog: {format: text}\n", cert, key))
	d := serve(t, dir)
	ask := func(roots *x509.CertPool) (*http.Response, error) {
		c := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		}}
		return c.Get("https" + strings.TrimPrefix(d.url, "http") + "/pub/one/a.img")
	}
	for range 2 { // a miss, a hit
		resp, err := ask(roots)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.ProtoMajor != 2 || err != nil || !bytes.Equal(b, mirrortest.Bytes(1, 1<<20)) {
			t.Errorf("%s: %d bytes, %v", resp.Proto, len(b), err)
		}
	}
	renewed := newCertificate(t, cert, key)
	d.Process.Signal(syscall.SIGHUP)
	d.logs("msg=reloaded", 1)
	resp, err := ask(renewed)
	if err != nil {
		t.Fatal("after the reload:", err)
	}
	resp.Body.Close()
}

// newCertificate writes a certificate of 127.0.0.1 and its key, and returns the pool that trusts it.
func newCertificate(t *testing.T, cert, key string) *x509.CertPool {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "mirror"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(c)
	return pool
}

// TestJSONLog: each line is an object, the access log among them.
func TestJSONLog(t *testing.T) {
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", "http://127.0.0.1:9/x", ""))
	cmd := program(t, "serve", "--config", configFile(t, dir, "log: {format: json}\n"))
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(out)
	var line map[string]any
	if err := lines.Decode(&line); err != nil || line["msg"] != "serving" {
		t.Fatal(line, err)
	}
	resp, err := http.Get(fmt.Sprintf("http://%s/-/healthz", line["addr"]))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cmd.Process.Signal(syscall.SIGTERM)
	seen := map[string]map[string]any{}
	for {
		var line map[string]any
		if err := lines.Decode(&line); err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
		seen[fmt.Sprint(line["msg"])] = line
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if r := seen["request"]; r["path"] != "/-/healthz" || r["status"] != 200.0 || r["method"] != "GET" {
		t.Errorf("the access log's line is %v", r)
	}
	if seen["stopped"] == nil {
		t.Error("it does not say that it stopped")
	}
}

// TestSecondSignal: who cannot wait for the drain sends another signal.
func TestSecondSignal(t *testing.T) {
	up := mirrortest.NewUpstream(t)
	up.Put("x/big.img", mirrortest.Bytes(1, 3<<20))
	gate := up.Hold("**/big.img", 1000)
	defer gate.Release()
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL+"/x", ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/pub/one/big.img", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	begun := time.Now()
	d.Process.Signal(syscall.SIGTERM)
	d.logs("msg=stopping", 1)
	for ended := false; !ended; { // the very next one may still find the first one's handler
		d.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
			ended = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	d.Wait()
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
