package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/instantmirror/instantmirror/internal/mirrortest"
)

// cacheGroups are the groups of http-cache-tests that a mirror, whose freshness comes from its profile and not from the
// origin, can be asked about.
var cacheGroups = []string{"partial", "conditional-lm", "conditional-inm", "updateHEAD", "status"}

// The suite's own server listens on all addresses, and its own command runs all groups.
const (
	cacheServer = `
import net from 'node:net'
const listen = net.Server.prototype.listen
net.Server.prototype.listen = function () { return listen.call(this, 0, '127.0.0.1') }
await import('./server/server.mjs')
`
	cacheRunner = `
import fetch from 'node-fetch'
import { runTests, getResults } from './client/runner.mjs'
import groups from './tests/index.mjs'
const [base, ...wanted] = process.argv.slice(1)
await runTests(groups.filter(g => wanted.includes(g.id)), fetch, false, base)
console.log(JSON.stringify(getResults()))
`
)

// TestHTTPCache runs http-cache-tests against the mirror. What fails is listed in testdata/http-cache-expected.txt, a
// test's id and the reason on each line; anything else that fails, and anything listed that passes, is an error.
func TestHTTPCache(t *testing.T) {
	soak(t)
	mirrortest.Need(t, "node")
	suite := mirrortest.Tool(t, "http-cache-tests", "node_modules", "http-cache-tests")
	expected := expectedFailures(t, "testdata/http-cache-expected.txt")
	between := newCacheBridge(t, startCacheServer(t, suite))

	cmd := exec.CommandContext(t.Context(), "node", append([]string{"--no-warnings", "--input-type=module", "-e", cacheRunner, "--", between.url}, cacheGroups...)...)
	cmd.Dir = suite
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, problems.String())
	}
	var results map[string]any // true, or [kind of failure, message]
	if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) < 75 {
		t.Fatalf("%d results, %v:\n%s%s", len(results), err, out.String(), problems.String())
	}
	passed := 0
	for id, result := range results {
		why, listed := expected[id]
		switch {
		case result == true && listed:
			t.Errorf("%s passes, and is listed as a failure because %s", id, why)
		case result == true:
			passed++
		case !listed:
			t.Errorf("%s: %v", id, result)
		}
		delete(expected, id)
	}
	for id := range expected {
		t.Errorf("%s is listed as a failure, and was not run", id)
	}
	t.Logf("%d of %d pass", passed, len(results))
}

// expectedFailures reads a list of ids and reasons.
func expectedFailures(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	list := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		id, why, _ := strings.Cut(strings.TrimSpace(line), " ")
		if id == "" || strings.HasPrefix(id, "#") {
			continue
		}
		if why = strings.TrimSpace(why); why == "" || list[id] != "" {
			t.Errorf("%s: %s has no reason, or stands there twice", name, id)
		}
		list[id] = why
	}
	return list
}

// startCacheServer starts the suite's origin and returns its URL.
func startCacheServer(t *testing.T, suite string) *url.URL {
	t.Helper()
	cmd := exec.Command("node", "--no-warnings", "--input-type=module", "-e", cacheServer)
	cmd.Dir = suite
	cmd.Env = append(os.Environ(), "npm_config_protocol=http", "npm_config_port=0", "npm_config_pidfile="+t.TempDir()+"/pid")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if _, at, ok := strings.Cut(lines.Text(), "Listening on "); ok {
			go io.Copy(io.Discard, stdout)
			u, err := url.Parse(strings.TrimSuffix(at, "/"))
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
	}
	t.Fatalf("the suite's server does not start: %v", lines.Err())
	return nil
}

// cacheBridge stands before the mirror and behind it. The suite's client and server tell each other by header fields
// and by a state of their own what the mirror, which passes on nothing but paths and files, does not transport: the
// bridge carries them past it.
//
// Each test has a profile of its own, for an origin that fails (some of the tests want it to) is not asked for a while.
type cacheBridge struct {
	url    string
	origin *url.URL
	mirror *url.URL

	mu    sync.Mutex
	tests map[string]*cacheTest // by the suite's name for the URL
}

type cacheTest struct {
	dir    string      // its path on the mirror
	client http.Header // of the request under way
	server http.Header // of the last whole answer of the origin
	tag    string      // the mirror's, for the origin's Etag
}

// newCacheBridge starts a mirror between the suite's client and the origin.
func newCacheBridge(t *testing.T, origin *url.URL) *cacheBridge {
	t.Helper()
	b := &cacheBridge{origin: origin, tests: make(map[string]*cacheTest)}
	behind := httptest.NewServer(&httputil.ReverseProxy{Rewrite: b.toOrigin, ModifyResponse: b.fromOrigin})
	t.Cleanup(behind.Close)
	dir := t.TempDir()
	for i := range 100 {
		name := fmt.Sprintf("t%d", i)
		profileFile(t, dir, name, profileText(name, behind.URL+"/"+name, "expiry: [{match: 'brief/**', refresh: 2s}]"))
	}
	configFile(t, dir, "log: {access: false}\n")
	d := serve(t, dir)
	var err error
	if b.mirror, err = url.Parse(d.url); err != nil {
		t.Fatal(err)
	}
	before := httptest.NewServer(&httputil.ReverseProxy{Rewrite: b.toMirror, ModifyResponse: b.fromMirror})
	t.Cleanup(before.Close)
	b.url = before.URL
	return b
}

// toMirror sends what is about a file to the mirror, and the rest to the origin.
func (b *cacheBridge) toMirror(r *httputil.ProxyRequest) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(r.In.URL.Path, "/"), "/")
	name, file, _ := strings.Cut(rest, "/")
	b.mu.Lock()
	defer b.mu.Unlock()
	if kind == "test" {
		test := b.tests[name]
		test.client = r.In.Header.Clone()
		// Each server makes entity tags of its own: what stands between the quotes is translated.
		if _, tag, ok := strings.Cut(test.server.Get("Etag"), `"`); ok && test.tag != "" && r.In.Header.Get("If-None-Match") != "" {
			r.Out.Header.Set("If-None-Match", strings.ReplaceAll(r.In.Header.Get("If-None-Match"), `"`+tag, test.tag))
		}
		r.SetURL(b.mirror)
		r.Out.URL.Path = test.dir + "/" + name + file
		return
	}
	r.SetURL(b.origin)
	if kind != "config" {
		return
	}
	// How long an answer is fresh, which tests say in the origin's answers, the mirror's profiles say by paths.
	config, _ := io.ReadAll(r.In.Body)
	r.Out.Body = io.NopCloser(bytes.NewReader(config))
	fresh := "long"
	if bytes.Contains(config, []byte(`"max-age=2"`)) || bytes.Contains(config, []byte(`["Expires",1]`)) {
		fresh = "brief"
	}
	b.tests[name] = &cacheTest{dir: fmt.Sprintf("/pub/t%d/%s", len(b.tests), fresh)}
}

// fromMirror tells the client which of the origin's answers it got.
func (b *cacheBridge) fromMirror(resp *http.Response) error {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(resp.Request.URL.Path, "/"), "/")
	if kind == "state" {
		return onlyPromised(resp)
	}
	name := rest[strings.LastIndex(rest, "/")+1:]
	b.mu.Lock()
	defer b.mu.Unlock()
	if test := b.tests[name]; kind == "pub" && test != nil {
		for _, field := range []string{"Server-Request-Count", "Request-Numbers", "Server-Now"} {
			if v := test.server.Get(field); v != "" {
				resp.Header.Set(field, v)
			}
		}
		if tag := resp.Header.Get("Etag"); tag != "" && test.server.Get("Etag") != "" {
			test.tag = tag
			resp.Header.Set("Etag", test.server.Get("Etag"))
		}
	}
	return nil
}

// onlyPromised takes out of the suite's record of the origin's answers all header fields but the one that a mirror
// passes on: the client would look for them.
func onlyPromised(resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answers []map[string]any
	if json.Unmarshal(body, &answers) == nil {
		for _, a := range answers {
			fields, _ := a["response_headers"].([]any)
			a["response_headers"] = slices.DeleteFunc(fields, func(f any) bool {
				pair, _ := f.([]any)
				return len(pair) < 1 || pair[0] != "Last-Modified"
			})
		}
		if body, err = json.Marshal(answers); err != nil {
			return err
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// toOrigin tells the origin which of the client's requests it is that the mirror has come for.
func (b *cacheBridge) toOrigin(r *httputil.ProxyRequest) {
	name := r.In.URL.Path[strings.LastIndex(r.In.URL.Path, "/")+1:]
	r.SetURL(b.origin)
	r.Out.URL.Path = "/test/" + name
	b.mu.Lock()
	defer b.mu.Unlock()
	if test := b.tests[name]; test != nil {
		for _, field := range []string{"Test-Id", "Req-Num"} {
			r.Out.Header.Set(field, test.client.Get(field))
		}
	}
}

func (b *cacheBridge) fromOrigin(resp *http.Response) error {
	name := strings.TrimPrefix(resp.Request.URL.Path, "/test/")
	b.mu.Lock()
	defer b.mu.Unlock()
	if test := b.tests[name]; test != nil && resp.StatusCode != http.StatusNotModified {
		test.server = resp.Header.Clone()
	}
	return nil
}
