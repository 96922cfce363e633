package strict

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"
)

// Schema returns the JSON Schema (draft 2020-12) of a document that is decoded into the struct type t, as far as tags
// and Format say it; the caller may add to it. Structs within it are in its $defs.
func (f *Format) Schema(t reflect.Type) map[string]any {
	defs := map[string]any{}
	s := f.structSchema(t, defs)
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$defs"] = defs
	return s
}

// schemaOf describes the type t of a field with tag. Structs go to defs, and a reference is returned.
func (f *Format) schemaOf(t reflect.Type, tag reflect.StructTag, defs map[string]any) map[string]any {
	s := map[string]any{}
	if known, ok := f.Scalars[t]; ok {
		maps.Copy(s, known.Schema)
		return s
	}
	switch t.Kind() {
	case reflect.Pointer:
		return f.schemaOf(t.Elem(), tag, defs)
	case reflect.Bool:
		s["type"] = "boolean"
	case reflect.Int:
		s["type"], s["minimum"], s["maximum"] = "integer", json.Number(tag.Get("min")), json.Number(tag.Get("max"))
	case reflect.String:
		s["type"] = "string"
		if form, ok := f.Forms[tag.Get("is")]; ok {
			s["pattern"] = form.Pattern
		} else {
			s["enum"] = strings.Split(tag.Get("is"), "|")
		}
	case reflect.Map:
		s["type"], s["additionalProperties"] = "object", f.schemaOf(t.Elem(), tag, defs)
	case reflect.Slice:
		s["type"], s["items"] = "array", f.schemaOf(t.Elem(), tag, defs)
		for tagged, key := range map[string]string{"min": "minItems", "max": "maxItems"} {
			if n := tag.Get(tagged); n != "" {
				s[key] = json.Number(n)
			}
		}
		if tag.Get("single") != "" {
			return map[string]any{"anyOf": []any{s["items"], s}}
		}
	case reflect.Struct:
		name := strings.ToLower(t.Name())
		if _, ok := defs[name]; !ok {
			defs[name] = f.structSchema(t, defs)
		}
		s["$ref"] = "#/$defs/" + name
		if w, _ := t.FieldByName("Where"); w.Tag.Get("short") != "" {
			sf, _ := field(t, w.Tag.Get("short"))
			return map[string]any{"anyOf": []any{f.schemaOf(sf.Type, sf.Tag, defs), s}}
		}
	}
	return s
}

func (f *Format) structSchema(t reflect.Type, defs map[string]any) map[string]any {
	properties, required := map[string]any{}, []string{}
	for sf := range t.Fields() {
		key := sf.Tag.Get("yaml")
		if key == "-" {
			continue
		}
		p := f.schemaOf(sf.Type, sf.Tag, defs)
		p["description"] = sf.Tag.Get("doc")
		if def, ok := sf.Tag.Lookup("def"); ok {
			var v any
			if err := yaml.Unmarshal([]byte(def), &v); err != nil {
				panic(err) // a default in the source that is not YAML
			}
			p["default"] = v
		}
		properties[key] = p
		if sf.Tag.Get("req") != "" {
			required = append(required, key)
		}
	}
	s := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}
