package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Role is what a caller may do. An operator may do what a viewer may.
type Role string

// The roles of callers. roleAnyone asks for none.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	roleAnyone   Role = ""
)

func (r Role) covers(need Role) bool {
	return need == roleAnyone || r == need || r == RoleOperator
}

// Token is a bearer token, who has it and what it allows.
type Token struct {
	Name  string // the actor in logs and events
	Role  Role
	Value string
}

type hashedToken struct {
	name string
	role Role
	sum  [sha256.Size]byte
}

func hashTokens(tokens []Token) []hashedToken {
	var out []hashedToken
	for _, t := range tokens {
		if t.Value != "" { // an empty secret opens nothing
			out = append(out, hashedToken{t.Name, t.Role, sha256.Sum256([]byte(t.Value))})
		}
	}
	return out
}

// Holder says whose a client certificate is that the listener has verified, and
// what it allows; an empty role: nothing.
type Holder func(leaf *x509.Certificate) (name string, role Role)

// SetClients says anew what certificates allow.
func (a *Admin) SetClients(of Holder) { a.clients.Store(&of) }

// SetTokens says anew who may do what. Who follows the stream by a token that is
// gone is let go.
func (a *Admin) SetTokens(tokens []Token) {
	hashed := hashTokens(tokens)
	a.tokens.Store(&hashed)
}

// CheckExposure returns an error where a listener on addr would let anyone on
// the network in: its address is not loopback, it knows nobody by a token or a
// certificate, and the operator did not say that this is meant.
func CheckExposure(addr string, tokens []Token, clients, insecure bool) error {
	if insecure || clients || len(hashTokens(tokens)) > 0 || addr == "" || strings.HasPrefix(addr, "unix:") {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	if isLoopback(host) {
		return nil
	}
	return fmt.Errorf("admin listener on %s can be reached from other machines and nobody has a token: set admin.tokens, listen on 127.0.0.1, or set admin.insecure: true", addr)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// actorKey is under which guard keeps the caller's name in the context.
type actorKey struct{}

func actorOf(r *http.Request) string {
	name, _ := r.Context().Value(actorKey{}).(string)
	return name
}

// guard lets through what the role allows, and refuses what a browser was
// tricked into sending.
func (a *Admin) guard(need Role, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := a.cross.Check(r); err != nil {
			writeProblem(w, r, http.StatusForbidden, "cross_origin", "Requests from other web sites are refused", "")
			return
		}
		role, actor := a.roleOf(r)
		if actor == "" && need != roleAnyone && !a.knownHost(r) {
			// Only callers without a credential depend on where they come from.
			writeProblem(w, r, http.StatusMisdirectedRequest, "unknown_host", "This listener is not known by that name",
				"Use its address or localhost, or send a token.")
			return
		}
		if !role.covers(need) {
			a.refuse(w, r, role, need)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, bodyLimit(r))
		if actor == "" {
			actor = "anonymous"
		}
		h(w, r.WithContext(context.WithValue(r.Context(), actorKey{}, actor)))
	})
}

func (a *Admin) refuse(w http.ResponseWriter, r *http.Request, have, need Role) {
	if a.tells.allow(time.Now()) {
		a.o.Log.Warn("admin request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "needs", string(need))
	}
	switch {
	case have != roleAnyone && r.Header.Get("Authorization") != "":
		writeProblem(w, r, http.StatusForbidden, "forbidden", "The token does not allow this", "It needs the role "+string(need)+".")
		return
	case r.Header.Get("Authorization") == "" && shown(r) != nil:
		writeProblem(w, r, http.StatusForbidden, "forbidden", "The client certificate does not allow this", "It needs the role "+string(need)+" by admin.clients, or a token.")
		return
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="proconsul admin"`)
	writeProblem(w, r, http.StatusUnauthorized, "unauthenticated", "A token is needed",
		"Send Authorization: Bearer TOKEN with a token of the role "+string(need)+".")
}

// roleOf returns what the caller may do, and its name where it sent a token or
// showed a certificate; where both, the token decides. A wrong one is no better
// than none: it is refused even on loopback, so that a mistake shows.
func (a *Admin) roleOf(r *http.Request) (Role, string) {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, value, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return roleAnyone, ""
		}
		sum := sha256.Sum256([]byte(strings.TrimSpace(value)))
		var found *hashedToken
		tokens := *a.tokens.Load()
		for i := range tokens { // all of them, so that time tells nothing
			if subtle.ConstantTimeCompare(sum[:], tokens[i].sum[:]) == 1 {
				found = &tokens[i]
			}
		}
		if found == nil {
			return roleAnyone, ""
		}
		return found.role, found.name
	}
	if leaf := shown(r); leaf != nil {
		name, role := (*a.clients.Load())(leaf)
		return role, name
	}
	if a.o.Insecure || fromLoopback(r) {
		return RoleViewer, ""
	}
	return roleAnyone, ""
}

// shown returns the client certificate that the connection was opened with and
// the listener has verified; nil: none.
func shown(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// viewer reports whether the caller may read, for answers that show more to
// those who may.
func (a *Admin) viewer(r *http.Request) bool {
	role, actor := a.roleOf(r)
	return role.covers(RoleViewer) && (actor != "" || a.knownHost(r))
}

// fromLoopback reports whether the caller itself is on this host. A proxy on
// this host that passes on others' requests says so in its headers.
func fromLoopback(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"} {
		if len(r.Header[name]) > 0 {
			return false
		}
	}
	if overSocket(r) {
		return true // which the file system guards
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return err == nil && isLoopback(host)
}

// overSocket reports whether the caller came by a unix socket.
func overSocket(r *http.Request) bool {
	return r.RemoteAddr == "" || r.RemoteAddr == "@" || strings.HasPrefix(r.RemoteAddr, "/")
}

// knownHost reports whether a browser may have reached this listener by that
// name in good faith. An attacker can point a domain of theirs at a loopback
// address, but can neither own an address, nor localhost, nor, in the
// networks in which admin.insecure makes sense, a name without a dot. No browser
// reaches a socket, which has no name.
func (a *Admin) knownHost(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || overSocket(r) {
		return true
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(a.o.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) ||
		a.o.Insecure && host != "" && !strings.Contains(host, ".")
}

// throttle lets one through a second.
type throttle struct{ last atomic.Int64 }

func (t *throttle) allow(now time.Time) bool {
	last := t.last.Load()
	return now.UnixNano()-last >= int64(time.Second) && t.last.CompareAndSwap(last, now.UnixNano())
}
