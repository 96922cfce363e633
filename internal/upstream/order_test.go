package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// TestOrder is who is asked, in which order, and what comes out. A host's letter says what it answers:
// g the file, n 404, f 403, h HTML, s 503, d refuses connections.
func TestOrder(t *testing.T) {
	tests := []struct{ up, fall, arch, asked, want string }{
		{"g", "", "", "u1", "u1"},
		{"gg", "g", "g", "u1", "u1"},
		{"dg", "g", "g", "u2", "u2"},
		{"fhsg", "g", "g", "u1 u2 u3 u4", "u4"},
		{"ng", "g", "", "u1", "absent"}, // final: other upstreams have no say
		{"dn", "g", "", "u2", "absent"},
		{"n", "g", "g", "u1 a1", "a1"},
		{"n", "g", "nfg", "u1 a1 a2 a3", "a3"},
		{"n", "", "nn", "u1 a1 a2", "absent"},
		{"n", "g", "nd", "u1 a1", "unavailable"}, // the archive might have it
		{"n", "", "f", "u1 a1", "unavailable"},
		{"d", "g", "g", "f1", "f1"},
		{"fs", "dg", "", "u1 u2 f2", "f2"},
		{"d", "n", "g", "f1", "unavailable"}, // a fallback may be incomplete
		{"d", "ng", "", "f1 f2", "f2"},
		{"dd", "dd", "", "", "unavailable"},
		{"", "g", "", "f1", "f1"},
		{"", "", "g", "", "unavailable"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s,%s,%s", tt.up, tt.fall, tt.arch), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				group := func(prefix, kinds string) (out []*Origin) {
					for i, kind := range kinds {
						name := fmt.Sprintf("%s%d", prefix, i+1)
						switch kind {
						case 'g':
							w.serve(name+":80", text(name))
						case 'n':
							w.serve(name+":80", status(404))
						case 'f':
							w.serve(name+":80", status(403))
						case 's':
							w.serve(name+":80", status(503))
						case 'h':
							w.serve(name+":80", page)
						}
						out = append(out, w.origin("http://"+name))
					}
					return out
				}
				resp, err := Do(t.Context(), Order{group("u", tt.up), group("f", tt.fall), group("a", tt.arch)}, file("x"))
				got := ""
				var un *UnavailableError
				switch {
				case err == nil:
					got = get(t, resp, err)
					if resp.Configured.Name() != "http://"+got {
						t.Errorf("Configured is %s", resp.Configured.Name())
					}
				case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrUnavailable):
					got = "absent"
				case errors.As(err, &un) && errors.Is(err, ErrUnavailable):
					got = "unavailable"
					if n := len(un.Attempts); tt.want == got && !strings.Contains(tt.up, "n") && n != len(tt.up)+len(tt.fall) {
						t.Errorf("%d attempts in %v", n, err)
					}
				}
				asked := w.took()
				for i := range asked {
					asked[i] = strings.TrimSuffix(strings.TrimPrefix(asked[i], "GET "), "/x")
				}
				if got != tt.want || !slices.Equal(asked, strings.Fields(tt.asked)) {
					t.Errorf("%s (%v) after asking %v; want %s after %s", got, err, asked, tt.want, tt.asked)
				}
			})
		})
	}
}

func TestUnavailableText(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("b.example:80", page)
		w.serve("c.example:80", status(404))
		order := Order{
			Upstreams: []*Origin{w.origin("http://a.example/pub"), w.origin("http://b.example/")},
			Fallbacks: []*Origin{w.origin("http://c.example")},
		}
		want := "upstream: x/y.rpm: no origin could answer: http://a.example/pub: dial tcp: connect: connection refused; " +
			"http://b.example: it sent a page of HTML instead of the file (a login, a challenge or a directory?); http://c.example: 404 Not Found"
		for range 2 {
			_, err := Do(t.Context(), order, file("x/y.rpm"))
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			want = strings.Replace(want, "dial tcp", "in back-off until 00:00:01, after: dial tcp", 1)
		}
		_, err := Do(t.Context(), Order{Upstreams: order.Fallbacks}, file("x/y.rpm"))
		if want := "upstream: x/y.rpm: http://c.example says 404 Not Found: file does not exist"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		_, err = Do(t.Context(), Order{}, file("x"))
		if want := "upstream: x: no origin could answer: none is configured for this path"; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

func TestInvalidRequests(t *testing.T) {
	for _, r := range []Request{
		{Method: "POST", Path: "x"}, {Path: "x"}, {Method: "GET", Path: "/x"}, {Method: "GET", Path: "x/../y"}, {Method: "GET", Path: "."},
		{Method: "GET", Path: "x//y"}, {Method: "GET", Path: "x/"}, {Method: "GET", Path: "x", Offset: -1},
	} {
		if _, err := Do(t.Context(), Order{}, r); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// What comes from outside neither breaks a line of log, nor fills it.
func TestOneLine(t *testing.T) {
	got := (&UnavailableError{Path: "a\nb", Attempts: []Attempt{{"http://a.example", errors.New("x\r\n\x1b[2J" + strings.Repeat("é", 1000))}}}).Error()
	if strings.ContainsAny(got, "\r\n\x1b") || len(got) > 600 || !strings.HasPrefix(got, "upstream: a?b: no origin could answer: http://a.example: x??") {
		t.Errorf("%q", got)
	}
	if got := (&DirectoryError{Path: "x", Origin: "http://a.example"}).Error(); !strings.Contains(got, "http://a.example says that it is a directory") {
		t.Error(got)
	}
}
