package signature

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestDetached(t *testing.T) {
	const text = "repomd\nof a repository\n"
	known, stranger := entity(t, making(born)), entity(t, making(born))
	k := keyring(t, known)
	good, strange := sign(t, known, text, born), sign(t, stranger, text, born)
	bad := sign(t, known, text+"x", born)
	self := known.Identities["Distribution <keys@example.org>"].SelfCertifications[0].Packet
	var certification bytes.Buffer
	if err := self.Serialize(&certification); err != nil {
		t.Fatal(err)
	}
	with := func(f func(*packet.Signature)) []byte { return sign(t, known, text, born, f) }
	asText := with(func(s *packet.Signature) { s.SigType = packet.SigTypeText })
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	sha1 := bytes.Clone(good)
	sha1[5] = 2 // where its algorithm stands
	v3 := append([]byte{0xc0 | 2, 25}, make([]byte, 25)...)
	v3[2] = 3
	for name, test := range map[string]struct {
		sig  []byte
		text string // "": text
		want error
		why  string // part of the error
	}{
		"binary":             {sig: good},
		"armoured":           {sig: armored(t, signatureBlock, good)},
		"CRLF":               {sig: bytes.ReplaceAll(armored(t, signatureBlock, good), []byte("\n"), []byte("\r\n"))},
		"text":               {sig: asText},
		"text, CRLF":         {sig: asText, text: strings.ReplaceAll(text, "\n", "\r\n")},
		"binary, CRLF":       {sig: good, text: strings.ReplaceAll(text, "\n", "\r\n"), want: ErrBad},
		"another text":       {sig: good, text: text + " ", want: ErrBad, why: "Distribution <keys@example.org>"},
		"bad":                {sig: bad, want: ErrBad},
		"stranger":           {sig: strange, want: ErrUnknownKey, why: "on 2015-01-01; if you trust it"},
		"stranger and good":  {sig: join(strange, good)},
		"good and stranger":  {sig: join(good, strange)},
		"bad and good":       {sig: join(bad, good)},
		"unsupported, good":  {sig: join(v3, good)},
		"good and garbage":   {sig: join(good, []byte("garbage"))},
		"two blocks":         {sig: join(armored(t, signatureBlock, strange), armored(t, signatureBlock, good))},
		"stranger and bad":   {sig: join(strange, bad), want: ErrBad},
		"stranger and v3":    {sig: join(strange, v3), want: ErrUnsupported},
		"v3 and bad":         {sig: join(v3, bad), want: ErrBad},
		"v3":                 {sig: v3, want: ErrUnsupported, why: "version 3"},
		"good among many":    {sig: join(bytes.Repeat(bad, maxSignatures-1), good)},
		"good after many":    {sig: join(bytes.Repeat(bad, maxSignatures), good), want: ErrBad},
		"good after many v3": {sig: join(bytes.Repeat(v3, maxSignatures), good), want: ErrUnsupported},
		"SHA-1":              {sig: sha1, want: ErrUnsupported, why: "SHA-1"},
		"SHA-512":            {sig: with(func(s *packet.Signature) { s.Hash = crypto.SHA512 })},
		"critical notation":  {sig: with(notation(true)), want: ErrUnsupported, why: "x@example.org"},
		"notation":           {sig: with(notation(false))},
		"whose":              {sig: with(func(s *packet.Signature) { s.IssuerKeyId = nil })}, // its fingerprint tells
		"a certification":    {sig: certification.Bytes(), want: ErrBad, why: "0x1"},
		"nothing":            {want: ErrBad, why: "there is no"},
		"HTML":               {sig: []byte("<html>not found</html>"), want: ErrBad},
		"empty block":        {sig: armored(t, signatureBlock, nil), want: ErrBad},
		"a key":              {sig: public(t, known), want: ErrBad, why: "other than signatures"},
		"armoured key":       {sig: armored(t, publicBlock, public(t, known)), want: ErrBad},
		"cut":                {sig: good[:len(good)-1], want: ErrBad, why: "malformed"},
		"too long":           {sig: join(good, make([]byte, maxSignature)), want: ErrBad, why: "longer than"},
		"beginnings":         {sig: bytes.Repeat([]byte("-----BEGIN PGP SIGNATURE-----\n"), 8000), want: ErrBad},
		"packets of nothing": {sig: bytes.Repeat([]byte{0xc0 | 10, 3, 'P', 'G', 'P'}, 40000), want: ErrBad},
	} {
		t.Run(name, func(t *testing.T) {
			if test.text == "" {
				test.text = text
			}
			by, err := k.Detached(iotest.HalfReader(strings.NewReader(test.text)), test.sig)
			if test.want == nil {
				if want := fmt.Sprintf("%016X Distribution <keys@example.org>", known.PrimaryKey.KeyId); err != nil || by != want {
					t.Errorf("%q, %v", by, err)
				}
				return
			}
			if by != "" || !is(err, test.want) || !strings.Contains(err.Error(), test.why) || len(err.Error()) > 400 {
				t.Errorf("%q, %v; want %v with %q", by, err, test.want, test.why)
			}
		})
	}
}

// is reports whether err is this one of our errors, and none of the others.
func is(err, want error) bool {
	for _, kind := range []error{ErrBad, ErrUnsupported, ErrUnknownKey} {
		if errors.Is(err, kind) != (kind == want) {
			return false
		}
	}
	return true
}

func notation(critical bool) func(*packet.Signature) {
	return func(s *packet.Signature) {
		s.Notations = []*packet.Notation{{Name: "x@example.org", Value: []byte("y"), IsCritical: critical, IsHumanReadable: true}}
	}
}

// What is signed is read only where that can tell something, and its errors are its own.
func TestReading(t *testing.T) {
	known, stranger := entity(t, making(born)), entity(t, making(born))
	k := keyring(t, known)
	broken := errors.New("broken")
	if _, err := k.Detached(iotest.ErrReader(broken), sign(t, stranger, "x", born)); !is(err, ErrUnknownKey) {
		t.Error(err)
	}
	_, err := k.Detached(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)), sign(t, known, "x", born))
	if !errors.Is(err, broken) || !is(err, nil) {
		t.Error(err)
	}
}

// TestTimes has keys that are good at one time and not at another.
func TestTimes(t *testing.T) {
	revoked := func(reason packet.ReasonForRevocation, at time.Time) func(*openpgp.Entity) {
		return func(e *openpgp.Entity) {
			if err := e.Revoke(reason, "", making(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// prolonged has a new self-signature instead of the first.
	prolonged := func(at time.Time, d time.Duration) func(*openpgp.Entity) {
		return func(e *openpgp.Entity) {
			for _, id := range e.Identities {
				sig := id.SelfCertifications[0].Packet
				secs := uint32(d / time.Second)
				sig.CreationTime, sig.KeyLifetimeSecs = at, &secs
				if err := sig.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, making(at)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	life := func(d time.Duration) func(*packet.Signature) {
		return func(s *packet.Signature) {
			secs := uint32(d / time.Second)
			s.SigLifetimeSecs = &secs
		}
	}
	// direct has a self-signature of no user id, which says how long the key holds too.
	direct := func(d time.Duration) func(*openpgp.Entity) {
		return func(e *openpgp.Entity) {
			secs := uint32(d / time.Second)
			sig := &packet.Signature{
				Version: 4, SigType: packet.SigTypeDirectSignature, PubKeyAlgo: e.PrimaryKey.PubKeyAlgo, Hash: crypto.SHA256,
				CreationTime: born, KeyLifetimeSecs: &secs, IssuerKeyId: &e.PrimaryKey.KeyId,
			}
			if err := sig.SignDirectKeyBinding(e.PrimaryKey, e.PrivateKey, making(born)); err != nil {
				t.Fatal(err)
			}
			e.DirectSignatures = append(e.DirectSignatures, packet.NewVerifiableSig(sig))
		}
	}
	none := func(*packet.Signature) {}
	for name, test := range map[string]struct {
		life   time.Duration // of the key
		change func(*openpgp.Entity)
		signed time.Time
		sig    func(*packet.Signature)
		want   error
	}{
		"for ever":                   {signed: born.Add(10 * year)},
		"expired since":              {life: year, signed: born.Add(year / 2)},
		"expired before":             {life: year, signed: born.Add(year + time.Hour), want: ErrBad},
		"before it was made":         {signed: born.Add(-time.Hour), want: ErrBad},
		"prolonged after":            {life: year, change: prolonged(born.Add(11*year/12), 3*year), signed: born.Add(year / 2)},
		"prolonged before":           {life: year, change: prolonged(born.Add(11*year/12), 3*year), signed: born.Add(2 * year)},
		"prolonged, not enough":      {life: year, change: prolonged(born.Add(11*year/12), 3*year), signed: born.Add(4 * year), want: ErrBad},
		"by a direct signature":      {change: direct(year), signed: born.Add(year / 2)},
		"expired by it":              {change: direct(year), signed: born.Add(2 * year), want: ErrBad},
		"stolen later":               {change: revoked(packet.KeyCompromised, born.Add(2*year)), signed: born.Add(year), want: ErrBad},
		"revoked for no reason":      {change: revoked(packet.NoReason, born.Add(2*year)), signed: born.Add(year), want: ErrBad},
		"superseded later":           {change: revoked(packet.KeySuperseded, born.Add(2*year)), signed: born.Add(year)},
		"superseded before":          {change: revoked(packet.KeySuperseded, born.Add(2*year)), signed: born.Add(3 * year), want: ErrBad},
		"retired later":              {change: revoked(packet.KeyRetired, born.Add(2*year)), signed: born.Add(year)},
		"of the future":              {signed: time.Now().Add(year)},
		"signature holds":            {signed: time.Now().Add(-time.Hour), sig: life(2 * time.Hour)},
		"signature held":             {signed: time.Now().Add(-3 * time.Hour), sig: life(2 * time.Hour), want: ErrBad},
		"signature holds for ever":   {signed: born, sig: life(0)},
		"signature older than a key": {signed: time.Unix(1, 0), want: ErrBad},
	} {
		t.Run(name, func(t *testing.T) {
			e := entity(t, making(born, lasting(test.life)))
			if test.sig == nil {
				test.sig = none
			}
			sig := sign(t, e, "x", test.signed, test.sig)
			if test.change != nil {
				test.change(e)
			}
			if by, err := keyring(t, e).Detached(strings.NewReader("x"), sig); !is(err, test.want) {
				t.Errorf("%q, %v; want %v", by, err, test.want)
			}
		})
	}
}

// A key may be in a keyring twice, as it was and as it was prolonged: one that holds suffices.
func TestTwoStates(t *testing.T) {
	old := entity(t, making(born, lasting(year)))
	k := keyring(t, old)
	at := born.Add(2 * year)
	sig := sign(t, old, "x", at)
	if _, err := k.Detached(strings.NewReader("x"), sig); !is(err, ErrBad) {
		t.Fatal(err)
	}
	for _, id := range old.Identities {
		self := id.SelfCertifications[0].Packet
		self.CreationTime, self.KeyLifetimeSecs = born.Add(time.Hour), nil
		if err := self.SignUserId(id.UserId.Id, old.PrimaryKey, old.PrivateKey, making(born.Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.add(keyring(t, old).certs...); err != nil || len(k.certs) != 2 {
		t.Fatal(len(k.certs), err)
	}
	if _, err := k.Detached(strings.NewReader("x"), sig); err != nil {
		t.Error(err)
	}
}

func TestSubkeys(t *testing.T) {
	e := entity(t, making(born))
	if err := e.AddSigningSubkey(making(born)); err != nil {
		t.Fatal(err)
	}
	sub := e.Subkeys[len(e.Subkeys)-1]
	sig := signBy(t, sub.PrivateKey, "x", born.Add(time.Hour))
	if by, err := keyring(t, e).Detached(strings.NewReader("x"), sig); err != nil || !strings.Contains(by, "Distribution") {
		t.Errorf("%q, %v", by, err)
	}
	// It expires with its primary key, and by itself.
	for _, test := range []struct{ primary, sub time.Duration }{{year, 0}, {0, year}} {
		e := entity(t, making(born, lasting(test.primary)))
		if err := e.AddSigningSubkey(making(born, lasting(test.sub))); err != nil {
			t.Fatal(err)
		}
		k, key := keyring(t, e), e.Subkeys[len(e.Subkeys)-1].PrivateKey
		for at, want := range map[time.Duration]error{year / 2: nil, 2 * year: ErrBad} {
			if by, err := k.Detached(strings.NewReader("x"), signBy(t, key, "x", born.Add(at))); !is(err, want) {
				t.Errorf("%+v after %v: %q, %v; want %v", test, at, by, err, want)
			}
		}
	}
	// A subkey that is somebody else's did not consent: that one may not claim what it signed.
	thief := entity(t, making(born))
	stolen := sub
	stolen.Primary = thief
	thief.Subkeys = append(thief.Subkeys, stolen)
	if by, err := keyring(t, thief).Detached(strings.NewReader("x"), sig); !is(err, ErrUnsupported) {
		t.Errorf("%q, %v", by, err)
	}
}

func TestWeakKeys(t *testing.T) {
	weak := entity(t, making(born, func(c *packet.Config) { c.Algorithm, c.RSABits, c.MinRSABits = packet.PubKeyAlgoRSA, 1024, 1024 }))
	strong := entity(t, making(born, func(c *packet.Config) { c.Algorithm, c.RSABits = packet.PubKeyAlgoRSA, 2048 }))
	k := keyring(t, weak, strong)
	if _, err := k.Detached(strings.NewReader("x"), sign(t, weak, "x", born)); !is(err, ErrUnsupported) {
		t.Error(err)
	}
	if _, err := k.Detached(strings.NewReader("x"), sign(t, strong, "x", born)); err != nil {
		t.Error(err)
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	e := entity(t, making(born))
	k, sig := keyring(t, e), sign(t, e, "x", born)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := k.Detached(strings.NewReader("x"), sig); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestClear(t *testing.T) {
	s := mirrortest.NewSigner(t)
	const text = "# a\n- b\n\nFrom: c\n-----BEGIN PGP SIGNED MESSAGE-----\n"
	signed := s.ClearSign([]byte(text))
	k, err := ParseKeys(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	change := func(old, by string) []byte {
		if !bytes.Contains(signed, []byte(old)) {
			t.Fatalf("no %q in it", old)
		}
		return bytes.Replace(signed, []byte(old), []byte(by), 1)
	}
	around := func(before, after string) []byte { return []byte(before + string(signed) + after) }
	for name, test := range map[string]struct {
		message []byte
		want    error
	}{
		"good":                {signed, nil},
		"CRLF":                {bytes.ReplaceAll(signed, []byte("\n"), []byte("\r\n")), nil},
		"space at the end":    {change("# a\n", "# a \t\n"), nil},
		"text around it":      {around("before\n", "after\n"), nil},
		"another after it":    {around("", string(signed)), nil},
		"without hash header": {change("Hash: SHA256\n", ""), nil},
		"changed":             {change("# a", "# b"), ErrBad},
		"line added":          {change("# a\n", "# a\nb\n"), ErrBad},
		"line below header":   {change("Hash: SHA256\n", "Hash: SHA256\nComment: x\n"), ErrBad},
		"line above":          {change("Hash: SHA256\n\n", "Hash: SHA256\nx\n\n"), ErrBad},
		"not signed":          {[]byte(text), ErrBad},
		"cut":                 {signed[:len(signed)-40], ErrBad},
		"nothing":             {nil, ErrBad},
		"key for signature":   {append(change("-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----\nx\n"), s.Public()...), ErrBad},
		"damaged":             {change("\n\nwn", "\n\nw*"), ErrBad},
		"too long":            {around("", strings.Repeat("x", maxClear)), ErrBad},
		"of a stranger":       {mirrortest.NewSigner(t).ClearSign([]byte(text)), ErrUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			got, by, err := k.Clear(test.message)
			if test.want != nil {
				if got != nil || by != "" || !is(err, test.want) {
					t.Errorf("%q by %q, %v", got, by, err)
				}
				return
			}
			if err != nil || string(got) != text || !strings.HasSuffix(by, " mirrortest <mirrortest@example.org>") {
				t.Errorf("%q by %q, %v", got, by, err)
			}
		})
	}
}

// TestReal has signatures that others made.
func TestReal(t *testing.T) {
	dir := mirrortest.Fixtures(t)
	read := func(elem ...string) []byte {
		b, err := os.ReadFile(filepath.Join(append([]string{dir}, elem...)...))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, test := range []struct {
		key, file, sig string
		by             string
		want           error
	}{
		{"generated/RPM-GPG-KEY-rsa", "generated/signed-rsa/repodata/repomd.xml", "", "179F12203AFA7D02 Test RSA4096", nil},
		{"generated/RPM-GPG-KEY-ed", "generated/signed-ed25519/repodata/repomd.xml", "", "84E23CFC88C8AE66 Test ED25519", nil},
		{"generated/RPM-GPG-KEY-ed", "generated/signed-rsa/repodata/repomd.xml", "", "", ErrUnknownKey},
		{"generated/RPM-GPG-KEY-ed", "generated/signed-rsa/repodata/repomd.xml", "generated/signed-ed25519/repodata/repomd.xml.asc", "", ErrBad},
		{"librepo/test_data/key.pub", "librepo/test_data/repo_yum_01/repodata/repomd.xml", "", "97BDB7906441EDF5 repository signing key", nil},
		{"librepo/test_data/repo_yum_01/repodata/repomd.xml.key", "librepo/test_data/repo_yum_01/repodata/repomd.xml", "", "97BDB7906441EDF5", nil},
		{"librepo/test_data/repo_yum_01/repodata/repomd.xml.key", "librepo/test_data/repo_yum_01/repodata/repomd.xml", "librepo/test_data/repo_yum_01/repodata/repomd.xml_bad.sig", "", ErrUnsupported}, // SHA-1
		{"librepo/test_data/expired_test/expired_key.asc", "librepo/test_data/expired_test/test_data.txt", "", "5DFF8B9DDC1B3C1F expired test key", nil},
		{"libzypp/repo/yum/data/ZCHUNK/repodata/repomd.xml.key", "libzypp/repo/yum/data/ZCHUNK/repodata/repomd.xml", "", "86A334B60F0E9AE5 zypptestsuite", nil},
		{"libzypp/data/11.0-update/repodata/repomd.xml.key", "libzypp/data/11.0-update/repodata/repomd.xml", "", "", ErrUnsupported}, // version 3
	} {
		k, err := ReadKeys(filepath.Join(dir, test.key))
		if err != nil {
			t.Errorf("%s: %v", test.key, err)
			continue
		}
		if test.sig == "" {
			test.sig = test.file + ".asc"
		}
		by, err := k.Detached(bytes.NewReader(read(test.file)), read(test.sig))
		if !strings.HasPrefix(by, test.by) || (by == "") != (test.by == "") || !is(err, test.want) {
			t.Errorf("%s: %q, %v; want %v", test.file, by, err, test.want)
		}
	}
	// Fedora 20's CHECKSUM files are well-formed; its key is not among the fixtures.
	k, err := ReadKeys(filepath.Join(dir, "generated/RPM-GPG-KEY-rsa"))
	if err != nil {
		t.Fatal(err)
	}
	message := read("mirrormanager2/pub/fedora/linux/releases/20/Fedora/x86_64/iso/Fedora-20-x86_64-CHECKSUM")
	if _, _, err := k.Clear(message); !is(err, ErrUnknownKey) || !strings.Contains(err.Error(), "2EB161FA246110C1, on 2013-12-1") {
		t.Error(err)
	}
}

func FuzzDetached(f *testing.F) {
	k, err := ParseKeys(sample(f, "key.asc"))
	if err != nil {
		f.Fatal(err)
	}
	text, sig := sample(f, "text"), sample(f, "text.asc")
	binary, err := unarmor(sig, signatureBlock)
	if err != nil {
		f.Fatal(err)
	}
	e := entity(f, making(born))
	for _, s := range [][]byte{
		sig, binary, bytes.Repeat(binary, 3), append(sign(f, e, "x", born), binary...), append(binary[:2:2], 3),
		sign(f, e, "x", born, func(s *packet.Signature) { s.SigType = packet.SigTypeText }), sample(f, "text.clear"),
	} {
		f.Add(text, s)
	}
	f.Fuzz(func(t *testing.T, signed, sig []byte) {
		if by, err := k.Detached(bytes.NewReader(signed), sig); err == nil && (!bytes.Equal(signed, text) || by == "") {
			t.Fatalf("%q signed %q", by, signed)
		} else if err != nil && is(err, nil) {
			t.Fatalf("%v is none of ours", err)
		}
	})
}

func FuzzClear(f *testing.F) {
	k, err := ParseKeys(sample(f, "key.asc"))
	if err != nil {
		f.Fatal(err)
	}
	message := sample(f, "text.clear")
	want, _, err := k.Clear(message)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(message)
	f.Add(append([]byte("x\n"), message...))
	f.Add(bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n")))
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\n\n- -\n-----BEGIN PGP SIGNATURE-----\n\n\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, message []byte) {
		if text, by, err := k.Clear(message); err == nil && (!bytes.Equal(text, want) || by == "") {
			t.Fatalf("%q signed %q", by, text)
		} else if err != nil && (text != nil || is(err, nil)) {
			t.Fatalf("%q, %v", text, err)
		}
	})
}
