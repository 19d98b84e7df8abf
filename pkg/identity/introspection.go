package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
)

// Bounds of what an authorisation server, and those who send tokens for it, can
// make the gateway hold or wait for.
const (
	answersKept  = 8192 // of active tokens; of others as many again
	maxAnswer    = 64 << 10
	maxAskedOnce = 64 // tokens that are asked about at once
	asksWaiting  = 1024
)

// introspectionMethod knows callers by a token that its issuer is asked about
// (RFC 7662).
type introspectionMethod struct {
	rules
	desk     *desk
	client   http.RoundTripper
	verified *cache[digest, *vouched] // by the hash of the whole token
}

// vouched is a token that the server called active, and whose it is among the
// consumers of known.
type vouched struct {
	identity *Identity
	known    *roster
}

// counter is what makes two methods share one desk.
type counter struct {
	url, service   string
	clientID       string
	secret         digest
	post           bool
	timeout        time.Duration
	positive, zero time.Duration // how long answers are kept: of active tokens, of others
}

// desk asks one server about tokens and remembers what it said. It outlives a
// reload.
type desk struct {
	counter
	authorization string // of the client; empty: it goes with the form
	form          url.Values
	log           *slog.Logger
	circuit       circuit

	active   *cache[digest, *verdict]
	inactive *cache[digest, struct{}]

	mu      sync.Mutex
	asking  map[digest]*question
	waiting int
}

// verdict is what a server said of an active token.
type verdict struct {
	claims map[string]any
	until  time.Time // that it is believed
}

// question is one that is under way.
type question struct {
	done    chan struct{}
	verdict *verdict // nil, without err: the token is not active
	err     error
}

func newIntrospection(c config.IntrospectionMethod, r rules, keys *Keys, pending []*desk, via Via) (*introspectionMethod, error) {
	m := &introspectionMethod{rules: r, verified: newCache[digest, *vouched](tokensKept)}
	at, client, err := destination(c.URL, c.Service, c.Path, keys, via)
	if err != nil {
		return nil, err
	}
	m.client = client
	m.desk = keys.desk(counter{
		url: at, service: c.Service, clientID: c.ClientID, secret: sha256.Sum256([]byte(c.ClientSecret.Reveal())), post: c.ClientAuth == "post",
		timeout: c.Timeout, positive: c.CacheTTL, zero: c.NegativeTTL,
	}, c.ClientSecret.Reveal(), pending)
	return m, nil
}

// destination returns the URL of what a method asks, and the way there.
func destination(at, service, path string, keys *Keys, via Via) (string, http.RoundTripper, error) {
	if service == "" {
		return at, keys.client.Transport, nil
	}
	if via == nil {
		return "", nil, fmt.Errorf("there is no way to the service %s", service)
	}
	client, err := via(service)
	return (&url.URL{Scheme: "http", Host: "service", Path: path}).String(), client, err // the way knows scheme and address
}

// desk returns the desk of that server among pending and the live ones, or a
// new one.
func (k *Keys) desk(c counter, secret string, pending []*desk) *desk {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, list := range [][]*desk{pending, k.desks} {
		for _, d := range list {
			if d.counter == c {
				return d
			}
		}
	}
	d := &desk{
		counter: c, log: k.log, form: url.Values{}, asking: map[digest]*question{},
		active: newCache[digest, *verdict](answersKept), inactive: newCache[digest, struct{}](answersKept),
		circuit: circuit{log: k.log, what: "authorisation server", where: cmp.Or(c.service, c.url)},
	}
	if c.post {
		d.form.Set("client_id", c.clientID)
		d.form.Set("client_secret", secret)
	} else {
		// RFC 6749 section 2.3.1: each is escaped as in a form.
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(url.QueryEscape(c.clientID), url.QueryEscape(secret))
		d.authorization = r.Header.Get("Authorization")
	}
	return d
}

func (m *introspectionMethod) Name() string { return m.name }

func (m *introspectionMethod) Identify(r *http.Request) (*Identity, error) {
	token, err := credentials(r, "Bearer")
	if err != nil {
		return nil, err
	}
	if len(token) > int(m.c.MaxTokenBytes) {
		return nil, malformed("the token is too long")
	}
	now := time.Now()
	sum := digestOf(token)
	known := m.people.Load()
	if v, ok := m.verified.get(sum, now); ok && v.known == known {
		return v.identity, nil
	}
	if !tokenText(token) {
		return nil, malformed("the token has characters that no token has")
	}
	answer, err := m.desk.ask(r.Context(), m.client, token, sum, now)
	if err != nil {
		return nil, err
	}
	id, expires, err := m.accept(answer.claims, known, now)
	if err != nil {
		return nil, err
	}
	if expires.IsZero() || answer.until.Before(expires) {
		expires = answer.until
	}
	m.verified.put(sum, &vouched{id, known}, expires, now)
	return id, nil
}

// tokenText reports whether a text is a bearer token as RFC 6750 section 2.1
// has it.
func tokenText(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~+/=", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func (m *introspectionMethod) Challenge(realm string, err error) string { return challenge(realm, err) }

func (m *introspectionMethod) Strip(r *http.Request) { delete(r.Header, "Authorization") }

var errInactive = &Refused{Why: "the token is not active"}

// ask returns what the server says of a token, or said a while ago. However
// many requests bring the same token, one question is under way.
func (d *desk) ask(ctx context.Context, client http.RoundTripper, token string, sum digest, now time.Time) (*verdict, error) {
	if v, ok := d.active.get(sum, now); ok {
		return v, nil
	}
	if _, ok := d.inactive.get(sum, now); ok {
		return nil, errInactive
	}
	if dry(ctx) {
		return nil, ErrNotAsked
	}
	d.mu.Lock()
	if q := d.asking[sum]; q != nil {
		return d.wait(ctx, q)
	}
	if len(d.asking) >= maxAskedOnce {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: %d tokens are asked about already", ErrUnavailable, maxAskedOnce)
	}
	if !d.circuit.enter(now) {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: the server has failed and is given time", ErrUnavailable)
	}
	q := &question{done: make(chan struct{}), err: fmt.Errorf("%w: interrupted", ErrUnavailable)}
	d.asking[sum] = q
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.asking, sum)
		d.mu.Unlock()
		close(q.done)
	}()
	// Others wait for it too: it does not end with the client that began it.
	q.verdict, q.err = d.inquire(context.WithoutCancel(ctx), client, token, sum)
	return q.result()
}

// wait is called with mu held, and releases it.
func (d *desk) wait(ctx context.Context, q *question) (*verdict, error) {
	if d.waiting >= asksWaiting {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: too many requests wait for the server", ErrUnavailable)
	}
	d.waiting++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.waiting--
		d.mu.Unlock()
	}()
	select {
	case <-q.done:
		return q.result()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

func (q *question) result() (*verdict, error) {
	switch {
	case q.err != nil:
		return nil, q.err
	case q.verdict == nil:
		return nil, errInactive
	}
	return q.verdict, nil
}

// inquire asks the server and remembers what it says.
func (d *desk) inquire(ctx context.Context, client http.RoundTripper, token string, sum digest) (*verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	claims, err := d.send(ctx, client, token)
	now := time.Now()
	if err != nil {
		failure := err
		if bad := (*declined)(nil); errors.As(err, &bad) {
			failure = nil
		}
		d.circuit.leave(now, failure, false)
		return nil, fmt.Errorf("%w: introspection: %w", ErrUnavailable, err)
	}
	d.circuit.leave(now, nil, false)
	if active, _ := claims["active"].(bool); !active {
		d.inactive.put(sum, struct{}{}, now.Add(d.zero), now)
		return nil, nil
	}
	v := &verdict{claims: claims, until: now.Add(d.positive)}
	if exp, has, ok := date(claims["exp"]); has && ok && exp.Before(v.until) {
		v.until = exp
	}
	d.active.put(sum, v, v.until, now)
	return v, nil
}

// declined is an answer to one question that says nothing of the server's
// state: whoever sends tokens must not be able to make it look ill.
type declined struct{ status int }

func (e *declined) Error() string { return fmt.Sprintf("the server answers %d", e.status) }

// later reports whether the same question may be answered another time.
func (e *declined) later() bool {
	return e.status == http.StatusRequestTimeout || e.status == http.StatusTooManyRequests
}

// send makes one request of RFC 7662 section 2.1.
func (d *desk) send(ctx context.Context, client http.RoundTripper, token string) (map[string]any, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	for name, values := range d.form {
		form[name] = values
	}
	body := form.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "proconsul")
	if d.authorization != "" {
		req.Header.Set("Authorization", d.authorization)
	}
	// No http.Client: it would follow a redirect with the token.
	resp, err := client.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusBadRequest, code == http.StatusRequestEntityTooLarge, code == http.StatusRequestURITooLong, code == http.StatusUnprocessableEntity:
		return nil, &declined{code}
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return nil, fmt.Errorf("the server answers %d: does it know client_id, and is client_secret right?", code)
	case code != http.StatusOK:
		return nil, fmt.Errorf("the server answers %d", code)
	}
	var text bytes.Buffer
	if n, err := text.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
		return nil, err
	} else if n > maxAnswer {
		return nil, fmt.Errorf("the answer is more than %d bytes", maxAnswer)
	}
	claims, ok := readClaims(text.Bytes())
	if !ok {
		return nil, errors.New("the answer is no JSON object")
	}
	if _, ok := claims["active"].(bool); !ok {
		return nil, errors.New("the answer does not say whether the token is active")
	}
	return claims, nil
}
