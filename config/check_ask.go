package config

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// askedURL checks the URL of something that is asked about callers. Whoever
// could answer in its place could be anybody, so that only https will do, or
// this machine, or a word that the risk is taken.
func (b *builder) askedURL(path, text string, insecure bool) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		b.bad(path, text, CodeAddress, "is no URL (want https://HOST/PATH)", "")
	case u.User != nil:
		b.bad(path, mask, CodeAddress, "has a password in it", "")
	case u.Scheme == "http" && !loopback(u.Hostname()) && !insecure:
		b.bad(path, text, CodeAddress, "is not https: whoever is on the way could answer instead", "write https, or insecure: true to take the risk")
	}
}

// checkAsked checks where a method asks: one of url and service.
func (b *builder) checkAsked(path, at, service, to string, insecure bool) {
	switch {
	case at != "" && service != "":
		b.exclusive(path, "url", "service", true, true)
	case at != "":
		b.askedURL(join(path, "url"), at, insecure)
	case service == "":
		b.need(path, "url", "", "write url: https://HOST/PATH, or service: NAME and path: /PATH")
	default:
		b.plainName(join(path, "service"), service)
		if !strings.HasPrefix(to, "/") || strings.ContainsAny(to, "?#\\ ") {
			b.bad(join(path, "path"), to, CodePath, "is no path (want /PATH, without a query)", "")
		}
	}
}

func (b *builder) checkIntrospection(path string, m IntrospectionMethod) {
	b.checkAsked(path, m.URL, m.Service, m.Path, m.Insecure)
	b.checkTokenRules(path, m.TokenRules)
}

func (b *builder) checkForwardAuth(path string, m ForwardAuthMethod) {
	b.checkAsked(path, m.URL, m.Service, m.Path, m.Insecure)
	for _, list := range []struct {
		key   string
		names []string
	}{{"request_headers", m.RequestHeaders}, {"response_headers", m.ResponseHeaders}} {
		for i, name := range list.names {
			b.headerName(at(join(path, list.key), i), name)
		}
	}
	for i, name := range m.ResponseHeaders {
		if is := notForInstances(name); is != "" {
			b.bad(at(join(path, "response_headers"), i), name, CodeHeader, is, "")
		}
	}
	for _, f := range []struct{ key, name string }{{"consumer_header", m.ConsumerHeader}, {"groups_header", m.GroupsHeader}} {
		if f.name != "" {
			b.headerName(join(path, f.key), f.name)
		}
	}
	if m.OnError == "open" {
		b.warn(join(path, "on_error"), CodeFailOpen, join(path, "on_error")+" is open: while the service does not answer, everybody passes", "write on_error: closed, unless that is what you want")
	}
}

// notForInstances says why an answer's field cannot be handed to instances.
func notForInstances(name string) string {
	switch http.CanonicalHeaderKey(name) {
	case "Content-Type", "Content-Encoding", "Set-Cookie", "Forwarded", "Via", "X-Request-Id":
		return "describes the message it comes with, or is the gateway's own"
	}
	if n := http.CanonicalHeaderKey(name); strings.HasPrefix(n, "X-Forwarded-") || strings.HasPrefix(n, "X-Consumer-") {
		return "is the gateway's own to set"
	}
	return ""
}

// asked are the services that methods ask, with the paths of their keys.
func (c *Config) asked() map[string]string {
	out := map[string]string{}
	for i, m := range c.Auth {
		if m.Introspection != nil && m.Introspection.Service != "" {
			out[join(at("auth", i), "introspection.service")] = m.Introspection.Service
		}
		if m.ForwardAuth != nil && m.ForwardAuth.Service != "" {
			out[join(at("auth", i), "forward_auth.service")] = m.ForwardAuth.Service
		}
	}
	return out
}

// kinds returns the sections that a method has, by key.
func (m AuthMethod) kinds() []string {
	var out []string
	for _, k := range []struct {
		key string
		has bool
	}{{"api_key", m.APIKey != nil}, {"jwt", m.JWT != nil}, {"introspection", m.Introspection != nil}, {"forward_auth", m.ForwardAuth != nil}, {"basic", m.Basic != nil}, {"mtls", m.MTLS != nil}} {
		if k.has {
			out = append(out, k.key)
		}
	}
	return out
}

func (b *builder) checkKind(path string, m AuthMethod) {
	if kinds := m.kinds(); len(kinds) != 1 && b.sound(path) {
		b.fault(Fault{Path: path, Code: CodeContradicts, Message: fmt.Sprintf("%s has %d of api_key, jwt, introspection, forward_auth, basic and mtls, and needs exactly one", b.label(path), len(kinds))})
	}
}
