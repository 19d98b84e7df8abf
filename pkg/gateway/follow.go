package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
)

// TraceHeader is the field by which a request shows the ticket that has it
// followed. It is taken out of every request, whoever sent it.
const TraceHeader = "X-Proconsul-Trace"

// Bounds of what is followed: so many at once, and a ticket is good for so
// long.
const (
	maxTickets  = 16
	ticketLasts = 10 * time.Second
)

// ErrBusy says that as many requests are followed as may be at once.
var ErrBusy = errors.New("as many requests are traced as may be at once")

// tickets are good for one request each. Whoever wants one forged needs the
// key, which is this process's own and leaves it nowhere.
type tickets struct {
	key [32]byte

	mu   sync.Mutex
	open map[ticketID]*Ticket
}

type ticketID [16]byte

// Ticket has one request followed.
type Ticket struct {
	Token string // what TraceHeader has to say

	id   ticketID
	all  *tickets
	peer netip.Addr // who the request is taken to come from; zero: who sends it
	done chan struct{}
	seen Followed
}

// Followed is the course of a request.
type Followed struct {
	Method, Scheme, Host string
	Path                 string // canonical, as matching saw it; empty where it was refused
	Client               netip.Addr
	Trusted              bool
	RequestID            string
	Trace                *middleware.Trace // nil: no tracing

	Route    *Route         // nil: none matched
	Steps    []FollowedStep // outermost first, as far as the request got
	Attempts []middleware.Attempt

	Upstream, Consumer, RateLimit, Cache string

	Status            int
	Reason            problem.Reason // of an answer that the gateway made itself; empty: it did not
	BytesIn, BytesOut int64
	FirstByte         time.Duration
	Took              time.Duration
	Broken            bool // the answer has begun and was not finished
}

// FollowedStep is one step of the route's chain, the last being what stands at
// its end.
type FollowedStep struct {
	Name   string
	Passed bool          // the request went on to the next step
	Before time.Duration // what the step took before the request went on, or in all
	After  time.Duration // and when the answer came back
}

func newTickets() *tickets {
	t := &tickets{open: map[ticketID]*Ticket{}}
	_, _ = rand.Read(t.key[:]) // never fails, see crypto/rand
	return t
}

// Ticket returns a ticket for one request with that method, Host and target,
// within a few seconds. peer is who the request is taken to come from; zero:
// who sends it. Close has to follow.
func (h *Handler) Ticket(method, host, target string, peer netip.Addr) (*Ticket, error) {
	t := &Ticket{all: h.tickets, peer: peer, done: make(chan struct{})}
	_, _ = rand.Read(t.id[:]) // never fails, see crypto/rand
	h.tickets.mu.Lock()
	defer h.tickets.mu.Unlock()
	if len(h.tickets.open) >= maxTickets {
		return nil, ErrBusy
	}
	h.tickets.open[t.id] = t
	b := binary.BigEndian.AppendUint64(t.id[:], uint64(time.Now().Add(ticketLasts).UnixNano()))
	t.Token = base64.RawURLEncoding.EncodeToString(append(b, h.tickets.sign(b, method, host, target)...))
	return t, nil
}

// sign binds what a ticket says to the request that it is for.
func (ts *tickets) sign(what []byte, parts ...string) []byte {
	mac := hmac.New(sha256.New, ts.key[:])
	mac.Write(what)
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		mac.Write(n[:])
		mac.Write([]byte(p))
	}
	return mac.Sum(nil)
}

// redeem takes the field out of a request and returns the ticket that it
// shows; nil: none that is good for this request, now and for the first time.
func (ts *tickets) redeem(r *http.Request) *Ticket {
	field := r.Header[TraceHeader]
	delete(r.Header, TraceHeader)
	const signed = len(ticketID{}) + 8
	if len(field) != 1 || len(field[0]) != base64.RawURLEncoding.EncodedLen(signed+sha256.Size) {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(field[0])
	if err != nil || !hmac.Equal(b[signed:], ts.sign(b[:signed], r.Method, r.Host, r.RequestURI)) ||
		time.Now().UnixNano() > int64(binary.BigEndian.Uint64(b[signed-8:signed])) {
		return nil
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.open[ticketID(b)]
	delete(ts.open, ticketID(b))
	if t != nil && t.peer.IsValid() {
		r.RemoteAddr = netip.AddrPortFrom(t.peer, 50_000).String()
	}
	return t
}

// Close takes the ticket back if it was not used.
func (t *Ticket) Close() {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	delete(t.all.open, t.id)
}

// Done is closed when the request has ended.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Followed returns the course of the request. It may be called once Done is
// closed.
func (t *Ticket) Followed() Followed { return t.seen }

// follow serves a request by its ticket.
func (l *listener) follow(t *Ticket, ex *middleware.Exchange, r *http.Request) {
	ex.Followed = true
	f := &t.seen
	f.Method = r.Method
	returned := false
	defer func() {
		f.Scheme, f.Host, f.Path, f.Client, f.Trusted = ex.Scheme, ex.Host, ex.Path, ex.ClientIP, ex.Trusted
		f.RequestID, f.Trace = ex.RequestID, ex.Trace
		f.Upstream, f.Consumer, f.RateLimit, f.Cache = ex.Upstream, ex.Consumer, ex.RateLimit, ex.Cache
		f.Attempts = slices.Clone(ex.Attempts)
		f.Status, f.Reason, f.BytesIn, f.BytesOut = ex.Told(returned), ex.Reason, ex.BytesIn, ex.Bytes
		f.FirstByte, f.Took, f.Broken = ex.FirstByte, time.Since(ex.Start), !returned
		close(t.done)
	}()
	l.serve(ex, r, f)
	returned = true
}

// followed returns a route's chain with a mark between each two of its steps.
// It is made for this request: no other pays for it.
func (t *Table) followed(rt *Route, f *Followed) http.Handler {
	f.Route = rt
	last, err := destination(&rt.Config, t.deps)
	if err != nil { // Build has made it before
		return t.front
	}
	name := "proxy"
	if rt.Config.Redirect != nil {
		name = "redirect"
	}
	var entered, left []time.Time
	mark := func(name string, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			i := len(entered)
			f.Steps = append(f.Steps, FollowedStep{Name: name})
			entered, left = append(entered, time.Now()), append(left, time.Time{})
			defer func() {
				left[i] = time.Now()
				s := &f.Steps[i]
				if s.Passed = i+1 < len(entered); s.Passed {
					s.Before, s.After = entered[i+1].Sub(entered[i]), left[i].Sub(left[i+1])
				} else {
					s.Before = left[i].Sub(entered[i])
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	h, err := rt.input(t.deps).wrap(mark(name, last), steps(), mark)
	if err != nil {
		return t.front
	}
	return h
}
