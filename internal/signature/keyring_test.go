package signature

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestParseKeys(t *testing.T) {
	a, b := entity(t, making(born)), entity(t, making(born))
	pa, pb := public(t, a), public(t, b)
	var private bytes.Buffer
	if err := a.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	one := armored(t, publicBlock, pa)
	// A key of a version that nobody knows, with its user id.
	future := []byte{0xc0 | tagPublicKey, 6, 99, 0, 0, 0, 0, 1, 0xc0 | 13, 1, 'x'}
	both := bytes.Join([][]byte{pa, pb}, nil)
	for name, test := range map[string]struct {
		file []byte
		keys int
		want string // part of the error
	}{
		"armoured":             {file: one, keys: 1},
		"binary":               {file: pa, keys: 1},
		"two in a block":       {file: armored(t, publicBlock, both), keys: 2},
		"two binary":           {file: both, keys: 2},
		"two blocks":           {file: bytes.Join([][]byte{[]byte("Our keys:\n"), one, []byte("\nand\n"), armored(t, publicBlock, pb)}, nil), keys: 2},
		"without end of line":  {file: append(bytes.TrimSpace(one), armored(t, publicBlock, pb)...), keys: 2},
		"twice":                {file: append(bytes.Clone(one), one...), keys: 1},
		"CRLF":                 {file: bytes.ReplaceAll(one, []byte("\n"), []byte("\r\n")), keys: 1},
		"one of the future":    {file: append(bytes.Clone(future), pa...), keys: 1},
		"only of the future":   {file: future, want: "can be used"},
		"nothing":              {want: "there is no"},
		"HTML":                 {file: []byte("<html>"), want: "write it with gpg"},
		"a signature":          {file: sign(t, a, "", born), want: "can be used"},
		"armoured signature":   {file: sample(t, "text.asc"), want: "no OpenPGP public key"},
		"empty block":          {file: armored(t, publicBlock, nil), want: "it is empty"},
		"damaged base64":       {file: bytes.Replace(one, []byte("\nxj"), []byte("\nx*"), 1), want: "malformed"},
		"cut":                  {file: pa[:len(pa)-10], want: "damaged"},
		"private":              {file: private.Bytes(), want: "private key"},
		"armoured private":     {file: armored(t, privateBlock, private.Bytes()), want: "private key"},
		"private as public":    {file: armored(t, publicBlock, private.Bytes()), want: "private key"},
		"private beside":       {file: append(bytes.Clone(one), armored(t, privateBlock, private.Bytes())...), want: "private key"},
		"too long":             {file: append(bytes.Clone(one), make([]byte, maxKeys)...), want: "longer than"},
		"header without colon": {file: []byte("-----BEGIN " + publicBlock + "-----\nx\n\n" + strings.Repeat("-----BEGIN X-----\n\n", 3)), want: "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := ParseKeys(test.file)
			if test.want != "" {
				if err == nil || k != nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 300 {
					t.Fatalf("%v, want one with %q", err, test.want)
				}
				return
			}
			if err != nil || len(k.certs) != test.keys {
				t.Fatalf("%+v, %v; want %d keys", k, err, test.keys)
			}
			if by, err := k.Detached(strings.NewReader("x"), sign(t, a, "x", born)); err != nil || !strings.Contains(by, "Distribution <keys@example.org>") {
				t.Errorf("%q, %v", by, err)
			}
		})
	}
}

func TestMaxCerts(t *testing.T) {
	k := &Keyring{certs: make([]cert, maxCerts-1)}
	if err := k.add(cert{packets: []byte{1}}, cert{packets: []byte{1}}); err != nil {
		t.Error(err)
	}
	if err := k.add(cert{packets: []byte{2}}); err == nil || len(k.certs) != maxCerts {
		t.Errorf("%d keys, %v", len(k.certs), err)
	}
}

func TestReadKeys(t *testing.T) {
	a, b := entity(t, making(born)), entity(t, making(born))
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, content, 0o666); err != nil {
			t.Fatal(err)
		}
		return name
	}
	fa, fb := write("a", public(t, a)), write("b", public(t, b))
	k, err := ReadKeys(fa, fb, fa)
	if err != nil || len(k.certs) != 2 {
		t.Fatalf("%+v, %v", k, err)
	}
	for _, e := range []*packet.PrivateKey{a.PrivateKey, b.PrivateKey} {
		if _, err := k.Detached(strings.NewReader("x"), signBy(t, e, "x", born)); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]string{
		filepath.Join(dir, "none"):         "may read",
		dir:                                "directory",
		write("html", []byte("<html>")):    "gpg --armor --export",
		write("long", make([]byte, 2<<20)): "longer than 1048576",
	} {
		if _, err := ReadKeys(fa, name); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %s and %q", err, name, want)
		}
	}
}

// TestRealKeys reads the keys of distributions. Each, or a subkey of it, could sign a month after it was made, though some
// have expired since.
func TestRealKeys(t *testing.T) {
	dir := mirrortest.Fixtures(t, "release-packages")
	names, err := filepath.Glob(filepath.Join(dir, "*", "keys", "*"))
	if err != nil || len(names) < 30 {
		t.Fatalf("%d files of keys, %v: too few", len(names), err)
	}
	k, err := ReadKeys(names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range k.certs {
		e, err := c.parse()
		if err != nil {
			t.Fatal(err)
		}
		var last error
		if !slices.ContainsFunc(c.ids, func(id uint64) bool {
			_, last = signer(e, id, e.PrimaryKey.CreationTime.Add(year/12))
			return last == nil
		}) {
			t.Errorf("%016X: %v", e.PrimaryKey.KeyId, last)
		}
	}
	t.Logf("%d keys in %d files", len(k.certs), len(names))
}

func FuzzParseKeys(f *testing.F) {
	f.Add(sample(f, "key.asc"))
	e := entity(f, making(born))
	f.Add(public(f, e))
	f.Add(bytes.Join([][]byte{sample(f, "key.asc"), armored(f, publicBlock, public(f, e))}, nil))
	f.Add([]byte("-----BEGIN " + publicBlock + "-----\n\n"))
	sig := sample(f, "text.asc")
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKeys(b)
		if err != nil {
			return
		}
		if len(k.certs) == 0 {
			t.Fatal("no keys and no error")
		}
		for _, c := range k.certs {
			e, err := c.parse()
			if err != nil || len(c.ids) == 0 {
				t.Fatalf("%x: %v", c.packets, err)
			}
			_, _ = signer(e, c.ids[len(c.ids)-1], born)
		}
		if _, err := k.Detached(strings.NewReader("another text"), sig); err == nil {
			t.Fatal("somebody signed what nobody signed")
		}
	})
}
