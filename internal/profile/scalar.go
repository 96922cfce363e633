package profile

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/profile/glob"
	"github.com/instantmirror/instantmirror/internal/profile/strict"
)

// Duration is a span of whole seconds, or Never.
type Duration time.Duration

// Never is the duration "never".
const Never = Duration(math.MaxInt64)

// Span is a span of whole seconds.
type Span time.Duration

const (
	spanPattern     = `^([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$`
	durationPattern = `^(never|([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?)$`
	sizePattern     = `^[0-9]+ ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$`
	percentPattern  = `^(100|[1-9][0-9]?)%$`
)

var (
	spanRE   = regexp.MustCompile(spanPattern)
	spanUnit = []time.Duration{7 * 24 * time.Hour, 24 * time.Hour, time.Hour, time.Minute, time.Second}
	sizeRE   = regexp.MustCompile(sizePattern)
	sizeUnit = map[string]float64{"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
	percentRE = regexp.MustCompile(percentPattern)
)

// ParseDuration reads a duration such as 20m, 1h30m or 2d, from 1s on, or never.
func ParseDuration(s string) (Duration, error) {
	if s == "never" {
		return Never, nil
	}
	d, err := parseSpan(s, ", or never", "never")
	return Duration(d), err
}

// ParseSpan reads a span such as 20m, 1h30m or 2d, from 1s on.
func ParseSpan(s string) (Span, error) {
	if s == "never" {
		return 0, strict.Bad("is for refresh only", "write a number and its unit, such as 1s for as good as not at all, or 520w for ten years")
	}
	return parseSpan(s, "", "5200w or less")
}

// parseSpan reads a span; the messages add or to what else may be written, and long is what to write in place of too much.
func parseSpan(s, or, long string) (Span, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil && n > 0 {
		return 0, strict.Bad("has no unit", fmt.Sprintf("write %ds, %dm, %dh, %dd or %dw", n, n, n, n, n))
	}
	m := spanRE.FindStringSubmatch(s)
	if m == nil || s == "" {
		return 0, strict.Bad("is not a duration", "write a number and its unit (s, m, h, d, w), such as 20m, 1h30m or 2d"+or)
	}
	var total float64 // seconds
	for i, part := range m[1:] {
		if part != "" {
			n, _ := strconv.ParseFloat(part[:len(part)-1], 64)
			total += n * spanUnit[i].Seconds()
		}
	}
	switch {
	case total < 1:
		return 0, strict.Bad("is shorter than 1s", "write 1s or more"+or)
	case total > 100*365*24*3600:
		return 0, strict.Bad("is longer than a century", "write "+long)
	}
	return Span(total) * Span(time.Second), nil
}

// String returns the duration in a form that ParseDuration reads.
func (d Duration) String() string {
	if d == Never {
		return "never"
	}
	return Span(d).String()
}

// String returns the span in a form that ParseSpan reads.
func (d Span) String() string {
	var b strings.Builder
	rest := time.Duration(d)
	for i, u := range spanUnit {
		if n := rest / u; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, "wdhms"[i])
			rest -= n * u
		}
	}
	return b.String()
}

// Size is a number of bytes.
type Size int64

// ParseSize reads a size such as 400GiB, 10MB or 4096.
func ParseSize(s string) (Size, error) {
	m := sizeRE.FindStringSubmatch(s)
	if m == nil {
		return 0, strict.Bad("is not a size", "write a whole number and its unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB), such as 10MB or 400GiB")
	}
	n, _ := strconv.ParseFloat(strings.TrimRight(s, " BkKMGTi"), 64)
	if n *= sizeUnit[m[1]]; n >= 1<<62 {
		return 0, strict.Bad("is more than any disk holds", "write a smaller size")
	}
	return Size(n), nil
}

// Percent is a share in whole hundredths, from 1 to 100.
type Percent int

// ParsePercent reads a share such as 50%.
func ParsePercent(s string) (Percent, error) {
	number, unit := strings.CutSuffix(s, "%")
	n, err := strconv.Atoi(number)
	switch {
	case percentRE.MatchString(s):
		return Percent(n), nil
	case err == nil && n >= 1 && n <= 100 && !unit:
		return 0, strict.Bad("has no unit", fmt.Sprintf("write %d%%", n))
	case err == nil && unit && (n < 1 || n > 100):
		return 0, strict.Bad("is out of range", "write a percentage from 1% to 100%")
	}
	return 0, strict.Bad("is not a percentage", "write a whole number from 1 to 100 and %, such as 50%")
}

// String returns the share in a form that ParsePercent reads.
func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

// parseNetwork reads a network or an address.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, strict.Bad("is neither a network nor an address", "write for example 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7")
	case p != p.Masked():
		return p, strict.Bad("has bits set beyond its length", "write "+p.Masked().String())
	}
	return p, nil
}

// scalars are the types that are read from one text.
var scalars = map[reflect.Type]strict.Scalar{
	reflect.TypeFor[*Glob]():        {Parse: parser(glob.Parse), Schema: map[string]any{"type": "string", "minLength": 1}},
	reflect.TypeFor[*Template]():    {Parse: parser(glob.ParseTemplate), Schema: map[string]any{"type": "string", "minLength": 1}},
	reflect.TypeFor[netip.Prefix](): {Parse: parser(parseNetwork), Schema: map[string]any{"type": "string", "minLength": 1}},
	reflect.TypeFor[Duration](): {Parse: parser(ParseDuration),
		Schema: map[string]any{"type": "string", "pattern": durationPattern, "minLength": 1}},
	reflect.TypeFor[Span](): {Parse: parser(ParseSpan), Schema: map[string]any{"type": "string", "pattern": spanPattern, "minLength": 1}},
	reflect.TypeFor[Size](): {Parse: parser(ParseSize),
		Schema: map[string]any{"type": []string{"string", "integer"}, "pattern": sizePattern, "minimum": 0}},
	reflect.TypeFor[Percent](): {Parse: parser(ParsePercent), Schema: map[string]any{"type": "string", "pattern": percentPattern}},
}

// parser makes of a function that reads a T a Scalar's Parse.
func parser[T any](parse func(string) (T, error)) func(string) (any, error) {
	return func(s string) (any, error) {
		v, err := parse(s)
		if ge := (*glob.Error)(nil); errors.As(err, &ge) {
			err = strict.Bad(ge.What, ge.Write)
		}
		return v, err
	}
}

// format is what the types of the file formats have beyond their tags.
var format = strict.Format{Scalars: scalars, Forms: forms}

// forms are the values of the tag "is", as package strict knows them.
var forms = map[string]strict.Form{
	"name": {Noun: "a name", Pattern: `^[a-z0-9-]+$`,
		Write: "write lower-case letters, digits and hyphens, such as fedora-eln"},
	"text": {Noun: "one line of text", Pattern: `^[^\x00-\x1f\x7f]+$`,
		Write: "write one line without control characters"},
	"id": {Noun: "a repository id", Pattern: `^[A-Za-z0-9._:-]+$`,
		Write: "write letters, digits and . _ : -, such as fedora-updates"},
	"path": {Noun: "an absolute path of the mirror", Pattern: `^/[A-Za-z0-9._+~@/-]*$`, Check: checkPath,
		Write: "write a slash, then letters, digits and . _ + ~ @ - /, such as /pub/fedora/linux"},
	"file": {Noun: "an absolute path", Pattern: `^/[^\x00-\x1f\x7f]*$`,
		Write: "write one that begins with a slash, such as /etc/instantmirror/ca.pem"},
	"directory": {Noun: "an absolute path", Pattern: `^/[^\x00-\x1f\x7f]*$`,
		Write: "write one that begins with a slash, such as /srv/mirror"},
	"socket": {Noun: "an absolute path", Pattern: `^/[^\x00-\x1f\x7f]*$`,
		Write: "write one that begins with a slash, such as /run/instantmirror/admin.sock"},
	"key file": {Noun: "an absolute path", Pattern: `^/[^\x00-\x1f\x7f]*$`,
		Write: "write one that begins with a slash, such as /etc/pki/rpm-gpg/RPM-GPG-KEY-example"},
	"host": {Noun: "a host name", Pattern: `^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`,
		Write: "write the name alone, without scheme, port or path, such as fedora.example.org"},
	"url": {Noun: "the URL of an origin", Pattern: `^https?://[^/?#\x00-\x20\x7f]+(/[^?#\x00-\x20\x7f]*)?$`, Check: checkURL,
		Write: "write an http or https URL without query or fragment, such as https://mirror.example.org/fedora/linux"},
	"metalink": {Noun: "the URL of a metalink", Pattern: `^https?://[^/?#\x00-\x20\x7f]+(/[^?#\x00-\x20\x7f]*)?(\?[A-Za-z0-9._~:/?@!$&'()*+,;=%{}-]*)?$`, Check: checkMetalink,
		Write: "write an http or https URL in which {word} is what the tree captures, such as https://mirrors.example.org/metalink?repo=fedora-{release}&arch={arch}"},
	"keys": {Noun: "the URL of a key", Pattern: `^(https?|file)://[^\x00-\x1f\x7f]+$`, Check: checkKeys,
		Write: "write URLs that begin with https://, http:// or file:///, separated by spaces"},
	"listen": {Noun: "an address to listen on", Pattern: `^.*:[0-9]+$`, Check: checkListen,
		Write: "write :port or host:port, such as :8080 or 192.0.2.7:80"},
}

func checkPath(s string) error {
	if c := path.Clean(s); c != s {
		return strict.Bad("is not a clean path", "write "+c)
	}
	switch first, _, _ := strings.Cut(s[1:], "/"); first {
	case "-":
		return strict.Bad("lies in /-/, which is reserved for the mirror's own pages", "write another path")
	case ".instantmirror":
		return strict.Bad("lies in /.instantmirror, which is reserved for the mirror's own files", "write another path")
	}
	return nil
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || u.RawQuery != "" || u.ForceQuery:
		return strict.ErrForm
	case u.User != nil:
		return strict.Bad("holds a user name", "write the URL without it, and the keys username and password_file beside url")
	case strings.ContainsAny(u.Path, "{}*$"):
		return strict.Bad("holds one of { } * $, but the path of an origin is fixed", "write the prefix that all of the profile's paths have there")
	case u.Path != "" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/":
		u.Path = path.Clean(u.Path)
		return strict.Bad("has a path that is not clean", "write "+u.String())
	}
	return nil
}

// wordRE finds what stands for a captured word.
var wordRE = regexp.MustCompile(`\{[a-z0-9_]+\}`)

func checkMetalink(s string) error {
	_, host, _ := strings.Cut(s, "://")
	if i := strings.IndexAny(host, "/?"); i >= 0 {
		host = host[:i]
	}
	fixed := wordRE.ReplaceAllString(s, "x")
	u, err := url.Parse(fixed)
	switch {
	case strings.Contains(s, "$"):
		return strict.Bad("holds a $, as clients' .repo files do", "write {word} for what the tree captures, such as {release} for $releasever and {arch} for $basearch")
	case strings.ContainsAny(fixed, "{}"):
		return strict.Bad("has a brace that belongs to no {word}", "write {word}, of lower-case letters, digits and _, such as {release}")
	case wordRE.MatchString(host):
		return strict.Bad("has a {word} in its host, but one host is asked for all the trees", "write the host out, or several layout entries")
	case err != nil || u.Hostname() == "":
		return strict.ErrForm
	case u.User != nil:
		return strict.Bad("holds a user name", "write the URL without it")
	case u.Path != "" && u.Path != "/" && path.Clean(u.Path) != u.Path:
		return strict.Bad("has a path that is not clean", "write it without . and .. elements, double slashes and a slash at its end")
	}
	if _, err := url.QueryUnescape(u.RawQuery); err != nil {
		return strict.ErrForm
	}
	return nil
}

func checkKeys(s string) error {
	for k := range strings.FieldsSeq(s) {
		if !strings.HasPrefix(k, "https://") && !strings.HasPrefix(k, "http://") && !strings.HasPrefix(k, "file:///") {
			return strict.ErrForm
		}
	}
	return nil
}

func checkListen(s string) error {
	_, port, err := net.SplitHostPort(s)
	if n, _ := strconv.Atoi(port); err != nil || n > 65535 {
		return strict.ErrForm
	}
	return nil
}
