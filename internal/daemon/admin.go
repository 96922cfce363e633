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
	"strings"
	"sync"
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

	mu     sync.Mutex // held while public is made
	public *admin.Status
}

// Place is where a mirror is: absolute paths.
type Place struct{ Root, State, Socket string }

// Locate says where the mirror is that o means. The configuration need not be right in all else.
func Locate(o Options) (Place, error) {
	cfg, err := loadConfig(o)
	if cfg == nil {
		return Place{}, err
	}
	return Place{Root: cfg.Root, State: cfg.State, Socket: cfg.SocketPath()}, nil
}

// ForCommand is o as a command means it that looks for a mirror: --root alone also finds one that was served by --root and
// --profile alone, whose state is in its root, unless it is the root that the machine's own configuration has.
func (o Options) ForCommand() Options {
	if o.Root == "" || o.Config != "" || o.State != "" || len(o.Profiles) > 0 {
		return o
	}
	if machine, err := Locate(Options{}); err == nil && SameDir(machine.Root, o.Root) {
		return o
	}
	if info, err := os.Stat(stateIn(o.Root)); err == nil && info.IsDir() {
		o.inRoot = true
	}
	return o
}

// SameDir reports whether a and b name the same directory.
func SameDir(a, b string) bool {
	if a == b {
		return true
	}
	ai, aerr := os.Stat(a)
	bi, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

// NowhereError says that there is no mirror, or no state of it, where the options say. Nothing was made there.
type NowhereError struct{ Err error }

func (e *NowhereError) Error() string { return e.Err.Error() }
func (e *NowhereError) Unwrap() error { return e.Err }

// CheckRoot finds out whether a mirror is at root; else the error is a NowhereError.
func CheckRoot(root string) error {
	_, err := os.Stat(filepath.Join(root, store.Private, "format"))
	if errors.Is(err, fs.ErrNotExist) {
		return &NowhereError{fmt.Errorf("%s is no mirror: nothing was ever served from it (root, --root)", root)}
	}
	return err
}

// Offline opens a mirror that no daemon runs, to carry out commands by its Admin: it takes the root's lock, finishes what a
// crash left, and learns from the tree what the index has lost. Nothing is made where no mirror is, nor where its state is
// not: then the error is a NowhereError. Close it.
func Offline(ctx context.Context, o Options, setup *Setup, pool *upstream.Pool, out io.Writer) (*Daemon, error) {
	if err := CheckRoot(setup.Config.Root); err != nil {
		return nil, err
	}
	if _, err := os.Stat(setup.Config.State); errors.Is(err, fs.ErrNotExist) {
		return nil, &NowhereError{fmt.Errorf("there is no state directory %s: correct it (state, --state); if it was lost, the daemon makes it again from the tree", setup.Config.State)}
	}
	info, err := os.Stat(filepath.Join(setup.Config.Root, store.Private))
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

// AbsoluteProfiles are the profiles of --profile, with the names of files made absolute.
func AbsoluteProfiles(list []string) []string {
	var all []string
	for _, name := range list {
		if strings.Contains(name, "/") || strings.HasSuffix(name, ".yaml") {
			if abs, err := filepath.Abs(name); err == nil {
				name = abs
			}
		}
		all = append(all, name)
	}
	return all
}

// Admin carries out what comes through the admin socket.
func (d *Daemon) Admin() *admin.Service {
	d.mu.Lock()
	state := d.setup.Config.State
	d.mu.Unlock()
	s := &admin.Service{
		Version: d.opts.Version, Profiles: AbsoluteProfiles(d.opts.Profiles), Started: d.admin.started, State: state,
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
	return admin.Traffic{Requests: n.Requests, Hits: n.Hits, Failed: n.Failed, Sent: n.Sent, Fetched: d.pool.Received()}
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
