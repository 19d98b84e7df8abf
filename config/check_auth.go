package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
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
	claims, certs := map[ConsumerClaim]string{}, map[certMark]string{}
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
		for j, claim := range k.Claims {
			jp := at(join(p, "claims"), j)
			m := slices.IndexFunc(c.Auth, func(m AuthMethod) bool { return m.Name == claim.Method })
			if claim.Method != "" && (m < 0 || c.Auth[m].JWT == nil && c.Auth[m].Introspection == nil && b.sound(at("auth", m))) {
				b.bad(join(jp, "method"), claim.Method, CodeReference, "is no method of auth with tokens", didYouMean(claim.Method, tokenMethods(c.Auth)))
			}
			if first, ok := claims[claim]; ok {
				b.bad(jp, claim.Equals, CodeNameTwice, "makes a token two consumers: "+first+" has the same", "")
			}
			claims[claim] = jp
		}
		for j, cert := range k.MTLS {
			mp := at(join(p, "mtls"), j)
			b.checkConsumerCert(certs, mp, cert)
			b.checkVouching(c, mp, cert.Listeners)
		}
		if j := c.methodNaming(k.Name); j >= 0 {
			b.bad(join(p, "name"), k.Name, CodeNameTwice, "begins with the consumer_prefix of the method "+c.Auth[j].Name+", whose callers would be taken for it", "")
		}
	}
	for _, f := range c.confusedConsumers() {
		if b.sound(f.Path) {
			b.fault(f)
		}
	}
}

// checkVouching checks the listeners whose issuers vouch for certificates.
func (b *builder) checkVouching(c *Config, path string, names []string) {
	for i, name := range names {
		p := at(join(path, "listeners"), i)
		l := slices.IndexFunc(c.Listen, func(l Listen) bool { return l.Name == name })
		switch {
		case slices.Contains(names[:i], name):
			b.bad(p, name, CodeNameTwice, "is listed twice", "")
		case l < 0:
			var known []string
			for _, l := range c.Listen {
				known = append(known, l.Name)
			}
			b.bad(p, name, CodeReference, "is no listener (have: "+strings.Join(known, ", ")+")", didYouMean(name, known))
		case c.Listen[l].vouchers() == "":
			b.warn(p, CodeNoEffect, p+" has no effect: the listener "+name+" asks for no client certificates", "write tls: {client_auth: optional, client_ca_file: ...} there")
		}
	}
}

// vouchers returns the file of those who vouch for the listener's clients;
// empty: it asks for no certificates.
func (l Listen) vouchers() string {
	if l.TLS == nil || l.TLS.ClientAuth == "none" || l.TLS.ClientCAFile == "" {
		return ""
	}
	return filepath.Clean(l.TLS.ClientCAFile)
}

// vouching lists the listeners that ask for client certificates where not all
// of them believe the same issuers; nothing where they do.
func (c *Config) vouching() (listeners []string) {
	files := map[string]bool{}
	for _, l := range c.Listen {
		if file := l.vouchers(); file != "" {
			files[file] = true
			listeners = append(listeners, l.Name)
		}
	}
	if len(files) < 2 {
		return nil
	}
	return listeners
}

// methodNaming returns the method of auth whose callers may get that name; -1:
// none.
func (c *Config) methodNaming(name string) int {
	return slices.IndexFunc(c.Auth, func(m AuthMethod) bool {
		prefix := m.namesBy()
		return prefix != "" && strings.HasPrefix(name, prefix)
	})
}

// namesBy returns what stands in front of the names that the method's
// credentials give their holders.
func (m AuthMethod) namesBy() string {
	switch {
	case m.JWT != nil:
		return m.JWT.ConsumerPrefix
	case m.Introspection != nil:
		return m.Introspection.ConsumerPrefix
	case m.MTLS != nil:
		return m.MTLS.ConsumerPrefix
	}
	return ""
}

// Confused returns what would let one caller be taken for another: certificates
// that do not say which listener's issuers vouch for them, and credentials that
// may name their holders as a consumer of Consul's KV store was named that is
// there no more.
func (c *Config) Confused() error {
	var faults []error
	for _, f := range append(c.confusedConsumers(), c.confusedMethods()...) {
		faults = append(faults, errors.New(f.Message))
	}
	return errors.Join(faults...)
}

func (c *Config) confusedConsumers() (faults []Fault) {
	for i, k := range c.Consumers {
		faults = append(faults, c.unvouched(at("consumers", i), k)...)
	}
	return faults
}

// unvouched returns what is missing at the certificates of a consumer that
// stands at path.
func (c *Config) unvouched(path string, k Consumer) (faults []Fault) {
	several := c.vouching()
	for i, cert := range k.MTLS {
		if several != nil && len(cert.Listeners) == 0 {
			faults = append(faults, unsaidListeners(at(join(path, "mtls"), i), several))
		}
	}
	return faults
}

func (c *Config) confusedMethods() (faults []Fault) {
	several := c.vouching()
	unsaid := func(path, names string) {
		if c.KV.Consumers != "" {
			faults = append(faults, Fault{Path: path, Code: CodeMissing, Hint: "write consumer_prefix: \"NAME:\"",
				Message: path + " has no consumer_prefix, and consumers come and go in Consul (kv.consumers): " + names + " could name its holder as one that is gone"})
		}
	}
	for i, m := range c.Auth {
		p := at("auth", i)
		switch {
		case m.JWT != nil && m.JWT.ConsumerClaim != "" && m.JWT.ConsumerPrefix == "":
			unsaid(join(p, "jwt"), "a token")
		case m.Introspection != nil && m.Introspection.ConsumerClaim != "" && m.Introspection.ConsumerPrefix == "":
			unsaid(join(p, "introspection"), "a token")
		case m.MTLS != nil && m.MTLS.ConsumerFrom != "none":
			if m.MTLS.ConsumerPrefix == "" {
				unsaid(join(p, "mtls"), "a certificate")
			}
			if several != nil && len(m.MTLS.Listeners) == 0 {
				faults = append(faults, unsaidListeners(join(p, "mtls"), several))
			}
		}
	}
	return faults
}

func unsaidListeners(path string, several []string) Fault {
	return Fault{Path: path, Code: CodeMissing, Hint: fmt.Sprintf("write listeners: [%s], or whichever are meant", several[0]),
		Message: fmt.Sprintf("%s does not say which listeners' issuers vouch for it, and those of %s have different client_ca_file", path, strings.Join(several, ", "))}
}

func (b *builder) checkConsumerCert(seen map[certMark]string, path string, c ConsumerCert) {
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
	if first, ok := seen[c.mark()]; ok {
		b.bad(path, c.Subject+c.SAN+c.SPIFFE, CodeNameTwice, "names the same certificates as "+first, "")
		return
	}
	seen[c.mark()] = path
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
		if m.JWT != nil || m.Introspection != nil {
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
		b.checkKind(p, m)
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
		if m.Introspection != nil {
			b.checkIntrospection(join(p, "introspection"), *m.Introspection)
		}
		if m.ForwardAuth != nil {
			b.checkForwardAuth(join(p, "forward_auth"), *m.ForwardAuth)
		}
		if m.MTLS != nil {
			b.checkMTLS(c, join(p, "mtls"), *m.MTLS)
		}
	}
	for _, f := range c.confusedMethods() {
		if b.sound(f.Path) {
			b.fault(f)
		}
	}
}

func (b *builder) checkMTLS(c *Config, path string, m MTLSMethod) {
	if m.ConsumerPrefix != "" {
		b.identifier(join(path, "consumer_prefix"), m.ConsumerPrefix)
	}
	b.checkVouching(c, path, m.Listeners)
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
	case sources > 1:
		b.fault(Fault{Path: path, Code: CodeContradicts, Message: fmt.Sprintf("%s has %d of jwks_file, jwks_uri and secret, and needs one", path, sources)})
	case least > 0 && j.Secret.Empty():
		b.fault(Fault{Path: join(path, "algorithms"), Code: CodeContradicts, Message: path + " has HS algorithms without a secret"})
	case asymmetric > 0 && !j.Secret.Empty():
		b.fault(Fault{Path: join(path, "secret"), Code: CodeContradicts, Message: path + " has a secret without an HS algorithm"})
	case least > 0 && len(j.Secret.Reveal()) < least && j.Secret.Reveal() != mask:
		b.fault(Fault{Path: join(path, "secret"), Code: CodeRange, Message: fmt.Sprintf("%s is shorter than the %d bytes that the algorithm asks for (RFC 7518 section 3.2)", join(path, "secret"), least)})
	}
	switch {
	case j.JWKSURI != "":
		b.askedURL(join(path, "jwks_uri"), j.JWKSURI, j.Insecure)
	case sources == 0 && least == 0: // by the issuer's metadata
		if u, err := url.Parse(j.Issuer); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has none of jwks_file, jwks_uri and secret, and the issuer is no URL whose metadata could name them", Hint: "write jwks_uri: https://HOST/PATH"})
		} else {
			b.askedURL(join(path, "issuer"), j.Issuer, j.Insecure)
		}
	}
	b.checkTokenRules(path, j.TokenRules)
}

func (b *builder) checkTokenRules(path string, j TokenRules) {
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
	asks := a.Needs.count()
	for _, m := range a.ByMethod {
		asks += m.Needs.count()
	}
	switch {
	case methods == 0 && !a.Anonymous:
		b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has neither any_of nor all_of", Hint: "write any_of: [...], or anonymous: true to let everybody pass"})
	case asks > 0 && a.Anonymous:
		b.fault(Fault{Path: join(path, "anonymous"), Code: CodeContradicts, Message: path + " lets anonymous callers pass and asks for what they never have"})
	}
	b.checkNeeds(path, a.Needs)
	for i, m := range a.ByMethod {
		p := at(join(path, "by_method"), i)
		b.checkMethodNames(p, m.Methods)
		if m.Needs.count() == 0 && b.sound(p) {
			b.fault(Fault{Path: p, Code: CodeMissing, Message: p + " asks for nothing", Hint: "write scopes: [...], groups: [...], roles: [...], claims: [...] or consumers: [...]"})
		}
		b.checkNeeds(p, m.Needs)
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

// count returns how many things are asked for.
func (n Needs) count() int {
	return len(n.Consumers) + len(n.Groups) + len(n.Roles) + len(n.Scopes) + len(n.Claims)
}

func (b *builder) checkNeeds(path string, n Needs) {
	for _, list := range []struct {
		key   string
		names []string
	}{{"consumers", n.Consumers}, {"groups", n.Groups}, {"roles", n.Roles}, {"scopes", n.Scopes}} {
		for i, name := range list.names {
			b.identifier(at(join(path, list.key), i), name)
		}
	}
}

// checkMethodNames checks the HTTP methods of an entry of by_method.
func (b *builder) checkMethodNames(path string, methods []string) {
	for i, m := range methods {
		p := at(join(path, "methods"), i)
		b.method(p, m)
		if slices.Contains(methods[:i], m) {
			b.bad(p, m, CodeNameTwice, "is listed twice", "")
		}
	}
}

// checkIP checks the section of a policy or route. One that says nothing is a
// fault, since it would leave open what was to be closed.
func (b *builder) checkIP(path string, c *IP) {
	if c == nil {
		if b.written(path) && b.sound(path) {
			b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " is empty", Hint: "write allow: [10.0.0.0/8] or deny: [...]"})
		}
		return
	}
	if !b.sound(path) {
		return
	}
	if len(c.Allow)+len(c.Deny)+len(c.ByMethod) == 0 {
		b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has neither allow nor deny", Hint: "write allow: [10.0.0.0/8] or deny: [...]; 0.0.0.0/0 and ::/0 are all addresses"})
	}
	b.checkAddresses(path, c.Allow, c.Deny)
	taken := map[string]string{}
	for i, m := range c.ByMethod {
		p := at(join(path, "by_method"), i)
		b.checkMethodNames(p, m.Methods)
		for j, name := range m.Methods {
			b.taken(taken, at(join(p, "methods"), j), name, name)
		}
		if len(m.Allow)+len(m.Deny) == 0 && b.sound(p) {
			b.fault(Fault{Path: p, Code: CodeMissing, Message: p + " has neither allow nor deny", Hint: "write allow: [10.0.0.0/8] or deny: [...]"})
		}
		b.checkAddresses(p, m.Allow, m.Deny)
	}
}

func (b *builder) checkAddresses(path string, allow, deny []netip.Prefix) {
	for _, list := range []struct {
		key   string
		names []netip.Prefix
	}{{"allow", allow}, {"deny", deny}} {
		for i, n := range list.names {
			if slices.Contains(list.names[:i], n) {
				b.bad(at(join(path, list.key), i), n.String(), CodeNameTwice, "is listed twice", "")
			}
		}
	}
	for i, n := range allow {
		if j := slices.IndexFunc(deny, func(d netip.Prefix) bool { return d.Bits() <= n.Bits() && d.Contains(n.Addr()) }); j >= 0 && b.sound(path) {
			b.warn(at(join(path, "allow"), i), CodeNoEffect, fmt.Sprintf("%s %s has no effect: %s is denied", at(join(path, "allow"), i), n, deny[j]), "")
		}
	}
}

// checkDefault refuses routes that nobody has decided about where the
// configuration says default: deny.
func (b *builder) checkDefault(c *Config) {
	if c.Default != "deny" {
		return
	}
	for i, r := range c.Routes {
		if p := at("routes", i); c.Chain(r).Auth == nil && b.sound(p) && !b.written(join(p, "auth")) && !slices.ContainsFunc(r.Use, func(name string) bool { _, ok := c.Policy(name); return !ok }) {
			b.fault(Fault{Path: p, Code: CodeMissing, Message: b.label(p) + " has no auth, and the configuration says default: deny", Hint: "write auth: {any_of: [...]}, or auth: {anonymous: true} to let everybody pass"})
		}
	}
}
