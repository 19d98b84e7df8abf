package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// maxMetadata bounds an issuer's metadata.
const maxMetadata = 256 << 10

// discover returns where an issuer's keys are, by its own metadata (OpenID
// Connect Discovery 1.0 section 4). The document has to be the issuer's: one
// that names another could be anybody's.
func discover(ctx context.Context, client *http.Client, s source) (string, error) {
	at := strings.TrimSuffix(s.issuer, "/") + "/.well-known/openid-configuration"
	if err := secure(at, s.insecure); err != nil {
		return "", fmt.Errorf("discover keys: %w", err)
	}
	body, err := fetch(ctx, client, at, "application/json")
	if err != nil {
		return "", fmt.Errorf("discover keys: %w", err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxMetadata+1))
	if err != nil {
		return "", fmt.Errorf("discover keys: %w", err)
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	switch err := json.Unmarshal(text, &doc); {
	case len(text) > maxMetadata:
		return "", fmt.Errorf("discover keys: the metadata is more than %d bytes", maxMetadata)
	case err != nil:
		return "", errors.New("discover keys: the metadata is no JSON object")
	case doc.Issuer != s.issuer:
		return "", errors.New("discover keys: the metadata is of another issuer")
	case doc.JWKSURI == "":
		return "", errors.New("discover keys: the metadata names no jwks_uri")
	}
	if err := secure(doc.JWKSURI, s.insecure); err != nil {
		return "", fmt.Errorf("discover keys: jwks_uri: %w", err)
	}
	return doc.JWKSURI, nil
}

// secure refuses URLs by which others could answer instead: only https, or
// this machine, or what the configuration takes the risk of.
func secure(text string, insecure bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("not a URL of a document")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && (insecure || loopback(u.Hostname())):
		return nil
	}
	return errors.New("not https")
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.Unmap().IsLoopback()
}
