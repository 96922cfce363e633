package mirrortest

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Package describes one noarch binary package of a single file. Zero values are
// filled in (version 1.0, release 1, a hundred bytes of content). The same description
// always makes the same bytes.
type Package struct {
	Name     string
	Epoch    int // 0: none
	Version  string
	Release  string
	Requires []string // "name", "name = version", "name >= epoch:version-release"
	Provides []string // in the same form, beside its own name
	File     string   // the file that it installs; default /usr/share/NAME/NAME.txt
	Content  []byte   // of that file; nil: Size bytes made of Seed
	Size     int
	Seed     uint64    // another seed, other content: same NEVRA, other bytes
	Built    time.Time // build and file time; zero: Epoch
}

func (p Package) filled() Package {
	p.Version, p.Release = cmp.Or(p.Version, "1.0"), cmp.Or(p.Release, "1")
	p.File = cmp.Or(p.File, "/usr/share/"+p.Name+"/"+p.Name+".txt")
	if p.Content == nil {
		p.Content = Bytes(p.Seed, cmp.Or(p.Size, 100))
	}
	if p.Built.IsZero() {
		p.Built = Epoch
	}
	return p
}

// FileName is NAME-VERSION-RELEASE.noarch.rpm: an epoch is in no file name.
func (p Package) FileName() string { return p.nvr() + ".noarch.rpm" }

func (p Package) nvr() string {
	p = p.filled()
	return p.Name + "-" + p.Version + "-" + p.Release
}

func (p Package) evr() string {
	p = p.filled()
	if p.Epoch != 0 {
		return fmt.Sprintf("%d:%s-%s", p.Epoch, p.Version, p.Release)
	}
	return p.Version + "-" + p.Release
}

// Bytes gives n bytes that look random (they do not compress) and are the same
// for the same seed; a longer run begins as the shorter one.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// RPM is a built package.
type RPM struct {
	Package
	Bytes       []byte
	HeaderStart int // the main header's byte range in Bytes, as primary states it
	HeaderEnd   int
	Archive     int // size of the payload, uncompressed
}

// Build makes the package, in rpm's format 4 (https://rpm-software-management.github.io/rpm/manual/format_v4.html):
// lead, signature header with digests but no signature, header, gzip cpio.
func (p Package) Build() RPM {
	p = p.filled()
	archive := cpio(p)
	payload := zip(archive)

	h := p.header(archive, payload)
	header := h.encode(tagImmutable)
	sum1, sum256 := sha1.Sum(header), sha256.Sum256(header)
	both := md5.New()
	both.Write(header)
	both.Write(payload)
	var sig tags
	sig.str(269, hex.EncodeToString(sum1[:]))
	sig.str(273, hex.EncodeToString(sum256[:]))
	sig.num32(1000, uint32(len(header)+len(payload)))
	sig.add(1004, typeBin, md5.Size, both.Sum(nil))
	sig.num32(1007, uint32(len(archive)))
	signature := sig.encode(tagSignatures)
	for len(signature)%8 != 0 {
		signature = append(signature, 0)
	}

	// The lead: magic, format 3.0 (as rpm 4 itself writes), binary, architecture, name, Linux, header-style signature.
	lead := make([]byte, 96)
	copy(lead, "\xed\xab\xee\xdb\x03\x00\x00\x00\x00\xff")
	copy(lead[10:75], p.nvr())
	lead[77], lead[79] = 1, 5

	r := RPM{Package: p, Archive: len(archive), HeaderStart: len(lead) + len(signature)}
	r.HeaderEnd = r.HeaderStart + len(header)
	r.Bytes = slices.Concat(lead, signature, header, payload)
	return r
}

// header is the main header.
func (p Package) header(archive, payload []byte) *tags {
	var h tags
	built := uint32(p.Built.Unix())
	contentSum, payloadSum, archiveSum := sha256.Sum256(p.Content), sha256.Sum256(payload), sha256.Sum256(archive)
	h.strs(100, "C") // the languages of international strings
	h.str(1000, p.Name)
	h.str(1001, p.Version)
	h.str(1002, p.Release)
	if p.Epoch != 0 {
		h.num32(1003, uint32(p.Epoch))
	}
	h.intl(1004, p.summary())
	h.intl(1005, p.description())
	h.num32(1006, built)
	h.str(1007, "mirrortest.invalid")
	h.num32(1009, uint32(len(p.Content)))
	h.str(1014, "CC0-1.0")
	h.intl(1016, "Unspecified")
	h.str(1021, "linux")
	h.str(1022, "noarch")
	h.num32(1028, uint32(len(p.Content)))
	h.num16(1030, 0o100644)
	h.num16(1033, 0)
	h.num32(1034, built)
	h.strs(1035, hex.EncodeToString(contentSum[:]))
	h.strs(1036, "")
	h.num32(1037, 0)
	h.strs(1039, "root")
	h.strs(1040, "root")
	h.str(1044, p.nvr()+".src.rpm")
	h.num32(1045, 0xffffffff)
	h.str(1064, "4.18.0")
	h.num32(1095, 1)
	h.num32(1096, 1)
	h.strs(1097, "")
	h.num32(1116, 0)
	h.strs(1117, path.Base(p.File))
	h.strs(1118, strings.TrimSuffix(path.Dir(p.File), "/")+"/")
	h.str(1124, "cpio")
	h.str(1125, "gzip")
	h.str(1126, "9")
	h.num32(5011, 8) // file digests are SHA-256
	h.str(5062, "utf-8")
	h.strs(5092, hex.EncodeToString(payloadSum[:]))
	h.num32(5093, 8)
	h.strs(5097, hex.EncodeToString(archiveSum[:]))
	h.relations(1113, 1047, 1112, p.provides())
	h.relations(1050, 1049, 1048, p.requires())
	return &h
}

func (p Package) summary() string { return "Test package " + p.Name }

func (p Package) description() string { return "Made by mirrortest; it holds nothing of use." }

// relation is one Provides or Requires; flags are RPMSENSE bits.
type relation struct {
	name, version string
	flags         uint32
}

const senseLess, senseGreater, senseEqual, senseRpmlib = 2, 4, 8, 1 << 24

func parseRelation(s string) relation {
	f := strings.Fields(s)
	r := relation{name: f[0]}
	if len(f) == 3 {
		r.version = f[2]
		for c, bit := range map[string]uint32{"<": senseLess, ">": senseGreater, "=": senseEqual} {
			if strings.Contains(f[1], c) {
				r.flags |= bit
			}
		}
	}
	return r
}

func (p Package) provides() []relation {
	list := []relation{{p.Name, p.evr(), senseEqual}}
	for _, s := range p.Provides {
		list = append(list, parseRelation(s))
	}
	return list
}

func (p Package) requires() []relation {
	var list []relation
	for _, s := range p.Requires {
		list = append(list, parseRelation(s))
	}
	lib := func(name, version string) {
		list = append(list, relation{"rpmlib(" + name + ")", version, senseLess | senseEqual | senseRpmlib})
	}
	lib("CompressedFileNames", "3.0.4-1")
	lib("FileDigests", "4.6.0-1")
	lib("PayloadFilesHavePrefix", "4.0-1")
	if strings.Contains(p.Version+p.Release, "~") {
		lib("TildeInVersions", "4.10.0-1")
	}
	if strings.Contains(p.Version+p.Release, "^") {
		lib("CaretInVersions", "4.15.0-1")
	}
	return list
}

// cpio is the payload: one file and the trailer, in the "newc" form.
func cpio(p Package) []byte {
	var b bytes.Buffer
	entry := func(name string, mode uint32, links int, mtime int64, content []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			1, mode, 0, 0, links, mtime, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		pad4(&b)
		b.Write(content)
		pad4(&b)
	}
	entry("."+p.File, 0o100644, 1, p.Built.Unix(), p.Content)
	entry("TRAILER!!!", 0, 1, 0, nil)
	return b.Bytes()
}

func pad4(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

// Types of tags, and the tags that mark the region of each header.
const (
	typeInt16 = 3
	typeInt32 = 4
	typeStr   = 6
	typeBin   = 7
	typeStrs  = 8
	typeIntl  = 9

	tagSignatures = 62
	tagImmutable  = 63
)

type tag struct {
	id, typ, count uint32
	data           []byte
}

type tags []tag

func (h *tags) add(id, typ uint32, count int, data []byte) {
	*h = append(*h, tag{id, typ, uint32(count), data})
}

func (h *tags) str(id uint32, s string)  { h.add(id, typeStr, 1, append([]byte(s), 0)) }
func (h *tags) intl(id uint32, s string) { h.add(id, typeIntl, 1, append([]byte(s), 0)) }

func (h *tags) strs(id uint32, list ...string) {
	h.add(id, typeStrs, len(list), []byte(strings.Join(list, "\x00")+"\x00"))
}

func (h *tags) num16(id uint32, v uint16) {
	h.add(id, typeInt16, 1, binary.BigEndian.AppendUint16(nil, v))
}

func (h *tags) num32(id uint32, list ...uint32) {
	var b []byte
	for _, v := range list {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	h.add(id, typeInt32, len(list), b)
}

func (h *tags) relations(versionTag, nameTag, flagTag uint32, list []relation) {
	var names, versions []string
	var flags []uint32
	for _, r := range list {
		names, versions, flags = append(names, r.name), append(versions, r.version), append(flags, r.flags)
	}
	h.strs(nameTag, names...)
	h.strs(versionTag, versions...)
	h.num32(flagTag, flags...)
}

// encode writes the header: index in the order of tags, the region's entry first and
// its trailer last in the data.
func (h *tags) encode(region uint32) []byte {
	slices.SortFunc(*h, func(a, b tag) int { return cmp.Compare(a.id, b.id) })
	var index, data []byte
	entry := func(b []byte, id, typ, offset, count uint32) []byte {
		for _, v := range []uint32{id, typ, offset, count} {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	}
	for _, t := range *h {
		align := map[uint32]int{typeInt16: 2, typeInt32: 4}[t.typ]
		for align > 0 && len(data)%align != 0 {
			data = append(data, 0)
		}
		index = entry(index, t.id, t.typ, uint32(len(data)), t.count)
		data = append(data, t.data...)
	}
	n := uint32(len(*h) + 1)
	index = append(entry(nil, region, typeBin, uint32(len(data)), 16), index...)
	data = entry(data, region, typeBin, -n*16, 16)
	out := []byte("\x8e\xad\xe8\x01\x00\x00\x00\x00")
	out = binary.BigEndian.AppendUint32(out, n)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	return append(append(out, index...), data...)
}
