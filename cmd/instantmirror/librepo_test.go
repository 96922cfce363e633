package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// soak skips the test unless INSTANTMIRROR_SOAK asks for what takes long.
func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("INSTANTMIRROR_SOAK") == "" {
		t.Skip("runs in make soak")
	}
}

// librepo downloads the repository at url into dir/name as dnf does, with what earlier ones have left in dir.
func librepo(t *testing.T, dir, name, url string) {
	t.Helper()
	const script = `
import librepo, os, sys
url, dest, cache = sys.argv[1:]
os.makedirs(dest)
h = librepo.Handle()
h.repotype = librepo.YUMREPO
h.urls = [url]
h.destdir = dest
h.setopt(librepo.LRO_CACHEDIR, cache)
h.setopt(librepo.LRO_YUMDLIST, ["primary"])
h.setopt(librepo.LRO_CHECKSUM, True)
h.perform(librepo.Result())
`
	must(t, dir, "env", "LD_LIBRARY_PATH="+mirrortest.Tool(t, "librepo"), "/usr/bin/python3", "-c", script, url, filepath.Join(dir, name), dir)
}

// TestLibrepoZchunk lets librepo, built with zchunk as in Fedora, update a repository's metadata through the mirror by
// ranges, of which it asks for 256 at once.
func TestLibrepoZchunk(t *testing.T) {
	soak(t)
	mirrortest.Need(t, "zck")
	mirrortest.Tool(t, "librepo", "librepo.so.0")
	up := mirrortest.NewUpstream(t)
	old, wanted := manyChunks(t)
	var want []byte
	for name, file := range map[string]string{"old": old, "new": wanted} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		up.Put(name+"/repodata/primary.xml.zck", b)
		up.Put(name+"/repodata/repomd.xml", repomdOf(t, "primary.xml.zck", file))
		if name == "new" {
			want = b
		}
	}
	dir := t.TempDir()
	profileFile(t, dir, "one", profileText("one", up.URL, ""))
	configFile(t, dir, "")
	d := serve(t, dir)
	between := newRecorder(t, d.url)

	for _, state := range []string{"cold", "stored"} {
		client := t.TempDir()
		librepo(t, client, "old", between.url+"/pub/one/old/")
		between.reset()
		librepo(t, client, "new", between.url+"/pub/one/new/")
		got, err := os.ReadFile(filepath.Join(client, "new/repodata/primary.xml.zck"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: librepo has %d bytes of %d, or other ones: %v", state, len(got), len(want), err)
		}
		ranges := 0
		for _, a := range between.reset() {
			if a.ranges != "" {
				a.check(t, want)
				ranges = max(ranges, 1+strings.Count(a.ranges, ","))
			}
		}
		if ranges != 256 {
			t.Errorf("%s: librepo asked for %d ranges at once", state, ranges)
		}
		if n := up.Count("new/repodata/primary.xml.zck"); n != 1 {
			t.Errorf("%s: upstream was asked %d times:\n%s", state, n, up.Log())
		}
		d.stored(t, "new/repodata/primary.xml.zck")
	}
}

// zckHeader is what zck_read_header says of a zchunk file's header.
var zckHeader = regexp.MustCompile(`Header size: (\d+)\nHeader checksum: ([0-9a-f]+)\n`)

// repomdOf is the repomd.xml of a repository that has one file, a zchunk one.
func repomdOf(t *testing.T, name, file string) []byte {
	t.Helper()
	dir := filepath.Dir(file)
	header := zckHeader.FindStringSubmatch(must(t, dir, "zck_read_header", file))
	sum, _, _ := strings.Cut(must(t, dir, "sha256sum", file), " ")
	plain, _, _ := strings.Cut(must(t, dir, "sh", "-c", `unzck -c "$0" | sha256sum`, file), " ")
	info, err := os.Stat(file)
	if err != nil || header == nil {
		t.Fatal(header, err)
	}
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo"><revision>1</revision>
  <data type="primary_zck">
    <checksum type="sha256">%s</checksum>
    <open-checksum type="sha256">%s</open-checksum>
    <header-checksum type="sha256">%s</header-checksum>
    <location href="repodata/%s"/>
    <timestamp>1</timestamp>
    <size>%d</size>
    <header-size>%s</header-size>
  </data>
</repomd>
`, sum, plain, header[2], name, info.Size(), header[1])
}
