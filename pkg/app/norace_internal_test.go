//go:build !race

package app

// raced says that the race detector slows everything down.
const raced = false
