package trim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instantmirror/instantmirror/internal/store"
)

// TestRandom compares what went with a model, over random trees.
func TestRandom(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) { testRandom(t, w, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

func testRandom(t *testing.T, w *world, r *rand.Rand) {
	type model struct {
		names          []string
		size, at, rank int // at: hours ago, the least of its names'; unknown: -1
	}
	w.makeRepository()
	files := []*model{
		{[]string{repo + "repodata/0-old.xml.zst"}, 1, 3, 0}, {[]string{primary}, 1, 900, 1}, {[]string{repo + "repodata/2-other.xml.zst"}, 1, 901, 1},
	}
	total := 8
	for i := range 30 + r.IntN(60) {
		m := &model{size: 1 + r.IntN(50), at: -1}
		total += m.size
		for k := range 1 + max(0, r.IntN(8)-5) {
			name := fmt.Sprintf("%c/%d-%d.rpm", 'a'+rune(r.IntN(4)), i, k)
			hours := r.IntN(40) - 1
			if k == 0 {
				w.put(name, m.size, hours)
			} else {
				w.link(m.names[0], name, hours)
			}
			if hours >= 0 && (m.at < 0 || hours < m.at) {
				m.at = hours
			}
			m.names = append(m.names, name)
		}
		slices.Sort(m.names)
		files = append(files, m)
	}
	slices.SortFunc(files, func(a, b *model) int {
		age := func(m *model) int {
			if m.at < 0 {
				return 1 << 30
			}
			return m.at
		}
		return cmp.Or(a.rank-b.rank, age(b)-age(a), b.size-a.size, strings.Compare(a.names[0], b.names[0]))
	})
	limit := r.IntN(total + total/10)
	limit = max(limit, 6)
	w.most = 1 + r.IntN(40)
	w.store.SetQuotas([]store.Quota{{Dir: "", Limit: int64(limit)}})
	var want []string
	left := total
	for _, m := range files {
		if left <= limit-limit/20 {
			break
		}
		left -= m.size
		want = append(want, m.names...)
	}
	defer w.start()()
	time.Sleep(time.Minute)
	synctest.Wait()
	got := w.gone()
	if !slices.Equal(got, want) {
		t.Errorf("limit %d of %d, %d names at once: went\n%v\nwant\n%v", limit, total, w.most, got, want)
	}
	if _, bytes := w.stored(); bytes != int64(left) {
		t.Errorf("%d bytes are left, want %d", bytes, left)
	}
	if used, _, measured := w.store.Usage(""); used != int64(left) || !measured {
		t.Errorf("the store counts %d bytes, want %d", used, left)
	}
}
