// Package strict decodes YAML files that people write into Go structs, and reports every mistake with its file, its line
// and what to write instead. The structs' tags say all about a key:
//
//	yaml:"key"      its name; "-" for the field Where, which every struct embeds
//	doc:"…"         what it means, for the JSON Schema
//	is:"form"       for a string, and the strings in a list or map: a name in Format.Forms, or choices: "text|json"
//	min, max        for an int: its range; for a list: how many entries it may have
//	req:"true"      it must be there
//	def:"…"         what it is if it is not there, in YAML
//	single:"true"   a list of which one entry alone may be written without hyphen or brackets
//	merge:"front"   a list that goes before the one that stood there, when a second file is decoded into a struct
//	short:"key"     on Where: a text in place of the mapping means that key
//
// A struct that has a method Check(key string) Errors is asked by it what is wrong with it as a whole.
//
// Of YAML only a small kind is read: one document, no anchors, aliases or tags, at most MaxFile bytes, so that no input
// costs more than its length deserves.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// MaxFile is the size in bytes beyond which a file is refused: a hundred times that of the largest profile.
const MaxFile = 1 << 20

// Format is what the types of one file format have beyond their tags.
type Format struct {
	Scalars map[reflect.Type]Scalar // types that are read from one text
	Forms   map[string]Form         // values of the tag "is"
}

// Scalar reads one type from a text. An error comes from Bad.
type Scalar struct {
	Parse  func(string) (any, error)
	Schema map[string]any // what the JSON Schema says of it
}

// Form is what a string looks like: a noun; a pattern, anchored at both ends, for the JSON Schema too; what to write if
// it does not match; and what a pattern cannot say: an error of Check comes from Bad or is ErrForm, as if the pattern
// did not match.
type Form struct {
	Noun, Pattern, Write string
	Check                func(string) error
}

// ErrForm is returned by a Form's Check.
var ErrForm = errors.New("does not have its form")

// Document is one file that has been parsed, and the mistakes found in it.
type Document struct {
	File   string
	Errs   Errors
	format *Format
	root   *yaml.Node // nil if the file is not even YAML
}

var (
	lineRE   = regexp.MustCompile(`^yaml: (?:line ([0-9]+): )?`)
	secretRE = regexp.MustCompile(`://[^/]*@`)
	// bareRE finds a value that YAML takes for an alias ("*.iso") or a mapping ("{a,b}/x"): globs are like that.
	bareRE = regexp.MustCompile(`(?m)^[^#"'\n]*?[:,[-] *(\*[^\s,"'}\]]*|\{[^{}:"'\n]*\}[^\s,}\]"'#][^\s,}"']*)`)
)

// Parse reads the YAML of a file. That it says nothing is a mistake if empty tells what to write then.
func (f *Format) Parse(file string, data []byte, empty string) *Document {
	d := &Document{File: file, format: f}
	if len(data) > MaxFile {
		d.Fail(0, "", fmt.Sprintf("is larger than %d bytes", MaxFile), "write a file of a few kilobytes, or give it a name that does not end in .yaml")
		return d
	}
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && (len(doc.Content) == 0 || doc.Content[0].Tag == "!!null") {
		if empty == "" {
			d.root = &yaml.Node{Kind: yaml.MappingNode}
		} else {
			d.Fail(0, "", "is empty", empty)
		}
		return d
	}
	if err == nil {
		if err = dec.Decode(&more); err == nil {
			d.Fail(more.Line, "", "a second document begins here", "write one document to a file, without ---")
			return d
		}
	}
	if !errors.Is(err, io.EOF) {
		// YAML says where the block begins in which it lost its way, or nothing; what people do wrong most is known.
		line, _ := strconv.Atoi(lineRE.FindStringSubmatch(err.Error() + " ")[1])
		what, write := lineRE.ReplaceAllString(err.Error(), ""), "indent by spaces, and write values that begin with * or hold { } : # in quotes"
		if m := bareRE.FindSubmatchIndex(data); m != nil {
			line = 1 + bytes.Count(data[:m[2]], []byte("\n"))
			bare := Quote(string(data[m[2]:m[3]]))
			what, write = bare+" has no quotes around it", "write "+bare+", with the quotes"
		}
		d.Fail(max(line, 1), "", "is not YAML: "+what, write)
		return d
	}
	if d.root = doc.Content[0]; d.root.Kind != yaml.MappingNode {
		d.Fail(d.root.Line, "", "holds no keys", "write key: value lines")
		d.root = nil
	}
	return d
}

// OK reports whether the document is YAML at all, so that it can be decoded.
func (d *Document) OK() bool { return d.root != nil }

// maxErrs is how many mistakes of one file are reported: of a file that is no profile every line is one.
const maxErrs = 100

// Fail adds a mistake; key, if not empty, says what the line is about.
func (d *Document) Fail(line int, key, what, write string) {
	if key != "" {
		what = key + ": " + what
	}
	switch n := len(d.Errs); {
	case n < maxErrs:
		d.Errs.Add(Pos{d.File, line}, what, write)
	case n == maxErrs:
		d.Errs.Add(Pos{d.File, line}, fmt.Sprintf("here is the mistake number %d, and the rest was not counted", n+1), "correct those above first")
	}
}

// Text returns the text of a key of the document and its line, which is 0 if there is no such key.
func (d *Document) Text(key string) (text string, line int) {
	for i := 0; d.root != nil && i+1 < len(d.root.Content); i += 2 {
		if k, v := d.root.Content[i], d.root.Content[i+1]; k.Value == key {
			return v.Value, k.Line
		}
	}
	return "", 0
}

// Decode decodes the document into the struct that into points to. A struct into which another document was decoded
// before keeps what this one does not say. What is wrong is added to Errs, and is zero in the struct; a text that is wrong
// is not in its list.
func (d *Document) Decode(into any) { d.mapping(d.root, reflect.ValueOf(into).Elem(), "") }

// value decodes n into v; key says what it is in messages, tag what the field's tags say.
func (d *Document) value(n *yaml.Node, v reflect.Value, key string, tag reflect.StructTag) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.Fail(n.Line, key, "anchors and aliases (& and *) are not read", "write the value out, in quotes if it begins with & or *")
		return
	case n.Style&yaml.TaggedStyle != 0:
		d.Fail(n.Line, key, "tags (!) are not read", "write the value alone, in quotes if it begins with !")
		return
	case n.Tag == "!!null":
		d.Fail(n.Line, key, "has no value", "write one, or remove the key")
		return
	}
	t := v.Type()
	if _, ok := d.format.Scalars[t]; !ok {
		switch t.Kind() {
		case reflect.Pointer:
			v.Set(reflect.New(t.Elem()))
			d.value(n, v.Elem(), key, tag)
			return
		case reflect.Slice:
			d.list(n, v, key, tag)
			return
		case reflect.Map:
			v.Set(reflect.MakeMap(t))
			d.pairs(n, key, func(k, val *yaml.Node) {
				e := reflect.New(t.Elem()).Elem()
				d.value(val, e, key+"."+strings.Trim(Quote(k.Value), `"`), tag)
				v.SetMapIndex(reflect.ValueOf(k.Value), e)
			})
			return
		case reflect.Struct:
			f, _ := t.FieldByName("Where")
			if short := f.Tag.Get("short"); short != "" && n.Kind == yaml.ScalarNode {
				n = &yaml.Node{Kind: yaml.MappingNode, Line: n.Line,
					Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: short, Line: n.Line}, n}}
			}
			d.mapping(n, v, key)
			return
		}
	}
	if n.Kind != yaml.ScalarNode {
		d.Fail(n.Line, key, "is not one value", "write one value after the colon, in quotes if it begins with { or [")
		return
	}
	if err := d.scalar(n, v, tag); err != nil {
		f := &fault{err.Error(), "correct it"}
		errors.As(err, &f)
		d.Fail(n.Line, key, Quote(n.Value)+" "+f.what, f.write)
	}
}

func (d *Document) list(n *yaml.Node, v reflect.Value, key string, tag reflect.StructTag) {
	if n.Kind == yaml.ScalarNode && tag.Get("single") != "" {
		n = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{n}}
	}
	if n.Kind != yaml.SequenceNode {
		d.Fail(n.Line, key, "is not a list", "write each entry on a line of its own, after a hyphen")
		return
	}
	if least, _ := strconv.Atoi(tag.Get("min")); len(n.Content) < least {
		d.Fail(n.Line, key, "has no entries", "write at least one, after a hyphen")
	}
	if most, _ := strconv.Atoi(tag.Get("max")); most > 0 && len(n.Content) > most {
		d.Fail(n.Line, key, fmt.Sprintf("has more than %d entries", most), "put several of them into one, by globs or templates")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, len(n.Content)))
	for _, c := range n.Content {
		e := reflect.New(v.Type().Elem()).Elem()
		if d.value(c, e, key, tag); !e.IsZero() { // no right entry is
			v.Set(reflect.Append(v, e))
		}
	}
}

// Quote shows a value in a message: at most 80 bytes of it, and no password of a URL.
func Quote(s string) string {
	s = secretRE.ReplaceAllString(s, "://…@")
	if len(s) > 80 {
		s = s[:77] + "…"
	}
	return strconv.Quote(s)
}

// scalar decodes one text; an error is a *fault.
func (d *Document) scalar(n *yaml.Node, v reflect.Value, tag reflect.StructTag) error {
	if s, ok := d.format.Scalars[v.Type()]; ok {
		x, err := s.Parse(n.Value)
		if err == nil {
			v.Set(reflect.ValueOf(x))
		}
		return err
	}
	switch v.Kind() {
	case reflect.Bool:
		if n.Tag != "!!bool" || n.Value != "true" && n.Value != "false" {
			return Bad("is neither true nor false", "write true or false")
		}
		v.SetBool(n.Value == "true")
	case reflect.Int:
		lo, _ := strconv.Atoi(tag.Get("min"))
		hi, _ := strconv.Atoi(tag.Get("max"))
		i, err := strconv.Atoi(n.Value)
		if err != nil || n.Tag != "!!int" || i < lo || i > hi {
			return Bad("is out of range", fmt.Sprintf("write a whole number from %d to %d", lo, hi))
		}
		v.SetInt(int64(i))
	default:
		if n.Tag != "!!str" {
			return Bad("is a number or the like to YAML, not text", "write it in quotes: "+strconv.Quote(n.Value))
		}
		if err := d.format.check(tag.Get("is"), n.Value); err != nil {
			return err
		}
		v.SetString(n.Value)
	}
	return nil
}

// check checks s against the form or the choices that the tag "is" names.
func (f *Format) check(is, s string) error {
	form, ok := f.Forms[is]
	if !ok {
		if strings.Contains("|"+is+"|", "|"+s+"|") && !strings.Contains(s, "|") && s != "" {
			return nil
		}
		return Bad("is none of the choices", "write "+strings.ReplaceAll(is, "|", " or "))
	}
	err := ErrForm
	if ok, _ := regexp.MatchString(form.Pattern, s); ok {
		err = nil
		if form.Check != nil {
			err = form.Check(s)
		}
	}
	if errors.Is(err, ErrForm) {
		return Bad("is not "+form.Noun, form.Write)
	}
	return err
}

// pairs calls f for each key of the mapping n, but for those that are no text or stand twice.
func (d *Document) pairs(n *yaml.Node, key string, f func(k, val *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.Fail(n.Line, key, "is not a mapping", "write key: value lines, indented below it")
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch first := lines[k.Value]; {
		case k.Kind != yaml.ScalarNode || k.Tag != "!!str" || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0:
			d.Fail(k.Line, key, "has a key that is not plain text", "write a word and a colon")
		case first != 0:
			d.Fail(k.Line, key, fmt.Sprintf("key %s stands twice, first in line %d", Quote(k.Value), first), "keep one of them")
		default:
			lines[k.Value] = k.Line
			f(k, n.Content[i+1])
		}
	}
}

// mapping decodes n into the struct v.
func (d *Document) mapping(n *yaml.Node, v reflect.Value, key string) {
	w := v.FieldByName("Where").Addr().Interface().(*Where)
	if w.keys == nil {
		*w = Where{Pos{d.File, n.Line}, map[string]Pos{}}
		d.format.defaults(v)
	}
	d.pairs(n, key, func(k, val *yaml.Node) {
		f, ok := field(v.Type(), k.Value)
		if !ok {
			d.Fail(k.Line, key, "unknown key "+Quote(k.Value), "write "+Nearest(k.Value, keys(v.Type())))
			return
		}
		w.keys[k.Value] = Pos{d.File, k.Line}
		if f.Type.Kind() == reflect.Map {
			for i := 0; i+1 < len(val.Content); i += 2 {
				w.keys[k.Value+"."+val.Content[i].Value] = Pos{d.File, val.Content[i].Line}
			}
		}
		fv, old := v.FieldByIndex(f.Index), reflect.New(f.Type).Elem()
		old.Set(fv)
		fv.SetZero()
		d.value(val, fv, strings.TrimPrefix(key+"."+k.Value, "."), f.Tag)
		if f.Tag.Get("merge") == "front" {
			fv.Set(reflect.AppendSlice(fv, old))
		}
	})
	for _, k := range keys(v.Type()) {
		if f, _ := field(v.Type(), k); f.Tag.Get("req") != "" && !w.Has(k) && n.Kind == yaml.MappingNode {
			d.Fail(n.Line, key, "has no "+k, "write "+k+": as well")
		}
	}
	if c, ok := v.Addr().Interface().(checker); ok {
		d.Errs = append(d.Errs, c.Check(key)...)
	}
}

// checker is a struct that can tell what is wrong with it as a whole. What was wrong with its parts is reported already,
// and the parts are not set.
type checker interface{ Check(key string) Errors }

// defaults sets what the tags of the struct v and of those in it give as defaults.
func (f *Format) defaults(v reflect.Value) {
	d := Document{format: f}
	for sf, fv := range v.Fields() {
		if def, ok := sf.Tag.Lookup("def"); ok {
			var doc yaml.Node
			if err := yaml.Unmarshal([]byte(def), &doc); err != nil {
				panic(err) // a tag in the source that is not YAML: no test gets past it
			}
			d.value(doc.Content[0], fv, sf.Name, sf.Tag)
		} else if _, scalar := f.Scalars[sf.Type]; sf.Type.Kind() == reflect.Struct && sf.Tag.Get("yaml") != "-" && !scalar {
			f.defaults(fv)
		}
	}
}

// field returns the field of the struct type t that key fills.
func field(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if k := f.Tag.Get("yaml"); k == key && k != "-" {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// keys returns the keys of the struct type t.
func keys(t reflect.Type) []string {
	var all []string
	for f := range t.Fields() {
		if k := f.Tag.Get("yaml"); k != "-" {
			all = append(all, k)
		}
	}
	return all
}

// Nearest returns the one of names that wrong is probably meant to be, or says that it is one of all of them.
func Nearest(wrong string, names []string) string {
	best, least := "", 1+max(1, len(wrong)/3)
	for _, s := range names {
		if n := distance(wrong, s); n < least {
			best, least = s, n
		}
	}
	if best != "" {
		return best
	}
	return "one of " + strings.Join(names, ", ")
}

// distance returns how many bytes must be put in, taken out or changed to make b of a (Levenshtein); for a long a, which
// is no slip of b, a great number.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
