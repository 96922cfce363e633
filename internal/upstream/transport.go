package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	maxHeaderBytes = 64 << 10

	// What drain reads of an answer that nobody wants, to keep its connection: an error page's worth.
	drainBytes = 16 << 10
	drainTime  = 250 * time.Millisecond
)

// transport returns the Pool's one transport for these PEM blocks. With also set, ca is trusted beside the system's
// certificates, not instead of them. c names the files in errors. The caller holds p.mu.
func (p *Pool) transport(c Config, ca, cert, key []byte, also bool) (*http.Transport, error) {
	id := hashOf(ca, cert, key, also && ca != nil)
	if t := p.transports[id]; t != nil {
		return t, nil
	}
	conf := &tls.Config{}
	if ca != nil {
		conf.RootCAs = x509.NewCertPool()
		if system, err := x509.SystemCertPool(); also && err == nil {
			conf.RootCAs = system
		}
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("ca: %s holds no PEM certificate: name a file that does", c.CA)
		}
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client_cert %s with client_key %s: %w: name PEM files of a certificate and its key", c.ClientCert, c.ClientKey, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}

	// From the process's default it has the proxies of the environment, HTTP/2, and the dialer, which tests replace by
	// one that reaches nothing but loopback.
	t := http.DefaultTransport.(*http.Transport).Clone()
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, p.DialTimeout)
		defer cancel()
		return dial(ctx, network, addr)
	}
	t.TLSClientConfig = conf
	t.TLSHandshakeTimeout = p.TLSTimeout
	t.ResponseHeaderTimeout = p.HeaderTimeout
	t.MaxResponseHeaderBytes = maxHeaderBytes
	t.DisableCompression = true // the bytes stored are the bytes sent
	// Slots bound the connections. Every one of them may stay, or each request beyond the second dials anew.
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, maxConnections
	// HTTP/2 puts all requests on one connection: when it is dead without a sign, nobody would ever dial a new one.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: p.StallTimeout, PingTimeout: p.DialTimeout}
	p.transports[id] = t
	return t, nil
}

// attemptTimeout bounds the time from the first request to the final answer's header, over all redirects.
func (p *Pool) attemptTimeout() time.Duration { return p.DialTimeout + p.TLSTimeout + p.HeaderTimeout }

// errSlow is the cause with which a request is cancelled after attemptTimeout.
var errSlow = errors.New("no answer in time")

// verdictOf judges a request that brought no response. The origin is not to blame where our caller gave up; and what a
// host that it redirected to did wrong, it may do better with the next one.
func verdictOf(ctx context.Context, redirected bool) verdict {
	switch {
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), errSlow):
		return neutral
	case redirected:
		return refused
	}
	return dead
}

// describe returns err, or the reason for which ctx, the request's, was cancelled.
func describe(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSlow) {
		return errSlow
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w: if its own authority signed it, name that one's PEM file as ca", err)
	}
	return err
}

// drain ends a response whose body nobody wants, and keeps its connection where that is cheap.
func drain(resp *http.Response) {
	if resp.ContentLength <= drainBytes && framed(resp) {
		t := time.AfterFunc(drainTime, func() { resp.Body.Close() })
		_, _ = io.CopyN(io.Discard, resp.Body, drainBytes)
		t.Stop()
	}
	resp.Body.Close()
}
