package upstream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func tempFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBadConfigs(t *testing.T) {
	tests := []struct {
		c    Config
		want string
	}{
		{Config{}, "write it like https://"},
		{Config{URL: "mirror.example.org/fedora"}, `"mirror.example.org/fedora"`},
		{Config{URL: "ftp://a.example/"}, "write it like https://"},
		{Config{URL: "http:///pub"}, "write it like https://"},
		{Config{URL: "http://a.example/?x=1"}, "without query"},
		{Config{URL: "http://a.example/#x"}, "without query"},
		{Config{URL: "http://user:secret@a.example/"}, "username and password_file"},
		{Config{URL: "http://user:secret@a.example:x/"}, "upstream URL: invalid port"},
		{Config{URL: "http://user:se cret@a.example/"}, "upstream URL: "},
		{Config{URL: "http://a.example/%zz"}, `invalid URL escape "%zz"`},
		{Config{URL: "http://a.example", CA: "/nonexistent/ca.pem"}, "upstream http://a.example: ca: open /nonexistent/ca.pem: no such file or directory: name a file"},
		{Config{URL: "http://a.example", PasswordFile: "/nonexistent/pw", Username: "u"}, "password_file: open /nonexistent/pw"},
		{Config{URL: "http://a.example", ClientCert: "/nonexistent/cert"}, "client_cert: open"},
		{Config{URL: "http://a.example", CA: tempFile(t, "not PEM")}, "holds no PEM certificate"},
		{Config{URL: "http://a.example", ClientCert: tempFile(t, "not PEM")}, "name PEM files"},
		{Config{URL: "http://a.example", ClientKey: tempFile(t, "")}, "client_key is set without client_cert"},
		{Config{URL: "http://a.example", Username: "u"}, "set both or none"},
		{Config{URL: "http://a.example", PasswordFile: tempFile(t, "secret")}, "set both or none"},
		{Config{URL: "http://a.example", Username: "u", PasswordFile: tempFile(t, "\n")}, "on its one line"},
		{Config{URL: "http://a.example", Username: "u", PasswordFile: tempFile(t, "secret\nsecret\n")}, "on its one line"},
		{Config{URL: "http://a.example", Username: "u:v", PasswordFile: tempFile(t, "secret\n")}, "no colon"},
		{Config{URL: "http://a.example", Connections: -1}, "connections -1"},
		{Config{URL: "http://a.example", Rate: -1}, "rate -1"},
	}
	for _, tt := range tests {
		o, err := NewPool("x").Origin(tt.c)
		if o != nil || err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v; want %s", tt.c, err, tt.want)
		}
	}
}

// An equal configuration is the same origin, whose health survives a reload; a file's new content is another.
func TestSameOrigin(t *testing.T) {
	p := NewPool("x")
	pw := tempFile(t, "secret\n")
	base := Config{URL: "https://a.example/pub", Username: "u", PasswordFile: pw, Headers: map[string]string{"X-A": "1", "X-B": "2"}}
	first, err := p.Origin(base)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		same   bool
	}{
		"equal":           {func(*Config) {}, true},
		"slash":           {func(c *Config) { c.URL += "/" }, true},
		"default":         {func(c *Config) { c.Connections = 8 }, true},
		"header's case":   {func(c *Config) { c.Headers = map[string]string{"x-a": "1", "x-b": "2"} }, true},
		"file elsewhere":  {func(c *Config) { c.PasswordFile = tempFile(t, "secret\n") }, true},
		"path":            {func(c *Config) { c.URL += "/x" }, false},
		"header":          {func(c *Config) { c.Headers = map[string]string{"X-A": "1"} }, false},
		"connections":     {func(c *Config) { c.Connections = 9 }, false},
		"rate":            {func(c *Config) { c.Rate = 9 }, false},
		"password":        {func(c *Config) { c.PasswordFile = tempFile(t, "other\n") }, false},
		"no authority":    {func(c *Config) { c.Username, c.PasswordFile = "", "" }, false},
		"scheme and host": {func(c *Config) { c.URL = "http://b.example/pub" }, false},
	} {
		c := base
		tt.change(&c)
		if o, err := p.Origin(c); err != nil || (o == first) != tt.same {
			t.Errorf("%s: same %v, %v", name, o == first, err)
		}
	}
	if err := os.WriteFile(pw, []byte("changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := p.Origin(base); err != nil || o == first {
		t.Errorf("the password's file has changed and the origin has not: %v", err)
	}
	if first.Name() != "https://a.example/pub" || cap(first.slots) != 8 || first.limit != nil {
		t.Errorf("%+v", first)
	}
	if n := len(p.transports); n != 1 {
		t.Errorf("%d transports for one TLS set-up", n)
	}
}
