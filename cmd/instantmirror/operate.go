package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
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
	socket, err := daemon.AdminSocket(f.options())
	if err != nil {
		return nil, nil, &configError{err}
	}
	client, nobody := admin.Dial(ctx, socket)
	if nobody == nil {
		return client, func() error { return nil }, nil
	}
	if !errors.Is(nobody, admin.ErrNobody) {
		return nil, nil, nobody
	}
	syscall.Umask(0o022) // as the daemon does
	pool := newPool()
	setup, err := daemon.Configure(f.options(), pool)
	if err != nil {
		return nil, nil, &configError{err}
	}
	d, err := daemon.Offline(ctx, f.options(), setup, pool, o.err)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; and this process cannot do it itself: %w", nobody, err)
	}
	return d.Admin(), d.Close, nil
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
