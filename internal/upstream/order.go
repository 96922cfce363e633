package upstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode"
)

// Order is whom to ask for one path. Origins whose match does not cover the path are not in it.
type Order struct {
	Upstreams []*Origin // in this order, but for those that are down
	Fallbacks []*Origin // asked only when no upstream could answer; may be incomplete
	Archives  []*Origin // asked only when an upstream says that the path does not exist
}

// ErrUnavailable is what every *UnavailableError is.
var ErrUnavailable = errors.New("no origin could answer")

// UnavailableError says that nobody could answer for a path, and why. It says nothing about whether the path exists.
type UnavailableError struct {
	Path     string
	Attempts []Attempt     // in the order of asking, skipped ones included
	Retry    time.Duration // until the soonest of the origins that are down may be tried again; 0 if none is down
}

// Attempt is one origin that did not help.
type Attempt struct {
	Origin string // its Name
	Err    error
}

// Is makes it ErrUnavailable. Deliberately it unwraps to none of its Attempts: a fallback's 404 is no fs.ErrNotExist.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Timeout reports whether those that were asked did not say no, but took too long.
func (e *UnavailableError) Timeout() bool {
	for _, a := range e.Attempts {
		var t interface{ Timeout() bool }
		late := errors.Is(a.Err, ErrStalled) || errors.Is(a.Err, errSlow) || errors.As(a.Err, &t) && t.Timeout()
		if !late {
			return false
		}
	}
	return len(e.Attempts) > 0
}

// Error names each origin and why it did not help, on one line.
func (e *UnavailableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "upstream: %s: %v", oneLine(e.Path), ErrUnavailable)
	sep := ": "
	for _, a := range e.Attempts {
		fmt.Fprintf(&b, "%s%s: %s", sep, a.Origin, oneLine(a.Err.Error()))
		sep = "; "
	}
	if len(e.Attempts) == 0 {
		b.WriteString(": none is configured for this path")
	}
	return b.String()
}

// oneLine makes fit for a line of log what may have come from outside.
func oneLine(s string) string {
	const most = 400
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// DirectoryError says that the path is a directory there: it was redirected to itself with a slash behind it.
type DirectoryError struct {
	Path   string
	Origin string // scheme://host that said so
}

func (e *DirectoryError) Error() string {
	return fmt.Sprintf("upstream: %s: %s says that it is a directory: ask for it with a slash at the end", e.Path, e.Origin)
}

// Do asks the origins of order until one has an answer:
//
//   - upstreams in order, without those in back-off; one whose back-off is over is tried by one request at a time;
//   - if none of them could answer, fallbacks likewise;
//   - an upstream's 404 or 410 is final, unless an archive has the path.
//
// The error is one that wraps fs.ErrNotExist (the path does not exist, with authority), a *DirectoryError, an
// *UnavailableError (a fallback that does not have the path counts as one that could not answer: it may be
// incomplete; an archive that could not answer might have it), or ctx's cause. ctx governs the body too: keep it until
// that is closed. The caller closes the Response's Body.
func Do(ctx context.Context, order Order, r Request) (*Response, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	s := search{ctx: ctx, r: r, failed: UnavailableError{Path: r.Path}}
	resp, absent, err := s.first(order.Upstreams, true)
	switch {
	case resp != nil || err != nil:
		return resp, err
	case absent == 0:
		resp, _, err = s.first(order.Fallbacks, false)
	default:
		authority := s.failed.Attempts[len(s.failed.Attempts)-1]
		resp, absent, err = s.first(order.Archives, false)
		if resp == nil && err == nil && absent == len(order.Archives) {
			return nil, fmt.Errorf("upstream: %s: %s says %w: %w", r.Path, authority.Origin, authority.Err, fs.ErrNotExist)
		}
	}
	if resp == nil && err == nil {
		err = &s.failed
	}
	return resp, err
}

// Do asks this origin alone, as Do with it as the only upstream: for going on with a file that it began.
func (o *Origin) Do(ctx context.Context, r Request) (*Response, error) {
	return Do(ctx, Order{Upstreams: []*Origin{o}}, r)
}

// search is one Do under way.
type search struct {
	ctx    context.Context
	r      Request
	failed UnavailableError // as far as it has come
}

// first asks origins in order and returns the first answer, or an error that ends the search, or neither. absent is
// how many said that the path does not exist; with final set the first that says so is the last that is asked.
func (s *search) first(origins []*Origin, final bool) (resp *Response, absent int, err error) {
	for _, o := range origins {
		resp, err := o.ask(s.ctx, s.r)
		if err == nil {
			return resp, absent, nil
		}
		if s.ctx.Err() != nil {
			return nil, absent, fmt.Errorf("upstream: asking %s for %s: %w", o.name, s.r.Path, context.Cause(s.ctx))
		}
		if _, ok := errors.AsType[*DirectoryError](err); ok {
			return nil, absent, err
		}
		s.failed.Attempts = append(s.failed.Attempts, Attempt{Origin: o.name, Err: err})
		if in := o.health.retryIn(); in > 0 && (s.failed.Retry == 0 || in < s.failed.Retry) {
			s.failed.Retry = in
		}
		if _, ok := errors.AsType[*absentError](err); ok {
			absent++
			if final {
				break
			}
		}
	}
	return nil, absent, nil
}
