package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// statusAge is how old what /-/api/status says may be: clients cannot make it cost more by asking often.
const statusAge = time.Second

// administration is the daemon's side of the admin socket.
type administration struct {
	listener net.Listener // from Listen to Run's end, or Close; nil without
	started  time.Time    // set by Listen; zero: this is no running daemon
	fetched  atomic.Int64 // bytes of files from upstream

	mu     sync.Mutex // held while public is made
	public *admin.Status
}

// AdminSocket is where a daemon that was started with these options has its admin socket. The configuration need not be
// right in all else.
func AdminSocket(o Options) (string, error) {
	cfg, err := loadConfig(o)
	if cfg == nil {
		return "", err
	}
	return cfg.SocketPath(), nil
}

// Offline opens a mirror that no daemon runs, to carry out commands by its Admin: it takes the root's lock, finishes what a
// crash left, and learns from the tree what the index has lost. Nothing is made where no mirror is. Close it.
func Offline(ctx context.Context, o Options, setup *Setup, pool *upstream.Pool, out io.Writer) (*Daemon, error) {
	private := filepath.Join(setup.Config.Root, store.Private)
	info, err := os.Stat(private)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no mirror: nothing was ever served from it (root, --root)", setup.Config.Root)
	}
	if err != nil {
		return nil, err
	}
	// What root writes there the daemon could not change any more.
	if owner := info.Sys().(*syscall.Stat_t).Uid; os.Geteuid() == 0 && owner != 0 {
		name := "#" + strconv.Itoa(int(owner))
		if u, err := user.LookupId(name[1:]); err == nil {
			name = u.Username
		}
		return nil, fmt.Errorf("no daemon runs, and the mirror %s belongs to the user %s: run the command as that user (sudo -u %s …)", setup.Config.Root, name, name)
	}
	quiet := *setup
	config := *setup.Config
	config.Log.Level, config.Log.Format = "warn", "text"
	quiet.Config = &config
	d, err := New(o, &quiet, pool, out)
	if err != nil {
		return nil, err
	}
	if d.index.Fresh() {
		if _, err := d.monitor.Rebuild(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("learning from the tree what the index has lost: %w", err), d.Close())
		}
	}
	return d, nil
}

// Admin carries out what comes through the admin socket.
func (d *Daemon) Admin() *admin.Service {
	d.mu.Lock()
	state := d.setup.Config.State
	d.mu.Unlock()
	s := &admin.Service{
		Version: d.opts.Version, Started: d.admin.started, State: state,
		Mirror: d.mirror, Monitor: d.monitor, Index: d.index, Store: d.store, Journal: d.journal,
		Table: func() *site.Table { return d.server.View().Table },
	}
	if !s.Started.IsZero() {
		s.Traffic = d.traffic
	}
	return s
}

func (d *Daemon) traffic() admin.Traffic {
	n := d.server.Stats()
	return admin.Traffic{Requests: n.Requests, Hits: n.Hits, Failed: n.Failed, Sent: n.Sent, Fetched: d.admin.fetched.Load()}
}

// listenAdmin opens the admin socket.
func (d *Daemon) listenAdmin() error {
	l, err := admin.Listen(d.setup.Config.SocketPath())
	if err == nil {
		d.admin.listener, d.admin.started = l, time.Now()
	}
	return err
}

// serveAdmin carries out what comes through the admin socket, until ctx ends and all of it has.
func (d *Daemon) serveAdmin(ctx context.Context) {
	if d.admin.listener == nil {
		return
	}
	err := admin.Serve(ctx, d.admin.listener, d.Admin(), func(name string, params json.RawMessage, took time.Duration, err error) {
		attrs := []any{"command", name, "params", string(params[:min(len(params), 1000)]), "ms", took.Milliseconds()}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		d.log.Info("admin", attrs...)
	})
	if err != nil {
		d.log.Error("no command can be carried out any more: restart the daemon", "err", err)
	}
}

// closeAdmin closes the admin socket, if it was not served.
func (d *Daemon) closeAdmin() error {
	if d.admin.listener == nil {
		return nil
	}
	if err := d.admin.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// status is what /-/api/status says.
func (d *Daemon) status() any {
	a := &d.admin
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.public == nil || time.Since(a.public.Now) > statusAge {
		st, err := d.Admin().Status(context.Background())
		if err != nil {
			d.log.Warn("status", "err", err)
		}
		a.public = st.Public()
	}
	return a.public
}
