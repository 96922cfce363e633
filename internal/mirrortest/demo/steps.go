package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const (
	pointer = "repodata/repomd.xml"
	oldRPM  = "Packages/g/greeter-1.0-1.fc43.noarch.rpm"
	newRPM  = "Packages/g/greeter-1.1-1.fc43.noarch.rpm"
	unused  = "Packages/u/unused-3.1-4.fc43.noarch.rpm"
)

// The same four steps with dnf.

func (d *demo) dnfMiss() error {
	d.title("Miss: the first machine installs a package, nothing is stored yet")
	d.up.Reset()
	if err := d.dnf("client1", "install", "greeter"); err != nil {
		return err
	}
	seen := d.asked()
	if err := d.installed("client1", "greeter-1.0-1.fc43"); err != nil {
		return err
	}
	if err := once(seen, oldRPM); err != nil {
		return err
	}
	d.claim("installed, and each file was fetched from upstream once")
	return d.stored(oldRPM)
}

func (d *demo) dnfHit() error {
	d.title("Hit: another machine installs the same")
	d.up.Reset()
	if err := d.dnf("client2", "install", "greeter"); err != nil {
		return err
	}
	seen := d.asked()
	if err := d.installed("client2", "greeter-1.0-1.fc43"); err != nil {
		return err
	}
	if err := onlyChecks(seen); err != nil {
		return err
	}
	d.claim("installed, and upstream sent not one byte")
	return d.look(oldRPM, "hit")
}

func (d *demo) dnfChanged() error {
	d.title("Upstream changed: greeter 1.1 is published, 1.0 is gone there")
	if err := d.change(); err != nil {
		return err
	}
	if err := d.dnf("client1", "upgrade"); err != nil {
		return err
	}
	seen := d.asked()
	if err := d.installed("client1", "greeter-1.1-1.fc43"); err != nil {
		return err
	}
	if err := once(seen, newRPM); err != nil {
		return err
	}
	d.claim("the first machine has 1.1, and only what changed was fetched")
	return d.stored(newRPM)
}

func (d *demo) dnfGone() error {
	d.title("Upstream gone: it refuses connections, a third machine installs")
	if err := d.stopUpstream(); err != nil {
		return err
	}
	if err := d.dnf("client3", "install", "greeter"); err != nil {
		return err
	}
	if err := d.installed("client3", "greeter-1.1-1.fc43"); err != nil {
		return err
	}
	d.claim("installed, with nobody upstream")
	return d.look(pointer, "hit", "detail=stale")
}

// And with curl.

func (d *demo) curlMiss() error {
	d.title("Miss: a client asks for a repository and a package, nothing is stored yet")
	d.up.Reset()
	for _, name := range []string{pointer, oldRPM} {
		if err := d.curl(name, "fwd=uri-miss"); err != nil {
			return err
		}
	}
	if err := once(d.asked(), pointer, oldRPM); err != nil {
		return err
	}
	d.claim("right bytes, and each file was fetched from upstream once")
	return d.stored(oldRPM)
}

func (d *demo) curlHit() error {
	d.title("Hit: another client asks for the same package")
	d.up.Reset()
	if err := d.curl(oldRPM, "hit"); err != nil {
		return err
	}
	if seen := d.asked(); len(seen) != 0 {
		return fmt.Errorf("upstream was asked %d times", len(seen))
	}
	d.claim("right bytes, and upstream was asked nothing")
	return nil
}

func (d *demo) curlChanged() error {
	d.title("Upstream changed: greeter 1.1 is published, 1.0 is gone there")
	if err := d.change(); err != nil {
		return err
	}
	for _, name := range []string{pointer, newRPM} {
		if err := d.curl(name); err != nil {
			return err
		}
	}
	if err := once(d.asked(), newRPM); err != nil {
		return err
	}
	d.claim("the client has the new repomd.xml and 1.1")
	return d.stored(newRPM)
}

func (d *demo) curlGone() error {
	d.title("Upstream gone: it refuses connections")
	if err := d.stopUpstream(); err != nil {
		return err
	}
	if err := d.curl(pointer, "hit", "detail=stale"); err != nil {
		return err
	}
	if err := d.curl(newRPM, "hit"); err != nil {
		return err
	}
	d.claim("what is stored is served, with nobody upstream; what may be out of date is marked stale")
	return nil
}

// For both.

// change publishes the new version and waits until the mirror may look again.
func (d *demo) change() error {
	d.publish("1.1", mirrortest.Epoch.Add(24*time.Hour))
	d.printf("  (the demo asks for repomd.xml until `refresh: %v` has passed)\n", refresh)
	d.up.Reset()
	until := time.Now().Add(patience)
	for {
		status, _, body, err := d.get(pointer)
		if err != nil {
			return err
		}
		if status == http.StatusOK && bytes.Equal(body, d.now[pointer].Body) {
			return nil
		}
		if err := d.pause(until, "the new repomd.xml does not come through the mirror"); err != nil {
			return err
		}
	}
}

// stored waits until a file is. A client has its last byte before the disk has
// (fsync), and a request in between joins the transfer instead of being a hit.
func (d *demo) stored(name string) error {
	until := time.Now().Add(patience)
	for {
		_, cache, _, err := d.get(name)
		if err != nil {
			return err
		}
		if has(name, cache, []string{"hit"}) == nil {
			return nil
		}
		if err := d.pause(until, name+" is still not stored: Cache-Status: "+cache); err != nil {
			return err
		}
	}
}

// pause waits a little, or fails where that went on for too long.
func (d *demo) pause(until time.Time, otherwise string) error {
	if time.Now().After(until) {
		return fmt.Errorf("after %v, %s", patience, otherwise)
	}
	select {
	case <-time.After(50 * time.Millisecond):
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// stopUpstream also waits until the mirror has noticed that it can no longer tell
// whether its repomd.xml is the current one.
func (d *demo) stopUpstream() error {
	d.up.Stop()
	d.printf("  (the demo asks for repomd.xml until `refresh: %v` has passed)\n", refresh)
	until := time.Now().Add(patience)
	for {
		status, cache, _, err := d.get(pointer)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("%s: status %d", pointer, status)
		}
		if strings.Contains(cache, "stale") {
			return nil
		}
		if err := d.pause(until, pointer+" is not marked stale, but "+cache); err != nil {
			return err
		}
	}
}

// nobodyHasIt asks for what was never used, so is not stored.
func (d *demo) nobodyHasIt() error {
	d.title("And a package that nobody here ever used")
	status, _, body, err := d.get(unused)
	if err != nil {
		return err
	}
	d.printf("  (asked by the demo itself) GET %s/%s\n  status %d, and as text:\n", d.base, unused, status)
	for line := range strings.Lines(string(body)) {
		d.printf("  %s\n", strings.TrimRight(line, "\n"))
	}
	if status != http.StatusBadGateway && status != http.StatusGatewayTimeout {
		return fmt.Errorf("status %d, where nobody could answer (502 or 504)", status)
	}
	if !strings.Contains(string(body), strings.TrimPrefix(d.up.URL, "http://")) {
		return errors.New("the answer does not say whom the mirror asked")
	}
	d.claim("an honest error, and it says whom the mirror asked")
	return nil
}

// theTree shows the disk, and compares each file with what upstream published.
func (d *demo) theTree() error {
	d.title("The tree on disk: real paths, upstream's bytes")
	root := filepath.Join(d.dir, "mirror")
	const find = `find . -name .instantmirror -prune -o -type f -printf '%7s %P\n' | sort -k2`
	d.printf("$ cd $D/mirror; %s\n", find)
	cmd := exec.CommandContext(d.ctx, "sh", "-c", find)
	cmd.Dir, cmd.Env = root, environment()
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		d.printf("  %s\n", strings.TrimRight(line, "\n"))
	}
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	files := 0
	err = filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if e.Name() == ".instantmirror" {
				return fs.SkipDir
			}
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		inRepo, ok := strings.CutPrefix(filepath.ToSlash(rel), prefix+"/"+tree+"/")
		if _, published := d.made[inRepo+" "+sum(b)]; !ok || !published {
			return fmt.Errorf("%s is not a file that upstream published", rel)
		}
		files++
		return nil
	})
	if err != nil {
		return err
	}
	if files == 0 {
		return errors.New("nothing is stored")
	}
	if _, err := os.Stat(filepath.Join(root, prefix, tree, unused)); err == nil {
		return fmt.Errorf("%s is stored, though nobody used it", unused)
	}
	d.claim("%d files, all as upstream made them; nothing that nobody used", files)
	return nil
}

// dnf runs dnf for one machine, which is a directory.
func (d *demo) dnf(machine string, what ...string) error {
	args := append([]string{"--installroot=" + filepath.Join(d.dir, machine), "--repofrompath=demo," + d.base, "--repo=demo",
		"--releasever=43", "--nogpgcheck", "--noplugins", "-y", "--refresh"}, what...)
	d.printf("$ dnf %s\n", d.short(strings.Join(args, " ")))
	cmd := exec.CommandContext(d.ctx, "dnf", args...)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	show := false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "Installed:"), strings.HasPrefix(line, "Upgraded:"):
			show = true
		case line == "":
			show = false
		}
		if show || err != nil {
			d.printf("  %s\n", line)
		}
	}
	if err != nil {
		return fmt.Errorf("dnf: %w", err)
	}
	return nil
}

// installed asks a machine's rpm.
func (d *demo) installed(machine, want string) error {
	cmd := exec.CommandContext(d.ctx, "rpm", "--root="+filepath.Join(d.dir, machine), "-q", "greeter", "--qf", "%{NVR}\n")
	out, err := cmd.CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		return fmt.Errorf("rpm says that %s has %q, not %s", machine, got, want)
	}
	return nil
}

// curl runs curl for one file and checks status, bytes and Cache-Status.
func (d *demo) curl(name string, want ...string) error {
	body := filepath.Join(d.dir, "body")
	if err := os.RemoveAll(body); err != nil {
		return err
	}
	d.printf("$ curl -D- -o %s %s/%s\n", filepath.Base(name), d.base, name)
	cmd := exec.CommandContext(d.ctx, "curl", "-sS", "-D-", "-o", body, d.base+"/"+name)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl: %w: %s", err, out)
	}
	var status, cache string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if key, value, _ := strings.Cut(line, ":"); strings.EqualFold(key, "Cache-Status") {
			cache = strings.TrimSpace(value)
		} else if rest, ok := strings.CutPrefix(line, "HTTP/1.1 "); ok {
			status = rest
		} else if !strings.EqualFold(key, "Content-Length") {
			continue
		}
		d.printf("  %s\n", line)
	}
	b, err := os.ReadFile(body)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "200") || !bytes.Equal(b, d.now[name].Body) && d.made[name+" "+sum(b)] == nil {
		return fmt.Errorf("%s: status %s with %d bytes, not upstream's file", name, status, len(b))
	}
	return has(name, cache, want)
}

// look asks for a file by the demo itself, beside dnf, which shows no headers.
func (d *demo) look(name string, want ...string) error {
	status, cache, body, err := d.get(name)
	if err != nil {
		return err
	}
	if status != http.StatusOK || !bytes.Equal(body, d.now[name].Body) {
		return fmt.Errorf("%s: status %d with %d bytes, not upstream's file", name, status, len(body))
	}
	d.printf("  and the mirror says of %s: Cache-Status: %s\n", filepath.Base(name), cache)
	return has(name, cache, want)
}

func has(name, cache string, want []string) error {
	for _, w := range want {
		if !slices.ContainsFunc(strings.Split(cache, ";"), func(s string) bool { return strings.TrimSpace(s) == w }) {
			return fmt.Errorf("%s: Cache-Status is %q, without %s", name, cache, w)
		}
	}
	return nil
}

// get asks the mirror, quietly.
func (d *demo) get(name string) (status int, cache string, body []byte, err error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, d.base+"/"+name, nil)
	if err != nil {
		return 0, "", nil, err
	}
	resp, err := direct.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return resp.StatusCode, resp.Header.Get("Cache-Status"), b.Bytes(), err
}

// asked prints what upstream was asked since the last Reset. The mirror's look at
// whether upstream lives is left out.
func (d *demo) asked() []mirrortest.Request {
	var list []mirrortest.Request
	for _, r := range d.up.Requests() {
		name, ok := strings.CutPrefix(r.Path, prefix+"/"+tree+"/")
		if !ok {
			continue
		}
		r.Path = name
		list = append(list, r)
	}
	if len(list) == 0 {
		d.printf("  upstream was asked: nothing\n")
		return nil
	}
	d.printf("  upstream was asked:\n")
	for _, r := range list {
		d.printf("    %-4s %s %s\n", r.Method, ellipsis(r.Path), verdict(r))
	}
	return list
}

func verdict(r mirrortest.Request) string {
	if r.Status == http.StatusNotModified {
		return "(is it still the same? yes: 304)"
	}
	return "(" + strconv.Itoa(r.Status) + ", " + strconv.FormatInt(r.Sent, 10) + " bytes)"
}

// ellipsis shortens the checksum in a name.
func ellipsis(name string) string {
	dir, base := filepath.Split(name)
	if sum, rest, ok := strings.Cut(base, "-"); ok && len(sum) == 64 {
		base = sum[:6] + "…-" + rest
	}
	return dir + base
}

// once checks that nothing was fetched twice, and names were fetched at all.
func once(list []mirrortest.Request, names ...string) error {
	fetched := make(map[string]int)
	for _, r := range list {
		if r.Status != http.StatusNotModified {
			fetched[r.Path]++
		}
		if fetched[r.Path] > 1 {
			return fmt.Errorf("upstream was asked for %s more than once", r.Path)
		}
	}
	for _, name := range names {
		if fetched[name] == 0 {
			return fmt.Errorf("upstream was not asked for %s: where did it come from?", name)
		}
	}
	return nil
}

// onlyChecks is what a warm client may cause: questions whether the pointer is the
// same, answered without a byte.
func onlyChecks(list []mirrortest.Request) error {
	for _, r := range list {
		if r.Path != pointer || r.Status != http.StatusNotModified {
			return fmt.Errorf("upstream was asked: %s", r)
		}
	}
	return nil
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
