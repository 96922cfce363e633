package main

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/instantmirror/instantmirror/cmd/instantmirror/text"
)

// lineEvery is how often long work says how far it is where there is no terminal.
const lineEvery = 10 * time.Second

// progress shows how far long work is: a bar on a terminal, else a line now and then. It is for one goroutine at a time.
type progress struct {
	o     output
	what  string // "verified"
	bytes bool   // what is text.Count; else repositories
	bar   *progressbar.ProgressBar
	next  time.Time // of the next line
}

// newProgress shows nothing yet.
func newProgress(o output, what string, bytes bool) *progress {
	p := &progress{o: o, what: what, bytes: bytes, next: time.Now().Add(lineEvery)}
	if f, ok := o.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(1, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(bytes), progressbar.OptionUseIECUnits(true), progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30))
	}
	return p
}

// show says that so much of total is done.
func (p *progress) show(done, total int64) {
	switch {
	case total == 0:
	case p.bar != nil:
		p.bar.ChangeMax64(total + 1) // the bar ends with finish only
		_ = p.bar.Set64(done)
	case time.Now().After(p.next):
		p.next = time.Now().Add(lineEvery)
		if p.bytes {
			fmt.Fprintf(p.o.err, "%s %s of %s\n", p.what, text.Bytes(done), text.Bytes(total))
		} else {
			fmt.Fprintf(p.o.err, "%s %d of %d\n", p.what, done, total)
		}
	}
}

// rename says that something else is done from now on.
func (p *progress) rename(what string) {
	if p.what = what; p.bar != nil {
		p.bar.Describe(what)
	}
}

// hide takes the bar away, so that something can be printed. The next show brings it back.
func (p *progress) hide() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
