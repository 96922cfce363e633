package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/monitor"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// maxAtOnce is how many repositories or files one command has looked at or fetched at a time.
const maxAtOnce = 4

// Service carries commands out, in the process that holds the root's lock. Its methods may be called from any goroutine;
// what they yield comes from one goroutine at a time.
type Service struct {
	Version string
	Started time.Time // the daemon; zero: none runs
	State   string    // directory

	Profiles []string // see About

	Mirror  *mirror.Mirror
	Monitor *monitor.Monitor
	Index   *index.Index
	Store   *store.Store
	Journal *journal.Journal
	Table   func() *site.Table
	Traffic func() Traffic // nil where no daemon runs
}

// About says whose mirror this is.
func (s *Service) About(context.Context) (*About, error) {
	return &About{Root: s.Store.Dir(), State: s.State, Profiles: s.Profiles}, nil
}

// Status says how the mirror is.
func (s *Service) Status(context.Context) (*Status, error) {
	st := &Status{
		Version: s.Version, Running: !s.Started.IsZero(), Started: s.Started, Now: time.Now(), Root: s.Store.Dir(), State: s.State,
		Repositories: s.Monitor.Repositories(), Upstreams: upstreams(s.Table()),
	}
	if st.Repositories == nil {
		st.Repositories = []monitor.Repository{}
	}
	if st.Running {
		st.PID = os.Getpid()
	}
	if s.Traffic != nil {
		t := s.Traffic()
		t.Saved = max(t.Sent-t.Fetched, 0)
		st.Traffic = &t
	}
	var err error
	st.Room, err = s.room()
	return st, err
}

// Public is what everybody may know of it.
func (st *Status) Public() *Status {
	public := *st
	public.PID, public.Root, public.State = 0, "", ""
	public.Repositories = slices.Clone(st.Repositories)
	for i := range public.Repositories {
		public.Repositories[i].Rule = "" // which names a file
	}
	return &public
}

func (s *Service) room() (Room, error) {
	r := Room{Quota: s.quota("", ""), Profiles: []Quota{}}
	for _, p := range s.Table().Profiles() {
		q := s.quota(p.Name, p.Dir())
		if p.Size > 0 {
			q.Limit = p.Size
		}
		r.Profiles = append(r.Profiles, q)
	}
	var err error
	r.Free, r.Total, r.Reserve, err = s.Store.Space()
	return r, err
}

func (s *Service) quota(profile, dir string) Quota {
	q := Quota{Profile: profile, Path: "/" + dir}
	used, limit, measured := s.Store.Usage(dir)
	if q.Limit = limit; measured {
		q.Used = &used
	}
	return q
}

// upstreams lists the origins of t, each once.
func upstreams(t *site.Table) []Upstream {
	list := []Upstream{}
	at := make(map[*upstream.Origin]int)
	for _, role := range []struct {
		name string
		of   func(*site.Profile) []*upstream.Origin
	}{
		{"upstream", func(p *site.Profile) []*upstream.Origin { return p.Upstreams }},
		{"fallback", func(p *site.Profile) []*upstream.Origin { return p.Fallbacks }},
		{"archive", func(p *site.Profile) []*upstream.Origin { return p.Archives }},
	} {
		for _, p := range t.Profiles() {
			for _, o := range role.of(p) {
				n, ok := at[o]
				if !ok {
					h := o.Health()
					u := Upstream{Name: o.Name(), Role: role.name, State: h.State, Since: h.Since, Retry: h.Retry}
					if h.Err != nil {
						u.Error = h.Err.Error()
					}
					n, at[o] = len(list), len(list)
					list = append(list, u)
				}
				if !slices.Contains(list[n].Profiles, p.Name) {
					list[n].Profiles = append(list[n].Profiles, p.Name)
				}
			}
		}
	}
	return list
}

// Refresh looks upstream now whether repositories have changed, and waits for what that comes to: those that args name
// (their paths, those of anything in them, or of directories above them), or without any all that are watched. With force
// also an older generation is taken, and one that removes most of what is stored.
func (s *Service) Refresh(ctx context.Context, force bool, args []string, yield func(Refreshed)) error {
	var roots []string
	if len(args) == 0 {
		for _, r := range s.Monitor.Repositories() {
			if r.State == "watched" {
				roots = append(roots, r.Root)
			}
		}
	}
	for _, arg := range args {
		some, err := s.roots(arg)
		if err != nil {
			return err
		}
		for _, root := range some {
			if !slices.Contains(roots, root) {
				roots = append(roots, root)
			}
		}
	}
	var mu sync.Mutex
	say := func(r Refreshed) {
		mu.Lock()
		defer mu.Unlock()
		yield(r)
	}
	var work errgroup.Group
	work.SetLimit(maxAtOnce)
	for _, root := range roots {
		work.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			say(Refreshed{Path: "/" + root, Begun: true, Of: len(roots)})
			r, err := s.refresh(ctx, root, force)
			if err == nil {
				say(r)
			}
			return err
		})
	}
	return work.Wait()
}

// refresh looks at one repository. An error says that ctx has ended.
func (s *Service) refresh(ctx context.Context, root string, force bool) (Refreshed, error) {
	r := Refreshed{Path: "/" + root}
	before, _ := s.Monitor.Repository(root)
	result, err := s.Monitor.Refresh(ctx, root, force)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	r.What, r.Origin = result.What, result.Origin
	if err != nil {
		r.Error = err.Error()
	}
	after, _ := s.Monitor.Repository(root)
	r.From, r.To, r.Veto, r.Partial = before.Generation, after.Generation, after.Veto, after.Partial
	if err == nil && after.Veto == nil && r.From == r.To { // a push may have brought back what was kept
		r.Lifted = before.Veto
	}
	return r, nil
}

// roots are the repositories that arg means. One that nobody has asked for yet is meant, too, where arg is its path.
func (s *Service) roots(arg string) ([]string, error) {
	t, name, err := s.resolve(arg)
	if err != nil && !errors.Is(err, site.ErrNoRoute) {
		return nil, err
	}
	known := s.Index.Roots()
	if slices.Contains(known, name) {
		return []string{name}, nil
	}
	var below []string
	for _, root := range known {
		if name == "" || strings.HasPrefix(root, name+"/") {
			below = append(below, root)
		}
	}
	if len(below) > 0 {
		return below, nil
	}
	if err != nil {
		return nil, err
	}
	root := s.rootOf(t, known)
	pointer, err := mirror.PointerOf(s.Table(), root)
	if err != nil {
		return nil, &UsageError{Err: fmt.Errorf("%s: %w", arg, err)}
	}
	if pointer.Action != site.Store {
		return nil, &UsageError{Err: fmt.Errorf("%s: the profile's content rules say %s: nothing of it is kept here", arg, pointer.Action)}
	}
	return []string{root}, nil
}

// rootOf is the repository that t belongs to: the nearest one that is known, unless the layout, or a repodata/ in the path,
// says that there is another one between.
func (s *Service) rootOf(t site.Target, known []string) string {
	tree := strings.Trim(t.Profile.Dir()+"/"+t.Tree, "/")
	for dir := t.Path; ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if slices.Contains(known, dir) {
			return dir
		}
		if t.Tree != "" && dir == tree {
			return tree
		}
		if dir == "" {
			return t.Path
		}
	}
}

// Expire throws away what is stored at the path args: files, or all of directories.
func (s *Service) Expire(ctx context.Context, args []string, yield func(Expired)) error {
	var targets []site.Target
	for _, arg := range args {
		t, _, err := s.resolve(arg)
		if err != nil {
			return err
		}
		targets = append(targets, t)
	}
	for _, t := range targets {
		_, bytes, err := s.Mirror.Sizes(ctx, t)
		if err != nil {
			return err
		}
		n, err := s.discard(ctx, t, journal.ByHand)
		if err != nil {
			return err
		}
		yield(Expired{Path: shown(t.Path, t.Dir), Files: n, Bytes: bytes})
	}
	return nil
}

// discard deletes what is stored at t. A pointer's signature is one with its key: either would not be looked for again
// before the pointer changes.
func (s *Service) discard(ctx context.Context, t site.Target, reason journal.Reason) (n int, err error) {
	if root, ok := companionOf(t.Path); ok && !t.Dir {
		return s.Mirror.DiscardCompanions(root, reason)
	}
	return s.Mirror.Discard(ctx, t, reason)
}

// companionOf is the root of the repository whose repomd.xml the file at name goes with.
func companionOf(name string) (root string, ok bool) {
	for _, ext := range []string{".asc", ".key"} {
		if pointer, is := strings.CutSuffix(name, ext); is {
			return mirror.RootOf(pointer)
		}
	}
	return "", false
}

// Prune deletes what nothing vouches for any more, but for what was stored within the time spare; or only says what.
func (s *Service) Prune(ctx context.Context, dry bool, spare time.Duration, yield func(Pruned)) error {
	files, bytes, err := s.Mirror.Prune(ctx, s.Table(), mirror.PruneOptions{
		DryRun: dry, Spare: spare,
		Found: func(name, why string, size int64) { yield(Pruned{Path: "/" + name, Why: why, Size: size}) },
	})
	if err == nil {
		yield(Pruned{Files: files, Bytes: bytes})
	}
	return err
}

// Repair deletes the files at paths, which were found wrong, and fetches them again, each from whoever has the right bytes:
// first what names others, then packages. Of a repomd.xml.asc it is not known whether it is wrong or the file that it signs.
func (s *Service) Repair(ctx context.Context, paths []string, yield func(Repaired)) error {
	var mu sync.Mutex
	for _, packages := range []bool{false, true} {
		var work errgroup.Group
		work.SetLimit(maxAtOnce)
		for _, p := range paths {
			if packages != (strings.HasSuffix(p, ".rpm") || strings.HasSuffix(p, ".drpm")) {
				continue
			}
			work.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				r, err := s.repair(ctx, strings.TrimPrefix(p, "/"))
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					yield(r)
				}
				return err
			})
		}
		if err := work.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// repair mends one file. An error says that none can be mended: ctx has ended, or files cannot be deleted.
func (s *Service) repair(ctx context.Context, name string) (r Repaired, err error) {
	r.Path = "/" + name
	t, err := s.Table().Resolve("", r.Path)
	routed := err == nil
	if !routed {
		t = site.Target{Path: name}
	}
	root, pointer := mirror.RootOf(name)
	if of, companion := companionOf(name); companion {
		if root, pointer = of, true; !s.pointerRight(root) {
			if _, err := s.Mirror.Discard(ctx, site.Target{Path: strings.TrimSuffix(name, path.Ext(name))}, journal.Damaged); err != nil {
				return r, err
			}
		}
	}
	n, err := s.discard(ctx, t, journal.Damaged)
	if err != nil {
		return r, err
	}
	r.Deleted = n > 0
	switch {
	case !routed:
		r.Error = "no enabled profile has this path: there is nobody to ask"
		return r, nil
	case t.Action != site.Store:
		r.Error = "the profile's content rules say " + t.Action.String()
		return r, nil
	case pointer: // its whole generation
		_, err = s.Monitor.Refresh(ctx, root, false)
	default:
		err = s.Mirror.Fetch(ctx, t)
	}
	if err == nil {
		_, err = s.Store.Stat(t.Path)
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	switch r.Fetched = err == nil; {
	case errors.Is(err, fs.ErrNotExist):
		r.Error = "upstream does not have it any more"
	case err != nil:
		r.Error = err.Error()
	}
	return r, nil
}

// pointerRight reports whether the repomd.xml of the repository at root is the one that is in force.
func (s *Service) pointerRight(root string) bool {
	repo, ok := s.Index.Repo(root)
	file, err := s.Store.Get(strings.TrimPrefix(root+"/repodata/repomd.xml", "/"))
	if err != nil {
		return false
	}
	defer file.Close()
	h := digest.SHA256.New()
	_, err = io.Copy(h, io.NewSectionReader(file, 0, file.Size))
	return ok && err == nil && digest.SumOf(digest.SHA256, h) == repo.Pointer.Sum
}
