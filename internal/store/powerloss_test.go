package store

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// safeDisk is what power loss leaves of a root, and no more: the bytes of a file from its last fsync, and the names in a
// directory from its last.
type safeDisk struct {
	t     *testing.T
	root  string
	bytes map[uint64]string            // by inode
	names map[uint64]map[string]uint64 // by inode of the directory
	top   uint64
	held  map[uint64]*os.File // so that no inode is given out twice
}

// newSafeDisk begins with all that is there being safe.
func newSafeDisk(t *testing.T, root string) *safeDisk {
	d := &safeDisk{t: t, root: root, bytes: map[uint64]string{}, names: map[uint64]map[string]uint64{}, held: map[uint64]*os.File{}}
	t.Cleanup(func() {
		for _, f := range d.held {
			f.Close()
		}
	})
	d.top = d.inode(root)
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			d.syncDir(p)
		} else if err == nil {
			d.syncFile(p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *safeDisk) inode(p string) uint64 {
	f, err := os.Open(p)
	if err != nil {
		d.t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	i := info.Sys().(*syscall.Stat_t).Ino
	if d.held[i] != nil {
		f.Close()
	} else {
		d.held[i] = f
	}
	return i
}

func (d *safeDisk) syncDir(p string) {
	list, err := os.ReadDir(p)
	if err != nil {
		d.t.Error(err)
	}
	names := make(map[string]uint64)
	for _, e := range list {
		names[e.Name()] = d.inode(filepath.Join(p, e.Name()))
	}
	d.names[d.inode(p)] = names
}

func (d *safeDisk) syncFile(p string) {
	b, err := os.ReadFile(p)
	if err != nil {
		d.t.Error(err)
	}
	d.bytes[d.inode(p)] = string(b)
}

// step follows a step that was done. A file that is synced and whose path is not its own yet is the only one in tmp.
func (d *safeDisk) step(step, p string) {
	switch {
	case step == "mkdir":
		d.names[d.inode(filepath.Join(d.root, p))] = nil
	case step == "fsyncdir":
		d.syncDir(filepath.Join(d.root, p))
	case step == "fsync" && strings.HasPrefix(p, Private):
		d.syncFile(filepath.Join(d.root, p))
	case step == "fsync":
		list, _ := filepath.Glob(filepath.Join(d.root, tmpDir, "*"))
		if len(list) != 1 {
			d.t.Errorf("in tmp are %v", list)
		}
		for _, p := range list {
			d.syncFile(p)
		}
	case step == "write":
		list, _ := filepath.Glob(filepath.Join(d.root, tmpDir, "*"))
		for _, p := range list {
			d.bytes[d.inode(p)] = "" // nothing is safe yet
		}
	}
}

// lose makes what power loss leaves now, and returns its root.
func (d *safeDisk) lose() string {
	to := filepath.Join(d.t.TempDir(), "root")
	made := make(map[uint64]string)
	var build func(inode uint64, p string)
	build = func(inode uint64, p string) {
		if err := os.Mkdir(p, 0o755); err != nil {
			d.t.Fatal(err)
		}
		for name, i := range d.names[inode] {
			at := path.Join(p, name)
			var err error
			if _, dir := d.names[i]; dir {
				build(i, at)
			} else if before, ok := made[i]; ok { // a rename of which only the new name is safe
				err = os.Link(before, at)
			} else {
				made[i] = at
				if err = os.WriteFile(at, []byte(d.bytes[i]), 0o644); err == nil {
					err = os.Chtimes(at, mtime, mtime)
				}
			}
			if err != nil {
				d.t.Fatal(err)
			}
		}
	}
	build(d.top, to)
	return to
}

// TestPowerLoss: at no moment of a publication does power loss leave anything but all of the old set or all of the new
// one, once a start has finished it; and a pointer that is on the disk vouches for what is, too, even before that.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	s := open(t)
	putOld(t, s)
	d := newSafeDisk(t, s.dir)
	stage := "gathering"
	outcomes := map[string]int{}
	look := func(when string) {
		root := d.lose()
		set := make(map[string]string)
		for p := range newSet {
			b, _ := os.ReadFile(filepath.Join(root, p))
			set[p] = string(b)
		}
		if set[pointer] == newSet[pointer] && !same(set, newSet) {
			t.Errorf("%s: the pointer is new, but not all of the rest: %v", when, set)
		}
		got, _ := finish(t, root)
		outcomes[stage+" "+got]++
		if stage == "gathering" && got != "old" || stage == "applying" && got != "new" {
			t.Errorf("%s: the %s set stands", when, got)
		}
	}
	s.SetFault(func(step, path string, before bool) error {
		if !before {
			d.step(step, path)
			look("after " + step + " " + path)
		}
		return nil
	})
	b, err := gather(s)
	if err != nil {
		t.Fatal(err)
	}
	stage = "sealing"
	if err := b.Seal(pointer, []byte("note")); err != nil {
		t.Fatal(err)
	}
	stage = "applying"
	if err := b.Apply(); err != nil {
		t.Fatal(err)
	}
	look("the end")
	t.Log(outcomes)
	if outcomes["sealing old"] == 0 || outcomes["sealing new"] == 0 || outcomes["applying new"] < 12 {
		t.Errorf("the moments are not all there: %v", outcomes)
	}
	// It is not applied once more, over what comes later.
	s.SetFault(func(step, path string, before bool) error {
		if !before {
			d.step(step, path)
		}
		return nil
	})
	put(t, s, pointer+".asc", "signed new")
	again, err := Open(d.lose(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	list, err := again.Bundles()
	if err != nil {
		t.Error(err)
	}
	for _, b := range list {
		b.Apply()
	}
	if got, err := get(again, pointer+".asc"); got != "signed new" {
		t.Errorf("what came later is %q, %v", got, err)
	}
}

// TestRemovalSurvivesPowerLoss: what Remove has removed stays away.
func TestRemovalSurvivesPowerLoss(t *testing.T) {
	s := open(t)
	for _, p := range []string{"pub/a/b/f", "pub/a/g", "pub/h", "top"} {
		put(t, s, p, "x")
	}
	d := newSafeDisk(t, s.dir)
	s.SetFault(func(step, path string, before bool) error {
		if !before {
			d.step(step, path)
		}
		return nil
	})
	for _, paths := range [][]string{{"pub/a/b/f", "top"}, {"pub/a/g"}, {"pub/h"}} {
		if _, err := s.Remove(paths...); err != nil {
			t.Fatal(err)
		}
		for _, p := range append(paths, filepath.Dir(paths[0])) {
			_, errNow := os.Stat(filepath.Join(s.dir, p))
			_, errThen := os.Stat(filepath.Join(d.lose(), p))
			if (errNow == nil) != (errThen == nil) {
				t.Errorf("%s is back after power loss: %v, %v", p, errNow, errThen)
			}
		}
	}
}
