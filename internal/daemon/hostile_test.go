package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// hit is the path of a stored file of hitSize bytes.
const (
	hit     = "/pub/test/hit.rpm"
	hitSize = 100_000
)

// hostile is what a client sends, byte by byte, and what it must get.
type hostile struct {
	name  string
	send  string
	want  string // the statuses of all answers, then "closed" if the connection must end with the last
	asked string // the URIs that upstream sees
}

// get is a request for target with header lines.
func get(target string, header ...string) string {
	return request("GET", target, "HTTP/1.1", append([]string{"Host: mirror.example.org"}, header...)...)
}

func request(method, target, proto string, header ...string) string {
	return method + " " + target + " " + proto + "\r\n" + strings.Join(append(header, ""), "\r\n") + "\r\n"
}

// target makes the cases of one request with each target.
func targets(want string, list ...string) (cases []hostile) {
	for _, t := range list {
		cases = append(cases, hostile{fmt.Sprintf("GET %.50q", t), get(t), want, ""})
	}
	return cases
}

// headers makes the cases of a hit with each header line.
func headers(want string, lines ...string) (cases []hostile) {
	for _, l := range lines {
		cases = append(cases, hostile{fmt.Sprintf("%.60q", l), get(hit, l), want, ""})
	}
	return cases
}

func hostileCases() []hostile {
	long := strings.Repeat("a", 100_000)
	return slices.Concat(
		targets("400",
			"/pub/test/../canary", "/pub/test/../../canary", "/../canary", "/..", "/.", "/pub/test/.", "/pub/test/..", "/pub/..",
			"/pub/../pub/", "/pub/test/./hit.rpm", "/pub/test/x/../hit.rpm", "/pub/test/hit.rpm/..", "/pub/test/%2e/hit.rpm",
			"/pub/test/%2e%2e/canary", "/pub/test/%2E%2E/%2e%2E/canary", "/pub/test/.%2e/canary", "/pub/test/..%2fcanary",
			"/pub/test/..%2F..%2F..%2fcanary", "/pub/test/%2e%2e%2fcanary", "/pub/test/..%5ccanary", "/pub/test/..\\..\\canary",
			"/pub/test/%5c..%5c..%5ccanary", "/pub/test/;/../../canary", "/pub/test;/../canary", "/%2e%2e/%2e%2e/etc/passwd",
			"/pub%2f..%2f..%2fcanary", "//../canary", "/pub/test//..//canary",
			"/pub/test/%00", "/pub/test/hit.rpm%00.txt", "/pub/test/%0d%0aX:%20y", "/pub/test/%0a", "/pub/test/%7f", "/pub/test/%01/x",
			"/.instantmirror/lock", "/%2einstantmirror/lock", "//.instantmirror/lock", "/.instantmirror%2flock", "/.instantmirror",
			"/pub/test/"+long[:4096], "/pub/test/"+long[:256], "http://other.example", "http:pub/test/hit.rpm", "*", "other.example:80",
		),
		targets("400 closed", // by net/http
			"/pub/test/%", "/pub/test/%2", "/pub/test/%zz", "/pub/test/%u002e%u002e/canary", "pub/test/hit.rpm", "", "/pub/test/hit rpm",
			"/pub/test/a\x00b", "/pub/test/a\x7fb", "/pub/test/a\tb", "http://[::1/pub/test/hit.rpm", "http://a b/pub/test/hit.rpm",
		),
		targets("404", "/canary", "/pub/canary", "//evil.example/x", "//evil.example//hit.rpm", "/-/../canary", "/-/%2e%2e/%2e%2e/canary",
			"/-/repo/../../canary.repo", "/-/repo/%2e%2e%2fcanary.repo", "file:///etc/passwd", "/pub/test/hit.rpm/",
			"/pub/test%20/hit.rpm", "/PUB/test/hit.rpm", "/pub/testhit.rpm"),
		targets("431 closed", "/pub/test/"+long, "/"+strings.Repeat("../", 33_000)+"canary", "http://"+long+"/pub/test/hit.rpm"),
		targets("200", hit+"?x=/../../canary", "/pub/test//hit.rpm", "///pub//test///hit.rpm", "/pub/test%2fhit.rpm", "/%70ub/test/%68it.rpm",
			"http://other.example"+hit, "https://other.example:1"+hit, "http://user:secret@other.example"+hit, "http://test.example.org/hit.rpm",
			"/pub/", "/pub/test/"),
		targets("301", "/pub/test", "//pub//test"),
		[]hostile{
			// What is no way out is a name like any other, and goes upstream as one.
			{"%252e%252e", get("/pub/test/%252e%252e/canary"), "404", "/up/%252e%252e/canary"},
			{"..;", get("/pub/test/..;/canary"), "404", "/up/..%3B/canary"},
			{"three dots", get("/pub/test/.../canary"), "404", "/up/.../canary"},
			{"overlong UTF-8", get("/pub/test/%c0%ae%c0%ae/canary"), "404", "/up/%C0%AE%C0%AE/canary"},
			{"raw UTF-8", get("/pub/test/\uff0e\uff0e/canary"), "404", "/up/%EF%BC%8E%EF%BC%8E/canary"},
			{"encoded ? and #", get("/pub/test/canary%3fa%23b#c"), "404", "/up/canary%3Fa%23b%23c"},
			{"encoded slash", get("/pub/test/slash%2fone.rpm"), "200", "/up/slash/one.rpm"},
			{"double slashes", get("//pub///test//slash///two.rpm"), "200", "/up/slash/two.rpm"},
			{"absolute form", get("http://other.example/pub/test/three.rpm?token=secret"), "200", "/up/three.rpm"},
			{"everything a client could say", get("/pub/test/four.rpm?token=secret#x", "Cookie: secret", "Authorization: Basic secret",
				"X-Forwarded-For: secret", "Forwarded: for=secret", "Via: secret", "Referer: secret", "User-Agent: secret", "Range: bytes=0-0",
				"If-None-Match: \"secret\"", "Cache-Control: no-cache", "Accept-Encoding: gzip", "Proxy-Authorization: secret",
				"Connection: X-Secret, keep-alive", "X-Secret: secret", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /canary"), "206", "/up/four.rpm"},
			{"the host's own profile", request("GET", "/five.rpm", "HTTP/1.1", "Host: TEST.example.org:1"), "200", "/up/five.rpm"},
			{"the private directory on that host", request("GET", "/.instantmirror/lock", "HTTP/1.1", "Host: test.example.org"), "400", ""},
			{".. on that host", request("GET", "/%2e%2e/canary", "HTTP/1.1", "Host: test.example.org"), "400", ""},

			{"OPTIONS *", request("OPTIONS", "*", "HTTP/1.1", "Host: x"), "405", ""},
			{"OPTIONS * that never ends", request("OPTIONS", "*", "HTTP/1.1", "Host: x", "Content-Length: 100"), "405 closed", ""},
			{"CONNECT", request("CONNECT", "other.example:443", "HTTP/1.1", "Host: x"), "405", ""},
			{"CONNECT of a path", request("CONNECT", hit, "HTTP/1.1", "Host: x"), "405", ""},
			{"TRACE", request("TRACE", hit, "HTTP/1.1", "Host: x"), "405", ""},
			{"get", request("get", hit, "HTTP/1.1", "Host: x"), "405", ""},
			{"a long method", request(long[:30_000], hit, "HTTP/1.1", "Host: x"), "405", ""},
			{"no method", request("", hit, "HTTP/1.1", "Host: x"), "400 closed", ""},
			{"a method that is none", request("GE@T", hit, "HTTP/1.1", "Host: x"), "400 closed", ""},
			{"tabs", "GET\t" + hit + "\tHTTP/1.1\r\nHost: x\r\n\r\n", "400 closed", ""},

			{"HTTP/0.9", "GET " + hit + "\r\n\r\n", "400 closed", ""},
			{"HTTP/0.9 by name", request("GET", hit, "HTTP/0.9"), "505 closed", ""},
			{"HTTP/1.0", request("GET", hit, "HTTP/1.0"), "200 closed", ""},
			{"HTTP/1.0 with keep-alive", request("GET", hit, "HTTP/1.0", "Connection: keep-alive") + get(hit), "200 closed", ""},
			{"HTTP/1.2", request("GET", hit, "HTTP/1.2", "Host: x"), "200", ""},
			{"HTTP/1.10", request("GET", hit, "HTTP/1.10", "Host: x"), "400 closed", ""},
			{"HTTP/2.0", request("GET", hit, "HTTP/2.0", "Host: x"), "505 closed", ""},
			{"http/1.1", request("GET", hit, "http/1.1", "Host: x"), "400 closed", ""},
			{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "405 closed", ""},
			{"TLS", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\n\n", "400 closed", ""},
			{"noise", string(mirrortest.Bytes(3, 60_000)) + "\n\n", "400 closed", ""},
			{"zeros", strings.Repeat("\x00", 50_000), "431 closed", ""},
			{"empty lines first", "\r\n\r\n" + get(hit), "400 closed", ""},

			{"no Host", request("GET", hit, "HTTP/1.1"), "400 closed", ""},
			{"two Hosts", get(hit, "Host: other.example"), "400 closed", ""},
			{"an empty Host", request("GET", hit, "HTTP/1.1", "Host:"), "200", ""},
			{"a foreign Host", request("GET", hit, "HTTP/1.1", "Host: 169.254.169.254:80"), "200", ""},
			{"a path as Host", request("GET", hit, "HTTP/1.1", "Host: ../../canary"), "400 closed", ""},
			{"markup as Host", request("GET", "/-/", "HTTP/1.1", "Host: <script>"), "400 closed", ""},

			{"bare LF", strings.ReplaceAll(get(hit, "X: y"), "\r\n", "\n"), "200", ""},
			{"10,000 fields", get(hit, slices.Repeat([]string{"A: b"}, 10_000)...), "431 closed", ""},
			{"10,000 Ranges", get(hit, slices.Repeat([]string{"Range: bytes=0-0"}, 10_000)...), "431 closed", ""},

			{"Content-Length and Transfer-Encoding", get(hit, "Content-Length: 4", "Transfer-Encoding: chunked") + "0\r\n\r\n" + get("/pub/test/leak.rpm"), "200 closed", ""},
			{"the same the other way round", get(hit, "Transfer-Encoding: chunked", "Content-Length: 400") + "0\r\n\r\n" + get("/pub/test/leak.rpm"), "200 closed", ""},
			{"Transfer-Encoding of HTTP/1.0", request("GET", hit, "HTTP/1.0", "Connection: keep-alive", "Transfer-Encoding: chunked") + "0\r\n\r\n" + get("/pub/test/leak.rpm"), "200 closed", ""},
			{"two lengths", get(hit, "Content-Length: 1", "Content-Length: 2") + "ab", "400 closed", ""},
			{"one length twice", get(hit, "Content-Length: 0", "Content-Length: 0"), "200", ""},
			{"GET with a body", get(hit, "Content-Length: 5") + "hello", "200 closed", ""},
			{"GET with a body that is a request", get(hit, fmt.Sprintf("Content-Length: %d", len(get("/pub/test/leak.rpm")))) + get("/pub/test/leak.rpm"), "200 closed", ""},
			{"GET with a body that never comes", get(hit, "Content-Length: 5"), "200 closed", ""},
			{"GET with a body of 10 GB", get(hit, "Content-Length: 10000000000") + long, "200 closed", ""},
			{"GET in chunks", get(hit, "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n", "200 closed", ""},
			{"GET in chunks that never end", get(hit, "Transfer-Encoding: chunked") + "5\r\nhel", "200 closed", ""},
			{"GET in bad chunks", get(hit, "Transfer-Encoding: chunked") + "zz\r\nhello\r\n0\r\n\r\n" + get("/pub/test/leak.rpm"), "200 closed", ""},
			{"a miss with a body that never comes", get("/pub/test/six.rpm", "Content-Length: 5"), "200 closed", "/up/six.rpm"},
			{"POST", request("POST", hit, "HTTP/1.1", "Host: x", "Content-Length: 5") + "hello", "405 closed", ""},
			{"POST that never comes", request("POST", hit, "HTTP/1.1", "Host: x", "Content-Length: 5"), "405 closed", ""},
			{"PUT of 100 kB", request("PUT", "/pub/test/new.rpm", "HTTP/1.1", "Host: x", "Content-Length: 100000") + long, "405 closed", ""},
			{"POST that waits for 100", request("POST", hit, "HTTP/1.1", "Host: x", "Content-Length: 5", "Expect: 100-continue"), "405 closed", ""},
			{"GET that waits for 100 with a body", get(hit, "Content-Length: 5", "Expect: 100-continue"), "200 closed", ""},

			{"pipelining", strings.Repeat(get(hit, "Range: bytes=0-9"), 100), strings.TrimSpace(strings.Repeat("206 ", 100)), ""},
			{"pipelining of good and bad", get(hit) + get("/%2e%2e/canary") + get("/-/healthz") + get("/pub/test/%zz") + get("/pub/test/leak.rpm"), "200 400 200 400 closed", ""},
		},
		headers("200",
			"Expect: 100-continue", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
			"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
			"X: a\r\n  folded", "If-None-Match: "+strings.Repeat(`"a", `, 6_000)+`"b"`, "If-None-Match: "+long[:30_000], "If-Modified-Since: "+long[:9_000],
			"If-Range: "+long[:9_000]+"\r\nRange: bytes=0-0", "Range: bytes="+strings.Repeat("0-0,", 7_000)+"1-1", "Range: bytes="+strings.Repeat("0-,", 250)+"0-",
			"Range: bytes="+strings.Repeat("5-9,", 256)+"0-99998", "Range: bytes="+strings.Repeat(",", 30_000), "Range: bytes="+strings.Repeat("9", 30_000)+"-x",
			"Range: "+long[:30_000], "Range: bytes=9-1"),
		headers("206", "Range: bytes="+strings.Repeat("0-0,", 255)+"1-1", "Range: bytes=0-9,5-14,-1,-1", "Range: bytes=-"+strings.Repeat("9", 30_000),
			"Range: bytes=0-"+strings.Repeat("9", 30_000)),
		headers("416", "Range: bytes="+strings.Repeat("9", 30_000)+"-", "Range: bytes=-0", "Range: bytes=100000-"),
		headers("417 closed", "Expect: 200-ok"),
		headers("431 closed", "X: "+long[:64<<10], "Range: bytes="+strings.Repeat("0-0,", 10_000)+"1-1", "Cookie: "+long),
		headers("400 closed", "X : y", ": y", "X", "X: a\x00b", "X: a\rb", "X\x00: y", "X\x80: y", "(x): y",
			"Content-Length: -1", "Content-Length: +1", "Content-Length: 0x1", "Content-Length: 1, 1", "Content-Length: 1 1", "Content-Length: 99999999999999999999"),
		headers("501 closed", "Transfer-Encoding: gzip", "Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked",
			"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: \"chunked\""),
	)
}

// TestHostileRequests: whatever comes in by a raw socket gets the right status, nothing outside the tree is read or
// written, nothing but the path reaches upstream, and the next client is served.
func TestHostileRequests(t *testing.T) {
	up := mirrortest.NewUpstream(t)
	for _, name := range []string{"slash/one", "slash/two", "three", "four", "five", "six", "leak"} {
		up.Put("up/"+name+".rpm", []byte(name))
	}
	up.Put("canary", []byte(canary)) // beside what the profile names
	w := newWorld(t, up.URL)
	// Outward links that somebody made: not a way out either.
	for link, to := range map[string]string{"out.rpm": "../../../canary", "dir": "../../..", "abs.rpm": filepath.Join(filepath.Dir(w.root), "canary")} {
		if err := os.Symlink(to, filepath.Join(w.root, "pub/test", link)); err != nil {
			t.Fatal(err)
		}
	}
	addr := w.listen(t)
	before := w.files(t)
	cases := hostileCases()
	for _, link := range []string{"out.rpm", "dir/canary", "dir/", "abs.rpm"} {
		cases = append(cases, hostile{"link " + link, get("/pub/test/" + link), "500", ""})
	}
	open := map[net.Conn]string{} // must end, though the client waits
	for _, c := range cases {
		for _, size := range []int{len(c.send), 1} {
			if size == 1 && len(c.send) > 2000 {
				continue
			}
			up.Reset()
			var was, is runtime.MemStats
			runtime.ReadMemStats(&was)
			begun := time.Now()
			got, conn := exchange(t, addr, c.send, size)
			if got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
			open[conn] = c.name
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("%s: took %v", c.name, took)
			}
			if runtime.ReadMemStats(&is); is.TotalAlloc-was.TotalAlloc > 16<<20 {
				t.Errorf("%s: took %d bytes of memory", c.name, is.TotalAlloc-was.TotalAlloc)
			}
			var asked []string
			for _, r := range up.Requests() {
				asked = append(asked, r.URI)
				if said := fmt.Sprint(r.Host, r.Header); "http://"+r.Host != up.URL || strings.Contains(said, "secret") || len(r.Header) > 3 {
					t.Errorf("%s: upstream was told %s", c.name, said)
				}
			}
			// A name that is absent is asked for once; what was fetched is stored.
			if got := strings.Join(asked, " "); got != c.asked && (got != "" || size != 1) {
				t.Errorf("%s: upstream was asked for %q", c.name, got)
			}
		}
	}
	if got, _ := exchange(t, addr, get(hit), 1000); got != "200" {
		t.Errorf("the next client gets %s", got)
	}
	end := time.Now().Add(5 * time.Second)
	for conn, name := range open {
		conn.SetDeadline(end)
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection does not end", name)
		}
		conn.Close()
	}
	var stored []string
	for _, name := range []string{"five", "four", "six", "slash/one", "slash/two", "three"} {
		stored = append(stored, "root/pub/test/"+name+".rpm")
	}
	waitFor(t, "the flights to end", func() bool { return len(w.files(t)) >= len(before)+len(stored) })
	after := slices.DeleteFunc(w.files(t), func(name string) bool { return slices.Contains(before, name) })
	if !slices.Equal(after, stored) {
		t.Errorf("new files: %q", after)
	}
	if log := w.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the log:\n%s", log)
	}
}

// exchange sends text in pieces over a connection of its own, which it leaves open, and returns the statuses of the
// answers. Where the server leaves it open too, the next request on it must be answered as if nothing had been.
func exchange(t *testing.T, addr, text string, piece int) (statuses string, c net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { // the server need not read all of it
		for chunk := range slices.Chunk([]byte(text), piece) {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	}()
	probe := get("/-/healthz", "Connection: close")
	requests := max(1, strings.Count(text, " HTTP/1.1\r\nHost: mirror.example.org"))
	var got []string
	closed := false
	for answers := bufio.NewReader(c); !closed; {
		if len(got) == requests {
			io.WriteString(c, probe)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return strings.Join(append(got, err.Error()), " "), c
		}
		body, err := io.ReadAll(resp.Body)
		switch {
		case err != nil && (resp.ContentLength >= 0 || !errors.Is(err, syscall.ECONNRESET)): // net/http's own words may be cut
			return strings.Join(append(got, resp.Status, err.Error()), " "), c
		case strings.Contains(string(body), canary):
			t.Errorf("%.100q: bytes from outside came out", text)
		case len(body) > hitSize+256*200:
			t.Errorf("%.100q: an answer of %d bytes", text, len(body))
		case len(got) == requests:
			if string(body) != "ok\n" || !resp.Close {
				t.Errorf("%.100q: the next request gets %.100q", text, body)
			}
			return strings.Join(got, " "), c
		}
		got = append(got, fmt.Sprint(resp.StatusCode))
		closed = resp.Close
	}
	return strings.Join(append(got, "closed"), " "), c
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

var known = regexp.MustCompile(`^HTTP/1\.[01] (200|206|301|304|400|404|405|412|416|417|431|501|502|505) `)

// FuzzRawRequest: whatever a request's line and fields are, the answer is one that we know, and nothing outside the tree
// is read or written, here or upstream.
func FuzzRawRequest(f *testing.F) {
	for _, c := range hostileCases() {
		if line, rest, ok := strings.Cut(c.send, "\r\n"); ok && len(c.send) < 2000 {
			f.Add(line, rest)
		}
	}
	up := mirrortest.NewUpstream(f)
	up.Put("canary", []byte(canary))
	up.Put("up/a.rpm", []byte("a"))
	w := newWorld(f, up.URL)
	w.level.Set(slog.LevelError)
	w.srv.ReadHeaderTimeout, w.srv.IdleTimeout = 50*time.Millisecond, 50*time.Millisecond
	l := &oneConn{conns: make(chan net.Conn)}
	go w.serve(w.srv, l)
	f.Cleanup(func() {
		close(l.conns)
		w.srv.Close()
	})
	outside := func(t testing.TB) []string {
		return slices.DeleteFunc(w.files(t), func(name string) bool { return strings.HasPrefix(name, "root/pub/test/") })
	}
	before := outside(f)
	f.Fuzz(func(t *testing.T, line, fields string) {
		up.Reset()
		client, srv := net.Pipe()
		defer client.Close()
		l.conns <- srv
		go io.WriteString(client, line+"\r\nHost: x\r\nConnection: close\r\n"+fields+"\r\n\r\n")
		answer, _ := io.ReadAll(client)
		if len(answer) > 0 && !known.Match(answer) {
			t.Errorf("the answer is %.200q", answer)
		}
		if strings.Contains(string(answer), canary) {
			t.Errorf("bytes from outside: %.200q", answer)
		}
		for _, r := range up.Requests() {
			if !strings.HasPrefix(r.Path, "up/") || path.Clean(r.Path) != r.Path || len(r.Header) > 3 || "http://"+r.Host != up.URL {
				t.Errorf("upstream was asked for %q, with %v", r.URI, r.Header)
			}
		}
		if after := outside(t); !slices.Equal(before, after) {
			t.Errorf("the files are %q", after)
		}
		if w.log.String() != "" {
			t.Errorf("the log: %s", w.log)
		}
	})
}
