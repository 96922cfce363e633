package monitor

import (
	"fmt"
	"testing"
)

// many are names of packages; with seed they have other bytes.
func many(n int, seed string) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("many%d%s", i, seed))
	}
	return names
}

// TestVetoWaits: what a veto keeps waits for its confirmation whatever is pushed meanwhile, and is as it was when a push
// brings it back.
func TestVetoWaits(t *testing.T) {
	for name, replaced := range map[string][]string{"vanished": nil, "replaced": many(60, "=signed")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, oneOrigin)
			one := repo(at(0), append(many(60, ""), "other")...).Files()
			w.push("a/os", one)
			w.meet("os")
			for _, p := range many(60, "") {
				w.want("os/"+pkg(p), one[pkg(p)].Body)
			}
			w.restart() // all is stored by then
			veto := func(files int) {
				t.Helper()
				got := 0
				if r, _ := w.index.Repo(base + "os"); r.Veto != nil {
					got = r.Veto.Files
				}
				if got != files {
					t.Errorf("a veto for %d files, want %d", got, files)
				}
				for _, p := range many(60, "") {
					if !w.holds("os/" + pkg(p)) {
						t.Fatalf("%s went", p)
					}
				}
			}
			w.push("a/os", repo(at(1), append(replaced, "other")...).Files())
			w.is(w.look("os"), Published)
			veto(60)
			w.push("a/os", repo(at(2), append(replaced, "other", "more")...).Files())
			w.is(w.look("os"), Published)
			veto(60)
			w.push("a/os", repo(at(3), append(replaced[min(5, len(replaced)):], many(5, "")...)...).Files())
			w.is(w.look("os"), Published)
			veto(55)
			w.push("a/os", repo(at(4), append(many(60, ""), "other")...).Files())
			w.is(w.look("os"), Published)
			veto(0)
			w.up.Reset()
			for _, p := range many(60, "") {
				w.want("os/"+pkg(p), one[pkg(p)].Body)
			}
			if n := w.up.Count("a/os/Packages/**"); n > 0 {
				t.Errorf("%d packages were fetched again", n)
			}
			w.sound()
		})
	}
}
