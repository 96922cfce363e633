package repodata

import (
	"bytes"
	"compress/gzip"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// FuzzPrimary: the fast reader says what encoding/xml says, of whatever document, and of whatever file nothing breaks.
func FuzzPrimary(f *testing.F) {
	small := []byte(head + pkg("a", "") + "</metadata>")
	f.Add(small)
	f.Add(gz(f, small))
	f.Add(zst(f, small))
	f.Add(xzBytes(f, small))
	f.Add(sample(f, "empty.bz2"))
	for _, s := range []string{
		pkg("a", ""), pkg("&#97;&amp;", ""), pkg("a", "<!-- </package> -->"), pkg("a", "<![CDATA[</package>]]>"), pkg("a", "<package></package>"),
		pkg("a", "<size package='1' xmlns='x'/>"), pkg("a", "<rpm:name>b</rpm:name><url a='>' b=\"'\"/>"), pkg("a", "<summary>\xff\x01]]&gt;</summary>"),
		"<package/>", "<!-- -->" + pkg("a", ""), "<bar><package/></bar>" + pkg("a", ""), pkg("a", "<checksum type='sha'>ed742780cccbc9c974806e34785399ed45a317f7</checksum><time file='1'/><arch>x</arch>"),
		"<package ><location href='a' xml:base='b'/></package>",
	} {
		f.Add([]byte(head + s + "</metadata>"))
		f.Add([]byte("<metadata xmlns='http://linux.duke.edu/metadata/common'>" + s + s + "</metadata>\n"))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if len(doc) > 0 && doc[0] != '<' {
			if _, err := all(bytes.NewReader(doc), Limits{OpenSize: 1 << 20}); err != nil && len(err.Error()) > 400 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		}
		compare(t, doc)
	})
}

// compare reads a document both ways, the fast one with buffers that come to their end anywhere.
func compare(t *testing.T, doc []byte) {
	t.Helper()
	want, wantErr := allSlowly(bytes.NewReader(doc))
	for _, size := range []int{16, 1 << 10} {
		var got []Package
		p := primary{yield: func(p *Package) error {
			got = append(got, *p)
			return nil
		}}
		err := p.read(&scanner{r: iotest.HalfReader(bytes.NewReader(doc)), buf: make([]byte, size)})
		if (err == nil) != (wantErr == nil) || !slices.Equal(got, want) {
			t.Errorf("%q: got %+v, %v; encoding/xml: %+v, %v", doc, got, err, want, wantErr)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
}

// TestPieces compares the readers on documents put together at random from what such documents are made of, which comes
// to more of the odd ones than a fuzzer that has to find tags first.
func TestPieces(t *testing.T) {
	pieces := strings.Split(`<package>|<package type="rpm">|<package|</package>|</package>|</package >|<package/>|<packager>|</packager>|<packager/>|`+
		`<name>|</name>|<name>a</name>|<name/>|<arch>|</arch>|<arch>x</arch>|<checksum type="md5">|</checksum>|<checksum type='md5'>d41d8cd98f00b204e9800998ecf8427e</checksum>|`+
		`<location href="a"/>|<location href="b" xml:base="c"></location>|<location |href='d'|/>|>|<|"|'|=|<size package="1"/>|<time file="2"/>|<size|package="3"|`+
		`<rpm:name>|</rpm:name>|<rpm:location href="x"/>|<x:name/>|<format>|</format>|<a>|</a>|<a b="c"/>| xmlns="x"| xmlns:rpm="http://linux.duke.edu/metadata/common"|`+
		`<!-- -->|<!--|-->|<![CDATA[|]]>|<?x ?>|<?|?>|<!x>|&amp;|&#97;|&#x0;|&x;|&|;|]]|text| |`+"\n|\r\n|\t|\x00|\xe9|\xe2\x82|\uffff|"+`</metadata>|`+head+`|<metadata>|:|<:a/>|<a:/>|<1/>|é`, "|")
	random := rand.New(rand.NewPCG(1, 2))
	good := 0
	documents := 30_000
	if race {
		documents = 3_000
	}
	for range documents {
		doc := []byte(head)
		if random.IntN(20) == 0 {
			doc = nil
		}
		for range random.IntN(4) {
			if random.IntN(2) == 0 {
				doc = append(doc, "<package>"...)
			}
			for range random.IntN(5) {
				doc = append(doc, pieces[random.IntN(len(pieces))]...)
			}
			if random.IntN(2) == 0 {
				doc = append(doc, `<location href="z"/></package>`...)
			}
		}
		if random.IntN(20) > 0 {
			doc = append(doc, "</metadata>"...)
		}
		compare(t, doc)
		if list, err := allSlowly(bytes.NewReader(doc)); err == nil && len(list) > 0 {
			good++
		}
		if t.Failed() {
			return
		}
	}
	if good < documents/30 {
		t.Errorf("only %d documents were good", good)
	}
}

// BenchmarkPrimary reads a document of 60,000 packages. MB/s are of the document, whatever its compression; the last two
// readers are there to compare with.
func BenchmarkPrimary(b *testing.B) {
	const packages = 60_000
	doc := slices.Concat([]byte(primaryHead(packages)), generate(packages), []byte(primaryEnd))
	took := map[string]time.Duration{}
	run := func(name string, read func() (int, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				if n, err := read(); err != nil || n != packages {
					b.Fatalf("%d packages, %v", n, err)
				}
			}
			took[name] = b.Elapsed() / time.Duration(b.N)
			if fast := took["fast"]; name != "fast" && fast > 0 {
				b.ReportMetric(float64(took[name])/float64(fast), "x_fast") // times as long as the fast reader takes
			}
		})
	}
	stored := func(file []byte) func() (int, error) {
		return func() (n int, err error) {
			err = ReadPrimary(bytes.NewReader(file), "x", Limits{}, func(*Package) error {
				n++
				return nil
			})
			return n, err
		}
	}
	run("fast", stored(doc))
	run("gzip", stored(gz(b, doc)))
	run("zstd", stored(zst(b, doc)))
	run("encoding-xml", func() (n int, err error) {
		p := primary{yield: func(*Package) error {
			n++
			return nil
		}}
		return n, p.slow(bytes.NewReader(doc))
	})
	b.Run("createrepo_c", func(b *testing.B) { benchmarkCreaterepo(b, doc, took["fast"]) })
}

// benchmarkCreaterepo times createrepo_c's reader, which parses by libxml2; its own clock runs, so that starting Python
// does not count.
func benchmarkCreaterepo(b *testing.B, doc []byte, fast time.Duration) {
	const python = "/usr/bin/python3" // the distribution's, whatever else stands on the PATH
	if err := exec.Command(python, "-I", "-c", "import createrepo_c").Run(); err != nil {
		b.Skip("needs createrepo_c's module: apt-get install -y --no-install-recommends python3-createrepo-c")
	}
	name := filepath.Join(b.TempDir(), "primary.xml")
	if err := os.WriteFile(name, doc, 0o600); err != nil {
		b.Fatal(err)
	}
	const script = `
import createrepo_c, sys, time
start = time.perf_counter()
createrepo_c.xml_parse_primary(sys.argv[1], None, lambda pkg: None, None, 0)
print(time.perf_counter() - start)
`
	var took time.Duration
	for b.Loop() {
		out, err := exec.Command(python, "-I", "-c", script, name).Output()
		if err != nil {
			b.Fatal(err)
		}
		seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil {
			b.Fatal(err)
		}
		took += time.Duration(seconds * float64(time.Second))
	}
	took /= time.Duration(b.N)
	b.ReportMetric(float64(len(doc))/1e6/took.Seconds(), "MB/s")
	if fast > 0 {
		b.ReportMetric(float64(took)/float64(fast), "x_fast")
	}
}

// BenchmarkReal reads the primary of CentOS Stream 9's AppStream as it is stored.
func BenchmarkReal(b *testing.B) {
	names, err := filepath.Glob(filepath.Join(mirrortest.Fixtures(b, "osbuild-testrepos", "appstream", "repodata"), "*-primary.xml.gz"))
	if err != nil || len(names) != 1 {
		b.Fatal(names, err)
	}
	file, err := os.ReadFile(names[0])
	if err != nil {
		b.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		b.Fatal(err)
	}
	var doc bytes.Buffer
	if _, err := doc.ReadFrom(z); err != nil {
		b.Fatal(err)
	}
	for name, in := range map[string][]byte{"gzip": file, "open": doc.Bytes()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(doc.Len()))
			for b.Loop() {
				if err := ReadPrimary(bytes.NewReader(in), "x", Limits{}, func(*Package) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
