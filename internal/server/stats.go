package server

import "sync/atomic"

// Stats counts what clients got of the mirror's files since the daemon was started.
type Stats struct {
	Requests int64 // that were answered with a file, or that it has not changed
	Hits     int64 // of these, without asking upstream
	Failed   int64 // that could not be answered (5xx), or were broken off, be it by the client; what is not there did not fail
	Sent     int64 // bytes of files
}

// counters are Stats that are being counted.
type counters struct{ requests, hits, failed, sent atomic.Int64 }

// Stats returns what was counted until now.
func (s *Server) Stats() Stats {
	c := &s.counts
	return Stats{Requests: c.requests.Load(), Hits: c.hits.Load(), Failed: c.failed.Load(), Sent: c.sent.Load()}
}

// count counts a request for a file, which was answered through w, or broken off.
func (s *Server) count(w *recorder, hit, whole bool) {
	c := &s.counts
	if w.status >= 400 { // what went out are words
		if w.status >= 500 {
			c.failed.Add(1)
		}
		return
	}
	c.sent.Add(w.bytes)
	switch {
	case !whole:
		c.failed.Add(1)
		return
	case hit:
		c.hits.Add(1)
	}
	c.requests.Add(1)
}
