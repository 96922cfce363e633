// Package server is the public HTTP side: it turns requests into targets, answers into bytes, and errors into
// statuses and words. It changes nothing: clients can only read.
package server

import (
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

const (
	// HeaderTimeout is how long a client may take to send a request's header.
	HeaderTimeout = 30 * time.Second
	// IdleTimeout is how long a connection is kept for the next request.
	IdleTimeout = 2 * time.Minute
	// MaxHeaderBytes bounds a request's header: ten times what any client sends.
	MaxHeaderBytes = 32 << 10

	// SendPatience is how long a client may take for sendStep bytes: 1.7 kB/s. librepo gives up below 1 kB/s.
	SendPatience = 5 * time.Minute
	sendStep     = 512 << 10

	// contentPatience is how long a request's content, which nobody reads, may still take to come.
	contentPatience = time.Second

	reserved = "/-/" // prefix of the paths that are the mirror's own
)

// View is what requests are served by; a reload swaps all of it at once.
type View struct {
	Table     *site.Table
	Allow     []netip.Prefix // client networks; none: everybody
	AccessLog bool
	Status    func() any // what /-/api/status says, as JSON; nil: it is not there
}

// Server is the http.Handler of the mirror. It is safe for concurrent use.
type Server struct {
	mirror *mirror.Mirror
	store  *store.Store // for listings
	log    *slog.Logger
	view   atomic.Pointer[View]
	counts counters
}

// New returns a Server of what m answers and s stores.
func New(m *mirror.Mirror, s *store.Store, log *slog.Logger, v *View) *Server {
	srv := &Server{mirror: m, store: s, log: log}
	srv.view.Store(v)
	return srv
}

// Swap replaces what requests are served by. Requests under way go on by the old one.
func (s *Server) Swap(v *View) { s.view.Store(v) }

// View returns what requests are served by now.
func (s *Server) View() *View { return s.view.Load() }

// ServeHTTP answers one request, and logs it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	view := s.view.Load()
	rec := record(w)
	if view.AccessLog {
		begun := time.Now()
		defer func() { s.access(rec, r, time.Since(begun)) }()
	}
	if r.ProtoMajor == 1 && (r.ContentLength != 0 || r.ProtoMinor == 0) {
		// Where such a request ends is a matter of opinion (RFC 9112 6.1, 6.3): it is the connection's last. Without
		// the deadline net/http would wait for the content for ever.
		rec.Header().Set("Connection", "close")
		if r.ContentLength != 0 {
			defer func() { _ = rec.control.SetReadDeadline(time.Now().Add(contentPatience)) }()
		}
	}
	s.route(rec, r, view)
}

func (s *Server) route(w *recorder, r *http.Request, view *View) {
	switch {
	case !allowed(view.Allow, r.RemoteAddr) && r.URL.Path != reserved+"healthz":
		refuse(w, r, http.StatusForbidden, "This mirror serves other networks than yours. Its operator lists them in `allow`.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, r, http.StatusMethodNotAllowed, "A mirror is read by GET and HEAD only.")
	case strings.HasPrefix(r.URL.Path, reserved):
		s.own(w, r, view)
	default:
		s.mirrorPath(w, r, view)
	}
}

// mirrorPath answers for a path of the mirror: a file, or a directory's listing.
func (s *Server) mirrorPath(w *recorder, r *http.Request, view *View) {
	t, err := view.Table.Resolve(r.Host, r.URL.Path)
	if err != nil {
		if errors.Is(err, site.ErrNoRoute) && s.above(w, r, view) {
			return
		}
		s.fail(w, r, err)
		return
	}
	switch {
	case t.Dir && !strings.HasSuffix(r.URL.Path, "/"):
		redirectToDirectory(w, r)
		return
	case t.Dir:
		s.listing(w, r, t)
		return
	}
	open := s.mirror.Open
	if r.Method == http.MethodHead {
		open = s.mirror.Stat
	}
	a, err := open(r.Context(), t)
	if isDirectory(err) {
		redirectToDirectory(w, r)
		return
	}
	if err != nil {
		if statusOf(err) >= http.StatusInternalServerError {
			s.counts.failed.Add(1)
		}
		s.fail(w, r, err)
		return
	}
	defer a.Close()
	w.cache = a.CacheStatus()
	whole := false
	defer func() { s.count(w, a.Hit(), whole) }() // also when send breaks it off
	s.send(w, r, a)
	whole = true
}

// allowed reports whether the client at addr (host:port) may be served.
func allowed(networks []netip.Prefix, addr string) bool {
	if len(networks) == 0 {
		return true
	}
	client, err := netip.ParseAddrPort(addr)
	if err != nil {
		return false
	}
	ip := client.Addr().Unmap().WithZone("")
	for _, n := range networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// access writes the access log's line.
func (s *Server) access(w *recorder, r *http.Request, d time.Duration) {
	s.log.Info("request", "client", r.RemoteAddr, "method", r.Method, "host", r.Host, "path", r.URL.EscapedPath(),
		"status", w.status, "bytes", w.bytes, "ms", d.Milliseconds(), "cache", w.cache, "range", r.Header.Get("Range"),
		"agent", r.UserAgent())
}
