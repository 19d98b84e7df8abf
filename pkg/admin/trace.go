package admin

import (
	"net/http"
	"strings"
)

// TraceRequest is a request that is to be sent through the gateway, and
// followed on its way.
type TraceRequest struct {
	ExplainRequest
	Body string `json:"body,omitempty"`
}

// Traced is the course of a request that was sent.
type Traced struct {
	Request   Explained    `json:"request"`
	RequestID string       `json:"request_id"`
	TraceID   string       `json:"trace_id,omitempty"` // absent: no tracing
	Route     *Matched     `json:"route,omitempty"`    // absent: none matched
	Steps     []TracedStep `json:"steps"`              // of the route's chain, outermost first, as far as the request got
	Upstream  string       `json:"upstream,omitempty"` // absent: it goes to none
	Tries     []Try        `json:"tries"`
	Answer    Answer       `json:"answer"`
}

// TracedStep is what one step of a route's chain did.
type TracedStep struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"` // pass, refuse or answer
	Text    string `json:"text,omitempty"`
	Reason  string `json:"reason,omitempty"` // of a refusal
	Before  Millis `json:"before_ms"`        // until the request went on, or in all
	After   Millis `json:"after_ms"`         // from the answer of what is behind it
}

// Try is one try of an instance. Phases that did not happen are 0.
type Try struct {
	Instance   string `json:"instance"`
	Address    string `json:"address"`
	Status     int    `json:"status,omitempty"` // absent: no answer came
	Reason     string `json:"reason,omitempty"` // why it failed
	Connection string `json:"connection"`       // new, reused or none
	Dial       Millis `json:"dial_ms"`
	TLS        Millis `json:"tls_ms"`
	Write      Millis `json:"write_ms"`      // from the connection to the end of the request
	FirstByte  Millis `json:"first_byte_ms"` // from the end of the request
	Body       Millis `json:"body_ms"`       // from the first byte to the last
	Took       Millis `json:"took_ms"`
}

// Answer is what the client got.
type Answer struct {
	From      string `json:"from"` // instance or gateway
	Status    int    `json:"status"`
	Reason    string `json:"reason,omitempty"` // of the gateway's own answer, or why the instance's broke off
	Bytes     int64  `json:"bytes"`            // of its body
	Broken    bool   `json:"broken"`           // it has begun and was not finished
	FirstByte Millis `json:"first_byte_ms"`    // 0: no instance answered
	Took      Millis `json:"took_ms"`
	Gateway   Millis `json:"gateway_ms"` // what the gateway itself took until the header
}

func (a *Admin) trace(w http.ResponseWriter, r *http.Request) {
	var q TraceRequest
	err := readJSON(r, &q)
	if err == nil && q.URL == "" {
		err = Invalid("url: say which")
	}
	// The query may hold a credential, and so may what stands before an @.
	url, _, _ := strings.Cut(q.URL, "?")
	if i := strings.LastIndexByte(url, '@'); i >= 0 {
		url = url[i+1:]
	}
	what := "trace " + clip(printable(q.Method+" "+url), 200)
	if err != nil {
		a.refused(w, r, "trace", err)
		return
	}
	out, err := a.o.Trace(r.Context(), q)
	if err != nil {
		a.refused(w, r, what, err)
		return
	}
	a.audit(r, what)
	out.Steps, out.Tries = orEmpty(out.Steps), orEmpty(out.Tries)
	writeJSON(w, r, http.StatusOK, out)
}
