package digest

import (
	"errors"
	"strings"
	"testing"
)

// sumOf is the sha256 of text.
func sumOf(text string) Sum {
	h := SHA256.New()
	h.Write([]byte(text))
	return SumOf(SHA256, h)
}

func TestCheck(t *testing.T) {
	right, wrong := sumOf("right"), sumOf("wrong")
	for _, test := range []struct {
		name string
		want Expectation
		size int64
		sum  Sum
		ok   bool
	}{
		{"right length", Unverified(10, "why"), 10, Sum{}, true},
		{"short", Unverified(10, "why"), 9, Sum{}, false},
		{"long", Unverified(10, "why"), 11, Sum{}, false},
		{"empty file", Unverified(0, "why"), 0, Sum{}, true},
		{"any length", Unverified(-1, "why"), 7, wrong, true},
		{"right digest", Known(5, right), 5, right, true},
		{"right digest, any length", Known(-1, right), 5, right, true},
		{"wrong digest", Known(5, right), 5, wrong, false},
		{"right digest, wrong length", Known(5, right), 4, right, false},
		{"digest not made", Known(5, right), 5, Sum{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.want.Check("a/b", test.size, test.sum)
			var mismatch *MismatchError
			if (err == nil) != test.ok || err != nil && !errors.As(err, &mismatch) {
				t.Errorf("Check = %v, want ok %v", err, test.ok)
			}
		})
	}
}

func TestZeroExpectationSatisfiesNobody(t *testing.T) {
	for _, e := range []Expectation{{}, Unverified(3, ""), Known(3, Sum{})} {
		if err := e.Check("a/b", 3, Sum{}); !errors.Is(err, ErrNoExpectation) {
			t.Errorf("Check of %#v = %v, want ErrNoExpectation", e, err)
		}
	}
}

// TestSums: the digests of "abc" as their standards give them (RFC 1321, FIPS 180-4).
func TestSums(t *testing.T) {
	for name, hex := range map[string]string{
		"md5":    "900150983cd24fb0d6963f7d28e17f72",
		"sha":    "a9993e364706816aba3e25717850c26c9cd0d89d",
		"sha1":   "a9993e364706816aba3e25717850c26c9cd0d89d",
		"SHA224": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
		"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
		"sha384": "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
		"sha512": "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
	} {
		a, err := ParseAlgorithm(name)
		if err != nil {
			t.Fatal(err)
		}
		h := a.New()
		h.Write([]byte("abc"))
		got := SumOf(a, h)
		want, err := ParseSum(a, " "+strings.ToUpper(hex)+"\n")
		if err != nil || got != want || got.Hex() != hex || got.String() != a.String()+":"+hex {
			t.Errorf("%s: %v, want %v, %v", name, got, want, err)
		}
		back, err := ParseBinary(got.AppendBinary(nil))
		if err != nil || back != got {
			t.Errorf("%s: back from binary: %v, %v", name, back, err)
		}
	}
	for _, text := range []string{"", "abc", strings.Repeat("g", 64), strings.Repeat("a", 63), strings.Repeat("a", 66)} {
		if s, err := ParseSum(SHA256, text); err == nil || !s.IsZero() {
			t.Errorf("%q is read as %v", text, s)
		}
	}
	for _, name := range []string{"", "none", "crc32", "sha3"} {
		if a, err := ParseAlgorithm(name); err == nil {
			t.Errorf("%q is read as %v", name, a)
		}
	}
	for _, b := range [][]byte{nil, {0, 1}, {4}, {99}, append([]byte{4}, make([]byte, 33)...)} {
		if s, err := ParseBinary(b); err == nil {
			t.Errorf("%v is read as %v", b, s)
		}
	}
	if s, err := ParseBinary([]byte{0}); err != nil || !s.IsZero() {
		t.Errorf("no digest is read as %v, %v", s, err)
	}
}
