package mirrortest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
)

// GnuPG, which knows nothing of the library that signs, finds the signatures good, and those of other files bad.
func TestSigner(t *testing.T) {
	Need(t, "gpgv")
	s, file := NewSigner(t), []byte("- a\nb \nc")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	block, err := armor.Decode(bytes.NewReader(s.Public()))
	if err != nil {
		t.Fatal(err)
	}
	binary, err := io.ReadAll(block.Body)
	if err != nil {
		t.Fatal(err)
	}
	keys := write("keys", binary)
	sig, clear := s.Sign(file), s.ClearSign(file)
	for _, test := range []struct {
		name string
		args []string
		good bool
	}{
		{"detached", []string{write("sig", sig), write("file", file)}, true},
		{"another file", []string{write("sig", sig), write("other", append(file, 'x'))}, false},
		{"clear", []string{write("clear", clear)}, true},
		{"another text", []string{write("changed", bytes.Replace(clear, []byte("\nb"), []byte("\nx"), 1))}, false},
	} {
		out, err := exec.CommandContext(t.Context(), "gpgv", append([]string{"--homedir", dir, "--keyring", keys}, test.args...)...).CombinedOutput()
		if (err == nil) != test.good {
			t.Errorf("%s: %v\n%s", test.name, err, out)
		}
	}
}
