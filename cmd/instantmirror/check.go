package main

import (
	"fmt"

	"github.com/instantmirror/instantmirror/internal/daemon"
)

type checkCmd struct {
	configFlags
	Files []string `arg:"" optional:"" name:"file" help:"Profile files to check in place of the installed ones."`
}

// Run reports every mistake at once, or what would be served.
func (c *checkCmd) Run(o output) error {
	opts := c.options()
	opts.Profiles = append(opts.Profiles, c.Files...)
	setup, err := daemon.Configure(opts, newPool())
	if err != nil {
		return &configError{err}
	}
	for _, p := range setup.Table.Profiles() {
		fmt.Fprintf(o.out, "%-12s %s\n", p.Name, p.Path)
	}
	return nil
}
