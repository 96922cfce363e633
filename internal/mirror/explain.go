package mirror

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
)

// Standing is what is believed of one path, for people.
type Standing struct {
	Validity string             // "immutable", "fresh", "due", "outdated", "missing"
	Detail   string             // "stale" or "gone-upstream": upstream was asked, and that is why the file is due
	Due      time.Time          // when upstream is to be asked again; zero where that does not depend on time
	Info     store.Info         // what is stored; zero if nothing is
	Belief   index.Belief       // of the stored file
	Want     digest.Expectation // what its bytes must be
}

// Explain says what is believed of t. It asks nobody and changes nothing that is served.
func (m *Mirror) Explain(t site.Target) (Standing, error) {
	st := Standing{Validity: "missing", Want: m.expect(t)}
	file, err := m.store.Get(t.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return Standing{}, err
	}
	defer file.Close()
	if st.Info, err = m.store.Stat(t.Path); err != nil {
		st.Info = store.Info{Path: t.Path, Size: file.Size, ModTime: file.ModTime} // it went meanwhile
	}
	c := m.lastCheck(t.Path, file)
	st.Belief = c.belief
	_, due, valid := m.judgeStored(t, file)
	switch {
	case m.outdated.has(t.Path):
		st.Validity = "outdated"
	case valid && due.IsZero():
		st.Validity = "immutable"
	case valid:
		st.Validity, st.Due = "fresh", due
	default:
		st.Validity, st.Due = "due", due
		if time.Now().Before(c.retry) {
			st.Detail = c.why
		}
	}
	return st, nil
}

// DiscardCompanions deletes what goes with the repomd.xml of the repository at root: its signature and key. Whoever looks
// after the repository next fetches them again from where that came from.
func (m *Mirror) DiscardCompanions(root string, reason journal.Reason) (n int, err error) {
	// They are looked for again even if a crash comes between.
	if _, err := m.index.Update(root, func(r *index.Repo) { r.Pointer.Companions = false }); err != nil {
		return 0, err
	}
	var list []doomed
	for _, ext := range []string{".asc", ".key"} {
		list = append(list, doomed{path: pointerOf(root) + ext, entry: journal.Entry{Reason: reason}})
	}
	_, n, err = m.remove(list)
	return n, err
}

// Sizes sums what is stored at t, a file or all of a directory: how many files, and their bytes, where a file with several
// names counts once.
func (m *Mirror) Sizes(ctx context.Context, t site.Target) (files int, bytes int64, err error) {
	if !t.Dir {
		info, err := m.store.Stat(t.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, 0, nil
		}
		if err != nil {
			return 0, 0, err
		}
		return 1, info.Size, nil
	}
	linked := make(map[uint64]bool)
	err = m.store.Walk(ctx, t.Path, func(i store.Info) error {
		files++
		if i.Links > 1 {
			if linked[i.Inode] {
				return nil
			}
			linked[i.Inode] = true
		}
		bytes += i.Size
		return nil
	})
	return files, bytes, err
}
