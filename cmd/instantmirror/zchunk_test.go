package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// zckPair is a file that a client has and one that it wants: many chunks of it are the same.
type zckPair struct {
	old, wanted string // files
	digest      bool   // a repomd.xml says what the wanted one must be

	requests int // which zckdl makes for it
	gate     int // bytes of it from upstream with which it can make
	early    int // so many of them
}

// TestZchunk lets zckdl update files through the mirror, by the ranges that it lacks: nothing is stored yet; the file
// is arriving; it is stored.
func TestZchunk(t *testing.T) {
	mirrortest.Need(t, "zckdl", "zck")
	up := mirrortest.NewUpstream(t)
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL, ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	between := newRecorder(t, d.url)

	t.Run("createrepo_c", func(t *testing.T) {
		// A file shorter than what is held back until the digest is right: all of it comes at the end.
		dir := mirrortest.Fixtures(t, "generated", "zck-update")
		zchunk(t, d, up, between, "a", zckPair{glob(t, dir, "old/repodata/*-primary.xml.zck"), glob(t, dir, "new/repodata/*-primary.xml.zck"), true, 3, 10_000, 0})
	})
	t.Run("libzypp", func(t *testing.T) {
		dir := mirrortest.Fixtures(t, "libzypp", "data", "http")
		zchunk(t, d, up, between, "b", zckPair{dir + "/primary-deltatemplate.xml.zck", dir + "/primary.xml.zck", true, 3, 50_000, 2})
	})
	// 600 chunks are missing: zckdl asks for 255 of them at once (librepo for 256), twice, and for the rest.
	old, wanted := manyChunks(t)
	t.Run("many", func(t *testing.T) {
		zchunk(t, d, up, between, "c", zckPair{old, wanted, true, 5, 200_000, 3})
	})
	t.Run("many unverified", func(t *testing.T) {
		zchunk(t, d, up, between, "d", zckPair{old, wanted, false, 5, 200_000, 3})
	})
}

// zchunk runs the three cases below top, each of which must bring upstream's file and cost it one request.
func zchunk(t *testing.T, d *daemonProcess, up *mirrortest.Upstream, between *recorder, top string, pair zckPair) {
	want, err := os.ReadFile(pair.wanted)
	if err != nil {
		t.Fatal(err)
	}

	between.reset()

	// begin puts the file below name and returns its path there.
	begin := func(name string) string {
		name = top + "/" + name
		file := name + "/repodata/" + filepath.Base(pair.wanted)
		up.Put(file, want)
		if pair.digest {
			up.Put(name+"/repodata/repomd.xml", repomdOf(t, path.Base(file), pair.wanted))
			if status, _, _ := d.get("/pub/one/" + name + "/repodata/repomd.xml"); status != http.StatusOK {
				t.Fatal(status)
			}
		}
		return file
	}
	// end checks what zckdl got, how it was answered, and what upstream saw.
	end := func(t *testing.T, file, got string, mark, asked int) []answered {
		t.Helper()
		b, err := os.ReadFile(got)
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("zckdl has %d bytes of %d, or other ones: %v", len(b), len(want), err)
		}
		answers := between.reset()
		if len(answers) != pair.requests {
			t.Errorf("zckdl made %d requests, not %d", len(answers), pair.requests)
		}
		log := d.accesses(t, mark, file, len(answers))
		for _, a := range answers {
			a.check(t, want)
			line := access{http.MethodGet, "/pub/one/" + file, a.status, int64(len(a.body)), a.ranges, a.cache}
			if !slices.Contains(log, line) {
				t.Errorf("the access log has no line %+v", line)
			}
		}
		if n := up.Count(file); n != asked {
			t.Errorf("upstream was asked %d times:\n%s", n, up.Log())
		}
		return answers
	}

	cold := begin("cold")
	t.Run("cold", func(t *testing.T) {
		mark := len(d.logged())
		got := zckdl(t, pair.old, between.url+"/pub/one/"+cold)
		if a := end(t, cold, got, mark, 1); !strings.Contains(a[0].cache, "fwd=uri-miss") {
			t.Errorf("the first answer was %s", a[0].cache)
		}
	})
	t.Run("arriving", func(t *testing.T) {
		file := begin("arriving")
		mark := len(d.logged())
		gate := up.Hold(file, int64(pair.gate))
		defer gate.Release()
		early := make(chan int, 1)
		go func() { // upstream goes on when zckdl has what it can have by now
			gate.Wait(t.Context())
			for deadline := time.Now().Add(3 * time.Second); len(between.seen()) < pair.early && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			early <- len(between.seen())
			gate.Release()
		}()
		got := zckdl(t, pair.old, between.url+"/pub/one/"+file)
		if n := <-early; n < pair.early {
			t.Errorf("zckdl had %d answers, not %d, when %d bytes had arrived", n, pair.early, pair.gate)
		}
		for i, a := range end(t, file, got, mark, 1) {
			if i < max(1, pair.early) && !strings.Contains(a.cache, "fwd=uri-miss") {
				t.Errorf("answer %d of a file that is arriving was %s", i, a.cache)
			}
		}
	})
	t.Run("stored", func(t *testing.T) {
		up.WaitIdle(t.Context())
		d.stored(t, cold)
		up.Reset()
		mark := len(d.logged())
		got := zckdl(t, pair.old, between.url+"/pub/one/"+cold)
		for _, a := range end(t, cold, got, mark, 0) {
			if a.cache != "instantmirror; hit" && !strings.HasPrefix(a.cache, "instantmirror; hit; ttl=") {
				t.Errorf("a stored file was answered with %s", a.cache)
			}
		}
		// As many ranges as librepo asks for.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, between.url+"/pub/one/"+cold, nil)
		if err != nil {
			t.Fatal(err)
		}
		var ranges []string
		for i := range 256 {
			ranges = append(ranges, fmt.Sprintf("%d-%d", i*len(want)/256, i*len(want)/256+len(want)/512))
		}
		req.Header.Set("Range", "bytes="+strings.Join(ranges, ","))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		between.reset()[0].check(t, want)
	})
}

// stored returns when the file at path is in the tree.
func (d *daemonProcess) stored(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(filepath.Join(d.root(), "pub/one", path))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// zckdl downloads a file with one that is there already, by ranges or not at all, and returns the name of what it made.
func zckdl(t *testing.T, old, url string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, dir, "zckdl", "--fail-no-ranges", "-s", old, url)
	return filepath.Join(dir, path.Base(url))
}

func glob(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) != 1 {
		t.Fatal(dir, pattern, names, err)
	}
	return names[0]
}

// manyChunks makes a pair of some hundred kB with 1,200 small chunks, every other of which has changed.
func manyChunks(t *testing.T) (old, wanted string) {
	t.Helper()
	dir := t.TempDir()
	for version, name := range []string{"old", "new"} {
		var b bytes.Buffer
		b.WriteString("<metadata>\n")
		for i := range 1200 {
			r := rand.New(rand.NewPCG(uint64(i), uint64(version*(i%2))))
			fmt.Fprintf(&b, "<package type=\"rpm\">%04d ", i)
			for range 300 {
				b.WriteByte('a' + byte(r.IntN(26)))
			}
			b.WriteString("</package>\n")
		}
		b.WriteString("</metadata>\n")
		if err := os.WriteFile(filepath.Join(dir, name+".xml"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		must(t, dir, "zck", "-s", "<package ", "-o", name+".xml.zck", name+".xml")
	}
	return dir + "/old.xml.zck", dir + "/new.xml.zck"
}

// recorder is a reverse proxy that keeps what the server behind it answered.
type recorder struct {
	url string

	mu      sync.Mutex
	answers []*answered
}

type answered struct {
	ranges string // which were asked for
	status int
	cache  string // Cache-Status
	header http.Header
	body   []byte
	done   bool
}

func (a answered) String() string {
	return fmt.Sprintf("GET %.60s → %d, %s", a.ranges, a.status, a.cache)
}

func newRecorder(t *testing.T, behind string) *recorder {
	t.Helper()
	target, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	rec := new(recorder)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		FlushInterval: -1,
		ModifyResponse: func(resp *http.Response) error {
			a := &answered{ranges: resp.Request.Header.Get("Range"), status: resp.StatusCode, cache: resp.Header.Get("Cache-Status"), header: resp.Header.Clone()}
			rec.mu.Lock()
			rec.answers = append(rec.answers, a)
			rec.mu.Unlock()
			resp.Body = &recording{resp.Body, rec, a}
			return nil
		},
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	rec.url = server.URL
	return rec
}

// recording keeps what is read of a body.
type recording struct {
	io.ReadCloser
	rec *recorder
	a   *answered
}

func (r *recording) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	r.a.body = append(r.a.body, p[:n]...)
	r.a.done = r.a.done || err != nil
	return n, err
}

// Close is all that comes of a client that leaves.
func (r *recording) Close() error {
	r.rec.mu.Lock()
	defer r.rec.mu.Unlock()
	r.a.done = true
	return r.ReadCloser.Close()
}

// seen are the answers that are over, so far.
func (rec *recorder) seen() []answered {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var list []answered
	for _, a := range rec.answers {
		if a.done {
			list = append(list, *a)
		}
	}
	return list
}

// reset gives all answers since the last reset. The client has got them, so that they end soon.
func (rec *recorder) reset() []answered {
	for {
		list := rec.seen()
		rec.mu.Lock()
		if len(list) == len(rec.answers) {
			rec.answers = nil
			rec.mu.Unlock()
			return list
		}
		rec.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

// check fails the test unless the answer is a right one to its ranges of the file want, with nothing beyond them.
func (a answered) check(t *testing.T, want []byte) {
	t.Helper()
	if n := a.header.Get("Content-Length"); a.status != http.StatusPartialContent || n != strconv.Itoa(len(a.body)) {
		t.Errorf("%v: Content-Length %s, and %d bytes", a, n, len(a.body))
		return
	}
	specs := strings.Split(strings.TrimPrefix(a.ranges, "bytes="), ",")
	for i, spec := range specs {
		specs[i] = fmt.Sprintf("bytes %s/%d", spec, len(want))
	}
	part := func(spec string, got []byte) {
		var first, last, size int
		fmt.Sscanf(spec, "bytes %d-%d/%d", &first, &last, &size)
		if !bytes.Equal(got, want[first:last+1]) {
			t.Errorf("%v: %s has other bytes", a, spec)
		}
	}
	if len(specs) == 1 {
		if got := a.header.Get("Content-Range"); got != specs[0] {
			t.Errorf("%v: %s", a, got)
		}
		part(specs[0], a.body)
		return
	}
	kind, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		t.Errorf("%v: %s, %v", a, kind, err)
		return
	}
	var got []string
	for parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"]); ; {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("%v: %v", a, err)
			return
		}
		body, err := io.ReadAll(p)
		if err != nil {
			t.Errorf("%v: %v", a, err)
		}
		spec := p.Header.Get("Content-Range")
		got = append(got, spec)
		part(spec, body)
	}
	if !slices.Equal(got, specs) {
		t.Errorf("%v: %d ranges were sent: %.200v", a, len(got), got)
	}
	// The parts' headers and boundaries are all that is sent beside the ranges.
	if over := len(a.body) - sumOf(specs); over > 200*len(specs)+100 {
		t.Errorf("%v: %d bytes beside the ranges", a, over)
	}
}

// sumOf is how many bytes Content-Range fields speak of.
func sumOf(specs []string) (sum int) {
	for _, spec := range specs {
		var first, last int
		fmt.Sscanf(spec, "bytes %d-%d", &first, &last)
		sum += last - first + 1
	}
	return sum
}
