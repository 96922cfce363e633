package profile

import (
	"net/netip"

	"github.com/instantmirror/instantmirror/internal/profile/glob"
	"github.com/instantmirror/instantmirror/internal/profile/strict"
)

// The types below are the file formats: their tags are the keys, what the keys mean and what their values are like; see
// package strict. Every mapping remembers where it and its keys were written: see Where.

// Glob says what a rule applies to; it is matched against paths relative to the profile's.
type Glob = glob.Glob

// Template names trees by paths relative to the profile's.
type Template = glob.Template

// Mistakes, as package strict reports them.
type (
	// Errors is every mistake that was found, by file and line; its text is one line for each.
	Errors = strict.Errors
	// Error is one mistake: "file:line: what is wrong; what to write instead".
	Error = strict.Error
	// Pos is a file and a line.
	Pos = strict.Pos
	// Where is where a mapping and its keys were written.
	Where = strict.Where
)

// Join returns the mistakes of several errors as one Errors, so that those of LoadConfig, Load and site.Build can be
// reported at once. It is nil if all are.
func Join(errs ...error) error { return strict.Join(errs...) }

// Profile describes one distribution: a vendor's or an operator's file, merged with the operator's override of it.
// One that Load returned is complete and right in itself; do not change it.
type Profile struct {
	Where     `yaml:"-"`
	Overrides string     `yaml:"profile" is:"name" doc:"The profile that this file enables or overrides. A file that has this key may repeat any key of the profile: layout, expiry and content entries are put before the packaged ones; every other key replaces the packaged value."`
	Name      string     `yaml:"name" is:"name" doc:"The profile's name, by which another file (profile: NAME) and --profile NAME mean it. With path and upstreams enough to make a correct mirror of any RPM tree."`
	Title     string     `yaml:"title" is:"text" doc:"What people call it. Default: its name."`
	Path      string     `yaml:"path" is:"path" doc:"URL path here, and directory below the mirror's root."`
	Hosts     []string   `yaml:"hosts" is:"host" doc:"These host names serve this profile at /."`
	Enabled   bool       `yaml:"enabled" doc:"Whether the profile is served. Default: false."`
	Upstreams []*Origin  `yaml:"upstreams" min:"1" doc:"Where files come from; healthy ones are used in order."`
	Fallbacks []*Origin  `yaml:"fallbacks" doc:"Asked only when no upstream can answer."`
	Archives  []*Origin  `yaml:"archives" doc:"Asked when upstreams say 404: where end-of-life trees move to."`
	Layout    []*Layout  `yaml:"layout" merge:"front" max:"500" doc:"The trees of the distribution; the first template that is a prefix of a path names its tree. Inner trees stand before outer ones."`
	Expiry    []*Expiry  `yaml:"expiry" merge:"front" max:"500" doc:"How long what is stored is believed; first match wins. Default: refresh 1h."`
	Content   []*Content `yaml:"content" merge:"front" max:"500" doc:"What is mirrored; first match wins. Default: store."`
	Limits    Limits     `yaml:"limits" doc:"Bounds on what this profile uses."`
	Keys      []string   `yaml:"keys" is:"key file" doc:"Files of the OpenPGP public keys, armoured or not, that check repomd.xml.asc. Default: none, and nothing is checked by signature."`
	Poll      string     `yaml:"poll" is:"used|always" def:"used" doc:"used: a pointer that no client asked for within idle is not polled until one does. always: what was stored once is polled for ever, for trees that others read from the disk (NFS, rsync, httpd), unseen by us."`
}

// Origin is one upstream, fallback or archive. In a file a URL alone is enough.
type Origin struct {
	Where        `yaml:"-" short:"url"`
	URL          string            `yaml:"url" is:"url" req:"true" doc:"http or https URL whose path corresponds to the profile's path."`
	Match        *Glob             `yaml:"match" doc:"It is asked for these paths only, and before those without match."`
	CA           string            `yaml:"ca" is:"file" doc:"PEM file of the authorities that its certificate is checked with, in place of the system's."`
	ClientCert   string            `yaml:"client_cert" is:"file" doc:"PEM file of the certificate to show to it."`
	ClientKey    string            `yaml:"client_key" is:"file" doc:"PEM file of the key of client_cert."`
	Username     string            `yaml:"username" is:"text" doc:"User name of HTTP basic authentication."`
	PasswordFile string            `yaml:"password_file" is:"file" doc:"File that holds the password of username."`
	Headers      map[string]string `yaml:"headers" is:"text" doc:"Further request headers."`
	Connections  int               `yaml:"connections" min:"1" max:"1000" doc:"Concurrent requests to it. Default: limits.connections."`
	Rate         Size              `yaml:"rate" doc:"Bytes per second over all transfers from it, such as 10MB. Default: unlimited."`
}

// Layout is one kind of tree.
type Layout struct {
	Where    `yaml:"-"`
	Tree     *Template `yaml:"tree" req:"true" doc:"Path of the tree relative to the profile's; {word} captures one path element or part of one. '.' is the profile's own directory."`
	Repo     *Repo     `yaml:"repo" doc:"Puts the tree into the client's .repo file. The tree may then capture {release} and {arch} only."`
	Metalink string    `yaml:"metalink" is:"metalink" doc:"URL of the tree's metalink, in which each {word} that the tree captures stands for what it captured. It says which repomd.xml are current, and which mirrors have the tree."`
}

// Repo is a tree's section in the client's .repo file.
type Repo struct {
	Where   `yaml:"-"`
	ID      string `yaml:"id" is:"id" req:"true" doc:"Repository id, unique in the profile."`
	Name    string `yaml:"name" is:"text" doc:"Repository name; {release} and {arch} become dnf's variables. Default: the id."`
	GPGKey  string `yaml:"gpgkey" is:"keys" doc:"URLs (http, https or file) of the keys that sign packages, separated by spaces; {release} and {arch} become dnf's variables. Without it clients are told not to check signatures."`
	Enabled bool   `yaml:"enabled" def:"true" doc:"Whether clients use it unasked."`
}

// Expiry is a rule for how long what is stored is believed.
type Expiry struct {
	Where   `yaml:"-"`
	Match   *Glob    `yaml:"match" req:"true" doc:"What the rule is for: * within a path element, ** zero or more elements, {a,b} alternatives."`
	Refresh Duration `yaml:"refresh" req:"true" doc:"Pointers are polled, and other copies of fixed names asked for again, at this age, such as 20m; or never. Beside never there are no other keys."`
	Grace   Span     `yaml:"grace" def:"1d" doc:"What a new generation no longer names stays this long, and until then is asked of every upstream, fallback and archive. (Same name with other bytes goes at once.)"`
	Moving  bool     `yaml:"moving" def:"false" doc:"The distribution re-points the tree now and then (a link to the current minor release): an older or much smaller generation is accepted when two polls, a refresh apart, agree."`
	Idle    Span     `yaml:"idle" def:"14d" doc:"A pointer that no client asked for this long is not polled until one does. Without effect where poll is always."`
	Veto    Percent  `yaml:"veto" def:"50%" doc:"A new generation that would remove more than this share (and more than 50 files) of what is stored of a repository deletes nothing until it is confirmed. 100%: never."`
	Back    Span     `yaml:"back" def:"1d" doc:"An older generation is accepted when every origin has agreed on it this long."`
}

// Content is a rule for what is mirrored.
type Content struct {
	Where  `yaml:"-"`
	Match  *Glob  `yaml:"match" req:"true" doc:"What the rule is for: * within a path element, ** zero or more elements, {a,b} alternatives."`
	Action string `yaml:"action" is:"store|pass|deny" req:"true" doc:"store: keep a copy. pass: pass through, keep nothing. deny: refuse."`
}

// Limits bounds what a profile uses.
type Limits struct {
	Where       `yaml:"-"`
	Connections int  `yaml:"connections" min:"1" max:"1000" doc:"Concurrent requests to each upstream. Default: 8."`
	Size        Size `yaml:"size" doc:"Bytes that the profile's files may take, such as 400GiB; beyond, those used least recently are evicted. Default, and 0: unlimited."`
}

// Config is the operator's configuration, with every default filled in. Flags may change it afterwards; call Check
// then.
type Config struct {
	Where    `yaml:"-"`
	Listen   []string       `yaml:"listen" is:"listen" single:"true" min:"1" def:"[\":8080\"]" doc:"Addresses to listen on, as host:port or :port. Sockets passed by systemd override it."`
	Root     string         `yaml:"root" is:"directory" def:"/srv/mirror" doc:"Directory of the mirror."`
	State    string         `yaml:"state" is:"directory" def:"/var/lib/instantmirror" doc:"Directory of the daemon's own notes."`
	Profiles []string       `yaml:"profiles" is:"directory" single:"true" def:"[/usr/share/instantmirror/profiles, /etc/instantmirror/profiles.d]" doc:"Directories of profiles; what stands in a later one wins."`
	Socket   string         `yaml:"socket" is:"socket" doc:"Admin socket. Default: admin.sock in state."`
	Size     Size           `yaml:"size" doc:"Bytes that all files of the mirror may take, such as 2TiB; beyond, those used least recently are evicted. Default, and 0: unlimited."`
	Reserve  Size           `yaml:"reserve" def:"1GiB" doc:"Space that is always left free on the mirror's file system."`
	TLS      *TLS           `yaml:"tls" doc:"Serve https in place of http."`
	Allow    []netip.Prefix `yaml:"allow" single:"true" min:"1" doc:"Networks or addresses of the clients that are served. Default: all."`
	Log      Log            `yaml:"log" doc:"What is logged, and how."`
}

// TLS is the daemon's own certificate.
type TLS struct {
	Where `yaml:"-"`
	Cert  string `yaml:"cert" is:"file" req:"true" doc:"PEM file of the certificate and its chain."`
	Key   string `yaml:"key" is:"file" req:"true" doc:"PEM file of the certificate's key."`
}

// Log says what is logged, and how.
type Log struct {
	Where  `yaml:"-"`
	Level  string `yaml:"level" is:"debug|info|warn|error" def:"info" doc:"The least important messages that are logged."`
	Format string `yaml:"format" is:"text|json" def:"text" doc:"One line of text or one JSON object for each message."`
	Access bool   `yaml:"access" def:"true" doc:"One line for each request."`
}
