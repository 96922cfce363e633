package repodata

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxHeap is what reading may take of the heap, garbage included: issue 4, point 1.
const maxHeap = 64 << 20

const primaryEnd = "</metadata>\n"

func primaryHead(n int) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="%d">
`, n)
}

// generate writes n packages as createrepo_c would, of 2.7 kB each like those of CentOS Stream 9's AppStream.
func generate(n int) []byte {
	b := new(bytes.Buffer)
	for i := range n {
		name := fmt.Sprintf("generated-package-%d", i)
		fmt.Fprintf(b, `<package type="rpm">
  <name>%[1]s</name>
  <arch>x86_64</arch>
  <version epoch="0" ver="2.%[2]d" rel="1.el9"/>
  <checksum type="sha256" pkgid="YES">%064[3]x</checksum>
  <summary>A package that was generated</summary>
  <description>This package was generated to have a primary of many packages. Its description is of the usual length,
which is some lines of text; where there is more to say, there are &lt;tags&gt; &amp; lists:
- of one thing
- of another thing</description>
  <packager>builder@example.org</packager>
  <url>https://www.example.org/%[1]s</url>
  <time file="%[4]d" build="%[4]d"/>
  <size package="%[5]d" installed="11556907" archive="11596752"/>
  <location href="Packages/%[1]s-2.%[2]d-1.el9.x86_64.rpm"/>
  <format>
    <rpm:license>GPL-3.0-or-later AND (Apache-2.0 OR MIT)</rpm:license>
    <rpm:vendor>Example</rpm:vendor>
    <rpm:group>Unspecified</rpm:group>
    <rpm:buildhost>x86-02.example.org</rpm:buildhost>
    <rpm:sourcerpm>%[1]s-2.%[2]d-1.el9.src.rpm</rpm:sourcerpm>
    <rpm:header-range start="59776" end="132493"/>
    <rpm:provides>
`, name, i%97, i*1_000_003, 1_700_000_000+i, 10_000+i)
		for j := range 8 {
			fmt.Fprintf(b, "      <rpm:entry name=\"%s(part-%d)\" flags=\"EQ\" epoch=\"0\" ver=\"2.%d\" rel=\"1.el9\"/>\n", name, j, i%97)
		}
		b.WriteString("    </rpm:provides>\n    <rpm:requires>\n")
		for j := range 10 {
			fmt.Fprintf(b, "      <rpm:entry name=\"lib%d.so.6(GLIBC_2.%d)(64bit)\"/>\n", (i+j)%300, j)
		}
		fmt.Fprintf(b, "    </rpm:requires>\n    <file>/usr/bin/%s</file>\n  </format>\n</package>\n", name)
	}
	return b.Bytes()
}

// gauge passes on what r has, and notes how large the heap becomes.
type gauge struct {
	r       io.Reader
	unheard int
	peak    uint64
}

func (g *gauge) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if g.unheard += n + 1; g.unheard > 32<<10 {
		g.note()
	}
	return n, err
}

func (g *gauge) note() {
	g.unheard = 0
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	g.peak = max(g.peak, m.HeapAlloc)
}

// readGauged reads r and fails t if that takes too much memory.
func readGauged(t *testing.T, r io.Reader, lim Limits, most uint64) (packages int, err error) {
	t.Helper()
	runtime.GC()
	g := &gauge{r: r}
	g.note()
	before := g.peak
	err = ReadPrimary(g, "primary.xml", lim, func(*Package) error {
		if packages++; packages%256 == 0 {
			g.note()
		}
		return nil
	})
	g.note()
	t.Logf("%d packages, heap of %d kB at most, %d kB before", packages, g.peak>>10, before>>10)
	if g.peak > most {
		t.Errorf("heap grew to %d bytes, %d are allowed", g.peak, most)
	}
	return packages, err
}

// TestMemory reads 60,000 packages: 12 times the same 5,000, compressed once, as all formats allow.
func TestMemory(t *testing.T) {
	const part, times = 5_000, 12
	dir := t.TempDir()
	for name, compress := range map[string]func(testing.TB, []byte) []byte{
		"none": func(_ testing.TB, b []byte) []byte { return b },
		"gz":   gz,
		"zst":  func(t testing.TB, b []byte) []byte { return zst(t, b, zstd.WithWindowSize(8<<20)) },
		"xz":   xzBytes,
	} {
		t.Run(name, func(t *testing.T) {
			if race && name == "xz" {
				t.Skip("takes a minute")
			}
			file := filepath.Join(dir, name) // what it takes in memory must not count
			middle := compress(t, generate(part))
			if err := os.WriteFile(file, slices.Concat(compress(t, []byte(primaryHead(part*times))), bytes.Repeat(middle, times), compress(t, []byte(primaryEnd))), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if n, err := readGauged(t, f, Limits{}, maxHeap); err != nil || n != part*times {
				t.Errorf("%d packages, %v", n, err)
			}
		})
	}
}

// endless begins with head and goes on with part.
func endless(head, part string) io.Reader {
	return io.MultiReader(strings.NewReader(head), &repeat{part: strings.Repeat(part, max(1, 4096/len(part)))})
}

type repeat struct {
	part string
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.part[r.at:])
	r.at = (r.at + n) % len(r.part)
	return n, nil
}

// gzipped compresses as it is read.
func gzipped(r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	z, _ := gzip.NewWriterLevel(pw, gzip.BestSpeed)
	go func() { // ends when the reader closes, or when the test's process does
		io.Copy(z, r)
	}()
	return pr
}

func TestEndless(t *testing.T) {
	for name, test := range map[string]struct {
		r    io.Reader
		lim  Limits
		want string
	}{
		"text":             {endless(head, "a"), Limits{}, "tag or text is longer"},
		"text in package":  {endless(head+"<package><summary>", "a "), Limits{}, "tag or text is longer"},
		"name":             {endless(head+"<package><name>", "a<b/>"), Limits{}, "longer than"},
		"space":            {endless(head, "\n"), Limits{OpenSize: 10 << 20}, "were declared"},
		"space after":      {endless(head+"</metadata>", "\n"), Limits{}, "tag or text is longer"},
		"space before":     {endless("", " "), Limits{}, "tag or text is longer"},
		"tag":              {endless(head+"<", "a"), Limits{}, "tag or text is longer"},
		"attributes":       {endless(head+"<package ", `a="" `), Limits{}, "tag or text is longer"},
		"attribute":        {endless(head+"<package a='", "a"), Limits{}, "tag or text is longer"},
		"comment":          {endless(head+"<!--", "a"), Limits{}, "tag or text is longer"},
		"cdata":            {endless(head+"<![CDATA[", "a"), Limits{}, "tag or text is longer"},
		"instruction":      {endless(head+"<?x ", "a"), Limits{}, "tag or text is longer"},
		"directive":        {endless("<!DOCTYPE x [", "<!ENTITY a 'a'>"), Limits{}, "tag or text is longer"},
		"depth":            {endless(head, "<a>"), Limits{}, "nested more than"},
		"depth in package": {endless(head+"<package>", "<a>"), Limits{}, "nested more than"},
		"prefixes":         {endless(head+"<package ", `xmlns:a="b" `), Limits{}, "tag or text is longer"},
		"entities":         {endless(head+"<package><name>", "&amp;"), Limits{}, "longer than"},
		"elements":         {endless(head+"<package>", "<a/>"), Limits{OpenSize: 6 << 20}, "were declared"},
		"comments":         {endless(head+"<package>", "<!---->"), Limits{OpenSize: 6 << 20}, "were declared"},
		"packages":         {endless(head, pkg("a", "")), Limits{}, "more than 4194304 packages"},
		"weird packages":   {endless(head, pkg("&#97;", "")), Limits{OpenSize: 2 << 20}, "were declared"},
		"file":             {endless(head, pkg("a", "")), Limits{Size: 10 << 20}, "file is longer than the 10485760 bytes that were declared"},
		"bomb":             {gzipped(endless(head, strings.Repeat(" ", 1<<20)+pkg("a", ""))), Limits{}, "where none was declared"},
		"declared bomb":    {gzipped(endless(head, pkg("a", ""))), Limits{OpenSize: 1 << 20}, "1048576 bytes that were declared"},
	} {
		t.Run(name, func(t *testing.T) {
			if race && name == "packages" {
				t.Skip("long")
			}
			_, err := readGauged(t, test.r, test.lim, maxHeap)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want one with %q", err, test.want)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// xzHeader is the beginning of an xz file whose first block asks for a dictionary.
func xzHeader(dict byte) []byte {
	b := []byte("\xfd7zXZ\x00\x00\x00")
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:8]))
	h := []byte{2, 0, 0x21, 1, dict, 0, 0, 0}
	return append(b, binary.LittleEndian.AppendUint32(h, crc32.ChecksumIEEE(h))...)
}

// TestWindows: what a file asks for is not what it gets.
func TestWindows(t *testing.T) {
	doc := sample(t, "primary.xml")
	raw := func(b []byte) []byte { // as an LZMA2 chunk
		return slices.Concat([]byte{1, byte((len(b) - 1) >> 8), byte(len(b) - 1)}, b, []byte{0})
	}
	tail := func(block []byte) []byte { return make([]byte, (4-len(block)%4)%4) }
	block := raw(doc)
	stream := func(dict byte) []byte { return slices.Concat(xzHeader(dict), block, tail(block)) }
	rest := slices.Concat([]byte{0, 1, 1, 1}, make([]byte, 4+12)) // index and footer
	for name, test := range map[string]struct {
		file []byte
		lim  Limits
		want string
	}{
		"xz of 4 GiB":              {stream(40), Limits{}, "refers 4294967295 bytes back"},
		"xz of 64 MiB":             {stream(28), Limits{OpenSize: 1 << 30}, "bytes back"},
		"xz of 4 GiB, known small": {slices.Concat(stream(40), rest), Limits{OpenSize: int64(len(doc))}, ""},
		"xz of 32 MiB":             {slices.Concat(stream(26), rest), Limits{}, ""},
		"xz of no such size":       {stream(41), Limits{}, "malformed xz"},
		"xz of small blocks": {slices.Concat(xzHeader(26)[:12], bytes.Repeat(slices.Concat(xzHeader(26)[12:], raw([]byte{' '}), []byte{0, 0, 0}), 1000)),
			Limits{}, "too many small blocks"},
		"zstd of 64 GiB": {[]byte("\x28\xb5\x2f\xfd\x00\xd0\x01\x00\x00"), Limits{}, "window size"},
		"zstd of 64 MiB": {[]byte("\x28\xb5\x2f\xfd\x00\x80\x01\x00\x00"), Limits{}, "window size"},
		"zstd in one":    {[]byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00"), Limits{}, "exceeds"},
		"zstd of 32 MiB": {append([]byte("\x28\xb5\x2f\xfd\x00\x78"), append([]byte{byte(len(doc)<<3 | 1), byte(len(doc) >> 5), byte(len(doc) >> 13)}, doc...)...), Limits{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readGauged(t, bytes.NewReader(test.file), test.lim, 2*maxWindow+8<<20) // the last block's may still be there
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestXZ: nothing is lost between blocks and streams, and what was cut fails. (The library's own container takes a file
// that ends between two blocks for whole.)
func TestXZ(t *testing.T) {
	want := sample(t, "primary.xml")
	for _, name := range []string{"primary.xml.xz", "streams.xml.xz"} {
		file := sample(t, name)
		read := func(n int) ([]byte, error) {
			return io.ReadAll(newXZ(bufio.NewReader(bytes.NewReader(file[:n])), int64(len(want))))
		}
		if got, err := read(len(file)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		ends := 0
		for i := range file {
			got, err := read(i)
			if err == nil && bytes.HasPrefix(want, got) && len(got) == 1500 && bytes.HasPrefix(bytes.TrimLeft(file[i:], "\x00"), []byte("\xfd7zXZ")) {
				ends++ // of the first stream: behind it, and behind each four bytes of padding
			} else if err == nil {
				t.Errorf("%s cut to %d: %d bytes and no error", name, i, len(got))
			}
		}
		if (ends == 3) != (name == "streams.xml.xz") {
			t.Errorf("%s can end in %d places", name, ends)
		}
	}
}
