//go:build race

package repodata

// race: encoding/xml is ten times slower, and nothing here runs concurrently. What only takes long is cut short.
const race = true
