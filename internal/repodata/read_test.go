package repodata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// all reads a document as it is, or as a file.
func all(r io.Reader, lim Limits) (list []Package, err error) {
	err = ReadPrimary(r, "primary.xml", lim, func(p *Package) error {
		list = append(list, *p)
		return nil
	})
	return list, err
}

// allSlowly reads a document by encoding/xml alone.
func allSlowly(r io.Reader) (list []Package, err error) {
	p := primary{yield: func(p *Package) error {
		list = append(list, *p)
		return nil
	}}
	err = p.slow(r)
	return list, err
}

func mustSum(t testing.TB, kind, hex string) digest.Sum {
	t.Helper()
	s := sum(kind, []byte(hex))
	if s.IsZero() {
		t.Fatalf("%s %s is no digest", kind, hex)
	}
	return s
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func samplePackages(t testing.TB) []Package {
	return []Package{
		{Name: "fake_bash", Arch: "x86_64", Href: "Packages/f/fake_bash-1.1.1-1.x86_64.rpm", Size: 2237, FileTime: 1648713018,
			Sum: mustSum(t, "sha256", "90f61e546938a11449b710160ad294618a5bd3062e46f8cf851fd0088af184b7")},
		{Name: "libstdc++", Arch: "i686", Href: "libstdc++-13~rc1^git-2.fc99.i686.rpm", Base: "http://example.org/pub/", Size: 85168, FileTime: 1222971711,
			Sum: mustSum(t, "sha1", "ed742780cccbc9c974806e34785399ed45a317f7")},
		{Name: "app", Arch: "noarch", Href: "../other/Packages/a/app-1.0-1.fc99.noarch.rpm", Size: 10578, FileTime: 1795405050,
			Sum: mustSum(t, "sha512", "3a2b7e0fd1bb4a3bd7e7bb6a3d0ea5bd43a3f5a2d5d3fbdb61df54e8a4bfb4d0a7cd72118c172e78a9e7b16575402e044c0811ab775f4fd8f3e7eea10a5d7ccb")},
	}
}

func gz(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	z, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(b, nil)
}

func xzBytes(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	z, err := xz.NewWriter(&out)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestCompressions(t *testing.T) {
	doc := sample(t, "primary.xml")
	for name, file := range map[string][]byte{
		"none":           doc,
		"gzip":           gz(t, doc),
		"gzip members":   slices.Concat(gz(t, doc[:1000]), gz(t, nil), gz(t, doc[1000:])),
		"bzip2":          sample(t, "primary.xml.bz2"),
		"bzip2 streams":  slices.Concat(sample(t, "primary.xml.bz2"), sample(t, "empty.bz2")),
		"xz":             xzBytes(t, doc),
		"xz blocks":      sample(t, "primary.xml.xz"),
		"xz streams":     sample(t, "streams.xml.xz"),
		"zstd":           zst(t, doc),
		"zstd -22":       sample(t, "primary.xml.zst"),
		"zstd frames":    slices.Concat(zst(t, doc[:1000]), zst(t, doc[1000:])),
		"zstd skippable": slices.Concat([]byte("\x53\x2a\x4d\x18\x03\x00\x00\x00abc"), zst(t, doc)),
	} {
		t.Run(name, func(t *testing.T) {
			want := samplePackages(t)
			got, err := all(bytes.NewReader(file), Limits{Size: int64(len(file)), OpenSize: int64(len(doc))})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("got %+v, %v", got, err)
			}
			// In small pieces, and without knowing the sizes.
			got, err = all(iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(file))), Limits{OpenSize: -1})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("in pieces: got %+v, %v", got, err)
			}
			if _, err := all(bytes.NewReader(file), Limits{Size: int64(len(file)) - 1}); err == nil || !strings.Contains(err.Error(), "file is longer") {
				t.Errorf("a byte more than the declared size: %v", err)
			}
			if _, err := all(bytes.NewReader(file), Limits{OpenSize: int64(len(doc)) - 1}); err == nil || !strings.Contains(err.Error(), "document is longer") {
				t.Errorf("a byte more than the declared open size: %v", err)
			}
			for _, cut := range []int{1, len(file) / 3, len(file) / 2, len(file) - 5} {
				if _, err := all(bytes.NewReader(file[:cut]), Limits{}); err == nil {
					t.Errorf("cut to %d of %d bytes: no error", cut, len(file))
				}
			}
			broken := fmt.Errorf("line is down: %w", io.EOF) // even so it is not the end
			_, err = all(io.MultiReader(bytes.NewReader(file[:len(file)/2]), iotest.ErrReader(broken)), Limits{})
			if !errors.Is(err, broken) {
				t.Errorf("a failing reader: %v", err)
			}
		})
	}
}

// TestDamaged: of a file with a wrong byte anywhere, nothing worse comes than an error. (The libraries have no panics
// left there, and nobody waits for ever.)
func TestDamaged(t *testing.T) {
	doc := sample(t, "primary.xml")
	for name, file := range map[string][]byte{"gzip": gz(t, doc), "bzip2": sample(t, "primary.xml.bz2"), "xz": sample(t, "primary.xml.xz"), "xz streams": sample(t, "streams.xml.xz"),
		"zstd": zst(t, doc), "zstd -22": sample(t, "primary.xml.zst")} {
		for i := range file {
			for _, bits := range []byte{0x01, 0x80, 0xff} {
				if race && bits != 0xff {
					continue
				}
				damaged := slices.Clone(file)
				damaged[i] ^= bits
				if _, err := all(bytes.NewReader(damaged), Limits{OpenSize: int64(len(doc))}); err != nil && len(err.Error()) > 300 {
					t.Errorf("%s, byte %d: error of %d bytes", name, i, len(err.Error()))
				}
			}
		}
	}
}

const head = `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="2">
`

// pkg is an element with name n and a little more in it.
func pkg(n, more string) string {
	return fmt.Sprintf("<package type=\"rpm\"><name>%s</name>%s<location href=\"%s.rpm\"/></package>\n", n, more, n)
}

func TestShapes(t *testing.T) {
	plain := func(names ...string) (list []Package) {
		for _, n := range names {
			list = append(list, Package{Name: n, Href: n + ".rpm", Size: -1})
		}
		return list
	}
	for name, test := range map[string]struct {
		doc  string
		want []Package
	}{
		"none":                   {head + "</metadata>", nil},
		"empty root":             {`<metadata xmlns="http://linux.duke.edu/metadata/common"/>`, nil},
		"two":                    {head + pkg("a", "") + pkg("b", "") + "</metadata>\n", plain("a", "b")},
		"no declaration":         {strings.TrimPrefix(head, `<?xml version="1.0" encoding="UTF-8"?>`) + pkg("a", "") + "</metadata>", plain("a")},
		"other declaration":      {strings.Replace(head, `"UTF-8"`, `'utf-8'`, 1) + pkg("a", "") + "</metadata>", plain("a")},
		"byte order mark":        {"\ufeff" + head + pkg("a", "") + "</metadata>", plain("a")},
		"no name space":          {`<metadata>` + pkg("a", "") + "</metadata>", plain("a")},
		"prefix":                 {`<c:metadata xmlns:c="http://linux.duke.edu/metadata/common"><c:package><c:location href="a.rpm"/><c:name>a</c:name><name>x</name></c:package><package><location href="x"/></package></c:metadata>`, plain("a")},
		"prefix and default":     {`<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:c="http://linux.duke.edu/metadata/common"><c:package><c:name>a</c:name><location href="a.rpm"/></c:package>` + pkg("b", "<c:arch>z</c:arch>") + `</metadata>`, []Package{plain("a")[0], {Name: "b", Arch: "z", Href: "b.rpm", Size: -1}}},
		"prefix of xml":          {`<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:x="http://www.w3.org/XML/1998/namespace"><package><location x:base="media:#1" href="a"/></package></metadata>`, []Package{{Href: "a", Base: "media:#1", Size: -1}}},
		"other names":            {head + pkg("a", `<rpm:size package="3"/><size xmlns="other" package="4"/><version><arch>q</arch></version>`) + "</metadata>", plain("a")},
		"other package":          {head + `<package xmlns="other"><location href="x"/></package><rpm:package><location href="y"/></rpm:package>` + pkg("a", "") + "</metadata>", plain("a")},
		"quotes and order":       {head + `<package><checksum pkgid='YES' type='md5' >d41d8cd98f00b204e9800998ecf8427e</checksum><size installed='2' package='1'/><time build="9" file='8'/><location href='a' xml:base='"b"'/></package></metadata>`, []Package{{Href: "a", Base: `"b"`, Size: 1, FileTime: 8, Sum: mustSum(t, "md5", "d41d8cd98f00b204e9800998ecf8427e")}}},
		"references":             {head + `<package><name>&lt;&#97;&#x62;&gt;</name><location href="a&amp;&#43;&#x2B;&quot;.rpm"/></package>` + pkg("b", "") + "</metadata>", []Package{{Name: "<ab>", Href: `a&++".rpm`, Size: -1}, plain("b")[0]}},
		"reference elsewhere":    {head + pkg("a", "<description>&#1488; &amp;amp;</description>") + "</metadata>", plain("a")},
		"cdata":                  {head + `<package><name>a<![CDATA[b</name></package>]]>c</name><description><![CDATA[</package>]]></description><location href="d"/></package>` + pkg("b", "") + "</metadata>", []Package{{Name: "ab</name></package>c", Href: "d", Size: -1}, plain("b")[0]}},
		"comments":               {head + "<!-- </metadata> -->" + pkg("a", "<!-- </package> -->") + "<!-- x -->" + pkg("b", "<name>b<!-- c --></name>") + "<?pi </metadata>?></metadata><!-- end -->", plain("a", "b")},
		"unknown element":        {head + pkg("a", "") + "<bar><foo/><package><location href='x'/></package></bar>" + pkg("b", "<bar><package type='foo'/></bar>") + pkg("c", "<package><location href='y'/></package>") + "</metadata>", plain("a", "b", "c")},
		"element in text":        {head + "<package><name>a<b>x</b>c</name><location href='d'/></package></metadata>", []Package{{Name: "ac", Href: "d", Size: -1}}},
		"spaces in tags":         {head + "<package\n>\n<name\t>a</name ><size  package = \"5\" /><location\r\nhref=\"b\"\n/></package >" + pkg("b", "") + "</metadata\n>", []Package{{Name: "a", Href: "b", Size: 5}, plain("b")[0]}},
		"no space between":       {head + `<package><location xml:base="b"href="a"/></package></metadata>`, []Package{{Href: "a", Base: "b", Size: -1}}},
		"attributes twice":       {head + `<package><location href="a" href="b"/><size package="1" package="2"/></package></metadata>`, []Package{{Href: "b", Size: 2}}},
		"elements twice":         {head + `<package><location xml:base="x" href="a"/><location href="b"/><name>a</name><name>b</name><size package="1"/><size/></package></metadata>`, []Package{{Name: "b", Href: "b", Size: -1}}},
		"no location":            {head + "<package><name>a</name></package><package/>" + pkg("b", "") + "</metadata>", plain("b")},
		"no sum":                 {head + pkg("a", "<checksum type='sha256'/>") + pkg("b", "<checksum>ed742780cccbc9c974806e34785399ed45a317f7</checksum>") + "</metadata>", plain("a", "b")},
		"unknown sum":            {head + pkg("a", "<checksum type='blake3'>00</checksum>") + pkg("b", "<checksum type='md5'>d41d8cd98f00b204e9800998ecf8427g</checksum>") + "</metadata>", plain("a", "b")},
		"numbers that are none":  {head + pkg("a", "<size package='-5'/><time file='x'/>") + pkg("b", "<size package='99999999999999999999'/><time file='-1'/>") + "</metadata>", plain("a", "b")},
		"latin1 in text":         {head + pkg("a", "<description>\xe9\xff</description>") + pkg("b", "<description b='\xe9'>\xe2\x82</description>") + "</metadata>", plain("a", "b")},
		"latin1 in href":         {head + "<package><location href='caf\xe9.rpm'/></package>" + pkg("b", "") + "</metadata>", []Package{{Href: "caf\x7f.rpm", Size: -1}, plain("b")[0]}},
		"utf-8 in href":          {head + "<package><location href='café.rpm'/></package></metadata>", []Package{{Href: "café.rpm", Size: -1}}},
		"control characters":     {head + pkg("a", "<description>\x00\x01\x1b</description>") + "<package><location href='a\x00'/></package></metadata>", []Package{plain("a")[0], {Href: "a\x7f", Size: -1}}},
		"not a character":        {head + pkg("a", "<description>\uffff\ufffe</description>") + "<package><location href='a\uffff'/></package></metadata>", []Package{plain("a")[0], {Href: "a\x7f\x7f\x7f", Size: -1}}},
		"long text":              {head + pkg("a", "<description>"+strings.Repeat("long ", 50_000)+"</description>") + pkg("b", "") + "</metadata>", plain("a", "b")},
		"long package":           {head + pkg("a", strings.Repeat("<file>"+strings.Repeat("x", 10_000)+"</file>", maxElement/10_000)) + pkg("b", "") + "</metadata>", plain("a", "b")},
		"deep":                   {head + pkg("a", strings.Repeat("<x>", 90)+strings.Repeat("</x>", 90)) + pkg("b", "") + "</metadata>", plain("a", "b")},
		"many attributes":        {head + pkg("a", "<x"+strings.Repeat(` a="b"`, 1000)+"/><size"+strings.Repeat(` a="b"`, 1000)+"/>") + "</metadata>", plain("a")},
		"space at the ends":      {"\n\n" + strings.TrimPrefix(head, `<?xml version="1.0" encoding="UTF-8"?>`) + strings.Repeat(" ", 300_000) + pkg("a", "") + "</metadata>" + strings.Repeat("\n", 300_000), plain("a")},
		"text where none counts": {head + "x" + pkg("a", "x") + "x</metadata>x", plain("a")},
	} {
		t.Run(name, func(t *testing.T) {
			for way, r := range map[string]io.Reader{"whole": strings.NewReader(test.doc), "in pieces": iotest.HalfReader(strings.NewReader(test.doc))} {
				if got, err := all(r, Limits{}); err != nil || !slices.Equal(got, test.want) {
					t.Errorf("%s: got %+v, %v; want %+v", way, got, err, test.want)
				}
			}
			if got, err := allSlowly(strings.NewReader(test.doc)); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("encoding/xml: got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	doc := string(sample(t, "primary.xml"))
	end := "</metadata>"
	for name, test := range map[string]struct{ doc, want string }{
		"empty":              {"", "file is empty"},
		"space":              {"\n ", "no root element"},
		"html":               {"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "DOCTYPE"},
		"html without":       {"<html><head/></html>", "root element is <html>, not <metadata>"},
		"filelists":          {"<filelists/>", "<filelists>"},
		"long root":          {"<" + strings.Repeat("x", 100_000) + "/>", "root element"},
		"doctype":            {`<?xml version="1.0"?><!DOCTYPE metadata [<!ENTITY a "b">]><metadata>` + pkg("&a;", "") + end, "DOCTYPE"},
		"doctype inside":     {head + pkg("a", "<!DOCTYPE x>") + end, "DOCTYPE"},
		"entity":             {head + pkg("a", "<summary>&nbsp;</summary>") + end, "entity"},
		"number":             {head + pkg("a", "<summary>&#0;</summary>") + end, "illegal character"},
		"ampersand":          {head + pkg("a", "<url>a&b</url>") + end, "entity"},
		"end of cdata":       {head + pkg("a", "<url>]]></url>") + end, "CDATA"},
		"unbalanced":         {head + pkg("a", "<url></packager>") + end, "closed by"},
		"unquoted":           {head + pkg("a", "<url a=b/>") + end, "XML"},
		"bare attribute":     {head + pkg("a", "<url a/>") + end, "XML"},
		"less in a value":    {head + pkg("a", `<url a="</package>"/>`) + end, "unescaped <"},
		"bad name":           {head + pkg("a", "<1url/>") + end, "XML"},
		"two colons":         {head + pkg("a", "<a:b:c/>") + end, "XML"},
		"another root":       {head + end + head + pkg("a", "") + end, "follows the root"},
		"the root's end":     {head + pkg("a", "") + end + end, "XML"},
		"cut":                {doc[:len(doc)-5], "unexpected EOF"},
		"utf-16":             {"\xff\xfe<\x00", "neither XML nor"},
		"latin1":             {`<?xml version="1.0" encoding="ISO-8859-1"?><metadata/>`, `"ISO-8859-1": only UTF-8`},
		"zchunk":             {"\x00ZCK1abcdef", "zchunk"},
		"zchunk header":      {"\x00ZHR1abcdef", "zchunk"},
		"json":               {`{"error": 403}`, `begins with "{\"erro"`},
		"sqlite":             {"SQLite format 3\x00", "neither XML nor"},
		"gzip of nothing":    {string(gz(t, nil)), "no root element"},
		"gzip and garbage":   {string(gz(t, []byte(doc))) + "more than garbage", "gzip"},
		"gzip of gzip":       {string(gz(t, gz(t, []byte(doc)))), "XML"},
		"long name":          {head + pkg(strings.Repeat("a", maxField+1), "") + end, "text of <name> is longer"},
		"name of many parts": {head + pkg(strings.Repeat("a<!-- -->", maxField+1), "") + end, "text of <name> is longer"},
		"too deep":           {head + pkg("a", strings.Repeat("<x>", 100)+strings.Repeat("</x>", 100)) + end, "nested more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := all(strings.NewReader(test.doc), Limits{})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "primary.xml") {
				t.Fatalf("got %v, want one with %q", err, test.want)
			}
			if len(err.Error()) > 300 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// TestCut: a document that was cut is never whole, wherever it was cut.
func TestCut(t *testing.T) {
	doc := bytes.TrimSpace(sample(t, "primary.xml"))
	for i := range doc {
		got, err := all(bytes.NewReader(doc[:i]), Limits{})
		want, _ := allSlowly(bytes.NewReader(doc[:i]))
		if err == nil || !slices.Equal(got, want) {
			t.Fatalf("cut to %d bytes: %d packages, %v; encoding/xml: %d", i, len(got), err, len(want))
		}
	}
}

func TestYieldError(t *testing.T) {
	stop := errors.New("stop")
	for _, doc := range []string{head + pkg("a", "") + pkg("b", "") + "</metadata>", head + "<!-- -->" + pkg("a", "") + pkg("b", "") + "</metadata>",
		head + pkg("&#97;", "") + pkg("b", "") + "</metadata>"} {
		n := 0
		err := ReadPrimary(strings.NewReader(doc), "x", Limits{}, func(*Package) error {
			n++
			return stop
		})
		if err != stop || n != 1 {
			t.Errorf("after %d packages: %v", n, err)
		}
	}
}

// TestFast: what createrepo_c writes is read the fast way from end to end.
func TestFast(t *testing.T) {
	for _, doc := range []string{string(sample(t, "primary.xml")), head + pkg("a", "") + "</metadata>\n \n"} {
		s := scanner{r: strings.NewReader(doc), buf: make([]byte, 100)}
		if !s.root() {
			t.Fatal("root was left to encoding/xml")
		}
		if err := s.packages(&primary{yield: func(*Package) error { return nil }}); err != nil || !bytes.HasPrefix(s.window(), rootEnd) {
			t.Errorf("stopped before %.40q, %v", s.window(), err)
		}
		rest := doc[len(doc)-len(strings.SplitAfterN(doc, "\n", 3)[2]):]
		for _, elem := range strings.SplitAfter(strings.TrimSuffix(strings.TrimSpace(rest), "</metadata>"), "</package>\n") {
			if elem != "" && !new(Package).scan([]byte(strings.TrimSpace(elem))) {
				t.Errorf("left to encoding/xml: %s", elem)
			}
		}
	}
}
