package upstream

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func concat(t *testing.T, names ...string) string {
	t.Helper()
	var all []byte
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return tempFile(t, string(all))
}

func TestTLS(t *testing.T) {
	open, closed := mirrortest.NewTLSUpstream(t, mirrortest.TLS{}), mirrortest.NewTLSUpstream(t, mirrortest.TLS{ClientCert: true})
	open.Put("x", []byte("open"))
	closed.Put("x", []byte("closed"))
	closed.Fault("moved", mirrortest.Fault{Redirect: open.URL + "/x"})
	both := concat(t, open.CA, closed.CA)
	// One that takes whatever certificate it is shown.
	curious := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text(fmt.Sprintf("saw %d certificates", len(r.TLS.PeerCertificates)))(w, r)
	}))
	curious.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	curious.StartTLS()
	defer curious.Close()
	curiousCA := tempFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: curious.Certificate().Raw})))
	closed.Fault("curious", mirrortest.Fault{Redirect: curious.URL + "/x"})
	tests := []struct {
		name, path, want string
		c                Config
		err              string
	}{
		{"authority", "x", "open", Config{URL: open.URL, CA: open.CA}, ""},
		{"unknown authority", "x", "", Config{URL: open.URL}, "name that one's PEM file as ca"},
		{"another authority", "x", "", Config{URL: open.URL, CA: closed.CA}, "certificate signed by unknown authority"},
		{"client", "x", "closed", Config{URL: closed.URL, CA: closed.CA, ClientCert: closed.Cert, ClientKey: closed.Key}, ""},
		{"client in one file", "x", "closed", Config{URL: closed.URL, CA: closed.CA, ClientCert: concat(t, closed.Key, closed.Cert)}, ""},
		{"no client", "x", "", Config{URL: closed.URL, CA: closed.CA}, closed.URL}, // net/http does not always see the alert
		{"redirect", "moved", "open", Config{URL: closed.URL, CA: both, ClientCert: closed.Cert, ClientKey: closed.Key}, ""},
		{"certificate shown", "x", "saw 1 certificates", Config{URL: curious.URL, CA: curiousCA, ClientCert: closed.Cert, ClientKey: closed.Key}, ""},
		{"certificate kept", "curious", "saw 0 certificates", Config{URL: closed.URL, CA: concat(t, closed.CA, curiousCA), ClientCert: closed.Cert, ClientKey: closed.Key}, ""},
	}
	p := NewPool("test")
	defer p.CloseIdleConnections()
	for _, tt := range tests {
		o, err := p.Origin(tt.c)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := o.Do(t.Context(), file(tt.path))
		if tt.err != "" {
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.err) || o.Health().State != Down {
				t.Errorf("%s: %v, %+v", tt.name, err, o.Health())
			}
			continue
		}
		if got := get(t, resp, err); got != tt.want || !resp.Framed || resp.Size != int64(len(got)) {
			t.Errorf("%s: %q, %+v", tt.name, got, resp)
		}
	}
	for _, r := range open.Requests() {
		if r.Proto != "HTTP/2.0" {
			t.Errorf("%s over %s", r, r.Proto)
		}
	}
}

// TestFaults is what can go wrong with a body, over each protocol, on real connections.
func TestFaults(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	tests := []struct {
		name   string
		fault  mirrortest.Fault
		framed bool
		want   func(error) bool
	}{
		{"none", mirrortest.Fault{}, true, nil},
		{"no length", mirrortest.Fault{Chunked: true}, true, nil},
		{"unframed", mirrortest.Fault{Unframed: true}, false, nil},
		// Over HTTP/1.1 net/http says io.ErrUnexpectedEOF, over HTTP/2 what the peer said.
		{"cut", mirrortest.Fault{Truncate: true, At: 500_000}, true, func(err error) bool { return !errors.Is(err, ErrStalled) }},
		{"cut in chunks", mirrortest.Fault{Truncate: true, At: 500_000, Chunked: true}, true, func(err error) bool { return !errors.Is(err, ErrStalled) }},
		{"stall", mirrortest.Fault{Stall: true, At: 500_000}, true, func(err error) bool { return errors.Is(err, ErrStalled) }},
	}
	for proto, u := range map[string]*mirrortest.Upstream{
		"HTTP/1.1": mirrortest.NewUpstream(t), "TLS": mirrortest.NewTLSUpstream(t, mirrortest.TLS{HTTP1: true}), "HTTP/2": mirrortest.NewTLSUpstream(t, mirrortest.TLS{}),
	} {
		u.Put("p/x+y", body)
		p := NewPool("test")
		defer p.CloseIdleConnections()
		o, err := p.Origin(Config{URL: u.URL + "/p", CA: u.CA, Connections: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range tests {
			if proto == "HTTP/2" && !tt.framed {
				continue
			}
			end := u.Fault("**", tt.fault)
			p.StallTimeout = 10 * time.Second
			if tt.fault.Stall {
				p.StallTimeout = 50 * time.Millisecond
			}
			resp, err := o.Do(t.Context(), file("x+y"))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if (err != nil) != (tt.want != nil) || err != nil && !tt.want(err) || !bytes.HasPrefix(body, b) || err == nil && len(b) != len(body) || resp.Framed != tt.framed {
				t.Errorf("%s, %s: %d bytes, framed %v, %v", proto, tt.name, len(b), resp.Framed, err)
			}
			end()
			o.health.bodies = 0 // or three in a row would end the table
		}
		// The rest of it by Range.
		resp, err := o.Do(t.Context(), Request{Method: "GET", Path: "x+y", Offset: 999_990})
		if got := get(t, resp, err); got != "0123456789" || resp.Offset != 999_990 || resp.Size != 1_000_000 || resp.Status != 206 {
			t.Errorf("%s: %q of %+v", proto, got, resp)
		}
		if len(o.slots) != 0 {
			t.Errorf("%s: %d slots taken", proto, len(o.slots))
		}
	}
}
