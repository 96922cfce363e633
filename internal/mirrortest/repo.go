package mirrortest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Repo describes a repository. The same description always makes the same bytes.
type Repo struct {
	Packages []Package
	Time     time.Time         // of its making: timestamps, revision, and modification time of its metadata; zero: Epoch
	Revision string            // instead of Time in seconds
	Fixed    bool              // primary.xml.gz instead of <sha256>-primary.xml.gz
	Plain    bool              // metadata is not compressed
	Dir      string            // where packages stand below it; empty: Packages/<first letter>; "." and "../elsewhere" work
	Extra    map[string][]byte // more records: type (group, updateinfo, modules) → content, compressed as the others
}

// Files gives the repository: path below its root → file, packages (dated as built)
// and repodata.
func (r Repo) Files() map[string]File {
	if r.Time.IsZero() {
		r.Time = Epoch
	}
	files := make(map[string]File)
	var rpms []RPM
	for _, p := range r.Packages {
		rpm := p.Build()
		rpms = append(rpms, rpm)
		files[r.Location(p)] = File{Body: rpm.Bytes, ModTime: rpm.Built}
	}
	records := map[string][]byte{"primary": r.primary(rpms), "filelists": filelists(rpms), "other": other(rpms)}
	maps.Copy(records, r.Extra)
	var md bytes.Buffer
	fmt.Fprintf(&md, "%s<repomd xmlns=\"http://linux.duke.edu/metadata/repo\" xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\">\n  <revision>%s</revision>\n",
		xml.Header, cmp.Or(r.Revision, fmt.Sprint(r.Time.Unix())))
	for _, kind := range slices.Sorted(maps.Keys(records)) {
		open := records[kind]
		name, stored := kind+".xml", open
		if kind == "group" {
			name = "comps.xml"
		}
		if !r.Plain {
			name += ".gz"
			stored = zip(open)
		}
		if !r.Fixed {
			name = sum(stored) + "-" + name
		}
		files["repodata/"+name] = File{Body: stored, ModTime: r.Time}
		fmt.Fprintf(&md, "  <data type=%q>\n    <checksum type=\"sha256\">%s</checksum>\n", kind, sum(stored))
		if !r.Plain {
			fmt.Fprintf(&md, "    <open-checksum type=\"sha256\">%s</open-checksum>\n", sum(open))
		}
		fmt.Fprintf(&md, "    <location href=\"repodata/%s\"/>\n    <timestamp>%d</timestamp>\n    <size>%d</size>\n", name, r.Time.Unix(), len(stored))
		if !r.Plain {
			fmt.Fprintf(&md, "    <open-size>%d</open-size>\n", len(open))
		}
		md.WriteString("  </data>\n")
	}
	md.WriteString("</repomd>\n")
	files["repodata/repomd.xml"] = File{Body: md.Bytes(), ModTime: r.Time}
	return files
}

// Location is where a package stands below the repository's root: its href.
func (r Repo) Location(p Package) string {
	dir := r.Dir
	if dir == "" {
		dir = "Packages/" + strings.ToLower(p.Name[:1])
	}
	return path.Join(dir, p.FileName())
}

// WriteTree writes files with their times below dir, which is made if need be.
func WriteTree(t testing.TB, dir string, files map[string]File) {
	t.Helper()
	for name, f := range files {
		to := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(to), 0o755)
		if err == nil {
			err = os.WriteFile(to, f.Body, 0o644)
		}
		if err == nil && !f.ModTime.IsZero() {
			err = os.Chtimes(to, f.ModTime, f.ModTime)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (r Repo) primary(rpms []RPM) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s<metadata xmlns=\"http://linux.duke.edu/metadata/common\" xmlns:rpm=\"http://linux.duke.edu/metadata/rpm\" packages=\"%d\">\n", xml.Header, len(rpms))
	for _, p := range rpms {
		fmt.Fprintf(&b, `<package type="rpm">
  <name>%s</name>
  <arch>noarch</arch>
  <version epoch="%d" ver="%s" rel="%s"/>
  <checksum type="sha256" pkgid="YES">%s</checksum>
  <summary>%s</summary>
  <description>%s</description>
  <packager/>
  <url/>
  <time file="%d" build="%d"/>
  <size package="%d" installed="%d" archive="%d"/>
  <location href="%s"/>
  <format>
    <rpm:license>CC0-1.0</rpm:license>
    <rpm:vendor/>
    <rpm:group>Unspecified</rpm:group>
    <rpm:buildhost>mirrortest.invalid</rpm:buildhost>
    <rpm:sourcerpm>%s.src.rpm</rpm:sourcerpm>
    <rpm:header-range start="%d" end="%d"/>
`, esc(p.Name), p.Epoch, esc(p.Version), esc(p.Release), sum(p.Bytes), esc(p.summary()), esc(p.description()),
			p.Built.Unix(), p.Built.Unix(), len(p.Bytes), len(p.Content), p.Archive, esc(r.Location(p.Package)), esc(p.nvr()), p.HeaderStart, p.HeaderEnd)
		relations(&b, "provides", p.provides())
		relations(&b, "requires", p.requires())
		if primaryFile(p.File) {
			fmt.Fprintf(&b, "    <file>%s</file>\n", esc(p.File))
		}
		b.WriteString("  </format>\n</package>\n")
	}
	b.WriteString("</metadata>\n")
	return b.Bytes()
}

// primaryFile is which files createrepo_c repeats in primary.
func primaryFile(name string) bool {
	return strings.HasPrefix(name, "/etc/") || strings.Contains(name, "bin/") || name == "/usr/lib/sendmail"
}

func relations(b *bytes.Buffer, kind string, list []relation) {
	var entries bytes.Buffer
	for _, r := range list {
		if r.flags&senseRpmlib != 0 {
			continue // rpm's own affair
		}
		fmt.Fprintf(&entries, "      <rpm:entry name=\"%s\"", esc(r.name))
		if r.flags != 0 {
			sense := map[uint32]string{senseLess: "LT", senseGreater: "GT", senseEqual: "EQ", senseLess | senseEqual: "LE", senseGreater | senseEqual: "GE"}[r.flags]
			epoch, rest, ok := strings.Cut(r.version, ":")
			if !ok {
				epoch, rest = "0", r.version
			}
			ver, rel, hasRel := strings.Cut(rest, "-")
			fmt.Fprintf(&entries, " flags=%q epoch=%q ver=\"%s\"", sense, epoch, esc(ver))
			if hasRel {
				fmt.Fprintf(&entries, " rel=\"%s\"", esc(rel))
			}
		}
		entries.WriteString("/>\n")
	}
	if entries.Len() > 0 {
		fmt.Fprintf(b, "    <rpm:%s>\n%s    </rpm:%s>\n", kind, entries.Bytes(), kind)
	}
}

func filelists(rpms []RPM) []byte {
	return perPackage("filelists", rpms, func(p RPM) string { return "  <file>" + esc(p.File) + "</file>\n" })
}

func other(rpms []RPM) []byte {
	return perPackage("otherdata", rpms, func(RPM) string { return "" })
}

func perPackage(root string, rpms []RPM, content func(RPM) string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s<%s xmlns=\"http://linux.duke.edu/metadata/%s\" packages=\"%d\">\n",
		xml.Header, root, strings.TrimSuffix(root, "data"), len(rpms))
	for _, p := range rpms {
		fmt.Fprintf(&b, "<package pkgid=\"%s\" name=\"%s\" arch=\"noarch\">\n  <version epoch=\"%d\" ver=\"%s\" rel=\"%s\"/>\n%s</package>\n",
			sum(p.Bytes), esc(p.Name), p.Epoch, esc(p.Version), esc(p.Release), content(p))
	}
	fmt.Fprintf(&b, "</%s>\n", root)
	return b.Bytes()
}

// zip is gzip without a name or time, so that the same bytes make the same bytes.
func zip(b []byte) []byte {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err) // into memory: it cannot fail
	}
	return out.Bytes()
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func esc(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // into memory: it cannot fail
	return b.String()
}
