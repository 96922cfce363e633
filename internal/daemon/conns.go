package daemon

import (
	"container/list"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxConns bounds the connections of all clients. One that waits costs 20 kB of memory (with TLS 40 kB).
	maxConns = 8192
	// clientShare is how much of that one client address may have: a quarter, so that a proxy or a whole line behind
	// one address still works, and no single host can take all.
	clientShare = 4
	// maxStreams bounds the requests under way on one HTTP/2 connection: dnf makes 20 at most.
	maxStreams = 20
	// otherFiles are the descriptors that are not the connections': the store keeps 1024 open, the rest is for
	// upstreams, flights, listeners and the index.
	otherFiles = 1024 + 256
	// complainEvery is how often the log tells that connections were closed for a bound.
	complainEvery = time.Minute
)

// connLimit is how many connections the limit of open files allows for: each may hold a stored file per request under
// way beside itself.
func connLimit(nofile, requests int) int {
	n := (nofile - otherFiles) / (1 + requests)
	return min(maxConns, max(n, nofile/4/(1+requests), 1))
}

// conns bounds the connections of clients, all together and per client address. It counts by http.Server.ConnState,
// because wrapped connections have no sendfile. Over a bound the connection that has waited longest gives way: one that
// is idle, or has not sent the whole header of its first request yet (a slow client's, too). Where every connection
// has a request under way, the new one is closed.
type conns struct {
	perClient int
	log       *slog.Logger

	mu      sync.Mutex
	all     group
	clients map[netip.Prefix]*group
	open    map[net.Conn]*conn
	closed  int // because of a bound, since the log told
	told    time.Time
}

// group is connections that have a bound together.
type group struct {
	limit   int // 0: none
	open    int
	waiting list.List // of *conn, the one that has waited longest first
}

type conn struct {
	net.Conn
	client netip.Prefix
	in     [2]*group        // its client's, and all
	place  [2]*list.Element // in their waiting; nil while a request is under way
}

func newConns(limit int, log *slog.Logger) *conns {
	return &conns{
		perClient: max(1, limit/clientShare), log: log, all: group{limit: limit},
		clients: make(map[netip.Prefix]*group), open: make(map[net.Conn]*conn),
	}
}

// changed is the http.Server's ConnState.
func (cs *conns) changed(nc net.Conn, state http.ConnState) {
	var surplus net.Conn
	cs.mu.Lock()
	c := cs.open[nc]
	switch {
	case state == http.StateNew:
		surplus = cs.add(nc)
	case c == nil: // closed by us; its goroutine has not noticed yet
	case state == http.StateIdle:
		c.wait()
	case state == http.StateActive:
		c.work()
	default:
		cs.drop(c)
	}
	cs.mu.Unlock()
	if surplus != nil {
		cs.close(surplus)
	}
}

// add takes nc into the books. It returns the connection that is to be closed for it, which may be nc itself.
func (cs *conns) add(nc net.Conn) (surplus net.Conn) {
	key, bounded := clientOf(nc.RemoteAddr())
	g := cs.clients[key]
	if g == nil {
		g = &group{}
		if bounded {
			g.limit = cs.perClient
		}
	}
	c := &conn{Conn: nc, client: key, in: [2]*group{g, &cs.all}}
	for _, g := range c.in {
		if g.limit == 0 || g.open < g.limit {
			continue
		}
		oldest := g.waiting.Front()
		if oldest == nil {
			return nc
		}
		// It leaves both groups: there is no second one to close.
		gone := oldest.Value.(*conn)
		cs.drop(gone)
		surplus = gone.Conn
		break
	}
	for _, g := range c.in {
		g.open++
	}
	cs.clients[key], cs.open[nc] = g, c
	c.wait()
	return surplus
}

func (cs *conns) drop(c *conn) {
	c.work()
	for _, g := range c.in {
		g.open--
	}
	if c.in[0].open == 0 {
		delete(cs.clients, c.client)
	}
	delete(cs.open, c.Conn)
}

// wait notes that c has no request under way from now on.
func (c *conn) wait() {
	c.work()
	for i, g := range c.in {
		c.place[i] = g.waiting.PushBack(c)
	}
}

// work notes that c has a request under way.
func (c *conn) work() {
	for i, g := range c.in {
		if c.place[i] != nil {
			g.waiting.Remove(c.place[i])
			c.place[i] = nil
		}
	}
}

// close closes nc, and tells why now and then.
func (cs *conns) close(nc net.Conn) {
	client := nc.RemoteAddr().String()
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn() // its own Close may wait for the client
	}
	_ = nc.Close() // it is gone either way
	cs.mu.Lock()
	cs.closed++
	n := cs.closed
	if !cs.told.IsZero() && time.Since(cs.told) < complainEvery {
		n = 0
	} else {
		cs.closed, cs.told = 0, time.Now()
	}
	open := cs.all.open
	cs.mu.Unlock()
	if n > 0 {
		cs.log.Warn("too many connections: those that wait are closed, the oldest first", "closed", n, "client", client,
			"open", open, "limit", cs.all.limit, "per_client", cs.perClient)
	}
}

// clientOf is the network address that stands for one client: an IPv4 address, or an IPv6 network of /64, of which one
// host can use all. A proxy on this machine, which brings other people's requests, is not bounded.
func clientOf(addr net.Addr) (key netip.Prefix, bounded bool) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return key, false
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	key, err := ip.WithZone("").Prefix(bits)
	return key, err == nil && !ip.IsLoopback()
}
