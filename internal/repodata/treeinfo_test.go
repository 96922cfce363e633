package repodata

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

var update = flag.Bool("update", false, "rewrite testdata/treeinfo.golden from the fixtures")

// sha is some digest, another one for each text.
func sha(text string) digest.Sum { return sumsOf(text)(digest.SHA256) }

// images are what a file names without saying more of them.
func images(paths ...string) (list []Image) {
	for _, p := range paths {
		list = append(list, Image{Path: p, Size: -1})
	}
	return list
}

var treeinfos = []struct {
	name, text string
	want       Treeinfo
}{
	{"before productmd", `[general]
family = Fedora
timestamp = 1180248453.92
variant = Fedora
totaldiscs = 6
version = 7
discnum = 2
packagedir = Fedora
arch = ppc

[images-ppc64]
kernel = ppc/ppc64/vmlinuz
zimage =
[images-ppc]
kernel = ppc/ppc32/vmlinuz
initrd = ppc/ppc32/ramdisk.image.gz

[stage2]
instimage = images/minstg2.img
mainimage = images/stage2.img
other = images/other.img

[checksums]
images/stage2.img = ` + sha("stage2").Hex() + `
images/minstg2.img = ` + sumsOf("min")(digest.MD5).Hex(),
		Treeinfo{Family: "Fedora", Version: "7", Arch: "ppc", Variant: "Fedora", Timestamp: 1180248453, Disc: 2, Discs: 6,
			Images: []Image{
				{"images/minstg2.img", sumsOf("min")(digest.MD5), -1},
				{"images/stage2.img", sha("stage2"), -1},
				{"ppc/ppc32/ramdisk.image.gz", digest.Sum{}, -1},
				{"ppc/ppc32/vmlinuz", digest.Sum{}, -1},
				{"ppc/ppc64/vmlinuz", digest.Sum{}, -1},
			},
			Variants: []Variant{{ID: "Fedora", PackagesDir: "Fedora"}}}},
	{"productmd", `[checksums]
images/boot.iso = sha256:` + sha("iso").Hex() + `
repodata/repomd.xml = sha256:` + sha("repomd").Hex() + `

[general]
; WARNING.0 = This section provides compatibility with pre-productmd treeinfos.
arch = x86_64
family = CentOS Stream
packagedir = Packages
repository = .
timestamp = 1
variant = BaseOS
version = 10

[header]
type = productmd.treeinfo
version = 1.2

[images-x86_64]
boot.iso = images/boot.iso
initrd = images/pxeboot/initrd.img

[images-xen]
initrd = images/pxeboot/initrd.img

[media]
discnum = 1
totaldiscs = 1

[release]
name = Somebody else
version = 11

[tree]
arch = ppc64le
build_timestamp = 1728999799

[variant-BaseOS]
id = BaseOS
packages = Packages
repository = .
source_packages = ../source/tree/Packages
source_repository = ../source/tree
debug_packages = ../debug/tree/Packages
debug_repository = ../debug/tree

[variant-AppStream]
repository = ../../../AppStream/x86_64/os/

[addon-BaseOS-HA]
repository = addons/HA
`,
		Treeinfo{Family: "CentOS Stream", Version: "10", Arch: "x86_64", Variant: "BaseOS", Timestamp: 1728999799, Disc: 1, Discs: 1,
			Images: []Image{
				{"images/boot.iso", sha("iso"), -1},
				{"images/pxeboot/initrd.img", digest.Sum{}, -1},
				{"repodata/repomd.xml", sha("repomd"), -1},
			},
			Variants: []Variant{
				{"BaseOS", ".", "../source/tree", "../debug/tree", "Packages", "../source/tree/Packages", "../debug/tree/Packages"},
				{ID: "AppStream", Repository: "../../../AppStream/x86_64/os/"},
				{ID: "BaseOS-HA", Repository: "addons/HA"},
			}}},
	{"the variant of a disc", "[general]\nvariant = minimal\nrepository = minimal\npackagedir = minimal/Packages\n[variant-BaseOS]\nrepository = BaseOS\n",
		Treeinfo{Variant: "minimal", Variants: []Variant{{ID: "BaseOS", Repository: "BaseOS"}, {ID: "minimal", Repository: "minimal", PackagesDir: "minimal/Packages"}}}},
	{"a variant that is there", "[general]\nvariant = optional\nrepository = .\n[variant-Server-optional]\nrepository = .\n",
		Treeinfo{Variant: "optional", Variants: []Variant{{ID: "Server-optional", Repository: "."}}}},
	{"only release and tree", "[release]\nname=openSUSE Leap\nversion=15.6\n[tree]\narch=x86_64\n",
		Treeinfo{Family: "openSUSE Leap", Version: "15.6", Arch: "x86_64"}},
	{"product", "[product]\nname=SL\nversion=7\n", Treeinfo{Family: "SL", Version: "7"}},
	{"only images", "[images-a]\nkernel=linux\n", Treeinfo{Images: images("linux")}},

	{"separators and spaces", "[general]\nfamily=A\nversion :  2 \n\tarch = x\n[ignored]\nfamily = B\n[images-x]\na=./b//c/./d\n  \n",
		Treeinfo{Family: "A", Version: "2 arch = x", Images: images("b/c/d")}},
	{"no newline at the end, CRLF, byte order mark", "\xef\xbb\xbf[general]\r\nfamily = A\r\n\r\n[stage2]\r\nmainimage = b",
		Treeinfo{Family: "A", Images: images("b")}},
	{"comments", "# one\n; two = 2\n[general]\n  # family = B\nfamily = A ; B\n;version = 1\n#version = 2\n", Treeinfo{Family: "A ; B"}},
	{"values that go on", "[checksums]\nb =\n   sha256:" + sha("b").Hex() + "\n# not the end\n\n[general]\nvariant =\n\n  A\n\n  B\narch = c",
		Treeinfo{Variant: "A B", Arch: "c", Images: []Image{{"b", sha("b"), -1}}, Variants: []Variant{{ID: "A B"}}}},
	{"all is indented", "  [general]\n  family = A\n    B\n  version = 1\n  [stage2]\n  mainimage = b\n",
		Treeinfo{Family: "A B", Version: "1", Images: images("b")}},
	{"twice", "[general]\nfamily=A\nFamily=B\n[variant-a]\nrepository=a\n[general]\nversion=1\n[variant-b]\nrepository=b\n[variant-a]\nrepository=c\npackages=P\n[images-x]\nk=1\nk=2\n",
		Treeinfo{Family: "B", Version: "1", Images: images("1", "2"), Variants: []Variant{{ID: "a", Repository: "c", PackagesDir: "P"}, {ID: "b", Repository: "b"}}}},
	{"not UTF-8", "[general]\nfamily = Distribuci\xf3n\x01\nversion = \u00fc\n", Treeinfo{Family: "Distribuci n", Version: "\u00fc"}},
	{"digests", "[checksums]\na = sha256:" + sha("a").Hex() + "\n./a = SHA256: " + strings.ToUpper(sha("a").Hex()) + "\n" +
		"b = sha256:" + sha("b").Hex() + "\nb = md5:" + sumsOf("c")(digest.MD5).Hex() + "\nb = sha256:" + sha("b").Hex() + "\n" +
		"c = sha256:" + sha("c").Hex() + "\nc = sha256:" + sha("d").Hex() + "\nc = sha256:" + sha("c").Hex() + "\n" +
		"d = sha256:" + sha("d").Hex() + "\nd = sha512:" + sumsOf("d")(digest.SHA512).Hex() + "\n" +
		"e = crc32:01234567\nf = sha256:12345\ng =\nG = " + sumsOf("g")(digest.SHA1).Hex() + "\n",
		Treeinfo{Images: []Image{{"G", sumsOf("g")(digest.SHA1), -1}, {"a", sha("a"), -1}, {"b", sha("b"), -1}, {"c", digest.Sum{}, -1},
			{"d", sumsOf("d")(digest.SHA512), -1}, {"e", digest.Sum{}, -1}, {"f", digest.Sum{}, -1}, {"g", digest.Sum{}, -1}}}},
	{"absurd values", "[general]\nfamily = " + strings.Repeat("x", 256) + "\ntimestamp = -5\n[tree]\nbuild_timestamp = nan\n[media]\ndiscnum = 1e3\ntotaldiscs = 123456\n",
		Treeinfo{}},
	{"too late a time", "[tree]\nbuild_timestamp = 1e300\n[general]\ntimestamp = 9\n", Treeinfo{}},
}

func TestParseTreeinfo(t *testing.T) {
	for _, test := range treeinfos {
		got, err := ParseTreeinfo(strings.NewReader(test.text))
		if err != nil || !reflect.DeepEqual(*got, test.want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", test.name, err, got, test.want)
		}
	}
}

// manyImages is a .treeinfo of n entries.
func manyImages(n int) string {
	var b strings.Builder
	b.WriteString("[images-x86_64]\n")
	for i := range n - 1 {
		fmt.Fprintf(&b, "k%d=%d\n", i, i)
	}
	return b.String()
}

func TestTreeinfoBounds(t *testing.T) {
	whole := "[general]\nfamily = A\n"
	for _, test := range []struct {
		name, text, want string // "": it is read
	}{
		{"10,000 entries", manyImages(10_000), ""},
		{"10,001 entries", manyImages(10_001), "more than 10000 entries"},
		{"10,001 sections", strings.Repeat("[general]\n", 10_001), "more than 10000 entries"},
		{"1 MiB", whole + strings.Repeat("\n", 1<<20-len(whole)), ""},
		{"more than 1 MiB", whole + strings.Repeat("\n", 1<<20-len(whole)+1), "longer than the 1048576 bytes"},
		{"a line of 8 KiB", whole + "a = " + strings.Repeat("x", 8<<10-5) + "\n", ""},
		{"a longer line", whole + "a = " + strings.Repeat("x", 8<<10-4) + "\n", "line 3 is longer than 8192 bytes"},
		{"a value that goes on for long", whole + "a = \n" + strings.Repeat(" x\n", 4097), "line 3: its value is longer than 8192 bytes"},
		{"a path of 4 kB", "[stage2]\nmainimage = " + strings.Repeat("x/", 2047) + "x", ""},
		{"a longer path", "[stage2]\nmainimage = " + strings.Repeat("x/", 2048) + "x", "longer than 4096 bytes"},
		{"a long name", "[stage2]\nmainimage = " + strings.Repeat("x", 256), "longer than 255 bytes"},
		{"empty", "", "has none of the sections"},
		{"nothing that we know", "[a]\nb = c\n[images-]\nd = e\n[variant-]\nrepository = f\n[stage2]\ng = h\n", "has none of the sections"},
		{"a web page", "\n<!DOCTYPE html>\n<html lang=\"en\">\n", "line 2: \"<!DOCTYPE html>\" is no key = value of a [section]"},
		{"a key before any section", "family = A\n[general]\n", "line 1: \"family = A\" is no key = value of a [section]"},
		{"no key", whole + "= b\n", "line 3: \"= b\""},
		{"no value", whole + "cut of", "line 3: \"cut of\""},
		{"no section", whole + "[images-x86_64\n", "line 3: \"[images-x86_64\" is no [section]"},
		{"a section without a name", "[]\n", "line 1: \"[]\" is no [section]"},
		{"an image above the tree", whole + "\n[images-x86_64]\nkernel = ../vmlinuz\n", "line 5: image \"../vmlinuz\" leads out of the tree"},
		{"an image that comes back", "[stage2]\nmainimage = images/../install.img", "line 2: image \"images/../install.img\" leads out of the tree"},
		{"an absolute one", "[stage2]\ninstimage = /images/install.img", "line 2: image \"/images/install.img\" is not relative"},
		{"one on another host", "[images-x86_64]\nkernel = http://a.example/vmlinuz", "line 2: image \"http://a.example/vmlinuz\" is not relative"},
		{"a checksum above the tree", "[checksums]\n../a = sha256:00\n", "line 2: image \"../a\" leads out of the tree"},
		{"a directory", "[checksums]\na/ = sha256:00\n", "names no file"},
		{"the tree", "[checksums]\n. = sha256:00\n", "names no file"},
		{"what is private", "[checksums]\n.instantmirror/lock = sha256:00\n", "leads out of the mirror"},
		{"a control character", "[checksums]\na\x00b = sha256:00\n", "holds the character"},
		{"a path of two lines", "[stage2]\nmainimage = a\n b\n", "line 2: image \"a\\nb\" holds the character '\\n'"},
		{"a path that is not UTF-8", "[stage2]\nmainimage = a\xff", "holds the character"},
		{"a backslash", "[stage2]\nmainimage = a\\b", "holds the character"},
	} {
		got, err := ParseTreeinfo(strings.NewReader(test.text))
		if test.want == "" && err != nil || test.want != "" && (err == nil || got != nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := ParseTreeinfo(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(whole)))); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a reader that fails: %v", err)
	}
}

func TestRepositories(t *testing.T) {
	const tree = "pub/10-stream/BaseOS/x86_64/os"
	for _, test := range []struct{ tree, written, want string }{ // "!": what the error says
		{tree, ".", tree},
		{tree, "./", tree},
		{tree, "addons/HA", tree + "/addons/HA"},
		{tree, "../../../AppStream/x86_64/os/", "pub/10-stream/AppStream/x86_64/os"},
		{tree, "..", "pub/10-stream/BaseOS/x86_64"},
		{tree, "Server/repodata", tree + "/Server"},
		{tree, "repodata/", tree},
		{tree, "a b", tree + "/a b"},
		{tree, "../../../../..", ""},
		{"", ".", ""},
		{"", "BaseOS", "BaseOS"},
		{tree, "../../../../../..", "!leads out of the mirror"},
		{"", "..", "!leads out of the mirror"},
		{tree, "../../../../../.instantmirror", "!leads out of the mirror"},
		{tree, "/pub/a", "!not on this mirror"},
		{tree, "http://a.example/os", "!not on this mirror"},
		{tree, "//a.example/os", "!not on this mirror"},
		{tree, "media:a", "!not on this mirror"},
		{tree, "a\x7f", "!holds the character"},
		{tree, strings.Repeat("x", 256), "!longer than 255 bytes"},
	} {
		got, err := JoinRepository(test.tree, test.written)
		if why, bad := strings.CutPrefix(test.want, "!"); bad && (err == nil || !strings.Contains(err.Error(), why)) || !bad && (err != nil || got != test.want) {
			t.Errorf("%q of %s: %q, %v; want %q", test.written, test.tree, got, err, test.want)
		}
	}
	var info Treeinfo
	for want, variants := range map[string][]Variant{
		"[" + tree + "]":                        {{ID: "a", PackagesDir: "Packages"}},
		"[" + tree + " pub/10-stream/BaseOS/a]": {{Repository: "."}, {Repository: "./", SourceRepository: "../../a"}},
		"[" + tree + "/a " + tree + "/b]":       {{Repository: "a"}, {}, {DebugRepository: "b", SourceRepository: "a/"}},
		"[]":                                    {{Repository: "a"}, {ID: "far", Repository: "https://a.example/os"}},
	} {
		info.Variants = variants
		if got, err := info.Repositories(tree); fmt.Sprint(got) != want || (err != nil) != (want == "[]") || err != nil && !strings.Contains(err.Error(), "far") {
			t.Errorf("%+v: %v, %v; want %v", variants, got, err, want)
		}
	}
}

// realTreeinfos are the .treeinfo files in the fixtures, by their path below them.
func realTreeinfos(t *testing.T) map[string]*Treeinfo {
	t.Helper()
	dir := mirrortest.Fixtures(t)
	all := make(map[string]*Treeinfo)
	for _, name := range find(t, dir, func(string) bool { return true }) {
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		rel = filepath.ToSlash(rel)
		if path.Dir(rel) != "productmd/treeinfo" && !strings.HasSuffix(rel, ".treeinfo") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		all[rel], err = ParseTreeinfo(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			delete(all, rel)
		}
	}
	return all
}

// describe says of a .treeinfo what there is to see. Where it names many files (96 device trees of Fedora's armhfp),
// all but the first ones are said by one digest.
func describe(w *bytes.Buffer, info *Treeinfo) {
	fmt.Fprintf(w, "\t%q %q %q %q %d disc %d of %d\n", info.Family, info.Version, info.Arch, info.Variant, info.Timestamp, info.Disc, info.Discs)
	for _, v := range info.Variants {
		fmt.Fprintf(w, "\tvariant %q\n", v)
	}
	repos, err := info.Repositories("pub/a/b/c/os")
	fmt.Fprintf(w, "\trepositories %v %v\n", repos, err)
	const most = 20
	rest := sha256.New()
	for i, img := range info.Images {
		line := fmt.Sprintf("\t%s\n", img.Path)
		if !img.Sum.IsZero() {
			line = fmt.Sprintf("\t%s %s:%.16s\n", img.Path, img.Sum.Algorithm(), img.Sum.Hex())
		}
		if i < most {
			w.WriteString(line)
		} else {
			rest.Write([]byte(line))
		}
	}
	if more := len(info.Images) - most; more > 0 {
		fmt.Fprintf(w, "\tand %d more: %.8x\n", more, rest.Sum(nil))
	}
}

// TestRealTreeinfos: what each .treeinfo in the fixtures says is what testdata/treeinfo.golden has.
func TestRealTreeinfos(t *testing.T) {
	all := realTreeinfos(t)
	var got bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintln(&got, name)
		describe(&got, all[name])
	}
	const golden = "testdata/treeinfo.golden"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || len(all) < 101 {
		t.Fatalf("%d files, %v", len(all), err)
	}
	w, g := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			t.Fatalf("%s:%d is another one: look at it after go test ./internal/repodata -run 'TestRealTreeinfos$' -update", golden, i+1)
		}
	}
}

// TestRealTreeinfosLeaveOut counts what cannot be relied on: of 78 (without those of our release packages, which came
// later, and those that were cut down for productmd's tests) 20 have no checksums, 28 of the others leave out an image, 9
// leave out repomd.xml.
func TestRealTreeinfosLeaveOut(t *testing.T) {
	files, none, image, pointer := 0, 0, 0, 0
	for name, info := range realTreeinfos(t) {
		if base := strings.TrimPrefix(name, "productmd/treeinfo/"); strings.HasPrefix(name, "release-packages/") || strings.HasPrefix(base, "RHEL-") || base == "multivariants_treeinfo" {
			continue
		}
		files++
		sums, pointers := 0, 0
		for _, img := range info.Images {
			if !img.Sum.IsZero() {
				sums++
			}
			if strings.HasSuffix(img.Path, "repodata/repomd.xml") {
				pointers++
			}
		}
		switch {
		case sums == 0:
			none++
			continue
		case sums < len(info.Images):
			image++
		}
		if pointers == 0 {
			pointer++
		}
	}
	if files != 78 || none != 20 || image != 28 || pointer != 9 {
		t.Errorf("of %d files %d have no checksums, %d leave out an image, %d leave out repomd.xml; want 20, 28, 9 of 78", files, none, image, pointer)
	}
}

// checkImages: whatever was read, images are sorted, each is there once, and none is outside.
func checkImages(t *testing.T, list []Image) {
	t.Helper()
	for i, img := range list {
		p := img.Path
		if p == "" || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "/") || strings.HasPrefix(p, "../") || len(p) > maxPath ||
			strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) || i > 0 && list[i-1].Path >= p || img.Size < -1 {
			t.Errorf("image %d: %+v", i, img)
		}
	}
	if len(list) > maxEntries {
		t.Errorf("%d images", len(list))
	}
}

func FuzzTreeinfo(f *testing.F) {
	for _, test := range treeinfos {
		f.Add([]byte(test.text))
	}
	for _, s := range []string{"[a", "[general]\na", "=", "[checksums]\n../a=b", "[stage2]\nmainimage=\n \xff\n", "[variant-a]\nrepository=../..\nsource_repository=http://a\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := ParseTreeinfo(bytes.NewReader(text))
		again, againErr := ParseTreeinfo(iotest.HalfReader(bytes.NewReader(text)))
		if fmt.Sprint(err) != fmt.Sprint(againErr) || !reflect.DeepEqual(info, again) {
			t.Fatalf("whole: %+v, %v; in pieces: %+v, %v", info, err, again, againErr)
		}
		if err != nil {
			if info != nil || len(err.Error()) > 800 {
				t.Errorf("%+v beside an error of %d bytes", info, len(err.Error()))
			}
			return
		}
		checkImages(t, info.Images)
		for _, s := range []string{info.Family, info.Version, info.Arch, info.Variant} {
			if len(s) > maxLabel || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%q", s)
			}
		}
		if info.Timestamp < 0 || info.Disc < 0 || info.Discs < 0 || len(info.Variants) > maxEntries {
			t.Errorf("%+v", info)
		}
		repos, err := info.Repositories("a/b")
		for _, r := range repos {
			if "/"+r != path.Clean("/"+r) || strings.HasPrefix(r, "/") || r == ".." || strings.HasPrefix(r, "../") || strings.HasSuffix(r, "/") {
				t.Errorf("repository %q", r)
			}
		}
		if err == nil != (len(repos) > 0) || err != nil && len(err.Error()) > 2000 {
			t.Errorf("%d repositories, %v", len(repos), err)
		}
		// What was read of the images is read again from what it says.
		var b strings.Builder
		b.WriteString("[checksums]\n")
		for _, img := range info.Images {
			if strings.ContainsAny(img.Path, "=:") || strings.TrimSpace(img.Path) != img.Path || strings.IndexAny(img.Path, "#;[") == 0 {
				return
			}
			fmt.Fprintf(&b, "%s=", img.Path)
			if !img.Sum.IsZero() {
				b.WriteString(img.Sum.String())
			}
			b.WriteString("\n")
		}
		if len(info.Images) == 0 || b.Len() > maxListing {
			return
		}
		if again, err := ParseTreeinfo(strings.NewReader(b.String())); err != nil || !slices.Equal(again.Images, info.Images) {
			t.Errorf("%v\n%+v\nagain %+v", err, info.Images, again)
		}
	})
}
