package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/monitor"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// world is a Server before a real store and a real upstream.
type world struct {
	*Server
	up      *mirrortest.Upstream
	store   *store.Store
	url     string
	flights *fetch.Group
	monitor *monitor.Monitor
}

const testProfile = `
name: test
title: A Test & Distribution
path: /pub/test
hosts: [test.example.org]
enabled: true
upstreams: [%s/up]
layout:
  - tree: "{release}/{arch}/os"
    repo: {id: test, name: "Test {release} - {arch}", gpgkey: "file:///etc/pki/rpm-gpg/RPM-GPG-KEY-test"}
expiry:
  - {match: "frozen/**", refresh: never}
  - {match: "hot/**", refresh: 1s}
  - {match: "**", refresh: 1h}
content:
  - {match: "denied/**", action: deny}
  - {match: "passed/**", action: pass}
`

// settle returns when the flights that upstream saw have ended.
func (w *world) settle(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for _, r := range w.up.Requests() {
		for w.flights.Underway("pub/test/" + strings.TrimPrefix(r.Path, "up/")) {
			if time.Now().After(deadline) {
				t.Fatalf("the flight of %s does not end", r.Path)
			}
			runtime.Gosched()
		}
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{up: mirrortest.NewUpstream(t)}
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, testProfile, w.up.URL), 0o644); err != nil {
		t.Fatal(err)
	}
	ps, err := profile.Load(nil, nil, []string{file})
	if err != nil {
		t.Fatal(err)
	}
	pool := upstream.NewPool("instantmirror/test")
	table, err := site.Build(ps, pool)
	if err != nil {
		t.Fatal(err)
	}
	if w.store, err = store.Open(t.TempDir(), 0); err != nil {
		t.Fatal(err)
	}
	x, _, err := index.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.flights = fetch.New(ctx, w.store, func(fetch.Result) {})
	j, err := journal.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := mirror.New(w.store, x, w.flights, j, func(err error) { t.Log(err) })
	w.monitor = monitor.New(ctx, m, x, w.store, w.flights, table, func(monitor.Event) {})
	m.Watch(w.monitor)
	w.Server = New(m, w.store, slog.New(slog.DiscardHandler), &View{Table: table, AccessLog: true})
	srv := httptest.NewServer(w.Server)
	w.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		w.monitor.Wait()
		w.flights.Wait()
		pool.CloseIdleConnections()
		x.Close()
		j.Close()
		w.store.Close()
	})
	return w
}

var fileTime = time.Unix(1700000000, 0)

// TestScripts runs each script of testdata against a server of its own. A script is lines of
//
//	put NAME BODY          upstream has a file; BODY may be a number of bytes: @1000000
//	drop NAME              upstream has it no more
//	fault GLOB NAME        upstream misbehaves: see faults
//	heal                   and behaves again
//	stop, start            upstream refuses connections; accepts them
//	full, room             the disk of the mirror
//	asked [N]              upstream saw N requests since the last "asked"
//	settled                the flights and looks have ended: what was fetched is stored
//	allow CIDR...          clients that are served
//	METHOD URL             a request; what follows is about it, up to the next one:
//	> Field: value         a header field to send
//	= 200                  the status
//	< Field: value         a header field that must be there
//	! Field                one that must not
//	| text                 the body has this in it
//	" text                 the body is this, and nothing else (\r \n as escapes)
//	# text                 a comment
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := &script{t: t, world: newWorld(t)}
			lines := bufio.NewScanner(f)
			for n := 1; lines.Scan(); n++ {
				s.at = fmt.Sprintf("%s:%d", file, n)
				s.line(lines.Text())
			}
			s.send()
		})
	}
}

var faults = map[string]mirrortest.Fault{
	"503":       {Status: 503},
	"403":       {Status: 403},
	"html":      mirrortest.CaptivePortal,
	"slash":     mirrortest.Slash,
	"loop":      mirrortest.Loop,
	"gzip":      {Gzip: true},
	"chunked":   {Chunked: true},
	"unframed":  {Unframed: true},
	"truncated": {Truncate: true, At: 3, Times: 1},
	"drop":      {Drop: true},
}

type script struct {
	t *testing.T
	*world
	at  string
	req *http.Request // not sent yet

	resp *http.Response
	body string
}

func (s *script) line(line string) {
	s.t.Helper()
	line = strings.TrimSpace(line)
	verb, rest, _ := strings.Cut(line, " ")
	arg, more, _ := strings.Cut(rest, " ")
	switch verb {
	case "", "#":
		return
	case ">":
		name, value, _ := strings.Cut(rest, ": ")
		if name == "Host" {
			s.req.Host = value
		}
		s.req.Header.Add(name, value)
		return
	}
	s.send()
	switch verb {
	case "put":
		if n, ok := strings.CutPrefix(more, "@"); ok {
			size, _ := strconv.Atoi(n)
			more = strings.Repeat("0123456789", size/10)
		}
		s.up.PutFile("up/"+arg, mirrortest.File{Body: []byte(more), ModTime: fileTime, ETag: strconv.Quote(more[:min(9, len(more))])})
	case "drop":
		s.up.Remove("up/" + arg)
	case "fault":
		f, ok := faults[more]
		if !ok {
			s.t.Fatalf("%s: no such fault", s.at)
		}
		s.up.Fault("up/"+arg, f)
	case "heal":
		s.up.Heal()
	case "stop":
		s.up.Stop()
	case "start":
		if err := s.up.Start(); err != nil {
			s.t.Fatal(err)
		}
	case "full":
		s.store.SetReserve(1 << 60)
	case "room":
		s.store.SetReserve(0)
	case "settled":
		s.settle(s.t)
		s.monitor.Wait()
	case "asked":
		if got := strconv.Itoa(s.up.Count("**")); arg != "" && got != arg {
			s.t.Errorf("%s: upstream saw %s requests:\n%s", s.at, got, s.up.Log())
		}
		s.up.Reset()
	case "allow":
		view := *s.view.Load()
		view.Allow = nil
		for _, cidr := range strings.Fields(rest) {
			view.Allow = append(view.Allow, netip.MustParsePrefix(cidr))
		}
		s.Swap(&view)
	case "=":
		if got := strconv.Itoa(s.resp.StatusCode); got != arg {
			s.t.Errorf("%s: status %s: %s", s.at, got, s.body)
		}
	case "<":
		name, value, _ := strings.Cut(rest, ": ")
		if got := s.resp.Header.Get(name); got != value {
			s.t.Errorf("%s: %s is %q", s.at, name, got)
		}
	case "!":
		if got, ok := s.resp.Header[http.CanonicalHeaderKey(arg)]; ok {
			s.t.Errorf("%s: %s is %q", s.at, arg, got)
		}
	case "|":
		if !strings.Contains(s.body, rest) {
			s.t.Errorf("%s: body is %.500q", s.at, s.body)
		}
	case "\"":
		if want := strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(rest); s.body != want {
			s.t.Errorf("%s: body is %.500q", s.at, s.body)
		}
	default:
		if verb != strings.ToUpper(verb) {
			s.t.Fatalf("%s: what is %q?", s.at, verb)
		}
		u := rest
		if !strings.HasPrefix(u, "http") {
			u = s.url + rest
		}
		req, err := http.NewRequestWithContext(s.t.Context(), verb, u, nil)
		if err != nil {
			s.t.Fatalf("%s: %v", s.at, err)
		}
		s.req = req
	}
}

// send sends the request that was described.
func (s *script) send() {
	if s.req == nil {
		return
	}
	resp, err := direct.RoundTrip(s.req)
	s.req = nil
	if err != nil {
		s.resp, s.body = &http.Response{}, err.Error()
		return
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	s.resp, s.body = resp, string(b)
	if err != nil {
		s.body += " (" + err.Error() + ")"
	}
}

// direct asks for what it is told to and for nothing else: no compression.
var direct = &http.Transport{DisableCompression: true, DialContext: (&net.Dialer{}).DialContext}
