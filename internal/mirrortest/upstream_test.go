package mirrortest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// got is what a client saw of one answer.
type got struct {
	status int
	header http.Header
	body   string
	err    error // of the request, or of reading the body
}

// client takes what comes: no redirects, no decoding, a new connection each time.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func get(t *testing.T, u *Upstream, path string, header ...string) got {
	t.Helper()
	return ask(t, client, http.MethodGet, u.URL+path, header...)
}

func ask(t *testing.T, c *http.Client, method, url string, header ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return got{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header, string(b), err}
}

func TestUpstreamServes(t *testing.T) {
	u := NewUpstream(t)
	const body = "0123456789"
	u.PutFile("os/a+b^1~2.rpm", File{Body: []byte(body), ModTime: Epoch, ETag: `"v1"`})
	u.PutFile("os/plain", File{Body: []byte(body), ETag: "-"})
	const name = "/os/a%2bb%5e1~2.rpm"
	const date = "Wed, 01 Jan 2025 00:00:00 GMT"
	for _, tt := range []struct {
		name, path string
		header     []string
		status     int
		body       string
		want       map[string]string
	}{
		{"whole", name, nil, 200, body, map[string]string{"Last-Modified": date, "Etag": `"v1"`, "Content-Length": "10", "Content-Type": "application/x-rpm", "Accept-Ranges": "bytes"}},
		{"bare plus", "/os/a+b^1~2.rpm", nil, 200, body, nil},
		{"range", name, []string{"Range", "bytes=2-4"}, 206, "234", map[string]string{"Content-Range": "bytes 2-4/10"}},
		{"open range", name, []string{"Range", "bytes=8-"}, 206, "89", nil},
		{"suffix", name, []string{"Range", "bytes=-3"}, 206, "789", nil},
		{"past the end", name, []string{"Range", "bytes=10-"}, 416, "", map[string]string{"Content-Range": "bytes */10"}},
		{"If-Range holds", name, []string{"Range", "bytes=8-", "If-Range", `"v1"`}, 206, "89", nil},
		{"If-Range fails", name, []string{"Range", "bytes=8-", "If-Range", `"v0"`}, 200, body, nil},
		{"same ETag", name, []string{"If-None-Match", `"v1"`}, 304, "", nil},
		{"other ETag", name, []string{"If-None-Match", `"v0"`}, 200, body, nil},
		{"same date", name, []string{"If-Modified-Since", date}, 304, "", nil},
		{"no validators", "/os/plain", nil, 200, body, map[string]string{"Last-Modified": "", "Etag": ""}},
		{"absent", "/os/b", nil, 404, "", nil},
		{"file as directory", "/os/plain/", nil, 404, "", nil},
		{"directory", "/os/", nil, 200, "", map[string]string{"Content-Type": "text/html"}},
		{"root", "/", nil, 200, "<a href=\"os/\">os/</a>\n", nil},
		{"directory without slash", "/os", nil, 301, "", map[string]string{"Location": "/os/"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := get(t, u, tt.path, tt.header...)
			if g.err != nil || g.status != tt.status || tt.body != "" && g.body != tt.body {
				t.Errorf("got %d %q %v, want %d %q", g.status, g.body, g.err, tt.status, tt.body)
			}
			for k, want := range tt.want {
				if v := g.header.Get(k); v != want {
					t.Errorf("%s: %q, want %q", k, v, want)
				}
			}
		})
	}
	if g := ask(t, client, http.MethodHead, u.URL+name); g.status != 200 || g.body != "" || g.header.Get("Content-Length") != "10" {
		t.Errorf("HEAD: %+v", g)
	}
	if g := ask(t, client, http.MethodPost, u.URL+name); g.status != 405 {
		t.Errorf("POST: %+v", g)
	}
	if g := get(t, u, name, "Range", "bytes=0-1,4-5"); g.status != 206 || !strings.HasPrefix(g.header.Get("Content-Type"), "multipart/byteranges") {
		t.Errorf("two ranges: %+v", g)
	}

	u.PlusIsSpace()
	if g := get(t, u, "/os/a+b^1~2.rpm"); g.status != 404 {
		t.Errorf("bare plus at an object store: %d", g.status)
	}
	if g := get(t, u, "/os/a%2Bb%5E1~2.rpm"); g.status != 200 {
		t.Errorf("encoded plus at an object store: %d", g.status)
	}

	u.Remove("os")
	if g := get(t, u, "/os/plain"); g.status != 404 {
		t.Errorf("after Remove: %d", g.status)
	}
}

func TestUpstreamChanges(t *testing.T) {
	u := NewUpstream(t)
	u.Put("f", []byte("one"))
	g1 := get(t, u, "/f")
	u.Put("/f", []byte("two"))
	g2 := get(t, u, "/f", "If-None-Match", g1.header.Get("Etag"))
	if g2.status != 200 || g2.body != "two" || g2.header.Get("Etag") == g1.header.Get("Etag") ||
		g2.header.Get("Last-Modified") == g1.header.Get("Last-Modified") {
		t.Errorf("a file of the same length must have other validators: %v, then %v", g1.header, g2.header)
	}
}

func TestUpstreamDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "d/e"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/x.xml"), []byte("<x/>"), 0o644); err != nil {
		t.Fatal(err)
	}
	u := NewUpstream(t)
	u.PutDir("pub", dir)
	u.Put("pub/d/y", []byte("y"))
	if g := get(t, u, "/pub/d/x.xml"); g.status != 200 || g.body != "<x/>" || g.header.Get("Content-Type") != "text/xml" {
		t.Errorf("%+v", g)
	}
	if g := get(t, u, "/pub/d/"); !strings.Contains(g.body, `"e/"`) || !strings.Contains(g.body, `"x.xml"`) || !strings.Contains(g.body, `"y"`) {
		t.Errorf("%+v", g)
	}
	for path, want := range map[string]int{"/": 200, "/pub": 301, "/pub/d": 301, "/pub/d/y": 200, "/pub/../../etc/passwd": 404, "/pub/d/none": 404} {
		if g := get(t, u, path); g.status != want {
			t.Errorf("%s: %d, want %d", path, g.status, want)
		}
	}
}

func TestFaults(t *testing.T) {
	const body = "0123456789"
	cut := func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }
	for _, tt := range []struct {
		name   string
		fault  Fault
		header []string
		status int
		body   string
		cut    bool // reading the body ends in an error
		want   map[string]string
	}{
		{name: "truncate", fault: Fault{Truncate: true, At: 4}, status: 200, body: "0123", cut: true, want: map[string]string{"Content-Length": "10"}},
		{name: "truncate at once", fault: Fault{Truncate: true}, status: 200, cut: true},
		{name: "truncate a range", fault: Fault{Truncate: true, At: 4}, header: []string{"Range", "bytes=4-"}, status: 206, body: "4567", cut: true},
		{name: "truncate chunked", fault: Fault{Truncate: true, At: 10, Chunked: true}, status: 200, body: body, cut: true, want: map[string]string{"Content-Length": ""}},
		{name: "truncate unframed", fault: Fault{Truncate: true, At: 4, Unframed: true}, status: 200, body: "0123"},
		{name: "chunked", fault: Fault{Chunked: true}, status: 200, body: body, want: map[string]string{"Content-Length": ""}},
		{name: "unframed", fault: Fault{Unframed: true}, status: 200, body: body, want: map[string]string{"Content-Length": "", "Connection": "close"}},
		{name: "wrong", fault: Fault{Wrong: true, At: 9}, status: 200, body: "012345678c", want: map[string]string{"Content-Length": "10"}},
		{name: "status", fault: Fault{Status: 503, Header: http.Header{"Retry-After": {"7"}}}, status: 503, want: map[string]string{"Retry-After": "7"}},
		{name: "header removed", fault: Fault{Header: http.Header{"Etag": nil}}, status: 200, body: body, want: map[string]string{"Etag": ""}},
		{name: "no range", fault: Fault{NoRange: true}, header: []string{"Range", "bytes=4-"}, status: 200, body: body, want: map[string]string{"Accept-Ranges": ""}},
		{name: "other range", fault: Fault{Range: "bytes=2-"}, header: []string{"Range", "bytes=4-", "If-Range", `"no"`}, status: 206, body: "23456789", want: map[string]string{"Content-Range": "bytes 2-9/10"}},
		{name: "redirect", fault: Fault{Redirect: "http://127.0.0.1:1/x/*"}, status: 302, want: map[string]string{"Location": "http://127.0.0.1:1/x/d/f%2B1"}},
		{name: "loop", fault: Loop, status: 302, want: map[string]string{"Location": "/d/f%2B1"}},
		{name: "slash", fault: Slash, status: 301, want: map[string]string{"Location": "/d/f%2B1/"}},
		{name: "portal", fault: CaptivePortal, status: 200, body: string(CaptivePortal.Body), want: map[string]string{"Content-Type": "text/html; charset=utf-8"}},
		{name: "slow", fault: Fault{Rate: 1000}, status: 200, body: body},
		{name: "delayed", fault: Fault{Delay: time.Millisecond}, status: 200, body: body},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := NewUpstream(t)
			u.Put("d/f+1", []byte(body))
			u.Fault("d/*", tt.fault.Once())
			g := get(t, u, "/d/f%2B1", tt.header...)
			if g.status != tt.status || (tt.body != "" || tt.cut) && g.body != tt.body || cut(g.err) != tt.cut {
				t.Errorf("got %d %q %v, want %d %q, cut %v", g.status, g.body, g.err, tt.status, tt.body, tt.cut)
			}
			for k, want := range tt.want {
				if v := g.header.Get(k); v != want {
					t.Errorf("%s: %q, want %q", k, v, want)
				}
			}
			if err := u.WaitIdle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := u.Requests(); len(r) != 1 || r[0].Status != tt.status || tt.body != "" && r[0].Sent != int64(len(tt.body)) || !r[0].Done || r[0].Cut != (tt.cut || tt.fault.Truncate) {
				t.Errorf("recorded:\n%s", u.Log())
			}
			if g := get(t, u, "/d/f%2B1"); g.status != 200 || g.body != body || g.err != nil {
				t.Errorf("afterwards: %+v", g)
			}
		})
	}

	t.Run("drop", func(t *testing.T) {
		u := NewUpstream(t)
		u.Put("f", []byte(body))
		u.Fault("**", Fault{Drop: true})
		if g := get(t, u, "/f"); !errors.Is(g.err, io.EOF) {
			t.Errorf("%+v", g)
		}
	})
	t.Run("gzip", func(t *testing.T) {
		u := NewUpstream(t)
		u.Put("f", []byte(body))
		u.Fault("f", Fault{Gzip: true})
		g := get(t, u, "/f", "Range", "bytes=1-", "Accept-Encoding", "identity")
		z, err := gzip.NewReader(strings.NewReader(g.body))
		if err != nil || g.status != 200 || g.header.Get("Content-Encoding") != "gzip" || g.header.Get("Content-Length") != fmt.Sprint(len(g.body)) {
			t.Fatalf("%+v %v", g, err)
		}
		if b, err := io.ReadAll(z); string(b) != body || err != nil {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("counts", func(t *testing.T) {
		u := NewUpstream(t)
		u.Put("a/b/f", []byte(body))
		end := u.Fault("**", Fault{Status: 500, When: func(r *http.Request) bool { return r.Header.Get("Range") != "" }})
		u.Fault("a/**/f", Fault{Status: 503, Skip: 1, Times: 2})
		u.Fault("*", Fault{Status: 403}) // does not match below a/
		var statuses []int
		for range 5 {
			statuses = append(statuses, get(t, u, "/a/b/f").status)
		}
		statuses = append(statuses, get(t, u, "/a/b/f", "Range", "bytes=0-").status)
		end()
		statuses = append(statuses, get(t, u, "/a/b/f", "Range", "bytes=0-").status)
		if got, want := fmt.Sprint(statuses), "[200 503 503 200 200 500 206]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if u.Count("**") != 7 || u.Count("/a/b/f") != 7 || u.Count("f") != 0 {
			t.Errorf("counts:\n%s", u.Log())
		}
		if n := u.BytesSent("a/**") - 3*int64(len("<html><h1>503 Service Unavailable</h1></html>\n")) + int64(len("Service Unavailable")-len("Internal Server Error")); n != 40 {
			t.Errorf("%d bytes of the file itself", n)
		}
		u.Reset()
		if len(u.Requests()) != 0 {
			t.Error("Reset kept requests")
		}
	})
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		glob, name string
		want       bool
	}{
		{"a", "a", true}, {"/a", "a", true}, {"a", "a/b", false}, {"a", "ab", false}, {"", "", true},
		{"*", "a", true}, {"*", "a/b", false}, {"*", "", true}, {"*.rpm", "x.rpm", true}, {"a/*/c", "a/b/c", true}, {"a/*", "a/b/c", false},
		{"**", "", true}, {"**", "a/b", true}, {"**/c", "c", true}, {"**/c", "a/b/c", true}, {"**/c", "a/bc", false},
		{"a/**/c", "a/c", true}, {"a/**/c", "a/x/y/c", true}, {"a/**", "a/b/c", true}, {"a/**", "a", false}, {"**/*.rpm", "a/b+c^1.rpm", true},
		{"a\xff*", "a\xffb", true},
	} {
		if got := match(tt.glob, tt.name); got != tt.want {
			t.Errorf("match(%q, %q) = %v", tt.glob, tt.name, got)
		}
	}
}

func TestGates(t *testing.T) {
	u := NewUpstream(t)
	u.Put("f", []byte("0123456789"))
	header, middle := u.Hold("f", -1), u.Hold("f", 4)
	answers := make(chan got, 2)
	for range 2 {
		go func() { answers <- get(t, u, "/f") }()
	}
	if err := u.WaitRequests(t.Context(), "f", 2); err != nil {
		t.Fatal(err)
	}
	if r := u.Requests()[0]; r.Status != 0 || r.Sent != 0 || r.Done {
		t.Errorf("before the header: %v", r)
	}
	header.Release()
	if err := u.WaitSent(t.Context(), "f", 8); err != nil {
		t.Fatal(err)
	}
	if err := middle.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.Put("f", []byte("abcdefghij")) // in the middle: the answers are of the old file
	if n := u.BytesSent("f"); n != 8 || u.MaxActive() != 2 || u.MaxConnections() != 2 {
		t.Errorf("%d bytes sent, %d active, %d connections", n, u.MaxActive(), u.MaxConnections())
	}
	middle.Release()
	middle.Release()
	for range 2 {
		if g := <-answers; g.body != "0123456789" || g.err != nil {
			t.Errorf("%+v", g)
		}
	}
	if g := get(t, u, "/f", "Range", "bytes=8-"); g.body != "ij" {
		t.Errorf("%+v", g)
	}

	// A client that reads to the gate has exactly the bytes before it, and its leaving ends the answer.
	u.Reset()
	u.Hold("f", 3)
	ctx, leave := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, u.URL+"/f", nil)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "abc" {
		t.Errorf("%q %v", b, err)
	}
	leave()
	if err := u.WaitIdle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := u.Requests()[0]; r.Sent != 3 || !r.Cut {
		t.Errorf("%v", r)
	}
	u.Heal()
	if g := get(t, u, "/f"); g.body != "abcdefghij" {
		t.Errorf("%+v", g)
	}

	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.WaitRequests(short, "other", 1); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "GET /f → 200, 3 B, cut") {
		t.Errorf("%v", err)
	}
}

// TestStall: with a fault that stalls, only the client's leaving or Stop ends it,
// framed or not.
func TestStall(t *testing.T) {
	for _, unframed := range []bool{false, true} {
		for _, stop := range []bool{false, true} {
			t.Run(fmt.Sprintf("unframed=%v stop=%v", unframed, stop), func(t *testing.T) {
				u := NewUpstream(t)
				u.Put("f", []byte("0123456789"))
				u.Fault("f", Fault{Stall: true, At: 5, Unframed: unframed})
				ctx, leave := context.WithCancel(t.Context())
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, u.URL+"/f", nil)
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b := make([]byte, 5)
				if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "01234" {
					t.Errorf("%q %v", b, err)
				}
				if stop {
					u.Stop()
				} else {
					leave()
				}
				if err := u.WaitIdle(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n, err := resp.Body.Read(b); n != 0 || err == nil {
					t.Errorf("then %d bytes, %v", n, err)
				}
				leave()
			})
		}
	}
}

func TestStopAndStart(t *testing.T) {
	u := NewUpstream(t)
	u.Put("f", []byte("x"))
	u.Fault("f", Fault{Chunked: true})
	g := u.Hold("f", 0)
	answer := make(chan got)
	go func() { answer <- get(t, u, "/f") }()
	if err := g.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.Stop()
	if a := <-answer; a.err == nil {
		t.Errorf("a transfer cut by Stop looks whole: %+v", a)
	}
	for range 3 {
		if a := get(t, u, "/f"); !errors.Is(a.err, syscall.ECONNREFUSED) {
			t.Errorf("while stopped: %+v", a)
		}
	}
	u.Stop()
	g.Release()
	for range 2 {
		if err := u.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if a := get(t, u, "/f"); a.body != "x" {
		t.Errorf("started again: %+v", a)
	}
}

func TestLine(t *testing.T) {
	u := NewUpstream(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
	u.Put("f", body)
	u.SetRate(2 << 20)
	start := time.Now()
	answers := make(chan got, 2)
	for range 2 {
		go func() { answers <- get(t, u, "/f") }()
	}
	for range 2 {
		if g := <-answers; g.body != string(body) || g.err != nil {
			t.Errorf("%d bytes, %v", len(g.body), g.err)
		}
	}
	// Two times an eighth of a second's worth, on one line.
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("512 KiB at 2 MiB/s took %v", d)
	}
	if n := u.BytesSent("f"); n != 2*int64(len(body)) {
		t.Errorf("%d bytes sent", n)
	}
}

func TestTLS(t *testing.T) {
	for _, tt := range []struct {
		how   TLS
		proto string
	}{{TLS{}, "HTTP/2.0"}, {TLS{HTTP1: true}, "HTTP/1.1"}, {TLS{ClientCert: true}, "HTTP/2.0"}} {
		u := NewTLSUpstream(t, tt.how)
		u.Put("f", []byte("0123456789"))
		ca, err := os.ReadFile(u.CA)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{RootCAs: x509.NewCertPool()}
		config.RootCAs.AppendCertsFromPEM(ca)
		tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		t.Cleanup(tr.CloseIdleConnections)
		c := &http.Client{Transport: tr}
		if tt.how.ClientCert {
			if g := ask(t, c, http.MethodGet, u.URL+"/f"); g.err == nil {
				t.Errorf("%+v: no certificate was wanted", tt.how)
			}
			pair, err := tls.LoadX509KeyPair(u.Cert, u.Key)
			if err != nil {
				t.Fatal(err)
			}
			config = config.Clone()
			config.Certificates = []tls.Certificate{pair}
			tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
			t.Cleanup(tr.CloseIdleConnections)
			c = &http.Client{Transport: tr}
		}
		if g := ask(t, c, http.MethodGet, u.URL+"/f"); g.body != "0123456789" || u.Requests()[0].Proto != tt.proto {
			t.Errorf("%+v: %+v\n%s", tt.how, g, u.Log())
		}
		u.Fault("f", Fault{Truncate: true, At: 3}.Once())
		if g := ask(t, c, http.MethodGet, u.URL+"/f"); g.body != "012" || g.err == nil {
			t.Errorf("%+v: truncated: %+v", tt.how, g)
		}
		u.Fault("f", Fault{Unframed: true}.Once()) // with HTTP/2 there is no such thing: no length, but an end
		if g := ask(t, c, http.MethodGet, u.URL+"/f"); g.body != "0123456789" || g.err != nil || g.header.Get("Content-Length") != "" {
			t.Errorf("%+v: without length: %+v", tt.how, g)
		}
	}
}
