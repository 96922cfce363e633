package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/instantmirror/instantmirror/internal/admin/wire"
)

// ErrNobody says that no daemon answers on the socket.
var ErrNobody = wire.ErrNobody

// Listen opens the admin socket at the absolute path socket, which only its owner and group may write to. One that a dead
// daemon left behind is replaced, that of a live one never.
func Listen(socket string) (net.Listener, error) { return wire.Listen(socket) }

// Serve has s carry out what comes through l, until ctx ends and all of it has. It closes l. Ended is called after each
// command that changes something.
func Serve(ctx context.Context, l net.Listener, s *Service, ended func(name string, params json.RawMessage, took time.Duration, err error)) error {
	return wire.Serve(ctx, l, map[string]wire.Op{
		"about": {Do: func(ctx context.Context, _ json.RawMessage, emit func(any)) error {
			a, err := s.About(ctx)
			if err == nil {
				emit(a)
			}
			return err
		}},
		"status": {Do: func(ctx context.Context, _ json.RawMessage, emit func(any)) error {
			st, err := s.Status(ctx)
			if err == nil {
				emit(st)
			}
			return err
		}},
		"why": get(func(ctx context.Context, p whyParams, emit func(any)) error {
			w, err := s.Why(ctx, p.Path)
			if err == nil {
				emit(w)
			}
			return err
		}),
		"refresh": post(func(ctx context.Context, p refreshParams, emit func(any)) error {
			return s.Refresh(ctx, p.Force, p.Paths, func(r Refreshed) { emit(r) })
		}),
		"expire": post(func(ctx context.Context, p pathsParams, emit func(any)) error {
			return s.Expire(ctx, p.Paths, func(e Expired) { emit(e) })
		}),
		"prune": post(func(ctx context.Context, p pruneParams, emit func(any)) error {
			return s.Prune(ctx, p.DryRun, time.Duration(p.Spare), func(one Pruned) { emit(one) })
		}),
		"repair": post(func(ctx context.Context, p pathsParams, emit func(any)) error {
			return s.Repair(ctx, p.Paths, func(r Repaired) { emit(r) })
		}),
	}, ended)
}

type whyParams struct {
	Path string `json:"path"`
}

type refreshParams struct {
	Force bool     `json:"force,omitempty"`
	Paths []string `json:"paths,omitempty"`
}

type pathsParams struct {
	Paths []string `json:"paths"`
}

type pruneParams struct {
	DryRun bool  `json:"dry_run,omitempty"`
	Spare  int64 `json:"spare"` // nanoseconds
}

func get[P any](f func(context.Context, P, func(any)) error) wire.Op {
	return wire.Op{Do: decoded(f)}
}

func post[P any](f func(context.Context, P, func(any)) error) wire.Op {
	return wire.Op{Changes: true, Do: decoded(f)}
}

func decoded[P any](f func(context.Context, P, func(any)) error) func(context.Context, json.RawMessage, func(any)) error {
	return func(ctx context.Context, params json.RawMessage, emit func(any)) error {
		var p P
		if err := json.Unmarshal(params, &p); err != nil {
			return &UsageError{Err: fmt.Errorf("the parameters of the command: %w", err)}
		}
		return f(ctx, p, emit)
	}
}

// maxPaths is how many paths go into one call.
const maxPaths = 1000

// Client has the daemon behind a socket carry commands out. Its methods are those of Service.
type Client struct{ wire *wire.Client }

// Dial finds the daemon behind socket. The error is ErrNobody if there is none.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c, err := wire.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// About is Service.About.
func (c *Client) About(ctx context.Context) (*About, error) {
	a := new(About)
	return a, c.wire.Get(ctx, "about", nil, item(func(one About) { *a = one }))
}

// Status is Service.Status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	return st, c.wire.Get(ctx, "status", nil, item(func(s Status) { *st = s }))
}

// Why is Service.Why.
func (c *Client) Why(ctx context.Context, path string) (*Why, error) {
	w := new(Why)
	return w, c.wire.Get(ctx, "why", url.Values{"path": {path}}, item(func(one Why) { *w = one }))
}

// Refresh is Service.Refresh.
func (c *Client) Refresh(ctx context.Context, force bool, paths []string, yield func(Refreshed)) error {
	return c.wire.Post(ctx, "refresh", refreshParams{force, paths}, item(yield))
}

// Expire is Service.Expire.
func (c *Client) Expire(ctx context.Context, paths []string, yield func(Expired)) error {
	return c.wire.Post(ctx, "expire", pathsParams{paths}, item(yield))
}

// Prune is Service.Prune.
func (c *Client) Prune(ctx context.Context, dry bool, spare time.Duration, yield func(Pruned)) error {
	return c.wire.Post(ctx, "prune", pruneParams{dry, int64(spare)}, item(yield))
}

// Repair is Service.Repair.
func (c *Client) Repair(ctx context.Context, paths []string, yield func(Repaired)) error {
	for len(paths) > 0 {
		some := paths[:min(len(paths), maxPaths)]
		paths = paths[len(some):]
		if err := c.wire.Post(ctx, "repair", pathsParams{some}, item(yield)); err != nil {
			return err
		}
	}
	return nil
}

// item decodes an item for yield.
func item[T any](yield func(T)) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("the daemon's answer: %w", err)
		}
		yield(v)
		return nil
	}
}
