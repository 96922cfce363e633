package trim

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/store"
)

const (
	// maxNames bounds the names that one walk keeps: some MiB, however large the tree is.
	maxNames = 16_384
	// maxLinked bounds the names of files with several names that one walk keeps until it has met all of them: beyond it no
	// further file is begun, and waits for the next walk.
	maxLinked = 65_536
)

// walk looks through all that is stored below dir and returns what goes next.
//
// A file with several names goes with all of them, when it was used last by any. Below a directory with a quota of its own
// that means all of them that are there; in the tree, one that has names outside of it does not go, for nothing is freed.
func (t *Trimmer) walk(ctx context.Context, dir string) (*choice, error) {
	c := newChoice(t.most, time.Now().Unix())
	linked := make(map[uint64]*file)
	n, torn := 0, false // names in linked; some were left out of it
	err := t.store.Walk(ctx, dir, func(i store.Info) error {
		if i.Links <= 1 {
			c.offer(t.add(nil, i))
			return nil
		}
		f := linked[i.Inode]
		if f == nil && n >= t.linked {
			torn = true
			return nil
		}
		f = t.add(f, i)
		linked[i.Inode] = f
		if n++; f.other == 0 {
			delete(linked, i.Inode)
			n -= len(f.names)
			c.offer(f)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if dir != "" && !torn {
		for _, f := range linked {
			c.offer(f)
		}
	}
	c.ready()
	return c, nil
}

// add adds a name to f; nil begins a file.
func (t *Trimmer) add(f *file, i store.Info) *file {
	if f == nil {
		f = &file{size: i.Size, inode: i.Inode, other: i.Links}
	}
	f.names = append(f.names, i.Path)
	f.other = max(i.Links, uint64(len(f.names))) - uint64(len(f.names))
	f.rank = max(f.rank, t.rank(i.Path))
	if used := t.index.Used(i.Path); !used.IsZero() {
		f.used = max(f.used, used.Unix())
	}
	return f
}

// look says what f is now. It is nil if it went, or was given another name.
func (t *Trimmer) look(f *file) *file {
	var now *file
	for _, name := range f.names {
		if i, err := t.store.Stat(name); err == nil && i.Inode == f.inode {
			now = t.add(now, i)
		}
	}
	if now == nil || now.other > f.other {
		return nil
	}
	return now
}

// rank says what kind of file name is.
func (t *Trimmer) rank(name string) rank {
	if isPointer(name) {
		return pointer
	}
	if _, ok := t.index.Record(name); ok {
		return current
	}
	return ordinary
}

// isPointer reports whether name is one of those that vouch for others.
func isPointer(name string) bool {
	dir, base := path.Split(name)
	switch base {
	case "repomd.xml", "repomd.xml.asc", "repomd.xml.key":
		return dir == "repodata/" || strings.HasSuffix(dir, "/repodata/")
	case ".treeinfo", "treeinfo":
		return true
	}
	if strings.HasPrefix(dir, "repodata/") || strings.Contains(dir, "/repodata/") ||
		strings.HasSuffix(base, ".rpm") || strings.HasSuffix(base, ".drpm") {
		return false
	}
	_, sum, sha := strings.Cut(base, "SHA")
	return strings.Contains(base, "CHECKSUM") || sha && strings.Contains(sum, "SUM")
}
