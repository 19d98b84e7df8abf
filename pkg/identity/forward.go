package identity

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/config"
)

// Origin is what a request does not say of itself: where it comes from, to
// which listener, and by which scheme and for which host, after trusted proxies.
type Origin struct {
	Client       netip.Addr
	Listener     string // its name
	Scheme, Host string
}

// Placed is a Method that has to know where a request comes from; it is asked
// by IdentifyFrom instead of Identify.
type Placed interface {
	IdentifyFrom(r *http.Request, from Origin) (*Identity, error)
}

// Asks reports whether a method leaves the decision about the whole request to
// somebody else.
func Asks(m Method) bool { _, ok := m.(*forwardMethod); return ok }

// Answered is a refusal that somebody else has worded: the client gets it as it
// is.
type Answered struct {
	Status int
	Header http.Header
	Body   []byte
}

func (e *Answered) Error() string { return fmt.Sprintf("the service answers %d", e.Status) }

// passedOn are the fields of such an answer that the client gets.
var passedOn = [...]string{"Location", "Set-Cookie", "Www-Authenticate", "Content-Type", "Content-Language", "Cache-Control", "Vary"}

// forwardMethod leaves it to a service of the operator's to say who calls.
type forwardMethod struct {
	name    string
	c       config.ForwardAuthMethod
	url     string
	client  http.RoundTripper
	circuit *circuit
	people  *people
	control control
}

// controlFor is how long the answer to a control question is believed.
const controlFor = 200 * time.Millisecond

// control is what a service said last when it was asked with nothing of a
// client's.
type control struct {
	mu      sync.Mutex // one question at a time; whoever waits takes its answer
	at      time.Time
	answers bool
}

// brokeOff is a question whose connection ended before an answer came.
type brokeOff struct{ err error }

func (e *brokeOff) Error() string { return e.err.Error() }
func (e *brokeOff) Unwrap() error { return e.err }

var errThisOne = errors.New("the service breaks this request off, and answers others")

func newForward(name string, c config.ForwardAuthMethod, people *people, keys *Keys, via Via) (*forwardMethod, error) {
	at, client, err := destination(c.URL, c.Service, c.Path, keys, via)
	if err != nil {
		return nil, err
	}
	return &forwardMethod{name: name, c: c, url: at, client: client, circuit: keys.circuit(cmp.Or(c.Service, c.URL)), people: people}, nil
}

func (m *forwardMethod) Name() string { return m.name }

func (m *forwardMethod) Identify(r *http.Request) (*Identity, error) {
	return m.IdentifyFrom(r, Origin{Scheme: "http", Host: r.Host})
}

// IdentifyFrom implements Placed.
func (m *forwardMethod) IdentifyFrom(r *http.Request, from Origin) (*Identity, error) {
	if dry(r.Context()) {
		return nil, ErrNotAsked
	}
	id, err := m.ask(r, from)
	var bad *declined
	if err != nil && errors.Is(err, ErrUnavailable) && !errors.As(err, &bad) && !errors.Is(err, errThisOne) && m.c.OnError == "open" && r.Context().Err() == nil {
		return (&Identity{Unchecked: true}).sealed(), nil
	}
	return id, err
}

// ask asks the service, unless it has failed often of late.
func (m *forwardMethod) ask(r *http.Request, from Origin) (*Identity, error) {
	if !m.circuit.enter(time.Now()) {
		return nil, fmt.Errorf("%w: the service has failed and is given time", ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(r.Context(), m.c.Timeout)
	defer cancel()
	id, err := m.exchange(ctx, r, from)
	// What the service says of this one request is not its failure: a client
	// that has it refused must neither pass nor close the door for others.
	var answered *Answered
	var no *Refused
	var bad *declined
	var broken *brokeOff
	switch {
	case err == nil, errors.As(err, &answered), errors.As(err, &no):
		m.circuit.leave(time.Now(), nil, false)
		return id, err
	case errors.As(err, &bad) && bad.later():
		m.circuit.leave(time.Now(), nil, true)
	case bad != nil:
		m.circuit.leave(time.Now(), nil, false)
		return nil, fmt.Errorf("forward_auth: %w", bad)
	case errors.As(err, &broken) && r.Context().Err() == nil && m.answersOthers(r.Context()):
		m.circuit.leave(time.Now(), nil, true)
		err = fmt.Errorf("%w: %w", errThisOne, err)
	default:
		m.circuit.leave(time.Now(), err, r.Context().Err() != nil)
	}
	return nil, fmt.Errorf("%w: forward_auth: %w", ErrUnavailable, err)
}

// answersOthers reports whether the service answers a question that has nothing
// of a client's, with whatever status: a request that it dies of must not make
// it look away, which would close the door for others, or open it.
func (m *forwardMethod) answersOthers(ctx context.Context) bool {
	m.control.mu.Lock()
	defer m.control.mu.Unlock()
	if time.Since(m.control.at) < controlFor {
		return m.control.answers
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.c.Timeout) // others wait for it too
	defer cancel()
	m.control.answers = false
	if req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil); err == nil {
		req.Header.Set("User-Agent", "proconsul")
		if resp, err := m.client.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			m.control.answers = true // whatever it says: what fails for others too is counted where they ask
		}
	}
	m.control.at = time.Now()
	return m.control.answers
}

func (m *forwardMethod) exchange(ctx context.Context, r *http.Request, from Origin) (*Identity, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
	if err != nil {
		return nil, err
	}
	for _, name := range m.c.RequestHeaders {
		if values, ok := r.Header[name]; ok {
			req.Header[name] = values
		}
	}
	req.Header.Set("User-Agent", "proconsul")
	if id, ok := r.Header["X-Request-Id"]; ok {
		req.Header["X-Request-Id"] = id
	}
	req.Header.Set("X-Forwarded-Method", r.Method)
	req.Header.Set("X-Forwarded-Uri", r.URL.RequestURI())
	req.Header.Set("X-Forwarded-Host", from.Host)
	req.Header.Set("X-Forwarded-Proto", from.Scheme)
	if from.Client.IsValid() {
		req.Header.Set("X-Forwarded-For", from.Client.String())
	}
	resp, err := m.client.RoundTrip(req)
	switch {
	case err != nil && ctx.Err() == nil:
		return nil, &brokeOff{err}
	case err != nil:
		return nil, err
	}
	defer resp.Body.Close()
	code := resp.StatusCode
	if code < 200 || code > 499 {
		return nil, fmt.Errorf("the service answers %d", code)
	}
	// The status has said it, however long the body is and wherever it breaks
	// off: half of one says less than none.
	var body bytes.Buffer
	if n, err := body.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1)); err != nil || n > maxAnswer {
		body.Reset()
	}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		a := &Answered{Status: code, Header: http.Header{}, Body: body.Bytes()}
		for _, name := range passedOn {
			if values, ok := resp.Header[name]; ok {
				a.Header[name] = values
			}
		}
		return nil, a
	}
	if code > 299 {
		return nil, &declined{code}
	}
	return m.identity(resp.Header)
}

// identity reads who calls from the service's answer. The service is the
// operator's own: it may name a consumer of the configuration, who then has
// what that one has.
func (m *forwardMethod) identity(h http.Header) (*Identity, error) {
	id := &Identity{}
	if m.c.ConsumerHeader != "" {
		id.Consumer = h.Get(m.c.ConsumerHeader)
		if len(id.Consumer) > maxName || !printable(id.Consumer) {
			return nil, refused("the authentication service names the caller by a name that is none")
		}
		if known := m.people.Load().names[id.Consumer]; known != nil {
			id.Groups, id.Roles = known.Groups, known.Roles
		}
	}
	if m.c.GroupsHeader != "" {
		var groups []any
		for _, line := range h[m.c.GroupsHeader] {
			for g := range strings.SplitSeq(line, ",") {
				groups = append(groups, strings.TrimSpace(g))
			}
		}
		id.Groups = union(id.Groups, groupsOf(groups))
	}
	id.sealed()
	var told []field
	for _, name := range m.c.ResponseHeaders {
		if values, ok := h[name]; ok {
			told = append(told, field{name, values})
		}
	}
	id.tells(told)
	return id, nil
}

// Challenge implements Method: what a service asks for is not known.
func (m *forwardMethod) Challenge(string, error) string { return "" }

// Strip implements Method: what the service has read may be for instances too,
// and it says what they get.
func (m *forwardMethod) Strip(*http.Request) {}

// circuit returns the circuit of what is asked at a place.
func (k *Keys) circuit(where string) *circuit {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.circuits[where]
	if c == nil {
		c = &circuit{log: k.log, what: "authentication service", where: where}
		k.circuits[where] = c
	}
	return c
}

// Owned are the header fields that only the answers of services set, so that
// they are taken out of every request, whatever route it is for.
type Owned []string

// Owned returns those of a configuration's methods. A nil Directory has none.
func (d *Directory) Owned() Owned {
	if d == nil {
		return nil
	}
	names := map[string]bool{}
	for _, m := range d.methods {
		if f, ok := m.(*forwardMethod); ok {
			for _, name := range f.c.ResponseHeaders {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Strip takes the fields out of a header, in whatever spelling: many frameworks
// take Remote_User for Remote-User.
func (o Owned) Strip(h http.Header) {
	for name := range h {
		if slices.ContainsFunc(o, func(own string) bool { return sameField(own, name) }) {
			delete(h, name)
		}
	}
}

func sameField(own, name string) bool {
	if len(own) != len(name) {
		return false
	}
	for i := range len(own) {
		a, b := own[i], name[i]
		if a|0x20 != b|0x20 && !(a == '-' && b == '_') && !(a == '_' && b == '-') {
			return false
		}
	}
	return true
}
