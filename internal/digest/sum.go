package digest

import (
	"crypto/md5"  // #nosec: repositories of old releases name nothing better
	"crypto/sha1" // #nosec: likewise
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// Algorithm is a way to make a digest.
type Algorithm uint8

// The algorithms that repositories use (createrepo_c, checksum type).
const (
	None Algorithm = iota
	MD5
	SHA1
	SHA224
	SHA256
	SHA384
	SHA512
)

var algorithms = [...]struct {
	name string
	new  func() hash.Hash
	size int // bytes
}{
	None:   {"none", nil, 0},
	MD5:    {"md5", md5.New, md5.Size},
	SHA1:   {"sha1", sha1.New, sha1.Size},
	SHA224: {"sha224", sha256.New224, sha256.Size224},
	SHA256: {"sha256", sha256.New, sha256.Size},
	SHA384: {"sha384", sha512.New384, sha512.Size384},
	SHA512: {"sha512", sha512.New, sha512.Size},
}

// String is the algorithm's name as metadata write it.
func (a Algorithm) String() string { return algorithms[a].name }

// New returns the running digest of an algorithm other than None.
func (a Algorithm) New() hash.Hash { return algorithms[a].new() }

// ParseAlgorithm reads a checksum type, whatever its case; "sha" is sha1, as in yum's metadata.
func ParseAlgorithm(name string) (Algorithm, error) {
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "sha" {
		return SHA1, nil
	}
	for a := MD5; a <= SHA512; a++ {
		if algorithms[a].name == name {
			return a, nil
		}
	}
	return None, fmt.Errorf("checksum type %.20q is none of md5, sha1, sha224, sha256, sha384, sha512", name)
}

// Sum is a digest and the algorithm that made it. The zero Sum is no digest. Sums can be compared with ==.
type Sum struct {
	alg   Algorithm
	value [sha512.Size]byte
}

// ParseSum reads a digest of algorithm a in hex.
func ParseSum(a Algorithm, text string) (Sum, error) {
	s := Sum{alg: a}
	text = strings.TrimSpace(text)
	if a == None || len(text) != 2*algorithms[a].size {
		return Sum{}, fmt.Errorf("%.140q is no %s digest", text, a)
	}
	if _, err := hex.Decode(s.value[:], []byte(text)); err != nil {
		return Sum{}, fmt.Errorf("%.140q is no %s digest: %w", text, a, err)
	}
	return s, nil
}

// SumOf is the digest that h, which was made by a.New, has come to.
func SumOf(a Algorithm, h hash.Hash) Sum {
	s := Sum{alg: a}
	h.Sum(s.value[:0])
	return s
}

// IsZero reports whether s is no digest.
func (s Sum) IsZero() bool { return s.alg == None }

// Algorithm is what made s.
func (s Sum) Algorithm() Algorithm { return s.alg }

// Hex is the digest in lower-case hex.
func (s Sum) Hex() string { return hex.EncodeToString(s.value[:algorithms[s.alg].size]) }

// String is "sha256:0123…".
func (s Sum) String() string { return s.alg.String() + ":" + s.Hex() }

// AppendBinary appends the algorithm and the digest, in a form that ParseBinary reads.
func (s Sum) AppendBinary(b []byte) []byte {
	return append(append(b, byte(s.alg)), s.value[:algorithms[s.alg].size]...)
}

// ParseBinary reads what AppendBinary wrote.
func ParseBinary(b []byte) (Sum, error) {
	if len(b) == 0 || b[0] > byte(SHA512) || len(b) != 1+algorithms[b[0]].size {
		return Sum{}, fmt.Errorf("%d bytes are no digest", len(b))
	}
	s := Sum{alg: Algorithm(b[0])}
	copy(s.value[:], b[1:])
	return s, nil
}

// MarshalText writes s as String does; no digest is the empty text.
func (s Sum) MarshalText() ([]byte, error) {
	if s.IsZero() {
		return nil, nil
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (s *Sum) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = Sum{}
		return nil
	}
	name, hex, _ := strings.Cut(string(text), ":")
	a, err := ParseAlgorithm(name)
	if err != nil {
		return err
	}
	*s, err = ParseSum(a, hex)
	return err
}
