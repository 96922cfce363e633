package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/instantmirror/instantmirror/internal/digest"
	"github.com/instantmirror/instantmirror/internal/fetch"
	"github.com/instantmirror/instantmirror/internal/mirror"
	"github.com/instantmirror/instantmirror/internal/site"
	"github.com/instantmirror/instantmirror/internal/store"
	"github.com/instantmirror/instantmirror/internal/upstream"
)

// statusOf is the one function from errors to statuses.
func statusOf(err error) int {
	var mismatch *digest.MismatchError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, site.ErrBadPath):
		return http.StatusBadRequest
	case errors.Is(err, site.ErrNoRoute), errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, mirror.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, upstream.ErrStalled), errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusGatewayTimeout
	case errors.Is(err, upstream.ErrUnavailable), errors.As(err, &mismatch), errors.Is(err, fetch.ErrRefused):
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}

// fail answers r with what err means for the client, and what to do about it.
func (s *Server) fail(w *recorder, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // the client left: there is nobody to answer
	}
	status := statusOf(err)
	words := err.Error() + "."
	switch status {
	case http.StatusNotFound:
		var absent *mirror.AbsentError
		if errors.As(err, &absent) {
			w.cache = "instantmirror; fwd=uri-miss; fwd-status=404"
			if absent.Remembered {
				w.cache = "instantmirror; hit; detail=absent"
			}
		} else {
			words += " What is mirrored here is listed at " + reserved
		}
	case http.StatusForbidden:
		words += " The profile's `content` list says so."
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		retry := 1
		var un *upstream.UnavailableError
		if errors.As(err, &un) {
			retry = max(retry, int(math.Ceil(un.Retry.Seconds())))
			words = "No origin could answer:"
			for _, a := range un.Attempts {
				words += fmt.Sprintf("\n  %s: %v", a.Origin, a.Err)
			}
		}
		w.Header().Set("Retry-After", strconv.Itoa(retry))
		words += fmt.Sprintf("\nNothing of it is stored here. Ask again in %d s; if it stays like this, look at the upstreams of its profile.", retry)
		s.log.Debug("no upstream could answer", "path", r.URL.Path, "status", status, "err", err)
	case http.StatusInternalServerError:
		s.log.Error("request failed", "path", r.URL.Path, "err", err)
		words = "The mirror could not read or write its own files; its log says why."
	}
	if w.cache != "" {
		w.Header().Set("Cache-Status", w.cache)
	}
	refuse(w, r, status, words)
}

// refuse answers with a status and words for people. Whatever was set for the file is taken back.
func refuse(w http.ResponseWriter, r *http.Request, status int, words string) {
	h := w.Header()
	for _, field := range []string{"Etag", "Last-Modified", "Accept-Ranges"} {
		h.Del(field)
	}
	body := fmt.Sprintf("%d %s\n%s\n", status, http.StatusText(status), words)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		io.WriteString(w, body)
	}
}

// isDirectory reports whether err says that the path is a directory, here or upstream.
func isDirectory(err error) bool {
	var dir *upstream.DirectoryError
	return errors.Is(err, store.ErrIsDir) || errors.As(err, &dir)
}

// redirectToDirectory sends the client to the same path with a slash. The path starts with one slash only, so that it
// can't be read as another host.
func redirectToDirectory(w http.ResponseWriter, r *http.Request) {
	to := (&url.URL{Path: "/" + strings.Trim(r.URL.Path, "/") + "/"}).EscapedPath()
	w.Header().Set("Location", to)
	refuse(w, r, http.StatusMovedPermanently, "It is a directory: "+to)
}
