// Package daemon builds the mirror from its configuration, runs it, reloads it, and stops it in order.
package daemon

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"path/filepath"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
	"github.com/instantmirror/instantmirror/profiles"
)

// DefaultConfig is the operator's configuration file where none is named. It need not exist.
const DefaultConfig = "/etc/instantmirror/instantmirror.yaml"

// Options are the command line's wishes. What is zero is left to the configuration file and the defaults.
type Options struct {
	Config   string   // configuration file
	Listen   []string // addresses
	Root     string   // of the mirror
	State    string   // directory of the index
	Profiles []string // names or files: these, and no others
	Version  string   // of the program
}

// Setup is a configuration that was found right: all that is needed to serve, before anything is opened or made.
type Setup struct {
	Config *profile.Config
	Table  *site.Table
	cert   *tls.Certificate // nil: plain HTTP
}

// Configure reads and checks the whole configuration. All mistakes are reported at once, as profile.Errors where a
// file is to be mended. Origins come from pool, so that their health outlives a reload.
func Configure(o Options, pool *upstream.Pool) (*Setup, error) {
	cfg, err := loadConfig(o)
	if cfg == nil {
		return nil, err
	}
	ps, err2 := profile.Load(cfg.Profiles, profiles.FS, o.Profiles)
	table, err3 := site.Build(ps, pool)
	if err := profile.Join(err, err2, err3); err != nil {
		return nil, err
	}
	if len(table.Profiles()) == 0 {
		return nil, fmt.Errorf("no profile is enabled: write `enabled: true` into a file of %s, or name one with --profile (there are %s)",
			cfg.Profiles[len(cfg.Profiles)-1], names(ps))
	}
	s := &Setup{Config: cfg, Table: table}
	if cfg.TLS != nil {
		cert, err := tls.LoadX509KeyPair(cfg.TLS.Cert, cfg.TLS.Key)
		if err != nil {
			return nil, fmt.Errorf("tls: loading %s and %s: %w", cfg.TLS.Cert, cfg.TLS.Key, err)
		}
		s.cert = &cert
	}
	return s, nil
}

// loadConfig reads the configuration file and puts the options over it. With --profile alone the machine's own
// configuration is left aside: then the command line says all. A Config that is returned with an error has what was
// right.
func loadConfig(o Options) (*profile.Config, error) {
	alone := len(o.Profiles) > 0 && o.Config == ""
	file := cmp.Or(o.Config, DefaultConfig)
	if alone {
		file = ""
	}
	cfg, err := profile.LoadConfig(file, o.Config == "")
	if len(o.Listen) > 0 {
		cfg.Listen = o.Listen
	}
	cfg.Root = cmp.Or(o.Root, cfg.Root)
	if alone {
		cfg.State = filepath.Join(cfg.Root, store.Private, "state")
	}
	cfg.State = cmp.Or(o.State, cfg.State)
	for _, dir := range []*string{&cfg.Root, &cfg.State} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = abs
	}
	if err == nil {
		err = cfg.Check() // what the flags made of it
	}
	return cfg, err
}

func names(ps []*profile.Profile) string {
	var list string
	for i, p := range ps {
		if i > 0 {
			list += ", "
		}
		list += p.Name
	}
	return list
}
