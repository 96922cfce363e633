package site

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/instantmirror/instantmirror/internal/profile"
	"github.com/instantmirror/instantmirror/internal/profile/glob"
)

// ClientRepo returns the client's .repo file for p: a section for each layout entry with a repo block (of two with one
// id, the operator's). url is where clients reach p here, without a slash at its end. It is empty if p has no such entry.
func ClientRepo(p *Profile, url string) []byte {
	var b bytes.Buffer
	seen := map[string]bool{}
	for _, t := range p.Trees {
		if t.Repo == nil || seen[t.Repo.ID] {
			continue
		}
		if seen[t.Repo.ID] = true; b.Len() == 0 {
			fmt.Fprintf(&b, "# %s, from the mirror at %s/\n", p.Title, url)
		}
		tree, enabled := "", 0
		if t.Template != "." {
			tree = variables(t.Template) + "/"
		}
		if t.Repo.Enabled {
			enabled = 1
		}
		fmt.Fprintf(&b, "\n[%s]\nname=%s\nbaseurl=%s/%s\nenabled=%d\n", t.Repo.ID, variables(t.Repo.Name), url, tree, enabled)
		if keys := strings.Fields(variables(t.Repo.GPGKey)); len(keys) > 0 {
			fmt.Fprintf(&b, "gpgcheck=1\ngpgkey=%s\n", strings.Join(keys, " "))
		} else {
			fmt.Fprint(&b, "gpgcheck=0\n")
		}
	}
	return b.Bytes()
}

// variables returns text with its captured words as the client's variables.
func variables(text string) string {
	s, _ := glob.Expand(text, profile.RepoVariable) // profile lets no other words pass where there is a repo block
	return s
}
