package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/daemon"
)

// operator carries commands out: the running daemon, by its admin socket, or this process, by the same code.
type operator interface {
	Status(ctx context.Context) (*admin.Status, error)
	Why(ctx context.Context, path string) (*admin.Why, error)
	Refresh(ctx context.Context, force bool, paths []string, yield func(admin.Refreshed)) error
	Expire(ctx context.Context, paths []string, yield func(admin.Expired)) error
	Prune(ctx context.Context, dry bool, spare time.Duration, yield func(admin.Pruned)) error
	Repair(ctx context.Context, paths []string, yield func(admin.Repaired)) error
}

// jsonFlag is of every command that has something to say.
type jsonFlag struct {
	JSON bool `help:"Print one JSON object."`
}

// interruptible calls f with a context that ends with SIGINT or SIGTERM. A second signal ends the process at once.
func interruptible(f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("stopped before it was done: %w", context.Cause(ctx))
	}
	return err
}

// operate has f carried out by the daemon that has the mirror which f's flags mean; where none runs, by this process.
func (f configFlags) operate(o output, do func(context.Context, operator) error) error {
	return interruptible(func(ctx context.Context) (err error) {
		op, done, err := f.operator(ctx, o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
		return do(ctx, op)
	})
}

func (f configFlags) operator(ctx context.Context, o output) (op operator, done func() error, err error) {
	opts, client, nobody, err := f.meant(ctx)
	if err != nil {
		return nil, nil, err
	}
	if client != nil {
		return client, func() error { return nil }, nil
	}
	syscall.Umask(0o022) // as the daemon does
	pool := newPool()
	setup, err := daemon.Configure(opts, pool)
	if err != nil {
		return nil, nil, &configError{err}
	}
	d, err := daemon.Offline(ctx, opts, setup, pool, o.err)
	if nowhere, ok := errors.AsType[*daemon.NowhereError](err); ok {
		return nil, nil, &configError{nowhere}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w; and this process cannot do it itself: %w", nobody, err)
	}
	return d.Admin(), d.Close, nil
}

// meant finds the daemon that has the mirror which f's flags mean. The client is nil if none runs: nobody says so. It is
// a configError if the daemon that answers has another mirror than they say. The options returned have the profiles that
// the daemon was told to serve, if f's flags name none.
func (f configFlags) meant(ctx context.Context) (opts daemon.Options, client *admin.Client, nobody, err error) {
	opts = f.options().ForCommand()
	place, err := daemon.Locate(opts)
	if err != nil {
		return opts, nil, nil, &configError{err}
	}
	client, err = admin.Dial(ctx, place.Socket)
	if errors.Is(err, admin.ErrNobody) {
		return opts, nil, err, nil
	}
	if err != nil {
		return opts, nil, nil, err
	}
	about, err := client.About(ctx)
	if err != nil {
		return opts, nil, nil, err
	}
	for _, dir := range []struct{ what, has, meant string }{{"root", about.Root, place.Root}, {"state", about.State, place.State}} {
		if !daemon.SameDir(dir.has, dir.meant) {
			return opts, nil, nil, &configError{fmt.Errorf("the daemon that answers on %s has the %s %s, and not %s, which is meant here: give the same --config, --root and --state as the daemon has",
				place.Socket, dir.what, dir.has, dir.meant)}
		}
	}
	switch given := daemon.AbsoluteProfiles(opts.Profiles); {
	case len(given) == 0:
		opts.Profiles = about.Profiles
	case !sameNames(given, about.Profiles):
		has := "its configuration"
		if len(about.Profiles) > 0 {
			has = "--profile " + strings.Join(about.Profiles, " --profile ")
		}
		return opts, nil, nil, &configError{fmt.Errorf("the daemon that answers on %s serves what %s says, and other profiles cannot be chosen for one command: leave --profile out", place.Socket, has)}
	}
	return opts, client, nil, nil
}

// inTree makes relative names of files that lie in the tree, as seen from here, URL paths. What is none it leaves alone.
func (f configFlags) inTree(args ...string) []string {
	place, err := daemon.Locate(f.options().ForCommand())
	if err != nil {
		return args // said elsewhere
	}
	list := slices.Clone(args)
	for i, arg := range list {
		if arg == "" || filepath.IsAbs(arg) || strings.Contains(arg, "://") {
			continue
		}
		name, err := filepath.Abs(arg)
		if err != nil {
			continue
		}
		for _, root := range []string{place.Root, real(place.Root)} {
			for _, name := range []string{name, filepath.Join(real(filepath.Dir(name)), filepath.Base(name))} {
				if in, err := filepath.Rel(root, name); err == nil && filepath.IsLocal(in) {
					list[i] = (&url.URL{Path: path.Join("/", in)}).EscapedPath()
					if strings.HasSuffix(arg, "/") && in != "." {
						list[i] += "/"
					}
				}
			}
		}
	}
	return list
}

// real is name without symlinks; name itself if it is not there.
func real(name string) string {
	if to, err := filepath.EvalSymlinks(name); err == nil {
		return to
	}
	return name
}

// sameNames reports whether a and b have the same names, in whatever order.
func sameNames(a, b []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b))))
}

// printJSON prints v, and nothing else.
func printJSON(o output, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(o.out, "%s\n", b)
	return err
}
