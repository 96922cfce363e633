// Package upstream asks origins for files: in order of preference, with bounded connections and rate, and with a memory
// of which of them are down.
//
// A request is built from scratch: beside the path nothing that a client sent can be in it. It follows redirects by
// itself, so that credentials stay with the host they are for and the caller learns who really answered. An answer is
// handed over only when it can be the file (classify has the rules); what is not is the failure of that origin, and
// the next one is asked. There is no total time-out on a body: it may take as long as it makes progress.
//
// Nothing here outlives a call but the connections, and the bodies that callers hold. Nothing is logged.
package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/time/rate"
)

const (
	defaultConnections = 8
	maxConnections     = 1024
)

// Config describes one origin as the operator wrote it; package profile has checked the text.
type Config struct {
	// URL is the profile's prefix there: http or https, no query, no fragment, no user information.
	URL string
	// CA is the path of a PEM file with the only certificates that may vouch for the origin's host; "": the system's.
	CA string
	// ClientCert and ClientKey are paths of PEM files for TLS client authentication; without ClientKey the key is
	// looked for in ClientCert's file.
	ClientCert, ClientKey string
	// Username and the first line of PasswordFile go with every request to the origin's host (basic authentication).
	Username, PasswordFile string
	// Headers are sent with every request to the origin's host.
	Headers map[string]string
	// Connections bounds the requests under way, bodies included; 0 means 8.
	Connections int
	// Rate bounds all bodies together, in bytes per second; 0 means no bound.
	Rate int64
}

// Pool makes origins and holds what they share. Its time-outs may be changed before the first Origin is made.
type Pool struct {
	DialTimeout   time.Duration // name look-up and TCP, default 5 s
	TLSTimeout    time.Duration // handshake, default 5 s
	HeaderTimeout time.Duration // from the request to the end of the response's header, default 8 s
	StallTimeout  time.Duration // longest wait for the next byte of a body, default 10 s
	SlotTimeout   time.Duration // longest wait for one of an origin's Connections, default 15 s

	userAgent string
	received  atomic.Int64 // bytes of bodies

	mu         sync.Mutex
	origins    map[[sha256.Size]byte]*Origin
	transports map[[sha256.Size]byte]*http.Transport
}

// NewPool returns a Pool whose requests carry userAgent. A client gives up after 30 s without bytes; with the default
// time-outs the next origin's bytes come before that.
func NewPool(userAgent string) *Pool {
	return &Pool{
		DialTimeout: 5 * time.Second, TLSTimeout: 5 * time.Second,
		HeaderTimeout: 8 * time.Second, StallTimeout: 10 * time.Second, SlotTimeout: 15 * time.Second,
		userAgent:  userAgent,
		origins:    make(map[[sha256.Size]byte]*Origin),
		transports: make(map[[sha256.Size]byte]*http.Transport),
	}
}

// Origin is one configured place to ask, with its health, its connections and its rate. It is safe for concurrent use.
type Origin struct {
	pool   *Pool
	name   string
	base   *url.URL    // no trailing slash in its path
	origin string      // scheme://host of base: the only one that gets header and the client certificate
	header http.Header // configured, credentials included
	own    *http.Transport
	other  *http.Transport // for the hosts that it redirects to
	slots  chan struct{}   // a value in it is a request under way
	limit  *rate.Limiter   // nil: no bound
	health health
}

// Origin returns the origin that c describes: the same one for an equal c (trailing slashes of the URL aside), so that
// health, connections and rate are shared and survive a reload. It reads c's files each time: where their content has
// changed it makes a new Origin. Errors name the key or file and what to do.
func (p *Pool) Origin(c Config) (*Origin, error) {
	base, err := parseBase(c.URL)
	if err != nil {
		return nil, err
	}
	o := &Origin{pool: p, name: base.String(), base: base, origin: originOf(base), header: make(http.Header)}
	fail := func(err error) error { return fmt.Errorf("upstream %s: %w", o.name, err) }

	var secret struct{ CA, Cert, Key, Password []byte }
	for _, f := range []struct {
		key, path string
		to        *[]byte
	}{
		{"ca", c.CA, &secret.CA}, {"client_cert", c.ClientCert, &secret.Cert},
		{"client_key", c.ClientKey, &secret.Key}, {"password_file", c.PasswordFile, &secret.Password},
	} {
		if f.path == "" {
			continue
		}
		if *f.to, err = os.ReadFile(f.path); err != nil {
			return nil, fail(fmt.Errorf("%s: %w: name a file that the daemon's user may read", f.key, err))
		}
	}
	switch {
	case c.ClientKey != "" && c.ClientCert == "":
		return nil, fail(errors.New("client_key is set without client_cert: set both or none"))
	case (c.Username == "") != (c.PasswordFile == ""):
		return nil, fail(errors.New("one of username and password_file is set without the other: set both or none"))
	case c.Connections < 0 || c.Connections > maxConnections || c.Rate < 0:
		return nil, fail(fmt.Errorf("connections %d, rate %d: neither may be below 0, nor connections above %d", c.Connections, c.Rate, maxConnections))
	case c.Connections == 0:
		c.Connections = defaultConnections
	}
	for name, value := range c.Headers {
		o.header.Set(name, value)
	}
	if c.Username != "" {
		// RFC 7617 2: no colon in the name, no control characters anywhere.
		word := strings.TrimSuffix(strings.TrimSuffix(string(secret.Password), "\n"), "\r")
		if word == "" || strings.Contains(c.Username, ":") || strings.ContainsFunc(c.Username+word, unicode.IsControl) {
			return nil, fail(fmt.Errorf("password_file %s: write the password, and nothing else, on its one line (and no colon in username)", c.PasswordFile))
		}
		o.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.Username+":"+word)))
	}
	if c.ClientCert != "" && c.ClientKey == "" {
		c.ClientKey, secret.Key = c.ClientCert, secret.Cert
	}

	// The content is the identity, not where it is read from.
	id := c
	id.URL, id.CA, id.ClientCert, id.ClientKey, id.PasswordFile, id.Headers = o.name, "", "", "", "", nil
	key := hashOf(id, secret, o.header)
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.origins[key]; have != nil {
		return have, nil
	}
	if o.own, err = p.transport(c, secret.CA, secret.Cert, secret.Key, false); err != nil {
		return nil, fail(err)
	}
	if o.other, err = p.transport(c, secret.CA, nil, nil, true); err != nil {
		return nil, fail(err)
	}
	o.slots = make(chan struct{}, c.Connections)
	if c.Rate > 0 {
		// A tenth of a second's worth at once: far above the timers' grain, and smooth enough for the line.
		o.limit = rate.NewLimiter(rate.Limit(c.Rate), int(min(max(c.Rate/10, 1), 16<<20)))
	}
	p.origins[key] = o
	return o, nil
}

// Received is how many bytes of bodies origins have sent.
func (p *Pool) Received() int64 { return p.received.Load() }

// CloseIdleConnections closes the connections that no request uses, of all origins.
func (p *Pool) CloseIdleConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

// Name returns the configured URL, without a trailing slash. It never holds a secret.
func (o *Origin) Name() string { return o.name }

// Probe asks for the header of the prefix itself, whatever the origin's health, and updates that. Any answer below 500
// means up: an origin need not list its directories. An error says why it is not.
func (o *Origin) Probe(ctx context.Context) error {
	err := o.acquire(ctx)
	if err == nil {
		defer o.release()
		var v verdict
		v, err = o.probe(ctx)
		o.judge(o.health.done(false, v, err))
	}
	if err != nil {
		return fmt.Errorf("upstream: probing %s: %w", o.name, err)
	}
	return nil
}

func (o *Origin) probe(ctx context.Context) (verdict, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.pool.attemptTimeout(), errSlow)
	defer cancel()
	resp, err := o.own.RoundTrip(o.request(ctx, Request{Method: http.MethodHead}, o.url("")))
	if err != nil {
		return verdictOf(ctx, false), describe(ctx, err)
	}
	drain(resp)
	if resp.StatusCode >= 500 {
		return refused, statusError(resp.StatusCode)
	}
	return answered, nil
}

// acquire takes a slot, waiting for it as long as ctx lasts and SlotTimeout at most: a few long downloads must not keep
// everybody else from the next origin.
func (o *Origin) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case o.slots <- struct{}{}:
		return nil
	default:
	}
	patience := time.NewTimer(o.pool.SlotTimeout)
	defer patience.Stop()
	select {
	case o.slots <- struct{}{}:
		return nil
	case <-patience.C:
		return fmt.Errorf("all of its %d connections were in use for %v (connections: allows more)", cap(o.slots), o.pool.SlotTimeout)
	case <-ctx.Done():
		return fmt.Errorf("waiting for one of %d connections to %s: %w", cap(o.slots), o.name, ctx.Err())
	}
}

func (o *Origin) release() { <-o.slots }

// parseBase checks an upstream's URL. It never repeats user information, which may hold a password.
func parseBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if uerr, ok := errors.AsType[*url.Error](err); ok {
		return nil, fmt.Errorf("upstream URL: %w: write it like https://mirror.example.org/fedora", uerr.Err)
	}
	if u.User != nil {
		return nil, fmt.Errorf("upstream URL of %s holds user information: write username and password_file instead", u.Hostname())
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("upstream URL %q: write it like https://mirror.example.org/fedora, without query or fragment", raw)
	}
	// As the operator wrote it, but for + (see escape).
	raw = strings.ReplaceAll(strings.TrimRight(u.EscapedPath(), "/"), "+", "%2B")
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: strings.TrimRight(u.Path, "/"), RawPath: raw}, nil
}

// judge acts on health's finding. When the origin has gone down its idle connections are closed: those that a vanished
// line or a restarted firewall left behind are dead without a sign, and each would cost a trial its header time-out.
func (o *Origin) judge(gone bool) {
	if gone {
		o.own.CloseIdleConnections()
		o.other.CloseIdleConnections()
	}
}

// hashOf makes a map key of values that may hold secrets.
func hashOf(v ...any) [sha256.Size]byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // no value of ours can fail
	}
	return sha256.Sum256(b)
}
