package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/instantmirror/instantmirror/cmd/instantmirror/text"
	"github.com/instantmirror/instantmirror/internal/admin"
)

type refreshCmd struct {
	configFlags
	jsonFlag
	Force bool     `help:"Take what upstream has, be it older than what is here, or without most of what is stored."`
	Paths []string `arg:"" optional:"" name:"path" help:"URL path of a repository, of anything in it, or of a directory above several. Default: all that are watched."`
}

// Help is what --help says beside the flags.
func (*refreshCmd) Help() string {
	return `Looks upstream now whether the repositories have changed, publishes what has, and prints a line for each:

  unchanged   upstream has what is here
  published   a new generation is in force, and what clients here use of its metadata is stored; "partial" says why only
              primary is; "veto" that nothing is deleted, for most of what is stored would go, until a later look confirms it
  refused     what upstream has is older than what is here, not signed as it should be, or no right repomd.xml
  veto        the tree moves, what upstream has would remove most of what is stored, and waits for a look that agrees
  gone        upstream has no such repository, or has it no more: what is stored is kept
  failed      nobody could answer, or something that the generation needs could not be had

With --force what upstream has is taken, be it older, and a veto is lifted: what it kept goes.

A repository whose rule says refresh: never is looked at only when it is named. So is one that nobody has asked for yet: then
its metadata are fetched. The exit status is 1 if a look failed.`
}

// Run looks at repositories and says how that went.
func (c *refreshCmd) Run(o output) error {
	type result struct {
		Repositories []admin.Refreshed `json:"repositories"`
	}
	all := result{Repositories: []admin.Refreshed{}}
	failed := 0
	err := c.operate(o, func(ctx context.Context, op operator) error {
		p := newProgress(o, "looked at", false)
		defer p.hide()
		total := 0
		return op.Refresh(ctx, c.Force, c.inTree(c.Paths...), func(r admin.Refreshed) {
			if r.Begun {
				total = r.Of
				p.show(int64(len(all.Repositories)), int64(total))
				return
			}
			all.Repositories = append(all.Repositories, r)
			if r.What == "failed" {
				failed++
			}
			if !c.JSON {
				p.hide()
				printRefreshed(o, r)
			}
			p.show(int64(len(all.Repositories)), int64(total))
		})
	})
	if c.JSON && (err == nil || len(all.Repositories) > 0) {
		err = errors.Join(err, printJSON(o, all))
	}
	switch {
	case err != nil:
		return err
	case failed > 0:
		return fmt.Errorf("%d of %s could not be looked at", failed, text.Count(int64(len(all.Repositories)), "repository"))
	case len(all.Repositories) == 0 && !c.JSON:
		fmt.Fprintln(o.out, "No repository is watched: no client has asked for one lately. Name those that are meant.")
	}
	return nil
}

func printRefreshed(o output, r admin.Refreshed) {
	switch {
	case r.What == "published" && r.From == "":
		fmt.Fprintf(o.out, "%s: published %s", r.Path, r.To)
	case r.What == "published":
		fmt.Fprintf(o.out, "%s: published %s → %s", r.Path, r.From, r.To)
	case r.What == "gone":
		fmt.Fprintf(o.out, "%s: gone: upstream has no repodata/repomd.xml there", r.Path)
	case r.Error != "":
		fmt.Fprintf(o.out, "%s: %s: %s", r.Path, r.What, r.Error)
	default:
		fmt.Fprintf(o.out, "%s: %s", r.Path, r.What)
	}
	if r.Partial != "" {
		fmt.Fprintf(o.out, "; partial: %s", r.Partial)
	}
	if r.Veto != nil {
		fmt.Fprintf(o.out, "; veto: it would delete %d of %d stored files, nothing goes until it is confirmed", r.Veto.Files, r.Veto.Held)
	}
	if r.Lifted != nil {
		fmt.Fprintf(o.out, "; the veto is lifted: the %d of %d stored files that it kept go, at once or when their grace ends", r.Lifted.Files, r.Lifted.Held)
	}
	fmt.Fprintln(o.out)
}

type expireCmd struct {
	configFlags
	jsonFlag
	Paths []string `arg:"" name:"path" help:"URL path of a file, or of a directory: then all that is stored in it."`
}

// Help is what --help says beside the flags.
func (*expireCmd) Help() string {
	return `Throws away what is stored at PATH. Nothing is lost: what clients ask for is fetched again. The journal, which
"instantmirror why PATH" shows, has a line for each file.`
}

// Run throws away what is stored at the paths.
func (c *expireCmd) Run(o output) error {
	type result struct {
		Paths []admin.Expired `json:"paths"`
		Files int             `json:"files"`
		Bytes int64           `json:"bytes"`
	}
	all := result{Paths: []admin.Expired{}}
	err := c.operate(o, func(ctx context.Context, op operator) error {
		return op.Expire(ctx, c.inTree(c.Paths...), func(e admin.Expired) {
			all.Paths = append(all.Paths, e)
			all.Files += e.Files
			all.Bytes += e.Bytes
			switch {
			case c.JSON:
			case e.Files == 0:
				fmt.Fprintf(o.out, "%s: nothing is stored there\n", e.Path)
			default:
				fmt.Fprintf(o.out, "%s: %s, %s\n", e.Path, text.Count(int64(e.Files), "file"), text.Bytes(e.Bytes))
			}
		})
	})
	if c.JSON && err == nil {
		return printJSON(o, all)
	}
	return err
}

type pruneCmd struct {
	configFlags
	jsonFlag
	DryRun bool          `help:"Only say what would go."`
	Spare  time.Duration `help:"Leave what was stored more recently. Default: ${default}." default:"1h" placeholder:"TIME"`
}

// Help is what --help says beside the flags.
func (*pruneCmd) Help() string {
	return `Deletes what nothing vouches for any more, and says why of each file:

  - what no enabled profile serves
  - what has left its repository, once its grace has ended
  - packages, and metadata with a checksum in their names, that neither the generation in force nor one in grace names

Of a repository whose metadata are not here nothing goes, nor of one that a veto keeps, or that is gone upstream. Look at
what --dry-run says before: a profile that is disabled for a while, or left out by --profile, counts as not enabled.`
}

// Run deletes what nothing vouches for, or says what that is.
func (c *pruneCmd) Run(o output) error {
	type result struct {
		DryRun bool           `json:"dry_run"`
		Files  int            `json:"files"`
		Bytes  int64          `json:"bytes"`
		Pruned []admin.Pruned `json:"pruned"`
	}
	all := result{DryRun: c.DryRun, Pruned: []admin.Pruned{}}
	err := c.operate(o, func(ctx context.Context, op operator) error {
		return op.Prune(ctx, c.DryRun, c.Spare, func(p admin.Pruned) {
			switch {
			case p.Path == "":
				all.Files, all.Bytes = p.Files, p.Bytes
			case c.JSON:
				all.Pruned = append(all.Pruned, p)
			default:
				fmt.Fprintf(o.out, "%s: %s (%s)\n", p.Path, p.Why, text.Bytes(p.Size))
			}
		})
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o, all)
	}
	verb := "went"
	if c.DryRun {
		verb = "would go"
	}
	fmt.Fprintf(o.out, "%s %s, %s\n", text.Count(int64(all.Files), "file"), verb, text.Bytes(all.Bytes))
	return nil
}
