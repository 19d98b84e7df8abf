package front

import (
	"testing"
	"unsafe"
)

// An exchange is what a request costs most memory for. The runtime gives out
// 1,024 bytes at a time, of which it needs 8, and then 1,152.
func TestExchangeFitsItsClass(t *testing.T) {
	if size := unsafe.Sizeof(exchange{}); size > 1016 {
		t.Errorf("an exchange has %d bytes", size)
	}
}
