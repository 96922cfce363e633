package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/repodata"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

const (
	// maxPointer bounds a repomd.xml and what goes with it, in bytes; real ones have 2 to 20 kB.
	maxPointer = 4 << 20
	// maxAttempts is how often a repository may change while it is being fetched, before its primary must do.
	maxAttempts = 3
)

// work is what one look leaves for the next.
type work struct {
	sum      digest.Sum    // the candidate's
	bundle   *store.Bundle // what was gathered for it; nil: nothing
	attempts int           // that failed or were overtaken since something was published
	moving   digest.Sum    // a generation that waits for a poll that agrees, of a moving tree
	since    time.Time     // when moving was first seen
}

// candidate is a repomd.xml that an origin has and we do not.
type candidate struct {
	bytes []byte
	repo  index.Repo
	resp  *upstream.Response // without its body
	time  time.Time          // modification time that it will have
}

// refusal says why what an origin sent does not become current.
type refusal struct {
	origin *upstream.Origin // that is not asked again in this look
	host   string
	err    error
	older  *candidate // it is older than what is here
	// unfinished says that it may be had later: upstream is being filled, or what it names is damaged there.
	unfinished bool
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.host, r.err) }
func (r *refusal) Unwrap() error { return r.err }

// lookAt looks at w, publishes what has changed, and says how it went. With met, who had the pointer a moment ago, nobody is
// asked for that again.
func (m *Monitor) lookAt(ctx context.Context, w *watch, met *met, how manner) Result {
	begun := time.Now()
	t, err := mirror.PointerOf(m.table.Load(), w.root)
	if err != nil {
		return Result{At: begun, What: Failed, Err: fmt.Errorf("%s: %w", w.root, err)}
	}
	if t.Action != site.Store { // what passes through, or is refused, has no generation here
		return Result{At: begun, What: unchanged}
	}
	if _, ok := m.index.Repo(w.root); !ok { // what is here decides what is newer, also when the index was lost
		m.mirror.Relearn(t)
	}
	v := &visit{m: m, w: w, t: t, manner: how, begun: begun}
	what := Failed
	if err = v.finish(ctx); err == nil { // until that is done, nothing else can be
		what, err = v.look(ctx, met)
	}
	retry := what == Failed || what == Refused && !v.lagged
	if retry || what == Gone {
		m.mirror.Postpone(t, what == Gone)
	}
	if err != nil && ctx.Err() == nil && what != unchanged {
		m.report(Event{Root: w.root, What: what, Origin: v.host, Err: err, Time: time.Since(begun)})
	}
	return Result{At: begun, What: what, Origin: v.host, Err: err, retry: retry}
}

// finish goes on with what a failing disk interrupted.
func (v *visit) finish(ctx context.Context) error {
	to, err := v.m.mirror.Finish(ctx, v.w.root)
	if to != "" {
		v.m.report(Event{Root: v.w.root, What: Published, To: to, Time: time.Since(v.begun)})
	}
	return err
}

// look is visit; with met, while that is in force, only what first contact left to do.
func (v *visit) look(ctx context.Context, met *met) (what string, err error) {
	repo := v.repo()
	if met == nil || v.force || repo != nil && repo.Pointer.Sum != met.sum {
		return v.visit(ctx)
	}
	v.host = met.resp.Origin
	if err := v.complete(ctx, met.resp); err != nil {
		return Failed, err
	}
	return unchanged, nil
}

// visit is one look at one repository. It is for one goroutine.
type visit struct {
	m     *Monitor
	w     *watch
	t     site.Target // of the pointer
	begun time.Time
	manner

	host     string             // who answered last
	refused  []*refusal         // in this look
	tried    []*upstream.Origin // whose word did not count
	lagged   bool               // everybody who was refused has something older
	metalink *repodata.Metalink // once it was asked for
	asked    bool               // it was
}

func (v *visit) repo() *index.Repo {
	r, _ := v.m.index.Repo(v.w.root)
	return r
}

// visit asks one origin after the other until one has something that counts.
func (v *visit) visit(ctx context.Context) (what string, err error) {
	validators := v.m.mirror.Checked(v.t)
	if repo := v.repo(); repo != nil && !v.m.mirror.Holds(v.t.Path, index.Named{Size: -1, Sum: repo.Pointer.Sum}) {
		validators = index.Belief{} // what stands there is not what is in force: whatever upstream has is published
	}
	for {
		c, resp, err := v.ask(ctx, validators)
		switch {
		case err != nil && len(v.refused) > 0:
			return v.allRefused(ctx, err)
		case errors.Is(err, fs.ErrNotExist):
			return Gone, v.gone(err)
		case err != nil:
			return Failed, err
		case c == nil:
			what, err := v.unchanged(ctx, resp)
			if r := v.unfinished(); r != nil && err == nil {
				return Failed, r // so that it is looked for soon
			}
			return what, err
		}
		if r := v.judge(ctx, c); r != nil {
			v.refuse(r)
			continue
		}
		what, err := v.take(ctx, c)
		if r, ok := errors.AsType[*refusal](err); ok {
			v.refuse(r)
			continue
		}
		return what, err
	}
}

func (v *visit) refuse(r *refusal) {
	v.refused, v.tried = append(v.refused, r), append(v.tried, r.origin)
	v.m.report(Event{Root: v.w.root, What: Refused, Origin: r.host, Err: r.err, From: v.generation()})
	if r.older != nil {
		v.note(func(repo *index.Repo) { repo.Refused++ })
	}
}

func (v *visit) generation() string {
	if r := v.repo(); r != nil {
		return r.Pointer.Generation()
	}
	return ""
}

// note changes what is remembered of the repository.
func (v *visit) note(f func(*index.Repo)) {
	if _, err := v.m.index.Update(v.w.root, f); err != nil {
		v.m.report(Event{Root: v.w.root, What: Failed, Err: err})
	}
}

// order is whom to ask for rel: those whose word still counts.
func (v *visit) order(t site.Target) upstream.Order {
	o := t.Profile.Origins(t.Rel)
	but := func(list []*upstream.Origin) []*upstream.Origin {
		return slices.DeleteFunc(slices.Clone(list), func(o *upstream.Origin) bool { return slices.Contains(v.tried, o) })
	}
	return upstream.Order{Upstreams: but(o.Upstreams), Fallbacks: but(o.Fallbacks), Archives: but(o.Archives)}
}

// ask makes one conditional request for the pointer. A nil candidate means that it is what we have; resp says who said so.
func (v *visit) ask(ctx context.Context, have index.Belief) (*candidate, *upstream.Response, error) {
	req := upstream.Request{Method: http.MethodGet, Path: v.t.Rel, ETag: have.ETag, ETagOrigin: have.Origin, LastModified: have.LastModified}
	repo := v.repo()
	if repo == nil || repo.Pointer.Sum.IsZero() || v.force || have.Size == 0 {
		req.ETag, req.LastModified = "", time.Time{}
	}
	req.Insist = v.insist
	resp, err := upstream.Do(ctx, v.order(v.t), req)
	if err != nil {
		return nil, nil, err
	}
	if resp.Status == http.StatusNotModified && resp.Origin != have.Origin && (v.matters(repo) || !redirected(resp)) {
		// Asked by time, another host says only that it has nothing newer. From now on it can be asked by its own validators,
		// unless it is another one each time.
		req.ETag, req.LastModified = "", time.Time{}
		if resp, err = resp.Configured.Do(ctx, req); err != nil {
			return nil, nil, err
		}
	}
	v.host = resp.Origin
	if resp.Status == http.StatusNotModified {
		return nil, resp, nil
	}
	body, err := readAll(resp)
	if err != nil {
		v.tried = append(v.tried, resp.Configured) // it broke off: somebody else may do better
		r := &refusal{origin: resp.Configured, host: resp.Origin, err: err}
		v.refused = append(v.refused, r)
		return v.ask(ctx, have)
	}
	if repo != nil && have.Size > 0 && sumOf(body) == repo.Pointer.Sum {
		return nil, resp, nil
	}
	return &candidate{bytes: body, resp: resp, time: modified(resp)}, resp, nil
}

// modified is the modification time that what resp brought will have.
func modified(resp *upstream.Response) time.Time {
	if resp.LastModified.IsZero() {
		return time.Now().Truncate(time.Second)
	}
	return resp.LastModified
}

// redirected reports whether resp came from another host than the one that is configured.
func redirected(resp *upstream.Response) bool {
	return !strings.HasPrefix(resp.Configured.Name()+"/", resp.Origin+"/")
}

// unfinished is the first who was refused for what may be had later; nil: nobody was.
func (v *visit) unfinished() *refusal {
	for _, r := range v.refused {
		if r.unfinished {
			return r
		}
	}
	return nil
}

// matters reports whether it matters that an origin has just the generation that is here, and not an older one.
func (v *visit) matters(repo *index.Repo) bool {
	return len(v.refused) > 0 || repo.Veto != nil || repo.Back != nil || !v.w.work.moving.IsZero() || !repo.Pointer.Companions
}

// readAll reads a small body whole.
func readAll(resp *upstream.Response) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPointer+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxPointer:
		return nil, fmt.Errorf("it sent more than %d bytes", maxPointer)
	case resp.Size >= 0 && int64(len(b)) != resp.Size:
		return nil, fmt.Errorf("it sent %d of %d bytes: %w", len(b), resp.Size, io.ErrUnexpectedEOF)
	}
	return b, nil
}

func sumOf(b []byte) digest.Sum {
	h := digest.SHA256.New()
	h.Write(b)
	return digest.SumOf(digest.SHA256, h)
}

// judge says why c must not become current; nil if it may.
func (v *visit) judge(ctx context.Context, c *candidate) *refusal {
	no := func(err error) *refusal {
		return &refusal{origin: c.resp.Configured, host: c.resp.Origin, err: err}
	}
	repo, err := v.m.mirror.ReadRepomd(v.t.Profile, v.w.root, bytes.NewReader(c.bytes))
	if err != nil {
		return no(err)
	}
	c.repo = repo
	p := &c.repo.Pointer
	p.Origin, p.LastModified = c.resp.Origin, c.resp.LastModified
	old := v.repo()
	if old != nil && !old.Records[old.Primary].Sum.IsZero() && c.repo.Records[c.repo.Primary].Sum.IsZero() {
		return no(errors.New("its repomd.xml gives no digest of primary that can be checked, and the one that is here does"))
	}
	if v.force {
		return nil
	}
	if err := v.askMetalink(ctx, c); err != nil {
		return no(err)
	}
	if old == nil || old.Pointer.Sum.IsZero() || !mirror.Older(p, &old.Pointer) {
		return nil
	}
	if v.t.Rule.Moving && v.agreed(p.Sum) {
		return nil
	}
	r := no(fmt.Errorf("its generation %s is older than %s, which is here", p.Generation(), old.Pointer.Generation()))
	r.older = c
	return r
}

// agreed reports whether a poll, about a refresh ago or more, found the same generation of a moving tree.
func (v *visit) agreed(sum digest.Sum) bool {
	k := &v.w.work
	if k.moving == sum {
		return time.Since(k.since) >= v.t.Rule.Refresh*8/10
	}
	k.moving, k.since = sum, time.Now()
	return false
}

// askMetalink refuses what the tree's metalink does not know, unless it is newer: a metalink lags behind the master. A
// metalink that can't be had decides nothing.
func (v *visit) askMetalink(ctx context.Context, c *candidate) error {
	if v.t.Layout == nil {
		return nil
	}
	if !v.asked {
		v.asked = true
		origin, rel, query, ok := v.t.Layout.Metalink(v.t.Tree)
		if !ok || v.t.Rel != strings.TrimPrefix(v.t.Tree+"/repodata/repomd.xml", "/") {
			return nil
		}
		resp, err := origin.Do(ctx, upstream.Request{Method: http.MethodGet, Path: rel, Query: query})
		if err != nil {
			return nil
		}
		defer resp.Body.Close()
		if v.metalink, err = repodata.ParseMetalink(resp.Body); err != nil {
			v.m.report(Event{Root: v.w.root, What: Refused, Origin: resp.Origin, Err: err})
		}
	}
	if v.metalink == nil {
		return nil
	}
	main, alternate := v.metalink.Knows(int64(len(c.bytes)), func(a digest.Algorithm) digest.Sum {
		h := a.New()
		h.Write(c.bytes)
		return digest.SumOf(a, h)
	})
	age := max(c.repo.Pointer.Timestamp, c.repo.Pointer.LastModified.Unix())
	if main || alternate || v.metalink.Main.Timestamp == 0 || age >= v.metalink.Main.Timestamp {
		return nil
	}
	return fmt.Errorf("its generation %s is older than the metalink's, and no alternate of it", c.repo.Pointer.Generation())
}

// gone notes that upstream does not have the pointer: nothing is expired, ours may be the last copy.
func (v *visit) gone(err error) error {
	r := v.repo()
	if r == nil {
		return err
	}
	if r.Gone.IsZero() {
		v.note(func(r *index.Repo) { r.Gone = time.Now() })
		return err
	}
	return nil // said once
}

// unchanged notes that resp's origin has what we have, and does what was left to do.
func (v *visit) unchanged(ctx context.Context, resp *upstream.Response) (string, error) {
	if resp.Young || resp.Status == http.StatusNotModified && resp.Origin != v.m.mirror.Checked(v.t).Origin {
		v.m.mirror.Unchanged(v.t, "", "", time.Time{}) // its validators may be those of another one
	} else {
		v.m.mirror.Unchanged(v.t, resp.Origin, resp.ETag, resp.LastModified)
	}
	if resp.Body != nil {
		resp.Body.Close()
	}
	repo := v.repo()
	if repo == nil {
		return unchanged, nil
	}
	if !repo.Gone.IsZero() || repo.Back != nil {
		back := !repo.Gone.IsZero()
		v.note(func(r *index.Repo) { r.Gone, r.Back = time.Time{}, nil })
		if back {
			v.m.report(Event{Root: v.w.root, What: Back, Origin: resp.Origin})
		}
	}
	if veto := repo.Veto; veto != nil && (v.force || veto.Origin != resp.Configured.Name() || time.Since(veto.Since) >= confirmAfter) {
		if err := v.m.mirror.Confirm(ctx, v.w.root); err != nil {
			return Failed, err
		}
		v.m.report(Event{Root: v.w.root, What: Confirmed, Origin: resp.Origin, Files: veto.Files})
	}
	v.w.work.moving = digest.Sum{}
	if err := v.complete(ctx, resp); err != nil {
		return Failed, err
	}
	return unchanged, nil
}

// allRefused ends a look in which everybody who has the pointer was refused; err says what the others answered. If all of
// them have the same older generation, and have had it for long, it is taken.
func (v *visit) allRefused(ctx context.Context, err error) (string, error) {
	first := v.refused[0]
	var older *candidate
	for _, r := range v.refused {
		if r.older == nil || older != nil && older.repo.Pointer.Sum != r.older.repo.Pointer.Sum {
			older = nil
			break
		}
		older = r.older
	}
	if errors.Is(err, fs.ErrNotExist) || !v.everybody() {
		older = nil // not all
	}
	repo := v.repo()
	if older == nil || repo == nil {
		if repo != nil && repo.Back != nil {
			v.note(func(r *index.Repo) { r.Back = nil })
		}
		if r := v.unfinished(); r != nil {
			return Failed, r
		}
		if slices.ContainsFunc(v.refused, func(r *refusal) bool { return r.older != nil }) {
			return Refused, v.lagging(first)
		}
		return Refused, first
	}
	sum := older.repo.Pointer.Sum
	switch {
	case repo.Back == nil:
		v.note(func(r *index.Repo) { r.Back = &index.Back{Sum: sum, Since: time.Now()} })
	case repo.Back.Sum != sum && time.Since(repo.Back.Since) < v.t.Rule.Back: // they go on, all of them, below what is here
		v.note(func(r *index.Repo) { r.Back = &index.Back{Sum: sum, Since: r.Back.Since} })
	case time.Since(repo.Back.Since) >= v.t.Rule.Back:
		return v.take(ctx, older)
	}
	return Refused, v.lagging(first)
}

// everybody reports whether all upstreams and fallbacks were refused in this look: one that could not be asked has not
// agreed to anything.
func (v *visit) everybody() bool {
	o := v.t.Profile.Origins(v.t.Rel)
	for _, origin := range slices.Concat(o.Upstreams, o.Fallbacks) {
		if !slices.Contains(v.tried, origin) {
			return false
		}
	}
	return true
}

// lagging notes that whoever could be asked has nothing newer than what is here.
func (v *visit) lagging(first *refusal) error {
	v.lagged = true
	v.m.mirror.Unchanged(v.t, "", "", time.Time{})
	return first
}
