package parts_test

import (
	"net"
	"net/http"
	"testing"

	"github.com/proconsul/proconsul/pkg/parts"
)

func TestConsulRestartsOnItsPort(t *testing.T) {
	c := parts.StartConsul(t)
	c.Stop()
	if _, err := http.Get("http://" + c.Addr + "/v1/status/leader"); err == nil {
		t.Fatal("a stopped agent still answers")
	}
	c.Start()
	resp, err := http.Get("http://" + c.Addr + "/v1/status/leader")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestRedisRestartsOnItsPort(t *testing.T) {
	r := parts.StartRedis(t)
	r.Kill()
	if _, err := net.Dial("tcp", r.Addr); err == nil {
		t.Fatal("a killed redis-server still accepts")
	}
	r.Start()
}
