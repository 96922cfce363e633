package fsck

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"

	"github.com/instantmirror/instantmirror/internal/digest"
)

// maxWants is how many different things are remembered that one file may be. Real trees have one, seldom two.
const maxWants = 16

var errTooMuch = errors.New("the metadata say more than can be remembered: judge less at a time (verify PATH)")

// want is what a doc says that a file must be.
type want struct {
	doc  int
	size int64      // in bytes; -1 unknown
	sum  digest.Sum // zero unknown
}

// names is what is said of the files of the tree. Paths are kept as hashes of 64 bits: that one of a million files is
// taken for another has a chance of one in 30 million.
type names struct {
	seed maphash.Seed
	at   map[uint64]uint32 // where in list the wants of a path begin; 0: it stands in the tree, and nothing is said of it
	list []byte            // wants, each with the place of the path's next one
}

func (n *names) init() {
	n.seed, n.at, n.list = maphash.MakeSeed(), make(map[uint64]uint32), []byte{0}
}

func (n *names) key(p string) uint64 { return maphash.String(n.seed, p) }

// note says that the file p stands in the tree.
func (n *names) note(p string) {
	if k := n.key(p); n.at[k] == 0 {
		n.at[k] = 0
	}
}

// noted reports whether p was noted, or something was said of it.
func (n *names) noted(p string) bool {
	_, ok := n.at[n.key(p)]
	return ok
}

// add remembers what a doc says of p, unless it is said already, or something current is said and this is not.
func (n *names) add(docs []doc, p string, w want) error {
	k := n.key(p)
	count := 0
	for old := range n.wants(k) {
		switch {
		case docs[old.doc].bad:
			continue
		case old.size == w.size && old.sum == w.sum, docs[w.doc].earlier && !docs[old.doc].earlier:
			return nil
		}
		count++
	}
	if count > maxWants {
		return nil
	}
	if count == maxWants {
		w.size, w.sum = -1, digest.Sum{} // it may be anything
	}
	at := len(n.list)
	if at > math.MaxUint32-200 {
		return errTooMuch
	}
	b := binary.LittleEndian.AppendUint32(n.list, n.at[k])
	b = binary.AppendUvarint(b, uint64(w.doc))
	b = binary.AppendVarint(b, w.size)
	length := len(b)
	b = w.sum.AppendBinary(append(b, 0))
	b[length] = byte(len(b) - length - 1)
	n.list, n.at[k] = b, uint32(at)
	return nil
}

// wants yields what is said of a path, the last first.
func (n *names) wants(k uint64) func(yield func(want) bool) {
	return func(yield func(want) bool) {
		for at := n.at[k]; at != 0; {
			b := n.list[at:]
			at = binary.LittleEndian.Uint32(b)
			b = b[4:]
			d, used := binary.Uvarint(b)
			b = b[used:]
			size, used := binary.Varint(b)
			b = b[used:]
			sum, _ := digest.ParseBinary(b[1 : 1+b[0]]) // which AppendBinary wrote
			if !yield(want{doc: int(d), size: size, sum: sum}) {
				return
			}
		}
	}
}
