package server

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestStats: what is counted of each kind of answer.
func TestStats(t *testing.T) {
	w := newWorld(t)
	w.up.PutFile("up/43/a.rpm", mirrortest.File{Body: make([]byte, 1000), ModTime: fileTime})
	ask := func(method, path string, header ...string) {
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
		}()
		var to http.ResponseWriter = httptest.NewRecorder()
		if method == "GONE" {
			r.Method, to = "GET", gone{to}
		}
		w.ServeHTTP(to, r)
	}
	const a = "/pub/test/43/a.rpm"
	for _, step := range []struct {
		name string
		do   func()
		want Stats
	}{
		{"miss", func() { ask("GET", a); w.settle(t) }, Stats{Requests: 1, Sent: 1000}},
		{"hit", func() { ask("GET", a) }, Stats{Requests: 2, Hits: 1, Sent: 2000}},
		{"range", func() { ask("GET", a, "Range", "bytes=0-9") }, Stats{Requests: 3, Hits: 2, Sent: 2010}},
		{"head", func() { ask("HEAD", a) }, Stats{Requests: 4, Hits: 3, Sent: 2010}},
		{"not modified", func() { ask("GET", a, "If-None-Match", etag(fileTime, 1000)) }, Stats{Requests: 5, Hits: 4, Sent: 2010}},
		{"absent", func() { ask("GET", "/pub/test/43/none.rpm") }, Stats{Requests: 5, Hits: 4, Sent: 2010}},
		{"wrong range", func() { ask("GET", a, "Range", "bytes=5000-") }, Stats{Requests: 5, Hits: 4, Sent: 2010}},
		{"of ours", func() { ask("GET", "/-/healthz"); ask("GET", "/pub/test/43/"); ask("POST", a) }, Stats{Requests: 5, Hits: 4, Sent: 2010}},
		{"broken off", func() { ask("GONE", a) }, Stats{Requests: 5, Hits: 4, Failed: 1, Sent: 2010}},
		{"nobody can answer", func() { w.up.Stop(); ask("GET", "/pub/test/43/other.rpm") }, Stats{Requests: 5, Hits: 4, Failed: 2, Sent: 2010}},
	} {
		step.do()
		if got := w.Stats(); got != step.want {
			t.Errorf("%s: %+v, want %+v", step.name, got, step.want)
		}
	}
}

// gone is a client that has left.
type gone struct{ http.ResponseWriter }

func (gone) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// TestStatusPage: what it says is the daemon's business.
func TestStatusPage(t *testing.T) {
	w := newWorld(t)
	ask := func(method string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, "/-/api/status", nil))
		return rec
	}
	if rec := ask("GET"); rec.Code != 404 {
		t.Errorf("without one: %d", rec.Code)
	}
	view := *w.view.Load()
	view.Status = func() any { return map[string]int{"x": 1} }
	w.Swap(&view)
	if rec := ask("GET"); rec.Code != 200 || rec.Body.String() != "{\n  \"x\": 1\n}\n" || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d, %s: %s", rec.Code, rec.Header(), rec.Body)
	}
	if rec := ask("HEAD"); rec.Code != 200 || rec.Body.Len() != 0 {
		t.Errorf("HEAD: %d, %s", rec.Code, rec.Body)
	}
	view.Status = func() any { return make(chan int) }
	w.Swap(&view)
	if rec := ask("GET"); rec.Code != 500 {
		t.Errorf("what is no JSON: %d", rec.Code)
	}
}
