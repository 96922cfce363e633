package profile

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/instantmirror/instantmirror/internal/profile/strict"
)

var update = flag.Bool("update", false, "rewrite profiles/schema.json and the messages in testdata/hostile/*.want")

// packaged is the vendor profile of these tests.
var packaged = fstest.MapFS{"fedora/fedora.yaml": {Data: []byte(`name: fedora
title: Fedora Linux
path: /pub/fedora/linux
upstreams: [https://dl.example/pub/fedora/linux]
layout:
  - tree: releases/{release}/Everything/{arch}/os
    repo: {id: fedora, name: "Fedora {release} - {arch}"}
expiry:
  - {match: "releases/**", refresh: never}
content:
  - {match: "**/debug/**", action: pass}
limits: {connections: 4}
`)}, "fedora/paths.txt": {Data: []byte("not YAML: [")}}

// TestHostile loads each file (or directory of files) of testdata/hostile and compares every message with the file
// NAME.want beside it.
func TestHostile(t *testing.T) {
	wants, err := filepath.Glob("testdata/hostile/*.want")
	if err != nil || !*update && len(wants) < 20 {
		t.Fatalf("%d cases, %v; want at least 20", len(wants), err)
	}
	cases, _ := filepath.Glob("testdata/hostile/*")
	for _, c := range cases {
		name := strings.TrimSuffix(filepath.Base(c), ".yaml")
		if filepath.Ext(c) == ".want" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := c
			if filepath.Ext(c) == ".yaml" {
				dir = t.TempDir()
				data, err := os.ReadFile(c)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, filepath.Base(c)), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Load([]string{dir}, packaged, nil)
			var es Errors
			if !errors.As(err, &es) || len(es) == 0 {
				t.Fatalf("error %v, want mistakes", err)
			}
			got := strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
			file := "testdata/hostile/" + name + ".want"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("messages:\n%swant:\n%s", got, want)
			}
		})
	}
}

// TestHuge: a file of any size and shape is refused, or read and found wrong, in about the time that its length takes.
func TestHuge(t *testing.T) {
	for name, data := range map[string]string{
		"large": strings.Repeat("#", strict.MaxFile+1),
		"open":  strings.Repeat("[", strict.MaxFile),
		"deep":  strings.Repeat("{a: ", strict.MaxFile/4),
		"keys":  strings.Repeat("a: b\n", strict.MaxFile/5),
		"list":  strings.Repeat("- a\n", strict.MaxFile/4),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		var es Errors
		if _, err := Load([]string{dir}, nil, nil); !errors.As(err, &es) || len(es) > 200 {
			t.Errorf("%s: %d mistakes, want some", name, len(es))
		}
	}
}

// FuzzDecode: whatever stands in a file, the answer is a profile that is right or mistakes that say where, what and what
// to write; and what the messages show is one line.
func FuzzDecode(f *testing.F) {
	f.Add(packaged["fedora/fedora.yaml"].Data)
	files, _ := filepath.Glob("testdata/hostile/*.yaml")
	shipped, _ := filepath.Glob("../../profiles/*/*.yaml")
	for _, name := range append(files, shipped...) {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, err := Load(nil, fstest.MapFS{"f/f.yaml": {Data: data}, "fedora/fedora.yaml": packaged["fedora/fedora.yaml"]}, nil)
		var es Errors
		if err != nil && !errors.As(err, &es) {
			t.Fatalf("error of type %T", err)
		}
		for _, e := range es {
			if e.File == "" || e.What == "" || e.Write == "" || strings.ContainsAny(e.Error(), "\n\r\x00") {
				t.Errorf("mistake %q", e)
			}
		}
		if err == nil && len(ps) == 0 {
			t.Error("neither a profile nor a mistake")
		}
		for _, p := range ps {
			if errs := p.check(); len(errs) > 0 {
				t.Errorf("returned, but wrong: %v", errs)
			}
			if p.Name == "" || p.Title == "" || p.Path == "" || len(p.Upstreams) == 0 {
				t.Errorf("returned, but not complete: %+v", p)
			}
		}
	})
}
