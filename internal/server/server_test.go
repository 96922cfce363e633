package server

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

func TestParseRange(t *testing.T) {
	many := "bytes=" + strings.Repeat("0-0,", maxRanges)
	for _, test := range []struct {
		field string
		want  string // ranges as off+n, "all" when to be ignored, "416"
	}{
		{"bytes=0-0", "0+1"},
		{"BYTES = 0-0", "0+1"},
		{"bytes=0-", "0+100"},
		{"bytes=-1", "99+1"},
		{"bytes=-0", "416"},
		{"bytes=99-99", "99+1"},
		{"bytes=99-100000", "99+1"},
		{"bytes=100-", "416"},
		{"bytes=100-200,-0", "416"},
		{"bytes=0-9, 90-", "0+10 90+10"},
		{"bytes=90-,0-9", "90+10 0+10"},
		{"bytes=0-9,5-14", "0+10 5+10"},
		{"bytes=, 0-9 ,,", "0+10"},
		{"bytes=0-0,200-", "0+1"},
		{"bytes=-99999999999999999999", "0+100"},
		{"bytes=0-99999999999999999999", "0+100"},
		{"bytes=99999999999999999999-", "416"},
		{"bytes=0-59,40-99", "all"}, // 120 of 100 bytes
		{"bytes=", "all"},
		{"bytes=,", "all"},
		{"bytes", "all"},
		{"bytes=-", "all"},
		{"bytes=a-b", "all"},
		{"bytes=1-0", "all"},
		{"bytes=+1-2", "all"},
		{"bytes=1 - 2", "all"},
		{"bytes=0-1,x", "all"},
		{"rows=0-1", "all"},
		{many[:len(many)-1], "all"}, // 256 bytes of 100
		{strings.Repeat("bytes=0-0,", 1000), "all"},
	} {
		ranges, err := parseRange(test.field, 100)
		got := "all"
		if err != nil {
			got = "416"
		} else if ranges != nil {
			var parts []string
			for _, r := range ranges {
				parts = append(parts, fmt.Sprintf("%d+%d", r.off, r.n))
			}
			got = strings.Join(parts, " ")
		}
		if got != test.want {
			t.Errorf("%.60s: %s, want %s", test.field, got, test.want)
		}
	}
	if ranges, err := parseRange(many[:len(many)-1], 1000); len(ranges) != maxRanges || err != nil {
		t.Errorf("256 ranges: %d, %v", len(ranges), err)
	}
	if ranges, err := parseRange(many+"1-1", 1000); ranges != nil || err != nil {
		t.Errorf("257 ranges: %d, %v", len(ranges), err)
	}
	if _, err := parseRange("bytes=0-", 0); err == nil {
		t.Error("a range of an empty file")
	}
}

// FuzzRange: whatever is asked, ranges lie inside the file and are no more than it.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=-5", "bytes=5-", "bytes=1-2,3-4", "bytes=9-1", "bytes=,,", "x=1"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, field string, size int64) {
		if size < 0 {
			return
		}
		ranges, err := parseRange(field, size)
		var sum int64
		for _, r := range ranges {
			if r.off < 0 || r.n <= 0 || r.off+r.n > size || r.off+r.n < r.off {
				t.Errorf("%q of %d: %+v", field, size, r)
			}
			sum += r.n
		}
		if sum > size || len(ranges) > maxRanges || err != nil && ranges != nil {
			t.Errorf("%q of %d: %d ranges, %d bytes, %v", field, size, len(ranges), sum, err)
		}
	})
}

// TestMultipart: what a zchunk client sends and expects, on a stored file and on one that is still arriving.
func TestMultipart(t *testing.T) {
	w := newWorld(t)
	body := mirrortest.Bytes(7, 500_000)
	var ranges []string
	var parts []byteRange
	for i := range maxRanges {
		off, n := int64(i*1900), 1+rand.Int64N(1000)
		ranges = append(ranges, fmt.Sprintf("%d-%d", off, off+n-1))
		parts = append(parts, byteRange{off, n})
	}
	for _, name := range []string{"arriving", "stored"} {
		w.up.PutFile("up/43/primary.xml.zck", mirrortest.File{Body: body, ModTime: fileTime})
		var gate *mirrortest.Gate
		if name == "arriving" {
			gate = w.up.Hold("**", 100_000)
			go func() {
				gate.Wait(t.Context())
				gate.Release()
			}()
		}
		resp, err := get(t.Context(), w.url+"/pub/test/43/primary.xml.zck", "Range", "bytes="+strings.Join(ranges, ","))
		if err != nil {
			t.Fatal(err)
		}
		kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if resp.StatusCode != http.StatusPartialContent || kind != "multipart/byteranges" || err != nil {
			t.Fatalf("%s: %s %q %v", name, resp.Status, kind, err)
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || int64(len(raw)) != resp.ContentLength {
			t.Fatalf("%s: %d bytes of %d, %v", name, len(raw), resp.ContentLength, err)
		}
		mr := multipart.NewReader(bytes.NewReader(raw), params["boundary"])
		for i, want := range parts {
			part, err := mr.NextRawPart()
			if err != nil {
				t.Fatalf("%s: part %d: %v", name, i, err)
			}
			got, err := io.ReadAll(part)
			if err != nil || !bytes.Equal(got, body[want.off:want.off+want.n]) || part.Header.Get("Content-Range") != want.contentRange(int64(len(body))) {
				t.Errorf("%s: part %d: %d bytes, %q, %v", name, i, len(got), part.Header.Get("Content-Range"), err)
			}
		}
		if _, err := mr.NextRawPart(); err != io.EOF {
			t.Errorf("%s: behind the last part: %v", name, err)
		}
		w.settle(t)
	}
	if n := w.up.Count("**"); n != 1 {
		t.Errorf("upstream saw %d requests", n)
	}
}

func TestETagIsNginxs(t *testing.T) {
	for _, test := range []struct {
		sec, size int64
		want      string
	}{{1700000000, 10, `"6553f100-a"`}, {0, 0, `"0-0"`}, {1, -1, ""}} {
		if got := etag(time.Unix(test.sec, 999), test.size); got != test.want {
			t.Errorf("%d, %d: %s, want %s", test.sec, test.size, got, test.want)
		}
	}
	if got := etag(time.Time{}, 5); got != "" {
		t.Errorf("without a time: %s", got)
	}
}

// BenchmarkHit measures hits over loopback, client included: the ratio to net/http alone tells what is ours.
func BenchmarkHit(b *testing.B) {
	for _, size := range []int{20_000, 700_000_000} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			w := newWorld(b)
			view := *w.view.Load()
			view.AccessLog = false
			w.Swap(&view)
			w.up.PutFile("up/43/a.rpm", mirrortest.File{Body: make([]byte, size), ModTime: fileTime})
			client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
			fetch := func() {
				resp, err := client.Get(w.url + "/pub/test/43/a.rpm")
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if n != int64(size) || err != nil {
					b.Fatal(n, err)
				}
			}
			fetch()
			w.settle(b)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				fetch()
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			if n := w.up.Count("**"); n != 1 {
				b.Errorf("upstream saw %d requests", n)
			}
		})
	}
}

// cpu is the processor time that this process, client and server, has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMultiRange asks for 256 ranges of a stored file in one request, as zchunk does, and compares it with asking
// for as many bytes in one range.
func BenchmarkMultiRange(b *testing.B) {
	const size, n = 20_000_000, 2000
	w := newWorld(b)
	view := *w.view.Load()
	view.AccessLog = false
	w.Swap(&view)
	w.up.PutFile("up/43/primary.xml.zck", mirrortest.File{Body: make([]byte, size), ModTime: fileTime})
	var ranges []string
	for i := range maxRanges {
		ranges = append(ranges, fmt.Sprintf("%d-%d", i*70_000, i*70_000+n-1))
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	ask := func(field string) time.Duration {
		begun := time.Now()
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.url+"/pub/test/43/primary.xml.zck", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Range", field)
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.Copy(io.Discard, resp.Body); err != nil || got < maxRanges*n || resp.StatusCode != http.StatusPartialContent {
			b.Fatal(resp.Status, got, err)
		}
		return time.Since(begun)
	}
	one := fmt.Sprintf("bytes=0-%d", maxRanges*n-1)
	ask(one)
	w.settle(b)
	var many, single time.Duration
	for b.Loop() {
		many += ask("bytes=" + strings.Join(ranges, ","))
		single += ask(one)
	}
	b.ReportMetric(float64(many)/float64(single), "times-one-range")
}
