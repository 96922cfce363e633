package repodata

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Bounds of what is read, whatever was declared. The largest repositories (Fedora, openSUSE Tumbleweed) have primaries
// of 300 MB, which compress to between a tenth and a thirtieth; test repositories of one package over and over to less.
const (
	maxStored = 1 << 30 // bytes of a file as stored
	maxOpen   = 2 << 30 // bytes of a document
	// A document whose size was not declared may be freeOpen bytes long, and beyond that maxRatio times what was read of
	// the file for it: gzip reaches 1000, zstd and bzip2 much more, but only with what is no metadata.
	freeOpen = 64 << 20
	maxRatio = 100
	// maxWindow is how far back a compressed stream may refer, and so most of the memory that opening it takes.
	// createrepo_c's xz and zstd ask for 8 MiB at most, zstd --ultra -20 for 32, xz -9 for 64 (but for no more than its
	// declared open size, see xzReader).
	maxWindow = 32 << 20
)

// Limits are the sizes of a file in bytes, as declared by whoever names it (a record of repomd.xml). Reading more is an
// error. 0 and -1 mean that a size was not declared: then a file of up to 1 GiB is read, and as its document up to 64
// MiB, or 100 times the file if that is more. No declaration permits more than 1 GiB of file and 2 GiB of document.
type Limits struct {
	Size     int64 // of the file as stored
	OpenSize int64 // of the document in it
}

var zchunkMagic = [...]string{"\x00ZCK1", "\x00ZHR1"}

// openFile gives the document in the file r, whose compression its first bytes tell. done frees what that takes.
func openFile(r io.Reader, lim Limits) (doc io.Reader, done func(), err error) {
	stored := &bounded{r: r, what: "file", most: maxStored, declared: lim.Size}
	b := bufio.NewReaderSize(stored, 64<<10)
	magic, err := b.Peek(6)
	switch {
	case len(magic) > 0: // what else there is comes again with the next Read
	case errors.Is(err, io.EOF):
		return nil, nil, errors.New("file is empty")
	default:
		return nil, nil, err
	}
	var open io.Reader
	done, err = func() {}, nil
	has := func(prefix string) bool { return bytes.HasPrefix(magic, []byte(prefix)) }
	switch {
	case has("\x1f\x8b"):
		open, err = gzip.NewReader(b)
	case has("BZh"):
		open = bzip2.NewReader(b)
	case has("\xfd7zXZ\x00"):
		open = newXZ(b, lim.OpenSize)
	case has("\x28\xb5\x2f\xfd"), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && string(magic[1:4]) == "\x2a\x4d\x18": // or a frame to skip
		var z *zstd.Decoder
		z, err = zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecoderMaxMemory(maxWindow))
		if err == nil {
			open, done = z, z.Close
		}
	case has(zchunkMagic[0]), has(zchunkMagic[1]):
		return nil, nil, errors.New("file is zchunk, which is not read here: read what the record without _zck names")
	case bytes.IndexByte([]byte("<\xef \t\r\n"), magic[0]) >= 0: // XML, a byte order mark before it, space
		open = b
	default:
		return nil, nil, fmt.Errorf("file begins with %q: neither XML nor gzip, bzip2, xz or zstd", magic)
	}
	if err != nil {
		return nil, nil, err
	}
	return &bounded{r: open, what: "document", most: maxOpen, declared: lim.OpenSize, of: stored}, done, nil
}

// bounded passes on no more than is allowed, and then fails. Its errors stay.
type bounded struct {
	r              io.Reader
	what           string
	n              int64 // bytes passed on
	most, declared int64
	of             *bounded // the file, if this is what it was opened to
	err            error
}

func (b *bounded) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	n, b.err = b.r.Read(p)
	b.n += int64(n)
	limit, why := b.most, "are read at most"
	switch {
	case b.declared > 0 && b.declared < limit:
		limit, why = b.declared, "were declared"
	case b.declared <= 0 && b.of != nil && max(freeOpen, maxRatio*b.of.n) < limit:
		limit, why = max(freeOpen, maxRatio*b.of.n), "are read at most, for the size of the file, where none was declared"
	}
	if over := b.n - limit; over > 0 {
		n = max(0, n-int(over))
		b.err = fmt.Errorf("%s is longer than the %d bytes that %s", b.what, limit, why)
	}
	return n, b.err
}
