package admin

import (
	"bytes"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// Rows of the stream. What moves all the time is written by hand: encoding
// everything anew would cost the gateway a noticeable share of a core at a few
// thousand instances. What rests is encoded when it changed.

// rowFrame is what the frame before said of an upstream or a route.
type rowFrame struct {
	start []byte // the row without what moves, and without its end
	sent  []byte
	seq   uint64 // of the newest frame that has it
}

// moving are the names of what moves in an upstream and in a route. Embedded
// beside one of them, it hides them.
type moving struct {
	Instances  *struct{} `json:"instances,omitempty"` // rows themselves
	InFlight   *struct{} `json:"in_flight,omitempty"`
	Requests   *struct{} `json:"requests,omitempty"`
	Errors     *struct{} `json:"errors,omitempty"`
	Limited    *struct{} `json:"limited,omitempty"`
	Rate       *struct{} `json:"rate,omitempty"`
	ErrorShare *struct{} `json:"error_share,omitempty"`
	Latency    *struct{} `json:"latency,omitempty"`
}

// upstreamFrame is what the frame before said of an upstream.
type upstreamFrame struct {
	rowFrame
	was       Upstream
	instances map[string]*instanceFrame // by id
}

// add appends the upstream to the list, if anything of it is new.
func (f *upstreamFrame) add(u *Upstream, to *list) {
	if f.start == nil || !sameUpstream(&f.was, u) {
		f.start = encode(struct {
			*Upstream
			moving
		}{Upstream: u})
	}
	f.was = *u
	f.was.Instances = nil // it would be kept for nothing
	began := to.row(f.start)
	to.b = strconv.AppendInt(append(to.b, `,"in_flight":`...), u.InFlight, 10)
	to.b = u.Stats.appendTo(to.b)
	f.end(began, to)
}

// routeFrame is what the frame before said of a route.
type routeFrame struct {
	rowFrame
	was Route
}

// add appends the route to the list, if anything of it is new.
func (f *routeFrame) add(r *Route, to *list) {
	if f.start == nil || !sameRoute(&f.was, r) {
		f.start = encode(struct {
			*Route
			moving
		}{Route: r})
	}
	f.was = *r
	began := to.row(f.start)
	to.b = r.Stats.appendTo(to.b)
	f.end(began, to)
}

// end ends the row that began there, and takes it back if it was sent like
// that before.
func (f *rowFrame) end(began int, to *list) {
	to.b = append(to.b, '}')
	if row := to.b[began:]; bytes.Equal(row, f.sent) {
		to.b = to.b[:max(0, began-1)] // and the comma before it
	} else {
		f.sent = append(f.sent[:0], row...)
	}
}

// list is a JSON array under construction.
type list struct{ b []byte }

func (l *list) begin() {
	if len(l.b) > 0 {
		l.b = append(l.b, ',')
	}
}

func (l *list) add(item []byte) {
	l.begin()
	l.b = append(l.b, item...)
}

// row begins an object like another one, whose end is left off, and returns
// where it did.
func (l *list) row(like []byte) (began int) {
	l.begin()
	began = len(l.b)
	l.b = append(l.b, like[:len(like)-1]...)
	return began
}

// appendTo appends the list as a member of an object, or nothing where it is
// empty.
func (l *list) appendTo(b []byte, name string) []byte {
	if len(l.b) == 0 {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":[`...)
	return append(append(b, l.b...), ']')
}

// sameUpstream compares all of an upstream but what moves.
func sameUpstream(a, b *Upstream) bool {
	return a.Name == b.Name && a.Service == b.Service && a.Balance == b.Balance && a.Health == b.Health &&
		a.Usable == b.Usable && a.Total == b.Total && a.Stale == b.Stale && a.Index == b.Index && a.UpdatedAt == b.UpdatedAt &&
		a.Error == b.Error && a.MaxInFlight == b.MaxInFlight && a.Breaker == b.Breaker && a.Panic == b.Panic && a.HeldUntil == b.HeldUntil &&
		a.Retries == b.Retries && a.Rescued == b.Rescued && slices.Equal(a.Failed, b.Failed) && slices.Equal(a.Routes, b.Routes) &&
		(a.Concurrency == b.Concurrency || a.Concurrency != nil && b.Concurrency != nil && *a.Concurrency == *b.Concurrency)
}

// sameRoute compares all of a route but what moves.
func sameRoute(a, b *Route) bool {
	return a.Name == b.Name && a.Order == b.Order && a.Host == b.Host && a.Path == b.Path && slices.Equal(a.Methods, b.Methods) &&
		slices.Equal(a.Headers, b.Headers) && slices.Equal(a.Query, b.Query) && a.Priority == b.Priority && a.Upstream == b.Upstream &&
		a.Redirect == b.Redirect && a.Strip == b.Strip && a.Prepend == b.Prepend && slices.Equal(a.Policies, b.Policies) &&
		a.RateLimit == b.RateLimit && a.Source == b.Source && a.Location == b.Location && slices.Equal(a.Answers, b.Answers)
}

// appendTo appends the members of the object that a Stats is.
func (s *Stats) appendTo(b []byte) []byte {
	b = strconv.AppendUint(append(b, `,"requests":`...), s.Requests, 10)
	b = strconv.AppendUint(append(b, `,"errors":`...), s.Errors, 10)
	if s.Limited > 0 {
		b = strconv.AppendUint(append(b, `,"limited":`...), s.Limited, 10)
	}
	b = appendRounded(append(b, `,"rate":`...), s.Rate, 2)
	b = appendRounded(append(b, `,"error_share":`...), s.ErrorShare, 4)
	return s.Latency.appendTo(append(b, `,"latency":`...))
}

func (l Latency) appendTo(b []byte) []byte {
	b = l.P50.appendTo(append(b, `{"p50_ms":`...))
	b = l.P95.appendTo(append(b, `,"p95_ms":`...))
	b = l.P99.appendTo(append(b, `,"p99_ms":`...))
	return append(b, '}')
}

// instanceFrame is what the frame before said of an instance.
type instanceFrame struct {
	was    *Instance
	prefix []byte // how its live rows begin, and an end
	seq    uint64 // of the newest frame that has it
}

func newInstanceFrame(upstream, id string) *instanceFrame {
	return &instanceFrame{prefix: encode(struct {
		Upstream string `json:"upstream"`
		ID       string `json:"id"`
	}{upstream, id})}
}

// sameRegistration compares what seldom changes: what Consul says.
func sameRegistration(a, b *Instance) bool {
	return a.Node == b.Node && a.Datacenter == b.Datacenter && a.Address == b.Address && a.Status == b.Status &&
		a.Since.Equal(b.Since) && a.Weight == b.Weight && a.Version == b.Version && a.Zone == b.Zone &&
		slices.Equal(a.Tags, b.Tags) && sameMeta(a.Meta, b.Meta) && slices.Equal(a.Checks, b.Checks)
}

// sameMeta compares maps, which mostly are one and the same.
func sameMeta(a, b map[string]string) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer() || maps.Equal(a, b)
}

// sameLive compares the rest of an instance.
func sameLive(a, b *Instance) bool {
	return a.State == b.State && a.Usable == b.Usable && a.EffectiveWeight == b.EffectiveWeight && a.Share == b.Share &&
		a.InFlight == b.InFlight && a.Requests == b.Requests && a.Failures == b.Failures && a.Latency == b.Latency &&
		a.Rate == b.Rate && a.Ramp == b.Ramp && slices.Equal(a.Failed, b.Failed) &&
		a.EjectedUntil.Equal(b.EjectedUntil) && a.EjectedFor == b.EjectedFor
}

// appendLive appends what sameLive finds different, under the names of
// Instance, and the end of the object. What Instance leaves out where it is
// empty is empty here, for a viewer that has an older value.
func appendLive(b []byte, was, in *Instance) []byte {
	if was.State != in.State {
		b = append(append(b, `,"state":`...), encode(in.State)...)
	}
	if was.Usable != in.Usable {
		b = strconv.AppendBool(append(b, `,"usable":`...), in.Usable)
	}
	if was.EffectiveWeight != in.EffectiveWeight {
		b = appendRounded(append(b, `,"effective_weight":`...), in.EffectiveWeight, 3)
	}
	if was.Share != in.Share {
		b = appendRounded(append(b, `,"share":`...), in.Share, 4)
	}
	if was.InFlight != in.InFlight {
		b = strconv.AppendInt(append(b, `,"in_flight":`...), in.InFlight, 10)
	}
	if was.Requests != in.Requests {
		b = strconv.AppendUint(append(b, `,"requests":`...), in.Requests, 10)
	}
	if was.Failures != in.Failures {
		b = strconv.AppendUint(append(b, `,"failures":`...), in.Failures, 10)
	}
	if !slices.Equal(was.Failed, in.Failed) {
		b = append(append(b, `,"failed":`...), encode(orEmpty(in.Failed))...)
	}
	if was.Rate != in.Rate {
		b = appendRounded(append(b, `,"rate":`...), in.Rate, 2)
	}
	if was.Ramp != in.Ramp {
		b = appendRounded(append(b, `,"ramp":`...), in.Ramp, 2)
	}
	if was.Latency != in.Latency {
		b = in.Latency.appendTo(append(b, `,"latency":`...))
	}
	if !was.EjectedUntil.Equal(in.EjectedUntil) {
		b = append(b, `,"ejected_until":"`...)
		if !in.EjectedUntil.IsZero() {
			b = in.EjectedUntil.AppendFormat(b, time.RFC3339Nano)
		}
		b = append(b, '"')
	}
	if was.EjectedFor != in.EjectedFor {
		b = append(append(b, `,"ejected_for":`...), encode(in.EjectedFor)...)
	}
	return append(b, '}')
}

// appendRounded appends a number that round gave so many digits after the
// point: as JSON has it, in a fraction of the time that any number takes.
func appendRounded(b []byte, v float64, digits int) []byte {
	n := v * pow10[digits]
	if !(n >= 0 && n < 1e15) {
		return strconv.AppendFloat(b, v, 'f', -1, 64)
	}
	return appendDecimal(b, uint64(math.Round(n)), digits)
}

// appendDecimal appends n divided by ten to the power of digits, without zeros
// at its end.
func appendDecimal(b []byte, n uint64, digits int) []byte {
	for ; digits > 0 && n%10 == 0; digits-- {
		n /= 10
	}
	unit := uint64(pow10[digits])
	b = strconv.AppendUint(b, n/unit, 10)
	if digits == 0 {
		return b
	}
	b = append(b, '.')
	for rest := n % unit; digits > 0; digits-- {
		unit /= 10
		b = append(b, '0'+byte(rest/unit))
		rest %= unit
	}
	return b
}

var pow10 = [...]float64{1, 10, 100, 1000, 10000}

func round(v float64, digits int) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0 // JSON has no word for them
	}
	return math.Round(v*pow10[digits]) / pow10[digits]
}
