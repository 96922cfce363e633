// Package wire is how a command and the daemon speak: calls over HTTP/1.1 on a unix socket, which it opens and finds. It
// does not know what they say.
//
// A call is GET /v1/NAME with a query if it changes nothing, POST /v1/NAME with a JSON object if it does; either carries
// the header field Instantmirror-Admin: 1, so that nothing that was made to speak to other servers is understood. The answer
// is JSON lines: {"item":…} for each thing that was found or done, as soon as it was, and at the end {"done":true} or
// {"error":"…"}, with "usage":true where the call made no sense. An answer without that end was cut. A call ends with the
// client: when that goes away, what is not done yet is left.
package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// field and word are what every request has in its header.
	field = "Instantmirror-Admin"
	word  = "1"

	prefix    = "/v1/"
	jsonType  = "application/json"
	linesType = "application/jsonl"

	maxParams = 1 << 20          // bytes of a call's parameters
	maxCalls  = 16               // under way
	patience  = 30 * time.Second // for the header and the parameters of a call, and for each line of an answer to be taken
	maxHeader = 16 << 10         // bytes
	leave     = 5 * time.Second  // for calls to end when the server does
)

// UsageError says that a call made no sense, and what would.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Op is what a call by some name does.
type Op struct {
	Changes bool // it changes something: POST
	// Do carries it out. Each value given to emit is sent at once. Emit is for one goroutine at a time.
	Do func(ctx context.Context, params json.RawMessage, emit func(any)) error
}

// line is one line of an answer.
type line struct {
	Item  json.RawMessage `json:"item,omitempty"`
	Error string          `json:"error,omitempty"`
	Usage bool            `json:"usage,omitempty"`
	Done  bool            `json:"done,omitempty"`
}

// Serve answers calls that come through l until ctx ends, then ends those under way and returns when they have ended. It
// closes l. Ended is called after each call that changes something.
func Serve(ctx context.Context, l net.Listener, ops map[string]Op, ended func(name string, params json.RawMessage, took time.Duration, err error)) error {
	s := &server{ops: ops, ended: ended, calls: make(chan struct{}, maxCalls)}
	srv := &http.Server{
		Handler: s, BaseContext: func(net.Listener) context.Context { return ctx },
		ReadTimeout: patience, MaxHeaderBytes: maxHeader, DisableGeneralOptionsHandler: true,
		ErrorLog: log.New(io.Discard, "", 0), // about single clients, who come and go
	}
	srv.SetKeepAlivesEnabled(false)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), leave)
		defer cancel()
		if srv.Shutdown(limit) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() { // it failed by itself
		_ = srv.Close()
	} else {
		<-stopped
	}
	s.wg.Wait()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the admin socket: %w", err)
}

type server struct {
	ops   map[string]Op
	ended func(string, json.RawMessage, time.Duration, error)
	calls chan struct{} // a value in it is a call under way
	wg    sync.WaitGroup
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.wg.Add(1) //nolint:revive // the goroutine is net/http's
	defer s.wg.Done()
	name, ok := strings.CutPrefix(r.URL.Path, prefix)
	op, known := s.ops[name]
	method := http.MethodGet
	if op.Changes {
		method = http.MethodPost
	}
	switch {
	case r.Header.Get(field) != word:
		http.Error(w, "This is the admin socket of instantmirror: the header field "+field+": "+word+" is missing.", http.StatusForbidden)
		return
	case !ok || !known:
		http.Error(w, "There is no call of this name: the daemon may be of another version than the command.", http.StatusNotFound)
		return
	case r.Method != method:
		w.Header().Set("Allow", method)
		http.Error(w, "It is called by "+method+".", http.StatusMethodNotAllowed)
		return
	case op.Changes && r.Header.Get("Content-Type") != jsonType:
		http.Error(w, "Its parameters come as "+jsonType+".", http.StatusUnsupportedMediaType)
		return
	}
	select {
	case s.calls <- struct{}{}:
		defer func() { <-s.calls }()
	default:
		http.Error(w, fmt.Sprintf("%d commands are under way already: try again when some have ended.", maxCalls), http.StatusServiceUnavailable)
		return
	}
	params, err := paramsOf(w, r, op)
	if err != nil {
		http.Error(w, "Reading the parameters: "+err.Error(), http.StatusBadRequest)
		return
	}
	s.call(w, r, name, op, params)
}

// paramsOf reads a call's parameters: the body, or the query as an object of texts.
func paramsOf(w http.ResponseWriter, r *http.Request, op Op) (json.RawMessage, error) {
	if op.Changes {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, maxParams))
	}
	query := make(map[string]string)
	for key := range r.URL.Query() {
		query[key] = r.URL.Query().Get(key)
	}
	return json.Marshal(query)
}

// call carries a call out and sends what comes of it.
func (s *server) call(w http.ResponseWriter, r *http.Request, name string, op Op, params json.RawMessage) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the client may be silent as long as it takes
	w.Header().Set("Content-Type", linesType)
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()
	send := func(l line) {
		b, err := json.Marshal(l)
		if err == nil {
			_ = control.SetWriteDeadline(time.Now().Add(patience))
			_, err = w.Write(append(b, '\n'))
		}
		if err == nil {
			err = control.Flush()
		}
		if err != nil {
			cancel() // nobody takes it
		}
	}
	begun := time.Now()
	err := op.Do(ctx, params, func(item any) {
		b, err := json.Marshal(item)
		if err != nil { // a time of the year 10000
			b, _ = json.Marshal(fmt.Sprintf("%v: %+v", err, item))
		}
		send(line{Item: b})
	})
	last := line{Done: true}
	if err != nil {
		_, usage := errors.AsType[*UsageError](err)
		last = line{Error: err.Error(), Usage: usage}
	}
	if op.Changes && s.ended != nil {
		s.ended(name, params, time.Since(begun), err)
	}
	send(last)
}
