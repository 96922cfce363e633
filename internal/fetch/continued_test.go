package fetch

import (
	"bytes"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// TestContinuedWithoutDigest: what breaks off and has no digest goes on only where the rest is surely of the same file;
// else it is broken off, and nothing is stored.
func TestContinuedWithoutDigest(t *testing.T) {
	old, changed := random(1<<20), random(1<<20 + 1)[1:]
	early, late := time.Unix(1700000000, 0), time.Unix(1700000500, 0)
	for name, test := range map[string]struct {
		first, then mirrortest.File
		fault       mirrortest.Fault // of the request for the rest
		whole       bool
	}{
		"same ETag": {
			first: mirrortest.File{Body: old, ETag: `"a"`}, then: mirrortest.File{Body: old, ETag: `"a"`}, whole: true,
		},
		"same time, no ETag": {
			first: mirrortest.File{Body: old, ETag: "-", ModTime: early}, then: mirrortest.File{Body: old, ETag: "-", ModTime: early}, whole: true,
		},
		"another ETag": {
			first: mirrortest.File{Body: old, ETag: `"a"`}, then: mirrortest.File{Body: changed, ETag: `"b"`},
		},
		"another time, no ETag": {
			first: mirrortest.File{Body: old, ETag: "-", ModTime: early}, then: mirrortest.File{Body: changed, ETag: "-", ModTime: late},
		},
		"same ETag, another time": {
			first: mirrortest.File{Body: old, ETag: `"a"`, ModTime: early}, then: mirrortest.File{Body: changed, ETag: `"a"`, ModTime: late},
		},
		"same ETag, another length": {
			first: mirrortest.File{Body: old, ETag: `"a"`}, then: mirrortest.File{Body: append(bytes.Clone(old), 1), ETag: `"a"`},
		},
		"weak ETag": {
			first: mirrortest.File{Body: old, ETag: `W/"a"`, ModTime: early}, then: mirrortest.File{Body: changed, ETag: `W/"a"`, ModTime: early},
		},
		"no validator": {
			first: mirrortest.File{Body: old, ETag: "-"}, then: mirrortest.File{Body: changed, ETag: "-"},
		},
		"a server that knows no If-Range": {
			first: mirrortest.File{Body: old, ETag: `"a"`}, then: mirrortest.File{Body: changed, ETag: `"b"`},
			fault: mirrortest.Fault{Range: "bytes=300000-"},
		},
		"a server that knows no ranges": {
			first: mirrortest.File{Body: old, ETag: `"a"`}, then: mirrortest.File{Body: old, ETag: `"a"`},
			fault: mirrortest.Fault{NoRange: true}, whole: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.up.PutFile("pub/"+path, test.first)
			w.up.Fault("**", test.fault)
			w.up.Fault("**", mirrortest.Fault{Truncate: true, At: 300_000}.Once())
			gate := w.up.Hold("pub/"+path, 200_000)
			f, _ := w.Join(w.job())
			if err := gate.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.up.PutFile("pub/"+path, test.then)
			gate.Release()
			got, err := body(t.Context(), f)
			r := <-w.results
			switch {
			case test.whole && (err != nil || !bytes.Equal(got, old) || !r.Kept):
				t.Errorf("got %d bytes, %v; %+v", len(got), err, r)
			case !test.whole && (err == nil || !bytes.HasPrefix(old, got) || r.Kept):
				t.Errorf("got %d bytes, %v; %+v\n%s", len(got), err, r, w.up.Log())
			}
		})
	}
}

// TestContinuedElsewhere: another host's file is another file, if no digest says otherwise, whatever its validator.
func TestContinuedElsewhere(t *testing.T) {
	w := newWorld(t)
	mirrors := []*mirrortest.Upstream{mirrortest.NewUpstream(t), mirrortest.NewUpstream(t)}
	want := random(1 << 20)
	for _, m := range mirrors {
		m.PutFile(path, mirrortest.File{Body: want, ETag: `"a"`, ModTime: time.Unix(1700000000, 0)})
		m.Fault("**", mirrortest.Fault{Truncate: true, At: 300_000}.Once())
	}
	w.up.Fault("**", mirrortest.Fault{Redirect: mirrors[0].URL + "/" + path})
	w.up.Fault("**", mirrortest.Fault{Redirect: mirrors[1].URL + "/" + path}.Once())
	f, _ := w.Join(w.job())
	if got, err := body(t.Context(), f); err == nil {
		t.Errorf("got %d bytes of two hosts", len(got))
	}
	if r := <-w.results; r.Kept {
		t.Errorf("result %+v", r)
	}
}
