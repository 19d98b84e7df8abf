package consul_test

import (
	"flag"
	"net/http"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests on real agents mostly wait for them: more than one a core.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(closing{m})
}

// closing ends the tests' own idle connections before leaks are looked for.
type closing struct{ m *testing.M }

func (c closing) Run() int {
	code := c.m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	return code
}
