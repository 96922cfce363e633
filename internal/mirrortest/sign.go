package mirrortest

import (
	"bytes"
	"crypto"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Signer signs as a distribution does, with an Ed25519 key of its own that
// every client can use. It is safe for concurrent use.
type Signer struct {
	t      testing.TB
	entity *openpgp.Entity
	key    *packet.PrivateKey
}

// signing is what gpg 2.2 and rpm 4.14 understand.
var signing = packet.Config{
	Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, DefaultHash: crypto.SHA256,
	NonDeterministicSignaturesViaNotation:            new(bool),
	InsecureGenerateNonCriticalKeyFlags:              true,
	InsecureGenerateNonCriticalSignatureCreationTime: true,
}

// NewSigner makes a key. Errors fail t.
func NewSigner(t testing.TB) *Signer {
	t.Helper()
	e, err := openpgp.NewEntity("mirrortest", "", "mirrortest@example.org", &signing)
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{t: t, entity: e, key: e.PrivateKey}
}

// Public is the public key, armoured: a file for gpgkey= and for keys of a profile.
func (s *Signer) Public() []byte {
	s.t.Helper()
	return s.armored(openpgp.PublicKeyType, func(b *bytes.Buffer) error { return s.entity.Serialize(b) })
}

// Sign makes an armoured detached signature of file: a repomd.xml.asc.
func (s *Signer) Sign(file []byte) []byte {
	s.t.Helper()
	return s.armored(openpgp.SignatureType, func(b *bytes.Buffer) error {
		return openpgp.DetachSign(b, []*openpgp.Entity{s.entity}, bytes.NewReader(file), &signing)
	})
}

// ClearSign makes a clear-signed text, like a CHECKSUM file.
func (s *Signer) ClearSign(text []byte) []byte {
	s.t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, s.key, &signing)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func (s *Signer) armored(kind string, write func(*bytes.Buffer) error) []byte {
	s.t.Helper()
	var inside, b bytes.Buffer
	err := write(&inside)
	if err == nil {
		w, aerr := armor.Encode(&b, kind, nil)
		if err = aerr; err == nil {
			_, err = w.Write(inside.Bytes())
		}
		if err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}
