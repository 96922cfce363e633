package mirrortest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TLS says how an upstream speaks it.
type TLS struct {
	HTTP1      bool // does not offer HTTP/2
	ClientCert bool // demands a certificate: Upstream.Cert and Key are one
}

type tlsParts struct {
	config *tls.Config
	http1  bool
}

// NewTLSUpstream is [NewUpstream] over TLS, for 127.0.0.1 and localhost. It is
// certified by an authority of its own, whose certificate is in the file Upstream.CA.
func NewTLSUpstream(t testing.TB, how TLS) *Upstream {
	t.Helper()
	dir := t.TempDir()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mirrortest authority"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey := newKey(t)
	caDER := sign(t, ca, ca, caKey, caKey)
	serverKey, clientKey := newKey(t), newKey(t)
	serverDER := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "mirrortest upstream"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, serverKey, caKey)
	clientDER := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "mirrortest client"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, clientKey, caKey)

	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{serverDER}, PrivateKey: serverKey}}}
	if how.ClientCert {
		parsed, err := x509.ParseCertificate(caDER)
		if err != nil {
			t.Fatal(err)
		}
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AddCert(parsed)
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	u, err := start(&tlsParts{config: config, http1: how.HTTP1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	u.CA = writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", caDER)
	if how.ClientCert {
		der, err := x509.MarshalPKCS8PrivateKey(clientKey)
		if err != nil {
			t.Fatal(err)
		}
		u.Cert = writePEM(t, filepath.Join(dir, "client.pem"), "CERTIFICATE", clientDER)
		u.Key = writePEM(t, filepath.Join(dir, "client.key"), "PRIVATE KEY", der)
	}
	return u
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, c, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
	t.Helper()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	c.KeyUsage |= x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
