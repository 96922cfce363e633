// Demo shows InstantMirror at work on a machine without a line: `make demo` runs it.
//
//	go run ./internal/mirrortest/demo -binary ./instantmirror
//
// It makes a small real upstream on loopback, starts the program in front of it, and
// lets a real client (dnf, where it is installed and we are root, otherwise curl) walk
// through miss, hit, upstream changed, upstream gone. Every command is printed
// before it runs, and what upstream was asked meanwhile after it; each step is checked.
// Exit status: 0 when every step showed what it claims, 1 when one did not, 2 for
// wrong usage or a missing client.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const (
	prefix = "pub/fedora/linux"             // of the profile, here and upstream
	tree   = "updates/43/Everything/x86_64" // the repository below it
	limit  = 3 * time.Minute                // for all of it
)

var (
	refresh = time.Second // of the profile: so short that people see changes
	// patience is how long the mirror may take to notice what happened upstream. A
	// client waits 5 s at most for that.
	patience = refresh + 10*time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(status)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, out io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	binary := flags.String("binary", "./instantmirror", "the program to show")
	client := flags.String("client", "", "dnf or curl; default: dnf where it can be used, otherwise curl")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	bin, err := filepath.Abs(*binary)
	if err == nil {
		_, err = exec.LookPath(bin)
	}
	if err != nil {
		fmt.Fprintf(out, "demo: %v\nBuild it first: go build -o instantmirror ./cmd/instantmirror (or: make demo)\n", err)
		return 2
	}
	name, why, err := chooseClient(*client)
	if err != nil {
		fmt.Fprintln(out, "demo:", err)
		return 2
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo takes longer than %v", limit))
	defer cancel()
	d := &demo{ctx: ctx, out: out, binary: bin, client: name}
	fmt.Fprintf(out, "InstantMirror, shown with %s%s. Nothing but 127.0.0.1 is reached.\n", name, why)
	err = d.all()
	if err == nil {
		fmt.Fprintln(out, "\nEvery step showed what it claims.")
		return 0
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	fmt.Fprintf(out, "\n  FAILED: %v\n%s", err, d.mirror.tail())
	return 1
}

// chooseClient says which client is used, and why it is not dnf.
func chooseClient(wanted string) (name, why string, err error) {
	has := func(tool string) bool { _, err := exec.LookPath(tool); return err == nil }
	dnf, curl := has("dnf") && has("rpm"), has("curl")
	root := os.Geteuid() == 0
	switch {
	case wanted != "" && wanted != "dnf" && wanted != "curl":
		return "", "", fmt.Errorf("-client is dnf or curl, not %s", wanted)
	case wanted == "dnf" && !dnf:
		return "", "", errors.New("dnf or rpm is not here: apt-get install -y --no-install-recommends dnf rpm")
	case wanted == "dnf" && !root:
		return "", "", errors.New("dnf --installroot needs root: run as root, or with -client curl")
	case wanted != "curl" && dnf && root:
		return "dnf", "", nil
	case !curl:
		return "", "", errors.New("neither dnf (as root) nor curl can be used here: apt-get install -y curl, or dnf install -y curl")
	case wanted == "curl":
		return "curl", "", nil
	case !dnf:
		return "curl", " (no dnf on this machine)", nil
	default:
		return "curl", " (dnf is here, but installing into a directory needs root)", nil
	}
}

// demo is the state of one showing.
type demo struct {
	ctx    context.Context
	out    io.Writer
	binary string
	client string

	dir    string // everything is below it; $D in what is printed
	up     *mirrortest.Upstream
	mirror daemon
	base   string            // URL of the repository at the mirror
	made   map[string][]byte // every file that upstream ever published: "path sum" → bytes
	now    map[string]mirrortest.File
}

// all sets up, shows the steps, and cleans up whatever happened.
func (d *demo) all() (err error) {
	if d.dir, err = os.MkdirTemp("", "instantmirror-demo-"); err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(d.dir); err == nil {
			err = e
		}
	}()
	if d.up, err = mirrortest.StartUpstream(); err != nil {
		return err
	}
	defer d.up.Close()
	d.publish("1.0", mirrortest.Epoch)

	defer func() {
		if e := d.mirror.stop(); err == nil {
			err = e
		}
		d.mirror.keep()
	}()
	if err := d.start(); err != nil {
		return err
	}
	var steps []func() error
	if d.client == "dnf" {
		steps = []func() error{d.dnfMiss, d.dnfHit, d.dnfChanged, d.dnfGone}
	} else {
		steps = []func() error{d.curlMiss, d.curlHit, d.curlChanged, d.curlGone}
	}
	for _, step := range append(steps, d.nobodyHasIt, d.theTree) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// publish makes upstream's repository hold this version of the package.
func (d *demo) publish(version string, when time.Time) {
	r := mirrortest.Repo{Time: when, Packages: []mirrortest.Package{
		{Name: "greeter", Version: version, Release: "1.fc43", Requires: []string{"greeter-data"}, Size: 20_000, Built: when},
		{Name: "greeter-data", Version: "2.0~rc1^20250101", Release: "1.fc43", Size: 300_000},
		{Name: "unused", Version: "3.1", Release: "4.fc43", Size: 500_000},
	}}
	files := r.Files()
	if d.made == nil {
		d.made = make(map[string][]byte)
	}
	for name := range d.now {
		if _, ok := files[name]; !ok {
			d.up.Remove(prefix + "/" + tree + "/" + name) // masters delete what a push superseded
		}
	}
	d.now = files
	for name, f := range files {
		d.made[name+" "+sum(f.Body)] = f.Body
	}
	d.up.PutTree(prefix+"/"+tree, files)
}

// start writes the profile and starts the program.
func (d *demo) start() error {
	profile := filepath.Join(d.dir, "demo.yaml")
	text := fmt.Sprintf("name: demo\ntitle: Fedora, the small one\npath: /%s\nupstreams: [%s/%s]\nexpiry:\n  - {match: \"**\", refresh: %s}\n",
		prefix, d.up.URL, prefix, refresh)
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0") // for a port that is free
	if err != nil {
		return err
	}
	listen := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	d.base = "http://" + listen + "/" + prefix + "/" + tree

	d.printf("\nUpstream is a small real repository at %s/%s/%s\n", d.up.URL, prefix, tree)
	d.printf("Below, $D is %s\n\nThe profile, $D/demo.yaml:\n", d.dir)
	for line := range strings.Lines(text) {
		d.printf("  %s", line)
	}
	args := []string{"serve", "--listen", listen, "--root", filepath.Join(d.dir, "mirror"), "--profile", profile}
	d.printf("\n$ %s %s &\n", d.binary, d.short(strings.Join(args, " ")))
	if err := d.mirror.start(d.binary, args, filepath.Join(d.dir, "log")); err != nil {
		return err
	}
	health := "http://" + listen + "/-/healthz"
	if err := d.mirror.ready(d.ctx, health); err != nil {
		return err
	}
	d.claim("it answers at %s", health)
	return nil
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// short writes the temporary directory as $D.
func (d *demo) short(s string) string { return strings.ReplaceAll(s, d.dir, "$D") }

func (d *demo) title(s string) { d.printf("\n== %s\n", s) }

// claim says what was shown; the caller has checked it.
func (d *demo) claim(format string, args ...any) { d.printf("  ok: "+format+"\n", args...) }
