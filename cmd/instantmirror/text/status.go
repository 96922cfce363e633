package text

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/monitor"
)

// Status prints how a mirror is.
func Status(out io.Writer, st *admin.Status) {
	now := st.Now
	if st.Running {
		fmt.Fprintf(out, "InstantMirror %s serves %s for %s (pid %d)\n", st.Version, st.Root, inTime(now.Sub(st.Started)), st.PID)
	} else {
		fmt.Fprintf(out, "InstantMirror %s: no daemon serves %s\n", st.Version, st.Root)
	}
	printRoom(out, &st.Room)
	if t := st.Traffic; t != nil {
		rate, saved := "", ""
		if t.Requests > 0 {
			rate = fmt.Sprintf(", %.1f %% of them hits", 100*float64(t.Hits)/float64(t.Requests))
		}
		if t.Sent > 0 {
			saved = fmt.Sprintf(" (%.1f %%)", 100*float64(t.Saved)/float64(t.Sent))
		}
		paragraph(out, "Clients      ", "%s answered%s, %s failed; %s sent, %s fetched: %s saved%s",
			Count(t.Requests, "request"), rate, Digits(t.Failed), Bytes(t.Sent), Bytes(t.Fetched), Bytes(t.Saved), saved)
	}
	fmt.Fprintln(out, "\nUpstreams")
	for _, u := range st.Upstreams {
		role := ""
		if u.Role != "upstream" {
			role = ", " + u.Role
		}
		fmt.Fprintf(out, "  %-8s %s (%s%s)\n", u.State, u.Name, strings.Join(u.Profiles, ", "), role)
		if u.State == "down" {
			paragraph(out, "           ", "for %s: %s; tried again %s", inTime(now.Sub(u.Since)), u.Error, ago(now, u.Retry))
		}
	}
	fmt.Fprintf(out, "\n%s\n", Count(int64(len(st.Repositories)), "repository"))
	for i := range st.Repositories {
		fmt.Fprintf(out, "/%s\n", st.Repositories[i].Root)
		printRepository(out, "  ", now, &st.Repositories[i])
	}
}

func printRoom(out io.Writer, r *admin.Room) {
	of := func(q admin.Quota) string {
		used, limit := "not measured", ""
		if q.Used != nil {
			used = Bytes(*q.Used)
		}
		if q.Limit > 0 {
			limit = " of " + Bytes(q.Limit)
		}
		return used + limit
	}
	paragraph(out, "Stored       ", "%s; %s free of %s, of which %s stay free", of(r.Quota), Bytes(r.Free), Bytes(r.Total), Bytes(r.Reserve))
	for _, p := range r.Profiles {
		if p.Used != nil || p.Limit > 0 {
			fmt.Fprintf(out, "  %-11s%s\n", p.Profile, of(p))
		}
	}
}

// printRepository prints how one repository is.
func printRepository(out io.Writer, indent string, now time.Time, r *monitor.Repository) {
	var age, marks, signed string
	if made := r.Timestamp; !made.IsZero() {
		age = ", made " + ago(now, made)
	}
	if r.Signed != "" {
		signed = ", signed by " + r.Signed
	}
	paragraph(out, indent, "generation %s%s, here since %s%s, from %s%s", r.Generation, age, ago(now, r.Published), marks, cmp.Or(r.Origin, "the tree"), signed)
	state := r.State
	if r.State == "watched" {
		state = "watched every " + short(r.Refresh)
	}
	if r.Stale {
		state += ", stale"
	}
	if r.Last.What != "" {
		state += fmt.Sprintf("; %s %s", r.Last.What, ago(now, r.Last.At))
		if r.Last.Origin != "" {
			state += " (" + r.Last.Origin + ")"
		}
	} else if r.Checked.IsZero() {
		state += "; never checked"
	} else {
		state += "; current " + ago(now, r.Checked)
	}
	switch {
	case r.Next.IsZero():
	case r.Next.After(now):
		state += "; next look " + ago(now, r.Next)
	default:
		state += "; next look now"
	}
	paragraph(out, indent, "%s", state)
	if r.Last.Message != "" {
		paragraph(out, indent, "%s: %s", r.Last.What, r.Last.Message)
	}
	if v := r.Veto; v != nil {
		paragraph(out, indent, "veto since %s: a push by %s would delete %d of %d stored files; nothing goes until another upstream confirms it, an hour has passed, or `refresh --force` says so",
			ago(now, v.Since), cmp.Or(v.Origin, "upstream"), v.Files, v.Held)
	}
	if r.Back != nil {
		paragraph(out, indent, "every upstream has an older generation since %s: it is not taken before its rule's `back` is over, or `refresh --force` says so", ago(now, r.Back.Since))
	}
	if r.Refused > 0 {
		paragraph(out, indent, "refused: %s offered since this one is here", offered(r.Refused))
	}
	if r.Partial != "" {
		paragraph(out, indent, "partial, published with primary only: %s", r.Partial)
	}
	if !r.Gone.IsZero() {
		paragraph(out, indent, "gone upstream since %s: what is stored is kept, for it may be the last copy", ago(now, r.Gone))
	}
	if r.Leaving > 0 {
		paragraph(out, indent, "leaving: %s", leaving(r.Leaving))
	}
}

func offered(n int) string {
	if n == 1 {
		return "1 older generation was"
	}
	return Digits(int64(n)) + " older generations were"
}

func leaving(n int) string {
	if n == 1 {
		return "1 path leaves when its grace ends"
	}
	return Digits(int64(n)) + " paths leave when their grace ends"
}

// short is a time.Duration's own text without the zeros at its end: 15m, not 15m0s.
func short(d string) string {
	if s, ok := strings.CutSuffix(d, "m0s"); ok {
		d = s + "m"
	}
	if s, ok := strings.CutSuffix(d, "h0m"); ok {
		d = s + "h"
	}
	return d
}
