// Package text is what the commands say to people, in 100 columns.
package text

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// columns is how wide what people read is at most, but for names that are longer.
const columns = 100

// paragraph prints text in lines of at most columns, the first one after first, the others after as many blanks.
func paragraph(out io.Writer, first, format string, args ...any) {
	width := utf8.RuneCountInString(first)
	line, room := first, columns-width
	for i, word := range words(fmt.Sprintf(format, args...)) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case n+1 > room:
			fmt.Fprintln(out, line)
			line, room = strings.Repeat(" ", width), columns-width
		default:
			line, room = line+" ", room-1
		}
		line, room = line+word, room-n
	}
	fmt.Fprintln(out, strings.TrimRight(line, " "))
}

// words are what a line may be broken between: a number stays with what follows it.
func words(text string) (list []string) {
	number := false
	for _, word := range strings.Fields(text) {
		if number {
			list[len(list)-1] += " " + word
		} else {
			list = append(list, word)
		}
		digits := strings.TrimLeft(word, "(")
		number = digits != "" && strings.Trim(digits, "0123456789.,") == "" && !strings.HasSuffix(digits, ".") && !strings.HasSuffix(digits, ",")
	}
	return list
}

// Bytes is n as people read it: 412.3 GiB.
func Bytes(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if u == 0 {
		return strconv.FormatInt(n, 10) + " bytes"
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[u]
}

// Digits is n with its digits in threes: 12,345.
func Digits(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Count is "1 file" or "12,345 files".
func Count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if stem, ok := strings.CutSuffix(what, "y"); ok {
		return Digits(n) + " " + stem + "ies"
	}
	return Digits(n) + " " + what + "s"
}

// inTime is a length of time to two places: 3d4h, 12m, 5s.
func inTime(d time.Duration) string {
	d = d.Abs()
	switch {
	case d >= 48*time.Hour:
		days := d / (24 * time.Hour)
		if h := (d % (24 * time.Hour)) / time.Hour; h > 0 && days < 10 {
			return fmt.Sprintf("%dd%dh", days, h)
		}
		return fmt.Sprintf("%dd", days)
	case d >= time.Hour:
		if m := (d % time.Hour) / time.Minute; m > 0 && d < 10*time.Hour {
			return fmt.Sprintf("%dh%dm", d/time.Hour, m)
		}
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// ago is when t was, as seen from now.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if t.After(now.Add(time.Second)) {
		return "in " + inTime(t.Sub(now))
	}
	return inTime(now.Sub(t)) + " ago"
}

// stamp is a moment, exactly, and how long ago it was.
func stamp(now, t time.Time) string {
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05 MST"), ago(now, t))
}
