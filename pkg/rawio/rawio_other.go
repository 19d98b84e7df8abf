//go:build !unix

package rawio

import "syscall"

// Possible says that connections can be read and written without waiting.
const Possible = false

func read(uintptr, []byte) (int, error)  { return 0, syscall.EAGAIN }
func write(uintptr, []byte) (int, error) { return 0, syscall.EAGAIN }
