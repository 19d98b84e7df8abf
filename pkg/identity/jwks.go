package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Bounds of what an issuer can make the gateway hold or wait for.
const (
	maxJWKS      = 1 << 20
	maxKeys      = 100
	minRSABits   = 2048 // RFC 7518 section 3.3
	fetchTimeout = 5 * time.Second
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	fileInterval = 5 * time.Second
	maxHops      = 3 // redirects
)

// keyring is an issuer's keys at one time.
type keyring struct {
	digest digest // of the text that they were read from
	keys   []issuerKey
}

type issuerKey struct {
	id  string
	alg string // the only one that it may be used with; empty: any that fits
	key any
}

// find returns the keys that may have signed a token, and whether any has its
// id. Without an id every key that fits the algorithm is one, up to a bound:
// each costs a verification.
func (k *keyring) find(id, alg string) []issuerKey {
	const tries = 4
	var out []issuerKey
	for _, key := range k.keys {
		if (id == "" || key.id == id) && (key.alg == "" || key.alg == alg) && fits(key.key, alg) && len(out) < tries {
			out = append(out, key)
		}
	}
	return out
}

// fits reports whether an algorithm is for that kind of key. A public key is
// never one for HS.
func fits(key any, alg string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[alg] == k.Curve.Params().Name
	case ed25519.PublicKey:
		return alg == string(jose.EdDSA)
	}
	return false
}

// parseKeys reads a JWK set (RFC 7517 section 5). Keys that are not for
// verifying signatures, too weak or of a kind unknown here are left out, as
// the RFC asks; a set without any other is an error, never an empty set.
func parseKeys(text []byte) (*keyring, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, errors.New("not a JWK set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, and %d are the most", len(set.Keys), maxKeys)
	}
	ring := &keyring{digest: sha256.Sum256(text)}
	for _, raw := range set.Keys {
		var use struct {
			Use string   `json:"use"`
			Ops []string `json:"key_ops"`
		}
		var jwk jose.JSONWebKey
		if json.Unmarshal(raw, &use) != nil || json.Unmarshal(raw, &jwk) != nil || !jwk.Valid() {
			continue
		}
		if use.Use != "" && use.Use != "sig" || len(use.Ops) > 0 && !slices.Contains(use.Ops, "verify") && !slices.Contains(use.Ops, "sign") {
			continue
		}
		key := jwk.Key
		if !jwk.IsPublic() { // somebody published a private key, or it is a secret
			key = jwk.Public().Key
		}
		switch k := key.(type) {
		case *rsa.PublicKey:
			if k.N.BitLen() < minRSABits {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			continue
		}
		ring.keys = append(ring.keys, issuerKey{jwk.KeyID, jwk.Algorithm, key})
	}
	if len(ring.keys) == 0 {
		return nil, fmt.Errorf("none of %d keys is a public key for signatures", len(set.Keys))
	}
	return ring, nil
}

// source is where keys come from and how often: what makes two methods share
// one set.
type source struct {
	uri, file         string
	issuer            string // whose metadata names the URL of the keys; empty: it is uri
	insecure          bool   // without TLS, if need be
	refresh, cooldown time.Duration
}

// place is where the keys are, whatever the intervals.
func (s source) place() source { s.refresh, s.cooldown = 0, 0; return s }

func (s source) String() string { return cmp.Or(s.file, s.uri, s.issuer) }

// keySet is the keys of one issuer, which outlive a reload. Keys that were
// fetched once serve until others are, however long the issuer is away.
type keySet struct {
	source source
	log    *slog.Logger
	client *http.Client
	ring   atomic.Pointer[keyring] // nil before the first success

	mu       sync.Mutex
	inflight chan struct{} // closed at the end of the load that is under way; nil: none is
	waiting  int           // requests that wait for it
	next     time.Time     // when the background should load again
	tried    time.Time     // when the last load began
	failures int
	err      error
}

// maxWaiting bounds the requests that wait for a load: those with keys of
// their own making must not use up the listener's places while an issuer
// hangs.
const maxWaiting = 256

// load fetches the keys, unless somebody does already.
func (s *keySet) load(ctx context.Context) {
	s.mu.Lock()
	if s.inflight != nil {
		s.mu.Unlock()
		return
	}
	s.fetchLocked(ctx)
}

// demand is asked for a key that is not known. It loads the keys unless that
// was tried within the cooldown, whoever asks and how often, and waits for a
// load that is under way.
func (s *keySet) demand(ctx context.Context) {
	s.mu.Lock()
	under := s.inflight
	switch {
	case under == nil && time.Since(s.tried) < s.source.cooldown, under != nil && s.waiting >= maxWaiting:
		s.mu.Unlock()
	case under == nil:
		// Others wait for it too: it does not end with the client that began it.
		s.fetchLocked(context.WithoutCancel(ctx))
	default:
		s.waiting++
		s.mu.Unlock()
		select {
		case <-under:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}
}

// fetchLocked is called with mu held and without a load under way; it
// releases mu.
func (s *keySet) fetchLocked(ctx context.Context) {
	done := make(chan struct{})
	s.inflight, s.tried = done, time.Now()
	s.mu.Unlock()
	var ring *keyring
	err := errors.New("interrupted")
	defer func() {
		s.mu.Lock()
		s.inflight = nil
		s.settle(ring, err)
		s.mu.Unlock()
		close(done)
	}()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	ring, err = s.read(ctx)
}

// settle takes over what a load brought.
func (s *keySet) settle(ring *keyring, err error) {
	now := time.Now()
	if err != nil {
		s.failures++
		wait := min(maxBackoff, s.source.refresh, firstBackoff<<min(s.failures-1, 10))
		s.next = now.Add(jitter(wait))
		if s.err == nil { // the first of a row
			s.log.Warn("issuer's keys cannot be read, those that are known serve on", "source", s.source.String(), "known", s.known(), "err", err)
		}
		s.err = err
		return
	}
	if s.err != nil {
		s.log.Info("issuer's keys can be read again", "source", s.source.String(), "failures", s.failures)
	}
	s.failures, s.err = 0, nil
	s.next = now.Add(jitter(s.source.refresh))
	if old := s.ring.Load(); old == nil || old.digest != ring.digest {
		s.ring.Store(ring)
		s.log.Info("issuer's keys read", "source", s.source.String(), "keys", len(ring.keys))
	}
}

func (s *keySet) known() int {
	if ring := s.ring.Load(); ring != nil {
		return len(ring.keys)
	}
	return 0
}

// jitter keeps replicas from asking in step.
func jitter(d time.Duration) time.Duration {
	return d*9/10 + time.Duration(rand.Int64N(int64(d/5)+1))
}

func (s *keySet) read(ctx context.Context) (*keyring, error) {
	if s.source.file != "" {
		f, err := os.Open(s.source.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readKeys(f)
	}
	uri := s.source.uri
	if s.source.issuer != "" {
		var err error
		if uri, err = discover(ctx, s.client, s.source); err != nil {
			return nil, err
		}
	}
	body, err := fetch(ctx, s.client, uri, "application/jwk-set+json, application/json")
	if err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer body.Close()
	return readKeys(body)
}

// fetch returns the body of an issuer's document.
func fetch(ctx context.Context, client *http.Client, uri, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("the issuer answers %d", resp.StatusCode)
	}
	return resp.Body, nil
}

func readKeys(r io.Reader) (*keyring, error) {
	var text bytes.Buffer
	if n, err := text.ReadFrom(io.LimitReader(r, maxJWKS+1)); err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	} else if n > maxJWKS {
		return nil, fmt.Errorf("read keys: more than %d bytes", maxJWKS)
	}
	ring, err := parseKeys(text.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return ring, nil
}

// Keys are the keys of all issuers, and what else is known of credentials that
// costs to find out again. They outlive every configuration, so that a reload
// while an issuer is away costs none. Keys are safe for concurrent use.
type Keys struct {
	log       *slog.Logger
	client    *http.Client
	change    chan struct{}
	passwords *passwords

	mu    sync.Mutex
	live  []*keySet
	desks []*desk

	circuits map[string]*circuit // by what is asked; as many as configurations have named
}

// NewKeys returns keys that are fetched by transport; nil: one of their own,
// with bounds on every phase. It fetches nothing.
func NewKeys(log *slog.Logger, transport http.RoundTripper) *Keys {
	if transport == nil {
		transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSHandshakeTimeout:    fetchTimeout,
			ResponseHeaderTimeout:  fetchTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        30 * time.Second,
			ForceAttemptHTTP2:      true,
		}
	}
	return &Keys{
		log: log, change: make(chan struct{}, 1), passwords: newPasswords(), circuits: map[string]*circuit{},
		client: &http.Client{Transport: transport, Timeout: fetchTimeout, CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxHops {
				return errors.New("too many redirects")
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("a redirect leaves https")
			}
			return nil
		}},
	}
}

// set returns the set of that source among pending and the live ones, or a new
// one that begins with the keys that another of the same place has. A file is read at once, so that a
// configuration with a bad one is refused.
func (k *Keys) set(src source, pending []*keySet) (*keySet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fresh := &keySet{source: src, log: k.log, client: k.client}
	for _, s := range slices.Concat(pending, k.live) {
		if s.source == src {
			return s, nil
		}
		if s.source.place() == src.place() {
			fresh.ring.Store(s.ring.Load())
		}
	}
	if src.file != "" {
		ring, err := fresh.read(context.Background())
		if err != nil {
			return nil, err
		}
		fresh.ring.Store(ring)
	}
	return fresh, nil
}

// Use makes the sets of d those that Run keeps fresh; none for a nil d.
func (k *Keys) Use(d *Directory) {
	k.mu.Lock()
	k.live, k.desks = nil, nil
	if d != nil {
		k.live, k.desks = d.sets, d.desks
	}
	k.mu.Unlock()
	select {
	case k.change <- struct{}{}:
	default:
	}
}

// Run keeps the keys of all sets in use fresh until ctx ends: each is read at
// once, again after its interval, and after a failure with growing pauses.
// What was read before serves meanwhile.
func (k *Keys) Run(ctx context.Context) error {
	var loads sync.WaitGroup
	defer loads.Wait()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		k.mu.Lock()
		live := k.live
		k.mu.Unlock()
		for _, s := range live {
			if s.due() {
				loads.Go(func() { s.load(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			k.client.CloseIdleConnections()
			return nil
		case <-k.change:
		case <-ticker.C:
		}
	}
}

func (s *keySet) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inflight == nil && !time.Now().Before(s.next)
}
