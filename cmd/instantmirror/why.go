package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/cmd/instantmirror/text"
)

type whyCmd struct {
	configFlags
	jsonFlag
	Path string `arg:"" name:"url|path" help:"URL of this mirror, URL path, or the name of a file in the tree."`
}

// Help is what --help says beside the flags.
func (*whyCmd) Help() string {
	return `Says all that is known of one path: the profile, tree and class that it belongs to, the entries of the profile
that rule it (file:line), who is asked for it, whether it is stored, since when and from whom, what its bytes must be and which
metadata say so, how its repository is, until when it stays if that does not name it any more, and when and why it was deleted.

These words say what a request would get:
  immutable   the stored file, always: its bytes cannot change under this name
  fresh       the stored file: it was checked less than its rule's refresh ago
  due         the stored file, once upstream was asked whether it has changed; it is stale while nobody can answer
  outdated    what upstream has: the stored file is of an older generation, and about to be deleted
  missing     what upstream has`
}

// Run prints all that is known of one path.
func (c *whyCmd) Run(o output) error {
	return c.operate(o, func(ctx context.Context, op operator) error {
		w, err := op.Why(ctx, c.inTree(c.Path)[0])
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(o, w)
		}
		var b strings.Builder
		text.Why(&b, time.Now(), w)
		_, err = io.WriteString(o.out, b.String())
		return err
	})
}
