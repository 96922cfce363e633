package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/store"
)

// Rebuild learns from the tree what the index has lost: every repository whose repomd.xml stands there, what its metadata
// name, and whether the stored files are that. It takes as long as reading the tree. Clients are served meanwhile. n is how many
// repositories there are.
func (m *Monitor) Rebuild(ctx context.Context) (n int, err error) {
	var failed []error
	var roots []string
	err = m.store.Walk(ctx, "", func(i store.Info) error {
		root, ok := mirror.RootOf(i.Path)
		if !ok {
			return nil
		}
		t, err := mirror.PointerOf(m.table.Load(), root)
		if err != nil { // of no enabled profile
			return ctx.Err()
		}
		n++
		m.index.UseAt(t.Path, m.index.Used(t.Path)) // whether it is in use is not known: it counts as used now
		m.mirror.Relearn(t)
		if _, ok := m.index.Repo(root); !ok {
			failed = append(failed, fmt.Errorf("%s can't be read", i.Path))
			return nil
		}
		m.poke()
		roots = append(roots, root)
		return nil
	})
	for _, root := range roots { // once all are known: a file may be what another one says
		if err := m.mirror.Settle(ctx, root); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	if err == nil {
		err = errors.Join(failed...)
	}
	if err != nil {
		return n, err
	}
	return n, m.index.Complete()
}
