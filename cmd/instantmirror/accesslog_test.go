package main

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// access is a line of the access log.
type access struct {
	method, path string // the path as it is escaped
	status       int
	bytes        int64
	ranges       string // the Range field
	cache        string // Cache-Status
}

// accesses are the requests for paths that end in suffix of which the daemon's log tells from mark on. They are awaited
// until there are n: a request is logged when its client has everything already.
func (d *daemonProcess) accesses(t *testing.T, mark int, suffix string, n int) []access {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var list []access
		for line := range strings.Lines(d.logged()[mark:]) {
			if a, ok := parseAccess(line); ok && strings.HasSuffix(a.path, suffix) {
				list = append(list, a)
			}
		}
		if len(list) >= n {
			return list
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests for %s are logged, not %d:\n%s", len(list), suffix, n, d.logged()[mark:])
		}
	}
}

// parseAccess reads a line as slog's text handler writes it.
func parseAccess(line string) (a access, ok bool) {
	fields := make(map[string]string)
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimPrefix(rest, " ") {
		key, value, _ := strings.Cut(rest, "=")
		if quoted, err := strconv.QuotedPrefix(value); err == nil {
			rest = value[len(quoted):]
			value, _ = strconv.Unquote(quoted)
		} else {
			value, rest, _ = strings.Cut(value, " ")
		}
		fields[key] = value
	}
	a = access{method: fields["method"], path: fields["path"], ranges: fields["range"], cache: fields["cache"]}
	a.status, _ = strconv.Atoi(fields["status"])
	a.bytes, _ = strconv.ParseInt(fields["bytes"], 10, 64)
	return a, fields["msg"] == "request"
}
