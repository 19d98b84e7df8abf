package front_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/proconsul/proconsul/pkg/front"
)

func TestQuick(t *testing.T) {
	s := front.New(front.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %v %d %s %v", r.Method, r.URL, r.Header, r.ContentLength, b, err)
	})})
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	go s.Serve(l)
	for _, q := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n",
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		io.WriteString(c, q)
		b, err := io.ReadAll(bufio.NewReader(c))
		t.Logf("%q\n%s%v\n", q, strings.ReplaceAll(string(b), "\r", "\\r"), err)
		c.Close()
	}
}
