// Package profiles holds the distribution profiles that InstantMirror ships, as data: <distro>/<name>.yaml, embedded
// into the program. Nothing but the files is here, because go:embed cannot look upward; README.md beside this file says
// how a profile is written and checked.
package profiles

import "embed"

// FS holds every shipped profile as <distro>/<name>.yaml. It is what the program uses when no directory of the
// operator's configuration holds a file of the same profile: an installed file wins over the embedded one, so that a
// package update changes the behaviour of a running site after a reload.
//
//go:embed */*.yaml
var FS embed.FS
