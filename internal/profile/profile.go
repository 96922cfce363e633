// Package profile is what is written: vendor profiles, the operator's overrides of them and the operator's
// configuration. It reads them strictly and reports every mistake of every file at once, each as
// "file:line: what is wrong; what to write instead". What is made of them is package site's.
//
// How YAML is decoded is in profile/strict, how globs and tree templates are matched in profile/glob.
package profile

import (
	"encoding/json"
	"reflect"
)

//go:generate go test -run TestSchema . -update

// Schema returns the JSON Schema (draft 2020-12) of a profile's file, be it a whole profile or an override, for editors.
// profiles/schema.json is a copy of it.
func Schema() []byte {
	s := format.Schema(reflect.TypeFor[Profile]())
	s["$comment"] = "Generated from internal/profile/types.go by go generate ./internal/profile; do not edit."
	s["title"] = "InstantMirror profile"
	s["oneOf"] = []any{
		map[string]any{"title": "a whole profile", "required": []string{"name", "path", "upstreams"}, "properties": map[string]any{"profile": false}},
		map[string]any{"title": "an override of a packaged profile", "required": []string{"profile"}, "properties": map[string]any{"name": false}},
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err) // maps, lists and texts: cannot be
	}
	return append(b, '\n')
}
