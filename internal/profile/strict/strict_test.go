package strict

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

type entry struct {
	Where `yaml:"-" short:"url"`
	URL   string `yaml:"url" is:"word" req:"true"`
	Kind  string `yaml:"kind" is:"a|b" def:"a"`
}

// Check refuses what its parts allow.
func (e *entry) Check(key string) (errs Errors) {
	if e.URL == "bad" && e.Kind == "b" {
		errs.Add(e.At("kind"), key+": a bad b", "write a good one")
	}
	return errs
}

type file struct {
	Where   `yaml:"-"`
	Entries []*entry          `yaml:"entries" merge:"front" min:"1" max:"3"`
	Words   []string          `yaml:"words" is:"word" single:"true"`
	Map     map[string]string `yaml:"map" is:"word"`
	Number  int               `yaml:"number" min:"2" max:"9" def:"5"`
	Inner   struct {
		Where `yaml:"-"`
		On    bool `yaml:"on" def:"true"`
	} `yaml:"inner"`
}

var format = Format{Forms: map[string]Form{"word": {Noun: "a word", Pattern: `^[a-z]+$`, Write: "write letters", Check: func(s string) error {
	switch s {
	case "form":
		return ErrForm
	case "own":
		return Bad("is owned", "write another")
	}
	return nil
}}}}

func decode(into *file, name, text string) *Document {
	d := format.Parse(name, []byte(text), "")
	if d.OK() {
		d.Decode(into)
	}
	return d
}

func TestDecode(t *testing.T) {
	var f file
	if d := decode(&f, "x", ""); len(d.Errs) > 0 || f.Number != 5 || !f.Inner.On || f.Entries != nil {
		t.Errorf("defaults: %v, %+v", d.Errs, f)
	}
	if d := decode(&f, "a", "entries: [one, {url: two, kind: b}]\nmap: {x: y}\nwords: w\n"); len(d.Errs) > 0 {
		t.Fatal(d.Errs)
	}
	// A second document puts in front, replaces, or leaves alone.
	if d := decode(&f, "b", "\nentries:\n- three\nmap:\n  z: u\ninner: {}\nnumber: 2\n"); len(d.Errs) > 0 {
		t.Fatal(d.Errs)
	}
	var got []string
	for _, e := range f.Entries {
		got = append(got, fmt.Sprint(e.URL, e.Kind, e.Pos))
	}
	if want := []string{"threeab:3", "oneaa:1", "twoba:1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("entries %v, want %v", got, want)
	}
	if !reflect.DeepEqual(f.Map, map[string]string{"z": "u"}) || f.Number != 2 || !f.Inner.On || !reflect.DeepEqual(f.Words, []string{"w"}) {
		t.Errorf("got %+v", f)
	}
	for key, want := range map[string]string{"map.z": "b:5", "words": "a:3", "number": "b:7", "none": "x:0"} {
		if got := f.At(key); got.String() != want && key != "none" {
			t.Errorf("%s stands at %v, want %s", key, got, want)
		}
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"entries: []":                         `1: entries: has no entries; write at least one, after a hyphen`,
		"entries: [a, b, c, d]":               `1: entries: has more than 3 entries; put several of them into one, by globs or templates`,
		"entries: [UP]":                       `1: entries.url: "UP" is not a word; write letters`,
		"entries: [form]":                     `1: entries.url: "form" is not a word; write letters`,
		"entries: [own]":                      `1: entries.url: "own" is owned; write another`,
		"entries:\n- url: bad\n  kind: b":     `3: entries: a bad b; write a good one`,
		"entries: [{kind: b}]":                `1: entries: has no url; write url: as well`,
		"entries: [{url: a, kind: a|b}]":      `1: entries.kind: "a|b" is none of the choices; write a or b`,
		"entries: [{url: a, kind: \"\"}]":     `1: entries.kind: "" is none of the choices; write a or b`,
		"entries: [[a]]":                      `1: entries: is not a mapping; write key: value lines, indented below it`,
		"entries: [null]":                     `1: entries: has no value; write one, or remove the key`,
		"number: 1":                           `1: number: "1" is out of range; write a whole number from 2 to 9`,
		"number: '5'":                         `1: number: "5" is out of range; write a whole number from 2 to 9`,
		"map: {a: {b: c}}":                    `1: map.a: is not one value; write one value after the colon, in quotes if it begins with { or [`,
		"map: {\"a\\nb\": C}":                 `1: map.a\nb: "C" is not a word; write letters`,
		"inner: {on: On}":                     `1: inner.on: "On" is neither true nor false; write true or false`,
		"words: https://me:secret@x/":         `1: words: "https://…@x/" is not a word; write letters`,
		"words: " + strings.Repeat("ab1", 99): `1: words: "` + strings.Repeat("ab1", 26)[:77] + `…" is not a word; write letters`,
		"nmber: 3":                            `1: unknown key "nmber"; write number`,
		"Where: 3":                            `1: unknown key "Where"; write one of entries, words, map, number, inner`,
	} {
		d := decode(&file{}, "f", text)
		if err := d.Errs.Err(); err == nil || err.Error() != "f:"+want {
			t.Errorf("%q:\n%v\nwant\nf:%s", text, err, want)
		}
	}
	d := decode(&file{}, "f", strings.Repeat("x: y\n", 1000))
	if n := len(d.Errs); n != maxErrs+1 || !strings.Contains(d.Errs[maxErrs].Error(), "correct those above first") {
		t.Errorf("%d mistakes, the last one %v", n, d.Errs[n-1])
	}
}

func TestNearest(t *testing.T) {
	names := []string{"match", "refresh", "upstreams"}
	for wrong, want := range map[string]string{"Match": "match", "refesh": "refresh", "upstream": "upstreams", "grace": "one of match, refresh, upstreams",
		"": "one of match, refresh, upstreams", strings.Repeat("m", 1000): "one of match, refresh, upstreams"} {
		if got := Nearest(wrong, names); got != want {
			t.Errorf("Nearest(%.10q) = %s, want %s", wrong, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	var none Errors
	if err := none.Err(); err != nil {
		t.Errorf("no mistakes: %v", err)
	}
	var es Errors
	if err := error(Errors{{Pos{"f", 0}, "x", "y"}}); !errors.As(err, &es) || err.Error() != "f: x; y" {
		t.Errorf("got %v", err)
	}
}
