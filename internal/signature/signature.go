package signature

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// What is wrong with a signature, for errors.Is. Of several signatures, none of which is good, the error tells about one:
// rather about one that does not match than one that cannot be verified, and rather about that than one of an unknown key.
var (
	// ErrBad: a key that is known did not sign this, or must not vouch for it (expired before it signed, revoked). Also
	// what is no signature at all.
	ErrBad = errors.New("signature does not match")
	// ErrUnsupported: nobody can tell with the means that are here (a version 3 signature, a DSA key), or nobody should
	// any more (SHA-1, RSA below 2047 bits).
	ErrUnsupported = errors.New("cannot verify the signature")
	// ErrUnknownKey: whoever signed it is none of the keys.
	ErrUnknownKey = errors.New("signed by a key that is not known here")
)

// config has the library's bounds of what is safe. Keys made before key flags were common may do everything, as for gpg.
var config = packet.Config{InsecureAllowAllKeyFlagsWhenMissing: true}

// Detached checks sig, an armoured or binary detached signature, of all that signed has. Where sig holds several, one good
// one suffices. By is the key's id and user id.
//
// Errors are ErrBad, ErrUnsupported or ErrUnknownKey, each with the reason, or signed's own. Signed is read only if there
// is a signature that it takes to check.
func (k *Keyring) Detached(signed io.Reader, sig []byte) (by string, err error) {
	if len(sig) > maxSignature {
		return "", fmt.Errorf("%w: it is longer than %d bytes", ErrBad, maxSignature)
	}
	packets, err := unarmor(sig, signatureBlock)
	if err != nil {
		return "", fmt.Errorf("%w: it is no OpenPGP signature: %w", ErrBad, err)
	}
	return k.verify(signed, packets)
}

// Clear checks the first clear-signed text in message, of at most 4 MiB, and returns it: what stands around it is signed
// by nobody. Its lines end in \n, without space before it. By and errors are as for Detached.
func (k *Keyring) Clear(message []byte) (text []byte, by string, err error) {
	if len(message) > maxClear {
		return nil, "", fmt.Errorf("%w: the text is longer than %d bytes", ErrBad, maxClear)
	}
	block, _ := clearsign.Decode(message)
	if block == nil {
		return nil, "", fmt.Errorf("%w: there is no clear-signed text", ErrBad)
	}
	packets, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxSignature))
	if err != nil {
		return nil, "", fmt.Errorf("%w: it is malformed: %s", ErrBad, why(err))
	}
	if by, err = k.verify(bytes.NewReader(block.Bytes), packets); err != nil {
		return nil, "", err
	}
	return block.Plaintext, by, nil
}

// check is a signature that a certificate may have made.
type check struct {
	sig  *packet.Signature
	cert cert
	hash hash.Hash // of all that is signed
}

func (k *Keyring) verify(signed io.Reader, packets []byte) (by string, err error) {
	sigs, failed := read(packets)
	var (
		checks []check
		hashes []io.Writer
	)
	for _, sig := range sigs {
		if err := acceptable(sig); err != nil {
			failed = append(failed, err)
			continue
		}
		known := false
		for _, c := range k.certs {
			if !slices.Contains(c.ids, *sig.IssuerKeyId) {
				continue
			}
			known = true
			h, err := sig.PrepareVerify()
			if err != nil {
				failed = append(failed, fmt.Errorf("%w: %s", ErrUnsupported, why(err)))
				continue
			}
			w := h
			if sig.SigType == packet.SigTypeText {
				w = openpgp.NewCanonicalTextHash(h)
			}
			checks, hashes = append(checks, check{sig, c, h}), append(hashes, w)
		}
		if !known {
			failed = append(failed, fmt.Errorf("%w: %016X, on %s; if you trust it, name a file with it in keys", ErrUnknownKey, *sig.IssuerKeyId, day(sig.CreationTime)))
		}
	}
	if len(checks) > 0 {
		if _, err := io.Copy(io.MultiWriter(hashes...), signed); err != nil {
			return "", fmt.Errorf("reading what is signed: %w", err)
		}
	}
	for _, c := range checks {
		by, err := c.do()
		if err == nil {
			return by, nil
		}
		failed = append(failed, err)
	}
	for _, kind := range []error{ErrBad, ErrUnsupported, ErrUnknownKey} {
		for _, err := range failed {
			if errors.Is(err, kind) {
				return "", err
			}
		}
	}
	return "", fmt.Errorf("%w: there is none", ErrBad)
}

// read returns the signatures in packets, and why others are none that can be checked. What follows something malformed
// is not read.
func read(packets []byte) (sigs []*packet.Signature, failed []error) {
	r := packet.NewReader(bytes.NewReader(packets))
	for len(sigs)+len(failed) < maxSignatures {
		p, err := r.NextWithUnsupported()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return sigs, append(failed, fmt.Errorf("%w: it is malformed: %s", ErrBad, why(err)))
		}
		switch p := p.(type) {
		case *packet.Signature:
			sigs = append(sigs, p)
		case *packet.UnsupportedPacket:
			if _, ok := p.IncompletePacket.(*packet.Signature); ok {
				failed = append(failed, fmt.Errorf("%w: %s", ErrUnsupported, why(p.Error)))
			}
		default:
			return sigs, append(failed, fmt.Errorf("%w: it holds something other than signatures", ErrBad))
		}
	}
	return sigs, failed
}

// acceptable says why no key could make sig vouch for anything.
func acceptable(sig *packet.Signature) error {
	switch {
	case sig.SigType != packet.SigTypeBinary && sig.SigType != packet.SigTypeText:
		return fmt.Errorf("%w: it is not one of a file, but of type %#x", ErrBad, byte(sig.SigType))
	case sig.IssuerKeyId == nil:
		return fmt.Errorf("%w: it does not say whose it is", ErrUnsupported)
	case config.RejectMessageHashAlgorithm(sig.Hash):
		return fmt.Errorf("%w: it is made with %s, which can be forged", ErrUnsupported, sig.Hash)
	}
	for _, n := range sig.Notations {
		if n.IsCritical && !config.KnownNotation(n.Name) {
			return fmt.Errorf("%w: it holds for a purpose of its own: %s", ErrUnsupported, clean(n.Name))
		}
	}
	// A signature of the future is as good as any: clocks are wrong, and only the key's owner could make it.
	if life := sig.SigLifetimeSecs; life != nil && *life > 0 {
		if end := sig.CreationTime.Add(time.Duration(*life) * time.Second); time.Now().After(end) {
			return fmt.Errorf("%w: it was to hold until %s only", ErrBad, day(end))
		}
	}
	return nil
}

// do finishes a check.
func (c check) do() (by string, err error) {
	entity, err := c.cert.parse()
	if err != nil { // it was parsed before
		return "", fmt.Errorf("%w: %s", ErrUnsupported, why(err))
	}
	by = fmt.Sprintf("%016X", *c.sig.IssuerKeyId)
	if _, id := entity.PrimaryIdentity(time.Time{}, &config); id != nil {
		by += " " + clean(id.Name)
	}
	key, err := signer(entity, *c.sig.IssuerKeyId, c.sig.CreationTime)
	if err != nil {
		return "", fmt.Errorf("%w (%s)", err, by)
	}
	if err := key.PublicKey.VerifySignature(c.hash, c.sig); err != nil {
		return "", fmt.Errorf("%w: %s (%s)", ErrBad, why(err), by)
	}
	return by, nil
}

// signer returns the key of e that id names, if it may vouch for what it signed at a time.
//
// That time counts, and not today: the keys of distributions expire, and what they released stays. It is the signer's word,
// so expiry protects from no thief, but revocation does: a key revoked as stolen, or without a reason, vouches for nothing.
// One revoked because another took its place vouches for what it signed before.
//
// How long a key holds is what its latest self-signature says, even if that was made after the time: a key is prolonged by
// a new self-signature, and often handed out with only that one. (The library's own check of a whole signature looks only
// at the self-signatures that were there at the time, and takes no such key. Asked about no time, it takes the latest.)
func signer(e *openpgp.Entity, id uint64, at time.Time) (openpgp.Key, error) {
	if e.Revoked(at) {
		return openpgp.Key{}, fmt.Errorf("%w: its key is revoked", ErrBad)
	}
	key, ok := e.SigningKeyById(time.Time{}, id, &config)
	if !ok {
		return key, fmt.Errorf("%w: its key cannot be used: it is too weak, revoked, not made for signing, or not signed by itself", ErrUnsupported)
	}
	expired := e.PrimaryKey.KeyExpired(key.PrimarySelfSignature, at) || key.PublicKey.KeyExpired(key.SelfSignature, at)
	if direct, err := e.LatestValidDirectSignature(time.Time{}, &config); err == nil {
		expired = expired || e.PrimaryKey.KeyExpired(direct, at)
	}
	if expired {
		return key, fmt.Errorf("%w: its key had expired, or was not there yet, when it signed on %s", ErrBad, day(at))
	}
	return key, nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// why is an error of the library, for ours.
func why(err error) string { return clean(strings.TrimPrefix(err.Error(), "openpgp: ")) }

// clean makes fit for a line of log what comes from outside.
func clean(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
