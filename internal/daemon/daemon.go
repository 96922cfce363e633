package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sync/errgroup"

	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/monitor"
	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/server"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/trim"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// drain is how long transfers may go on after the daemon was told to stop: librepo gives up at 30 s, so what is cut
// then is asked of our successor in time.
const drain = 20 * time.Second

// Daemon is one mirror, open and ready to run.
type Daemon struct {
	opts  Options
	pool  *upstream.Pool
	log   *slog.Logger
	level slog.LevelVar

	store   *store.Store
	index   *index.Index
	journal *journal.Journal
	flights *fetch.Group
	mirror  *mirror.Mirror
	monitor *monitor.Monitor
	trimmer *trim.Trimmer
	land    context.CancelFunc // ends flights and looks
	server  *server.Server
	cert    atomic.Pointer[tls.Certificate]
	admin   administration

	mu    sync.Mutex // held over a reload
	setup *Setup
}

// New opens root, state and listeners as setup says. Log lines go to out. Close it, or Run it.
func New(o Options, setup *Setup, pool *upstream.Pool, out io.Writer) (*Daemon, error) {
	d := &Daemon{opts: o, pool: pool, setup: setup}
	cfg := setup.Config
	d.setLevel(cfg)
	if cfg.Log.Format == "json" {
		d.log = slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: &d.level}))
	} else {
		d.log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: &d.level}))
	}
	var err error
	if d.store, err = store.Open(cfg.Root, int64(cfg.Reserve)); err != nil {
		return nil, err
	}
	var note string
	if d.index, note, err = index.Open(cfg.State); err != nil {
		return nil, errors.Join(err, d.store.Close())
	}
	if note != "" {
		d.log.Warn("index", "note", note)
	}
	if d.journal, err = journal.Open(filepath.Join(cfg.State, "journal")); err != nil {
		return nil, errors.Join(err, d.index.Close(), d.store.Close())
	}
	// Flights end after the clients do, not with the signal.
	ctx, cancel := context.WithCancel(context.Background())
	d.land = cancel
	d.flights = fetch.New(ctx, d.store, d.landed)
	d.mirror = mirror.New(d.store, d.index, d.flights, d.journal, d.note)
	d.monitor = monitor.New(ctx, d.mirror, d.index, d.store, d.flights, setup.Table, d.looked)
	d.mirror.Watch(d.monitor)
	d.trimmer = trim.New(d.store, d.mirror, d.index, d.trimmed)
	d.store.SetQuotas(quotas(setup))
	d.store.SetMakeRoom(d.trimmer.MakeRoom)
	d.cert.Store(setup.cert)
	d.server = server.New(d.mirror, d.store, d.log, d.view(setup))
	if err := d.mirror.Recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("finishing what the last run began: %w", err), d.Close())
	}
	return d, nil
}

// Close ends the flights, then closes index and root.
func (d *Daemon) Close() error {
	d.land()
	d.monitor.Wait()
	d.flights.Wait()
	d.pool.CloseIdleConnections()
	return errors.Join(d.closeAdmin(), d.index.Close(), d.journal.Close(), d.store.Close())
}

// Listen opens the admin socket, and returns the sockets that systemd passed, or else opens the configured addresses.
func (d *Daemon) Listen() ([]net.Listener, error) {
	if err := d.listenAdmin(); err != nil {
		return nil, err
	}
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("taking the sockets passed by systemd: %w", err)
	}
	if passed = slices.DeleteFunc(passed, func(l net.Listener) bool { return l == nil }); len(passed) > 0 {
		return passed, nil
	}
	var ls []net.Listener
	for _, addr := range d.setup.Config.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			return nil, fmt.Errorf("listening: %w%s", err, adviceOnListening(err))
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// adviceOnListening is what to do about an address that can't be listened on.
func adviceOnListening(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ": another server has it: stop that one, or name another address (listen, --listen)"
	case errors.Is(err, syscall.EACCES):
		return ": ports below 1024 are for root, for CAP_NET_BIND_SERVICE, or for sockets passed by systemd"
	}
	return ": name an address of this machine, as :8080 or 127.0.0.1:8080 (listen, --listen)"
}

// Run serves on ls until ctx ends, then stops in order: no new connections, at most drain for the transfers under
// way, the flights, the index, the root. It calls ready once it serves, and reloads for each value of reload. The Daemon
// is closed when it returns.
func (d *Daemon) Run(ctx context.Context, ls []net.Listener, reload <-chan os.Signal, ready func(context.Context)) error {
	requests := 1 // under way on one connection
	if d.cert.Load() != nil {
		requests = maxStreams
	}
	bound := connLimit(openFiles(), requests)
	srv := d.httpServer(bound)
	var work errgroup.Group
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for _, l := range ls {
		d.log.Info("serving", "addr", l.Addr().String(), "root", d.store.Dir(), "version", d.opts.Version, "connections", bound)
		work.Go(func() error {
			err := d.serve(srv, l)
			if !errors.Is(err, http.ErrServerClosed) {
				err = fmt.Errorf("serving on %s: %w", l.Addr(), err)
				fail(err)
				return err
			}
			return nil
		})
	}
	work.Go(func() error {
		ready(ctx)
		return nil
	})
	work.Go(func() error {
		d.index.Run(ctx, func(err error) { d.log.Error("index", "err", err) })
		return nil
	})
	work.Go(func() error {
		d.watch(ctx)
		return nil
	})
	work.Go(func() error {
		d.trimmer.Run(ctx)
		return nil
	})
	work.Go(func() error {
		d.serveAdmin(ctx)
		return nil
	})
	work.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-reload:
				_ = d.Reload() // it has said so in the log
			}
		}
	})
	<-ctx.Done()
	d.log.Info("stopping", "drain", drain.String())
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := srv.Shutdown(limit); err != nil {
		d.log.Warn("transfers were cut", "after", drain.String())
		_ = srv.Close()
	}
	err := work.Wait()
	err = errors.Join(err, d.Close())
	d.log.Info("stopped")
	return err
}

// httpServer is net/http's server with a bound on everything that a client could hold, limit on its connections.
func (d *Daemon) httpServer(limit int) *http.Server {
	return &http.Server{
		Handler:                      d.server,
		ReadHeaderTimeout:            server.HeaderTimeout,
		WriteTimeout:                 server.SendPatience, // of what net/http itself says; d.server sets its own
		IdleTimeout:                  server.IdleTimeout,
		MaxHeaderBytes:               server.MaxHeaderBytes,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: server.SendPatience},
		ConnState:                    newConns(limit, d.log).changed,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any other method
		ErrorLog:                     log.New(noise{d.log}, "", 0),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return d.cert.Load(), nil
			},
		},
	}
}

// openFiles is how many files this process may have open. Go has raised the soft limit to the hard one.
func openFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<20))
}

func (d *Daemon) serve(srv *http.Server, l net.Listener) error {
	if d.cert.Load() != nil {
		return srv.ServeTLS(l, "", "")
	}
	return srv.Serve(l)
}

// Reload reads the configuration anew and puts all of it in force, or nothing: if anything is wrong with it, or if
// something changed that can't be changed while the daemon runs.
func (d *Daemon) Reload() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	setup, err := Configure(d.opts, d.pool)
	if err != nil {
		d.log.Error("reload refused: all stays as it was", "err", err)
		return err
	}
	now := setup.Config
	if keys := needRestart(d.setup.Config, now); len(keys) > 0 {
		err := fmt.Errorf("%s changed: that needs a restart", strings.Join(keys, ", "))
		d.log.Error("reload refused: all stays as it was", "err", err)
		return err
	}
	d.cert.Store(setup.cert)
	d.setLevel(now)
	d.store.SetReserve(int64(now.Reserve))
	d.server.Swap(d.view(setup))
	d.monitor.Swap(setup.Table)
	d.store.SetQuotas(quotas(setup))
	d.trimmer.Poke()
	d.setup = setup
	d.log.Info("reloaded", "profiles", len(setup.Table.Profiles()))
	return nil
}

// needRestart names the keys that differ and can't be changed while the daemon runs.
func needRestart(was, now *profile.Config) (keys []string) {
	for _, k := range []struct {
		key     string
		differs bool
	}{
		{"root", was.Root != now.Root},
		{"state", was.State != now.State},
		{"socket", was.SocketPath() != now.SocketPath()},
		{"listen", !slices.Equal(was.Listen, now.Listen)},
		{"tls (on or off)", (was.TLS == nil) != (now.TLS == nil)},
		{"log.format", was.Log.Format != now.Log.Format},
	} {
		if k.differs {
			keys = append(keys, k.key)
		}
	}
	return keys
}

func (d *Daemon) view(s *Setup) *server.View {
	return &server.View{Table: s.Table, Allow: s.Config.Allow, AccessLog: s.Config.Log.Access, Status: d.status}
}

func (d *Daemon) setLevel(cfg *profile.Config) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cfg.Log.Level)); err == nil { // profile lets only slog's names pass
		d.level.Set(l)
	}
}

// landed logs the end of a flight.
func (d *Daemon) landed(r fetch.Result) {
	attrs := []any{"path", r.Path, "ms", r.Time.Milliseconds()}
	if r.Origin != "" {
		attrs = append(attrs, "origin", r.Origin, "status", r.Status, "bytes", r.Bytes, "parts", r.Parts)
	}
	switch {
	case r.Err == nil && r.Status == http.StatusNotModified:
		d.log.Info("not modified", attrs...)
	case errors.Is(r.Err, fetch.ErrCurrent), errors.Is(r.Err, fs.ErrNotExist):
		d.log.Debug("fetch", append(attrs, "err", r.Err)...)
	case errors.Is(r.Err, store.ErrNoSpace):
		d.log.Warn("no room: passing through unstored", append(attrs, "err", r.Err)...)
	case r.Err != nil:
		d.log.Warn("fetch failed", append(attrs, "err", r.Err)...)
	default:
		if !r.Sum.IsZero() {
			attrs = append(attrs, "verified", r.Sum.Algorithm().String())
		}
		d.log.Info("fetched", append(attrs, "stored", r.Kept)...)
	}
}

// watch looks at what the tree holds, if the index does not know, and then after the repositories.
func (d *Daemon) watch(ctx context.Context) {
	if d.index.Fresh() {
		n, err := d.monitor.Rebuild(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.log.Error("the index could not be made again from the tree", "err", err)
		case n > 0:
			d.log.Info("the index was made again from the tree", "repositories", n)
		}
	}
	d.monitor.Run(ctx)
}

// looked logs what the monitor did.
func (d *Daemon) looked(e monitor.Event) {
	attrs := []any{"repository", e.Root}
	add := func(key string, v any, known bool) {
		if known {
			attrs = append(attrs, key, v)
		}
	}
	add("from", e.From, e.From != "")
	add("to", e.To, e.To != "")
	add("origin", e.Origin, e.Origin != "")
	add("files", e.Files, e.Files > 0)
	add("ms", e.Time.Milliseconds(), e.Time > 0)
	add("err", e.Err, e.Err != nil)
	level := slog.LevelInfo
	if e.Err != nil || e.What == monitor.Vetoed {
		level = slog.LevelWarn
	}
	d.log.Log(context.Background(), level, "repository", append([]any{"what", e.What}, attrs...)...)
}

// quotas are the limits of the site and of each profile.
func quotas(s *Setup) []store.Quota {
	site := int64(s.Config.Size)
	var list []store.Quota
	for _, p := range s.Table.Profiles() {
		switch dir := p.Dir(); {
		case p.Size == 0:
		case dir != "":
			list = append(list, store.Quota{Dir: dir, Limit: p.Size})
		case site == 0 || p.Size < site: // a profile at /: its limit and the site's are of the same directory
			site = p.Size
		}
	}
	return append(list, store.Quota{Limit: site})
}

// trimmed logs what was evicted.
func (d *Daemon) trimmed(e trim.Event) {
	if e.Err != nil {
		d.log.Warn("trim", "dir", e.Dir, "err", e.Err)
		return
	}
	d.log.Info("evicted", "dir", e.Dir, "files", e.Files, "bytes", e.Bytes, "used", e.Used)
}

// note logs what goes wrong behind the clients' backs.
func (d *Daemon) note(err error) { d.log.Warn("metadata", "err", err) }

// noise lets net/http's complaints about single connections through at level debug, for clients come and go, but for
// a handler's panic, which is our bug.
type noise struct{ log *slog.Logger }

func (n noise) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(p, []byte("panic serving")) {
		level = slog.LevelError
	}
	n.log.Log(context.Background(), level, "http", "note", string(p))
	return len(p), nil
}
