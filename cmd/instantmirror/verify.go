package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/instantmirror/instantmirror/cmd/instantmirror/text"
	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/daemon"
	"github.com/instantmirror/instantmirror/internal/fsck"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/signature"
)

type verifyCmd struct {
	configFlags
	jsonFlag
	Repair bool   `help:"Delete what is damaged, and fetch it again."`
	Path   string `arg:"" optional:"" help:"URL path of the file or directory to look at. Default: everything."`
}

// Help is what --help says beside the flags.
func (*verifyCmd) Help() string {
	return `Reads every byte of the tree and compares it with what vouches for it: metadata with the repomd.xml that names them,
packages with the primary that names them, what an earlier generation left with that one's, images with .treeinfo and checksum lists, a repomd.xml with its signature
where the profile has keys. It changes nothing, needs no daemon and does not mind one. What was found wrong is looked at once more
before it is reported, for files come and go meanwhile. What nothing vouches for is counted only.

With --repair the daemon, or without one this command, deletes each damaged file and fetches it again, from whoever has the
right bytes. What can't be had again stays away: a file that stands in the tree is right. A primary that is not here is
fetched, too; when metadata were mended, everything is judged once more by them.

The exit status is 1 if something was wrong, and with --repair only if something of it could not be had again.`
}

// finding is a fsck.Finding for people and programs.
type finding struct {
	Path string `json:"path"` // URL path
	Kind string `json:"kind"`
	Want string `json:"want"`
	Got  string `json:"got"`
	By   string `json:"by,omitempty"` // URL path of what says so

	raw fsck.Finding
}

type verified struct {
	Root         string           `json:"root"`
	Path         string           `json:"path"`
	Repositories int64            `json:"repositories"`
	Files        int64            `json:"files"`
	Bytes        int64            `json:"bytes"`
	Vouched      int64            `json:"vouched"`         // files that are right by current metadata
	Earlier      int64            `json:"earlier"`         // by an earlier generation's
	ByName       int64            `json:"by_name"`         // by the checksum in their names
	Unvouched    int64            `json:"unvouched"`       // nothing says what they must be
	Changed      int64            `json:"changed"`         // they changed while they were looked at
	Unjudged     int64            `json:"unjudged"`        // packages of unvouched, for want of their primary
	Blind        []string         `json:"blind,omitempty"` // URL paths of these primaries: not here, damaged, or not to be read
	Findings     []finding        `json:"findings"`
	Repaired     []admin.Repaired `json:"repaired,omitempty"`
}

// maxRounds is how often --repair judges: once more after metadata were mended, for by them others may be wrong.
const maxRounds = 3

// Run judges the tree, and with --repair mends it.
func (c *verifyCmd) Run(o output) error {
	opts, err := c.mirror()
	if err != nil {
		return err
	}
	setup, err := daemon.Configure(opts, newPool())
	if err != nil {
		return &configError{err}
	}
	root := setup.Config.Root
	if err := daemon.CheckRoot(root); err != nil {
		if nowhere, ok := errors.AsType[*daemon.NowhereError](err); ok {
			return &configError{nowhere}
		}
		return err
	}
	under := c.under(setup)
	if _, err := os.Stat(filepath.Join(root, under)); err != nil {
		return fmt.Errorf("nothing is stored at /%s: %w", under, err)
	}
	all := verified{Root: root, Path: "/" + under, Findings: []finding{}}
	keys := func(p string) *signature.Keyring {
		repo, _ := mirror.RootOf(p)
		t, err := mirror.PointerOf(setup.Table, repo)
		if err != nil {
			return nil
		}
		return t.Profile.Keys
	}
	left := make(map[string]bool) // what could not be mended, by path and kind
	again := true
	for round := 1; again && round <= maxRounds; round++ {
		var found []finding
		err = interruptible(func(ctx context.Context) error {
			found, err = c.judge(ctx, o, root, fsck.Options{Under: under, Keys: keys}, &all)
			return err
		})
		if err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(f finding) bool { return left[f.Path+"\x00"+f.Kind] })
		all.Findings = append(all.Findings, found...)
		if !c.JSON {
			for _, f := range found {
				fmt.Fprintf(o.out, "%s\n", f)
			}
		}
		if !c.Repair {
			break
		}
		if again, err = c.repair(o, &all, found, left); err != nil {
			break
		}
	}
	bad := len(all.Findings)
	if c.Repair {
		bad = len(left)
	}
	if c.JSON {
		err = errors.Join(err, printJSON(o, all))
	} else {
		c.summary(o, &all)
	}
	switch {
	case err != nil:
		return err
	case c.Repair && bad > 0:
		return fmt.Errorf("%s could not be mended", text.Count(int64(bad), "file"))
	case c.Repair && again:
		return fmt.Errorf("metadata were mended %d times, and what they name was not judged since: run verify again", maxRounds)
	case bad > 0:
		return fmt.Errorf("%s found wrong: with --repair they are fetched again", text.Count(int64(bad), "file"))
	}
	return nil
}

// mirror is which mirror is meant. A daemon is not needed; but one that answers must have this one, and knows its profiles.
func (c *verifyCmd) mirror() (opts daemon.Options, err error) {
	err = interruptible(func(ctx context.Context) error {
		opts, _, _, err = c.meant(ctx)
		if wrong, ok := errors.AsType[*configError](err); ok {
			return wrong
		}
		return nil // who may not speak to the daemon may read the tree
	})
	return opts, err
}

// summary prints how many files there were of each kind.
func (c *verifyCmd) summary(o output, all *verified) {
	fmt.Fprintf(o.out, "%s, %s in %s: %s right, %s that nothing vouches for, %s changed meanwhile, %s wrong\n",
		text.Count(all.Files, "file"), text.Bytes(all.Bytes), text.Count(all.Repositories, "repository"), text.Digits(all.Vouched+all.Earlier+all.ByName),
		text.Digits(all.Unvouched), text.Digits(all.Changed), text.Digits(int64(len(all.Findings))))
	if all.Unjudged == 0 {
		return
	}
	of := path.Dir(path.Dir(all.Blind[0]))
	if n := len(all.Blind); n > 1 {
		of += fmt.Sprintf(" and of %d more", n-1)
	}
	advice := "; --repair fetches it"
	if c.Repair {
		advice = ", and could not be had"
	}
	fmt.Fprintf(o.out, "%s could not be judged: the primary of %s is not here (evicted or damaged)%s\n", text.Count(all.Unjudged, "package"), of, advice)
}

// under is what is to be judged, below the root.
func (c *verifyCmd) under(setup *daemon.Setup) string {
	host, p := "", c.inTree(c.Path)[0]
	if u, err := url.Parse(p); err == nil && u.Host != "" {
		host, p = u.Host, u.Path
	}
	if in, ok := strings.CutPrefix(p, setup.Config.Root+"/"); ok {
		p = in
	}
	p = path.Clean("/" + p)
	if t, err := setup.Table.Resolve(host, p); err == nil {
		return t.Path
	}
	return strings.Trim(p, "/")
}

func (f finding) String() string {
	f.raw.Path = f.Path
	f.raw.By = f.By
	return f.raw.String()
}

// maxAgain is how many findings are looked at again one by one. More are looked at again by all that is in the directory
// that they are in.
const maxAgain = 16

// judge counts into all, and returns what is found, twice.
func (c *verifyCmd) judge(ctx context.Context, o output, root string, opts fsck.Options, all *verified) (found []finding, err error) {
	p := newProgress(o, "verified", true)
	defer p.hide()
	opts.Progress = func(_ string, done, total int64) { p.show(done, total) }
	var first []fsck.Finding
	blind := make(map[string]bool)
	all.Unjudged = 0
	opts.Unjudged = func(_, primary string) {
		all.Unjudged++
		blind[primary] = true
	}
	sum, err := fsck.Check(ctx, root, opts, func(f fsck.Finding) { first = append(first, f) })
	if err != nil {
		return nil, err
	}
	all.Repositories, all.Files, all.Bytes, all.Vouched, all.Earlier = sum.Repositories, sum.Files, sum.Bytes, sum.Vouched, sum.Earlier
	all.ByName, all.Unvouched, all.Changed = sum.ByName, sum.Unvouched, sum.Changed
	opts.Unjudged, all.Blind = nil, nil
	for _, primary := range slices.Sorted(maps.Keys(blind)) {
		all.Blind = append(all.Blind, "/"+primary)
	}
	var dirs []string
	for _, f := range first {
		dir := f.Path
		if f.Kind == fsck.BadSignature { // it is found where the file that is signed is judged
			dir = strings.TrimSuffix(dir, ".asc")
		}
		dirs = append(dirs, dir)
	}
	if len(dirs) > maxAgain {
		dirs = []string{above(dirs)}
	}
	slices.Sort(dirs)
	p.rename("looked again at")
	for _, dir := range slices.Compact(dirs) {
		opts.Under = dir
		_, err := fsck.Check(ctx, root, opts, func(f fsck.Finding) {
			if slices.ContainsFunc(first, func(g fsck.Finding) bool { return f.Path == g.Path && f.Kind == g.Kind }) {
				found = append(found, finding{Path: "/" + f.Path, Kind: string(f.Kind), Want: f.Want, Got: f.Got, By: by(f), raw: f})
			}
		})
		if ctx.Err() != nil {
			return nil, err
		}
		// Any other error says that it has gone.
	}
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.Path+"\x00"+a.Kind, b.Path+"\x00"+b.Kind) })
	found = slices.CompactFunc(found, func(a, b finding) bool { return a.Path == b.Path && a.Kind == b.Kind })
	return found, nil
}

func by(f fsck.Finding) string {
	if f.By == "" {
		return ""
	}
	return "/" + f.By
}

// above is the deepest directory that all paths are in.
func above(paths []string) string {
	dir := path.Dir(paths[0])
	for _, p := range paths[1:] {
		for dir != "." && p != dir && !strings.HasPrefix(p, dir+"/") {
			dir = path.Dir(dir)
		}
	}
	if dir == "." {
		return ""
	}
	return dir
}

// repair has what was found fetched again, what names others before packages, and primaries that are not here. Left gets
// what is still wrong. Again says that metadata which name others were mended.
func (c *verifyCmd) repair(o output, all *verified, found []finding, left map[string]bool) (again bool, err error) {
	var paths []string
	kinds := make(map[string]string)
	for _, f := range found {
		mendable := false
		switch f.raw.Kind {
		case fsck.Damaged, fsck.BadSignature:
			mendable = true
		case fsck.Unreadable:
			info, err := os.Lstat(filepath.Join(all.Root, f.raw.Path))
			mendable = err == nil && info.Mode().IsRegular()
		default: // somebody else put it there: it is for people to say what becomes of it
		}
		if mendable {
			paths, kinds[f.Path] = append(paths, f.raw.Path), f.Kind
		} else {
			left[f.Path+"\x00"+f.Kind] = true
		}
	}
	for _, primary := range all.Blind {
		if _, err := os.Lstat(filepath.Join(all.Root, primary)); errors.Is(err, fs.ErrNotExist) && !left[primary+"\x00"+missing] {
			paths, kinds[primary] = append(paths, primary[1:]), missing
		}
	}
	slices.Sort(paths)
	if paths = slices.Compact(paths); len(paths) == 0 {
		return false, nil
	}
	err = c.operate(o, func(ctx context.Context, op operator) error {
		return op.Repair(ctx, paths, func(r admin.Repaired) {
			all.Repaired = append(all.Repaired, r)
			if !r.Fetched {
				left[r.Path+"\x00"+kinds[r.Path]] = true
			}
			again = again || r.Fetched && names(r.Path)
			switch {
			case c.JSON:
			case r.Fetched && kinds[r.Path] == missing:
				fmt.Fprintf(o.out, "%s: fetched, to judge packages by it\n", r.Path)
			case r.Fetched:
				fmt.Fprintf(o.out, "%s: fetched again\n", r.Path)
			case r.Deleted:
				fmt.Fprintf(o.out, "%s: deleted, and not had again: %s\n", r.Path, r.Error)
			case kinds[r.Path] == missing:
				fmt.Fprintf(o.out, "%s: not here, and not had: %s\n", r.Path, r.Error)
			default:
				fmt.Fprintf(o.out, "%s: not mended: %s\n", r.Path, r.Error)
			}
		})
	})
	if errors.Is(err, admin.ErrNobody) {
		err = fmt.Errorf("nothing was mended: %w", err)
	}
	return again, err
}

// missing is the kind, here, of a primary that is not stored.
const missing = "missing"

// names reports whether others are judged by the file at p.
func names(p string) bool {
	base := path.Base(p)
	return strings.Contains(base, "primary") || strings.HasPrefix(base, "repomd.xml") || base == ".treeinfo" || strings.Contains(base, "CHECKSUM")
}
