package repodata

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader reads the xz container (tukaani.org/xz/xz-file-format.txt) and leaves LZMA2 to the library. The library's
// own container reader allocates whatever dictionary a block asks for, up to 4 GiB, and cannot be told not to. Checks of
// blocks are skipped: repomd.xml has a better one of the whole file.
type xzReader struct {
	in    counter
	most  int64 // of a dictionary that is of use
	check int   // bytes after each block
	block io.Reader
	begun bool  // within a stream
	dicts int64 // allocated so far, all together
	open  int64 // bytes given
}

// counter counts what is read, because blocks and indices are padded to a multiple of four.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

var errXZ = errors.New("malformed xz")

// newXZ reads a document of at most openSize bytes, if that is known.
func newXZ(r *bufio.Reader, openSize int64) *xzReader {
	if openSize <= 0 {
		openSize = maxWindow
	}
	return &xzReader{in: counter{r: r}, most: min(max(openSize, lzma.MinDictCap), maxWindow)}
}

func (x *xzReader) Read(p []byte) (int, error) {
	for {
		if x.block == nil {
			if err := x.next(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := x.block.Read(p)
		x.open += int64(n)
		if err == io.EOF {
			x.block = nil
			if err := x.skip(x.padding() + int64(x.check)); err != nil || n > 0 {
				return n, err
			}
			continue
		}
		return n, err
	}
}

// next reads up to the next block, or returns io.EOF at the end of the last stream.
func (x *xzReader) next() error {
	if !x.begun {
		if err := x.stream(); err != nil {
			return err
		}
		x.begun = true
	}
	x.in.n = 0
	size, err := x.in.ReadByte()
	if err != nil {
		return cut(err)
	}
	if size == 0 {
		x.begun = false
		return x.index()
	}
	h := make([]byte, (int(size)+1)*4)
	h[0] = size
	if _, err := io.ReadFull(&x.in, h[1:]); err != nil {
		return cut(err)
	}
	end := len(h) - 4
	if crc32.ChecksumIEEE(h[:end]) != binary.LittleEndian.Uint32(h[end:]) {
		return fmt.Errorf("%w: checksum of a block's header is wrong", errXZ)
	}
	i := 2
	for _, flag := range []byte{0x40, 0x80} { // the sizes of the block
		if h[1]&flag != 0 {
			_, n := binary.Uvarint(h[i:end])
			i += max(0, n)
		}
	}
	if h[1]&0x3f != 0 || i+3 > end || h[i] != 0x21 || h[i+1] != 1 {
		return errors.New("xz with a filter other than LZMA2, which no metadata use")
	}
	dict, err := lzma.DecodeDictCap(h[i+2])
	if err != nil {
		return fmt.Errorf("%w: %w", errXZ, err)
	}
	dict = max(dict, lzma.MinDictCap)
	if dict > x.most { // more than the document has is of no use
		if x.most == maxWindow {
			return fmt.Errorf("xz refers %d bytes back, %d are allowed", dict, maxWindow)
		}
		dict = x.most
	}
	// Each block has a dictionary of its own, and blocks can be tiny: let them not be made for nothing.
	if x.dicts += dict; x.dicts > 16*(maxWindow+x.open) {
		return fmt.Errorf("%w: too many small blocks", errXZ)
	}
	x.in.n = 0
	x.block, err = lzma.Reader2Config{DictCap: int(dict)}.NewReader2(&x.in)
	return err
}

// stream reads the header of a stream, and the zeros that may stand between two.
func (x *xzReader) stream() error {
	var h [12]byte
	for {
		if _, err := io.ReadFull(&x.in, h[:4]); err != nil {
			if x.open == 0 && x.dicts == 0 {
				return cut(err)
			}
			return err // io.EOF: that was the last
		}
		if binary.LittleEndian.Uint32(h[:]) != 0 {
			break
		}
	}
	if _, err := io.ReadFull(&x.in, h[4:]); err != nil {
		return cut(err)
	}
	sizes := [...]int{0: 0, 1: 4, 4: 8, 10: 32}
	if string(h[:6]) != "\xfd7zXZ\x00" || h[6] != 0 || int(h[7]) >= len(sizes) || h[7] != 0 && sizes[h[7]] == 0 {
		return fmt.Errorf("%w: header of a stream is %x", errXZ, h)
	}
	x.check = sizes[h[7]]
	return nil
}

// index skips the index and the footer of a stream: they help those who want to seek.
func (x *xzReader) index() error {
	count, err := binary.ReadUvarint(&x.in)
	for ; err == nil && count > 0; count-- {
		if _, err = binary.ReadUvarint(&x.in); err == nil {
			_, err = binary.ReadUvarint(&x.in)
		}
	}
	if err != nil {
		return cut(err)
	}
	return x.skip(x.padding() + 4 + 12)
}

func (x *xzReader) padding() int64 { return (4 - x.in.n%4) % 4 }

func (x *xzReader) skip(n int64) error {
	_, err := io.CopyN(io.Discard, &x.in, n)
	return cut(err)
}

// cut is err where the end of the file is no end.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
