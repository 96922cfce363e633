package upstream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAnswers is the table of what an origin may answer and what becomes of it.
func TestAnswers(t *testing.T) {
	set := func(code int, kv ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/x-rpm")
			for i := 0; i < len(kv); i += 2 {
				w.Header().Set(kv[i], kv[i+1])
			}
			w.WriteHeader(code)
			if code >= 200 && code != 204 && code != 304 && r.Method != "HEAD" {
				io.WriteString(w, "0123456789"[:10])
			}
		}
	}
	mtime := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const lm = "Fri, 02 Jan 2026 03:04:05 GMT"
	cond := Request{LastModified: mtime, ETag: `"1"`, ETagOrigin: "http://a.example"}
	part := Request{Offset: 4, IfRange: `"1"`}

	tests := []struct {
		name   string
		req    Request
		answer http.HandlerFunc
		want   string // "", or part of the origin's error; "absent"
		status int
		offset int64
		size   int64
		health verdict
	}{
		{name: "whole", answer: set(200, "ETag", `"1"`, "Last-Modified", lm), status: 200, size: 10},
		{name: "head", req: Request{Method: "HEAD"}, answer: set(200, "Content-Length", "10"), status: 200, size: 10},
		{name: "head of unknown length", req: Request{Method: "HEAD"}, answer: set(200), status: 200, size: -1},
		{name: "unchanged", req: cond, answer: set(304), status: 304, size: -1},
		{name: "changed", req: cond, answer: set(200), status: 200, size: 10},
		{name: "304 unasked", answer: set(304), want: "304 Not Modified to a request that did not ask"},
		{name: "304 to another host's tag", req: Request{ETag: `"1"`, ETagOrigin: "http://b.example"}, answer: set(304), want: "304 Not Modified to a request that"},
		{name: "part", req: part, answer: set(206, "Content-Range", "bytes 4-13/14", "ETag", `"1"`), status: 206, offset: 4, size: 14},
		{name: "part of unknown size", req: part, answer: set(206, "Content-Range", "bytes 4-13/*"), status: 206, offset: 4, size: -1},
		{name: "whole instead of part", req: part, answer: set(200), status: 200, size: 10},
		{name: "206 unasked", answer: set(206, "Content-Range", "bytes 0-9/10"), want: "206 Partial Content to a request"},
		{name: "206 from elsewhere", req: part, answer: set(206, "Content-Range", "bytes 0-9/14"), want: "206 with Content-Range"},
		{name: "206 that stops early", req: part, answer: set(206, "Content-Range", "bytes 4-13/20"), want: "206 with Content-Range"},
		{name: "206 without range", req: part, answer: set(206), want: "206 with Content-Range"},
		{name: "206 multipart", req: part, answer: set(206, "Content-Type", "multipart/byteranges; boundary=x"), want: "206 with Content-Range"},
		{name: "206 of other length", req: part, answer: set(206, "Content-Range", "bytes 4-14/15", "Content-Length", "10"), want: "but Content-Length 10"},
		{name: "206 of another file", req: part, answer: set(206, "Content-Range", "bytes 4-13/14", "ETag", `"2"`), want: "the file has changed"},
		{name: "206 of another date", req: Request{Offset: 4, IfRange: lm}, answer: set(206, "Content-Range", "bytes 4-13/14", "Last-Modified", "Fri, 02 Jan 2026 03:04:06 GMT"), want: "the file has changed"},
		{name: "206 by date", req: Request{Offset: 4, IfRange: lm}, answer: set(206, "Content-Range", "bytes 4-13/14", "Last-Modified", lm), status: 206, offset: 4, size: 14},
		{name: "416", req: part, answer: set(416, "Content-Range", "bytes */4"), want: `"bytes */4"`},
		{name: "404", answer: set(404), want: "absent"},
		{name: "410", answer: set(410), want: "absent"},
		{name: "404 page", answer: set(404, "Content-Type", "text/html"), want: "absent"},
		{name: "401", answer: set(401), want: "set username and password_file"},
		{name: "403", answer: set(403), want: "403 Forbidden"},
		{name: "418", answer: set(418), want: "418 I'm a teapot"},
		{name: "204", answer: set(204), want: "204 No Content"},
		{name: "203", answer: set(203), want: "203 Non-Authoritative"},
		{name: "300", answer: set(300), want: "300 Multiple Choices"},
		{name: "429", answer: set(429), want: "429 Too Many Requests", health: refused},
		{name: "500", answer: set(500), want: "500 Internal Server Error", health: refused},
		{name: "503", answer: set(503), want: "503 Service Unavailable", health: refused},
		{name: "599", answer: set(599), want: "599", health: refused},
		{name: "page", answer: set(200, "Content-Type", "Text/HTML; charset=utf-8"), want: "page of HTML"},
		{name: "xhtml", answer: set(200, "Content-Type", "application/xhtml+xml"), want: "page of HTML"},
		{name: "page of a head", req: Request{Method: "HEAD"}, answer: set(200, "Content-Type", "text/html"), want: "page of HTML"},
		{name: "page that is right", req: Request{HTML: true}, answer: set(200, "Content-Type", "text/html"), status: 200, size: 10},
		{name: "gzip", answer: set(200, "Content-Encoding", "gzip"), want: "encoded"},
		{name: "br", answer: set(200, "Content-Encoding", "br"), want: "encoded"},
		{name: "identity", answer: set(200, "Content-Encoding", "Identity"), status: 200, size: 10},
		{name: "gzip of a gz", req: Request{Path: "x/primary.xml.gz"}, answer: set(200, "Content-Encoding", "gzip"), status: 200, size: 10},
		{name: "x-gzip of a tgz", req: Request{Path: "x.tgz"}, answer: set(200, "Content-Encoding", "x-gzip"), status: 200, size: 10},
		{name: "bzip2 of a gz", req: Request{Path: "x.gz"}, answer: set(200, "Content-Encoding", "x-bzip2"), want: "encoded"},
		{name: "gzip twice", req: Request{Path: "x.gz"}, answer: set(200, "Content-Encoding", "gzip, gzip"), want: "encoded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.serve("a.example:80", tt.answer)
				o := w.origin("http://a.example")
				req := tt.req
				if req.Method == "" {
					req.Method = "GET"
				}
				if req.Path == "" {
					req.Path = "Packages/x.rpm"
				}
				resp, err := Do(t.Context(), Order{Upstreams: []*Origin{o}}, req)
				if tt.want != "" {
					if err == nil {
						resp.Body.Close()
						t.Fatalf("status %d, want an error with %q", resp.Status, tt.want)
					}
					absent := tt.want == "absent"
					if errors.Is(err, fs.ErrNotExist) != absent || errors.Is(err, ErrUnavailable) == absent ||
						!absent && !strings.Contains(err.Error(), tt.want) {
						t.Errorf("error %v, want %s", err, tt.want)
					}
				} else {
					if err != nil {
						t.Fatal(err)
					}
					if resp.Status != tt.status || resp.Offset != tt.offset || resp.Size != tt.size ||
						resp.Origin != "http://a.example" || resp.Configured != o {
						t.Errorf("got %+v", resp)
					}
					if bodyless := req.Method == "HEAD" || tt.status == 304; (resp.Body == nil) != bodyless {
						t.Errorf("Body is %v", resp.Body)
					} else if !bodyless && get(t, resp, nil) != "0123456789" {
						t.Error("other bytes")
					}
				}
				h := o.Health()
				if tt.health == refused {
					if h.State != Untried || o.health.refusals != 1 {
						t.Errorf("health %+v, %d refusals", h, o.health.refusals)
					}
				} else if h.State != Up || h.Err != nil {
					t.Errorf("health %+v, want up", h)
				}
			})
		})
	}
}

// TestRawAnswers has what no proper server sends. Each is one origin's failure or a body's error, in time.
func TestRawAnswers(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-rpm\r\n"
	tests := []struct {
		name, bytes string
		want        string // of the answer's error
		body        error  // of the body
		framed      bool
	}{
		{name: "short", bytes: head + "Content-Length: 10\r\n\r\n0123", body: io.ErrUnexpectedEOF, framed: true},
		{name: "nothing of it", bytes: head + "Content-Length: 10\r\n\r\n", body: io.ErrUnexpectedEOF, framed: true},
		{name: "chunked, cut in a chunk", bytes: head + "Transfer-Encoding: chunked\r\n\r\n8\r\n0123", body: io.ErrUnexpectedEOF, framed: true},
		{name: "chunked, cut between chunks", bytes: head + "Transfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n", body: io.ErrUnexpectedEOF, framed: true},
		{name: "chunked, whole", bytes: head + "Transfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n0\r\n\r\n", framed: true},
		{name: "longer", bytes: head + "Content-Length: 4\r\n\r\n0123456789", framed: true},
		{name: "ends with the connection", bytes: head + "\r\n0123"},
		{name: "HTTP/1.0", bytes: "HTTP/1.0 200 OK\r\n\r\n0123"},
		{name: "no answer", bytes: "", want: "EOF"},
		{name: "cut header", bytes: "HTTP/1.1 200 OK\r\nContent-T", want: "malformed MIME header"},
		{name: "not HTTP", bytes: "SSH-2.0-OpenSSH_9.2\r\n\r\n", want: "malformed HTTP"},
		{name: "two lengths", bytes: head + "Content-Length: 4\r\nContent-Length: 5\r\n\r\n0123", want: "Content-Length"},
		{name: "endless header", bytes: head + "X: " + strings.Repeat("x", maxHeaderBytes+5000) + "\r\n\r\n", want: "headers exceeded"},
		{name: "header with escape sequences", bytes: "HTTP/1.1 200 OK\r\n\x1b[2J\x07\r\n\r\n", want: "malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.raw("a.example:80", tt.bytes, false)
				o := w.origin("http://a.example")
				resp, err := o.Do(t.Context(), file("x.rpm"))
				if tt.want != "" {
					if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
						t.Fatalf("error %v, want %s", err, tt.want)
					}
					if strings.ContainsAny(err.Error(), "\x1b\x07\n") || len(err.Error()) > 600 {
						t.Errorf("unfit for a log: %q", err)
					}
					if o.Health().State != Down {
						t.Errorf("health %+v, want down", o.Health())
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.Framed != tt.framed {
					t.Errorf("framed %v", resp.Framed)
				}
				b, err := io.ReadAll(resp.Body)
				if !errors.Is(err, tt.body) || (err == nil) != (tt.body == nil) || !strings.HasPrefix("0123", string(b)) {
					t.Errorf("body %q, %v; want %v", b, err, tt.body)
				}
				if err != nil && (!strings.Contains(err.Error(), "x.rpm") || !strings.Contains(err.Error(), "http://a.example")) {
					t.Errorf("%v does not name path and host", err)
				}
				if _, again := resp.Body.Read(make([]byte, 1)); err != nil && again != err || err == nil && again != io.EOF {
					t.Errorf("the error did not stay: %v, then %v", err, again)
				}
				if n := len(o.slots); n != 0 {
					t.Errorf("%d slots are taken behind the body's end", n)
				}
			})
		})
	}
}

// A part of which the server does not say the length must still be as long as its Content-Range.
func TestChunkedPart(t *testing.T) {
	for body, want := range map[string]error{"4567": io.ErrUnexpectedEOF, "456789": nil, "456789x": errors.New("more bytes")} {
		inWorld(t, func(t *testing.T, w *world) {
			w.raw("a.example:80", fmt.Sprintf("HTTP/1.1 206 Partial\r\nContent-Range: bytes 4-9/10\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body), false)
			resp, err := w.origin("http://a.example").Do(t.Context(), Request{Method: "GET", Path: "x", Offset: 4})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if (err == nil) != (want == nil) || err != nil && !strings.Contains(err.Error(), want.Error()) || len(b) > 6 {
				t.Errorf("%s: %q, %v", body, b, err)
			}
		})
	}
}

func TestETag(t *testing.T) {
	for s, want := range map[string]bool{
		`"a"`: true, `W/"a"`: true, `""`: true, `a`: false, `"`: false, `"a`: false, `"a"b"`: false, `w/"a"`: false,
		`"a b"`: false, "": false, `"` + strings.Repeat("x", 2000) + `"`: false,
	} {
		if got := etag(s); (got == s && s != "") != want {
			t.Errorf("etag(%q) = %q", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 4-9/*", "bytes */10", "bytes 5-4/10", "bytes 0-9/9", "items 0-1/2", "bytes -1-2/3", "bytes +1-2/3",
		"bytes 0-9223372036854775807/*", "bytes 0-9223372036854775808/*", "bytes 0-1/2/3", "bytes  0-1/2", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, size, ok := parseContentRange(s)
		if !ok {
			return
		}
		if start < 0 || end < start || size != -1 && size <= end {
			t.Fatalf("%q: %d-%d/%d", s, start, end, size)
		}
		total := fmt.Sprint(size)
		if size < 0 {
			total = "*"
		}
		// What is accepted is what it would be written as, leading zeros aside.
		again := fmt.Sprintf("bytes %d-%d/%s", start, end, total)
		if s2, e2, z2, ok := parseContentRange(again); !ok || s2 != start || e2 != end || z2 != size {
			t.Fatalf("%q, written anew as %q, reads %d-%d/%d", s, again, s2, e2, z2)
		}
	})
}

func TestContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 0-0/1": "0 0 1", "Bytes 4-9/*": "4 9 -1", "bytes 4-9/10": "4 9 10",
		"bytes */10": "", "bytes 5-4/10": "", "bytes 0-9/9": "", "items 0-1/2": "", "bytes -1-2/3": "", "bytes +1-2/3": "", "bytes 0-1": "",
		"bytes=0-1/2": "", "bytes 0-9223372036854775808/*": "", "bytes *-*/*": "", "": "",
	} {
		start, end, size, ok := parseContentRange(s)
		got := ""
		if ok {
			got = fmt.Sprint(start, end, size)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}
