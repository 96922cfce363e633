package admin

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/monitor"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// maxEntries is how many lines of the journal Why gives.
const maxEntries = 20

// resolve says what arg is: a URL of this mirror, the path of one, or the name of a file in the tree. A directory is one
// with or without a slash at its end. name is the mirror path, be it in a profile (t) or not (a UsageError that is
// site.ErrNoRoute); "" is all of it.
func (s *Service) resolve(arg string) (t site.Target, name string, err error) {
	host, p := "", arg
	if u, uerr := url.Parse(arg); uerr == nil && u.Scheme != "" && u.Host != "" {
		host, p = u.Host, u.Path
	} else if open, uerr := url.PathUnescape(arg); uerr == nil {
		p = open
	}
	p = "/" + strings.TrimPrefix(p, "/")
	if inTree, ok := strings.CutPrefix(p, s.Store.Dir()+"/"); ok {
		host, p = "", "/"+inTree
	}
	table := s.Table()
	if t, err = table.Resolve(host, p); err != nil {
		var paths []string
		for _, profile := range table.Profiles() {
			paths = append(paths, profile.Path+"/")
		}
		if errors.Is(err, site.ErrNoRoute) {
			name = strings.Trim(path.Clean(p), "/")
			err = fmt.Errorf("%w: those served are at %s", err, strings.Join(paths, ", "))
		}
		return site.Target{}, name, &UsageError{Err: fmt.Errorf("%s: %w", arg, err)}
	}
	if !t.Dir {
		if _, serr := s.Store.Stat(t.Path); errors.Is(serr, store.ErrIsDir) {
			t.Dir, t.Class = true, site.Volatile
		}
	}
	return t, t.Path, nil
}

// shown is a mirror path as people write it.
func shown(name string, dir bool) string {
	if dir && name != "" {
		return "/" + name + "/"
	}
	return "/" + name
}

// Why says all that is known of the path arg, or of a URL.
func (s *Service) Why(ctx context.Context, arg string) (*Why, error) {
	t, name, err := s.resolve(arg)
	if errors.Is(err, site.ErrNoRoute) {
		return s.whyUnserved(ctx, name, err)
	}
	if err != nil {
		return nil, err
	}
	w := &Why{
		Path: shown(t.Path, t.Dir), Dir: t.Dir, Profile: t.Profile.Name, Rule: ruleOf(t.Rule), Action: t.Action.String(),
		Used: s.Index.Used(t.Path), Journal: []journal.Entry{},
	}
	if t.Tree != "" || t.Layout != nil {
		w.Tree = shown(strings.Trim(t.Profile.Dir()+"/"+t.Tree, "/"), true)
	}
	if t.Layout != nil {
		w.Layout = t.Layout.Template
	}
	if t.Content != nil {
		w.Content = &Rule{Match: t.Content.Match, At: position(t.Content.At.File, t.Content.At.Line)}
	}
	order := t.Profile.Origins(t.Rel)
	w.Upstreams, w.Fallbacks, w.Archives = names(order.Upstreams), names(order.Fallbacks), names(order.Archives)
	if t.Dir {
		err = s.whyDir(ctx, t, w)
	} else {
		err = s.whyFile(t, w)
	}
	if err != nil {
		return nil, err
	}
	entries, err := s.Journal.Find(ctx, t.Path, maxEntries)
	if len(entries) > 0 {
		w.Journal = entries
	}
	return w, err
}

// whyUnserved says what the journal has of a path that no profile serves; unrouted if that is nothing.
func (s *Service) whyUnserved(ctx context.Context, name string, unrouted error) (*Why, error) {
	entries, err := s.Journal.Find(ctx, name, maxEntries)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, unrouted
	}
	w := &Why{Path: shown(name, false), Upstreams: []string{}, Journal: entries}
	if info, err := s.Store.Stat(name); err == nil {
		w.Stored = &Stored{Size: info.Size, ModTime: info.ModTime, Links: info.Links}
	}
	return w, nil
}

func (s *Service) whyDir(ctx context.Context, t site.Target, w *Why) error {
	files, bytes, err := s.Mirror.Sizes(ctx, t)
	if err != nil {
		return err
	}
	w.Stored = &Stored{Files: files, Size: bytes}
	for _, root := range s.Index.Roots() {
		if root == t.Path {
			w.Repository = s.repository(root)
		} else if t.Path == "" || strings.HasPrefix(root, t.Path+"/") {
			w.Below++
		}
	}
	return nil
}

func (s *Service) whyFile(t site.Target, w *Why) error {
	st, err := s.Mirror.Explain(t)
	if err != nil {
		return err
	}
	w.Class, w.Validity, w.Detail, w.Due, w.Expected = t.Class.String(), st.Validity, st.Detail, st.Due, st.Want.String()
	if st.Info.Path != "" {
		w.Stored = &Stored{
			Size: st.Info.Size, ModTime: st.Info.ModTime, Links: st.Info.Links, Origin: st.Belief.Origin, Checked: st.Belief.Checked,
			Verified: sumText(st.Belief.Sum),
		}
		if w.Stored.Placed, err = s.Store.Placed(t.Path); err != nil {
			w.Stored.Placed = time.Time{} // it went meanwhile
		}
	}
	root, known := "", false
	for _, one := range s.Index.Concerned(t.Path) {
		if inRoot := one == "" || strings.HasPrefix(t.Path, one+"/"); inRoot && !known {
			root, known = one, true
		}
	}
	if root, ok := mirror.RootOf(t.Path); ok {
		w.Expected = s.pointer(t, root)
	}
	says, _ := s.Index.Says(t.Path)
	for i, one := range says {
		if i == 0 {
			root, known = one.Root, true
		}
		generation := ""
		if repo, ok := s.Index.Repo(one.Root); ok {
			generation = repo.Pointer.Generation()
		}
		w.Says = append(w.Says, Says{By: "/" + one.By, Generation: generation, Size: one.Size, Sum: sumText(one.Sum)})
	}
	if l, at, ok := s.Index.Left(t.Path); ok && len(says) == 0 {
		root, known = at, true
		w.Leaving = &Leaving{Repository: "/" + at, Until: l.Until, From: l.From, To: l.To, Size: l.Size, Sum: sumText(l.Sum)}
	}
	if known {
		w.Repository = s.repository(root)
	}
	return nil
}

// pointer says what the repomd.xml t of the repository at root is. Nothing names it.
func (s *Service) pointer(t site.Target, root string) string {
	repo, ok := s.Index.Repo(root)
	if !ok || repo.Pointer.Sum.IsZero() {
		return "what upstream has: it is a pointer, and no generation of its repository is known"
	}
	what := "the pointer of generation " + repo.Pointer.Generation()
	_, err := s.Store.Stat(t.Path + ".asc")
	switch {
	case repo.Pointer.Signed != "":
		return what + ", signed by " + repo.Pointer.Signed
	case err == nil && t.Profile.Keys == nil:
		return what + "; its signature was not checked: the profile has no keys"
	case err == nil:
		return what + "; its signature was not checked"
	case repo.Pointer.Companions:
		return what + ", not signed"
	}
	return what + "; whether it is signed is not known yet"
}

func (s *Service) repository(root string) *monitor.Repository {
	if r, ok := s.Monitor.Repository(root); ok {
		return &r
	}
	return nil
}

func ruleOf(r *site.Rule) Rule {
	one := Rule{Match: r.Match, At: position(r.At.File, r.At.Line), Refresh: "never", Grace: r.Grace.String()}
	if !r.Never {
		one.Refresh = r.Refresh.String()
	}
	return one
}

func position(file string, line int) string {
	if file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", file, line)
}

func sumText(sum digest.Sum) string {
	if sum.IsZero() {
		return ""
	}
	return sum.String()
}

func names(list []*upstream.Origin) []string {
	var all []string
	for _, o := range list {
		all = append(all, o.Name())
	}
	return all
}
