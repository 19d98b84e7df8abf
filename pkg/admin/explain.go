package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// ExplainRequest is a request that is to be explained and not sent.
type ExplainRequest struct {
	Method   string   `json:"method,omitempty"`    // empty: GET
	URL      string   `json:"url"`                 // absolute, or a path
	Headers  []string `json:"headers,omitempty"`   // "Name: value"
	ClientIP string   `json:"client_ip,omitempty"` // who connects; empty: 127.0.0.1
	Listener string   `json:"listener,omitempty"`  // by name; empty: the first
}

// Explanation is what the gateway would do with a request. Nothing was done.
type Explanation struct {
	Request    Explained    `json:"request"`
	Outcome    Outcome      `json:"outcome"`
	Route      *Matched     `json:"route,omitempty"` // absent: none matches
	PassedOver []PassedOver `json:"passed_over"`     // routes that came near, and why they do not serve it
	More       int          `json:"passed_over_more,omitempty"`
	Steps      []Step       `json:"steps"`              // of the route's chain, outermost first
	Upstream   *Considered  `json:"upstream,omitempty"` // absent: it goes to none
	Send       *Send        `json:"send,omitempty"`     // absent: nothing would be sent
}

// Explained is the request as the gateway understands it.
type Explained struct {
	Method   string `json:"method"`
	Scheme   string `json:"scheme"`
	Host     string `json:"host"`           // lower case, without port
	Path     string `json:"path,omitempty"` // canonical; absent where it is refused
	Query    string `json:"query,omitempty"`
	ClientIP string `json:"client_ip"`
	Trusted  bool   `json:"trusted"` // the peer is a trusted proxy, and may speak for others
	Listener string `json:"listener"`
}

// Outcome is how the request would end.
type Outcome struct {
	Answer     string `json:"answer"`           // proxied, redirected, answered or refused
	Status     int    `json:"status,omitempty"` // of the gateway's own answer; 0: the instance's
	Reason     string `json:"reason,omitempty"` // of a refusal, as in X-Proconsul-Reason
	Detail     string `json:"detail,omitempty"`
	RetryAfter Millis `json:"retry_after_ms,omitempty"`
	Location   string `json:"location,omitempty"` // of a redirect
}

// Matched is the route that serves the request.
type Matched struct {
	Name     string `json:"name"`
	Match    string `json:"match"` // for people: "GET shop.example.com/api/**"
	Source   string `json:"source"`
	Location string `json:"location,omitempty"` // file:line
}

// PassedOver is a route that came near.
type PassedOver struct {
	Route string `json:"route"`
	Why   string `json:"why"` // order, method, header, query, host or path
	Text  string `json:"text"`
}

// Step is one step of a route's chain.
type Step struct {
	Name    string      `json:"name"`
	Verdict string      `json:"verdict"` // pass, refuse or answer
	Text    string      `json:"text,omitempty"`
	Reason  string      `json:"reason,omitempty"` // of a refusal
	Limits  []LimitLeft `json:"limits,omitempty"` // of a rate limit; nothing was taken
}

// Considered is the upstream that a request goes to.
type Considered struct {
	Name        string      `json:"name"`
	Service     string      `json:"service"`
	Balance     string      `json:"balance"`
	Health      string      `json:"health"`
	Stale       bool        `json:"stale"`
	Breaker     Breaker     `json:"breaker"`
	InFlight    int64       `json:"in_flight"`
	MaxInFlight int         `json:"max_in_flight,omitempty"`
	Candidates  []Candidate `json:"candidates"`
}

// Candidate is an instance that may serve the request, or why it does not.
type Candidate struct {
	ID       string  `json:"id"`
	Address  string  `json:"address"`
	Usable   bool    `json:"usable"`
	State    string  `json:"state"`
	Why      string  `json:"why,omitempty"` // it is not usable, or less than its weight
	Weight   int     `json:"weight"`
	Share    float64 `json:"share"` // of the upstream's requests, 0 to 1
	InFlight int64   `json:"in_flight"`
	P99      Millis  `json:"p99_ms"`
}

// Send is what an instance would get.
type Send struct {
	Method   string        `json:"method"`
	URL      string        `json:"url"`               // with {instance} for the address
	Host     string        `json:"host"`              // likewise
	Rewrite  string        `json:"rewrite,omitempty"` // how the path came about: "strip /api"
	Headers  []HeaderValue `json:"headers"`           // that the gateway adds or changes
	Timeouts Timeouts      `json:"timeouts"`
	Retry    Retries       `json:"retry"`
}

// HeaderValue is a header field.
type HeaderValue struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Timeouts bound a request; 0 is no bound.
type Timeouts struct {
	Connect  Millis `json:"connect_ms"`
	Response Millis `json:"response_ms"` // of one try, until the header
	Total    Millis `json:"total_ms"`    // of all tries, until the header
}

// Retries say how often a request is tried again on another instance.
type Retries struct {
	Attempts   int      `json:"attempts"` // after the first
	On         []string `json:"on"`
	Replayable bool     `json:"replayable"` // false: only where nothing was sent
}

func (a *Admin) explain(w http.ResponseWriter, r *http.Request) {
	var q ExplainRequest
	err := readJSON(r, &q)
	if err == nil && q.URL == "" {
		err = Invalid("url: say which")
	}
	if err != nil {
		a.fail(w, r, "explain", err)
		return
	}
	e, err := a.o.Explain(r.Context(), q)
	if err != nil {
		a.fail(w, r, "explain", err)
		return
	}
	if e.Upstream != nil {
		for _, u := range a.status().Upstreams {
			if u.Name == e.Upstream.Name {
				e.Upstream = consider(u)
			}
		}
	}
	e.PassedOver, e.Steps = orEmpty(e.PassedOver), orEmpty(e.Steps)
	writeJSON(w, r, http.StatusOK, e)
}

// consider returns what matters of an upstream to one request: who may serve
// it, those who may first.
func consider(u Upstream) *Considered {
	c := &Considered{Name: u.Name, Service: u.Service, Balance: u.Balance, Health: u.Health, Stale: u.Stale,
		Breaker: u.Breaker, InFlight: u.InFlight, MaxInFlight: u.MaxInFlight, Candidates: []Candidate{}}
	for _, in := range u.Instances {
		c.Candidates = append(c.Candidates, Candidate{ID: in.ID, Address: in.Address, Usable: in.Usable, State: in.State, Why: whyNot(in),
			Weight: in.Weight, Share: in.Share, InFlight: in.InFlight, P99: in.Latency.P99})
	}
	slices.SortStableFunc(c.Candidates, func(x, y Candidate) int {
		switch {
		case x.Usable == y.Usable:
			return strings.Compare(x.ID, y.ID)
		case x.Usable:
			return -1
		}
		return 1
	})
	return c
}

// whyNot says why an instance takes no part, or less than its weight.
func whyNot(in Instance) string {
	switch {
	case !in.Usable && in.State == "ejected":
		text := "ejected"
		if in.EjectedFor != "" {
			text += ": " + in.EjectedFor
		}
		if left := time.Until(in.EjectedUntil); left > 0 {
			text += fmt.Sprintf(", probe in %v", left.Round(time.Second))
		}
		return text
	case !in.Usable && in.Weight == 0 && in.State == "passing":
		return "weight 0"
	case !in.Usable:
		if text := why(in); text != "" {
			return in.State + ": " + text
		}
		return in.State
	case in.Status == "critical":
		return "serves although Consul calls it critical"
	case in.EffectiveWeight > 0 && in.EffectiveWeight < float64(in.Weight)*0.99 && in.EffectiveWeight != 1:
		return fmt.Sprintf("slow start: weight %.3g of %d", in.EffectiveWeight, in.Weight)
	}
	return ""
}
