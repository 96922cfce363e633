package signature

import (
	"bytes"
	"crypto"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestMain(m *testing.M) { mirrortest.Main(m) }

const year = 365 * 24 * time.Hour

// born is when keys here are made, unless a test says otherwise: long ago.
var born = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// making is how a key is made or signs, by default with Ed25519.
func making(at time.Time, change ...func(*packet.Config)) *packet.Config {
	c := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, Time: func() time.Time { return at }}
	for _, f := range change {
		f(c)
	}
	return c
}

func lasting(d time.Duration) func(*packet.Config) {
	return func(c *packet.Config) { c.KeyLifetimeSecs = uint32(d / time.Second) }
}

// entity makes a key.
func entity(t testing.TB, c *packet.Config) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Distribution", "", "keys@example.org", c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// public is e as ParseKeys reads it.
func public(t testing.TB, e *openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func keyring(t testing.TB, e ...*openpgp.Entity) *Keyring {
	t.Helper()
	all := new(Keyring)
	for _, e := range e {
		k, err := ParseKeys(public(t, e))
		if err == nil {
			err = all.add(k.certs...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// sign makes a binary signature of text at a time by e's primary key, whether that is valid then or not.
func sign(t testing.TB, e *openpgp.Entity, text string, at time.Time, change ...func(*packet.Signature)) []byte {
	t.Helper()
	return signBy(t, e.PrivateKey, text, at, change...)
}

func signBy(t testing.TB, key *packet.PrivateKey, text string, at time.Time, change ...func(*packet.Signature)) []byte {
	t.Helper()
	sig := &packet.Signature{
		Version: key.Version, SigType: packet.SigTypeBinary, PubKeyAlgo: key.PubKeyAlgo, Hash: crypto.SHA256,
		CreationTime: at, IssuerKeyId: &key.KeyId,
	}
	for _, f := range change {
		f(sig)
	}
	h := sig.Hash.New()
	var w io.Writer = h
	if sig.SigType == packet.SigTypeText {
		w = openpgp.NewCanonicalTextHash(h)
	}
	io.WriteString(w, text)
	var b bytes.Buffer
	err := sig.Sign(h, key, making(at))
	if err == nil {
		err = sig.Serialize(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func armored(t testing.TB, kind string, packets []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, kind, nil)
	if err == nil {
		_, err = w.Write(packets)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}
