package upstream

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<html>")
}

func TestPaths(t *testing.T) {
	tests := []struct{ base, path, want string }{
		{"http://a.example", "x.rpm", "/x.rpm"},
		{"http://a.example/", "x.rpm", "/x.rpm"},
		{"http://a.example/pub/fedora//", "x.rpm", "/pub/fedora/x.rpm"},
		{"http://a.example/pub", "Packages/g/gtk+extra-c++-3.2~rc1^20250101-1.rpm", "/pub/Packages/g/gtk%2Bextra-c%2B%2B-3.2~rc1%5E20250101-1.rpm"},
		{"http://a.example", "a b/c%2Fd?e#f;g=h&i:j@k", "/a%20b/c%252Fd%3Fe%23f%3Bg%3Dh%26i%3Aj%40k"},
		{"http://a.example", "naïve/\xff", "/na%C3%AFve/%FF"},
		{"http://a.example", `"'<>\^{|}` + "`\n\x00", "/%22%27%3C%3E%5C%5E%7B%7C%7D%60%0A%00"},
		{"http://a.example/ü x", "y", "/%C3%BC%20x/y"},
		{"http://a.example/c++/a%2fb/%C3%BC%20x", "y", "/c%2B%2B/a%2fb/%C3%BC%20x/y"},
		{"HTTP://A.Example:80/Pub", "Y", "/Pub/Y"},
	}
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", text("x"))
		for _, tt := range tests {
			resp, err := w.origin(tt.base).Do(t.Context(), file(tt.path))
			get(t, resp, err)
			if got := w.took()[0]; !strings.HasSuffix(got, tt.want) || strings.Count(got, "/") != strings.Count(tt.want, "/") {
				t.Errorf("%s and %q: %s, want %s", tt.base, tt.path, got, tt.want)
			}
			if resp.Origin != "http://a.example" {
				t.Errorf("Origin is %s", resp.Origin)
			}
		}
	})
}

// Whatever the path, it arrives as itself: it neither leaves the prefix nor becomes another.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"x", "a+b", "a%2Bb", "~^", "a b", "?q", "#f", "é", "\xff\x00", "a/b", "..", "a/../b", "a//b", "%2e%2e", `\..\`, ":", "//h"} {
		f.Add(s)
	}
	base, err := parseBase("https://h.example/c++/p%20q")
	if err != nil {
		f.Fatal(err)
	}
	o := &Origin{base: base}
	f.Fuzz(func(t *testing.T, p string) {
		if !validPath(p) {
			return
		}
		s := o.url(p).String()
		u, err := url.Parse(s)
		if err != nil || u.Path != "/c++/p q/"+p || u.Host != "h.example" || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q became %s: %v", p, s, err)
		}
		if again := u.String(); again != s {
			t.Fatalf("%s became %s", s, again)
		}
		if strings.ContainsAny(s, "+ ") || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q is not escaped enough: %s", p, s)
		}
	})
}

// TestHeaders: a request holds what is listed here and nothing else.
func TestHeaders(t *testing.T) {
	plain := http.Header{"User-Agent": {"instantmirror/test (+https://example.org)"}, "Accept": {"*/*"}, "Accept-Encoding": {"identity"}}
	plus := func(kv ...string) http.Header {
		h := plain.Clone()
		for i := 0; i < len(kv); i += 2 {
			h[kv[i]] = []string{kv[i+1]}
		}
		return h
	}
	mtime := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	const date = "Fri, 02 Jan 2026 02:04:05 GMT"
	tests := []struct {
		name string
		req  Request
		want http.Header
	}{
		{"plain", Request{}, plain},
		{"HTML", Request{HTML: true}, plain},
		{"since", Request{LastModified: mtime}, plus("If-Modified-Since", date)},
		{"tag of its own", Request{ETag: `W/"1"`, ETagOrigin: "http://a.example"}, plus("If-None-Match", `W/"1"`)},
		{"tag of another", Request{ETag: `"1"`, ETagOrigin: "https://a.example", LastModified: mtime}, plus("If-Modified-Since", date)},
		{"tag of nobody", Request{ETag: `"1"`}, plain},
		{"part", Request{Offset: 7}, plus("Range", "bytes=7-")},
		{"part by tag", Request{Offset: 7, IfRange: `"1"`}, plus("Range", "bytes=7-", "If-Range", `"1"`)},
		{"part by its own tag", Request{Offset: 7, IfRange: `"1"`, ETagOrigin: "http://a.example"}, plus("Range", "bytes=7-", "If-Range", `"1"`)},
		{"part by another's tag", Request{Offset: 7, IfRange: `"1"`, ETagOrigin: "http://b.example"}, plain},
		{"part by a weak tag", Request{Offset: 7, IfRange: `W/"1"`}, plain},
		{"part by date", Request{Offset: 7, IfRange: date, ETagOrigin: "http://b.example"}, plus("Range", "bytes=7-", "If-Range", date)},
		{"part is not conditional", Request{Offset: 7, ETag: `"1"`, ETagOrigin: "http://a.example", LastModified: mtime}, plus("Range", "bytes=7-")},
		{"head of a part", Request{Method: "HEAD", Offset: 7}, plain},
	}
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", text("0123456789"))
		o := w.origin("http://a.example")
		for _, tt := range tests {
			tt.req.Path = "x"
			if tt.req.Method == "" {
				tt.req.Method = "GET"
			}
			resp, err := o.Do(t.Context(), tt.req)
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if resp.Body != nil {
				resp.Body.Close()
			}
			if got := w.last(); !maps.EqualFunc(got, tt.want, slices.Equal) {
				t.Errorf("%s: sent %v, want %v", tt.name, got, tt.want)
			}
		}
	})
}

// TestRedirects has a chain's answers by host and path; "to X" redirects.
func TestRedirects(t *testing.T) {
	chain := map[string]string{}
	for i := range 12 {
		chain[fmt.Sprintf("a.example/%d", i)] = fmt.Sprintf("to /%d", i+1)
	}
	chain["a.example/12"] = "ok"
	tests := []struct {
		name, path string
		web        map[string]string
		origin     string // of the answer, or
		want       string // part of the error
		status     int
	}{
		{name: "other host", path: "x", web: map[string]string{"a.example/x": "to http://b.example/y", "b.example/y": "ok"}, origin: "http://b.example"},
		{name: "path only", path: "x", web: map[string]string{"a.example/x": "to y/z", "a.example/y/z": "ok"}, origin: "http://a.example"},
		{name: "no scheme", path: "x", web: map[string]string{"a.example/x": "to //b.example/y#frag", "b.example/y": "ok"}, origin: "http://b.example"},
		{name: "and back", path: "x", web: map[string]string{"a.example/x": "to http://b.example/x", "b.example/x": "to http://a.example/y", "a.example/y": "ok"}, origin: "http://a.example"},
		{name: "encoded as it came", path: "x", web: map[string]string{"a.example/x": "to http://b.example/a+b%2fc%2B?s=%2b+&t", "b.example/a+b%2fc%2B?s=%2b+&t": "ok"}, origin: "http://b.example"},
		{name: "user information is dropped", path: "x", web: map[string]string{"a.example/x": "to http://u:secret@b.example/y", "b.example/y": "ok"}, origin: "http://b.example"},
		{name: "303", path: "x", status: 303, web: map[string]string{"a.example/x": "to /y", "a.example/y": "ok"}, origin: "http://a.example"},
		{name: "307", path: "x", status: 307, web: map[string]string{"a.example/x": "to /y", "a.example/y": "ok"}, origin: "http://a.example"},
		{name: "308", path: "x", status: 308, web: map[string]string{"a.example/x": "to /y", "a.example/y": "ok"}, origin: "http://a.example"},
		{name: "ten", path: "2", web: chain, origin: "http://a.example"},
		{name: "eleven", path: "1", web: chain, want: "more than 10 redirects"},
		{name: "to itself", path: "x", web: map[string]string{"a.example/x": "to /x"}, want: "redirect loop"},
		{name: "loop of two hosts", path: "x", web: map[string]string{"a.example/x": "to http://b.example/x", "b.example/x": "to http://a.example/x"}, want: "redirect loop"},
		{name: "nowhere", path: "x", web: map[string]string{"a.example/x": "to "}, want: "without a Location"},
		{name: "other scheme", path: "x", web: map[string]string{"a.example/x": "to ftp://b.example/x"}, want: "neither http nor https"},
		{name: "file", path: "x", web: map[string]string{"a.example/x": "to file:///etc/passwd"}, want: "neither http nor https"},
		{name: "opaque", path: "x", web: map[string]string{"a.example/x": "to http:b"}, want: "neither http nor https"},
		{name: "not a URL", path: "x", web: map[string]string{"a.example/x": "to http://[secret"}, want: "not a URL"},
		{name: "endless Location", path: "x", web: map[string]string{"a.example/x": "to /" + strings.Repeat("y", maxLocation)}, want: "bytes, more than"},
		{name: "dead end", path: "x", web: map[string]string{"a.example/x": "to http://u:secret@dead.example/x?secret"}, want: "redirected to http://dead.example: dial"},
		{name: "refused there", path: "x", web: map[string]string{"a.example/x": "to http://b.example/x"}, want: "redirected to http://b.example: 403"},
		{name: "directory", path: "d/x", web: map[string]string{"a.example/d/x": "to /d/x/"}, want: "directory"},
		{name: "directory elsewhere", path: "d/x", web: map[string]string{"a.example/d/x": "to http://b.example/p/d/x/"}, want: "directory"},
		{name: "login", path: "d/x", web: map[string]string{"a.example/d/x": "to /login/", "a.example/login/": "html"}, want: "page of HTML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				answer := func(rw http.ResponseWriter, r *http.Request) {
					what := tt.web[r.Host+r.RequestURI]
					to, redirect := strings.CutPrefix(what, "to ")
					switch {
					case redirect:
						if to != "" {
							rw.Header().Set("Location", to)
						}
						if tt.status == 0 {
							tt.status = 302
						}
						rw.WriteHeader(tt.status)
					case what == "ok":
						text("ok")(rw, r)
					case what == "html":
						page(rw, r)
					default:
						status(403)(rw, r)
					}
				}
				w.serve("a.example:80", answer)
				w.serve("b.example:80", answer)
				o := w.origin("http://a.example")
				resp, err := o.Do(t.Context(), file(tt.path))
				if tt.want == "" {
					if get(t, resp, err) != "ok" || resp.Origin != tt.origin || resp.Configured != o {
						t.Errorf("%+v", resp)
					}
					return
				}
				var dir *DirectoryError
				if tt.want == "directory" {
					if !errors.As(err, &dir) || dir.Path != "d/x" || errors.Is(err, ErrUnavailable) {
						t.Errorf("%#v", err)
					}
					return
				}
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
					t.Errorf("%v, want %s", err, tt.want)
				}
				if o.Health().State == Down {
					t.Errorf("%+v: the origin itself did answer", o.Health())
				}
			})
		})
	}
}

// Credentials, configured headers and tags reach only the host that they are for.
func TestSecretsStay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hop := func(to string) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, to, 302) }
		}
		w.serve("a.example:80", func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/back" {
				hop("http://a.example:8080/x")(rw, r)
				return
			}
			hop("http://b.example/x")(rw, r)
		})
		w.serve("b.example:80", hop("http://a.example/back"))
		w.serve("a.example:8080", text("file"))
		o := w.origin("http://a.example", func(c *Config) {
			c.Username, c.PasswordFile = "user", tempFile(t, "secret\n")
			c.Headers = map[string]string{"x-token": "t", "accept": "text/plain", "accept-encoding": "gzip"}
		})
		req := Request{Method: "GET", Path: "x", ETag: `"1"`, ETagOrigin: "http://b.example", LastModified: time.Unix(1e9, 0)}
		resp, err := o.Do(t.Context(), req)
		get(t, resp, err)
		if resp.Origin != "http://a.example:8080" {
			t.Errorf("Origin is %s", resp.Origin)
		}
		if len(w.seen) != 4 {
			t.Fatalf("%v", w.took())
		}
		for i, r := range w.seen {
			own := i == 0 || i == 2
			user, pass, ok := r.BasicAuth()
			if ok != own || own && (user != "user" || pass != "secret") || (r.Header.Get("X-Token") == "t") != own || (r.Header.Get("Accept") == "*/*") == own {
				t.Errorf("hop %d to %s: %v", i, r.Host, r.Header)
			}
			if (r.Header.Get("If-None-Match") != "") != (i == 1) || r.Header.Get("If-Modified-Since") == "" {
				t.Errorf("hop %d to %s: %v", i, r.Host, r.Header)
			}
			if r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("hop %d: a configured header replaced ours: %v", i, r.Header)
			}
			if r.Header.Get("Referer") != "" || r.Header.Get("Cookie") != "" {
				t.Errorf("hop %d: %v", i, r.Header)
			}
		}
	})
}

func TestOriginOf(t *testing.T) {
	for s, want := range map[string]string{
		"http://A.example/x": "http://a.example", "http://a.example:80": "http://a.example", "https://a.example:443/": "https://a.example",
		"http://a.example:443": "http://a.example:443", "HTTPS://a.example:80": "https://a.example:80", "http://[::1]:80": "http://[::1]", "http://[::1]:8080": "http://[::1]:8080",
		"http://a.example:/": "http://a.example",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := originOf(u); got != want {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}
