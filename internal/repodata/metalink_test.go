package repodata

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// metalink is a document as MirrorManager writes it, about repomd.xml; file is what stands in it.
func metalink(file string) string {
	return `<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/" type="dynamic" generator="mirrormanager" xmlns:mm0="http://fedorahosted.org/mirrormanager">
 <files>
  <file name="repomd.xml">` + file + `</file>
 </files>
</metalink>
`
}

// described is an entry whose digests are those of body, by algorithms.
func described(body string, timestamp int, algorithms ...digest.Algorithm) string {
	s := fmt.Sprintf("<mm0:timestamp>%d</mm0:timestamp><size>%d</size><verification>", timestamp, len(body))
	for _, a := range algorithms {
		s += fmt.Sprintf("<hash type=%q>%s</hash>", a, sumsOf(body)(a).Hex())
	}
	return s + "</verification>"
}

func sumsOf(body string) func(digest.Algorithm) digest.Sum {
	return func(a digest.Algorithm) digest.Sum {
		h := a.New()
		h.Write([]byte(body))
		return digest.SumOf(a, h)
	}
}

const resources = `<resources maxconnections="1">
 <url protocol="rsync" type="rsync" location="DE" preference="100">rsync://a.example/fedora/repodata/repomd.xml</url>
 <url protocol="https" type="https" location="DE" preference="100">https://a.example/fedora/repodata/repomd.xml</url>
 <url location="" preference="-5"> http://b.example/pub/repodata/repomd.xml
 </url></resources>`

func TestParseMetalink(t *testing.T) {
	doc := metalink(described("main", 30, digest.MD5, digest.SHA256) +
		"<mm0:alternates><mm0:alternate>" + described("old", 20, digest.SHA512, digest.SHA1) + "</mm0:alternate>" +
		"<mm0:alternate>" + described("older", 10, digest.SHA256) + "</mm0:alternate></mm0:alternates>" + resources)
	want := &Metalink{
		Main: MetalinkEntry{Timestamp: 30, Size: 4, Sums: []digest.Sum{sumsOf("main")(digest.MD5), sumsOf("main")(digest.SHA256)}},
		Alternates: []MetalinkEntry{
			{Timestamp: 20, Size: 3, Sums: []digest.Sum{sumsOf("old")(digest.SHA512), sumsOf("old")(digest.SHA1)}},
			{Timestamp: 10, Size: 5, Sums: []digest.Sum{sumsOf("older")(digest.SHA256)}},
		},
		URLs: []MetalinkURL{
			{URL: "https://a.example/fedora/repodata/repomd.xml", Location: "DE", Preference: 100},
			{URL: "http://b.example/pub/repodata/repomd.xml"},
		},
	}
	got, err := ParseMetalink(iotest.OneByteReader(strings.NewReader(doc)))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
	if r := got.URLs[0].Repository(); r != "https://a.example/fedora" {
		t.Error(r)
	}
	if r := (MetalinkURL{URL: "https://a.example/fedora/repomd.xml"}).Repository(); r != "" {
		t.Error(r)
	}
}

func TestMetalinkKnows(t *testing.T) {
	var (
		both = metalink(described("main", 2, digest.MD5, digest.SHA256) + "<mm0:alternates><mm0:alternate>" + described("same", 1, digest.SHA1) +
			"</mm0:alternate><mm0:alternate>" + described("once", 1, digest.SHA256) + "</mm0:alternate></mm0:alternates>")
		// Its md5 is of what its sha256 is not.
		two = metalink("<size>4</size><verification><hash type='md5'>" + sumsOf("weak")(digest.MD5).Hex() + "</hash><hash type='sha256'>" + sumsOf("main")(digest.SHA256).Hex() + "</hash></verification>")
	)
	for _, test := range []struct {
		name, doc, body string
		main, alternate bool
		made            int // digests
	}{
		{"main", both, "main", true, false, 2},
		{"alternate", both, "same", false, true, 2},
		{"another alternate", both, "once", false, true, 2},
		{"neither", both, "none", false, false, 2},
		{"other size", both, "longer", false, false, 0},
		{"strongest", two, "main", true, false, 1},
		{"only the weaker", two, "weak", false, false, 1},
		{"unknown size", metalink("<size>x</size><verification><hash type='sha'>" + sumsOf("main")(digest.SHA1).Hex() + "</hash></verification>"), "main", true, false, 1},
		{"no digest", metalink("<size>4</size>"), "main", false, false, 0},
		{"no digest that we make", metalink("<size>4</size><verification><hash type='blake3'>00</hash></verification>"), "main", false, false, 0},
		{"nothing", metalink(""), "", false, false, 0},
		{"main and alternate", metalink(described("main", 2, digest.SHA256) + "<mm0:alternates><mm0:alternate>" + described("main", 1, digest.SHA256) + "</mm0:alternate></mm0:alternates>"), "main", true, true, 1},
	} {
		m, err := ParseMetalink(strings.NewReader(test.doc))
		if err != nil {
			t.Fatal(err)
		}
		made := 0
		main, alternate := m.Knows(int64(len(test.body)), func(a digest.Algorithm) digest.Sum {
			made++
			return sumsOf(test.body)(a)
		})
		if main != test.main || alternate != test.alternate || made != test.made {
			t.Errorf("%s: main %v, alternate %v, %d digests made", test.name, main, alternate, made)
		}
	}
}

func TestMetalinkShapes(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	const link = "<url>http://a.example/repodata/repomd.xml</url>"
	bare := Metalink{Main: MetalinkEntry{Size: -1}}
	urls := func(s ...string) Metalink {
		m := bare
		for _, u := range s {
			m.URLs = append(m.URLs, MetalinkURL{URL: u})
		}
		return m
	}
	for name, test := range map[string]struct {
		doc  string
		want Metalink
		err  string // part of the error
	}{
		"empty file":     {doc: metalink(""), want: bare},
		"no name spaces": {doc: `<metalink><files><file name="repomd.xml"><timestamp>5</timestamp><resources>` + link + `</resources></file></files></metalink>`, want: Metalink{Main: MetalinkEntry{Timestamp: 5, Size: -1}, URLs: urls("http://a.example/repodata/repomd.xml").URLs}},
		"other file":     {doc: `<metalink><files><file name="x.iso"><size>9</size><resources>` + link + `</resources></file><file name="repomd.xml"><size>1</size></file></files></metalink>`, want: Metalink{Main: MetalinkEntry{Size: 1}}},
		"a second one":   {doc: `<metalink><files><file name="repomd.xml"><size>1</size></file><file name="repomd.xml"><size>2</size><resources>` + link + `</resources></file></files></metalink>`, want: Metalink{Main: MetalinkEntry{Size: 1}}},
		"elsewhere":      {doc: metalink(link + "<x><size>1</size></x><mm0:alternate><size>2</size></mm0:alternate><verification><x><hash type='md5'>d41d8cd98f00b204e9800998ecf8427e</hash></x></verification>"), want: bare},
		"numbers":        {doc: metalink("<mm0:timestamp>-1</mm0:timestamp><size>1e3</size><resources><url preference='1000' location='Germany'>http://a.example</url><url preference='x'>http://b.example</url></resources>"), want: Metalink{Main: MetalinkEntry{Size: -1}, URLs: []MetalinkURL{{URL: "http://a.example", Preference: 100}, {URL: "http://b.example"}}}},
		"URLs":           {doc: metalink("<resources><url>ftp://a.example</url><url>http:///x</url><url>http://u:p@a.example</url><url>//a.example</url><url>http://a.example:x</url><url/><url>HTTPS://a.example/x</url><url>http://a.example/&#x1;</url></resources>"), err: "malformed"},
		"odd URLs":       {doc: metalink("<resources><url>ftp://a.example</url><url>http:///x</url><url>http://u:p@a.example</url><url>//a.example</url><url>http://a.example:x</url><url/><url>HTTPS://a.example/x</url><url>http://a.example/\x01</url></resources>"), want: urls("HTTPS://a.example/x")},
		"out of order":   {doc: metalink("<mm0:alternates><mm0:alternate><size>2</size></mm0:alternate></mm0:alternates><size>1</size>"), want: Metalink{Main: MetalinkEntry{Size: 1}, Alternates: []MetalinkEntry{{Size: 2}}}},
		"comment in it":  {doc: metalink("<size>1<!-- 2 -->3</size>"), want: Metalink{Main: MetalinkEntry{Size: 13}}},

		"nothing":         {err: "no root element"},
		"HTML":            {doc: "<html/>", err: "root element is <html>"},
		"doctype":         {doc: "<!DOCTYPE html><html/>", err: "DOCTYPE"},
		"error page":      {doc: "# repo = fedora-99 arch = x86_64 error: invalid repo or arch\n", err: "no root element"},
		"no file":         {doc: "<metalink><files/></metalink>", err: `no <file name="repomd.xml">`},
		"metalink 4":      {doc: `<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="repomd.xml"/></metalink>`, err: `no <file`},
		"two":             {doc: metalink("") + "<metalink/>", err: "follows the root"},
		"URLs at most":    {doc: metalink("<resources>" + many(maxURLs, link) + "<url>ftp://x</url></resources>"), want: urls(slices.Repeat([]string{"http://a.example/repodata/repomd.xml"}, maxURLs)...)},
		"too many URLs":   {doc: metalink("<resources>" + many(maxURLs+1, link) + "</resources>"), err: "more than 2000 URLs"},
		"many alternates": {doc: metalink("<mm0:alternates>" + many(maxAlternates+1, "<mm0:alternate/>") + "</mm0:alternates>"), err: "more than 1000 alternates"},
		"long":            {doc: metalink(many(maxMetalink, "x")), err: "longer than"},
		"long text":       {doc: metalink("<size>" + many(maxField+1, "1")), err: "text of <size> is longer"},
		"deep":            {doc: metalink(many(maxDepth, "<x>")), err: "nested more than"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ParseMetalink(strings.NewReader(test.doc))
			if test.err != "" {
				if m != nil || err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), "metalink") || len(err.Error()) > 300 {
					t.Errorf("%v, want one with %q", err, test.err)
				}
			} else if err != nil || !reflect.DeepEqual(*m, test.want) {
				t.Errorf("%+v, %v; want %+v", m, err, test.want)
			}
		})
	}
	doc := metalink(described("main", 30, digest.SHA256) + resources)
	for i := range strings.TrimSpace(doc) {
		if _, err := ParseMetalink(strings.NewReader(doc[:i])); err == nil {
			t.Fatalf("cut to %d bytes: no error", i)
		}
	}
}

// TestRealMetalinks reads what MirrorManagers have answered, and librepo's own test cases.
func TestRealMetalinks(t *testing.T) {
	dir := mirrortest.Fixtures(t)
	for _, test := range []struct {
		file             string
		urls, alternates int // urls below 0: an error
		timestamp, size  int64
		sha256           string
		first            MetalinkURL
	}{
		{file: "bazeldnf/repo/testdata/metalink", urls: 12, alternates: 3, timestamp: 1601254082, size: 8311, sha256: "94c908f83a2a92fde86bb63386cd73ff9c021b1b2adcbc3bb0b22dd4f276e9f8",
			first: MetalinkURL{"http://fedora.tu-chemnitz.de/pub/linux/fedora/linux/updates/32/Everything/x86_64/repodata/repomd.xml", "DE", 100}},
		{file: "librepo/test_data/metalinks/metalink_good_01", urls: 49, timestamp: 1337942396, size: 4309, sha256: "0076c44aabd352da878d5c4d794901ac87f66afac869488f6a4ef166de018cdf",
			first: MetalinkURL{"http://mirror.pnl.gov/fedora/linux/releases/17/Everything/x86_64/os/repodata/repomd.xml", "US", 99}},
		{file: "librepo/test_data/metalinks/metalink_good_02", urls: 2, size: -1},
		{file: "librepo/test_data/metalinks/metalink_good_03", size: -1},
		{file: "librepo/test_data/metalinks/metalink_with_alternates", urls: 76, alternates: 1, timestamp: 1381706941, size: 4761, sha256: "d4f9ad66f7c6e000d8ebf9ec92ad2c4636547853708554d93dab672bdfd98ca1"},
		{file: "librepo/test_data/metalinks/metalink_bad_01", urls: 1, size: -1, sha256: "0076c44aabd352da878d5c4d794901ac87f66afac869488f6a4ef166de018cdf"},
		{file: "librepo/test_data/metalinks/metalink_bad_02", size: -1},
		{file: "librepo/test_data/metalinks/metalink_really_bad_01", urls: -1},
		{file: "librepo/test_data/metalinks/metalink_really_bad_02", urls: -1},
		{file: "librepo/test_data/metalinks/metalink_really_bad_03", urls: -1},
		{file: "libzypp/data/Mirrorlist/remote-site/metalink.xml", urls: 2, alternates: 1, timestamp: 1288734483, size: 4834},
		{file: "libzypp/media/data/openSUSE-11.3-NET-i586.iso.metalink", urls: -1},
	} {
		f, err := os.Open(filepath.Join(dir, test.file))
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMetalink(f)
		f.Close()
		if test.urls < 0 || err != nil {
			if err == nil || test.urls >= 0 {
				t.Errorf("%s: %+v, %v", test.file, m, err)
			}
			continue
		}
		if len(m.URLs) != test.urls || len(m.Alternates) != test.alternates || m.Main.Timestamp != test.timestamp || m.Main.Size != test.size ||
			test.sha256 != "" && !slices.Contains(m.Main.Sums, mustSum(t, "sha256", test.sha256)) || test.first.URL != "" && m.URLs[0] != test.first {
			t.Errorf("%s: %d URLs, %d alternates, %+v", test.file, len(m.URLs), len(m.Alternates), m.Main)
		}
	}
	// The metalink of a repository among the fixtures knows that one's repomd.xml.
	repo := filepath.Join(dir, "librepo", "python", "tests", "servermock", "yum_mock", "static")
	body, err := os.ReadFile(filepath.Join(repo, "01", "repodata", "repomd.xml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"good_01.xml": true, "badchecksum.xml": false} {
		f, err := os.Open(filepath.Join(repo, "metalink", name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMetalink(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if main, alternate := m.Knows(int64(len(body)), sumsOf(string(body))); main != want || alternate {
			t.Errorf("%s: main %v, alternate %v", name, main, alternate)
		}
	}
}

func FuzzMetalink(f *testing.F) {
	f.Add([]byte(metalink(described("main", 30, digest.MD5, digest.SHA256) + "<mm0:alternates><mm0:alternate>" + described("old", 20, digest.SHA512) + "</mm0:alternate></mm0:alternates>" + resources)))
	f.Add([]byte(metalink("<mm0:alternates><mm0:alternate/><mm0:alternate><size>1</size></mm0:alternate></mm0:alternates><size>2</size>")))
	for _, s := range []string{"<metalink/>", "<html>", "<!DOCTYPE x>", "<metalink><files><file name='x'/><file name='repomd.xml'/></files></metalink>", metalink("<resources><url><url>http://a</url>http://b</url></resources>")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := ParseMetalink(bytes.NewReader(doc))
		again, againErr := ParseMetalink(iotest.HalfReader(bytes.NewReader(doc)))
		if fmt.Sprint(err) != fmt.Sprint(againErr) || !reflect.DeepEqual(m, again) {
			t.Fatalf("whole: %+v, %v; in pieces: %+v, %v", m, err, again, againErr)
		}
		if err != nil {
			if m != nil || len(err.Error()) > 400 {
				t.Errorf("%+v beside an error of %d bytes", m, len(err.Error()))
			}
			return
		}
		for _, e := range append(m.Alternates, m.Main) {
			if e.Timestamp < 0 || e.Size < -1 || slices.ContainsFunc(e.Sums, digest.Sum.IsZero) {
				t.Errorf("%+v", e)
			}
		}
		for _, l := range m.URLs {
			u, err := url.Parse(l.URL)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || l.Preference < 0 || l.Preference > 100 || len(l.URL) > maxField {
				t.Errorf("%+v, %v", l, err)
			}
		}
		m.Knows(int64(len(doc)), sumsOf(string(doc)))
	})
}
