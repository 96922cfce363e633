package repodata

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// clearSign puts text into the wrapper of a clear-signed message, as GnuPG does.
func clearSign(text string) string {
	return "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + text + "-----BEGIN PGP SIGNATURE-----\n\n" +
		"iQIcBAEBCAAGBQJSqoTRAAoJEC6xYfokYRDBKigQAKxeo4cfjxIA8zJbtuIP9xS7\n=aLSh\n-----END PGP SIGNATURE-----\n"
}

var (
	gnu = sha("dvd").Hex() + "  dvd.iso\n" + sha("boot").Hex() + " *boot.iso\n"
	bsd = "# dvd.iso: 5000000000 bytes\nSHA256 (dvd.iso) = " + sha("dvd").Hex() + "\n# boot.iso: 0 bytes\nSHA256 (boot.iso) = " + sha("boot").Hex() + "\n"
	two = []Image{{"boot.iso", sha("boot"), -1}, {"dvd.iso", sha("dvd"), -1}}
)

var checksumLists = []struct {
	name, text string
	want       []Image
}{
	{"GNU", gnu, two},
	{"BSD, as Fedora writes it", bsd, []Image{{"boot.iso", sha("boot"), 0}, {"dvd.iso", sha("dvd"), 5_000_000_000}}},
	{"clear-signed", clearSign("# The image checksum(s) are generated with sha256sum.\n" + gnu), two},
	{"clear-signed, without headers, CRLF", strings.ReplaceAll(strings.Replace(clearSign(gnu), "Hash: SHA256\n", "", 1), "\n", "\r\n"), two},
	{"dashes", clearSign("- -----BEGIN PGP SIGNATURE-----\n- " + gnu + "- SHA1 (-a) = " + sumsOf("a")(digest.SHA1).Hex() + "\n" + sha("b").Hex() + " - b\n"),
		append([]Image{{"- b", sha("b"), -1}, {"-a", sumsOf("a")(digest.SHA1), -1}}, two...)},
	{"what was not signed", "# dvd.iso: 1 bytes\n" + sha("not").Hex() + "  dvd.iso\n" + sha("not").Hex() + "  not.iso\n" + clearSign(gnu) + sha("not").Hex() + "  not.iso\n" +
		clearSign(sha("not").Hex()+"  not.iso\n"), two},
	{"only a signature", gnu + "-----BEGIN PGP SIGNATURE-----\n\niQIcBAEBCAAGBQJSqoTRAAoJEC6xYfokYRDBKigQAKxeo4cfjxIA8zJbtuIP9xS7\n", two},
	{"mixed", "SHA512 (dvd.iso) = " + sumsOf("dvd")(digest.SHA512).Hex() + "\nmd5(a)=" + sumsOf("a")(digest.MD5).Hex() + "\n" + gnu + "CHECKSUM of (all) = none\n<html>\n",
		[]Image{{"a", sumsOf("a")(digest.MD5), -1}, {"boot.iso", sha("boot"), -1}, {"dvd.iso", sumsOf("dvd")(digest.SHA512), -1}}},
	{"all lengths, no newline at the end", sumsOf("a")(digest.MD5).Hex() + "\ta\n" + sumsOf("b")(digest.SHA1).Hex() + "  b\n" + sumsOf("c")(digest.SHA224).Hex() + " c\n" +
		strings.ToUpper(sha("d").Hex()) + "  d  \n" + sumsOf("e")(digest.SHA384).Hex() + "  e\n" + sumsOf("f")(digest.SHA512).Hex() + "  f",
		[]Image{{"a", sumsOf("a")(digest.MD5), -1}, {"b", sumsOf("b")(digest.SHA1), -1}, {"c", sumsOf("c")(digest.SHA224), -1}, {"d", sha("d"), -1},
			{"e", sumsOf("e")(digest.SHA384), -1}, {"f", sumsOf("f")(digest.SHA512), -1}}},
	{"names", sha("a").Hex() + "  ./a b/c.iso\n" + sha("b").Hex() + "  *star\nSHA256 (par(en) = x).iso) = " + sha("c").Hex() + "\n",
		[]Image{{"*star", sha("b"), -1}, {"a b/c.iso", sha("a"), -1}, {"par(en) = x).iso", sha("c"), -1}}},
	{"names that are not below", gnu + sha("a").Hex() + "  ../a\n" + sha("a").Hex() + "  /srv/a\n" + sha("a").Hex() + "  a/\n" + sha("a").Hex() + "  \n" + sha("a").Hex() + "\n" +
		sha("a").Hex() + "  a\xff\n\\" + sha("a").Hex() + "  a\\\\b\nSHA256 () = " + sha("a").Hex() + "\n# ../a: 5 bytes\nSHA256 (a\\b) = " + sha("a").Hex() + "\n", two},
	{"what contradicts itself", bsd + gnu + "# dvd.iso: 5 bytes\n# dvd.iso: 5 bytes\n" + sha("other").Hex() + "  boot.iso\n", two[1:]},
	{"sizes that are none", "# dvd.iso: -5 bytes\n# dvd.iso: 5 bytes or so\n# dvd.iso 5 bytes\n# boot.iso: 99999999999999999999 bytes\n# only.iso: 5 bytes\n" + gnu, two},
}

func TestParseChecksums(t *testing.T) {
	for _, test := range checksumLists {
		if got, err := ParseChecksums(strings.NewReader(test.text)); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", test.name, err, got, test.want)
		}
	}
}

func TestChecksumsBounds(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		hex := sumsOf("a")(digest.MD5).Hex()
		for i := range n {
			fmt.Fprintf(&b, "%s  %d\n", hex, i)
		}
		return b.String()
	}
	sizes := strings.Builder{}
	for i := range 10_001 {
		fmt.Fprintf(&sizes, "# %d: 1 bytes\n", i)
	}
	for _, test := range []struct {
		name, text, want string // "": it is read
	}{
		{"10,000 files", many(10_000), ""},
		{"10,001 files", many(10_001), "more than 10000 files"},
		{"10,001 sizes", gnu + sizes.String(), "more than 10000 files"},
		{"1 MiB", gnu + strings.Repeat("\n", 1<<20-len(gnu)), ""},
		{"more than 1 MiB", gnu + strings.Repeat("\n", 1<<20-len(gnu)+1), "longer than the 1048576 bytes"},
		{"a long line", gnu + strings.Repeat("x", 8<<10), "line 3 is longer than 8192 bytes"},
		{"1 TiB", "# dvd.iso: 1099511627776 bytes\n" + gnu, ""},
		{"more than 1 TiB", "# dvd.iso: 1099511627777 bytes\n" + gnu, "line 1: \"dvd.iso\" has 1099511627777 bytes"},
		{"empty", "", "names no file"},
		{"a web page", "<html><body>checksums (all) = none</body></html>\n", "names no file"},
		{"only a digest", sha("a").Hex() + "\n", "names no file"},
		{"only sizes", "# dvd.iso: 5 bytes\n", "names no file"},
		{"no digest that we know", "SHA3-256 (a) = " + sha("a").Hex() + "\nCRC (b) = 0123\nSHA256 (c) = 0123\n" + sha("a").Hex()[1:] + "  d\n" + strings.Repeat("g", 64) + "  e\n", "names no file"},
		{"only contradictions", sha("a").Hex() + "  a\n" + sha("b").Hex() + "  a\n", "names no file"},
		{"cut off", strings.TrimSuffix(clearSign(gnu), clearSign("")[50:]), "ends before its signature"},
		{"cut off in the headers", gnu + "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n", "ends before its signature"},
		{"a message in a message", clearSign(gnu + clearSign(gnu)), "line 6: \"-----BEGIN PGP SIGNED MESSAGE-----\" is no line of a signed message"},
		{"an empty message", gnu + clearSign(""), "names no file"},
		{"an empty message after sizes", "# a: 5 bytes\n" + clearSign(""), "names no file"},
	} {
		got, err := ParseChecksums(strings.NewReader(test.text))
		if test.want == "" && err != nil || test.want != "" && (err == nil || got != nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := ParseChecksums(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(gnu)))); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a reader that fails: %v", err)
	}
}

// TestRealChecksums reads Fedora's own.
func TestRealChecksums(t *testing.T) {
	for name, want := range map[string]struct {
		files int
		last  Image
	}{
		"Live/x86_64/Fedora-Live-x86_64-20-CHECKSUM":  {6, Image{"Fedora-Live-Xfce-x86_64-20-1.iso", mustSum(t, "sha256", "ebfe836aa708d38b66a7ae6fe685ef327772ece5700861bc7c4e83baef0ceb1b"), -1}},
		"Fedora/x86_64/iso/Fedora-20-x86_64-CHECKSUM": {2, Image{"Fedora-20-x86_64-netinst.iso", mustSum(t, "sha256", "376be7d4855ad6281cb139430606a782fd6189dcb01d7b61448e915802cc350f"), -1}},
	} {
		f, err := os.Open(mirrortest.Fixtures(t, "mirrormanager2/pub/fedora/linux/releases/20", name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseChecksums(f)
		f.Close()
		if err != nil || len(got) != want.files || got[len(got)-1] != want.last {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
	}
}

func FuzzChecksums(f *testing.F) {
	for _, test := range checksumLists {
		f.Add([]byte(test.text))
	}
	for _, s := range []string{"(", "()=", "#: 1 bytes", "# bytes", "-----BEGIN PGP SIGNED MESSAGE-----", clearSign("")} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseChecksums(bytes.NewReader(text))
		again, againErr := ParseChecksums(iotest.HalfReader(bytes.NewReader(text)))
		if fmt.Sprint(err) != fmt.Sprint(againErr) || !reflect.DeepEqual(list, again) {
			t.Fatalf("whole: %+v, %v; in pieces: %+v, %v", list, err, again, againErr)
		}
		if err != nil {
			if list != nil || len(err.Error()) > 800 {
				t.Errorf("%+v beside an error of %d bytes", list, len(err.Error()))
			}
			return
		}
		checkImages(t, list)
		var b strings.Builder
		for _, img := range list {
			if img.Sum.IsZero() || img.Size > maxImage {
				t.Errorf("%+v", img)
			}
			if img.Size >= 0 {
				fmt.Fprintf(&b, "# %s: %d bytes\n", img.Path, img.Size)
			}
			fmt.Fprintf(&b, "%s (%s) = %s\n", strings.ToUpper(img.Sum.Algorithm().String()), img.Path, img.Sum.Hex())
		}
		if len(list) == 0 || b.Len() > maxListing {
			return
		}
		if again, err := ParseChecksums(strings.NewReader(b.String())); err != nil || !slices.Equal(again, list) {
			t.Errorf("%v\n%+v\nagain %+v", err, list, again)
		}
	})
}
