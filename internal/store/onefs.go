package store

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mountInfo is where Linux lists the mounts that this process sees (proc_pid_mountinfo(5)).
const mountInfo = "/proc/self/mountinfo"

// lostFound is a directory that mkfs makes at the top of a file system, for root alone to read.
const lostFound = "lost+found"

// maxNamed bounds how many offending paths an error names.
const maxNamed = 5

// checkOneFileSystem refuses a root below which something is mounted, where a rename would not be atomic, or a symlink
// leads out, which would not be followed: better to say so now than to lack files later.
func checkOneFileSystem(root string) error {
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	mounts, err := mountsBelow(real)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s: mounted below the root, which must be one file system: mount it at the root itself, or give it a root and a daemon of its own", some(mounts))
	}
	links, err := linksOut(real)
	if err != nil {
		return err
	}
	if len(links) > 0 {
		return fmt.Errorf("%s: a symlink that leads out of the root, or into what is private, is never followed: remove it, or move what it leads to below the root", some(links))
	}
	return nil
}

func some(paths []string) string {
	if more := len(paths) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:maxNamed], ", "), more)
	}
	return strings.Join(paths, ", ")
}

// mountsBelow lists the mount points below dir.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open(mountInfo)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no Linux, or no /proc: a rename across file systems fails later, and says so
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var below []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if at := unescapeMount(fields[4]); strings.HasPrefix(at, dir+"/") {
			below = append(below, at)
		}
	}
	return below, lines.Err()
}

// unescapeMount turns the \040 of a space back into one.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// linksOut lists the symlinks below dir whose target, be it there or not, lies outside of it or is private.
func linksOut(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if p == filepath.Join(dir, lostFound) && d.IsDir() {
			return filepath.SkipDir
		}
		if err != nil {
			return err
		}
		if d.IsDir() && p == filepath.Join(dir, Private) {
			return filepath.SkipDir
		}
		if d.Type()&fs.ModeSymlink == 0 {
			return nil
		}
		target, err := filepath.EvalSymlinks(p)
		if err != nil { // it leads nowhere: where would that be?
			target, err = os.Readlink(p)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(p), target)
			}
		}
		if target != dir && !strings.HasPrefix(target, dir+"/") || strings.HasPrefix(target+"/", filepath.Join(dir, Private)+"/") {
			out = append(out, p)
		}
		return nil
	})
	return out, err
}
