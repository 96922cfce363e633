package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// get asks for a path over a connection of its own.
func get(ctx context.Context, url string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return (&http.Transport{DisableKeepAlives: true, ReadBufferSize: 256 << 10}).RoundTrip(req)
}

// herd lets n clients ask for one cold file of size bytes from an upstream of perSecond, and with them one client of
// 10 kB/s and one that leaves. It returns how long each waited for its first byte after upstream had sent its first,
// and how long all took.
func herd(t testing.TB, n int, size, perSecond int64) (firsts []time.Duration, all time.Duration) {
	w := newWorld(t)
	const file = "43/x/os/images/install.img"
	want := mirrortest.Bytes(1, int(size))
	w.up.PutFile("up/"+file, mirrortest.File{Body: want, ModTime: fileTime})
	w.up.SetRate(perSecond)
	url := w.url + "/pub/test/" + file
	begun := time.Now()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg, slow sync.WaitGroup
	slow.Go(func() { // a client on a bad line: it is read from until the others are done
		resp, err := get(ctx, url)
		if err != nil {
			t.Error("slow client:", err)
			return
		}
		defer resp.Body.Close()
		line := rate.NewLimiter(10_000, 10_000)
		var got bytes.Buffer
		for line.WaitN(ctx, 1000) == nil {
			if _, err := io.CopyN(&got, resp.Body, 1000); err != nil {
				break
			}
		}
		if !bytes.HasPrefix(want, got.Bytes()) {
			t.Error("slow client: wrong bytes")
		}
	})
	wg.Go(func() { // one that leaves
		resp, err := get(ctx, url)
		if err != nil {
			t.Error("leaving client:", err)
			return
		}
		io.CopyN(io.Discard, resp.Body, 1000)
		resp.Body.Close()
	})
	firsts = make([]time.Duration, n)
	for i := range n {
		wg.Go(func() {
			resp, err := get(t.Context(), url)
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			defer resp.Body.Close()
			sum := newComparer(want)
			if _, err := io.CopyN(sum, resp.Body, 1); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
			firsts[i] = time.Since(begun)
			if _, err := io.Copy(sum, resp.Body); err != nil || !sum.whole() {
				t.Errorf("client %d: %d bytes, %v", i, sum.n, err)
			}
		})
	}
	wg.Wait()
	all = time.Since(begun)
	cancel()
	slow.Wait()
	w.settle(t)
	if got, sent := w.up.Count("**"), w.up.BytesSent("**"); got != 1 || sent != size {
		t.Errorf("upstream saw %d requests, sent %.2f times the file", got, float64(sent)/float64(size))
	}
	asked := w.up.Requests()[0].Time.Sub(begun)
	for i := range firsts {
		firsts[i] -= asked
	}
	return firsts, all
}

// comparer is a Writer that compares what is written with what is wanted.
type comparer struct {
	want []byte
	n    int
	bad  bool
}

func newComparer(want []byte) *comparer { return &comparer{want: want} }

func (c *comparer) Write(p []byte) (int, error) {
	c.bad = c.bad || !bytes.HasPrefix(c.want[min(c.n, len(c.want)):], p)
	c.n += len(p)
	return len(p), nil
}

func (c *comparer) whole() bool { return !c.bad && c.n == len(c.want) }

// TestHerd: upstream sends the file once, whatever the clients do. How fast they are is for the benchmark.
func TestHerd(t *testing.T) {
	herd(t, 64, 10<<20, 20<<20)
}

// BenchmarkHerd lets 64 clients ask for one cold file of 100 MB over lines of 20 and of 100 MB/s.
func BenchmarkHerd(b *testing.B) {
	const size = 100_000_000
	for _, perSecond := range []int64{20_000_000, 100_000_000} {
		b.Run(fmt.Sprintf("%dMBps", perSecond/1_000_000), func(b *testing.B) {
			for b.Loop() {
				firsts, all := herd(b, 64, size, perSecond)
				var worst time.Duration
				for _, d := range firsts {
					worst = max(worst, d)
				}
				b.ReportMetric(float64(worst.Microseconds())/1000, "ms-to-first-byte-worst")
				b.ReportMetric(all.Seconds()/(float64(size)/float64(perSecond)), "times-the-line's-time")
			}
		})
	}
}

// zeros is a large file of upstream's that needs no memory.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// BenchmarkFarAhead takes 1 MB out of the middle of a cold file of 700 MB over a line of 20 MB/s, and compares it with
// asking upstream directly.
func BenchmarkFarAhead(b *testing.B) {
	const size, off, n = 700_000_000, 350_000_000, 1_000_000
	span := fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	took := func(url string) time.Duration {
		begun := time.Now()
		resp, err := get(b.Context(), url, "Range", span)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.Copy(io.Discard, resp.Body); got != n || err != nil {
			b.Fatal(resp.Status, got, err)
		}
		return time.Since(begun)
	}
	var direct, through time.Duration
	for b.Loop() {
		w := newWorld(b)
		w.up.PutFile("up/43/a.img", mirrortest.File{Content: zeros{}, Size: size, ModTime: fileTime})
		w.up.Fault("**", mirrortest.Fault{Rate: 20_000_000})
		direct += took(w.up.URL + "/up/43/a.img")
		through += took(w.url + "/pub/test/43/a.img")
	}
	b.ReportMetric(float64(through)/float64(direct), "times-asking-upstream")
}

// TestSendfile: the three conditions under which the kernel copies a hit, without its bytes passing through us.
func TestSendfile(t *testing.T) {
	w := newWorld(t)
	w.up.PutFile("up/43/a.rpm", mirrortest.File{Body: mirrortest.Bytes(1, 1<<20), ModTime: fileTime})
	resp, err := get(t.Context(), w.url+"/pub/test/43/a.rpm")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	w.settle(t)

	var spy *spyWriter
	var conn net.Conn
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, ok := rw.(io.ReaderFrom); !ok {
			t.Error("net/http's ResponseWriter is no io.ReaderFrom any more")
		}
		spy = &spyWriter{ResponseWriter: rw}
		w.ServeHTTP(spy, r)
	}))
	srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context { conn = c; return ctx }
	srv.Start()
	defer srv.Close()
	for _, header := range [][]string{nil, {"Range", "bytes=1000-900000"}} {
		resp, err = get(t.Context(), srv.URL+"/pub/test/43/a.rpm", header...)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.Header.Get("Cache-Status") != "instantmirror; hit" {
			t.Errorf("no hit: %v", resp.Header)
		}
		if spy.reads == 0 || spy.writes > 0 {
			t.Errorf("%v: the body went through %d ReadFrom and %d Write", header, spy.reads, spy.writes)
		}
		for _, src := range spy.sources {
			limited, ok := src.(*io.LimitedReader)
			if !ok {
				t.Fatalf("ReadFrom of a %T", src)
			}
			if _, ok := limited.R.(*os.File); !ok {
				t.Errorf("ReadFrom of a %T", limited.R)
			}
		}
	}
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T", conn)
	}
}

// spyWriter sees how a body is handed to net/http.
type spyWriter struct {
	http.ResponseWriter
	reads, writes int
	sources       []io.Reader
}

func (s *spyWriter) Write(p []byte) (int, error) { s.writes++; return s.ResponseWriter.Write(p) }

func (s *spyWriter) ReadFrom(src io.Reader) (int64, error) {
	s.reads++
	s.sources = append(s.sources, src)
	return s.ResponseWriter.(io.ReaderFrom).ReadFrom(src)
}

func (s *spyWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// TestBrokenNeverLooksWhole: a transfer that fails in the middle is seen to have failed, by every kind of client.
func TestBrokenNeverLooksWhole(t *testing.T) {
	body := mirrortest.Bytes(1, 100_000)
	for name, fault := range map[string]mirrortest.Fault{
		"with its length": {Truncate: true, At: 50_000},
		"chunked":         {Truncate: true, At: 50_000, Chunked: true},
	} {
		for _, proto := range []string{"HTTP/1.0", "HTTP/1.1", "HTTP/2"} {
			t.Run(name+" "+proto, func(t *testing.T) {
				w := newWorld(t)
				// Without a validator, so that nobody can go on with it.
				w.up.PutFile("up/43/a.img", mirrortest.File{Body: body, ETag: "-"})
				w.up.Fault("**", fault)
				var looksWhole bool
				switch proto {
				case "HTTP/2":
					srv := httptest.NewUnstartedServer(w.Server)
					srv.EnableHTTP2 = true
					srv.StartTLS()
					defer srv.Close()
					resp, err := srv.Client().Get(srv.URL + "/pub/test/43/a.img")
					if err != nil {
						return
					}
					defer resp.Body.Close()
					if resp.ProtoMajor != 2 {
						t.Fatal(resp.Proto)
					}
					_, err = io.ReadAll(resp.Body)
					looksWhole = err == nil && resp.StatusCode == 200
				default:
					raw := rawRequest(t, w.url, fmt.Sprintf("GET /pub/test/43/a.img %s\r\nHost: x\r\nConnection: close\r\n\r\n", proto))
					head, rest, _ := strings.Cut(raw, "\r\n\r\n")
					switch {
					case !strings.Contains(head, " 200 "):
					case strings.Contains(head, "Content-Length: 100000"):
						looksWhole = len(rest) >= 100_000
					case strings.Contains(head, "Transfer-Encoding: chunked"):
						looksWhole = strings.HasSuffix(rest, "\r\n0\r\n\r\n")
					default:
						looksWhole = true // it ends with the connection
					}
				}
				if looksWhole {
					t.Error("the client takes it for the whole file")
				}
			})
		}
	}
}

// rawRequest sends text as it is and returns all that comes back.
func rawRequest(t *testing.T, url, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// TestHTTP10UnknownLength: an old client gets a file of unknown length only when it is whole.
func TestHTTP10UnknownLength(t *testing.T) {
	w := newWorld(t)
	w.up.PutFile("up/43/a.img", mirrortest.File{Body: []byte("0123456789"), ModTime: fileTime})
	w.up.Fault("**", mirrortest.Fault{Chunked: true})
	raw := rawRequest(t, w.url, "GET /pub/test/43/a.img HTTP/1.0\r\n\r\n")
	if !strings.Contains(raw, "Content-Length: 10\r\n") || !strings.HasSuffix(raw, "\r\n\r\n0123456789") {
		t.Errorf("got %q", raw)
	}
}

// TestNothingLeaks: what a client sends stays here.
func TestNothingLeaks(t *testing.T) {
	w := newWorld(t)
	w.up.PutFile("up/43/a.rpm", mirrortest.File{Body: []byte("x"), ModTime: fileTime})
	resp, err := get(t.Context(), w.url+"/pub/test/43/a.rpm?token=secret", "Cookie", "secret", "Authorization", "secret",
		"X-Forwarded-For", "secret", "Accept-Encoding", "gzip", "Referer", "secret", "User-Agent", "secret",
		"If-None-Match", `"secret"`, "Cache-Control", "no-cache", "Range", "bytes=0-0", "Accept", "secret", "Via", "secret")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r := w.up.Requests()[0]
	if r.URI != "/up/43/a.rpm" {
		t.Errorf("upstream was asked for %s", r.URI)
	}
	for name, values := range r.Header {
		switch name {
		case "User-Agent", "Accept", "Accept-Encoding":
			if strings.Contains(fmt.Sprint(values), "secret") || strings.Contains(fmt.Sprint(values), "gzip") {
				t.Errorf("%s: %q", name, values)
			}
		default:
			t.Errorf("upstream was sent %s: %q", name, values)
		}
	}
}

// TestUnframedStaysUnframed: where upstream's end is only the connection's, the client's is too; nobody says more than
// was heard.
func TestUnframedStaysUnframed(t *testing.T) {
	for _, proto := range []string{"HTTP/1.0", "HTTP/1.1"} {
		w := newWorld(t)
		w.up.PutFile("up/43/a.img", mirrortest.File{Body: []byte("0123456789"), ModTime: fileTime})
		w.up.Fault("**", mirrortest.Fault{Unframed: true})
		raw := rawRequest(t, w.url, "GET /pub/test/43/a.img "+proto+"\r\nHost: x\r\n\r\n")
		if !strings.HasSuffix(raw, "\r\n\r\n0123456789") || strings.Contains(raw, "Content-Length") || strings.Contains(raw, "chunked") {
			t.Errorf("%s: %q", proto, raw)
		}
	}
}
