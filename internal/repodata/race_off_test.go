//go:build !race

package repodata

const race = false
