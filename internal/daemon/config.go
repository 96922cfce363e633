// Package daemon builds the mirror from its configuration, runs it, reloads it, and stops it in order.
package daemon

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"strings"

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

	inRoot bool // the state is in the root, and the machine's own configuration is left aside
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
	s := &Setup{Config: cfg, Table: table}
	if err := profile.Join(err, err2, err3, s.loadCertificate()); err != nil {
		return nil, err
	}
	if len(table.Profiles()) == 0 && o.inRoot {
		return nil, fmt.Errorf("no daemon runs that would say which profiles the mirror %s has: give the --profile that it was served with", cfg.Root)
	}
	if len(table.Profiles()) == 0 {
		return nil, fmt.Errorf("no profile is enabled: write a file %s/NAME.yaml with the lines `profile: NAME` and `enabled: true`, or give --profile NAME (there are %s)",
			strings.TrimSuffix(cfg.Profiles[len(cfg.Profiles)-1], "/"), names(ps))
	}
	return s, nil
}

// loadCertificate reads the daemon's own certificate, if it is to have one.
func (s *Setup) loadCertificate() error {
	t := s.Config.TLS
	if t == nil || t.Cert == "" || t.Key == "" {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		var errs profile.Errors
		errs.Add(t.At("cert"), fmt.Sprintf("tls: %s and %s can't be used: %v", t.Cert, t.Key, err), "name PEM files of a certificate and its key that the daemon's user may read")
		return errs.Err()
	}
	s.cert = &cert
	return nil
}

// loadConfig reads the configuration file and puts the options over it. With --profile alone the machine's own
// configuration is left aside: then the command line says all. A Config that is returned with an error has what was
// right.
func loadConfig(o Options) (*profile.Config, error) {
	alone := (o.inRoot || len(o.Profiles) > 0) && o.Config == ""
	file := cmp.Or(o.Config, DefaultConfig)
	if alone {
		file = ""
	}
	cfg, err := profile.LoadConfig(file, o.Config == "")
	for _, addr := range o.Listen {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, fmt.Errorf("--listen %s: write it as :8080 or 127.0.0.1:8080", addr)
		}
		cfg.Listen = o.Listen
	}
	cfg.Root = cmp.Or(o.Root, cfg.Root)
	if alone {
		cfg.State = stateIn(cfg.Root)
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

// stateIn is where the state is kept of a mirror that the command line alone says all of.
func stateIn(root string) string { return filepath.Join(root, store.Private, "state") }

// StateInRoot reports whether the state is kept in the root, where a command finds it by --root alone.
func (s *Setup) StateInRoot() bool { return s.Config.State == stateIn(s.Config.Root) }

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
