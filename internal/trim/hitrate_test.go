package trim

import (
	"container/list"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
	"github.com/instantmirror/instantmirror/internal/repodata"
)

// packageSizes are the sizes in bytes of a real repository's packages, or of made-up ones.
func packageSizes(tb testing.TB, real bool) (sizes []int64) {
	tb.Helper()
	if !real {
		r := rand.New(rand.NewPCG(3, 4))
		for range 2000 {
			sizes = append(sizes, int64(math.Exp(11.5+1.8*r.NormFloat64())))
		}
		return sizes
	}
	dir := mirrortest.Fixtures(tb, "osbuild-testrepos", "appstream", "repodata")
	names, err := filepath.Glob(filepath.Join(dir, "*-primary.xml.gz"))
	if err != nil || len(names) != 1 {
		tb.Fatal(names, err)
	}
	f, err := os.Open(names[0])
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	err = repodata.ReadPrimary(f, names[0], repodata.Limits{}, func(p *repodata.Package) error {
		sizes = append(sizes, p.Size)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return sizes
}

// requests are n numbers of files, by a Zipf law with the exponent 0.8, as mirrors see it.
func requests(files, n int) (list []int) {
	r := rand.New(rand.NewPCG(1, 2))
	popular := r.Perm(files)
	sum := make([]float64, files)
	total := 0.0
	for i := range sum {
		total += math.Pow(float64(i+1), -0.8)
		sum[i] = total
	}
	for range n {
		i, _ := slices.BinarySearch(sum, r.Float64()*total)
		list = append(list, popular[min(i, files-1)])
	}
	return list
}

// rates are the shares of requests and of bytes that a cache had.
type rates struct{ files, bytes float64 }

// replay asks a cache for all of list, and measures after the first quarter, when the disk is full.
func replay(sizes []int64, list []int, get func(i int) bool) rates {
	var hits, files, hitBytes, bytes float64
	for k, i := range list {
		hit := get(i)
		if k < len(list)/4 {
			continue
		}
		files, bytes = files+1, bytes+float64(sizes[i])
		if hit {
			hits, hitBytes = hits+1, hitBytes+float64(sizes[i])
		}
	}
	return rates{hits / files, hitBytes / bytes}
}

// queueCache is an exact LRU of capacity bytes, or without renew a FIFO.
func queueCache(sizes []int64, capacity int64, renew bool) func(i int) bool {
	at := map[int]*list.Element{}
	var order list.List
	used := int64(0)
	return func(i int) bool {
		if e := at[i]; e != nil {
			if renew {
				order.MoveToBack(e)
			}
			return true
		}
		if sizes[i] > capacity {
			return false
		}
		for used += sizes[i]; used > capacity; {
			old := order.Remove(order.Front()).(int)
			used -= sizes[old]
			delete(at, old)
		}
		at[i] = order.PushBack(i)
		return false
	}
}

// ourCache is the cache that Trimmer keeps, by the code that it chooses by: uses are known to the hour, a walk's result is
// used until it is used up, and some room is kept free in between. every is the time between two requests.
func ourCache(sizes []int64, capacity int64, every time.Duration) func(i int) bool {
	stored := map[int]*file{}
	now := time.Unix(1_700_000_000, 0)
	var walked, looked time.Time
	var c *choice
	used := int64(0)
	number := func(f *file) (i int) {
		_, _ = fmt.Sscan(f.names[0], &i)
		return i
	}
	look := func(f *file) *file {
		known := stored[number(f)]
		if known == nil {
			return nil
		}
		copied := *known
		return &copied
	}
	evict := func(need int64) {
		for need > 0 {
			if c == nil {
				c, walked = newChoice(maxNames, now.Unix()), now
				for _, f := range stored {
					copied := *f
					c.offer(&copied)
				}
				c.ready()
			}
			list := c.pick(need, batch, now.Sub(walked) < fresh, look)
			if len(list) == 0 {
				c = nil
			}
			for _, f := range list {
				delete(stored, number(f))
				used -= f.size
				need -= f.size
			}
		}
	}
	return func(i int) bool {
		now = now.Add(every)
		if now.Sub(looked) >= lookEvery {
			looked = now
			evict(used - capacity*19/20)
		}
		f := stored[i]
		hit := f != nil
		if !hit {
			if sizes[i] > capacity {
				return false
			}
			evict(used + sizes[i] - capacity)
			used += sizes[i]
			f = &file{names: []string{fmt.Sprint(i)}, size: sizes[i]}
			stored[i] = f
		}
		f.used = now.Unix() / grain * grain
		return hit
	}
}

// paces are how quickly the disk of BenchmarkEviction turns over: in days, in hours, and within one, where uses say little.
var paces = []struct {
	name  string
	every time.Duration
}{{"slow", 30 * time.Second}, {"busy", 2 * time.Second}, {"hasty", 100 * time.Millisecond}}

// TestHitRate: hour-grained uses cost little, unless a disk turns over within one.
func TestHitRate(t *testing.T) {
	sizes := packageSizes(t, false)
	total := int64(0)
	for _, n := range sizes {
		total += n
	}
	list := requests(len(sizes), 40_000)
	lru := replay(sizes, list, queueCache(sizes, total/5, true))
	fifo := replay(sizes, list, queueCache(sizes, total/5, false))
	if lru.files < fifo.files+0.02 {
		t.Fatalf("LRU %.3f, FIFO %.3f: this says nothing", lru.files, fifo.files)
	}
	for _, pace := range paces[:2] {
		ours := replay(sizes, list, ourCache(sizes, total/5, pace.every))
		if ours.files < lru.files-0.02 || ours.bytes < lru.bytes-0.03 {
			t.Errorf("%s: %.3f of files and %.3f of bytes, exact LRU %.3f and %.3f", pace.name, ours.files, ours.bytes, lru.files, lru.bytes)
		}
	}
}

// BenchmarkEviction asks for the packages of CentOS Stream 9's AppStream by a Zipf law, of a disk that holds 20 % of them.
// Reported is which share of requests and of bytes came from the disk, in per cent: by this room's choice, by an exact LRU,
// and by a FIFO.
func BenchmarkEviction(b *testing.B) {
	sizes := packageSizes(b, true)
	total := int64(0)
	for _, n := range sizes {
		total += n
	}
	list := requests(len(sizes), 200_000)
	lru := replay(sizes, list, queueCache(sizes, total/5, true))
	fifo := replay(sizes, list, queueCache(sizes, total/5, false))
	for _, pace := range paces {
		b.Run(pace.name, func(b *testing.B) {
			var ours rates
			for b.Loop() {
				ours = replay(sizes, list, ourCache(sizes, total/5, pace.every))
			}
			for name, r := range map[string]rates{"ours": ours, "LRU": lru, "FIFO": fifo} {
				b.ReportMetric(100*r.files, name+"-hit%")
				b.ReportMetric(100*r.bytes, name+"-byte-hit%")
			}
		})
	}
}
