package text

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/instantmirror/instantmirror/internal/admin"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/monitor"
)

func TestNumbers(t *testing.T) {
	for _, test := range [][2]string{
		{Bytes(0), "0 bytes"}, {Bytes(1023), "1023 bytes"}, {Bytes(1024), "1.0 KiB"}, {Bytes(412 << 30), "412.0 GiB"}, {Bytes(1 << 62), "4096.0 PiB"},
		{Digits(0), "0"}, {Digits(999), "999"}, {Digits(1000), "1,000"}, {Digits(-1234567), "-1,234,567"}, {Digits(-123), "-123"},
		{Count(1, "file"), "1 file"}, {Count(0, "file"), "0 files"}, {Count(1, "repository"), "1 repository"}, {Count(1500, "repository"), "1,500 repositories"},
		{inTime(0), "0s"}, {inTime(59 * time.Second), "59s"}, {inTime(61 * time.Second), "1m"}, {inTime(90 * time.Minute), "1h30m"},
		{inTime(30 * time.Hour), "30h"}, {inTime(76 * time.Hour), "3d4h"}, {inTime(1000 * time.Hour), "41d"}, {inTime(-time.Minute), "1m"},
		{short("15m0s"), "15m"}, {short("1h0m0s"), "1h"}, {short("90s"), "90s"}, {short("never"), "never"}, {short("24h0m0s"), "24h"},
	} {
		if test[0] != test[1] {
			t.Errorf("%q, want %q", test[0], test[1])
		}
	}
}

// fits fails if a line of text could have been shorter.
func fits(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if utf8.RuneCountInString(line) > columns && strings.Contains(strings.TrimSpace(line), " ") {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("blanks at the end: %q", line)
		}
	}
}

func TestStatus(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	used := int64(412 << 30)
	long := strings.Repeat("a reason that takes some room ", 10)
	st := &admin.Status{
		Version: "1.0", Running: true, PID: 17, Started: now.Add(-76 * time.Hour), Now: now, Root: "/srv/mirror",
		Traffic: &admin.Traffic{Requests: 12345, Hits: 12000, Failed: 3, Sent: 3 << 40, Fetched: 1 << 40, Saved: 2 << 40},
		Room: admin.Room{
			Quota: admin.Quota{Path: "/", Used: &used, Limit: 1 << 40}, Free: 88 << 30, Total: 2 << 40, Reserve: 1 << 30,
			Profiles: []admin.Quota{{Profile: "fedora", Path: "/pub/fedora", Used: &used}, {Profile: "centos", Path: "/pub/centos"}},
		},
		Upstreams: []admin.Upstream{
			{Name: "https://dl.example.org/fedora", Profiles: []string{"fedora"}, Role: "upstream", State: "up"},
			{Name: "https://mirror.example.net/fedora", Profiles: []string{"fedora", "centos"}, Role: "fallback", State: "down", Since: now.Add(-time.Minute), Error: long, Retry: now.Add(5 * time.Second)},
		},
		Repositories: []monitor.Repository{
			{
				Root: "pub/fedora/updates", Refresh: "15m0s", Generation: "0123456789ab", Timestamp: now.Add(-2 * time.Hour), Published: now.Add(-time.Hour),
				Origin: "https://dl.example.org", Signed: "0xDEADBEEF", Checked: now.Add(-30 * time.Minute), State: "watched", Next: now.Add(time.Minute),
				Last:  monitor.Result{At: now.Add(-time.Minute), What: "failed", Err: errors.New("x"), Message: long},
				Stale: true, Leaving: 1, Veto: &index.Veto{Since: now.Add(-time.Hour), Origin: "https://dl.example.org", Files: 120, Held: 200},
				Back: &index.Back{Since: now.Add(-time.Hour)}, Refused: 2, Partial: long, Gone: now.Add(-time.Hour),
			},
			{Root: "pub/fedora/releases", Refresh: "never", Generation: "ab0123456789", State: "never polled"},
		},
	}
	var b strings.Builder
	Status(&b, st)
	got := b.String()
	fits(t, got)
	flat := strings.Join(strings.Fields(got), " ")
	for _, want := range []string{
		"InstantMirror 1.0 serves /srv/mirror for 3d4h (pid 17)", "412.0 GiB of 1.0 TiB; 88.0 GiB free of 2.0 TiB, of which 1.0 GiB stay free",
		"12,345 requests answered, 97.2 % of them hits, 3 failed; 3.0 TiB sent, 1.0 TiB fetched: 2.0 TiB saved (66.7 %)",
		"down https://mirror.example.net/fedora (fedora, centos, fallback)", "tried again in 5s", "2 repositories",
		"generation 0123456789ab, made 2h ago, here since 1h ago, from https://dl.example.org, signed by 0xDEADBEEF",
		"watched every 15m, stale; failed 1m ago; next look in 1m", "veto since 1h ago", "would delete 120 of 200 stored files", "every upstream has an older generation",
		"refused: 2 older generations were offered since this one is here", "partial, published with primary only", "gone upstream since 1h ago", "leaving: 1 path leaves when its grace ends", "never polled; never checked",
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "centos     ") {
		t.Error("it tells of a profile of which nothing is known")
	}
	b.Reset()
	Status(&b, &admin.Status{Version: "1.0", Now: now, Root: "/srv/mirror"})
	if got := b.String(); !strings.Contains(got, "no daemon serves /srv/mirror") || !strings.Contains(got, "not measured") || strings.Contains(got, "Clients") {
		t.Errorf("without a daemon:\n%s", got)
	}
}

func TestWhy(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	hex := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	w := &admin.Why{
		Path: "/pub/fedora/updates/Packages/a.rpm", Profile: "fedora", Tree: "/pub/fedora/updates/", Layout: "updates/{release}", Class: "package",
		Rule: admin.Rule{Match: "updates/**", At: "fedora.yaml:12", Refresh: "15m0s", Grace: "24h0m0s"}, Content: &admin.Rule{Match: "**", At: "fedora.yaml:20"}, Action: "store",
		Upstreams: []string{"https://dl.example.org/fedora"}, Archives: []string{"https://old.example.org/fedora"},
		Validity: "due", Detail: "stale", Says: []admin.Says{{By: "/pub/fedora/updates/repodata/x-primary.xml.gz", Generation: "0123456789ab", Size: 5000, Sum: hex}},
		Stored:     &admin.Stored{Size: 5000, ModTime: now, Placed: now.Add(-time.Hour), Links: 2, Origin: "https://dl.example.org", Checked: now.Add(-time.Minute), Verified: hex},
		Leaving:    &admin.Leaving{Repository: "/pub/fedora/updates", Until: now.Add(time.Hour), From: "0123456789ab", To: "ab0123456789", Size: -1},
		Used:       now.Add(-2 * time.Hour),
		Repository: &monitor.Repository{Root: "pub/fedora/updates", Refresh: "15m0s", State: "asleep"},
		Journal:    []journal.Entry{{Time: now, Reason: journal.Replaced, From: "0123456789ab", To: "ab0123456789", Size: 5000, Sum: hex, Rule: "fedora.yaml:12"}, {Time: now, Reason: journal.Evicted}},
	}
	var b strings.Builder
	Why(&b, now, w)
	got := b.String()
	fits(t, got)
	flat := strings.Join(strings.Fields(got), " ")
	for _, want := range []string{
		"profile fedora", "tree /pub/fedora/updates/ (layout updates/{release})", "class package", "rule updates/** (fedora.yaml:12): refresh 15m, grace 24h",
		"content ** (fedora.yaml:20): store", "archives https://old.example.org/fedora", "stored yes: due, stale; 5,000 bytes of", "links 2 names", "sent by https://dl.example.org",
		"named by /pub/fedora/updates/repodata/x-primary.xml.gz (generation 0123456789ab): 5,000 bytes, " + hex, "any length, no digest", "last use 2h ago",
		"deleted: replaced, generation 0123456789ab → ab0123456789, rule fedora.yaml:12, 4.9 KiB " + hex, "deleted: evicted",
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

// TestWhyKept: what a veto keeps has no date.
func TestWhyKept(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for want, r := range map[string]monitor.Repository{
		"until 2026-": {}, "/pub/x, kept by the veto: generation": {Veto: &index.Veto{Since: now}}, "/pub/x, kept, for upstream has": {Gone: now},
	} {
		r.Root = "pub/x"
		var b strings.Builder
		Why(&b, now, &admin.Why{Path: "/pub/x/a.rpm", Profile: "x", Leaving: &admin.Leaving{Repository: "/pub/x", Until: now.Add(time.Hour)}, Repository: &r})
		if got := strings.Join(strings.Fields(b.String()), " "); !strings.Contains(got, want) || strings.Contains(got, "until 2026-") != strings.Contains(want, "until") {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

// TestNumbersStay: a line is not broken between a number and what it counts.
func TestNumbersStay(t *testing.T) {
	for n := range columns {
		var b strings.Builder
		paragraph(&b, strings.Repeat("x", n)+" ", "a 0 bytes b (66.7 %%) c, 17. End")
		if got := b.String(); !strings.Contains(got, "0 bytes") || !strings.Contains(got, "(66.7 %)") || !strings.Contains(strings.Join(strings.Fields(got), " "), "c, 17. End") {
			t.Errorf("%d:\n%s", n, got)
		}
	}
}
