// Package client talks to the admin listener of a running gateway: it is what
// the commands are made of, and what other tools may use. Its answers are the
// structs of package admin. It keeps no connection and no state.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/proconsul/proconsul/pkg/admin"
)

// Options say which gateway, and as whom.
type Options struct {
	Address string        // HOST:PORT, http(s)://HOST:PORT, or unix:PATH
	Token   string        // bearer token; empty: none is sent
	Timeout time.Duration // of one call; 0: 10 s

	CACert                string // PEM file of those who issue the gateway's certificate; empty: the system's
	ClientCert, ClientKey string // PEM files of the certificate that is shown; empty: none. The key may be in the certificate's file.
}

// Client calls one gateway. It is safe for concurrent use.
type Client struct {
	address string
	base    string
	token   string
	http    *http.Client
}

// New returns a client. It dials nothing. The error says what is wrong with
// the address or a file.
func New(o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	secure, err := o.tls()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment, TLSClientConfig: secure}
	c := &Client{address: o.Address, token: o.Token, http: &http.Client{Timeout: o.Timeout, Transport: transport,
		// A redirect would carry the token elsewhere; the gateway sends none.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if path, ok := strings.CutPrefix(o.Address, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		c.base = "http://localhost"
		return c, nil
	}
	text := o.Address
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || u.Host == "" || u.Path != "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("address %q: want HOST:PORT, http(s)://HOST:PORT or unix:PATH", o.Address)
	}
	c.base = u.String()
	return c, nil
}

// tls reads the files.
func (o Options) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CACert != "" {
		text, err := os.ReadFile(o.CACert)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("CA certificate: %s holds no certificate in PEM", o.CACert)
		}
	}
	switch {
	case o.ClientCert == "" && o.ClientKey != "":
		return nil, errors.New("a client key without a client certificate")
	case o.ClientCert != "":
		pair, err := tls.LoadX509KeyPair(o.ClientCert, cmp.Or(o.ClientKey, o.ClientCert))
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", o.ClientCert, err)
		}
		// It is shown whoever the gateway says that it believes: what it does not
		// believe it refuses, and says so.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c, nil
}

// Error is what a gateway answered instead of what it was asked for.
type Error struct {
	Status int    // HTTP
	Reason string // one word: unauthenticated, refused, ...
	Title  string
	Detail string
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Detail != "" && e.Title != "" && !strings.HasPrefix(e.Detail, "GET "): // where else to ask
		return fmt.Sprintf("%s: %s", e.Title, e.Detail)
	case e.Title != "":
		return e.Title
	}
	return fmt.Sprintf("the gateway answered %d %s", e.Status, http.StatusText(e.Status))
}

// printable makes one line of text that may be anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 256 << 20

// call sends a request and reads its JSON answer into v, which may be nil.
func (c *Client) call(ctx context.Context, method, path, contentType string, body []byte, v any) error {
	header := http.Header{}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		header.Set("Authorization", "Bearer "+c.token)
	}
	resp, text, err := c.ask(ctx, method, path, header, body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{Status: resp.StatusCode}
		_ = json.Unmarshal(text, &struct { // what is no problem has only its status
			Reason, Title, Detail *string
		}{&e.Reason, &e.Title, &e.Detail})
		for _, text := range []*string{&e.Reason, &e.Title, &e.Detail} {
			*text = printable(*text)
		}
		return e
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("what answers at %s is not a gateway's admin listener: %w", c.address, err)
	}
	return nil
}

// ask sends a request and returns the answer, whatever its status, with the text
// of its body, which is closed.
func (c *Client) ask(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("gateway at %s: %w", c.address, err)
	}
	req.Header = header
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer of the gateway at %s: %w", c.address, err)
	}
	// In these words net/http answers who asks a TLS listener without TLS.
	if resp.StatusCode == http.StatusBadRequest && bytes.Contains(text, []byte("HTTP request to an HTTPS server")) {
		return nil, nil, fmt.Errorf("gateway at %s: it speaks TLS, so its address begins with https://", c.address)
	}
	return resp, text, nil
}

// unreachable says in a few words why no answer came.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.ECONNREFUSED):
		err = syscall.ECONNREFUSED
	case ue != nil && ue.Timeout():
		err = errors.New("no answer in time")
	}
	return fmt.Errorf("gateway at %s: %w", c.address, err)
}

// Lives returns an error where the gateway is not alive.
func (c *Client) Lives(ctx context.Context) error { return c.probe(ctx, "/livez") }

// Ready returns an error where the gateway is not ready for traffic.
func (c *Client) Ready(ctx context.Context) error { return c.probe(ctx, "/readyz") }

func (c *Client) probe(ctx context.Context, path string) error {
	resp, text, err := c.ask(ctx, http.MethodGet, path, http.Header{}, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("gateway at %s answered %s: %s", c.address, resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	return c.call(ctx, http.MethodGet, "/api/v1/"+path, "", nil, v)
}

func (c *Client) post(ctx context.Context, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, "/api/v1/"+path, "application/json", text, v)
}

// Status returns everything that the gateway knows of itself.
func (c *Client) Status(ctx context.Context) (s admin.Status, err error) {
	err = c.get(ctx, "status", &s)
	return s, err
}

// Services returns the upstreams and their instances.
func (c *Client) Services(ctx context.Context) ([]admin.Upstream, error) {
	var v struct{ Services []admin.Upstream }
	err := c.get(ctx, "services", &v)
	return v.Services, err
}

// Service returns the upstream of that name, or of the Consul service.
func (c *Client) Service(ctx context.Context, name string) (u admin.Upstream, err error) {
	err = c.get(ctx, "services/"+segments(name), &u)
	return u, err
}

// Routes returns the routes in the order in which they are tried.
func (c *Client) Routes(ctx context.Context) ([]admin.Route, error) {
	var v struct{ Routes []admin.Route }
	err := c.get(ctx, "routes", &v)
	return v.Routes, err
}

// Route returns the route of that name.
func (c *Client) Route(ctx context.Context, name string) (r admin.Route, err error) {
	err = c.get(ctx, "routes/"+segments(name), &r)
	return r, err
}

// Instance is an instance beside the upstream that it belongs to.
type Instance struct {
	Upstream string `json:"upstream"`
	admin.Instance
}

// Instances returns the instances of an upstream or a Consul service; of all,
// where service is empty.
func (c *Client) Instances(ctx context.Context, service string) ([]Instance, error) {
	var v struct{ Instances []Instance }
	path := "instances"
	if service != "" {
		path += "?service=" + url.QueryEscape(service)
	}
	err := c.get(ctx, path, &v)
	return v.Instances, err
}

// Events returns what happened after the event with the sequence number since,
// oldest first.
func (c *Client) Events(ctx context.Context, since uint64) ([]admin.Event, error) {
	var v struct{ Events []admin.Event }
	err := c.get(ctx, "events?since="+strconv.FormatUint(since, 10), &v)
	return v.Events, err
}

// Overrides returns what operators hold, the next to end first.
func (c *Client) Overrides(ctx context.Context) ([]admin.Override, error) {
	var v struct{ Overrides []admin.Override }
	err := c.get(ctx, "overrides", &v)
	return v.Overrides, err
}

// Explain returns what would become of a request. Nothing is sent.
func (c *Client) Explain(ctx context.Context, q admin.ExplainRequest) (e admin.Explanation, err error) {
	err = c.post(ctx, "explain", q, &e)
	return e, err
}

// Trace sends a request through the gateway and returns what became of it.
func (c *Client) Trace(ctx context.Context, q admin.TraceRequest) (t admin.Traced, err error) {
	err = c.post(ctx, "traces", q, &t)
	return t, err
}

// Order is how an act is to be done.
type Order struct {
	For      time.Duration // how long it holds; 0: the gateway's default, an hour
	Upstream string        // of an instance's acts: in this upstream only
	Reason   string
}

// MarshalJSON implements json.Marshaler: an order as the API reads it.
func (o Order) MarshalJSON() ([]byte, error) {
	sent := struct {
		For      string `json:"for,omitempty"`
		Upstream string `json:"upstream,omitempty"`
		Reason   string `json:"reason,omitempty"`
	}{Upstream: o.Upstream, Reason: o.Reason}
	if o.For != 0 {
		sent.For = o.For.String()
	}
	return json.Marshal(sent)
}

// Drain takes the gateway out of service.
func (c *Client) Drain(ctx context.Context, o Order) (d admin.Done, err error) {
	err = c.post(ctx, "drain", o, &d)
	return d, err
}

// Undrain puts the gateway back into service.
func (c *Client) Undrain(ctx context.Context) (d admin.Done, err error) {
	err = c.post(ctx, "undrain", Order{}, &d)
	return d, err
}

// Instance does an act on an instance, by its id.
func (c *Client) Instance(ctx context.Context, act admin.InstanceAct, id string, o Order) (d admin.Done, err error) {
	err = c.post(ctx, "instances/"+url.PathEscape(id)+"/"+string(act), o, &d)
	return d, err
}

// Breaker does an act on an upstream's breaker.
func (c *Client) Breaker(ctx context.Context, act admin.BreakerAct, upstream string, o Order) (d admin.Done, err error) {
	err = c.post(ctx, "breakers/"+url.PathEscape(upstream)+"/"+string(act), o, &d)
	return d, err
}

// Reload has the gateway take over its configuration, and returns what that
// changed.
func (c *Client) Reload(ctx context.Context) (p admin.Plan, err error) {
	var v struct {
		admin.Plan
		Result string
		Actor  string
		Config admin.Config
	}
	err = c.post(ctx, "reload", struct{}{}, &v)
	return v.Plan, err
}

// Plan returns what taking over a configuration would change.
func (c *Client) Plan(ctx context.Context, text []byte) (p admin.Plan, err error) {
	err = c.call(ctx, http.MethodPost, "/api/v1/config/plan", "application/yaml", text, &p)
	return p, err
}

// RateLimit returns what an identity has left of a route's limits.
func (c *Client) RateLimit(ctx context.Context, route, key string) (l admin.RateLimit, err error) {
	err = c.get(ctx, "ratelimits?"+url.Values{"route": {route}, "key": {key}}.Encode(), &l)
	return l, err
}

// TopLimits returns how the limiter works and the n identities that are limited
// most.
func (c *Client) TopLimits(ctx context.Context, n int) (l admin.RateLimits, err error) {
	err = c.get(ctx, "ratelimits/top?"+url.Values{"n": {strconv.Itoa(n)}}.Encode(), &l)
	return l, err
}

// ResetRateLimit gives an identity a route's whole limits back.
func (c *Client) ResetRateLimit(ctx context.Context, route, key string) (d admin.Done, err error) {
	err = c.post(ctx, "ratelimits/reset", map[string]string{"route": route, "key": key}, &d)
	return d, err
}

// LogLevel returns the least severe line that the gateway logs.
func (c *Client) LogLevel(ctx context.Context) (l admin.LogLevel, err error) {
	err = c.get(ctx, "log-level", &l)
	return l, err
}

// SetLogLevel changes that for a while; 0: an hour.
func (c *Client) SetLogLevel(ctx context.Context, level string, hold time.Duration) (l admin.LogLevel, err error) {
	sent := map[string]string{"level": level}
	if hold != 0 {
		sent["for"] = hold.String()
	}
	err = c.post(ctx, "log-level", sent, &l)
	return l, err
}

// segments escapes a name that may hold slashes, which stay.
func segments(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
