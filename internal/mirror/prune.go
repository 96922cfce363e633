package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

// PruneOptions say what Prune does.
type PruneOptions struct {
	DryRun bool          // nothing is deleted
	Spare  time.Duration // files that were stored more recently stay
	// Found is called for each file that went, or would: why, and its length in bytes.
	Found func(path, why string, size int64)
}

// Prune deletes the stored files that nothing vouches for any more: what no profile of table serves; what has left its
// repository and whose grace has ended; packages, and metadata with a checksum in their names, that no generation names and
// that are in no grace. Of a repository whose packages are not known nothing is deleted, nor of one that a veto keeps or
// whose pointer is gone upstream. It returns how many files went (or would), and their bytes.
func (m *Mirror) Prune(ctx context.Context, table *site.Table, o PruneOptions) (files int, bytes int64, err error) {
	p := &pruning{m: m, table: table, o: o, begun: time.Now(), linked: make(map[uint64]uint64)}
	err = m.store.Walk(ctx, ".", p.visit)
	if err == nil {
		err = p.flush()
	}
	if err != nil {
		err = fmt.Errorf("pruning: %w", err)
	}
	return p.files, p.bytes, err
}

// pruning is one Prune.
type pruning struct {
	m      *Mirror
	table  *site.Table
	o      PruneOptions
	begun  time.Time
	linked map[uint64]uint64 // inodes with several names: how many of them go

	list  []pruned // not deleted yet
	files int
	bytes int64
}

// pruned is a file that goes.
type pruned struct {
	store.Info
	why   string
	entry journal.Entry
	spare bool // at the last moment something vouches for it, or it has changed
}

func (p *pruning) visit(i store.Info) error {
	why, entry := p.judge(i.Path)
	if why == "" {
		return nil
	}
	entry.Rule = "prune: " + why
	placed, err := p.m.store.Placed(i.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && p.begun.Sub(placed) < p.o.Spare {
		return nil
	}
	if err != nil {
		return err
	}
	if p.list = append(p.list, pruned{Info: i, why: why, entry: entry}); len(p.list) < removeBatch {
		return nil
	}
	return p.flush()
}

// flush deletes what is on the list.
func (p *pruning) flush() error {
	if !p.o.DryRun {
		var list []doomed
		for n := range p.list {
			one := &p.list[n]
			list = append(list, doomed{path: one.Path, entry: one.entry, still: func() bool {
				why, _ := p.judge(one.Path)
				now, err := p.m.store.Stat(one.Path)
				one.spare = why == "" || err != nil || now.Inode != one.Inode || !now.ModTime.Equal(one.ModTime)
				return !one.spare
			}})
		}
		if _, _, err := p.m.remove(list); err != nil {
			return err
		}
	}
	for _, one := range p.list {
		if one.spare {
			continue
		}
		p.files++
		if one.Links > 1 {
			p.linked[one.Inode]++
		}
		if one.Links <= 1 || p.linked[one.Inode] == one.Links { // its last name: only then there is room
			p.bytes += one.Size
		}
		p.o.Found(one.Path, one.why, one.Size)
	}
	p.list = p.list[:0]
	return nil
}

// judge says why the file at name goes, and what the journal is to have; "" if it stays.
func (p *pruning) judge(name string) (why string, e journal.Entry) {
	m := p.m
	byHand := journal.Entry{Reason: journal.ByHand}
	t, err := p.table.Resolve("", "/"+name)
	switch {
	case errors.Is(err, site.ErrNoRoute), errors.Is(err, site.ErrBadPath):
		return "no profile serves it", byHand
	case err != nil, !vouchedFor(t):
		return "", e
	}
	says, complete := m.index.Says(name)
	if len(says) > 0 {
		return "", e
	}
	for _, root := range m.index.Concerned(name) {
		repo, ok := m.index.Repo(root)
		if !ok || repo.Veto != nil || !repo.Gone.IsZero() || repo.Unjudged {
			return "", e
		}
	}
	if l, root, ok := m.index.Left(name); ok {
		if l.Until.After(p.begun) || m.index.LeavesBut(root, name, p.begun) {
			return "", e
		}
		return fmt.Sprintf("its grace ended %s: generation %s of /%s does not name it any more", l.Until.Format(time.RFC3339), l.To, root),
			journal.Entry{Reason: journal.Vanished, From: l.From, To: l.To}
	}
	if t.Class == site.Package && !complete || !p.spokenFor(t) {
		return "", e
	}
	return "no generation names it", byHand
}

// spokenFor reports whether a repository that is known names all files like t that are right, so that what it does not
// name is not.
func (p *pruning) spokenFor(t site.Target) bool {
	root, ok := p.nearest(t.Path)
	if !ok {
		return false
	}
	repo, ok := p.m.index.Repo(root)
	if !ok {
		return false
	}
	if t.Class == site.Metadata {
		return checksummed(t.Rel) && t.Path == path.Join(root, "repodata", path.Base(t.Path))
	}
	if strings.HasSuffix(t.Path, ".drpm") { // named by a record that is not read here
		for _, rec := range repo.Records {
			if strings.HasPrefix(rec.Type, "prestodelta") || strings.HasPrefix(rec.Type, "deltainfo") {
				return false
			}
		}
	}
	// A repository that lies between, of which only packages were ever asked for, would name it.
	tree := path.Join(t.Profile.Dir(), t.Tree)
	return t.Layout == nil || root == tree || tree == "" || strings.HasPrefix(root, tree+"/")
}

// nearest returns the root of the nearest repository above name. It is not ok if that one is not known: its repomd.xml
// stands in the tree, and the index does not have it; or there is none.
func (p *pruning) nearest(name string) (root string, ok bool) {
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if path.Base(dir) != "repodata" || dir == "" {
			if _, known := p.m.index.Repo(dir); known {
				return dir, true
			}
			if p.m.isStored(pointerOf(dir)) {
				return "", false
			}
		}
		if dir == "" {
			return "", false
		}
	}
}
