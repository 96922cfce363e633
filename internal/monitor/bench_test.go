package monitor

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// cpu is how much of it this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// idleHeap is how many bytes are live when nothing goes on.
func idleHeap() uint64 {
	runtime.GC()
	debug.FreeOSMemory()
	return memory()
}

// memory is how many bytes heap and stacks take now.
func memory() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64() + s[2].Value.Uint64()
}

// BenchmarkPolls polls 500 repositories, of which none has changed: "looks" one after the other, "schedule" by the schedule
// with a refresh of a second. CPU is that of the whole process, with the upstream server in it; what a bare conditional
// request to that costs is http-cpu-µs. At `refresh: 2m` 500 repositories are 4.2 polls a second.
func BenchmarkPolls(b *testing.B) {
	const repos = 500
	meet := func(b *testing.B, refresh string) (w *world, heap float64) {
		w = newWorld(b, oneOrigin+"expiry: [{match: '**', refresh: "+refresh+"}]\n")
		files := repo(at(0), "a", "b", "c").Files()
		for i := range repos {
			w.up.PutTree(fmt.Sprintf("a/r%d/os", i), files)
		}
		before := idleHeap()
		var g errgroup.Group
		g.SetLimit(maxLooks)
		for i := range repos {
			g.Go(func() error {
				root := fmt.Sprintf("r%d/os", i)
				if _, err := w.get(root + "/repodata/repomd.xml"); err != nil {
					return err
				}
				_, err := w.monitor.Refresh(b.Context(), base+root, false) // and what first contact leaves to do is done
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
		w.up.Reset()
		return w, float64(idleHeap()-before) / repos
	}
	// requests fails b unless there was one for each of so many polls.
	requests := func(b *testing.B, w *world, polls int) {
		b.Helper()
		for _, r := range w.up.Requests() {
			if r.Status != http.StatusNotModified && r.Status != 0 || !strings.HasSuffix(r.Path, "/repomd.xml") {
				b.Fatalf("upstream saw %v", r)
			}
		}
		n := w.up.Count("**")
		if b.ReportMetric(float64(n)/float64(polls), "requests/poll"); n != polls {
			b.Fatalf("%d requests for %d polls", n, polls)
		}
	}
	each := func(f func(root string) error) error {
		var g errgroup.Group
		g.SetLimit(maxLooks)
		for i := range repos {
			g.Go(func() error { return f(fmt.Sprintf("r%d/os", i)) })
		}
		return g.Wait()
	}
	b.Run("looks", func(b *testing.B) {
		w, heap := meet(b, "2m")
		// What the requests alone cost, on both sides.
		bare := cpu(b)
		err := each(func(root string) error {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.up.URL+"/a/"+root+"/repodata/repomd.xml", nil)
			if err != nil {
				return err
			}
			req.Header.Set("If-Modified-Since", at(0).Format(http.TimeFormat))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		})
		if err != nil {
			b.Fatal(err)
		}
		bare = cpu(b) - bare
		w.up.Reset()
		rounds, begun := 0, cpu(b)
		for b.Loop() {
			rounds++
			err := each(func(root string) error {
				r, err := w.monitor.Refresh(b.Context(), base+root, false)
				if r.What != unchanged {
					return fmt.Errorf("%s: %s: %w", root, r.What, err)
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpu(b)-begun).Microseconds())/float64(repos*rounds), "cpu-µs/poll")
		b.ReportMetric(float64(bare.Microseconds())/repos, "http-cpu-µs/poll")
		b.ReportMetric(heap, "heap-B/repo")
		requests(b, w, repos*rounds)
	})
	b.Run("schedule", func(b *testing.B) {
		w, heap := meet(b, "1s")
		ctx, cancel := context.WithCancel(b.Context())
		var running sync.WaitGroup
		running.Go(func() { w.monitor.Run(ctx) })
		rounds, begun := 0, cpu(b)
		for b.Loop() {
			rounds++
			for w.up.Count("**") < repos*rounds { // WaitRequests would count with each request
				time.Sleep(50 * time.Millisecond)
			}
		}
		n, used := w.up.Count("**"), cpu(b)-begun
		b.ReportMetric(float64(used.Microseconds())/float64(n), "cpu-µs/poll")
		b.ReportMetric(heap, "heap-B/repo")
		cancel()
		running.Wait()
		w.quiet()
		requests(b, w, w.up.Count("**"))
	})
}

// large is a repository of 60,000 packages on disk, as upstream has it.
type large struct {
	file string // its primary
	size int64
	sum  string
}

const (
	largePackages = 60_000
	largeStored   = 2000 // of these the mirror has
)

// changed reports whether package i differs in a generation that changes one of so many packages, 0 being none, and whether
// by name. Where all change, those that are stored do not.
func changed(i, change int) (differs, renamed bool) {
	differs = change > 1 && i%change == 0 || change == 1 && !isStored(i)
	return differs, differs && i/change%2 == 1
}

// largeName is the path of package i.
func largeName(i, change int) string {
	version := 1
	if _, renamed := changed(i, change); renamed {
		version = 2
	}
	return fmt.Sprintf("Packages/generated-package-%d-2.%d-%d.el9.x86_64.rpm", i, i%97, version)
}

// largeBody is what package i of the first generation holds.
func largeBody(i int) []byte { return mirrortest.Bytes(uint64(i), 4000) }

// isStored reports whether the mirror has package i of the first generation.
func isStored(i int) bool { return i%(largePackages/largeStored) == 0 }

// writeLarge makes the primary of a generation.
func writeLarge(b *testing.B, dir string, change int) large {
	b.Helper()
	file, err := os.Create(filepath.Join(dir, fmt.Sprintf("primary-%d.xml.gz", change)))
	if err != nil {
		b.Fatal(err)
	}
	h := sha256.New()
	z, _ := gzip.NewWriterLevel(io.MultiWriter(file, h), gzip.BestSpeed) // the level is right
	out := bufio.NewWriterSize(z, 1<<16)
	fmt.Fprintf(out, `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="%d">
`, largePackages)
	for i := range largePackages {
		sum, size := fmt.Sprintf("%064x", i*1_000_003), 10_000+i
		if differs, _ := changed(i, change); differs {
			sum = fmt.Sprintf("%064x", i*1_000_003+1)
		} else if isStored(i) {
			s := sha256.Sum256(largeBody(i))
			sum, size = hex.EncodeToString(s[:]), 4000
		}
		name := fmt.Sprintf("generated-package-%d", i)
		fmt.Fprintf(out, `<package type="rpm">
  <name>%[1]s</name>
  <arch>x86_64</arch>
  <version epoch="0" ver="2.%[2]d" rel="1.el9"/>
  <checksum type="sha256" pkgid="YES">%[3]s</checksum>
  <summary>A package that was generated</summary>
  <description>This package was generated to have a primary of many packages. Its description is of the usual length,
which is some lines of text; where there is more to say, there are &lt;tags&gt; &amp; lists:
- of one thing
- of another thing</description>
  <packager>builder@example.org</packager>
  <url>https://www.example.org/%[1]s</url>
  <time file="%[4]d" build="%[4]d"/>
  <size package="%[5]d" installed="11556907" archive="11596752"/>
  <location href="%[6]s"/>
  <format>
    <rpm:license>GPL-3.0-or-later AND (Apache-2.0 OR MIT)</rpm:license>
    <rpm:sourcerpm>%[1]s-2.%[2]d-1.el9.src.rpm</rpm:sourcerpm>
    <rpm:header-range start="59776" end="132493"/>
    <rpm:provides>
`, name, i%97, sum, 1_700_000_000+i, size, largeName(i, change))
		for j := range 8 {
			fmt.Fprintf(out, "      <rpm:entry name=\"%s(part-%d)\" flags=\"EQ\" epoch=\"0\" ver=\"2.%d\" rel=\"1.el9\"/>\n", name, j, i%97)
		}
		out.WriteString("    </rpm:provides>\n    <rpm:requires>\n")
		for j := range 10 {
			fmt.Fprintf(out, "      <rpm:entry name=\"lib%d.so.6(GLIBC_2.%d)(64bit)\"/>\n", (i+j)%300, j)
		}
		fmt.Fprintf(out, "    </rpm:requires>\n    <file>/usr/bin/%s</file>\n  </format>\n</package>\n", name)
	}
	out.WriteString("</metadata>\n")
	err = out.Flush()
	if err == nil {
		err = z.Close()
	}
	var info os.FileInfo
	if err == nil {
		info, err = file.Stat()
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return large{file: file.Name(), size: info.Size(), sum: hex.EncodeToString(h.Sum(nil))}
}

// put makes upstream have the generation, as of so many hours.
func (l large) put(b *testing.B, w *world, hours int) {
	b.Helper()
	name := "repodata/" + l.sum + "-primary.xml.gz"
	w.up.PutDir("a/os/"+name, l.file)
	w.up.PutFile("a/os/repodata/repomd.xml", mirrortest.File{ModTime: at(hours), Body: fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo">
  <revision>%[1]d</revision>
  <data type="primary">
    <checksum type="sha256">%[2]s</checksum>
    <location href="%[3]s"/>
    <timestamp>%[1]d</timestamp>
    <size>%[4]d</size>
  </data>
</repomd>
`, at(hours).Unix(), l.sum, name, l.size)})
}

// hitter hits what is stored, and notes how long each hit takes.
type hitter struct {
	w     *world
	paths []string
	stop  chan struct{}
	wg    sync.WaitGroup
	took  [2][]time.Duration // of each client
}

// hits begins to hit the stored packages that stay, by two clients that make 500 requests a second each.
func hits(w *world, paths []string) *hitter {
	h := &hitter{w: w, paths: paths, stop: make(chan struct{})}
	for i := range h.took {
		h.wg.Go(func() { h.client(&h.took[i]) })
	}
	return h
}

func (h *hitter) client(took *[]time.Duration) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
		}
		name := h.paths[rand.IntN(len(h.paths))]
		begun := time.Now()
		err := h.hit(name)
		*took = append(*took, time.Since(begun))
		if err != nil {
			h.w.t.Errorf("%s: %v", name, err)
		}
	}
}

func (h *hitter) hit(name string) error {
	t, err := h.w.table.Resolve("localhost", "/"+base+name)
	if err != nil {
		return err
	}
	a, err := h.w.mirror.Open(h.w.t.Context(), t)
	if err != nil {
		return err
	}
	defer a.Close()
	_, err = a.CopyTo(h.w.t.Context(), io.Discard, 0, a.Size)
	return err
}

// end returns how long the hits took, the quickest first.
func (h *hitter) end() []time.Duration {
	close(h.stop)
	h.wg.Wait()
	all := slices.Concat(h.took[0], h.took[1])
	slices.Sort(all)
	return all
}

// report says what half, and all but one of a hundred, of the hits took at most.
func report(b *testing.B, when string, took []time.Duration) {
	b.Helper()
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), when+"-p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), when+"-p99-µs")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), when+"-max-µs")
}

// watchMemory notes the most that heap and stacks take until peak is called.
func watchMemory() (peak func() uint64) {
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			most.Store(max(most.Load(), memory()))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		return most.Load()
	}
}

// resident is what the kernel counts as this process's memory, at its most since forget. It has pages of mapped files in it:
// those of the index, for one.
func resident(b *testing.B, field string) (kB int) {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			if _, err := fmt.Sscan(rest, &kB); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kB
}

// BenchmarkPublish60000 publishes a push of a repository of 60,000 packages, of which 2,000 are stored: one in a hundred
// changes, or all but the stored ones do. Upstream is in the same process, and sends from the disk. heap-MiB is by how much
// heap and stacks grow meanwhile, rss-MiB by how much the process does; hits are clients' of what is stored.
func BenchmarkPublish60000(b *testing.B) {
	for _, push := range []struct {
		name   string
		change int // one package in so many, every other one by name
	}{{"hundredth", 100}, {"all", 1}} {
		b.Run(push.name, func(b *testing.B) {
			w := newWorld(b, oneOrigin+"expiry: [{match: '**', refresh: 1h}]\n")
			dir := b.TempDir()
			generations := []large{writeLarge(b, dir, 0), writeLarge(b, dir, push.change)}
			var stay []string // stored packages that no push changes
			for i := range largePackages {
				if isStored(i) {
					name := "os/" + largeName(i, 0)
					mirrortest.WriteTree(b, w.store.Dir(), map[string]mirrortest.File{base + name: {Body: largeBody(i), ModTime: at(0)}})
					if differs, _ := changed(i, push.change); !differs {
						stay = append(stay, name)
					}
				}
			}
			ctx, cancel := context.WithCancel(b.Context())
			var flusher sync.WaitGroup
			flusher.Go(func() { w.index.Run(ctx, func(err error) { b.Error(err) }) })
			defer flusher.Wait()
			defer cancel()
			generations[0].put(b, w, 0)
			if _, err := w.get("os/repodata/repomd.xml"); err != nil {
				b.Fatal(err)
			}
			w.settled("os")

			quiet := hits(w, stay)
			time.Sleep(time.Second)
			still := quiet.end()
			var grown, rss float64
			var took []time.Duration
			var used time.Duration
			round := 0
			for b.Loop() {
				b.StopTimer()
				round++
				generations[round%2].put(b, w, round)
				idle := idleHeap()
				if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // VmHWM begins anew
					b.Fatal(err)
				}
				before := resident(b, "VmRSS")
				busy, peak := hits(w, stay), watchMemory()
				begun := cpu(b)
				b.StartTimer()
				r := w.look("os")
				b.StopTimer()
				used += cpu(b) - begun
				grown = max(grown, float64(peak()-idle)/(1<<20))
				rss = max(rss, float64(resident(b, "VmHWM")-before)/1024)
				took = append(took, busy.end()...)
				w.is(r, Published)
				b.StartTimer()
			}
			slices.Sort(took)
			report(b, "idle", still)
			report(b, "publish", took)
			b.ReportMetric(float64(used.Milliseconds())/float64(round), "cpu-ms/op")
			b.ReportMetric(grown, "heap-MiB")
			b.ReportMetric(rss, "rss-MiB")
			w.sound()
		})
	}
}
