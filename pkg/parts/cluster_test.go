package parts_test

import (
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

func TestClusterElectsAnother(t *testing.T) {
	c := parts.StartCluster(t, 3)
	first := c.Leader()
	first.Kill()
	second := c.Leader()
	if second == first {
		t.Fatal("a killed server leads")
	}
	second.Put("/v1/kv/a", "b") // there is a quorum
	first.Start()
	first.Put("/v1/kv/a", "c")
}
