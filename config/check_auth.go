package config

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The methods that exist without being written.
const (
	MethodAPIKey = "api-key"
	MethodBasic  = "basic"
	MethodMTLS   = "mtls"
)

// Methods returns the methods of auth and those that exist without being
// written, where none of their names is.
func (c *Config) Methods() []AuthMethod {
	out := slices.Clone(c.Auth)
	has := func(name string) bool {
		return slices.ContainsFunc(c.Auth, func(m AuthMethod) bool { return m.Name == name })
	}
	if !has(MethodAPIKey) {
		key := DefaultAPIKey()
		out = append(out, AuthMethod{Name: MethodAPIKey, APIKey: &key})
	}
	if !has(MethodBasic) {
		out = append(out, AuthMethod{Name: MethodBasic, Basic: &BasicMethod{}})
	}
	if !has(MethodMTLS) {
		out = append(out, AuthMethod{Name: MethodMTLS, MTLS: &MTLSMethod{ConsumerFrom: "none"}})
	}
	return out
}

// identifier refuses names that cannot stand in a header field that lists
// several.
func (b *builder) identifier(path, name string) {
	b.plainName(path, name)
	for i := range len(name) {
		if c := name[i]; c < 0x21 || c > 0x7e || c == ',' {
			b.bad(path, name, CodeFormat, "has a character that a header field cannot carry in a name (letters, digits and -_.:@/ are fine)", "")
			return
		}
	}
}

// checkConsumers checks names and credentials. What Print has masked is let
// pass, so that its output loads; the gateway refuses to serve by it.
func (b *builder) checkConsumers(c *Config) {
	b.unique("consumers", len(c.Consumers), func(i int) string { return c.Consumers[i].Name })
	keys, ids, logins := map[string]string{}, map[string]string{}, map[string]string{}
	claims, certs := map[ConsumerClaim]string{}, map[ConsumerCert]string{}
	for i, k := range c.Consumers {
		p := at("consumers", i)
		b.identifier(join(p, "name"), k.Name)
		for j, g := range k.Groups {
			b.identifier(at(join(p, "groups"), j), g)
		}
		for j, key := range k.APIKeys {
			kp := at(join(p, "api_keys"), j)
			b.identifier(join(kp, "id"), key.ID)
			b.taken(ids, join(kp, "id"), key.ID, key.ID)
			digest := strings.ToLower(key.SHA256.Reveal())
			if _, err := hex.DecodeString(digest); digest != "" && digest != mask && (err != nil || len(digest) != 64) {
				b.bad(join(kp, "sha256"), mask, CodeFormat, "is no SHA-256 (want 64 hex digits)", "proconsul keys hash makes it from a key; never write the key itself here")
			}
			b.taken(keys, join(kp, "sha256"), digest, mask)
		}
		for j, l := range k.Basic {
			lp := at(join(p, "basic"), j)
			if strings.Contains(l.Username, ":") {
				b.bad(join(lp, "username"), l.Username, CodeFormat, "has a colon, which ends a user name (RFC 7617)", "")
			}
			b.plainName(join(lp, "username"), l.Username)
			b.taken(logins, join(lp, "username"), l.Username, l.Username)
			if h := l.Bcrypt.Reveal(); h != "" && h != mask && !bcryptForm(h) {
				b.bad(join(lp, "bcrypt"), mask, CodeFormat, "is no bcrypt hash ($2y$10$..., 60 characters)", "htpasswd -nB NAME makes one; never write the password itself here")
			}
		}
		for j, claim := range k.JWT {
			jp := at(join(p, "jwt"), j)
			m := slices.IndexFunc(c.Auth, func(m AuthMethod) bool { return m.Name == claim.Method })
			if claim.Method != "" && (m < 0 || c.Auth[m].JWT == nil && b.sound(at("auth", m))) {
				b.bad(join(jp, "method"), claim.Method, CodeReference, "is no method of auth with jwt", didYouMean(claim.Method, tokenMethods(c.Auth)))
			}
			if first, ok := claims[claim]; ok {
				b.bad(jp, claim.Equals, CodeNameTwice, "makes a token two consumers: "+first+" has the same", "")
			}
			claims[claim] = jp
		}
		for j, cert := range k.MTLS {
			b.checkConsumerCert(certs, at(join(p, "mtls"), j), cert)
		}
	}
}

func (b *builder) checkConsumerCert(seen map[ConsumerCert]string, path string, c ConsumerCert) {
	given := 0
	for _, text := range []string{c.Subject, c.SAN, c.SPIFFE} {
		if text != "" {
			given++
		}
	}
	if given != 1 {
		if b.sound(path) {
			b.fault(Fault{Path: path, Code: CodeContradicts, Message: fmt.Sprintf("%s has %d of subject, san and spiffe, and needs exactly one", path, given)})
		}
		return
	}
	if c.SPIFFE != "" {
		u, err := url.Parse(c.SPIFFE)
		if err != nil || u.Scheme != "spiffe" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Port() != "" {
			b.bad(join(path, "spiffe"), c.SPIFFE, CodeFormat, "is no SPIFFE id (want spiffe://TRUST-DOMAIN/PATH)", "")
		}
	}
	if first, ok := seen[c]; ok {
		b.bad(path, c.Subject+c.SAN+c.SPIFFE, CodeNameTwice, "makes a certificate two consumers: "+first+" has the same", "")
		return
	}
	seen[c] = path
}

// taken reports a value that an earlier element of any consumer has.
func (b *builder) taken(seen map[string]string, path, value, shown string) {
	if value == "" || value == mask {
		return
	}
	if first, ok := seen[value]; ok {
		b.bad(path, shown, CodeNameTwice, "is taken by "+first, "")
		return
	}
	seen[value] = path
}

func bcryptForm(h string) bool {
	return len(h) == 60 && (strings.HasPrefix(h, "$2a$") || strings.HasPrefix(h, "$2b$") || strings.HasPrefix(h, "$2y$"))
}

func methodNames(list []AuthMethod) []string {
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = m.Name
	}
	return names
}

func tokenMethods(list []AuthMethod) []string {
	var names []string
	for _, m := range list {
		if m.JWT != nil {
			names = append(names, m.Name)
		}
	}
	return names
}

func (b *builder) checkMethods(c *Config) {
	b.unique("auth", len(c.Auth), func(i int) string { return c.Auth[i].Name })
	for i, m := range c.Auth {
		p := at("auth", i)
		if b.broken[p] {
			continue
		}
		b.identifier(join(p, "name"), m.Name)
		kinds := 0
		for _, has := range []bool{m.APIKey != nil, m.JWT != nil, m.Basic != nil, m.MTLS != nil} {
			if has {
				kinds++
			}
		}
		if kinds != 1 && b.sound(p) {
			b.fault(Fault{Path: p, Code: CodeContradicts, Message: fmt.Sprintf("%s has %d of api_key, jwt, basic and mtls, and needs exactly one", b.label(p), kinds)})
		}
		if k := m.APIKey; k != nil {
			kp := join(p, "api_key")
			switch {
			case k.Header == "" && k.Query == "":
				b.need(kp, "header", "", "write header: X-API-Key")
			case k.Header != "":
				b.headerName(join(kp, "header"), k.Header)
			}
			if k.Header == "Authorization" || k.Header == "Cookie" {
				b.bad(join(kp, "header"), k.Header, CodeHeader, "has a form of its own and is not for API keys", "write header: X-API-Key")
			}
		}
		if m.JWT != nil {
			b.checkJWT(join(p, "jwt"), *m.JWT)
		}
		if m.MTLS != nil {
			b.checkMTLS(c, join(p, "mtls"), *m.MTLS)
		}
	}
}

func (b *builder) checkMTLS(c *Config, path string, m MTLSMethod) {
	if m.ConsumerPrefix != "" {
		b.identifier(join(path, "consumer_prefix"), m.ConsumerPrefix)
	}
	asked := func(l Listen) bool { return l.TLS != nil && l.TLS.ClientAuth != "none" }
	if !slices.ContainsFunc(c.Listen, asked) {
		b.warn(path, CodeNoEffect, path+" knows nobody: no listener asks for client certificates", "write tls: {client_auth: optional, client_ca_file: ...} at a listener")
	}
}

// algorithms are those of RFC 7518 section 3.1 and RFC 8037 but for none, the
// HS ones last.
var algorithms = [...]string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512",
}

func (b *builder) checkJWT(path string, j JWTMethod) {
	least := 0
	asymmetric := 0
	for i, alg := range j.Algorithms {
		if slices.Contains(j.Algorithms[:i], alg) {
			b.bad(at(join(path, "algorithms"), i), alg, CodeNameTwice, "is listed twice", "")
		}
		switch alg {
		case "HS256":
			least = max(least, 32)
		case "HS384":
			least = max(least, 48)
		case "HS512":
			least = max(least, 64)
		default:
			asymmetric++
			if !slices.Contains(algorithms[:], alg) {
				b.bad(at(join(path, "algorithms"), i), alg, CodeChoice, "is no algorithm that is accepted (have: "+strings.Join(algorithms[:], ", ")+")", didYouMean(alg, algorithms[:]))
			}
		}
	}
	if !b.sound(path) {
		return
	}
	// A public key must never be taken for a secret: one method has either.
	sources := 0
	for _, has := range []bool{j.JWKSFile != "", j.JWKSURI != "", !j.Secret.Empty()} {
		if has {
			sources++
		}
	}
	switch {
	case least > 0 && asymmetric > 0:
		b.fault(Fault{Path: join(path, "algorithms"), Code: CodeContradicts, Message: fmt.Sprintf("%s mixes HS algorithms with others", join(path, "algorithms")), Hint: "make two methods of it"})
	case sources != 1:
		b.fault(Fault{Path: path, Code: CodeContradicts, Message: fmt.Sprintf("%s has %d of jwks_file, jwks_uri and secret, and needs exactly one", path, sources)})
	case least > 0 && j.Secret.Empty():
		b.fault(Fault{Path: join(path, "algorithms"), Code: CodeContradicts, Message: path + " has HS algorithms without a secret"})
	case asymmetric > 0 && !j.Secret.Empty():
		b.fault(Fault{Path: join(path, "secret"), Code: CodeContradicts, Message: path + " has a secret without an HS algorithm"})
	case least > 0 && len(j.Secret.Reveal()) < least && j.Secret.Reveal() != mask:
		b.fault(Fault{Path: join(path, "secret"), Code: CodeRange, Message: fmt.Sprintf("%s is shorter than the %d bytes that the algorithm asks for (RFC 7518 section 3.2)", join(path, "secret"), least)})
	}
	if j.JWKSURI != "" {
		up := join(path, "jwks_uri")
		u, err := url.Parse(j.JWKSURI)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			b.bad(up, j.JWKSURI, CodeAddress, "is no URL (want https://HOST/PATH)", "")
		case u.User != nil:
			b.bad(up, mask, CodeAddress, "has a password in it", "")
		case u.Scheme == "http" && !loopback(u.Hostname()):
			b.warn(up, CodeFormat, up+" is not https: whoever is on the way can put keys of their own into it", "")
		}
	}
	if len(j.Audience) == 0 {
		b.warn(join(path, "audience"), CodeMissing, b.label(path)+" has no audience: tokens that the issuer made for other services are accepted", "write audience: [NAME OF THIS API]")
	}
	for i, s := range j.Scopes {
		b.identifier(at(join(path, "scopes"), i), s)
	}
	for i, name := range j.ForwardClaims {
		if !token(name) {
			b.bad(at(join(path, "forward_claims"), i), name, CodeHeader, "is no part of a header name", "")
		}
	}
	if j.ConsumerPrefix != "" {
		b.identifier(join(path, "consumer_prefix"), j.ConsumerPrefix)
	}
}

// checkAuth checks the section of a policy or route. A section that says
// nothing is a fault, since it would leave open what was to be closed.
func (b *builder) checkAuth(path string, a *Auth) {
	if a == nil {
		if b.written(path) && b.sound(path) {
			b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " is empty", Hint: "write any_of: [...], or anonymous: true to let everybody pass"})
		}
		return
	}
	if !b.sound(path) {
		return
	}
	methods := len(a.AnyOf) + len(a.AllOf)
	asks := len(a.Groups) + len(a.Scopes) + len(a.Consumers)
	switch {
	case methods == 0 && !a.Anonymous:
		b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has neither any_of nor all_of", Hint: "write any_of: [...], or anonymous: true to let everybody pass"})
	case asks > 0 && a.Anonymous:
		b.fault(Fault{Path: join(path, "anonymous"), Code: CodeContradicts, Message: path + " lets anonymous callers pass and asks for consumers, groups or scopes, which they never have"})
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"consumers", a.Consumers}, {"groups", a.Groups}, {"scopes", a.Scopes}} {
		for i, name := range list.names {
			b.identifier(at(join(path, list.key), i), name)
		}
	}
	known := methodNames(b.methods)
	for _, list := range []struct {
		key   string
		names []string
	}{{"any_of", a.AnyOf}, {"all_of", a.AllOf}} {
		for i, name := range list.names {
			p := at(join(path, list.key), i)
			switch {
			case slices.Contains(list.names[:i], name):
				b.bad(p, name, CodeNameTwice, "is listed twice", "")
			case !slices.Contains(known, name):
				b.bad(p, name, CodeReference, "is no method of auth (have: "+strings.Join(known, ", ")+")", didYouMean(name, known))
			}
		}
	}
}
