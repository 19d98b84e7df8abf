package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"

	"github.com/hashicorp/consul/api"
)

// The kinds of failure that callers branch on, by errors.Is.
var (
	ErrUnreachable = errors.New("consul unreachable")         // no answer arrived: the agent, the network, TLS
	ErrNoLeader    = errors.New("consul has no leader")       // the agent answers, its servers do not
	ErrDenied      = errors.New("consul denied access")       // ACL: a human has to act
	ErrRefused     = errors.New("consul refused the request") // any other 4xx: a human has to act
	ErrOverloaded  = errors.New("consul is overloaded")       // 429 or 503: later
	ErrUnknown     = errors.New("unknown to consul")          // 404: the agent does not have it
)

// Error is a failure of a call to Consul, worded for an operator: what was
// tried, what came back, and the way out. It never holds a token.
type Error struct {
	Kind error  // one of the Err values of this package, or nil
	Code int    // HTTP status; 0 where no answer arrived
	What string // what happened, with the address or path
	Hint string // what to do about it; may be empty
	err  error
}

// Error returns what happened and, after a semicolon, what to do.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.What
	}
	return e.What + "; " + e.Hint
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.err}
	}
	return []error{e.Kind, e.err}
}

// need says what rights a path takes, for the sentence about a 403.
func need(path string) string {
	switch {
	case strings.HasPrefix(path, "/v1/agent/service/"), strings.HasPrefix(path, "/v1/agent/check/"):
		return `service:write on the name that it registers`
	case strings.HasPrefix(path, "/v1/kv/"):
		return fmt.Sprintf(`key_prefix %q read`, strings.TrimPrefix(path, "/v1/kv/"))
	default:
		return `service_prefix "" read and node_prefix "" read`
	}
}

// explain turns what consul/api returned for path into an *Error.
func (c *Client) explain(path string, err error) error {
	if err == nil {
		return nil
	}
	var status api.StatusError
	if errors.As(err, &status) {
		return c.explainStatus(path, status)
	}
	// The URL in url.Error holds index and wait: noise that differs each time.
	cause := err
	if u := (*url.Error)(nil); errors.As(err, &u) {
		cause = u.Err
	}
	e := &Error{Kind: ErrUnreachable, err: cause}
	var (
		cert   *tls.CertificateVerificationError
		auth   x509.UnknownAuthorityError
		record tls.RecordHeaderError
		dns    *net.DNSError
	)
	switch {
	case errors.Is(cause, context.Canceled):
		e.Kind, e.What = nil, "consul "+path+": "+cause.Error()
	case errors.Is(cause, context.DeadlineExceeded):
		e.What = fmt.Sprintf("consul at %s gave no answer for %s in time", c.addr, path)
		e.Hint = "is the agent hung or a firewall dropping packets?"
	case errors.Is(cause, syscall.ECONNREFUSED):
		e.What = fmt.Sprintf("consul unreachable at %s (connection refused)", c.addr)
		e.Hint = "is the agent running (consul members)? is CONSUL_HTTP_ADDR or consul.addr right?"
	case errors.As(cause, &dns):
		e.What = fmt.Sprintf("consul unreachable at %s (%s)", c.addr, dns.Error())
		e.Hint = "does the name resolve from here?"
	case errors.As(cause, &record), strings.Contains(cause.Error(), "server gave HTTP response to HTTPS client"):
		e.What = fmt.Sprintf("consul at %s does not speak TLS", c.addr)
		e.Hint = "use scheme http, or Consul's https port"
	case errors.As(cause, &cert), errors.As(cause, &auth), strings.Contains(cause.Error(), "x509:"):
		e.What = fmt.Sprintf("consul at %s: its certificate is not trusted (%v)", c.addr, cause)
		e.Hint = "set CONSUL_CACERT or consul.tls.ca_file to its CA, and CONSUL_TLS_SERVER_NAME or consul.tls.server_name to a name in it (server.dc1.consul)"
	case strings.Contains(cause.Error(), "malformed HTTP response"):
		e.What = fmt.Sprintf("consul at %s does not answer in HTTP", c.addr)
		e.Hint = "is it the https port (use scheme https), or another service's?"
	case errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF), errors.Is(cause, syscall.ECONNRESET):
		e.What = fmt.Sprintf("consul at %s closed the connection (%v)", c.addr, cause)
	default:
		e.What = fmt.Sprintf("consul at %s: %v", c.addr, cause)
	}
	return e
}

func (c *Client) explainStatus(path string, s api.StatusError) *Error {
	body := s.Body
	if len(body) > 200 {
		body = body[:200] + "..."
	}
	e := &Error{Code: s.Code, What: fmt.Sprintf("consul said %d for %s (%s)", s.Code, path, body), err: s}
	switch {
	case s.Code == 403 || s.Code == 401:
		e.Kind = ErrDenied
		e.Hint = fmt.Sprintf("%s needs %s", c.token.source(), need(path))
	case s.Code == 404:
		e.Kind = ErrUnknown
	case s.Code == 429:
		e.Kind = ErrOverloaded
		e.Hint = "raise limits.http_max_conns_per_client in the agent (its default is 200 per address), or use its https port"
	case s.Code == 400 && strings.Contains(body, "Enterprise"):
		e.Kind = ErrRefused
		e.Hint = "namespaces and partitions are Consul Enterprise's: leave consul.namespace and consul.partition empty"
	case s.Code == 400 && strings.Contains(body, "HTTP request to an HTTPS server"):
		e.Kind = ErrRefused
		e.Hint = "use scheme https"
	case s.Code < 500:
		e.Kind = ErrRefused
	case strings.Contains(body, "No path to datacenter"):
		e.Kind = ErrRefused
		e.Hint = "is the datacenter's name right (consul catalog datacenters)?"
	case strings.Contains(body, "boolean expression"):
		e.Kind = ErrRefused // Consul says 500 for what is the caller's mistake
		e.Hint = "is the upstream's filter an expression that Consul knows (Service.Meta.version == \"v2\")?"
	case strings.Contains(body, "No cluster leader"), strings.Contains(body, "No known Consul servers"),
		strings.Contains(body, "resolver produced no addresses"):
		e.Kind = ErrNoLeader
		e.Hint = "are Consul's servers up (consul operator raft list-peers)?"
	case s.Code == 503:
		e.Kind = ErrOverloaded
	}
	return e
}
