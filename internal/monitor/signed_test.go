package monitor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

const (
	ascName = "repodata/repomd.xml.asc"
	keyName = "repodata/repomd.xml.key"
)

// signed is files with their signature by s, and its key.
func signed(files map[string]mirrortest.File, s *mirrortest.Signer) map[string]mirrortest.File {
	return with(files, s.Sign(files["repodata/repomd.xml"].Body), s.Public())
}

// with is files with what stands for a signature and its key; nil: it has none.
func with(files map[string]mirrortest.File, asc, key []byte) map[string]mirrortest.File {
	files = maps.Clone(files)
	delete(files, ascName)
	delete(files, keyName)
	when := files["repodata/repomd.xml"].ModTime
	if asc != nil {
		files[ascName] = mirrortest.File{Body: asc, ModTime: when}
	}
	if key != nil {
		files[keyName] = mirrortest.File{Body: key, ModTime: when}
	}
	return files
}

// pair fails unless clients get files' repomd.xml, and its .asc and .key or none if it has none.
func (b *bubble) pair(files map[string]mirrortest.File) {
	b.t.Helper()
	b.has(pointer, files["repodata/repomd.xml"].Body)
	for _, name := range []string{ascName, keyName} {
		if f, ok := files[name]; ok {
			b.has("os/"+name, f.Body)
		} else if g := b.ask("os/" + name); !errors.Is(g.err, fs.ErrNotExist) {
			b.t.Errorf("%s: %q, %v; want none", name, g.body, g.err)
		}
	}
}

// keys makes the profile check signatures by the keys of s.
func (b *bubble) keys(s *mirrortest.Signer) {
	b.t.Helper()
	file := filepath.Join(b.dir, "keys")
	if err := os.WriteFile(file, s.Public(), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.profile += fmt.Sprintf("keys: [%q]\n", file)
	b.route()
}

// TestKeys: where the profile has keys, nothing becomes current that they have not signed, once something was signed.
func TestKeys(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]\n", func(b *bubble) {
		right, other := mirrortest.NewSigner(t), mirrortest.NewSigner(t)
		b.keys(right)
		here := signed(repo(at(0), "x").Files(), right)
		for _, h := range b.hosts {
			h.put("os", here)
		}
		b.meet("os")
		b.pair(here)
		if r := b.status("os"); r.Signed == "" {
			t.Errorf("status: %+v", r)
		}
		next := repo(at(1), "x", "y").Files()
		sig := right.Sign(next["repodata/repomd.xml"].Body)
		for name, files := range map[string]map[string]mirrortest.File{
			"by another key":          signed(next, other),
			"of another repomd.xml":   with(next, here[ascName].Body, right.Public()),
			"cut":                     with(next, sig[:len(sig)/2], right.Public()),
			"none, and one was there": with(next, nil, nil),
		} {
			b.hosts["a"].put("os", files)
			r := b.look("os") // b has what is here
			refused := b.logged(Refused)
			if r.What != unchanged || len(refused) != 1 || refused[0].Origin != "http://a.test" || !strings.Contains(refused[0].Err.Error(), "signature") {
				t.Errorf("%s: %+v, said %+v", name, r, refused)
			}
			b.pair(here)
		}
		// It can't be had now.
		b.hosts["a"].put("os", signed(next, right))
		b.hosts["a"].set(func(h *host) {
			h.change = func(name string, f mirrortest.File, ok bool) (mirrortest.File, bool) {
				if strings.HasSuffix(name, ".asc") {
					f.Size, f.Body = int64(len(f.Body)), f.Body[:1]
				}
				return f, ok
			}
		})
		if r := b.look("os"); r.What == Published {
			t.Errorf("%+v", r)
		}
		b.pair(here)
		b.hosts["a"].set(func(h *host) { h.change = nil })
		time.Sleep(15 * time.Second)
		if r := b.look("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
		b.pair(signed2(b, "a"))
		if r := b.status("os"); r.Signed == "" {
			t.Errorf("status: %+v", r)
		}
		b.sound()
		// Others are asked when one lies.
		last := repo(at(2), "z").Files()
		b.hosts["a"].put("os", signed(last, other))
		b.hosts["b"].put("os", signed(last, right))
		if r := b.look("os"); r.What != Published || r.Origin != "http://b.test" {
			t.Errorf("%+v", r)
		}
		b.pair(signed2(b, "b"))
		// To insist does not help: whoever has keys wants signatures.
		unsigned := repo(at(3), "z", "x").Files()
		for _, h := range b.hosts {
			h.put("os", unsigned)
		}
		if r := b.look("os"); r.What == Published {
			t.Errorf("%+v", r)
		}
		if r := b.force("os"); r.What != Refused {
			t.Errorf("%+v", r)
		}
		if r := b.status("os"); r.Signed == "" {
			t.Errorf("status: %+v", r)
		}
	})
}

// signed2 is what the host has of os now: a signature is another one each time it is made.
func signed2(b *bubble, name string) map[string]mirrortest.File {
	h := b.hosts[name]
	h.mu.Lock()
	defer h.mu.Unlock()
	files := map[string]mirrortest.File{}
	for name, f := range h.files {
		files[strings.TrimPrefix(name, "os/")] = f
	}
	return files
}

// TestWronglySignedAtFirst: a signature that does not fit is not handed out at first contact either, and mended soon.
func TestWronglySignedAtFirst(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]\n", func(b *bubble) {
		right, other := mirrortest.NewSigner(t), mirrortest.NewSigner(t)
		b.keys(right)
		files := repo(at(0), "x").Files()
		b.hosts["a"].put("os", signed(files, other))
		for range 3 {
			if g := b.ask(pointer); g.err == nil || !strings.Contains(g.err.Error(), "signature") {
				t.Errorf("a client got what another key has signed: %v", g.err)
			}
		}
		b.hosts["a"].put("os", signed(files, right))
		time.Sleep(15 * time.Second)
		b.meet("os")
		b.pair(signed2(b, "a"))
		if r := b.status("os"); r.Signed == "" {
			t.Errorf("status: %+v", r)
		}
	})
}

// TestCompanions: without keys, signature and key come from the pointer's origin and change with it.
func TestCompanions(t *testing.T) {
	inBubble(t, threeHosts+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		all := func(files map[string]mirrortest.File) {
			for name, h := range b.hosts {
				of := maps.Clone(files)
				for _, n := range []string{ascName, keyName} {
					if f, ok := of[n]; ok {
						f.Body = append(bytes.Clone(f.Body), name...)
						of[n] = f
					}
				}
				h.put("os", of)
			}
		}
		one, two := with(repo(at(0), "x").Files(), []byte("1"), []byte("k1")), with(repo(at(1), "x", "y").Files(), []byte("2"), []byte("k2"))
		all(one)
		b.meet("os")
		b.pair(signed2(b, "a"))
		old := signed2(b, "a")
		all(two)
		b.pair(old) // nobody has looked
		b.hosts["a"].set(func(h *host) { h.status = http.StatusServiceUnavailable })
		if r := b.look("os"); r.What != Published || r.Origin != "http://b.test" {
			t.Errorf("%+v", r)
		}
		b.pair(signed2(b, "b"))
		b.hosts["a"].set(func(h *host) { h.status = 0 })
		time.Sleep(12 * time.Second)
		b.restart(nil)
		b.look("os")
		b.pair(signed2(b, "b"))
		three := with(repo(at(2), "z").Files(), nil, nil)
		all(three)
		if r := b.look("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
		b.pair(three)
		if n := len(b.stored("os/repodata")); n != 3 && b.holds("os/"+ascName) {
			t.Errorf("stored: %v", b.stored("os/repodata"))
		}
		four := with(repo(at(3), "z").Files(), []byte("4"), nil)
		all(four)
		b.look("os")
		b.pair(signed2(b, "a"))
	})
}

// TestPairAstride: a push between the fetching of pointer and signature does not make a pair of two generations.
func TestPairAstride(t *testing.T) {
	for _, ext := range []string{"", ".asc", ".key"} {
		t.Run("before repomd.xml"+ext+" is sent", func(t *testing.T) {
			inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
				a := b.hosts["a"]
				pairs := map[[32]byte]map[string]mirrortest.File{}
				var list []map[string]mirrortest.File
				for i := range 15 {
					files := with(repo(at(i), fmt.Sprintf("x=%d", i)).Files(), fmt.Appendf(nil, "signature %d", i), fmt.Appendf(nil, "key %d", i))
					list = append(list, files)
					pairs[sha256.Sum256(files["repodata/repomd.xml"].Body)] = files
				}
				consistent := func() (i int) {
					t.Helper()
				again:
					g := b.ask(pointer)
					files, ok := pairs[sha256.Sum256(g.body)]
					if !ok {
						t.Fatalf("%d bytes, %v", len(g.body), g.err)
					}
					for i := range list {
						if list[i]["repodata/repomd.xml"].ModTime.Equal(files["repodata/repomd.xml"].ModTime) {
							for _, name := range []string{ascName, keyName} {
								got := b.ask("os/" + name)
								if now := b.ask(pointer); !bytes.Equal(now.body, g.body) {
									goto again // that has made somebody look: who reads it meanwhile reads it again
								}
								if got.err == nil && !bytes.Equal(got.body, files[name].Body) {
									t.Errorf("with generation %d comes %q", i, got.body)
								}
							}
							return i
						}
					}
					return 0
				}
				a.put("os", list[0])
				next := 1
				pushes := func(n int) {
					a.set(func(h *host) {
						h.before = func(name string) {
							if name == pointer+ext && n > 0 {
								n--
								a.put("os", list[next])
								next++
							}
						}
					})
				}
				pushes(1) // at first contact
				b.meet("os")
				time.Sleep(time.Minute)
				consistent()
				b.run()
				for _, n := range []int{0, 1, 2, 3} {
					a.put("os", list[next])
					next++
					pushes(n)
					time.Sleep(2 * time.Hour)
					if i := consistent(); i != next-1 {
						t.Errorf("%d more pushes: generation %d is in force, upstream has %d (%+v)", n, i, next-1, b.status("os"))
					}
				}
				b.pair(list[next-1])
			})
		})
	}
}

// TestSignatureLags: a signature that upstream replaces later than its repomd.xml is waited for, though nothing tells that it
// does not fit but that it is the one before. One that stays as it was keeps nobody from the new generation.
func TestSignatureLags(t *testing.T) {
	for _, late := range []time.Duration{5 * time.Second, 2 * time.Minute, 0} {
		inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
			one, two := with(repo(at(0), "x").Files(), []byte("1"), nil), with(repo(at(1), "y").Files(), []byte("2"), nil)
			half := with(two, []byte("1"), nil)
			a := b.hosts["a"]
			a.put("os", one)
			b.meet("os")
			a.put("os", half)
			b.look("os")
			b.pair(one)
			b.run()
			if late > 0 {
				time.Sleep(late)
				a.put("os", two)
			}
			time.Sleep(2 * time.Hour)
			if late > 0 {
				b.pair(two)
			} else {
				b.pair(half)
			}
		})
	}
}

// TestCompanionLater: a signature that can't be had at first contact is unavailable, and not absent.
func TestCompanionLater(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		files := with(repo(at(0), "x").Files(), []byte("1"), []byte("k1"))
		a := b.hosts["a"]
		a.put("os", files)
		a.set(func(h *host) {
			h.change = func(name string, f mirrortest.File, ok bool) (mirrortest.File, bool) {
				if strings.HasSuffix(name, ".asc") {
					f.Size, f.Body = int64(len(f.Body)+1), nil
				}
				return f, ok
			}
		})
		b.meet("os")
		if g := b.ask("os/" + ascName); g.err == nil || errors.Is(g.err, fs.ErrNotExist) {
			t.Errorf("%q, %v", g.body, g.err)
		}
		a.set(func(h *host) { h.change = nil })
		time.Sleep(15 * time.Second)
		b.pair(files)
	})
}

// TestCompanionGone: a signature that is here from before and that upstream has no more goes, also when nothing comes in its
// place.
func TestCompanionGone(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		a := b.hosts["a"]
		files := with(repo(at(0), "x").Files(), []byte("1"), []byte("k1"))
		a.put("os", files)
		b.meet("os")
		b.pair(files)
		b.restart(func() {
			if err := os.Remove(filepath.Join(b.dir, "state", "index.db")); err != nil {
				t.Fatal(err)
			}
		})
		files = with(files, nil, nil)
		a.put("os", files)
		if _, err := b.monitor.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := b.look("os"); r.What != unchanged {
			t.Errorf("%+v", r)
		}
		b.pair(files)
	})
}

// TestCompanionsOfAnOlder: an upstream that says by its Last-Modified that it has nothing newer is not asked for the signature
// of what is here: it may have an older generation.
func TestCompanionsOfAnOlder(t *testing.T) {
	inBubble(t, oneHost+"expiry: [{match: '**', refresh: 1h}]", func(b *bubble) {
		old, now := with(repo(at(0), "x").Files(), []byte("0"), nil), with(repo(at(1), "y").Files(), []byte("1"), nil)
		a := b.hosts["a"]
		a.put("os", now)
		b.meet("os")
		b.pair(now)
		a.put("os", old)
		b.loseIndex()
		if _, err := b.monitor.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := b.look("os"); r.What != Refused {
			t.Errorf("%+v", r)
		}
		b.has(pointer, now["repodata/repomd.xml"].Body)
		b.has("os/"+ascName, now[ascName].Body)
	})
}

// metalink is what a MirrorManager says: the first of list is its main entry, the others are alternates.
func metalink(list ...map[string]mirrortest.File) []byte {
	entry := func(files map[string]mirrortest.File) string {
		f := files["repodata/repomd.xml"]
		return fmt.Sprintf(`<mm0:timestamp>%d</mm0:timestamp><size>%d</size><verification><hash type="sha256">%x</hash></verification>`,
			f.ModTime.Unix(), len(f.Body), sha256.Sum256(f.Body))
	}
	s := `<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/" xmlns:mm0="http://fedorahosted.org/mirrormanager"><files><file name="repomd.xml">` +
		entry(list[0]) + "<mm0:alternates>"
	for _, files := range list[1:] {
		s += "<mm0:alternate>" + entry(files) + "</mm0:alternate>"
	}
	return []byte(s + `</mm0:alternates><resources><url protocol="http">http://c.test/pub/os/repodata/repomd.xml</url></resources></file></files></metalink>`)
}

// TestMetalink: what the tree's metalink does not know is refused if it is older than what that has, and taken if it is
// newer. It is asked only when a pointer has changed.
func TestMetalink(t *testing.T) {
	layout := "layout: [{tree: os, metalink: 'http://metalink.test/metalink?repo=os'}]\nexpiry: [{match: '**', refresh: 1h}]"
	inBubble(t, threeHosts+layout, func(b *bubble) {
		var gens []map[string]mirrortest.File
		for i := range 12 {
			gens = append(gens, repo(at(i), fmt.Sprintf("x=%d", i)).Files())
		}
		m := b.hosts["metalink"]
		says := func(body []byte) {
			m.set(func(h *host) {
				h.status = 0
				h.files = map[string]mirrortest.File{"/metalink": {Body: body, ModTime: at(0), Type: "application/metalink+xml"}}
			})
		}
		all := func(files map[string]mirrortest.File) {
			for _, name := range []string{"a", "b", "c"} {
				b.hosts[name].put("os", files)
			}
		}
		says(metalink(gens[0]))
		all(gens[0])
		b.meet("os")
		b.run()
		m.asked()
		time.Sleep(24 * time.Hour)
		if n := len(m.asked()); n != 0 {
			t.Errorf("nothing has changed, and the metalink was asked for %d times", n)
		}

		// Newer than what the metalink knows: it lags.
		all(gens[1])
		time.Sleep(time.Hour)
		b.has(pointer, gens[1]["repodata/repomd.xml"].Body)
		if n := len(m.asked()); n != 1 {
			t.Errorf("the metalink was asked for %d times", n)
		}

		// Older than what it has, and unknown to it.
		says(metalink(gens[4], gens[3]))
		all(gens[2])
		time.Sleep(time.Hour)
		b.has(pointer, gens[1]["repodata/repomd.xml"].Body)
		if r := b.status("os"); r.Last.Err == nil || !strings.Contains(r.Last.Message, "metalink") {
			t.Errorf("status: %+v", r)
		}
		// An alternate.
		all(gens[3])
		time.Sleep(time.Hour)
		b.has(pointer, gens[3]["repodata/repomd.xml"].Body)
		// One has an unknown one, another one has the main entry.
		says(metalink(gens[6]))
		all(gens[6])
		b.hosts["a"].put("os", gens[5])
		time.Sleep(time.Hour)
		b.has(pointer, gens[6]["repodata/repomd.xml"].Body)
		if o := b.status("os").Origin; o != "http://b.test" {
			t.Errorf("from %s", o)
		}
		// It can't be had, or is none: it decides nothing.
		m.set(func(h *host) { h.status = http.StatusServiceUnavailable })
		all(gens[7])
		time.Sleep(time.Hour)
		b.has(pointer, gens[7]["repodata/repomd.xml"].Body)
		says([]byte("<metalink"))
		all(gens[8])
		time.Sleep(time.Hour)
		b.has(pointer, gens[8]["repodata/repomd.xml"].Body)
		m.set(func(h *host) { h.hangs = true })
		all(gens[9])
		time.Sleep(2 * time.Hour)
		b.has(pointer, gens[9]["repodata/repomd.xml"].Body)
		// What is older than what is here is refused whatever a metalink says, and taken by force.
		m.set(func(h *host) { h.hangs = false })
		says(metalink(gens[10], gens[8]))
		all(gens[8])
		time.Sleep(2 * time.Hour)
		b.has(pointer, gens[9]["repodata/repomd.xml"].Body)
		says(metalink(gens[10]))
		if r := b.force("os"); r.What != Published {
			t.Errorf("%+v", r)
		}
		b.has(pointer, gens[8]["repodata/repomd.xml"].Body)
	})
}
