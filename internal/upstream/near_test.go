package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// redirect sends every request on to base and the path that was asked for, as a redirector does.
func redirect(base string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Location", base+r.URL.EscapedPath())
		rw.WriteHeader(http.StatusFound)
	}
}

func TestQuery(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/moved":
				http.Redirect(rw, r, "/metalink?from=there", http.StatusFound)
			case "/app":
				http.Redirect(rw, r, "/app/?"+r.URL.RawQuery, http.StatusMovedPermanently)
			default:
				text("x")(rw, r)
			}
		})
		o := w.origin("http://a.example/")
		for _, tt := range []struct {
			path, query string
			want        []string
		}{
			{"metalink", "repo=fedora-43&arch=x86_64", []string{"/metalink?repo=fedora-43&arch=x86_64"}},
			{"metalink", "a=%2B+%26?/:@!$'()*,;", []string{"/metalink?a=%2B+%26?/:@!$'()*,;"}},
			{"metalink", "", []string{"/metalink"}},
			{"", "q", []string{"/?q"}},
			{"moved", "repo=x", []string{"/moved?repo=x", "/metalink?from=there"}},
			{"app", "repo=x", []string{"/app?repo=x", "/app/?repo=x"}}, // no directory of the mirror
		} {
			resp, err := o.Do(t.Context(), Request{Method: "GET", Path: tt.path, Query: tt.query})
			get(t, resp, err)
			for i := range tt.want {
				tt.want[i] = "GET a.example" + tt.want[i]
			}
			if got := w.took(); !slices.Equal(got, tt.want) {
				t.Errorf("%s?%s: %v, want %v", tt.path, tt.query, got, tt.want)
			}
		}
		for _, q := range []string{"a#b", "a b", "a\nb", "a\x00", "a\x7f", "ä", "\xff", strings.Repeat("x", maxLocation+1)} {
			if _, err := o.Do(t.Context(), Request{Method: "GET", Path: "x", Query: q}); !errors.Is(err, fs.ErrInvalid) || len(err.Error()) > 300 {
				t.Errorf("%.20q: %v", q, err)
			}
		}
		if got := w.took(); len(got) > 0 {
			t.Errorf("sent %v", got)
		}
	})
}

// TestNear: after the first file was found somewhere, the second is asked for beside it, or where it is configured.
func TestNear(t *testing.T) {
	const first, second = "os+x/repodata/repomd.xml", "os+x/repodata/repomd.xml.asc"
	const escaped = "/os%2Bx/repodata/repomd.xml"
	for _, tt := range []struct {
		name, base string
		to         string // where the first file is redirected to; "": nowhere
		want       string // where the second is asked for first
	}{
		{"no redirect", "http://a.example/pub/", "", "a.example/pub" + escaped + ".asc"},
		{"encoded base", "http://a.example/c++/a%2fb", "", "a.example/c%2B%2B/a%2fb" + escaped + ".asc"},
		{"mirror", "http://a.example/pub", "http://b.example/linux" + escaped, "b.example/linux" + escaped + ".asc"},
		{"its root", "http://a.example/pub", "http://b.example" + escaped, "b.example" + escaped + ".asc"},
		{"other port", "http://a.example/pub", "http://b.example:8080/linux" + escaped, "b.example:8080/linux" + escaped + ".asc"},
		{"on the same host", "http://a.example/pub", "/mirror/1" + escaped, "a.example/mirror/1" + escaped + ".asc"},
		{"its own encoding", "http://a.example/pub", "http://b.example/a+b%2Fc/os+x/repo%64ata/repomd.xml", "b.example/a+b%2Fc" + escaped + ".asc"},
		{"a slash of a name", "http://a.example/pub", "http://b.example/x/os+x%2Frepodata/repomd.xml", "a.example/pub" + escaped + ".asc"},
		{"signed", "http://a.example/pub", "http://b.example/linux" + escaped + "?Signature=secret", "a.example/pub" + escaped + ".asc"},
		{"empty query", "http://a.example/pub", "http://b.example/linux" + escaped + "?", "a.example/pub" + escaped + ".asc"},
		{"other name", "http://a.example/pub", "http://b.example/blob/0123", "a.example/pub" + escaped + ".asc"},
		{"other tree", "http://a.example/pub", "http://b.example/os+x.1/repodata/repomd.xml", "a.example/pub" + escaped + ".asc"},
		{"name like it", "http://a.example/pub", "http://b.example/linux-os+x/repodata/repomd.xml", "a.example/pub" + escaped + ".asc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				answer := func(rw http.ResponseWriter, r *http.Request) {
					if to := tt.to; to != "" && strings.HasSuffix(r.RequestURI, "/pub"+escaped) {
						rw.Header().Set("Location", to)
						rw.WriteHeader(http.StatusFound)
						return
					}
					text("x")(rw, r)
				}
				for _, addr := range []string{"a.example:80", "b.example:80", "b.example:8080"} {
					w.serve(addr, answer)
				}
				o := w.origin(tt.base)
				resp, err := o.Do(t.Context(), file(first))
				get(t, resp, err)
				if s := fmt.Sprintf("%v %+v", resp.Final, resp.Final); s != resp.Origin+" "+resp.Origin {
					t.Errorf("Final shows %s", s)
				}
				w.took()
				for _, method := range []string{"GET", "HEAD"} {
					near := Request{Method: method, Path: second, Near: resp.Final}
					again, err := o.Do(t.Context(), near)
					if err != nil {
						t.Fatal(err)
					}
					if again.Body != nil {
						again.Body.Close()
					}
					if got := w.took(); !slices.Equal(got, []string{method + " " + tt.want}) {
						t.Errorf("asked for %v, want %s", got, tt.want)
					}
				}
			})
		})
	}
}

// Of what Near's origin gives to no other host, nothing gets there with Near either; and other origins are asked as ever.
func TestNearSecrets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("a.example:80", redirect("http://b.example/linux"))
		w.serve("b.example:80", func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "missing") {
				status(404)(rw, r)
				return
			}
			rw.Header().Set("ETag", `"1"`)
			text("x")(rw, r)
		})
		w.serve("c.example:80", text("x"))
		secret := func(c *Config) {
			c.Username, c.PasswordFile, c.Headers = "user", tempFile(t, "secret\n"), map[string]string{"x-token": "t"}
		}
		o, other := w.origin("http://a.example", secret), w.origin("http://c.example")
		resp, err := o.Do(t.Context(), file("x"))
		get(t, resp, err)

		req := Request{Method: "GET", Path: "y", Near: resp.Final, ETag: `"1"`, ETagOrigin: "http://b.example"}
		again, err := o.Do(t.Context(), req)
		if err != nil || again.Status != 304 || again.Origin != "http://b.example" || again.Configured != o || again.Final.String() != "http://b.example" {
			t.Fatalf("%+v, %v", again, err)
		}
		if h := w.last(); h.Get("Authorization") != "" || h.Get("X-Token") != "" || h.Get("If-None-Match") != `"1"` {
			t.Errorf("sent %v", h)
		}

		// A 304 has a Final too, and it leads to the same place.
		again, err = o.Do(t.Context(), Request{Method: "GET", Path: "z", Near: again.Final})
		get(t, again, err)
		w.took()
		_, err = o.Do(t.Context(), Request{Method: "GET", Path: "missing", Near: resp.Final})
		if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if got := w.took(); !slices.Equal(got, []string{"GET b.example/linux/missing"}) {
			t.Errorf("asked for %v", got)
		}

		// Another origin knows nothing of that place.
		again, err = other.Do(t.Context(), Request{Method: "GET", Path: "y", Near: resp.Final})
		get(t, again, err)
		if got := w.took(); !slices.Equal(got, []string{"GET c.example/y"}) {
			t.Errorf("asked for %v", got)
		}
		if o.Health().State == Down {
			t.Error(o.Health())
		}
	})
}

// Wherever a file was found: if that tells where its siblings are, then that is where the file itself is as well.
func FuzzLocation(f *testing.F) {
	for _, u := range []string{
		"http://b.example/linux/a/b", "http://b.example/a/b", "http://b.example/a%2Fb", "http://b.example/x%2Fy/a/%62", "http://b.example/a/b?q",
		"http://b.example/+/a/b", "http://b.example/%2B/a/b", "https://b.example//a/b", "http://b.example/a/b/", "http://b.example",
	} {
		f.Add("a/b", "a/c", u)
	}
	f.Fuzz(func(t *testing.T, p, sibling, raw string) {
		base := &url.URL{Scheme: "http", Host: "a.example"}
		u, err := location(base, raw)
		if err != nil || !validPath(p) || !validPath(sibling) {
			return
		}
		l := newLocation(&Origin{base: base}, p, u)
		if l.prefix == nil {
			return
		}
		same := join(l.prefix, p)
		if same.Path != u.Path || originOf(same) != originOf(u) {
			t.Fatalf("%s, where %q was found, became %s", u, p, same)
		}
		next := join(l.prefix, sibling).String()
		parsed, err := url.Parse(next)
		if err != nil || parsed.Path != l.prefix.Path+"/"+sibling || originOf(parsed) != l.String() || parsed.RawQuery != "" || parsed.User != nil {
			t.Fatalf("%q beside %q is at %s: %v", sibling, p, next, err)
		}
	})
}
