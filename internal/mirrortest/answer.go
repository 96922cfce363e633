package mirrortest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"time"

	"golang.org/x/time/rate"
)

// answer is the http.ResponseWriter through which everything goes: it applies the
// fault, waits at the gates, paces, and keeps the record.
type answer struct {
	http.ResponseWriter
	u      *Upstream
	r      *http.Request
	ctx    context.Context
	record *Request
	fault  Fault
	gates  []*Gate
	own    *rate.Limiter // this answer's
	line   *rate.Limiter // the upstream's
	wrote  bool          // the header
	struck bool          // a Stall or Truncate is over
	err    error         // why the body could not be sent whole
	sent   int64
	raw    net.Conn // Unframed: the connection, taken from the server
}

// file serves a file, by http.ServeContent (ranges, multi-ranges, conditionals, HEAD)
// unless the fault wants it otherwise.
func (a *answer) file(r *http.Request, name string, f File) {
	h := a.Header()
	h.Set("Content-Type", f.Type)
	if f.Type == "" {
		h.Set("Content-Type", contentType(name))
	}
	switch f.ETag {
	case "-":
	case "":
		h.Set("ETag", fmt.Sprintf(`"%x-%x"`, f.ModTime.Unix(), f.Size)) // as nginx makes it
	default:
		h.Set("ETag", f.ETag)
	}
	r = r.Clone(r.Context())
	if a.fault.NoRange || a.fault.Gzip || a.fault.Unframed && r.Header.Get("Range") == "" {
		r.Header.Del("Range")
	}
	if a.fault.Range != "" {
		r.Header.Set("Range", a.fault.Range)
		r.Header.Del("If-Range")
	}
	content, size := f.Content, f.Size
	if a.fault.Gzip {
		h.Set("Content-Encoding", "gzip")
		plain, err := io.ReadAll(io.NewSectionReader(content, 0, size))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		packed := zip(plain)
		content, size = bytes.NewReader(packed), int64(len(packed))
		h.Set("Content-Length", strconv.FormatInt(size, 10)) // ServeContent leaves it out when there is an encoding
	}
	http.ServeContent(a, r, "", f.ModTime, io.NewSectionReader(content, 0, size))
}

// text sends a whole short answer.
func (a *answer) text(status int, typ, body string) {
	a.Header().Set("Content-Type", typ)
	a.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.WriteHeader(status)
	if a.r.Method != http.MethodHead {
		io.WriteString(a, body)
	}
}

func (a *answer) WriteHeader(status int) {
	if a.wrote {
		return
	}
	a.wrote = true
	h := a.Header()
	if a.fault.NoRange {
		h.Del("Accept-Ranges")
	}
	if a.fault.Chunked || a.fault.Unframed {
		h.Del("Content-Length")
	}
	for k, v := range a.fault.Header {
		if v == nil {
			h.Del(k)
			continue
		}
		h[http.CanonicalHeaderKey(k)] = v
	}
	a.u.note(func() { a.record.Status = status })
	if a.fault.Unframed && a.r.ProtoMajor == 1 {
		a.hijack(status)
		return
	}
	a.ResponseWriter.WriteHeader(status)
	if a.fault.Chunked || a.fault.Unframed {
		a.flush() // before the server can count a short body and give its length after all
	}
}

// hijack takes the connection over and sends the header as HTTP/1.0 did.
func (a *answer) hijack(status int) {
	h := a.Header().Clone()
	conn, _, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	a.raw = conn
	// The server no longer watches it: a client that leaves must still end a stall.
	ctx, cancel := context.WithCancel(a.ctx)
	a.ctx = ctx
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	h.Set("Connection", "close")
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.0 %d %s\r\n", status, http.StatusText(status))
	_ = h.Write(&b)
	b.WriteString("\r\n")
	_, _ = conn.Write(b.Bytes()) // the next write fails too
}

// Write sends p, in pieces that end where something is to happen.
func (a *answer) Write(p []byte) (total int, err error) {
	if !a.wrote {
		a.WriteHeader(http.StatusOK)
	}
	defer func() { a.err = err }()
	for len(p) > 0 {
		if err := a.events(); err != nil {
			return total, err
		}
		n, err := a.piece(p[:a.next(len(p))])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// next is how many of n bytes may go out before something happens.
func (a *answer) next(n int) int {
	bound := func(at int64) {
		if at > a.sent && at-a.sent < int64(n) {
			n = int(at - a.sent)
		}
	}
	for _, g := range a.gates {
		bound(g.at)
	}
	if a.fault.Truncate || a.fault.Stall || a.fault.Wrong {
		bound(a.fault.At)
	}
	for _, l := range []*rate.Limiter{a.own, a.line} {
		if l != nil {
			n = min(n, l.Burst())
		}
	}
	return n
}

// piece sends bytes in the middle of which nothing happens.
func (a *answer) piece(p []byte) (int, error) {
	if a.fault.Wrong && a.sent >= a.fault.At {
		other := make([]byte, len(p))
		for i, c := range p {
			other[i] = c ^ 0x5a
		}
		p = other
	}
	for _, l := range []*rate.Limiter{a.own, a.line} {
		if l != nil {
			if err := l.WaitN(a.ctx, len(p)); err != nil {
				return 0, err
			}
		}
	}
	// Counted before, so that whoever has read a byte finds it counted.
	a.u.note(func() { a.record.Sent += int64(len(p)) })
	var n int
	var err error
	if a.raw != nil {
		n, err = a.raw.Write(p)
	} else {
		n, err = a.ResponseWriter.Write(p)
	}
	a.sent += int64(n)
	if n < len(p) {
		a.u.note(func() { a.record.Sent -= int64(len(p) - n) })
	}
	if err == nil && (a.own != nil || a.line != nil) {
		a.flush()
	}
	return n, err
}

// events does what is due at this offset.
func (a *answer) events() error {
	if err := a.hold(a.sent); err != nil {
		return err
	}
	if a.sent != a.fault.At || a.struck || !a.fault.Truncate && !a.fault.Stall {
		return nil
	}
	a.struck = true
	a.flush()
	if a.fault.Stall {
		<-a.ctx.Done()
	}
	panic(http.ErrAbortHandler)
}

// hold waits at the gates of one offset.
func (a *answer) hold(at int64) error {
	for _, g := range a.gates {
		if g.at == at {
			if at >= 0 {
				a.flush()
			}
			if err := g.pass(a.ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish does what is due at the end of a body, before its end is told.
func (a *answer) finish() {
	if a.r.Method == http.MethodHead || a.record.Status == http.StatusNotModified {
		return
	}
	if a.err != nil || a.events() != nil {
		panic(http.ErrAbortHandler) // returning would end a chunked body as if it were whole
	}
}

func (a *answer) pause(d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

func (a *answer) flush() {
	if a.raw == nil {
		_ = http.NewResponseController(a.ResponseWriter).Flush() // the next write fails too
	}
}

// Unwrap lets http.ResponseController find the server's own writer. (io.Copy does
// not look there: sendfile would go past the faults.)
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// limiter gives pieces of a hundredth of a second, so that a slow line is an even one.
func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(1, min(64<<10, bytesPerSecond/100))))
	l.AllowN(time.Now(), l.Burst()) // begin empty
	return l
}

// contentType does not ask the system's tables: they differ from machine to machine.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".rpm", ".drpm":
		return "application/x-rpm"
	case ".xml":
		return "text/xml"
	case ".gz":
		return "application/x-gzip"
	case ".html":
		return "text/html"
	case ".txt", ".asc":
		return "text/plain"
	}
	return "application/octet-stream"
}
