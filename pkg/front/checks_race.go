//go:build race

package front

// checked says that what a handler must not use any more is made to fail.
const checked = true
