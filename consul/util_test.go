package consul_test

import (
	"fmt"

	"github.com/proconsul/proconsul/discovery"
)

func watchQueries(n int) []discovery.Query {
	queries := make([]discovery.Query, n)
	for i := range queries {
		queries[i] = query(fmt.Sprintf("svc%03d", i))
	}
	return queries
}
