package monitor

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// realGeneration is one state of a real repository. What it names is read from it here, by other means than the mirror's.
type realGeneration struct {
	files    map[string]mirrortest.File
	records  []string          // paths
	packages map[string]string // path → sha256, in hex
}

// readGeneration reads the repository in dir. Packages of which it has no bytes may be in others, by their names.
func readGeneration(t *testing.T, dir string, others ...string) *realGeneration {
	t.Helper()
	g := &realGeneration{files: map[string]mirrortest.File{}, packages: map[string]string{}}
	read := func(name string) []byte {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, name)
			g.files[filepath.ToSlash(rel)] = mirrortest.File{Body: read(name)}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	type location struct {
		Href string `xml:"href,attr"`
	}
	var md struct {
		Revision int64 `xml:"revision"`
		Data     []struct {
			Type     string   `xml:"type,attr"`
			Location location `xml:"location"`
		} `xml:"data"`
	}
	var primary struct {
		Packages []struct {
			Checksum string   `xml:"checksum"`
			Location location `xml:"location"`
		} `xml:"package"`
	}
	if err := xml.Unmarshal(g.files["repodata/repomd.xml"].Body, &md); err != nil {
		t.Fatal(err)
	}
	for _, data := range md.Data {
		g.records = append(g.records, data.Location.Href)
		if data.Type == "primary" {
			if err := xml.Unmarshal(unpack(t, data.Location.Href, g.files[data.Location.Href].Body), &primary); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range primary.Packages {
		g.packages[p.Location.Href] = p.Checksum
		for _, dir := range others {
			if body, err := os.ReadFile(filepath.Join(dir, path.Base(p.Location.Href))); err == nil && hexOf(body) == p.Checksum {
				g.files[p.Location.Href] = mirrortest.File{Body: body}
			}
		}
	}
	for name, f := range g.files {
		f.ModTime = time.Unix(md.Revision, 0)
		g.files[name] = f
	}
	if len(g.packages) == 0 || len(g.records) == 0 {
		t.Fatalf("%s names nothing", dir)
	}
	return g
}

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func unpack(t *testing.T, name string, body []byte) []byte {
	t.Helper()
	var r io.Reader
	var err error
	switch path.Ext(name) {
	case ".zst":
		r, err = zstd.NewReader(bytes.NewReader(body))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(body))
	}
	if err == nil {
		body, err = io.ReadAll(r)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return body
}

// held are the packages of g of which there are bytes.
func (g *realGeneration) held() (list []string) {
	for _, p := range slices.Sorted(maps.Keys(g.packages)) {
		if _, ok := g.files[p]; ok {
			list = append(list, p)
		}
	}
	return list
}

// TestRealHistory: nine states of a real repository, in two weeks of which packages came, went, and changed their bytes
// under the same name.
func TestRealHistory(t *testing.T) {
	dir := mirrortest.Fixtures(t, "azurelinux-zst-history")
	snaps, err := filepath.Glob(filepath.Join(dir, "snap*"))
	if err != nil || len(snaps) != 9 {
		t.Fatalf("%d states, %v", len(snaps), err)
	}
	var gens []*realGeneration
	for _, snap := range snaps {
		gens = append(gens, readGeneration(t, snap, filepath.Join(dir, "same-nevra-pairs", "old"), filepath.Join(dir, "same-nevra-pairs", "new")))
	}
	playReal(t, gens)
}

// TestRealSigned: the same six packages, unsigned, signed by one key and signed by another, with zchunk beside gzip.
func TestRealSigned(t *testing.T) {
	var gens []*realGeneration
	for _, name := range []string{"unsigned", "signed-rsa", "signed-ed25519"} {
		gens = append(gens, readGeneration(t, mirrortest.Fixtures(t, "generated", name)))
	}
	playReal(t, gens)
}

// TestRealZchunk: a repository to which ten packages were added.
func TestRealZchunk(t *testing.T) {
	playReal(t, []*realGeneration{
		readGeneration(t, mirrortest.Fixtures(t, "generated", "zck-update", "old")), readGeneration(t, mirrortest.Fixtures(t, "generated", "zck-update", "new")),
	})
}

// playReal plays gens as upstream, one after the other, while clients hammer.
func playReal(t *testing.T, gens []*realGeneration) {
	w := newWorld(t, oneOrigin)
	w.push("a/os", gens[0].files)
	w.meet("os")
	fetch := func(g *realGeneration) { // as a client that uses all of it
		t.Helper()
		for _, name := range append(slices.Clone(g.records), g.held()...) {
			w.want("os/"+name, g.files[name].Body)
			for deadline := time.Now().Add(10 * time.Second); !w.holds("os/" + name); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) { // clients have it before it is committed
					t.Fatalf("%s is not stored", name)
				}
			}
		}
	}
	fetch(gens[0])
	h := hammer(w, gens, 4)
	for i, g := range gens[1:] {
		before := gens[i]
		files, inodes := w.stored("os"), map[string]uint64{}
		for _, name := range files {
			inodes[name] = w.inode("os/" + name)
		}
		w.push("a/os", g.files)
		h.current.Store(int64(i + 1))
		w.is(w.look("os"), Published)
		h.since.Store(int64(i + 1))

		// The diff, made here.
		changed, vanished := map[string]bool{}, map[string]bool{}
		for p, sum := range before.packages {
			switch now, ok := g.packages[p]; {
			case !ok:
				vanished[p] = true
			case now != sum:
				changed[p] = true
			}
		}
		for _, p := range before.records {
			if !slices.Contains(g.records, p) {
				vanished[p] = true
			}
		}
		for _, name := range files {
			if changed[name] || strings.HasPrefix(path.Base(name), "repomd.xml") {
				continue
			}
			if w.inode("os/"+name) != inodes[name] {
				t.Errorf("state %d: %s did not change, and was touched", i+1, name)
			}
		}
		for name := range changed {
			entries, err := w.journal.Find(t.Context(), base+"os/"+name, 100)
			n := 0
			for _, e := range entries {
				if e.Reason == "replaced" && e.To == mustRepo(w).Pointer.Generation() {
					n++
				}
			}
			// A client that asks before it is deleted has the new one put in its place.
			stored := slices.Contains(files, name)
			if err != nil || n != 0 && !stored || n > 1 || stored && n == 0 && (!w.holds("os/"+name) || w.inode("os/"+name) == inodes[name]) {
				t.Errorf("state %d: %s changed, was stored: %v, and went %d times: %+v, %v", i+1, name, stored, n, entries, err)
			}
		}
		leaving := map[string]bool{}
		err := w.index.EachLeaving(base+"os", func(l index.Leaving) error {
			if l.To == mustRepo(w).Pointer.Generation() {
				leaving[strings.TrimPrefix(l.Path, base+"os/")] = true
			}
			return nil
		})
		if err != nil || !maps.Equal(leaving, vanished) {
			t.Errorf("state %d: %d paths leave, want %d: %v", i+1, len(leaving), len(vanished), err)
		}
		// Whoever has the repomd.xml before finds what it names, though upstream has it no more.
		for _, p := range before.records {
			w.want("os/"+p, before.files[p].Body)
		}
		for p := range vanished {
			if f, ok := before.files[p]; ok {
				w.want("os/"+p, f.Body)
			}
		}
		fetch(g)
		w.sound()
		t.Logf("state %d: %d changed, %d vanished; clients read %d times", i+1, len(changed), len(vanished), h.reads.Load())
	}
	h.stop()

	// When the grace has ended just that goes which the last state does not name.
	w.age("os", 25*time.Hour)
	w.expire("os")
	last := gens[len(gens)-1]
	for _, name := range w.stored("os") {
		_, named := last.packages[name]
		if !named && !slices.Contains(last.records, name) && !strings.HasPrefix(path.Base(name), "repomd.xml") {
			t.Errorf("%s is still here", name)
		}
	}
	for _, name := range append(slices.Clone(last.records), last.held()...) {
		if !w.holds("os/" + name) {
			t.Errorf("%s went", name)
		}
	}
	w.sound()
}

func mustRepo(w *world) *index.Repo {
	w.t.Helper()
	r, ok := w.index.Repo(base + "os")
	if !ok {
		w.t.Fatal("the repository is not known")
	}
	return r
}

// hammering are clients that read a repository as dnf does, without a pause.
type hammering struct {
	reads   atomic.Int64 // whole repositories
	current atomic.Int64 // which state upstream has, at most
	since   atomic.Int64 // which state the mirror has, at least
	ended   chan struct{}
	wg      sync.WaitGroup
}

func (h *hammering) stop() {
	close(h.ended)
	h.wg.Wait()
}

// hammer starts n clients. Each repomd.xml that one gets is a state of gens, never an older one than before, and all that it
// names and is used here can be had and matches.
func hammer(w *world, gens []*realGeneration, n int) *hammering {
	h := &hammering{ended: make(chan struct{})}
	which := map[string]int{}
	for i, g := range gens {
		which[string(g.files["repodata/repomd.xml"].Body)] = i
	}
	read := func(newest int) int {
		floor := int(h.since.Load())
		body, err := w.get("os/repodata/repomd.xml")
		i, ok := which[string(body)]
		switch {
		case err != nil || !ok:
			w.t.Errorf("repomd.xml: %d bytes, %v", len(body), err)
			return newest
		case i < newest || i < floor || i > int(h.current.Load()):
			w.t.Errorf("state %d after state %d, and the mirror has %d already", i, newest, floor)
		}
		g := gens[i]
		for _, p := range g.records {
			if body, err := w.get("os/" + p); err != nil || !bytes.Equal(body, g.files[p].Body) {
				w.t.Errorf("state %d: %s: %d bytes, %v", i, p, len(body), err)
			}
		}
		for _, p := range g.held() {
			body, err := w.get("os/" + p)
			// A client that is overtaken by the next push may get what that means by the name.
			right := err == nil && slices.ContainsFunc(gens[i:h.current.Load()+1], func(g *realGeneration) bool { return g.packages[p] == hexOf(body) })
			if !right {
				w.t.Errorf("state %d: %s: %d bytes, %v", i, p, len(body), err)
			}
		}
		h.reads.Add(1)
		return i
	}
	for range n {
		h.wg.Go(func() {
			newest := 0
			for {
				select {
				case <-h.ended:
					return
				default:
					newest = read(newest)
				}
			}
		})
	}
	return h
}
