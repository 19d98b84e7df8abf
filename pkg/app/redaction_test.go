package app_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/admin"
)

// secretive is a gateway that holds a secret under every key that takes one.
// %[1]s is an instance that answers, %[2]s one that answers with nonsense made
// of the request, %[3]s a dead port, %[4]s a collector, %[5]s the store.
const secretive = `version: 1
listen: [{name: public, addr: "127.0.0.1:0"}]
admin: {addr: "127.0.0.1:0", tokens: [{name: sre, role: operator, token: op-secret}, {name: graphs, role: viewer, token: view-secret}]}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true, token: leak-consul-token}
redis: {%[5]s, username: gw, password: leak-redis-password, timeout: 20ms}
tracing: {endpoint: "%[4]s", ratio: 100%%, headers: [{name: x-collector-key, value: leak-collector-key}]}
consumers:
  - {name: acme, api_keys: [{id: k1, sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}],
     basic: [{username: acme, bcrypt: "$2a$04$Et2xqzTq8QpNHHxpiNLEUOAnm8NBzsKhYpo8BGTDYXyHvYbYpBVC2"}]}
auth:
  - {name: idp, jwt: {issuer: "https://id.test", audience: [api], algorithms: [HS256], secret: leak-jwt-secret-that-is-long-enough-for-hs256}}
  - {name: opaque, introspection: {url: "http://%[3]s/introspect", client_id: gw, client_secret: leak-introspection-secret, timeout: 50ms}}
upstreams:
  - {name: good, instances: [{address: "%[1]s"}]}
  - {name: odd, breaker: {disabled: true}, outlier: {disabled: true}, instances: [{address: "%[2]s"}]}
  - {name: odd-fast, engine: fast, breaker: {disabled: true}, outlier: {disabled: true}, instances: [{address: "%[2]s"}]}
  - {name: dead, breaker: {disabled: true}, outlier: {disabled: true}, instances: [{address: "%[3]s"}]}
routes:
  - name: good
    match: {path: "/good/**"}
    upstream: {service: good}
    headers: {request: {set: [{name: X-Backend-Token, value: leak-set-on-requests}], add: [{name: X-Backend-More, value: leak-add-on-requests}]},
      response: {set: [{name: X-Answer-Token, value: leak-set-on-answers}], add: [{name: X-Answer-More, value: leak-add-on-answers}]}}
    rate_limit: {by: api_key, limits: [100000/1h]}
  - {name: odd, match: {path: "/odd/**"}, upstream: {service: odd}}
  - {name: odd-fast, match: {path: "/odd-fast/**"}, upstream: {service: odd-fast}}
  - {name: dead, match: {path: "/dead/**"}, upstream: {service: dead}}
  - {name: keyed, match: {path: "/keyed/**"}, upstream: {service: good}, auth: {any_of: [api-key, basic, idp]}}
  - {name: opaque, match: {path: "/opaque/**"}, upstream: {service: good}, auth: {any_of: [opaque]}}
`

// secretsOf collects the text of every secret below v, and the paths under which
// the type could have one.
func secretsOf(v reflect.Value, path string, found map[string][]string) {
	switch secret, ok := v.Interface().(config.Secret); {
	case ok:
		found[path] = append(found[path], secret.Reveal())
		return
	case v.Type() == reflect.TypeFor[config.HeaderField]():
		found[path] = append(found[path], v.Interface().(config.HeaderField).Value)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v = reflect.New(v.Type().Elem()) // for its paths
		}
		secretsOf(v.Elem(), path, found)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Struct || v.Type().Elem() == reflect.TypeFor[config.Secret]() {
			secretsOf(reflect.New(v.Type().Elem()).Elem(), path, found)
			for i := range v.Len() {
				secretsOf(v.Index(i), path, found)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if key := f.Tag.Get("yaml"); f.IsExported() && key != "-" {
				secretsOf(v.Field(i), path+"."+strings.Split(key, ",")[0], found)
			}
		}
	}
}

// oddInstance answers requests with what no server should: their own header,
// where a status line, a field or a length is expected.
func oddInstance(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				said := r.Header.Get("Authorization")
				fmt.Fprintf(c, []string{"%s\r\n\r\n", "HTTP/1.1 %s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
					"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n", "HTTP/9.9 200 %s\r\n\r\n"}[n%7], said)
			}()
		}
	}()
	return l.Addr().String()
}

// TestNoSecretIsTold fires secrets through every header, every key of the
// configuration and every way in which a request or an operator can fail, and
// looks for them in everything that the gateway says.
func TestNoSecretIsTold(t *testing.T) {
	covered := map[string]bool{}
	for name, store := range map[string]string{
		"single":   `addr: "` + deadPort(t) + `"`,
		"sentinel": `mode: sentinel, addrs: ["` + deadPort(t) + `"], master: m, sentinel_password: leak-sentinel-password`,
	} {
		t.Run(name, func(t *testing.T) {
			rc := startReceiver(t)
			good := goodInstance(t)
			text := fmt.Sprintf(secretive, good, oddInstance(t), deadPort(t), rc.URL, store)
			in := startInside(t, text)
			in.level.Set(slog.LevelDebug)
			cfg, err := in.load()
			if err != nil {
				t.Fatal(err)
			}
			found := map[string][]string{}
			secretsOf(reflect.ValueOf(cfg).Elem(), "", found)
			var secrets []string
			for path, texts := range found {
				for _, text := range texts {
					if text != "" {
						covered[path] = true
						secrets = append(secrets, text)
					}
				}
				covered[path] = covered[path] || false
			}
			said := fire(t, in, &secrets)
			in.stop()
			said["log"], said["access log"] = in.log.String(), in.access.String()
			var spans strings.Builder
			for _, s := range append(rc.servers(), rc.clients()...) {
				spans.WriteString(prototext.Format(s))
			}
			said["spans"] = spans.String()
			for _, o := range []config.PrintOptions{{}, {Defaults: true}, {Sources: true}, {Defaults: true, Sources: true}} {
				var b bytes.Buffer
				if err := cfg.Print(&b, o); err != nil {
					t.Fatal(err)
				}
				said[fmt.Sprintf("printed configuration %+v", o)] = b.String()
			}
			for _, where := range []string{"log", "access log", "spans", "GET /metrics", "GET /api/v1/config"} {
				if len(said[where]) < 500 {
					t.Errorf("%s is too short to have been written: %q", where, said[where])
				}
			}
			for _, secret := range secrets {
				for where, text := range said {
					for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), strings.ToLower(secret)} {
						if i := strings.Index(text, form); i >= 0 {
							t.Errorf("%s tells %q: ...%s...", where, secret, text[max(0, i-150):min(len(text), i+len(form)+50)])
							break
						}
					}
				}
			}
		})
	}
	for path, ok := range covered {
		if !ok && !strings.HasPrefix(path, ".policies") { // these are routes' settings
			t.Errorf("no test has a secret under %s", path)
		}
	}
}

// fire sends what holds secrets, adds these, and returns what the admin
// listener says of it all.
func fire(t *testing.T, in *inside, secrets *[]string) map[string]string {
	n := 0
	secret := func() string {
		n++
		s := fmt.Sprintf("CLIENTSECRET%dX", n)
		*secrets = append(*secrets, s)
		return s
	}
	send := func(method, path string, edit func(r *http.Request)) {
		r, err := http.NewRequest(method, "http://"+in.app.Addr("")+path, strings.NewReader("password="+secret()))
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return // an answer that broke off
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	fields := []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "X-Auth-Token", "X-Csrf-Token", "Referer", "User-Agent", "X-Request-Id",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Traceparent", "Tracestate", "Baggage", "Accept", "Accept-Language",
		"Origin", "Range", "If-None-Match", "Content-Type", "Content-Encoding", "Idempotency-Key", "Via", "X-Consumer-Name", "X-Proconsul-Trace", "X-Anything",
		"Access-Control-Request-Headers", "Te", "Max-Forwards", "Priority", "Grpc-Timeout"}
	for _, path := range []string{"/good/a", "/odd/a", "/odd-fast/a", "/dead/a", "/keyed/a", "/opaque/a", "/nowhere", "/good/%2e%2e%00"} {
		for _, name := range fields {
			send("POST", path+"?key="+secret(), func(r *http.Request) { r.Header.Set(name, "Bearer "+secret()) })
		}
		for range 14 { // each kind of nonsense, for each engine
			send("GET", path, func(r *http.Request) { r.Header.Set("Authorization", secret()) })
		}
		send("GET", path, func(r *http.Request) { r.SetBasicAuth("acme", secret()) })
		send("GET", path, func(r *http.Request) { r.SetBasicAuth(secret(), "x") })
		send("GET", path, func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer eyJhbGciOiJIUzI1NiJ9."+base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+secret()+`"}`))+"."+secret())
		})
		send("GET", path, func(r *http.Request) { r.Header["Cookie"] = []string{"session=" + secret(), "a=" + secret()} })
		send("OPTIONS", path, func(r *http.Request) { r.Header.Set("Origin", "https://"+secret()) })
	}
	// What operators send, and get wrong.
	said := map[string]string{}
	for _, body := range []string{
		`{"url":"/good/a?key=%s","headers":["Authorization: Bearer %s","X-API-Key: %s"]}`, `{"url":"http://user:%s@shop.test/","headers":["%s","%s"]}`,
		`{"url":"/good/a","headers":["Bad Name: %s","X: %s","Cookie: %s"]}`, `{"url":"/keyed/a","headers":["Authorization: Basic %s"],"client_ip":"no address"}`,
	} {
		for _, path := range []string{"explain", "traces"} {
			text := body
			for strings.Contains(text, "%s") {
				text = strings.Replace(text, "%s", secret(), 1)
			}
			_, _ = in.call("POST /api/v1/"+path, text, asOperator) // what they sent themselves may come back to them
		}
	}
	for _, token := range []string{secret(), secret()} {
		_, answer := in.call("GET /api/v1/status", "", "Authorization: Bearer "+token)
		said["an operator who is none"] += answer
	}
	in.call("GET /api/v1/ratelimits?route=good&key="+secret(), "", asOperator)
	in.call("POST /api/v1/ratelimits/reset", `{"route":"good","key":"`+secret()+`"}`, asOperator)
	for _, bad := range []string{"redis: {pasword: %s}", "redis: {password: [%s]}", "tracing: {endpoint: \"http://u:%s@x:y\"}", "consul: {token: {a: %s}}",
		"admin: {tokens: [{name: a, role: king, token: %s}]}", "tracing: {headers: [{name: a b, value: %s}]}", "consumers: [{name: a, api_keys: [{id: 1, sha256: %s}]}]",
		"auth: [{name: a, jwt: {issuer: x, algorithms: [HS256], secret: %s}}]", "redis: {password: \"%s", "access_log: {template: [%s, $header.Authorization]}"} {
		text := "version: 1\n" + fmt.Sprintf(bad, secret()) + "\n"
		for _, path := range []string{"validate", "plan"} {
			_, answer := in.call("POST /api/v1/config/"+path, text, asOperator)
			said["a judged configuration"] += answer
		}
		in.write(text)
		_, answer := in.call("POST /api/v1/reload", "", asOperator)
		said["a refused reload"] += answer
	}
	// Everything that viewers can read.
	for _, e := range in.app.Endpoints() {
		if e.Method != "GET" || strings.HasPrefix(e.Path, "/debug/") || e.Path == "/api/v1/stream" {
			continue
		}
		path := strings.NewReplacer("{$}", "", "{name...}", "good", "{name}", "good").Replace(e.Path)
		_, text := in.call("GET "+path+"?defaults&sources&verbose", "", asOperator)
		said["GET "+e.Path] = text
	}
	r, err := http.NewRequest("GET", "http://"+in.app.AdminAddr()+"/api/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer view-secret")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	timer := time.AfterFunc(2*time.Second, func() { resp.Body.Close() })
	defer timer.Stop()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	said["GET /api/v1/stream"] = string(b)
	explained := ask[admin.Explanation](in, "POST /api/v1/explain", `{"url":"/good/a"}`, asOperator)
	said["an explanation"] = fmt.Sprintf("%+v %+v", explained, explained.Send)
	if !slices.ContainsFunc(explained.Send.Headers, func(h admin.HeaderValue) bool { return h.Name == "X-Backend-Token" }) {
		t.Error("the explanation does not name the field that the route sets")
	}
	return said
}

// goodInstance answers every request.
func goodInstance(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
