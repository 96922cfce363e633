package server

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/instantmirror/instantmirror/internal/site"
)

// own answers below the reserved prefix.
func (s *Server) own(w *recorder, r *http.Request, view *View) {
	name, isRepo := strings.CutPrefix(r.URL.Path, reserved+"repo/")
	switch {
	case r.URL.Path == reserved:
		data := landingData{Base: base(r, r.Host)}
		for _, p := range view.Table.Profiles() {
			url := urlOf(r, view, p)
			data.Profiles = append(data.Profiles, landingProfile{p, url, len(site.ClientRepo(p, url)) > 0})
		}
		s.page(w, r, landing, data)
	case r.URL.Path == reserved+"healthz":
		write(w, r, "text/plain; charset=utf-8", []byte("ok\n"))
	case r.URL.Path == reserved+"api/status" && view.Status != nil:
		b, err := json.MarshalIndent(view.Status(), "", "  ")
		if err != nil {
			s.fail(w, r, fmt.Errorf("making the status: %w", err))
			return
		}
		write(w, r, "application/json", append(b, '\n'))
	case isRepo && strings.HasSuffix(name, ".repo"):
		s.repoFile(w, r, view, strings.TrimSuffix(name, ".repo"))
	default:
		refuse(w, r, http.StatusNotFound, "Below /-/ there are /-/ itself, /-/repo/PROFILE.repo, /-/api/status and /-/healthz.")
	}
}

// repoFile answers with a profile's client configuration, which leads to the host name that this client used.
func (s *Server) repoFile(w *recorder, r *http.Request, view *View, name string) {
	for _, p := range view.Table.Profiles() {
		if p.Name != name {
			continue
		}
		url := urlOf(r, view, p)
		if repo := site.ClientRepo(p, url); len(repo) > 0 {
			write(w, r, "text/plain; charset=utf-8", repo)
			return
		}
		refuse(w, r, http.StatusNotFound, fmt.Sprintf("The profile %s names no repositories (`repo:` in its layout): write the .repo file by hand, with baseurl=%s/…", name, url))
		return
	}
	refuse(w, r, http.StatusNotFound, fmt.Sprintf("No profile %q is enabled here. %s lists those that are.", name, reserved))
}

// urlOf is where the client reaches p, without a slash at its end: by the name that it used, unless that name belongs to
// another profile and leads nowhere else.
func urlOf(r *http.Request, view *View, p *site.Profile) string {
	switch view.Table.Host(r.Host) {
	case p:
		return base(r, r.Host)
	case nil:
		return base(r, r.Host) + p.Path
	}
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return base(r, r.Host) + p.Path
	}
	return base(r, addr.String()) + p.Path
}

// base is the URL of this mirror by the name host.
func base(r *http.Request, host string) string {
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && host == "" { // HTTP/1.0
		host = addr.String()
	}
	u := url.URL{Scheme: "http", Host: host}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	return u.String()
}

// above answers for the directories above the profiles' paths, which hold nothing but the way there. It reports
// whether r's path is one.
func (s *Server) above(w *recorder, r *http.Request, view *View) bool {
	dir := strings.Trim(path.Clean("/"+r.URL.Path), "/")
	prefix := "/"
	if dir != "" {
		prefix = "/" + dir + "/"
	}
	var rows []row
	for _, p := range view.Table.Profiles() {
		if rest, ok := strings.CutPrefix(p.Path+"/", prefix); ok {
			next, _, _ := strings.Cut(rest, "/")
			rows = append(rows, row{Name: next + "/", Link: link(next + "/")})
		}
	}
	if len(rows) == 0 {
		return false
	}
	if !strings.HasSuffix(r.URL.Path, "/") {
		redirectToDirectory(w, r)
		return true
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.Name, b.Name) })
	s.page(w, r, list, listData{prefix, slices.Compact(rows), ""})
	return true
}

// listing answers with what is stored of a directory.
func (s *Server) listing(w *recorder, r *http.Request, t site.Target) {
	infos, err := s.store.ReadDir(cmp.Or(t.Path, "."))
	data := listData{Path: "/" + strings.Trim(t.Path, "/") + "/"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		data.Note = "Nothing below this path is stored here yet."
	case errors.Is(err, syscall.ENOTDIR):
		refuse(w, r, http.StatusNotFound, "It is a file: ask for it without the slash at the end.")
		return
	case err != nil:
		s.fail(w, r, err)
		return
	}
	for _, info := range infos {
		one := row{Name: info.Name(), Time: info.ModTime().UTC().Format("2006-01-02 15:04")}
		if info.IsDir() {
			one.Name += "/"
		} else {
			one.Size = strconv.FormatInt(info.Size(), 10)
		}
		one.Link = link(one.Name)
		data.Rows = append(data.Rows, one)
	}
	s.page(w, r, list, data)
}

type row struct{ Name, Link, Time, Size string }

type listData struct {
	Path string
	Rows []row
	Note string
}

type landingData struct {
	Base     string
	Profiles []landingProfile
}

type landingProfile struct {
	*site.Profile
	URL      string
	HasRepos bool // there is a .repo file of it
}

// link is the relative reference to an entry of a listing: "./", so that a name with a colon is no scheme.
func link(name string) string { return "./" + (&url.URL{Path: name}).EscapedPath() }

// page answers with an HTML page.
func (s *Server) page(w *recorder, r *http.Request, t *template.Template, data any) {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		s.fail(w, r, fmt.Errorf("making the page %s: %w", t.Name(), err))
		return
	}
	write(w, r, "text/html; charset=utf-8", b.Bytes())
}

// write answers with a body that we made ourselves.
func write(w http.ResponseWriter, r *http.Request, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

const style = `<meta name="viewport" content="width=device-width"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre,code,table{font:14px/1.5 ui-monospace,monospace}pre{background:#8881;padding:.8rem;overflow:auto}
td{padding:0 1.5rem 0 0}td+td+td{text-align:right}</style>`

var list = template.Must(template.New("listing").Parse(`<!doctype html><html lang="en"><title>{{.Path}}</title>` + style + `
<h1>{{.Path}}</h1>
<p>What is stored here. Every other file of the mirror comes from upstream when it is asked for by name. <a href="/-/">About this mirror</a></p>
{{with .Note}}<p>{{.}}</p>{{end}}<table>
<tr><td><a href="../">../</a></td></tr>
{{range .Rows}}<tr><td><a href="{{.Link}}">{{.Name}}</a></td><td>{{.Time}}</td><td>{{.Size}}</td></tr>
{{end}}</table></html>
`))

var landing = template.Must(template.New("landing").Parse(`<!doctype html><html lang="en"><title>InstantMirror</title>` + style + `
<h1>InstantMirror</h1>
<p>This is a mirror of RPM distributions. All of it can be used; what nobody has used yet is fetched when it is asked for.</p>
{{range .Profiles}}<h2>{{or .Title .Name}}</h2>
<p>is at <a href="{{.URL}}/">{{.URL}}</a>{{range .Hosts}}, and at <code>http://{{.}}/</code>{{end}}</p>
{{if .HasRepos}}<p>On a client, as root:</p>
<pre>curl -fo /etc/yum.repos.d/instantmirror-{{.Name}}.repo {{$.Base}}/-/repo/{{.Name}}.repo
dnf repolist</pre>
<p>The file has the repositories' usual names and takes the place of the distribution's own .repo files: move those away,
or dnf may go on using them.</p>{{else}}<p>In a .repo file of a client, write <code>baseurl={{.URL}}/…</code> and remove
<code>metalink=</code> and <code>mirrorlist=</code>.</p>{{end}}
{{end}}<p>Health: <a href="/-/healthz">/-/healthz</a>, status: <a href="/-/api/status">/-/api/status</a></p></html>
`))
