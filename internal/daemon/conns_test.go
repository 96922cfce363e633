package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/server"
)

func TestConnLimit(t *testing.T) {
	for _, test := range []struct{ files, requests, want int }{
		{1 << 20, 1, maxConns}, {1 << 20, maxStreams, maxConns}, {524288, maxStreams, maxConns}, // systemd's hard limit
		{20000, 1, maxConns}, {20000, maxStreams, 891}, {4096, 1, 1408}, {1024, 1, 128}, {1024, maxStreams, 12}, {8, 20, 1},
	} {
		if got := connLimit(test.files, test.requests); got != test.want {
			t.Errorf("%d files, %d requests: %d connections, want %d", test.files, test.requests, got, test.want)
		}
	}
}

func TestClientOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8::1": "2001:db8::/64", "fe80::1%eth0": "fe80::/64",
		"127.0.0.1": "", "::1": "", "::ffff:127.0.0.1": "",
	} {
		ip, zone, _ := strings.Cut(addr, "%")
		key, bounded := clientOf(&net.TCPAddr{IP: net.ParseIP(ip), Zone: zone, Port: 1})
		if bounded != (want != "") || bounded && key.String() != want {
			t.Errorf("%s: %v, %v", addr, key, bounded)
		}
	}
	if _, bounded := clientOf(&net.UnixAddr{Name: "@"}); bounded {
		t.Error("a unix socket is bounded")
	}
}

// fakeConn is a connection from somewhere that may be closed.
type fakeConn struct {
	net.Conn
	from   string
	closed bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1} }
func (c *fakeConn) Close() error         { c.closed = true; return nil }

// TestConns: who gives way to whom.
func TestConns(t *testing.T) {
	var log strings.Builder
	cs := newConns(8, slog.New(slog.NewTextHandler(&log, nil))) // and 2 per client
	conns := map[string]*fakeConn{}
	// Each step is a connection's name, which begins with its client, and what becomes of it. Then come those
	// that are closed for it.
	for _, step := range []string{
		"1a new", "1b new",
		"1c new: 1a",           // its client's oldest gives way, though there is room for others
		"1b active", "1b idle", // 1c has waited longer now
		"1d new: 1c",
		"1b active", "1d active",
		"1e new: 1e",                          // both are busy
		"1e closed", "1a closed", "1c closed", // what we closed counts no more
		"2a new", "2a active", "3a new", "4a new", "4a active", "4a idle", "5a new", "6a new", "7a new", // 8 are open
		"8a new: 3a",
		"3a active", "3a idle", // its goroutine had not noticed
		"9a new: 4a", "9a active",
		"5a closed", "5b new",
		"10a new: 6a", "10a active", "11a new: 7a", "11a active", "12a new: 8a", "12a active", "13a new: 5b", "13a active",
		"14a new: 14a", "2b new: 2b", // 1b 1d 2a 9a 10a 11a 12a 13a are busy
		"12a closed", "14b new", "14c new: 14b", "14c hijacked", "14d new",
	} {
		what, closes, _ := strings.Cut(step, ": ")
		name, state, _ := strings.Cut(what, " ")
		if state == "new" {
			conns[name] = &fakeConn{from: "192.0.2." + strings.TrimRight(name, "abcdef")}
		}
		var was []string
		for n, c := range conns {
			if c.closed {
				was = append(was, n)
			}
		}
		cs.changed(conns[name], map[string]http.ConnState{"new": http.StateNew, "active": http.StateActive, "idle": http.StateIdle,
			"closed": http.StateClosed, "hijacked": http.StateHijacked}[state])
		var now []string
		for n, c := range conns {
			if c.closed && !slices.Contains(was, n) {
				now = append(now, n)
			}
		}
		if got := strings.Join(now, " "); got != closes {
			t.Errorf("%s: closed %q", step, got)
		}
	}
	if n := strings.Count(log.String(), "too many connections"); n != 1 || !strings.Contains(log.String(), "closed=1 client=192.0.2.1:1 open=2 limit=8 per_client=2") {
		t.Errorf("the log, %d times:\n%s", n, log.String())
	}
}

// TestConnsBooks: whatever happens, in whatever order, the bounds hold, the books agree with what is open, and only those
// that wait are closed for others.
func TestConnsBooks(t *testing.T) {
	cs := newConns(20, slog.New(slog.DiscardHandler))
	type one struct {
		*fakeConn
		busy bool
	}
	var open []*one
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5_000 {
		if len(open) == 0 || rnd.IntN(3) == 0 {
			c := &one{fakeConn: &fakeConn{from: fmt.Sprintf("2001:db8:0:%d::1", rnd.IntN(8))}}
			open = append(open, c)
			cs.changed(c.fakeConn, http.StateNew)
		} else {
			i := rnd.IntN(len(open))
			switch c := open[i]; rnd.IntN(4) {
			case 0:
				cs.changed(c.fakeConn, http.StateClosed)
				open = slices.Delete(open, i, i+1)
			default:
				c.busy = !c.busy
				cs.changed(c.fakeConn, map[bool]http.ConnState{true: http.StateActive, false: http.StateIdle}[c.busy])
			}
		}
		perClient := map[string]int{}
		waiting := 0
		open = slices.DeleteFunc(open, func(c *one) bool {
			if c.closed && c.busy {
				t.Fatal("closed a busy one")
			}
			if !c.closed {
				perClient[c.from]++
				if !c.busy {
					waiting++
				}
			}
			return c.closed
		})
		if len(open) > 20 || cs.all.open != len(open) || len(cs.open) != len(open) || cs.all.waiting.Len() != waiting || len(cs.clients) != len(perClient) {
			t.Fatalf("%d are open, %d wait; the books say %d, %d, %d", len(open), waiting, cs.all.open, len(cs.open), cs.all.waiting.Len())
		}
		for from, n := range perClient {
			key, _ := clientOf(&net.TCPAddr{IP: net.ParseIP(from)})
			if n > 5 || cs.clients[key].open != n {
				t.Fatalf("%s has %d, by the books %d", from, n, cs.clients[key].open)
			}
		}
	}
}

// TestTooManyConnections: with net/http, over each protocol, transfers go on and new clients are served, however many
// connections others hold open.
func TestTooManyConnections(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/1.1 TLS", "HTTP/2.0 TLS"} {
		t.Run(proto, func(t *testing.T) {
			up := mirrortest.NewUpstream(t)
			body := mirrortest.Bytes(1, 1<<20)
			up.Put("up/big.img", body)
			gate := up.Hold("**", 500_000)
			w := newWorld(t, up.URL)
			scheme := "http"
			if strings.HasSuffix(proto, "TLS") {
				scheme = "https"
				w.useTLS(certificate())
			}
			w.srv.ConnState = newConns(5, w.Daemon.log).changed
			var begun atomic.Int32 // requests
			w.srv.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				begun.Add(1)
				w.server.ServeHTTP(rw, r)
			})
			addr := w.listen(t)
			client := func() *http.Client {
				tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: strings.HasPrefix(proto, "HTTP/2")}
				t.Cleanup(tr.CloseIdleConnections)
				return &http.Client{Transport: tr, Timeout: 20 * time.Second}
			}
			var transfers sync.WaitGroup
			for range 3 {
				transfers.Go(func() {
					resp, err := client().Get(scheme + "://" + addr + "/pub/test/big.img")
					if err != nil {
						t.Error("a transfer:", err)
						return
					}
					defer resp.Body.Close()
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != string(body) || resp.Proto != proto[:8] {
						t.Errorf("a transfer by %s: %d bytes, %v", resp.Proto, len(b), err)
					}
				})
			}
			if err := gate.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the transfers to join", func() bool { return begun.Load() == 3 })
			var silent []net.Conn
			for range 20 {
				c, err := net.Dial("tcp", addr) // says nothing
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				silent = append(silent, c)
				resp, err := client().Get(scheme + "://" + addr + "/-/healthz") // stays idle
				if err != nil {
					t.Error("a new client:", err)
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			silent[0].SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := silent[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the first silent connection: %v", err)
			}
			gate.Release()
			transfers.Wait()
			if n := strings.Count(w.log.String(), "too many connections"); n != 1 {
				t.Errorf("the log tells it %d times", n)
			}
		})
	}
}

// slowClient is one that takes its time: what it does on its connection, and when the connection must have ended.
type slowClient struct {
	name string
	tls  bool
	do   func(c net.Conn)
	end  time.Duration
}

// send writes text, each after a pause.
func send(c net.Conn, pause time.Duration, texts ...string) {
	for _, text := range texts {
		time.Sleep(pause)
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

var slowClients = []slowClient{
	{"says nothing", false, func(net.Conn) {}, server.HeaderTimeout},
	{"begins a TLS handshake", true, func(c net.Conn) { send(c, 5*time.Second, strings.Split("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "")...) }, server.HeaderTimeout},
	{"sends its header byte by byte", false, func(c net.Conn) { send(c, 7*time.Second, strings.Split(get(hit), "")...) }, server.HeaderTimeout},
	{"sends its second header byte by byte", false, func(c net.Conn) {
		send(c, time.Second, get("/-/healthz"))
		send(c, 7*time.Second, get(hit)[:10], "x", "x", "x", "x", "x")
	}, 8*time.Second + server.HeaderTimeout},
	{"sends three bytes of its second header", false, func(c net.Conn) { send(c, time.Second, get("/-/healthz"), "GET") }, time.Second + server.IdleTimeout},
	{"stays idle", false, func(c net.Conn) { send(c, time.Second, get(hit)) }, time.Second + server.IdleTimeout},
	{"owes a body", false, func(c net.Conn) { send(c, 0, get(hit, "Content-Length: 5")) }, time.Second},
	{"sends a body byte by byte", false, func(c net.Conn) {
		send(c, 0, request("POST", hit, "HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"))
		send(c, 300*time.Millisecond, slices.Repeat([]string{"1\r\nx\r\n"}, 100)...)
	}, time.Second},
}

// TestSlowClients: no client holds a connection for longer than it may. The clock is a bubble's.
func TestSlowClients(t *testing.T) {
	cert := certificate()
	for _, test := range slowClients {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, ended := dialSlow(t, cert, test.tls)
				begun := time.Now()
				var client sync.WaitGroup
				client.Go(func() { test.do(c) })
				client.Go(func() { io.Copy(io.Discard, c) })
				if <-ended; time.Since(begun) != test.end {
					t.Errorf("the connection ended after %v, not %v", time.Since(begun), test.end)
				}
				client.Wait()
			})
		})
	}
}

// dialSlow returns a client's end of a connection in memory, and a channel that is closed when the server has closed
// its own. In a bubble.
func dialSlow(t *testing.T, cert *tls.Certificate, encrypted bool) (net.Conn, chan struct{}) {
	w := newWorld(t, "http://127.0.0.1:9")
	if encrypted {
		w.useTLS(cert)
	}
	ended := make(chan struct{})
	w.srv.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(ended)
		}
	}
	client, srv := net.Pipe()
	l := &oneConn{conns: make(chan net.Conn, 1)}
	l.conns <- srv
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = w.serve(w.srv, l)
	}()
	t.Cleanup(func() {
		client.Close()
		close(l.conns)
		<-served
		w.srv.Close()
		synctest.Wait()
	})
	return client, ended
}

// oneConn is a listener in memory.
type oneConn struct{ conns chan net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowReaders: a client that takes nothing of its answer is cut; one that takes 2 kB/s gets all.
func TestSlowReaders(t *testing.T) {
	cert := certificate()
	for name, ask := range map[string]string{
		"a file": get(hit), "a refusal": get("/%2e%2e"), "words of net/http": get("/%zz"), "words of net/http about size": get("/", "X: "+strings.Repeat("x", 64<<10)),
		"a request with a body that never comes": get(hit, "Content-Length: 5"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, ended := dialSlow(t, cert, false)
				begun := time.Now()
				go io.WriteString(c, ask)
				if <-ended; time.Since(begun) < server.SendPatience || time.Since(begun) > server.SendPatience+2*time.Second {
					t.Errorf("cut after %v", time.Since(begun))
				}
			})
		})
	}
	t.Run("2 kB/s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := dialSlow(t, cert, false)
			go io.WriteString(c, get(hit, "Connection: close"))
			var n int64
			for {
				time.Sleep(10 * time.Second)
				m, err := io.CopyN(io.Discard, c, 20_000)
				if n += m; err != nil {
					break
				}
			}
			if n < hitSize {
				t.Errorf("got %d bytes", n)
			}
		})
	})
}

// TestSlowHTTP2 is the same of HTTP/2, where net/http has bounds of its own.
func TestSlowHTTP2(t *testing.T) {
	cert := certificate()
	// Frames: SETTINGS, and HEADERS of GET hit (RFC 7541: 2 is GET, 7 https, 4 :path, 1 :authority), all of it and half.
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	fields := "\x82\x87\x04" + string(rune(len(hit))) + hit + "\x01\x01x"
	length := "\x00\x00" + string(rune(len(fields)))
	for _, test := range []struct {
		name, send string
		reads      bool
		end        time.Duration // 5 s later at most: TLS says goodbye
	}{
		{"no preface", "", true, 10 * time.Second},
		{"no request", preface, true, server.IdleTimeout},
		{"half a HEADERS frame", preface + length + "\x01\x05\x00\x00\x00\x01" + fields[:10], true, server.IdleTimeout},
		{"HEADERS that are to be continued", preface + length + "\x01\x01\x00\x00\x00\x01" + fields, true, server.IdleTimeout},
		{"a reader that stops", preface + length + "\x01\x05\x00\x00\x00\x01" + fields, false, server.SendPatience},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				raw, ended := dialSlow(t, cert, true)
				c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err := c.Handshake(); err != nil || c.ConnectionState().NegotiatedProtocol != "h2" {
					t.Fatal(err)
				}
				begun := time.Now()
				go io.WriteString(c, test.send)
				if test.reads {
					go io.Copy(io.Discard, c)
				}
				if <-ended; time.Since(begun) < test.end || time.Since(begun) > test.end+6*time.Second {
					t.Errorf("the connection ended after %v, not %v", time.Since(begun), test.end)
				}
			})
		})
	}
}
