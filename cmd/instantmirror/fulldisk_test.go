package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// smallDisk is a file system of its own, of 64 MiB. It is mounted where no other process sees it, and so vanishes with the
// tests, however they end.
type smallDisk struct {
	holder *exec.Cmd // whose mount namespace it is
	at     string    // in there
}

func newSmallDisk(t *testing.T, options string) *smallDisk {
	t.Helper()
	mirrortest.Need(t, "nsenter", "mount")
	s := &smallDisk{at: t.TempDir()}
	s.holder = exec.Command("sh", "-c", `mount -t tmpfs -o "$2" tmpfs "$1" && echo mounted && exec cat`, "sh", s.at, "size=64m"+options)
	s.holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := s.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.holder.Start(); err != nil {
		t.Skipf("no mount namespace here (%v): run as root, in a container with --cap-add=SYS_ADMIN", err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = s.holder.Wait()
	})
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Skip("no tmpfs can be mounted here: run as root, in a container with --cap-add=SYS_ADMIN")
	}
	return s
}

// outside is the way to the disk for those who are not in its mount namespace.
func (s *smallDisk) outside() string {
	return fmt.Sprintf("/proc/%d/root%s", s.holder.Process.Pid, s.at)
}

// serve starts a daemon of w, which is on the disk, with its state in the directory state.
func (s *smallDisk) serve(w *crashWorld, state string) *daemonProcess {
	w.t.Helper()
	d := w.daemon()
	args := []string{"-m", "-t", fmt.Sprint(s.holder.Process.Pid), "--", d.Path, "serve", "--config", s.at + "/instantmirror.yaml",
		"--root", s.at + "/root", "--state", state}
	env := d.Env
	d.Cmd = exec.Command("nsenter", args...)
	d.Env = env
	d.begin()
	return d
}

// world makes the place of a mirror on the disk.
func (s *smallDisk) world(t *testing.T) *crashWorld {
	t.Helper()
	w := newCrashWorld(t)
	w.dir = s.outside()
	w.configure()
	config := filepath.Join(w.dir, "instantmirror.yaml")
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, bytes.ReplaceAll(text, []byte(w.dir), []byte(s.at)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// fill fills the file system of dir with a file until not a byte more goes in.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// wants is what clients ask of one path.
type wants struct {
	path   string
	off, n int // n == 0: all of it
}

// ways are a whole file, a part in the middle, and one with the last byte.
func (w *crashWorld) ways(paths ...string) (list []wants) {
	for _, p := range paths {
		size := len(w.newest(p))
		list = append(list, wants{p, 0, 0}, wants{p, size / 3, size / 9}, wants{p, size - size/9, size / 9})
	}
	return list
}

// twice is two clients for each whole file.
func twice(paths ...string) (list []wants) {
	for _, p := range paths {
		list = append(list, wants{p, 0, 0}, wants{p, 0, 0})
	}
	return list
}

// all asks for all of list at once, and fails the test unless all comes, whole and right.
func (w *crashWorld) all(d *daemonProcess, when string, list []wants) {
	w.t.Helper()
	w.async(d, when, list)()
}

// async is all that goes on until the function that it returns waits for it.
func (w *crashWorld) async(d *daemonProcess, when string, list []wants) (wait func()) {
	var clients sync.WaitGroup
	for _, q := range list {
		clients.Go(func() {
			if err := w.ask(w.t.Context(), d.url, q.path, q.off, q.n); err != nil {
				w.t.Errorf("%s: %s (%d+%d): %v", when, q.path, q.off, q.n, err)
			}
		})
	}
	return clients.Wait
}

// forgive takes the errors out of the log of d that a full disk below its state causes, rightly, and no others.
func (d *daemonProcess) forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for line := range strings.Lines(d.log.String()) {
		if !strings.Contains(line, "level=ERROR msg=index") || !strings.Contains(line, "no space left on device") {
			b.WriteString(line)
		}
	}
	d.log.Reset()
	d.log.WriteString(b.String())
}

// TestFullDisk: on a disk that is too small, or fills up at any moment, clients get right bytes all the same, and nothing
// short stays. When there is room again files are stored again.
func TestFullDisk(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		name := "state on the same disk"
		if elsewhere {
			name = "state elsewhere"
		}
		t.Run(name, func(t *testing.T) {
			disk := newSmallDisk(t, "")
			state := disk.at + "/state"
			if elsewhere {
				state = t.TempDir()
			}
			w := disk.world(t)
			begin := func() *daemonProcess { return disk.serve(w, state) }
			testFullDisk(w, begin, elsewhere && !testing.Short())
		})
	}
}

// testFullDisk does it with the daemons that begin begins; with large set, also with files that don't fit at all.
func testFullDisk(w *crashWorld, begin func() *daemonProcess, large bool) {
	t := w.t
	const mids, midSize, bigSize = 6, 12 << 20, 66 << 20
	// Metadata as large as images are: their digests are known, and nobody has to compress them.
	repo := mirrortest.Repo{Plain: true, Extra: map[string][]byte{}}
	for i := range mids {
		repo.Extra[fmt.Sprintf("mid%d", i)] = mirrortest.Bytes(uint64(i)+2, midSize)
	}
	if large {
		repo.Extra["big"] = mirrortest.Bytes(1, bigSize)
		w.put("big.iso", mirrortest.File{Body: repo.Extra["big"], ModTime: mirrortest.Epoch})
		w.put("chunked.img", mirrortest.File{Body: repo.Extra["big"], ModTime: mirrortest.Epoch})
	}
	var big, pointer string
	var mid []string
	for rel, f := range repo.Files() {
		w.put("os/"+rel, f)
		switch p := "pub/one/os/" + rel; {
		case strings.HasSuffix(rel, "-big.xml"):
			big = p
		case strings.Contains(rel, "-mid"):
			mid = append(mid, p)
		case strings.HasSuffix(rel, "/repomd.xml"):
			pointer = p
		}
	}
	w.put("mid.iso", mirrortest.File{Body: mirrortest.Bytes(60, midSize), ModTime: mirrortest.Epoch})
	w.put("live/0.txt", mirrortest.File{Body: mirrortest.Bytes(61, 20_000), ModTime: mirrortest.Epoch})
	const iso, live = "pub/one/mid.iso", "pub/one/live/0.txt"
	d := begin()
	w.all(d, "at first", []wants{{pointer, 0, 0}, {live, 0, 0}})

	if large {
		// Files that can't fit, with and without a digest, with and without a length.
		w.all(d, "larger than the disk", w.ways(big))
		w.all(d, "larger than the disk", w.ways("pub/one/big.iso"))
		w.all(d, "larger than the disk", []wants{{"pub/one/chunked.img", 0, 0}})
		w.settle("larger than the disk")
		if stored := w.walk("larger than the disk"); len(stored) != 3 { // with primary
			t.Errorf("stored: %v", stored)
		}
		// Files that don't fit together.
		w.all(d, "more than the disk", twice(mid...))
		w.settle("more than the disk")
		some := 0
		for p := range w.walk("more than the disk") {
			if strings.Contains(p, "-mid") {
				some++
				if err := os.Remove(filepath.Join(w.dir, "root", p)); err != nil { // make room
					t.Error(err)
				}
			}
		}
		if some < 3 || some == mids {
			t.Errorf("%d of %d files are stored", some, mids)
		}
		d.forgive()
		d.stopIdle() // lets go of what it has open
		d = begin()
	}

	// The disk fills up in the middle of transfers, by somebody else's doing: no claim helps against that. One of the
	// files has another last byte from then on.
	known, wrong := mid[0], mid[2]
	upstreams := func(p string) string { return "x/" + strings.TrimPrefix(p, "pub/one/") }
	gates := []*mirrortest.Gate{w.up.Hold(upstreams(known), 4<<20), w.up.Hold(upstreams(iso), 4<<20), w.up.Hold(upstreams(wrong), 4<<20)}
	first := w.async(d, "full in the middle", []wants{{known, 0, 0}, {iso, 0, 0}})
	doomed := make(chan error)
	for _, off := range []int{0, midSize / 2} {
		go func() { doomed <- w.ask(t.Context(), d.url, wrong, off, off) }()
	}
	for _, g := range gates {
		if err := g.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	joined := w.async(d, "full in the middle, joined", w.ways(known, iso))
	empty := fill(t, w.dir)
	body := bytes.Clone(w.newest(wrong))
	body[midSize-1] ^= 1
	w.up.PutFile(upstreams(wrong), mirrortest.File{Body: body, ModTime: mirrortest.Epoch})
	for _, g := range gates {
		g.Release()
	}
	first()
	joined()
	for range 2 {
		if err := <-doomed; err == nil {
			t.Errorf("%s came whole, or its end did, and it is not what it must be", wrong)
		}
	}
	w.up.PutFile(upstreams(wrong), mirrortest.File{Body: w.newest(wrong), ModTime: mirrortest.Epoch})
	stored := w.walk("full in the middle")
	if stored[known]+stored[iso]+stored[wrong] != 0 {
		t.Errorf("stored on a full disk: %v", stored)
	}

	// Full from the beginning; what is stored and due changes upstream; the daemon is killed, and starts on a full disk.
	w.put("live/0.txt", mirrortest.File{Body: mirrortest.Bytes(62, 30_000), ModTime: mirrortest.Epoch.Add(time.Hour)})
	<-time.After(1100 * time.Millisecond)
	for _, when := range []string{"full", "full, and restart"} {
		w.all(d, when, append(w.ways(mid[1], iso), wants{pointer, 0, 0})) // the pointer is stored
		if _, body, cache := d.get("/" + live); body != string(w.newest(live)) {
			t.Errorf("%s: the old live file: %s", when, cache)
		}
		if resp, err := http.Head(d.url + "/" + iso); err != nil || resp.ContentLength != midSize {
			t.Errorf("%s: HEAD: %v, %v", when, resp, err)
		}
		w.walk(when)
		d.forgive()
		if when == "full" {
			_ = d.Process.Kill()
			d.dead()
			d = begin()
		}
	}

	empty()
	again := []string{known, iso, wrong, mid[1]}
	for _, p := range again {
		w.all(d, "room again", []wants{{p, 0, 0}})
	}
	w.settle("room again")
	stored = w.walk("room again")
	for _, p := range again {
		if stored[p] != len(w.newest(p)) {
			t.Errorf("with room again, %s is stored with %d bytes", p, stored[p])
		}
		resp, err := http.Get(d.url + "/" + p)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if cache := resp.Header.Get("Cache-Status"); !strings.HasPrefix(cache, "instantmirror; hit") {
			t.Errorf("with room again, %s: %s", p, cache)
		}
	}
	d.forgive()
	d.stopIdle()
}

// TestNoInodes: a disk may have bytes and yet no room for one more name.
func TestNoInodes(t *testing.T) {
	disk := newSmallDisk(t, ",nr_inodes=30")
	w := disk.world(t)
	paths := w.stage("a")
	d := disk.serve(w, t.TempDir())
	w.all(d, "no inodes", twice(paths[:2]...))
	w.all(d, "no inodes", twice(paths[2:]...))
	w.all(d, "no inodes, again", w.ways(paths...))
	stored := w.walk("no inodes")
	if len(stored) == 0 || len(stored) == len(paths) {
		t.Errorf("%d of %d files are stored", len(stored), len(paths))
	}
	d.stopIdle()
	if _, others := w.tmp(); len(others) > 0 { // what can be taken up again may stay
		t.Errorf("left in tmp: %v", others)
	}
}
