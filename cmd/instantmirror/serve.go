package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/instantmirror/instantmirror/internal/daemon"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// configFlags say which configuration is meant. Every command takes the same ones.
type configFlags struct {
	Config  string   `help:"Configuration file. Default: ${config}, if it is there." placeholder:"FILE"`
	Root    string   `help:"Directory of the mirror." placeholder:"DIR"`
	State   string   `help:"Directory of the daemon's own notes." placeholder:"DIR"`
	Profile []string `help:"This profile and no others; may be repeated. Without --config the machine's own configuration is then left aside, and the state is kept in ROOT/.instantmirror/state. A running daemon has its own: leave it out." placeholder:"NAME|FILE" sep:"none"`
}

func (f configFlags) options() daemon.Options {
	return daemon.Options{Config: f.Config, Root: f.Root, State: f.State, Profiles: f.Profile, Version: programVersion()}
}

type serveCmd struct {
	configFlags
	Listen []string `help:"Address to listen on, as :8080 or 127.0.0.1:8080; may be repeated." placeholder:"ADDR" sep:"none"`
}

// Run serves until SIGTERM or SIGINT. A second signal ends the process at once.
func (c *serveCmd) Run(o output) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before anything else: by default it would end us
	syscall.Umask(0o022)               // a mkdir must not need a chmod, between which two a crash could fall
	opts := c.options()
	opts.Listen = c.Listen
	pool := newPool()
	setup, err := daemon.Configure(opts, pool)
	if err != nil {
		return &configError{err}
	}
	d, err := daemon.New(opts, setup, pool, o.err)
	if err != nil {
		return err
	}
	ls, err := d.Listen()
	if err != nil {
		return errors.Join(err, d.Close())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	return d.Run(ctx, ls, hup, func(ctx context.Context) { welcome(ctx, o.out, setup, ls) })
}

func newPool() *upstream.Pool {
	return upstream.NewPool("instantmirror/" + strings.Trim(programVersion(), "()") + " (+https://github.com/instantmirror/instantmirror)")
}

// welcome tells a person where clients point, and how upstream is.
func welcome(ctx context.Context, out io.Writer, setup *daemon.Setup, ls []net.Listener) {
	base := baseURL(setup, ls)
	var b strings.Builder
	fmt.Fprintf(&b, "\nInstantMirror %s is at %s/ and stores what is used below %s\n", programVersion(), base, setup.Config.Root)
	for _, p := range setup.Table.Profiles() {
		fmt.Fprintf(&b, "  %-12s %s%s/\n", p.Name, base, p.Path)
	}
	fmt.Fprintf(&b, "Point a client here (as root there; its own .repo files of the same distribution are then best disabled):\n")
	for _, p := range setup.Table.Profiles() {
		if len(site.ClientRepo(p, base+p.Path)) > 0 {
			fmt.Fprintf(&b, "  curl -fo /etc/yum.repos.d/instantmirror-%s.repo %s/-/repo/%s.repo\n", p.Name, base, p.Name)
		}
	}
	fmt.Fprintf(&b, "Look: %s/-/ in a browser, or curl -i %s/-/healthz. Stop with Ctrl-C.\n", base, base)
	if setup.StateInRoot() {
		fmt.Fprintf(&b, "How it is: instantmirror status --root %s\n", setup.Config.Root)
	}
	b.WriteString("Upstreams:\n")
	io.WriteString(out, b.String())

	probed := origins(setup.Table)
	results := make([]chan error, len(probed))
	for i, origin := range probed {
		results[i] = make(chan error, 1)
		go func() { results[i] <- origin.Probe(ctx) }()
	}
	var first string // that failed
	up := 0
	for i, origin := range probed {
		err := <-results[i]
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			up++
			fmt.Fprintf(out, "  ok    %s\n", origin.Name())
		default:
			if cause := errors.Unwrap(err); cause != nil {
				err = cause // without the name, which stands before it
			}
			line := fmt.Sprintf("%s: %v", origin.Name(), err)
			fmt.Fprintf(out, "  FAILS %s\n", line)
			first = cmp.Or(first, line)
		}
	}
	if up == 0 && first != "" {
		fmt.Fprintf(out, "No upstream can be reached: what is stored is served, all else waits for the line. The first:\n  %s\nmake demo shows the mirror at work without a line.\n", first)
	}
}

// origins are all that the table's profiles name, each once, upstreams before fallbacks before archives.
func origins(t *site.Table) []*upstream.Origin {
	var list []*upstream.Origin
	for _, of := range []func(*site.Profile) []*upstream.Origin{
		func(p *site.Profile) []*upstream.Origin { return p.Upstreams },
		func(p *site.Profile) []*upstream.Origin { return p.Fallbacks },
		func(p *site.Profile) []*upstream.Origin { return p.Archives },
	} {
		for _, p := range t.Profiles() {
			for _, o := range of(p) {
				if !slices.Contains(list, o) {
					list = append(list, o)
				}
			}
		}
	}
	return list
}

// baseURL is the mirror's address as this machine's people can type it.
func baseURL(setup *daemon.Setup, ls []net.Listener) string {
	scheme := "http"
	if setup.Config.TLS != nil {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(ls[0].Addr().String())
	if err != nil {
		return scheme + "://" + ls[0].Addr().String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
