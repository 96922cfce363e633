package main

import (
	"context"
	"io"
	"strings"

	"github.com/instantmirror/instantmirror/cmd/instantmirror/text"
)

type statusCmd struct {
	configFlags
	jsonFlag
}

// Help is what --help says beside the flags.
func (*statusCmd) Help() string {
	return `Says of each repository which generation of its metadata is in force, how old it is and who sent it, how the
last look upstream went and when the next one is due. Then what clients asked for since the daemon was started, how much of that
upstream did not have to send, how each upstream is, and how much room there is.

These words have a meaning:
  veto         a push would delete more than a sane share of what is stored: nothing goes until it is confirmed
  stale        overdue: upstream could not be asked when it should have been

Without a running daemon there is no traffic to tell of, and what is stored was not measured.`
}

// Run prints what is mirrored, and how it is.
func (c *statusCmd) Run(o output) error {
	return c.operate(o, func(ctx context.Context, op operator) error {
		st, err := op.Status(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(o, st)
		}
		var b strings.Builder
		text.Status(&b, st)
		_, err = io.WriteString(o.out, b.String())
		return err
	})
}
