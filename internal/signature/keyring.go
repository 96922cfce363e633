// Package signature tells whose OpenPGP signature a file carries: a detached one (repomd.xml.asc) or that of a
// clear-signed text (a CHECKSUM file). It owns the OpenPGP library.
//
// Signatures come from upstream and are read before anything vouches for them, so all of it is bounded. Keys are the
// operator's and the profiles'.
package signature

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

const (
	maxKeys       = 1 << 20 // bytes of a file of keys; that of a distribution has 2 to 20 kB
	maxCerts      = 1000
	maxSignature  = 256 << 10 // bytes of what should be a signature; the greatest kind (SLH-DSA) has 40 kB in armour
	maxSignatures = 16        // in one file
	maxClear      = 4 << 20   // bytes of a clear-signed text
)

// Armour types.
const (
	publicBlock    = "PGP PUBLIC KEY BLOCK"
	privateBlock   = "PGP PRIVATE KEY BLOCK"
	signatureBlock = "PGP SIGNATURE"
)

// Packet types (RFC 9580 5).
const (
	tagPrivateKey    = 5
	tagPublicKey     = 6
	tagPrivateSubkey = 7
)

// Keyring is a set of public keys. It does not change and may be used by several goroutines at once.
type Keyring struct {
	certs []cert
}

// cert is a primary key with its user ids and subkeys.
type cert struct {
	ids []uint64 // of the keys in it that can sign
	// packets are parsed anew for each use: in what it has parsed the library notes which self-signatures are right, so
	// that goroutines could not share it.
	packets []byte
}

func (c cert) parse() (*openpgp.Entity, error) {
	return openpgp.ReadEntity(packet.NewReader(bytes.NewReader(c.packets)))
}

// ReadKeys reads OpenPGP public keys from files, each armoured or binary, with one key or several, and of at most 1 MiB.
// Errors name the file and say what to do.
func ReadKeys(files ...string) (*Keyring, error) {
	all := new(Keyring)
	for _, name := range files {
		k, err := readKeys(name)
		if err != nil {
			return nil, fmt.Errorf("reading keys: %w", err)
		}
		if err := all.add(k.certs...); err != nil {
			return nil, fmt.Errorf("reading keys: %s: %w", name, err)
		}
	}
	return all, nil
}

func readKeys(name string) (*Keyring, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file that the daemon's user may read", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeys+1))
	if err != nil {
		return nil, err
	}
	k, err := ParseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return k, nil
}

// ParseKeys reads what a file of OpenPGP public keys holds, see ReadKeys. Keys of a kind that is not known are left out,
// as long as there is another one.
func ParseKeys(b []byte) (*Keyring, error) {
	if len(b) > maxKeys {
		return nil, fmt.Errorf("is longer than %d bytes: keep in it only the keys that sign this repository", maxKeys)
	}
	if bytes.Contains(b, []byte("-----BEGIN "+privateBlock)) {
		return nil, errPrivate
	}
	b, err := unarmor(b, publicBlock)
	if err != nil {
		return nil, fmt.Errorf("holds no OpenPGP public key (%w): write it with gpg --armor --export", err)
	}
	k := new(Keyring)
	var last error
	for c, err := range certificates(b) {
		if err != nil {
			return nil, err
		}
		e, err := c.parse()
		if err != nil {
			last = err
			continue
		}
		c.ids = append(c.ids, e.PrimaryKey.KeyId)
		for _, sub := range e.Subkeys {
			if sub.PublicKey.CanSign() {
				c.ids = append(c.ids, sub.PublicKey.KeyId)
			}
		}
		if err := k.add(c); err != nil {
			return nil, err
		}
	}
	if len(k.certs) == 0 {
		if last == nil {
			last = errors.New("it is empty")
		}
		return nil, fmt.Errorf("holds no OpenPGP public key that can be used (%s): write it with gpg --armor --export", why(last))
	}
	return k, nil
}

var errPrivate = errors.New("holds a private key, which nobody but its owner should have: write the public one with gpg --armor --export")

// add adds certificates that are not there yet: each costs a check of the signatures that name it.
func (k *Keyring) add(certs ...cert) error {
	for _, c := range certs {
		same := func(have cert) bool { return bytes.Equal(have.packets, c.packets) }
		if slices.ContainsFunc(k.certs, same) {
			continue
		}
		if len(k.certs) == maxCerts {
			return fmt.Errorf("that makes more than %d keys: name only those that sign this repository", maxCerts)
		}
		k.certs = append(k.certs, c)
	}
	return nil
}

// certificates cuts packets into certificates, without looking into them. After an error there are no more.
func certificates(packets []byte) iter.Seq2[cert, error] {
	return func(yield func(cert, error) bool) {
		var c bytes.Buffer
		r := packet.NewOpaqueReader(bytes.NewReader(packets))
		for {
			p, err := r.Next()
			if err == nil && (p.Tag == tagPrivateKey || p.Tag == tagPrivateSubkey) {
				err = errPrivate
			}
			if (err != nil || p.Tag == tagPublicKey) && c.Len() > 0 {
				if !yield(cert{packets: bytes.Clone(c.Bytes())}, nil) {
					return
				}
				c.Reset()
			}
			if err == nil {
				err = p.Serialize(&c)
			}
			if err != nil {
				switch {
				case errors.Is(err, errPrivate):
					yield(cert{}, err)
				case !errors.Is(err, io.EOF):
					yield(cert{}, fmt.Errorf("is damaged, or no file of OpenPGP public keys (%s): write it with gpg --armor --export", why(err)))
				}
				return
			}
		}
	}
}

// unarmor returns the packets in b: those in all of its armoured blocks of a kind, or b itself if it is binary.
func unarmor(b []byte, kind string) (packets []byte, err error) {
	begin := []byte("-----BEGIN " + kind + "-----")
	blocks := bytes.SplitAfter(b, begin) // each is decoded from a slice of its own: the decoder would read on to the end
	if len(blocks) == 1 {
		if len(b) > 0 && b[0]&0x80 != 0 { // the first byte of every packet
			return b, nil
		}
		return nil, fmt.Errorf("there is no %q in it", begin)
	}
	for _, body := range blocks[1:] {
		block, err := armor.Decode(io.MultiReader(bytes.NewReader(begin), bytes.NewReader(body)))
		if err != nil || block.Type != kind {
			return nil, errors.New("a block in it is malformed")
		}
		inside, err := io.ReadAll(block.Body)
		if err != nil {
			return nil, fmt.Errorf("a block in it is malformed: %s", why(err))
		}
		packets = append(packets, inside...)
	}
	return packets, nil
}
