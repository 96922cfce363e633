package profile

import (
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// The keys that govern how a tree is watched: what they are unwritten, and written.
func TestWatching(t *testing.T) {
	const day = Span(24 * time.Hour)
	dir := write(t, map[string]string{"x.yaml": `name: x
path: /x
upstreams: [https://a.example/x]
keys: [/etc/pki/a, /etc/pki/b]
limits: {size: 400GiB}
layout:
  - tree: a/{release}/{arch}
    metalink: https://m.example:8443/list/{arch}/metalink?repo=a-{release}&arch={arch}&protocol=https,http
  - {tree: b, metalink: "http://m.example?repo=b%20c"}
  - tree: c
expiry:
  - {match: "a/**", refresh: 20m, grace: 2d, moving: true, idle: 1w, veto: 100%, back: 1s}
  - {match: "b/**", refresh: never}
  - {match: "**", refresh: 1h, veto: 1%}
`, "y.yaml": "name: y\npath: /y\nupstreams: [https://a.example/y]\n"})
	ps := load(t, []string{dir})
	p := ps["x"]
	if !reflect.DeepEqual(p.Keys, []string{"/etc/pki/a", "/etc/pki/b"}) || p.Poll != "used" || p.Limits.Size != 400<<30 || p.Limits.Connections != 0 {
		t.Errorf("keys %v, poll %q, limits %+v", p.Keys, p.Poll, p.Limits)
	}
	for i, want := range []string{"https://m.example:8443/list/{arch}/metalink?repo=a-{release}&arch={arch}&protocol=https,http", "http://m.example?repo=b%20c", ""} {
		if got := p.Layout[i].Metalink; got != want {
			t.Errorf("metalink %q, want %q", got, want)
		}
	}
	for i, want := range []string{"2d true 1w 100% 1s", "1d false 2w 50% 1d", "1d false 2w 1% 1d"} {
		e := p.Expiry[i]
		if got := fmt.Sprint(e.Grace, e.Moving, e.Idle, e.Veto, e.Back); got != want {
			t.Errorf("%s: %s, want %s", e.Match, got, want)
		}
	}
	if y := ps["y"]; y.Keys != nil || y.Poll != "used" || y.Limits.Size != 0 {
		t.Errorf("unwritten: keys %v, poll %q, size %d", y.Keys, y.Poll, y.Limits.Size)
	}
	if e := p.Expiry[2]; e.Grace != day || e.Idle != 14*day || e.Back != day {
		t.Errorf("defaults %+v", e)
	}
}

// An operator's override replaces keys, poll and limits, and puts its layout and expiry in front.
func TestWatchingOverride(t *testing.T) {
	share := write(t, map[string]string{"x.yaml": `name: x
path: /x
upstreams: [https://a.example/x]
keys: [/etc/pki/a]
limits: {size: 1GiB, connections: 4}
expiry: [{match: "**", refresh: 1h, grace: 3d}]
layout: [{tree: "a/{arch}", metalink: "https://m.example/m?arch={arch}"}]
`})
	etc := write(t, map[string]string{"x.yaml": `profile: x
keys: [/etc/pki/b]
poll: always
limits: {connections: 2}
expiry: [{match: "a/**", refresh: 1h}]
layout: [{tree: "a/{arch}", metalink: "https://own.example/m?arch={arch}"}]
`})
	p := load(t, []string{share, etc})["x"]
	if !reflect.DeepEqual(p.Keys, []string{"/etc/pki/b"}) || p.Poll != "always" || p.Limits.Size != 0 || p.Limits.Connections != 2 {
		t.Errorf("keys %v, poll %q, limits %+v; want the override's", p.Keys, p.Poll, p.Limits)
	}
	if len(p.Expiry) != 2 || p.Expiry[0].Grace != Span(24*time.Hour) || p.Expiry[1].Grace != Span(72*time.Hour) {
		t.Errorf("expiry %v, want the override's in front, with grace by default", p.Expiry)
	}
	if len(p.Layout) != 2 || p.Layout[0].Metalink != "https://own.example/m?arch={arch}" {
		t.Errorf("layout %v, want the override's in front", p.Layout)
	}
	if at := p.At("keys"); at.String() != filepath.Join(etc, "x.yaml")+":2" {
		t.Errorf("keys stand at %s", at)
	}
	none := write(t, map[string]string{"x.yaml": "profile: x\nkeys: []\n"})
	if p := load(t, []string{share, none})["x"]; len(p.Keys) != 0 || p.Poll != "used" || p.Limits.Size != 1<<30 {
		t.Errorf("keys %v, poll %q, limits %+v; want no keys and the packaged rest", p.Keys, p.Poll, p.Limits)
	}
}

func TestSpan(t *testing.T) {
	for s, want := range map[string]time.Duration{"1s": time.Second, "1w2d3h4m5s": (9*24+3)*time.Hour + 4*time.Minute + 5*time.Second, "5200w": 5200 * 7 * 24 * time.Hour} {
		d, err := ParseSpan(s)
		if err != nil || time.Duration(d) != want || d.String() != s {
			t.Errorf("ParseSpan(%q) = %v, %v", s, d, err)
		}
	}
	for s, want := range map[string]string{
		"never": "is for refresh only; write a number and its unit, such as 1s for as good as not at all, or 520w for ten years",
		"":      "is not a duration; write a number and its unit (s, m, h, d, w), such as 20m, 1h30m or 2d",
		"1":     "has no unit; write 1s, 1m, 1h, 1d or 1w",
		"0s":    "is shorter than 1s; write 1s or more",
		"9999w": "is longer than a century; write 5200w or less",
	} {
		if d, err := ParseSpan(s); err == nil || err.Error() != want {
			t.Errorf("ParseSpan(%q) = %v, %v; want %s", s, d, err, want)
		}
	}
}

func TestPercent(t *testing.T) {
	for s, want := range map[string]Percent{"1%": 1, "9%": 9, "50%": 50, "99%": 99, "100%": 100} {
		p, err := ParsePercent(s)
		if err != nil || p != want || p.String() != s {
			t.Errorf("ParsePercent(%q) = %v, %v", s, p, err)
		}
	}
	const form, limits = "is not a percentage; write a whole number from 1 to 100 and %, such as 50%", "is out of range; write a percentage from 1% to 100%"
	for s, want := range map[string]string{
		"50": "has no unit; write 50%", "0": form, "500": form, "0%": limits, "101%": limits, "-1%": limits, "": form, "%": form, "0.5": form,
		"50.5%": form, "050%": form, "+5%": form, "5 %": form, "never": form, "99999999999999999999%": form, "50%%": form,
	} {
		if p, err := ParsePercent(s); err == nil || err.Error() != want {
			t.Errorf("ParsePercent(%q) = %v, %v; want %s", s, p, err, want)
		}
	}
}
