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
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// maxRecords is how many records of one repository are fetched at a time.
const maxRecords = 4

// always are the types of records that every client wants sooner or later. Others are fetched for a new generation where
// clients here have asked for them.
var always = []string{"primary", "group", "group_gz", "group_xz", "modules", "updateinfo"}

// take gathers what c names and publishes it. A repository that changes meanwhile is taken as it is then; after three
// attempts its primary must do.
func (v *visit) take(ctx context.Context, c *candidate) (string, error) {
	k := &v.w.work
	for {
		if k.bundle == nil || k.sum != c.repo.Pointer.Sum {
			if err := v.newBundle(c); err != nil {
				return Failed, err
			}
		}
		missing, err := v.gather(ctx, c)
		if err != nil {
			return Failed, err
		}
		if len(missing) == 0 {
			return v.publish(ctx, c)
		}
		next, err := v.overtaken(ctx, c)
		if err != nil {
			return Failed, err
		}
		if why := missing[c.repo.Primary]; next == nil && why != nil { // somebody else may have a whole one
			why = fmt.Errorf("generation %s: %w", c.repo.Pointer.Generation(), why)
			return Failed, &refusal{origin: c.resp.Configured, host: c.resp.Origin, err: why, unfinished: true}
		}
		k.attempts++
		if k.attempts >= maxAttempts && (next == nil || len(missing) > 0) && missing[c.repo.Primary] == nil {
			c.repo.Partial = fmt.Sprintf("%d attempts to get all that is used here failed; the last: %v", k.attempts, firstOf(missing))
			return v.publish(ctx, c)
		}
		if next == nil {
			return Failed, fmt.Errorf("generation %s: %w", c.repo.Pointer.Generation(), firstOf(missing))
		}
		if r := v.judge(ctx, next); r != nil {
			return Failed, r
		}
		c = next
	}
}

// firstOf returns one of the reasons, the same one each time.
func firstOf(missing map[string]error) error {
	first := ""
	for p := range missing {
		if first == "" || p < first {
			first = p
		}
	}
	return missing[first]
}

func (v *visit) newBundle(c *candidate) error {
	k := &v.w.work
	if k.bundle != nil {
		if err := k.bundle.Discard(); err != nil {
			return err
		}
	}
	b, err := v.m.store.NewBundle()
	if err != nil {
		k.bundle = nil
		return err
	}
	k.bundle, k.sum = b, c.repo.Pointer.Sum
	return nil
}

// overtaken asks c's origin whether it still has c; nil if it does.
func (v *visit) overtaken(ctx context.Context, c *candidate) (*candidate, error) {
	resp, err := v.near(ctx, c.resp, v.t.Rel, c.resp)
	if err != nil {
		return nil, err
	}
	if resp.Status == http.StatusNotModified {
		return nil, nil
	}
	body, err := readAll(resp)
	if err != nil || sumOf(body) == c.repo.Pointer.Sum {
		return nil, err
	}
	return &candidate{bytes: body, resp: resp, time: modified(resp)}, nil
}

// near asks for rel where beside came from; with a known answer of rel's, only whether it has changed.
func (v *visit) near(ctx context.Context, beside *upstream.Response, rel string, known *upstream.Response) (*upstream.Response, error) {
	req := upstream.Request{Method: http.MethodGet, Path: rel, Near: beside.Final, Insist: v.insist}
	if known != nil {
		req.ETag, req.ETagOrigin, req.LastModified = known.ETag, known.Origin, known.LastModified
	}
	var resp *upstream.Response
	var err error
	for range maxAttempts { // a redirector may lead elsewhere each time
		if resp, err = beside.Configured.Do(ctx, req); err != nil {
			return nil, err
		}
		if resp.Origin == beside.Origin {
			return resp, nil
		}
		if resp.Body != nil {
			resp.Body.Close()
		}
	}
	return nil, fmt.Errorf("%s: %w: asked beside what came from %s, and was led to %s", rel, upstream.ErrUnavailable, beside.Origin, resp.Origin)
}

// gather fetches into the bundle what c names and clients here use. missing are records that nobody has, and why.
func (v *visit) gather(ctx context.Context, c *candidate) (missing map[string]error, err error) {
	b := v.w.work.bundle
	if err := b.Add(v.t.Path, c.bytes, c.time); err != nil {
		return nil, err
	}
	if err := v.companions(ctx, c.resp, c.bytes, &c.repo.Pointer, b); err != nil {
		return nil, err
	}
	if v.repo() == nil {
		// First contact: it goes out as soon as it was judged, and the rest is fetched then.
		c.repo.Partial = "only its repomd.xml is here yet"
		return nil, nil
	}
	var mu sync.Mutex
	missing = make(map[string]error)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRecords)
	for p, rec := range v.wanted(&c.repo) {
		if b.Has(p) || v.m.mirror.Holds(p, rec.Named) {
			continue
		}
		g.Go(func() error {
			err := v.fetch(ctx, p, rec, b)
			if lacking(err) {
				mu.Lock()
				defer mu.Unlock()
				missing[p] = err
				return nil
			}
			return err
		})
	}
	return missing, g.Wait()
}

// lacking reports whether err says that nobody has what was asked for, or only other bytes.
func lacking(err error) bool {
	var mismatch *digest.MismatchError
	return errors.Is(err, fs.ErrNotExist) || errors.As(err, &mismatch)
}

// wanted are the records of next that are fetched before it is published: those that every client wants, and the types that
// are stored of the generation in force and were used lately.
func (v *visit) wanted(next *index.Repo) map[string]index.Record {
	types := slices.Clone(always)
	if old := v.repo(); old != nil {
		for p, rec := range old.Records {
			if used := v.m.index.Used(p); !slices.Contains(types, rec.Type) && (used.IsZero() || time.Since(used) < v.t.Rule.Idle) && v.stored(p) {
				types = append(types, rec.Type)
			}
		}
	}
	list := make(map[string]index.Record)
	table := v.m.table.Load()
	for p, rec := range next.Records {
		t, err := table.Resolve("", "/"+p)
		if slices.Contains(types, rec.Type) && !rec.Sum.IsZero() && err == nil && t.Action == site.Store {
			list[p] = rec
		}
	}
	return list
}

func (v *visit) stored(p string) bool {
	_, err := v.m.store.Stat(p)
	return err == nil
}

// fetch fetches one record into b, from whoever has the right bytes.
func (v *visit) fetch(ctx context.Context, p string, rec index.Record, b *store.Bundle) error {
	t, err := v.m.table.Load().Resolve("", "/"+p)
	if err != nil {
		return err
	}
	want := digest.Known(rec.Size, rec.Sum)
	flight, _ := v.m.flights.Join(fetch.Job{
		Path: p, Order: t.Profile.Origins(t.Rel), Request: upstream.Request{Method: http.MethodGet, Path: t.Rel, Insist: v.insist},
		Keep: true, Stage: b, Expect: func() digest.Expectation { return want },
		Time: func() time.Time { return timeOf(rec.Named) },
	})
	defer flight.Close()
	return flight.Wait(ctx)
}

func timeOf(n index.Named) time.Time {
	if n.Time == 0 {
		return time.Time{}
	}
	return time.Unix(n.Time, 0)
}

// companions puts repomd.xml.asc and .key into b, as they are where the pointer, whose bytes are text, came from, and checks
// the signature if the profile has keys. What does not exist there is removed here when b is published.
func (v *visit) companions(ctx context.Context, pointer *upstream.Response, text []byte, p *index.Pointer, b *store.Bundle) error {
	p.Companions, p.Signed = true, ""
	keys := v.t.Profile.Keys
	signature, err := v.companion(ctx, pointer, ".asc", b)
	if err == nil && (signature != nil || v.stored(v.t.Path+".key")) {
		if _, err = v.companion(ctx, pointer, ".key", b); err == nil && signature != nil && keys == nil {
			// Nothing else tells whether the two belong together.
			var now *upstream.Response
			if now, err = v.near(ctx, pointer, v.t.Rel, pointer); err == nil && now.Status != http.StatusNotModified {
				var again []byte
				if again, err = readAll(now); err == nil && !bytes.Equal(again, text) {
					err = fmt.Errorf("%s changed at %s while its signature was fetched", v.t.Path, pointer.Origin)
				}
			}
		}
	}
	if err == nil && keys == nil && signature != nil && v.former(p, signature) {
		// Upstream puts the signature there after what it signs. Where it never does, the new generation counts for more.
		if v.w.work.attempts++; v.w.work.attempts < maxAttempts {
			return fmt.Errorf("%s at %s still has the signature of the generation before", v.t.Path, pointer.Origin)
		}
		p.Companions = false // looked for again by the next look
	}
	before := v.stored(v.t.Path + ".asc")
	switch {
	case err != nil && (keys != nil || before || signature != nil):
		return err
	case err != nil:
		p.Companions = false // looked for again when somebody asks for them
	case keys != nil && signature != nil:
		if p.Signed, err = keys.Detached(bytes.NewReader(text), signature); err != nil {
			return &refusal{origin: pointer.Configured, host: pointer.Origin, err: fmt.Errorf("the signature of its repomd.xml: %w", err)}
		}
	case keys != nil && before:
		return &refusal{origin: pointer.Configured, host: pointer.Origin, err: errors.New("its repomd.xml has no signature any more, and the one that is here has one")}
	}
	return nil
}

// former reports whether signature is that of a generation before p's, which is in force.
func (v *visit) former(p *index.Pointer, signature []byte) bool {
	old := v.repo()
	if old == nil || old.Pointer.Sum == p.Sum {
		return false
	}
	file, err := v.m.store.Get(v.t.Path + ".asc")
	if err != nil {
		return false
	}
	defer file.Close()
	have, err := io.ReadAll(io.NewSectionReader(file, 0, min(file.Size, maxPointer)))
	return err == nil && bytes.Equal(have, signature)
}

// companion puts the pointer's companion of that extension into b, or notes its removal. It is nil if there is none.
func (v *visit) companion(ctx context.Context, pointer *upstream.Response, ext string, b *store.Bundle) ([]byte, error) {
	resp, err := v.near(ctx, pointer, v.t.Rel+ext, nil)
	if errors.Is(err, fs.ErrNotExist) {
		if v.stored(v.t.Path + ext) {
			b.Remove(v.t.Path + ext)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	body, err := readAll(resp)
	if err != nil {
		return nil, err
	}
	return body, b.Add(v.t.Path+ext, body, modified(resp))
}

// publish has the bundle published.
func (v *visit) publish(ctx context.Context, c *candidate) (string, error) {
	k, root := &v.w.work, v.w.root
	release := v.m.mirror.HoldPackages(root)
	defer release()
	old := v.repo()
	staged, err := v.stage(c, old)
	if err != nil {
		return Failed, err
	}
	bundle := k.bundle
	k.bundle = nil // Publish owns it from now on
	p := mirror.Publication{
		Root: root, Next: c.repo, Staged: staged, Bundle: bundle, From: c.resp.Configured.Name(), Believe: v.believe(c, bundle),
		Grace: v.t.Rule.Grace, Veto: v.t.Rule.Veto, Moving: v.t.Rule.Moving,
		Confirmed: v.force || v.t.Rule.Moving && k.moving == k.sum && v.agreed(k.sum),
	}
	err = v.m.mirror.Publish(ctx, p)
	if _, ok := errors.AsType[*mirror.VetoError](err); ok {
		v.agreed(k.sum)
		v.m.mirror.Unchanged(v.t, "", "", time.Time{})
		return Vetoed, err
	}
	if err != nil {
		return Failed, err
	}
	k.attempts, k.moving = 0, digest.Sum{}
	v.carryUses(old, &c.repo)
	now := v.repo()
	e := Event{Root: root, What: Published, To: now.Pointer.Generation(), Origin: c.resp.Origin, Time: time.Since(v.begun)}
	if old != nil {
		e.From = old.Pointer.Generation()
	}
	if now.Partial != "" {
		e.Err = errors.New(now.Partial)
	}
	v.m.report(e)
	if old == nil {
		v.m.meetAgain(v.w, &met{resp: c.resp, sum: c.repo.Pointer.Sum})
	}
	if now.Veto != nil {
		v.m.report(Event{Root: root, What: Vetoed, Origin: c.resp.Origin, Files: now.Veto.Files, To: e.To})
	}
	return Published, nil
}

// stage reads the packages of c from its primary, unless they are those that are known. A primary that can't be read is a
// reason to refuse the generation.
func (v *visit) stage(c *candidate, old *index.Repo) (*index.Staged, error) {
	n, ok := c.repo.Records[c.repo.Primary]
	if !ok || n.Sum.IsZero() || old == nil || old.Packages == n.Sum {
		return nil, nil
	}
	var file io.ReadCloser
	var err error
	if v.w.work.bundle.Has(c.repo.Primary) {
		file, err = v.w.work.bundle.Open(c.repo.Primary)
	} else {
		var stored *store.File
		if stored, err = v.m.store.Get(c.repo.Primary); err == nil {
			file = struct {
				io.Reader
				io.Closer
			}{io.NewSectionReader(stored, 0, stored.Size), closer(stored.Close)}
		}
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	staged, err := v.m.mirror.StagePackages(v.t.Profile, v.w.root, c.repo.Primary, n.Named, file)
	if err != nil {
		return nil, &refusal{origin: c.resp.Configured, host: c.resp.Origin, err: err}
	}
	return staged, nil
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

// believe is what is known of the files in b.
func (v *visit) believe(c *candidate, b *store.Bundle) map[string]index.Belief {
	list := make(map[string]index.Belief)
	for _, p := range b.Paths() {
		size, mtime, ok := b.Info(p)
		if !ok {
			continue
		}
		one := index.Belief{Size: size, ModTime: mtime, Checked: time.Now(), Sum: c.repo.Records[p].Sum}
		if p == v.t.Path {
			one.Sum, one.Origin = c.repo.Pointer.Sum, c.resp.Origin
			if !c.resp.Young { // else it is asked for whole the next time
				one.ETag, one.LastModified = c.resp.ETag, c.resp.LastModified
			}
		}
		list[p] = one
	}
	return list
}

// carryUses makes the new generation's records count as used when the old ones were: their names are new, who uses them is
// not.
func (v *visit) carryUses(old, next *index.Repo) {
	if old == nil {
		return
	}
	for p, rec := range old.Records {
		for q, n := range next.Records {
			if rec.Type == n.Type && p != q && v.stored(q) {
				v.m.index.UseAt(q, v.m.index.Used(p))
			}
		}
	}
}

// complete does what first contact, or a publication with primary only, left to do: companions, the records that every
// client wants, and the comparison of what is stored with them. resp is who has the generation.
func (v *visit) complete(ctx context.Context, resp *upstream.Response) error {
	repo := v.repo()
	if repo == nil {
		return nil
	}
	if v.unsigned(repo) {
		again := *repo
		again.Pointer.Companions = false
		repo = &again
	}
	if repo.Pointer.Companions && !repo.Unjudged && repo.Partial == "" {
		return nil
	}
	var failed []error
	if !repo.Pointer.Companions {
		failed = append(failed, v.addCompanions(ctx, resp, *repo))
	}
	fetch := func(p string) {
		t, err := v.m.table.Load().Resolve("", "/"+p)
		if err == nil {
			err = v.m.mirror.Fetch(ctx, t)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("fetching what %s names: %w", v.t.Path, err))
		}
	}
	wanted := v.wanted(repo)
	if rec, ok := wanted[repo.Primary]; ok { // first, for it names the packages
		if !v.m.mirror.Holds(repo.Primary, rec.Named) {
			fetch(repo.Primary)
		}
		delete(wanted, repo.Primary)
		v.m.mirror.Relearn(v.t) // it may have been here before anybody knew what it is
	}
	for p, rec := range wanted {
		if !v.m.mirror.Holds(p, rec.Named) {
			fetch(p)
		}
	}
	err := errors.Join(failed...)
	if repo.Partial != "" && err == nil {
		v.note(func(r *index.Repo) { r.Partial = "" })
	}
	if repo.Unjudged || repo.Partial != "" {
		err = errors.Join(err, v.m.mirror.Settle(ctx, v.w.root))
	}
	return err
}

// signing is how long after a push a signature may still come that was not there with it.
const signing = time.Hour

// unsigned reports whether it makes sense to look for the signature of the generation in force: it is needed, and was not
// there, or not checked.
func (v *visit) unsigned(repo *index.Repo) bool {
	if repo.Pointer.Signed != "" {
		return false
	}
	if v.stored(v.t.Path + ".asc") {
		return v.t.Profile.Keys != nil
	}
	asked := v.t.Profile.Keys != nil || time.Since(v.m.index.Used(v.t.Path+".asc")) < v.t.Rule.Idle
	return asked && time.Since(repo.Pointer.Published) < signing
}

// addCompanions publishes the companions of the pointer that is here.
func (v *visit) addCompanions(ctx context.Context, resp *upstream.Response, repo index.Repo) error {
	file, err := v.m.store.Get(v.t.Path)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.NewSectionReader(file, 0, min(file.Size, maxPointer)))
	file.Close()
	if err != nil {
		return err
	}
	b, err := v.m.store.NewBundle()
	if err != nil {
		return err
	}
	if err := v.companions(ctx, resp, text, &repo.Pointer, b); err != nil {
		return errors.Join(err, b.Discard())
	}
	if repo.Pointer.Companions && len(b.Paths()) == 0 { // nothing comes in the place of what is here from before
		for _, ext := range []string{".asc", ".key"} {
			t, err := v.m.table.Load().Resolve("", "/"+v.t.Path+ext)
			if err == nil {
				_, err = v.m.mirror.Discard(ctx, t, journal.Vanished)
			}
			if err != nil {
				return errors.Join(err, b.Discard())
			}
		}
	}
	c := &candidate{repo: repo, resp: resp}
	return v.m.mirror.AddCompanions(v.w.root, repo.Pointer, b, v.believe(c, b))
}
