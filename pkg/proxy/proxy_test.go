package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/proxy"
)

// echoHead answers with the request line and header lines that it got, sorted.
func echoHead(t testing.TB) string {
	return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			head, err := drainHead(r)
			if err != nil {
				return
			}
			lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
			slices.Sort(lines[1:])
			body := strings.Join(lines, "\n") + "\n"
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
}

func TestRequestHeader(t *testing.T) {
	tests := []struct {
		name    string
		send    string // after the request line
		trusted bool
		id      string
		set     []string // names of fields that a middleware sets, behind the check of what the client claims
		want    []string // lines beyond Host
		line    string
		route   proxy.RouteOptions
		host    string // "" is gw.test
	}{
		{
			name: "plain",
			send: "Accept: */*\n",
			want: []string{"Accept: */*", "Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http"},
		},
		{
			name: "hop-by-hop and what Connection names",
			send: "Connection: keep-alive, X-Hop, x-other\nX-Hop: 1\nX-Other: 2\nKeep-Alive: timeout=5\nProxy-Connection: keep-alive\nProxy-Authorization: secret\n" +
				"Te: gzip\nTrailer: X-T\nUpgrade: h2c\nHTTP2-Settings: AAAA\nX-Stays: 1\n",
			want: []string{"Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http", "X-Stays: 1"},
		},
		{
			name: "te trailers stays",
			send: "Connection: TE\nTE: gzip, trailers;q=1\n",
			want: []string{"Te: trailers", "Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http"},
		},
		{
			name: "Connection cannot strip what the gateway sets",
			send: "Connection: X-Forwarded-For, X-Forwarded-Proto, x-forwarded-host, Via, X-Request-Id, Host\nX-Request-Id: mine\n",
			id:   "ours",
			want: []string{"Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http", "X-Request-Id: ours"},
		},
		{
			name: "untrusted claims are dropped",
			send: "X-Forwarded-For: 6.6.6.6\nX-Forwarded-Proto: https\nX-Forwarded-Host: evil\nX-Forwarded-Port: 1\nForwarded: for=6.6.6.6\nX-Real-Ip: 6.6.6.6\n",
			want: []string{"Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http"},
		},
		{
			name:    "trusted claims are kept and added to",
			trusted: true,
			send:    "X-Forwarded-For: 10.1.1.1\nX-Forwarded-For: 10.2.2.2\nX-Forwarded-Host: shop\nForwarded: for=10.1.1.1\nVia: 1.0 fred\n",
			want: []string{"Forwarded: for=10.1.1.1", "Via: 1.0 fred", "Via: 1.1 proconsul", "X-Forwarded-For: 10.1.1.1, 10.2.2.2, 127.0.0.1",
				"X-Forwarded-Host: shop", "X-Forwarded-Proto: http"},
		},
		{
			name: "user agent is passed on and not invented; repeated fields stay lines",
			send: "User-Agent: curl/8\nAccept-Encoding: br\nX-A: 1\nX-A: 2\nCookie: a=b\n",
			want: []string{"Accept-Encoding: br", "Cookie: a=b", "User-Agent: curl/8", "Via: 1.1 proconsul", "X-A: 1", "X-A: 2",
				"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http"},
		},
		{
			name: "HTTP/1.0 without a host",
			line: "GET /a HTTP/1.0",
			want: []string{"Via: 1.0 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"},
		},
		{
			name:  "strip, prepend and a literal host",
			line:  "GET /api/a%2Fb;v=1/?q=1;2&x=%zz HTTP/1.1",
			route: proxy.RouteOptions{Strip: "/api", Prepend: "/v1", Host: "inner.test"},
			host:  "inner.test",
			want: []string{"Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Prefix: /api",
				"X-Forwarded-Proto: http"},
		},
		{
			name: "fields of the gateway that a middleware sets",
			set:  []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"},
			want: []string{"Via: 1.1 proconsul", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: gw.test", "X-Forwarded-Proto: http"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, gateOptions{trusted: tt.trusted, route: tt.route, exchange: func(x *middleware.Exchange, r *http.Request) {
				x.RequestID = tt.id
				for _, name := range tt.set {
					x.Sanitized = true
					r.Header.Set(name, "a rule's")
				}
			}}, echoHead(t))
			line, want := "GET /a HTTP/1.1", "GET /a HTTP/1.1"
			if tt.line != "" {
				line = tt.line
			}
			if tt.route.Prepend != "" {
				want = "GET /v1/a%2Fb;v=1/?q=1;2&x=%zz HTTP/1.1"
			}
			host, sent := "gw.test", "Host: gw.test\n"
			if tt.host != "" {
				host = tt.host
			}
			if strings.HasSuffix(line, "HTTP/1.0") {
				host, sent = g.pool.Members()[0].Instance.Address, ""
			}
			_, r := raw(t, g.addr, line+"\n"+sent+tt.send+"\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
			wantLines := append([]string{"Host: " + host}, tt.want...)
			slices.Sort(wantLines)
			wantLines = append([]string{want}, wantLines...)
			if !slices.Equal(got, wantLines) {
				t.Errorf("instance got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantLines, "\n"))
			}
		})
	}
}

func TestHostIsTheInstances(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	g := newGate(t, gateOptions{route: proxy.RouteOptions{Host: "instance"}}, addr)
	if got := get(t, client(t), g.url("/")).body; got != addr {
		t.Errorf("got Host %q, want %q", got, addr)
	}
}

// An HTTP/2 client can put into :path what would end an HTTP/1.1 request line.
func TestRequestLineCannotBeSplit(t *testing.T) {
	g := newGate(t, gateOptions{}, echoHead(t))
	req := request(t, http.MethodGet, g.url("/"), nil)
	req.URL.Opaque = "/a?x=1 HTTP/1.1"
	resp, err := clientH2(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	first, _, _ := strings.Cut(string(b), "\n")
	if want := "GET /a?x=1%20HTTP/1.1 HTTP/1.1"; resp.StatusCode == 200 && first != want {
		t.Errorf("got request line %q, want %q", first, want)
	}
}

func TestLoop(t *testing.T) {
	g := newGate(t, gateOptions{via: "gw-1"}, backend(t, func(w http.ResponseWriter, r *http.Request) {}))
	tests := []struct {
		name, via string
		want      int
	}{
		{"none", "", 200},
		{"another's", "1.1 fred, HTTP/1.0 gw-11 (x), 2 agw-1", 200},
		{"ours", "1.1 gw-1", 508},
		{"ours among others, with a comment", "1.0 fred, 2 gw-1 (Proconsul 1.0)", 508},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp := get(t, client(t), g.url("/"), "Via", tt.via)
			if resp.StatusCode != tt.want {
				t.Errorf("got %d, want %d", resp.StatusCode, tt.want)
			}
			if tt.want == 508 && resp.Header.Get("X-Proconsul-Reason") != "loop_detected" {
				t.Errorf("got reason %q", resp.Header.Get("X-Proconsul-Reason"))
			}
		})
	}
}

func TestResponseHeader(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := drainHead(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 Fine\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nProxy-Authenticate: Basic\r\n"+
			"Upgrade: h2c\r\nX-Request-Id: theirs\r\nVary: Accept\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Own: 1\r\nVia: 1.1 inner\r\nContent-Length: 2\r\n\r\nok")
	})
	g := newGate(t, gateOptions{wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", "ours")
			w.Header().Set("Vary", "Origin")
			next.ServeHTTP(w, r)
		})
	}}, addr)
	resp := get(t, client(t), g.url("/"))
	resp.Header.Del("Date")
	want := http.Header{
		"X-Request-Id": {"ours"}, "Vary": {"Origin", "Accept"}, "Set-Cookie": {"a=1", "b=2"}, "X-Own": {"1"},
		"Via": {"1.1 inner", "1.1 proconsul"}, "Content-Length": {"2"},
	}
	if !maps.EqualFunc(resp.Header, want, slices.Equal) {
		t.Errorf("got  %v\nwant %v", resp.Header, want)
	}
	if resp.body != "ok" {
		t.Errorf("got body %q", resp.body)
	}
}

// Bodies of every framing arrive as they were, to both kinds of clients, from
// both kinds of instances.
func TestFraming(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 20<<10)
	tests := []struct {
		name     string
		method   string
		upstream http.HandlerFunc
		status   int
		body     string
		length   string // Content-Length; "" is not checked, "-" is absent
	}{
		{"declared length", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "hello")
		}, 200, "hello", "5"},
		{"empty", "GET", func(w http.ResponseWriter, r *http.Request) {}, 200, "", "0"},
		{"big declared", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			io.WriteString(w, big)
		}, 200, big, fmt.Sprint(len(big))},
		{"big unknown", "GET", func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); io.WriteString(w, big) }, 200, big, ""},
		{"head", "HEAD", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "1234") }, 200, "", "1234"},
		{"head without a length", "HEAD", func(w http.ResponseWriter, r *http.Request) {}, 200, "", ""},
		{"204", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, 204, "", "-"},
		{"304", "GET", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Etag", `"x"`); w.WriteHeader(304) }, 304, "", "-"},
		{"500 with a body", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); io.WriteString(w, "oops") }, 500, "oops", "4"},
		{"odd status", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(299); io.WriteString(w, "odd") }, 299, "odd", "3"},
		{"redirects are the client's", "GET", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Location", "/x"); w.WriteHeader(302) }, 302, "", ""},
	}
	for _, scheme := range []string{"http", "h2c"} {
		for _, tt := range tests {
			addr := backend(t, tt.upstream)
			g := newGate(t, gateOptions{settings: func(s *proxy.Settings) { s.Scheme = scheme }}, addr)
			h2 := clientH2(t)
			h2.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			for proto, c := range map[string]*http.Client{"h1": client(t), "h2": h2} {
				t.Run(proto+" "+scheme+" "+tt.name, func(t *testing.T) {
					resp := do(t, c, request(t, tt.method, g.url("/"), nil))
					if resp.StatusCode != tt.status || resp.body != tt.body {
						t.Errorf("got %d with %d bytes, want %d with %d", resp.StatusCode, len(resp.body), tt.status, len(tt.body))
					}
					length := resp.Header.Get("Content-Length")
					if tt.length == "-" && length != "" || tt.length != "" && tt.length != "-" && length != tt.length {
						t.Errorf("got Content-Length %q, want %q", length, tt.length)
					}
					x := g.exchange()
					if x.Status != tt.status || x.Bytes != int64(len(tt.body)) || x.FirstByte <= 0 || x.Instance != "node/i0" || len(x.Attempts) != 1 {
						t.Errorf("account: status %d bytes %d first byte %v instance %q attempts %v", x.Status, x.Bytes, x.FirstByte, x.Instance, x.Attempts)
					}
				})
			}
		}
	}
}

func TestContentTypeIsNotGuessed(t *testing.T) {
	g := newGate(t, gateOptions{}, backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		io.WriteString(w, "<html>")
	}))
	if got, ok := get(t, client(t), g.url("/")).Header["Content-Type"]; ok {
		t.Errorf("got Content-Type %q, want none", got)
	}
}

func TestRequestBodies(t *testing.T) {
	big := strings.Repeat("x", 300<<10)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %v %d %v", len(b), err, r.ContentLength, r.TransferEncoding)
	})
	tests := []struct {
		name string
		body io.Reader
		want string
	}{
		{"none", nil, "0 <nil> 0 []"},
		{"declared", strings.NewReader("hello"), "5 <nil> 5 []"},
		{"big", strings.NewReader(big), "307200 <nil> 307200 []"},
		{"chunked", io.MultiReader(strings.NewReader("hello")), "5 <nil> -1 [chunked]"},
		{"big chunked", io.MultiReader(strings.NewReader(big)), "307200 <nil> -1 [chunked]"},
		{"chunked and empty", io.MultiReader(), "0 <nil> 0 []"},
	}
	g := newGate(t, gateOptions{}, addr)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := do(t, client(t), request(t, "POST", g.url("/"), tt.body)).body
			if tt.name == "chunked and empty" {
				got, _, _ = strings.Cut(got, " -1")
				if !strings.HasPrefix(got, "0 <nil>") {
					t.Errorf("got %q", got)
				}
				return
			}
			// The fast listener knows the length of chunks that come with their header.
			if got != tt.want && !(tt.name == "chunked" && got == "5 <nil> 5 []") {
				t.Errorf("instance read %q, want %q", got, tt.want)
			}
			n, _, _ := strings.Cut(tt.want, " ")
			for {
				x := g.exchange()
				if fmt.Sprint(x.BytesIn) == n {
					break
				}
			}
		})
	}
}
