package front

import (
	"testing"
	"unsafe"
)

// An exchange is what a request that nobody releases costs most memory for, and
// what is kept of it what others do. The runtime gives out 896 bytes at a time,
// of which it needs 8, and 256.
func TestExchangeFitsItsClass(t *testing.T) {
	if size := unsafe.Sizeof(exchange{}); size > 888 {
		t.Errorf("an exchange has %d bytes", size)
	}
	if size := unsafe.Sizeof(kept{}); size > 256 {
		t.Errorf("what is kept of it has %d bytes", size)
	}
}
