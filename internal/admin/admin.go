// Package admin is the one way to change a mirror: what `status`, `refresh`, `expire`, `prune`, `verify --repair` and `why`
// do (Service), and how a command has the running daemon do it (Serve and Client), over a unix socket. There is no other
// listener: whoever may write to the socket may change the mirror, nobody else. Package wire says how it is spoken to.
package admin

import (
	"time"

	"github.com/instantmirror/instantmirror/internal/admin/wire"
	"github.com/instantmirror/instantmirror/internal/index"
	"github.com/instantmirror/instantmirror/internal/journal"
	"github.com/instantmirror/instantmirror/internal/monitor"
)

// UsageError says that what was asked for makes no sense here, and what would.
type UsageError = wire.UsageError

// About is whose daemon answers.
type About struct {
	Root     string   `json:"root"`
	State    string   `json:"state"`
	Profiles []string `json:"profiles,omitempty"` // that --profile named when it was started; files by absolute names
}

// Status is what is mirrored, how fresh it is, and what it brings.
type Status struct {
	Version string    `json:"version"`
	Running bool      `json:"running"` // a daemon says so; else there is none, and the command looked itself
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started,omitzero"` // the daemon
	Now     time.Time `json:"now"`
	Root    string    `json:"root,omitempty"`
	State   string    `json:"state,omitempty"`

	Repositories []monitor.Repository `json:"repositories"`
	Traffic      *Traffic             `json:"traffic,omitempty"` // nil where no daemon runs
	Upstreams    []Upstream           `json:"upstreams"`
	Room         Room                 `json:"room"`
}

// Traffic counts since the daemon was started.
type Traffic struct {
	Requests int64 `json:"requests"` // for files, that were answered with one
	Hits     int64 `json:"hits"`     // of these, without asking upstream
	Failed   int64 `json:"failed"`   // for files, that could not be answered (5xx), or were broken off
	Sent     int64 `json:"sent"`     // bytes of files to clients
	Fetched  int64 `json:"fetched"`  // bytes of files from upstream
	Saved    int64 `json:"saved"`    // bytes that upstream did not have to send
}

// Upstream is how one origin is.
type Upstream struct {
	Name     string    `json:"name"`     // its URL
	Profiles []string  `json:"profiles"` // that name it
	Role     string    `json:"role"`     // "upstream", "fallback" or "archive": the first of these that it is
	State    string    `json:"state"`    // "untried", "up" or "down"
	Since    time.Time `json:"since,omitzero"`
	Error    string    `json:"error,omitempty"` // why it is down
	Retry    time.Time `json:"retry,omitzero"`  // from when on it is tried again
}

// Room is what is stored, and how much may be. Everything is in bytes.
type Room struct {
	Quota
	Free     int64   `json:"free"`    // on the root's file system
	Total    int64   `json:"total"`   // it has in all
	Reserve  int64   `json:"reserve"` // is always left free
	Profiles []Quota `json:"profiles"`
}

// Quota is what is stored of the site, or of a profile.
type Quota struct {
	Profile string `json:"profile,omitempty"`
	Path    string `json:"path"`
	Used    *int64 `json:"used"`            // null while that was not measured
	Limit   int64  `json:"limit,omitempty"` // 0: none
}

// Refreshed is how a look at a repository went.
type Refreshed struct {
	Path    string      `json:"path"`
	Begun   bool        `json:"begun,omitempty"` // it is being looked at; how that goes comes later
	Of      int         `json:"of,omitempty"`    // how many repositories there are, where Begun
	What    string      `json:"what,omitempty"`  // "unchanged", "published", "refused", "failed", "gone", "veto"
	From    string      `json:"from,omitempty"`  // generation before
	To      string      `json:"to,omitempty"`    // and after
	Origin  string      `json:"origin,omitempty"`
	Error   string      `json:"error,omitempty"`
	Veto    *index.Veto `json:"veto,omitempty"`
	Partial string      `json:"partial,omitempty"`
	Lifted  *index.Veto `json:"lifted,omitempty"` // the veto that the look confirmed: what it kept goes
}

// Expired is what was thrown away at one path.
type Expired struct {
	Path  string `json:"path"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// Pruned is a file that nothing vouches for. The last one of a prune has no path, but the sums.
type Pruned struct {
	Path  string `json:"path,omitempty"`
	Why   string `json:"why,omitempty"`
	Size  int64  `json:"size,omitempty"`
	Files int    `json:"files,omitempty"`
	Bytes int64  `json:"bytes,omitempty"` // that are free now, or would be: linked files count once
}

// Repaired is what became of a file that was found wrong.
type Repaired struct {
	Path    string `json:"path"`
	Deleted bool   `json:"deleted"`
	Fetched bool   `json:"fetched"`         // it was had again, and is stored
	Error   string `json:"error,omitempty"` // why it was not
}

// Why is all that is known of one path.
type Why struct {
	Path    string `json:"path"` // URL path here
	Dir     bool   `json:"dir,omitempty"`
	Profile string `json:"profile"`          // "": no enabled one serves it, and only Stored and Journal are known
	Tree    string `json:"tree,omitempty"`   // URL path here
	Layout  string `json:"layout,omitempty"` // the entry that names the tree, as it was written
	Class   string `json:"class,omitempty"`
	Rule    Rule   `json:"rule"`
	Content *Rule  `json:"content,omitempty"` // nil: none matches
	Action  string `json:"action"`            // "store", "pass" or "deny"

	Upstreams []string `json:"upstreams"` // who is asked, in this order
	Fallbacks []string `json:"fallbacks,omitempty"`
	Archives  []string `json:"archives,omitempty"`

	Validity string    `json:"validity,omitempty"` // "immutable", "fresh", "due", "outdated" or "missing"
	Detail   string    `json:"detail,omitempty"`   // "stale", "gone-upstream"
	Due      time.Time `json:"due,omitzero"`
	Expected string    `json:"expected,omitempty"` // what the bytes must be, or why that is not known
	Says     []Says    `json:"says,omitempty"`     // who says so
	Stored   *Stored   `json:"stored,omitempty"`
	Leaving  *Leaving  `json:"leaving,omitempty"`
	Used     time.Time `json:"used,omitzero"` // last

	Repository *monitor.Repository `json:"repository,omitempty"` // that the path belongs to
	Below      int                 `json:"below,omitempty"`      // repositories below a directory

	Journal []journal.Entry `json:"journal"` // deletions of this path, the last one first
}

// Rule is an entry of a profile.
type Rule struct {
	Match   string `json:"match"`
	At      string `json:"at,omitempty"`      // file:line
	Refresh string `json:"refresh,omitempty"` // of expiry entries: "never", or how often
	Grace   string `json:"grace,omitempty"`
}

// Says is what a generation in force says of a path.
type Says struct {
	By         string `json:"by"` // URL path of the repomd.xml or primary
	Generation string `json:"generation"`
	Size       int64  `json:"size"` // bytes; -1: it does not say
	Sum        string `json:"sum,omitempty"`
}

// Stored is a stored file, or what is stored of a directory.
type Stored struct {
	Files    int       `json:"files,omitempty"` // of a directory
	Size     int64     `json:"size"`            // bytes
	ModTime  time.Time `json:"mtime,omitzero"`
	Placed   time.Time `json:"placed,omitzero"` // when it got there
	Links    uint64    `json:"links,omitempty"`
	Origin   string    `json:"origin,omitempty"`
	Checked  time.Time `json:"checked,omitzero"`
	Verified string    `json:"verified,omitempty"` // the digest that it was found to have; "": it was never verified
}

// Leaving says until when a path stays that its repository does not name any more.
type Leaving struct {
	Repository string    `json:"repository"` // URL path
	Until      time.Time `json:"until"`
	From       string    `json:"from"` // the last generation that named it
	To         string    `json:"to"`   // and the first that did not
	Size       int64     `json:"size"`
	Sum        string    `json:"sum,omitempty"`
}
