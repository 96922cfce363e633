package text

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/admin"
)

// Why prints all that is known of a path.
func Why(out io.Writer, now time.Time, w *admin.Why) {
	say := func(what, format string, args ...any) {
		paragraph(out, fmt.Sprintf("  %-12s", what), format, args...)
	}
	fmt.Fprintln(out, w.Path)
	if w.Profile == "" {
		say("profile", "none: no enabled profile serves it")
		if w.Stored != nil {
			say("stored", "yes, and not served: %s bytes of %s", Digits(w.Stored.Size), w.Stored.ModTime.UTC().Format(time.RFC1123))
		}
		printJournal(w, say)
		return
	}
	say("profile", "%s", w.Profile)
	if w.Tree != "" {
		layout := "found by its repodata/"
		if w.Layout != "" {
			layout = "layout " + w.Layout
		}
		say("tree", "%s (%s)", w.Tree, layout)
	}
	if w.Class != "" {
		say("class", "%s", w.Class)
	}
	rule := w.Rule.Match
	if w.Rule.At != "" {
		rule = fmt.Sprintf("%s (%s)", w.Rule.Match, w.Rule.At)
	}
	say("rule", "%s: refresh %s, grace %s", rule, short(w.Rule.Refresh), short(w.Rule.Grace))
	switch {
	case w.Content != nil:
		say("content", "%s (%s): %s", w.Content.Match, w.Content.At, w.Action)
	default:
		say("content", "%s", w.Action)
	}
	for _, list := range []struct {
		what  string
		names []string
	}{{"upstreams", w.Upstreams}, {"fallbacks", w.Fallbacks}, {"archives", w.Archives}} {
		if len(list.names) > 0 {
			say(list.what, "%s", strings.Join(list.names, " "))
		}
	}
	printStored(now, w, say)
	for _, s := range w.Says {
		say("named by", "%s (generation %s): %s", s.By, s.Generation, expected(s.Size, s.Sum))
	}
	if len(w.Says) == 0 && w.Expected != "" {
		say("expected", "%s", w.Expected)
	}
	if l := w.Leaving; l != nil {
		until := "until " + stamp(now, l.Until)
		if r := w.Repository; r != nil && "/"+r.Root == l.Repository {
			switch {
			case r.Veto != nil:
				until = "kept by the veto"
			case !r.Gone.IsZero():
				until = "kept, for upstream has the repository no more"
			}
		}
		say("leaving", "%s, %s: generation %s does not name it any more, %s did: %s", l.Repository, until, l.To, l.From, expected(l.Size, l.Sum))
	}
	if !w.Used.IsZero() {
		say("last use", "%s", ago(now, w.Used))
	}
	if r := w.Repository; r != nil {
		fmt.Fprintf(out, "  repository  /%s\n", r.Root)
		printRepository(out, "              ", now, r)
	}
	if w.Below > 0 {
		say("below", "%s", Count(int64(w.Below), "repository"))
	}
	printJournal(w, say)
}

func printJournal(w *admin.Why, say func(what, format string, args ...any)) {
	for i, e := range w.Journal {
		what := "journal"
		if i > 0 {
			what = ""
		}
		line := fmt.Sprintf("%s deleted: %s", e.Time.Local().Format("2006-01-02 15:04:05"), e.Reason)
		if e.From != "" || e.To != "" {
			line += fmt.Sprintf(", generation %s → %s", cmp.Or(e.From, "none"), cmp.Or(e.To, "none"))
		}
		switch {
		case strings.HasPrefix(e.Rule, "prune: "):
			line += ", " + e.Rule
		case e.Rule != "":
			line += ", rule " + e.Rule
		}
		if e.Size > 0 {
			line += ", " + Bytes(e.Size)
		}
		say(what, "%s %s", line, e.Sum)
	}
}

func printStored(now time.Time, w *admin.Why, say func(what, format string, args ...any)) {
	s := w.Stored
	switch {
	case s == nil:
		say("stored", "no: missing")
		return
	case w.Dir && s.Files == 0:
		say("stored", "nothing")
		return
	case w.Dir:
		say("stored", "%s, %s", Count(int64(s.Files), "file"), Bytes(s.Size))
		return
	}
	detail := w.Validity
	if w.Detail != "" {
		detail += ", " + w.Detail
	}
	if !w.Due.IsZero() && w.Validity == "fresh" {
		detail += ", due " + ago(now, w.Due)
	}
	say("stored", "yes: %s; %s bytes of %s", detail, Digits(s.Size), s.ModTime.UTC().Format(time.RFC1123))
	if !s.Placed.IsZero() {
		say("since", "%s", stamp(now, s.Placed))
	}
	if s.Links > 1 {
		say("links", "%d names", s.Links)
	}
	if s.Origin != "" {
		say("sent by", "%s", s.Origin)
	}
	if !s.Checked.IsZero() {
		say("checked", "%s", stamp(now, s.Checked))
	}
	if s.Verified != "" {
		say("verified", "%s", s.Verified)
	} else {
		say("verified", "no: nothing said what its bytes must be when it was stored, or the index was lost since")
	}
}

func expected(size int64, sum string) string {
	text := "any length"
	if size >= 0 {
		text = Digits(size) + " bytes"
	}
	return text + ", " + cmp.Or(sum, "no digest")
}
