package app_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

const quietGateway = `version: 1
listen: [{addr: "127.0.0.1:0"}]
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
upstreams: [{name: mirror, instances: [{address: "127.0.0.1:9"}]}]
routes: [{name: all, match: {path: "/**"}, upstream: {service: mirror}}]
`

// TestOperatorsOverTLS is the page and its live stream in HTTP/2, which browsers
// choose, for those whom a certificate names; nobody else reads from elsewhere.
func TestOperatorsOverTLS(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca := parts.NewAuthority(t, "operators")
	ca.WriteTo(t, in("ca.pem"))
	ca.Issue(t, parts.Leaf{Names: []string{"admin.example.org"}}).WriteTo(t, in("admin.crt"), in("admin.key"))
	gw := startReading(t, quietGateway+fmt.Sprintf(`admin:
  addr: "127.0.0.1:0"
  tls: {certificates: [{cert_file: %q, key_file: %q}], client_ca_file: %q}
  clients: [{name: sre, role: operator, san: "sre@example.org"}]
`, in("admin.crt"), in("admin.key"), in("ca.pem")), config.LoadOptions{})
	sre := client(t, ca, gw.app.AdminAddr(), ca.Issue(t, parts.Leaf{Names: []string{"sre@example.org"}}).Pair(t))
	stranger := client(t, ca, gw.app.AdminAddr(), ca.Issue(t, parts.Leaf{Names: []string{"me@example.org"}}).Pair(t))
	nobody := client(t, ca, gw.app.AdminAddr())

	const at = "https://admin.example.org"
	for _, tt := range []struct {
		who  *http.Client
		path string
		want int
	}{
		{sre, "/", 200}, {sre, "/api/v1/routes", 200}, {sre, "/debug/pprof/cmdline", 200},
		{stranger, "/api/v1/routes", 421}, {stranger, "/livez", 200},
		{nobody, "/api/v1/routes", 421}, {nobody, "/livez", 200}, // a name that only who has a credential may use
	} {
		resp, text := get(t, tt.who, at+tt.path)
		if resp.StatusCode != tt.want || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %d, want HTTP/2 and %d: %.200s", tt.path, resp.Proto, resp.StatusCode, tt.want, text)
		}
	}
	if _, text := get(t, sre, at+"/api/v1/status"); !strings.Contains(text, `"listener":"admin"`) {
		t.Error("the status does not tell of the admin listener's certificate")
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, at+"/api/v1/stream", nil)
	resp, err := sre.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for told := 0; told < 2; { // the whole, and then what changed
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		if strings.HasPrefix(lines.Text(), "data:") {
			told++
		}
	}

	// A page elsewhere cannot have a browser use the certificate.
	req, _ = http.NewRequest(http.MethodPost, at+"/api/v1/reload", nil)
	req.Header.Set("Origin", "https://evil.example.com")
	if resp, err = sre.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a request from another site: %d", resp.StatusCode)
	}
}

// TestASocketHasNoName: whatever Host says, whoever may open the socket reads.
func TestASocketHasNoName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	gw := startInside(t, quietGateway+fmt.Sprintf("admin: {addr: %q}\n", "unix:"+path))
	if got := gw.app.AdminAddr(); got != "unix:"+path {
		t.Errorf("its address is %q", got)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	for _, header := range []string{"Accept: */*", "X-Forwarded-For: 203.0.113.9"} { // a proxy passes on anybody's
		want := http.StatusOK
		if strings.HasPrefix(header, "X-") {
			want = http.StatusUnauthorized
		}
		if resp, text := get(t, &http.Client{Transport: tr, Timeout: patience}, "http://any.example.com/api/v1/routes", header); resp.StatusCode != want {
			t.Errorf("with %s: %d, want %d: %s", header, resp.StatusCode, want, text)
		}
	}
}
