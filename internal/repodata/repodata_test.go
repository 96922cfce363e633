package repodata

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseRepomd(t *testing.T) {
	want := []Record{
		{Type: "primary", Href: "repodata/1a1f36da53154f18f2275e0c5da238b7cc5dfa20e95385f4b37605ee097efbb5-primary.xml.gz", Size: 9541, OpenSize: 78278, Timestamp: 1525701693,
			Sum:     mustSum(t, "sha256", "1a1f36da53154f18f2275e0c5da238b7cc5dfa20e95385f4b37605ee097efbb5"),
			OpenSum: mustSum(t, "sha256", "a47c3009ef971fa66ae646e950dff6e110efad363cb8358eec076bec034ed978")},
		{Type: "group", Href: "repodata/comps.xml", Base: "http://example.org/", Size: -1, OpenSize: -1, Timestamp: 1525701700,
			Sum: mustSum(t, "sha1", "c1d8b4a70e4e2ed3cf5d68d27319974cc023cf03")},
		{Type: "primary_zck", Href: "repodata/cb8b33d29cfab5d51e91dfa4566d67f8dabff0335c863689363b005755083639-primary.xml.zck", Size: 15714, OpenSize: 78278, Timestamp: 1525701693,
			Sum: mustSum(t, "sha256", "cb8b33d29cfab5d51e91dfa4566d67f8dabff0335c863689363b005755083639")},
	}
	md, err := ParseRepomd(iotest.OneByteReader(bytes.NewReader(sample(t, "repomd.xml"))))
	if err != nil || !slices.Equal(md.Records, want) || md.Revision != "1525701694" {
		t.Fatalf("got %+v, %v", md, err)
	}
	if a := md.Age(); a != (Age{Timestamp: 1525701700, Revision: 1525701694}) {
		t.Errorf("age %+v", a)
	}
	if md.Record("group") != &md.Records[1] || md.Record("other") != nil {
		t.Error("Record found another")
	}
}

// TestRepomdShapes: a record that is odd in one thing is still good for the others, and no reason to refuse the rest.
func TestRepomdShapes(t *testing.T) {
	record := func(s string) string { return `<repomd><data type="primary">` + s + `</data></repomd>` }
	location := `<location href="a"/>`
	base := Record{Type: "primary", Href: "a", Size: -1, OpenSize: -1}
	with := func(change func(*Record)) []Record {
		r := base
		change(&r)
		return []Record{r}
	}
	for name, test := range map[string]struct {
		doc  string
		want []Record
	}{
		"nothing":           {"<repomd/>", nil},
		"no location":       {record("<size>1</size>"), nil},
		"no name space":     {record(location), []Record{base}},
		"prefix":            {`<r:repomd xmlns:r="http://linux.duke.edu/metadata/repo"><r:data type="primary"><r:location href="a"/><size>1</size></r:data><data><location href="b"/></data></r:repomd>`, []Record{base}},
		"unknown sum":       {record(location + `<checksum type="blake3">00</checksum>`), []Record{base}},
		"malformed sum":     {record(location + `<checksum type="md5">00</checksum>`), []Record{base}},
		"no type of sum":    {record(location + `<checksum>d41d8cd98f00b204e9800998ecf8427e</checksum>`), []Record{base}},
		"upper case, space": {record(location + "<checksum type='MD5'>\n D41D8CD98F00B204E9800998ECF8427E\n</checksum>"), with(func(r *Record) { r.Sum = mustSum(t, "md5", "d41d8cd98f00b204e9800998ecf8427e") })},
		"numbers":           {record(location + "<size>-1</size><open-size>1e9</open-size><timestamp>soon</timestamp>"), []Record{base}},
		"great numbers":     {record(location + "<size>99999999999999999999</size><timestamp>1e300</timestamp>"), []Record{base}},
		"no numbers":        {record(location + "<timestamp>NaN</timestamp><size/>"), []Record{base}},
		"space":             {record(location + "<size> 5\n</size>"), with(func(r *Record) { r.Size = 5 })},
		"references":        {record(`<location href="a&amp;&#43;" xml:base='media:#1'/>`), with(func(r *Record) { r.Href, r.Base = "a&+", "media:#1" })},
		"elsewhere":         {`<repomd><tags><data type="x"><location href="x"/></data></tags><data type="primary"><x><location href="y"/><size>7</size></x>` + location + `</data></repomd>`, []Record{base}},
		"comment in text":   {record(location + "<size>1<!-- 2 -->3</size>"), with(func(r *Record) { r.Size = 13 })},
	} {
		t.Run(name, func(t *testing.T) {
			md, err := ParseRepomd(strings.NewReader(test.doc))
			if err != nil || !slices.Equal(md.Records, test.want) {
				t.Errorf("got %+v, %v; want %+v", md, err, test.want)
			}
		})
	}
}

func TestRepomdRefused(t *testing.T) {
	doc := sample(t, "repomd.xml")
	for name, test := range map[string]struct{ doc, want string }{
		"empty":        {"", "no root element <repomd>"},
		"html":         {"<html><body/></html>", "root element is <html>, not <repomd>"},
		"doctype":      {"<!doctype html><html>", "DOCTYPE"},
		"primary":      {"<metadata/>", "<metadata>"},
		"text":         {"404 not found", "no root element"},
		"gzip":         {string(gz(t, doc)), "XML"},
		"many records": {"<repomd>" + strings.Repeat(`<data type="a"><location href="b"/></data>`, 1001) + "</repomd>", "more than 1000 records"},
		"long":         {"<repomd>" + strings.Repeat("<a>"+strings.Repeat("x", 1000)+"</a>", maxRepomd/1000) + "</repomd>", "longer than the 4194304 bytes"},
		"long text":    {"<repomd><revision>" + strings.Repeat("a", 5000), "text of <revision> is longer"},
		"two":          {"<repomd/><repomd/>", "follows the root"},
		"entity":       {"<repomd><revision>&a;</revision></repomd>", "entity"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRepomd(strings.NewReader(test.doc))
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "repomd.xml") || len(err.Error()) > 300 {
				t.Errorf("got %.400v, want one with %q", err, test.want)
			}
		})
	}
	for i := range bytes.TrimSpace(doc) {
		if _, err := ParseRepomd(bytes.NewReader(doc[:i])); err == nil {
			t.Fatalf("cut to %d bytes: no error", i)
		}
	}
}

func TestAge(t *testing.T) {
	for _, test := range []struct {
		a, b Age
		want int
	}{
		{Age{Timestamp: 1, Revision: 9}, Age{Timestamp: 2, Revision: 8}, -1},
		{Age{Timestamp: 2, Revision: 8}, Age{Timestamp: 2, Revision: 9}, -1},
		{Age{Timestamp: 2}, Age{Timestamp: 2, Revision: 9}, 0},
		{Age{Revision: 8}, Age{Timestamp: 2, Revision: 9}, -1},
		{Age{Timestamp: 2}, Age{Revision: 9}, 0},
		{Age{}, Age{}, 0},
	} {
		if test.a.Compare(test.b) != test.want || test.b.Compare(test.a) != -test.want {
			t.Errorf("%+v, %+v: got %d, want %d", test.a, test.b, test.a.Compare(test.b), test.want)
		}
	}
	for revision, want := range map[string]int64{"1525701694": 1525701694, "9-stream": 0, "": 0, "-5": 0, "1.5": 0} {
		if a := (&Repomd{Revision: revision}).Age(); a != (Age{Revision: want}) {
			t.Errorf("revision %q: %+v", revision, a)
		}
	}
}

func TestJoin(t *testing.T) {
	const repo = "pub/fedora/os"
	for _, test := range []struct{ repo, base, href, want string }{ // want is a path, "external", or an error
		{repo, "", "Packages/a.rpm", "pub/fedora/os/Packages/a.rpm"},
		{"", "", "Packages/a.rpm", "Packages/a.rpm"},
		{repo, "", "./a//b/./c.rpm", "pub/fedora/os/a/b/c.rpm"},
		{repo, "", "/Packages/a.rpm", "pub/fedora/os/Packages/a.rpm"},
		{repo, "", "//host/a.rpm", "pub/fedora/os/host/a.rpm"},
		{repo, "", "../../x/a.rpm", "pub/x/a.rpm"},
		{repo, "", "../../../a.rpm", "a.rpm"},
		{repo, "", "../../../../a.rpm", "error: out of the mirror"},
		{repo, "", "../../../../pub/fedora/os/a.rpm", "error: out of the mirror"},
		{"", "", "../a.rpm", "error: out of the mirror"},
		{repo, "", "a/../../../../../a.rpm", "error: out of the mirror"},
		{repo, "", "../../../.instantmirror/tmp/1", "error: out of the mirror"},
		{repo, "", "..a/...", "pub/fedora/os/..a/..."},
		{repo, "", "libstdc++-1:2~rc^git%2B#1?.rpm", "pub/fedora/os/libstdc++-1:2~rc^git%2B#1?.rpm"},
		{repo, "", "%2e%2e/%2e%2e/a.rpm", "pub/fedora/os/%2e%2e/%2e%2e/a.rpm"},
		{repo, "", "https://example.org/a.rpm", "external"},
		{repo, "http://example.org/pub/", "a.rpm", "external"},
		{repo, "http://example.org/pub/", "../../../../../a.rpm", "external"},
		{repo, "file:/srv", "a.rpm", "external"},
		{repo, "/srv", "a.rpm", "external"},
		{repo, "//example.org", "a.rpm", "external"},
		{repo, "media:#2", "Packages/a.rpm", "pub/fedora/os/Packages/a.rpm"},
		{repo, "media://1170457211.299978#1", "Packages/a.rpm", "external"},
		{repo, "pool", "a.rpm", "pub/fedora/os/pool/a.rpm"},
		{repo, "pool/", "/a.rpm", "pub/fedora/os/pool/a.rpm"},
		{repo, "../pool/", "a.rpm", "pub/fedora/pool/a.rpm"},
		{repo, "a/b:c", "a.rpm", "pub/fedora/os/a/b:c/a.rpm"},
		{repo, "../../../..", "a.rpm", "error: out of the mirror"},
		{repo, "", "", "error: names no file"},
		{repo, "", "/", "error: names no file"},
		{repo, "", ".", "error: names no file"},
		{repo, "", "a/..", "error: names no file"},
		{repo, "", "a/", "error: names no file"},
		{repo, "x", "", "error: names no file"},
		{repo, "", "a\x00b", "error: holds the character '\\x00'"},
		{repo, "", "a\nb", "error: holds the character"},
		{repo, "", "caf\x7f.rpm", "error: holds the character"},
		{repo, "", `..\..\a`, "error: holds the character"},
		{repo, "", strings.Repeat("a", 255), "pub/fedora/os/" + strings.Repeat("a", 255)},
		{repo, "", strings.Repeat("a", 256), "error: an element longer"},
		{repo, "", strings.Repeat("a/", 2100) + "a", "error: longer than"},
	} {
		got, external, err := Join(test.repo, test.base, test.href)
		switch want, fail := strings.CutPrefix(test.want, "error: "); {
		case fail:
			if err == nil || !strings.Contains(err.Error(), want) || got != "" || external || len(err.Error()) > 800 {
				t.Errorf("%q %q %q: got %q, %v, %v", test.repo, test.base, test.href, got, external, err)
			}
		case want == "external":
			if err != nil || got != "" || !external {
				t.Errorf("%q %q %q: got %q, %v, %v", test.repo, test.base, test.href, got, external, err)
			}
		default:
			if err != nil || got != want || external {
				t.Errorf("%q %q %q: got %q, %v, %v; want %q", test.repo, test.base, test.href, got, external, err, want)
			}
		}
	}
}

func FuzzJoin(f *testing.F) {
	for _, href := range []string{"Packages/a.rpm", "../a", "../../../../a", "/a", "a//../b", "https://a/b", "%2e%2e/a", "a\\b", "a/", "..", ".instantmirror/x", "a\x00"} {
		f.Add("pub/os", "", href)
		f.Add("", "pool", href)
		f.Add("pub/os", "media:#1", href)
		f.Add("pub/os", "http://a/", href)
	}
	f.Fuzz(func(t *testing.T, repo, base, href string) {
		got, external, err := Join(repo, base, href)
		if got == "" {
			if external == (err != nil) {
				t.Fatalf("external %v, %v", external, err)
			}
			return
		}
		if external || err != nil {
			t.Fatalf("%q, external %v, %v", got, external, err)
		}
		if path.Clean(got) != got || got == "." || strings.HasPrefix("/"+got+"/", "/../") || strings.HasPrefix("/"+got+"/", "/.instantmirror/") || path.IsAbs(got) || strings.ContainsAny(got, "\x00\\\n") {
			t.Errorf("%q", got)
		}
		if clean := path.Clean("/" + repo)[1:]; base == "" && clean != "" && !strings.Contains(repo, "..") && !strings.Contains(href, "..") && !strings.HasPrefix(got, clean+"/") {
			t.Errorf("%q is not below %q", got, clean)
		}
		if again, _, err := Join("", "", got); err != nil && !strings.Contains(got, "://") || err == nil && again != "" && again != got {
			t.Errorf("%q again is %q, %v", got, again, err)
		}
	})
}

func FuzzRepomd(f *testing.F) {
	f.Add(sample(f, "repomd.xml"))
	for _, s := range []string{"<repomd/>", "<html>", "<!DOCTYPE x>", `<repomd><revision>1</revision><data type="a"><location href="b" xml:base="c"/><checksum type="md5">d41d8cd98f00b204e9800998ecf8427e</checksum><timestamp>1.5</timestamp></data></repomd>`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		md, err := ParseRepomd(bytes.NewReader(doc))
		again, againErr := ParseRepomd(iotest.HalfReader(bytes.NewReader(doc)))
		if fmt.Sprint(md, err) != fmt.Sprint(again, againErr) {
			t.Fatalf("whole: %+v, %v; in pieces: %+v, %v", md, err, again, againErr)
		}
		if err != nil {
			if md != nil || len(err.Error()) > 400 {
				t.Errorf("%+v beside an error of %d bytes", md, len(err.Error()))
			}
			return
		}
		age := md.Age()
		for _, rec := range md.Records {
			if rec.Href == "" || rec.Size < -1 || rec.OpenSize < -1 || rec.Timestamp < 0 || rec.Timestamp > age.Timestamp {
				t.Errorf("%+v", rec)
			}
			Join("a/b", rec.Base, rec.Href)
		}
	})
}
