//go:build !race

package metrics_test

// raced says that the race detector slows everything down.
const raced = false
