//go:build !linux

package mirrortest

func isolate() bool   { return false }
func unroutable() int { return 0 }
