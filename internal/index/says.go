package index

import (
	"strings"

	"go.etcd.io/bbolt"
)

// Saying is what the generation in force of one repository says of a path.
type Saying struct {
	Named
	Root string
	By   string // the path of what says so: a repomd.xml or a primary
}

// Says returns what each generation in force says of p, the nearest repository first. complete is false where the packages
// of a repository that might name p are not known.
func (x *Index) Says(p string) (list []Saying, complete bool) {
	x.mu.Lock()
	roots := x.concerned(p)
	repos := make([]*Repo, len(roots))
	for i, root := range roots {
		repos[i] = x.repos[root]
	}
	x.mu.Unlock()
	complete = true
	err := x.view(func(tx *bbolt.Tx) error {
		for i, root := range roots {
			r := repos[i]
			if n, ok := r.Records[p]; ok {
				list = append(list, Saying{n.Named, root, strings.TrimPrefix(root+"/repodata/repomd.xml", "/")})
				continue
			}
			if !r.current() {
				complete = false
				continue
			}
			b := bucketOf(tx, root, r.Side)
			if b == nil {
				continue // it has no packages
			}
			if n, ok := parseNamed(b.Get([]byte(p))); ok {
				list = append(list, Saying{n, root, r.Primary})
			}
		}
		return nil
	})
	return list, complete && err == nil
}
