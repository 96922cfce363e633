package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/instantmirror/instantmirror/internal/mirror"
)

// recorder notes what is sent, for the access log, and bounds how long the client may take for it. It keeps
// io.ReaderFrom, without which net/http has no sendfile.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
	bytes   int64  // of the body
	cache   string // Cache-Status
}

func record(w http.ResponseWriter) *recorder {
	rec := &recorder{ResponseWriter: w, control: http.NewResponseController(w)}
	rec.extend() // an earlier request's deadline may still be set on the connection
	return rec
}

// extend gives the client the time for one more write of at most sendStep bytes.
func (w *recorder) extend() {
	// Both of net/http's servers can do it; a writer of some test that can't is no reason to fail.
	_ = w.control.SetWriteDeadline(time.Now().Add(SendPatience))
}

func (w *recorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	w.extend()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom hands src to the connection's own ReadFrom where there is one (HTTP/1 without TLS).
func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	w.extend()
	n, err := io.Copy(w.ResponseWriter, src)
	w.bytes += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// send answers r with a: conditionals, ranges, and then the bytes.
func (s *Server) send(w *recorder, r *http.Request, a *mirror.Answer) {
	h := w.Header()
	tag := etag(a.ModTime, a.Size)
	h.Set("Cache-Status", w.cache)
	if cc := a.CacheControl(); cc != "" {
		h.Set("Cache-Control", cc)
	}
	if tag != "" {
		h.Set("Etag", tag)
	}
	if !a.ModTime.IsZero() {
		h.Set("Last-Modified", a.ModTime.UTC().Format(http.TimeFormat))
	}
	if status := precondition(r, tag, a.ModTime); status != 0 {
		if status == http.StatusPreconditionFailed {
			h.Set("Content-Length", "0")
		}
		w.WriteHeader(status)
		return
	}
	kind := contentType(a.Target.Path)
	if a.Size < 0 {
		s.sendUnsized(w, r, a, kind)
		return
	}
	h.Set("Accept-Ranges", "bytes")
	var ranges []byteRange
	if field := r.Header.Get("Range"); field != "" && r.Method == http.MethodGet && rangeApplies(r, tag, a.ModTime) {
		var err error
		if ranges, err = parseRange(field, a.Size); err != nil {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", a.Size))
			refuse(w, r, http.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("The file has %d bytes.", a.Size))
			return
		}
	}
	if len(ranges) > 1 {
		s.sendRanges(w, r, a, kind, ranges)
		return
	}
	part, status := byteRange{0, a.Size}, http.StatusOK
	if len(ranges) == 1 {
		part, status = ranges[0], http.StatusPartialContent
	}
	if r.Method == http.MethodGet && !s.ready(w, r, a, part) {
		return
	}
	if len(ranges) == 1 {
		h.Set("Content-Range", part.contentRange(a.Size))
	}
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.FormatInt(part.n, 10))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		s.sendBytes(w, r, a, part)
	}
}

// ready waits until the first byte of part is there, so that a failure before it can be told in words: it then does
// that, and returns false.
func (s *Server) ready(w *recorder, r *http.Request, a *mirror.Answer, part byteRange) bool {
	err := a.Ready(r.Context(), part.off, part.n)
	if err != nil {
		s.fail(w, r, err)
	}
	return err == nil
}

// sendUnsized sends a file whose length is not known yet: in chunks, so that its end is explicit. An HTTP/1.0 client
// could not tell a cut body from a whole one; for it, the whole file is awaited. What upstream may have cut without a
// sign is passed on without one.
func (s *Server) sendUnsized(w *recorder, r *http.Request, a *mirror.Answer, kind string) {
	if r.Method == http.MethodGet && !r.ProtoAtLeast(1, 1) && a.Framed {
		n, err := length(r.Context(), a)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		a.Size = n
		s.send(w, r, a)
		return
	}
	all := byteRange{0, -1}
	if r.Method == http.MethodGet && !s.ready(w, r, a, all) {
		return
	}
	if !a.Framed {
		// Where upstream's connection ended is all that anybody knows of the end: the client's ends there too, and
		// says no more. (net/http takes this for: neither length nor chunks.)
		w.Header().Set("Transfer-Encoding", "identity")
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		s.sendBytes(w, r, a, all)
	}
}

// length waits until a has arrived, and counts it.
func length(ctx context.Context, a *mirror.Answer) (int64, error) {
	if err := a.Ready(ctx, 0, -1); err != nil {
		return 0, err
	}
	for off := int64(0); ; {
		n, err := a.CopyTo(ctx, io.Discard, off, sendStep)
		off += n
		if err == io.EOF { //nolint:errorlint // only the bare one is the end of a whole file
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
}

// sendRanges sends several ranges as multipart/byteranges (RFC 9110 14.6), in the order in which they were asked for.
func (s *Server) sendRanges(w *recorder, r *http.Request, a *mirror.Answer, kind string, ranges []byteRange) {
	boundary := rand.Text()
	heads := make([]string, len(ranges))
	end := "\r\n--" + boundary + "--\r\n"
	total := int64(len(end))
	for i, part := range ranges {
		heads[i] = fmt.Sprintf("\r\n--%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n", boundary, kind, part.contentRange(a.Size))
		if i == 0 {
			heads[i] = heads[i][2:]
		}
		total += int64(len(heads[i])) + part.n
	}
	if !s.ready(w, r, a, ranges[0]) {
		return
	}
	w.Header().Set("Content-Type", "multipart/byteranges; boundary="+boundary)
	w.Header().Set("Content-Length", strconv.FormatInt(total, 10))
	w.WriteHeader(http.StatusPartialContent)
	for i, part := range ranges {
		io.WriteString(w, heads[i]) // an error shows in sendBytes
		s.sendBytes(w, r, a, part)
	}
	io.WriteString(w, end)
}

// sendBytes is the one place from which file bytes go out. A failure in the middle aborts the connection or stream:
// to return would let net/http end a body of unknown length as if it were whole.
func (s *Server) sendBytes(w *recorder, r *http.Request, a *mirror.Answer, part byteRange) {
	arriving := !a.Hit()
	if err := a.Ready(r.Context(), part.off, part.n); err != nil {
		s.brokenOff(r, a, part.off, err)
	}
	for off, end := part.off, part.off+part.n; part.n < 0 || off < end; {
		step := int64(sendStep)
		if part.n >= 0 {
			step = min(step, end-off)
		}
		n, err := a.CopyTo(r.Context(), w, off, step)
		off += n
		if err == io.EOF && part.n < 0 { //nolint:errorlint // only the bare one is the end of a whole file
			return
		}
		if err != nil {
			s.brokenOff(r, a, off, err)
		}
		if arriving {
			_ = w.control.Flush()
		}
	}
}

// brokenOff ends a transfer so that the client sees that it is not whole.
func (s *Server) brokenOff(r *http.Request, a *mirror.Answer, at int64, err error) {
	if !errors.Is(err, context.Canceled) {
		s.log.Warn("transfer broken off", "path", a.Target.Path, "client", r.RemoteAddr, "at", at, "err", err)
	}
	panic(http.ErrAbortHandler)
}

// contentType is the media type of a file by its name, which is all that any mirror goes by.
func contentType(name string) string {
	if t, ok := contentTypes[path.Ext(name)]; ok {
		return t
	}
	if base := path.Base(name); strings.HasSuffix(base, "CHECKSUM") || strings.HasSuffix(base, "treeinfo") {
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

var contentTypes = map[string]string{
	".rpm": "application/x-rpm", ".drpm": "application/x-rpm", ".xml": "text/xml", ".gz": "application/x-gzip",
	".bz2": "application/x-bzip2", ".xz": "application/x-xz", ".zst": "application/zstd", ".zck": "application/zchunk",
	".iso": "application/x-iso9660-image", ".img": "application/octet-stream", ".html": "text/html; charset=utf-8",
	".htm": "text/html; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".asc": "text/plain; charset=utf-8",
	".key": "text/plain; charset=utf-8", ".json": "application/json", ".yaml": "text/plain; charset=utf-8",
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".png": "image/png", ".svg": "image/svg+xml",
	".sqlite": "application/vnd.sqlite3", ".repo": "text/plain; charset=utf-8",
}
