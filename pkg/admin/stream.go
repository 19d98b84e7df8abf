package admin

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The pace of the live stream.
const (
	frameEvery  = time.Second
	frameSlack  = 50 * time.Millisecond // a viewer's timer may fire this early
	heartbeat   = 15 * time.Second
	sendWithin  = 10 * time.Second
	keptFrames  = 16
	retryMillis = 2000
)

// stream turns the status into frames of what changed, once a second and only
// while someone looks. It has no goroutine: the first viewer whose timer fires
// in a second makes the frame, all others send the same bytes.
type stream struct {
	read    func() Status
	events  *Events
	viewers atomic.Int64

	mu        sync.Mutex
	epoch     string // tells this process's frames from those of one before
	seq       uint64
	made      time.Time
	rows      map[string][]byte                    // upstreams and routes, as they were sent, by key
	instances map[string]map[string]*instanceFrame // by upstream and id
	size      int                                  // of the last frame
	lists     map[string][]byte                    // as they were sent, by name
	seen      uint64                               // newest event that was sent
	status    Status                               // that the newest frame was made of
	whole     []byte                               // the newest frame as a snapshot, made when asked for
	frames    [keptFrames]frame
}

type frame struct {
	seq  uint64
	data []byte // a whole server-sent event
}

func newStream(read func() Status, events *Events) *stream {
	return &stream{
		read: read, events: events, epoch: strconv.FormatInt(time.Now().UnixNano(), 36),
		instances: map[string]map[string]*instanceFrame{}, lists: map[string][]byte{},
	}
}

// head is what changes with every second.
type head struct {
	Replica Replica    `json:"replica"`
	Config  Config     `json:"config"`
	Consul  Dependency `json:"consul"`
	Redis   Dependency `json:"redis"`
	TLS     Dependency `json:"tls"`
	Traffic Traffic    `json:"traffic"`
}

// lists are the parts of a status that are small and sent as a whole when they
// have changed.
func lists(s *Status) []part {
	return []part{{"rejected", s.Rejected}, {"fleet", s.Fleet}, {"limits", s.Limits}, {"limited", s.Limited}, {"overrides", s.Overrides}}
}

type part struct {
	name string
	list any
}

// upstreamRow is an upstream without its instances, which are rows themselves.
type upstreamRow struct {
	Upstream
	Instances *struct{} `json:"instances,omitempty"` // hides the embedded list
}

// instanceFrame is what the frame before said of an instance.
type instanceFrame struct {
	was    *Instance
	prefix []byte // how its live rows begin
	seq    uint64 // of the newest frame that has it
}

// next returns the server-sent events that bring a viewer who has seen frame
// last up to date, and the newest frame's number. It makes a new frame where
// the newest is a second old. last 0 asks for a snapshot.
func (s *stream) next(last uint64) ([]byte, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.seq == 0 || now.Sub(s.made) >= frameEvery-frameSlack {
		s.advance(now)
	}
	if last == s.seq {
		return nil, s.seq
	}
	if last == 0 || last > s.seq || s.seq-last > keptFrames {
		return s.snapshot(), s.seq
	}
	var b []byte
	for n := last + 1; n <= s.seq; n++ {
		f := s.frames[n%keptFrames]
		if f.seq != n {
			return s.snapshot(), s.seq
		}
		b = append(b, f.data...)
	}
	return b, s.seq
}

// advance makes the next frame. The most of it are instances whose counters
// moved: they are written by hand, because encoding them whole would cost the
// gateway a noticeable share of a core at a few thousand instances.
//
// A frame is an object of seq, head, and where there are any: upstreams,
// instances and routes (rows that are new or changed), live (rows of which
// only what moves all the time changed), gone (keys: u/NAME, i/UPSTREAM/ID,
// r/NAME), events, and those of lists that changed.
func (s *stream) advance(now time.Time) {
	status := s.read()
	seq := s.seq + 1
	rows := make(map[string][]byte, len(s.rows))
	var upstreams, instances, live, routes, events list
	live.b = make([]byte, 0, s.size)
	add := func(key string, v any, to *list) {
		b, err := json.Marshal(v)
		if err != nil {
			return // costs this row alone
		}
		rows[key] = b
		if !bytes.Equal(s.rows[key], b) {
			to.add(b)
		}
	}
	for _, u := range status.Upstreams {
		add("u/"+u.Name, upstreamRow{Upstream: u}, &upstreams)
		known := s.instances[u.Name]
		if known == nil {
			known = map[string]*instanceFrame{}
			s.instances[u.Name] = known
		}
		for i := range u.Instances {
			in := &u.Instances[i]
			old := known[in.ID]
			switch {
			case old == nil || !sameRegistration(old.was, in):
				b, err := json.Marshal(instanceRow{u.Name, *in})
				if err != nil {
					continue
				}
				instances.add(b)
				if old == nil {
					old = &instanceFrame{prefix: encode(struct {
						Upstream string `json:"upstream"`
						ID       string `json:"id"`
					}{u.Name, in.ID})}
					known[in.ID] = old
				}
			case !sameLive(old.was, in):
				live.begin()
				live.b = appendLive(append(live.b, old.prefix[:len(old.prefix)-1]...), old.was, in)
			}
			old.was, old.seq = in, seq // every status has instances of its own
		}
	}
	for _, r := range status.Routes {
		add("r/"+r.Name, r, &routes)
	}
	var gone []string
	for key := range s.rows {
		if _, there := rows[key]; !there {
			gone = append(gone, key)
		}
	}
	for name, known := range s.instances {
		for id, in := range known {
			if in.seq != seq {
				gone = append(gone, "i/"+name+"/"+id)
				delete(known, id)
			}
		}
		if len(known) == 0 {
			delete(s.instances, name)
		}
	}
	slices.Sort(gone)
	for _, e := range s.events.Since(s.seen, pageEvents) {
		events.add(encode(e))
		s.seen = e.Seq
	}
	b := append(make([]byte, 0, len(live.b)+len(live.b)/8+s.size/8), `{"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(append(b, `,"head":`...), encode(head{status.Replica, status.Config, status.Consul, status.Redis, status.TLS, status.Traffic})...)
	b = upstreams.appendTo(b, "upstreams")
	b = instances.appendTo(b, "instances")
	b = live.appendTo(b, "live")
	b = routes.appendTo(b, "routes")
	b = events.appendTo(b, "events")
	if len(gone) > 0 {
		b = append(append(b, `,"gone":`...), encode(gone)...)
	}
	for _, p := range lists(&status) {
		text := encode(p.list)
		if !bytes.Equal(s.lists[p.name], text) {
			b = append(append(append(b, `,"`...), p.name...), `":`...)
			b = append(b, text...)
			s.lists[p.name] = text
		}
	}
	b = append(b, '}')
	s.size = len(b)

	status.Events = s.events.Since(0, pageEvents) // none that a later frame would leave out
	s.seq, s.made, s.rows, s.status, s.whole = seq, now, rows, status, nil
	s.frames[seq%keptFrames] = frame{seq, s.event("delta", b)}
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

// appendTo appends the list as a member of an object, or nothing where it is
// empty.
func (l *list) appendTo(b []byte, name string) []byte {
	if len(l.b) == 0 {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":[`...)
	return append(append(b, l.b...), ']')
}

// sameRegistration compares what seldom changes: what Consul says.
func sameRegistration(a, b *Instance) bool {
	return a.Node == b.Node && a.Datacenter == b.Datacenter && a.Address == b.Address && a.Status == b.Status &&
		a.Since.Equal(b.Since) && a.Weight == b.Weight && a.Version == b.Version && a.Zone == b.Zone &&
		slices.Equal(a.Tags, b.Tags) && maps.Equal(a.Meta, b.Meta) && slices.Equal(a.Checks, b.Checks)
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
	name := func(n string) { b = append(append(append(b, `,"`...), n...), `":`...) }
	float := func(n string, was, is float64) {
		if was != is {
			name(n)
			b = strconv.AppendFloat(b, is, 'f', -1, 64)
		}
	}
	text := func(n, was, is string) {
		if was != is {
			name(n)
			b = appendString(b, is)
		}
	}
	count := func(n string, was, is uint64) {
		if was != is {
			name(n)
			b = strconv.AppendUint(b, is, 10)
		}
	}
	text("state", was.State, in.State)
	if was.Usable != in.Usable {
		name("usable")
		b = strconv.AppendBool(b, in.Usable)
	}
	float("effective_weight", was.EffectiveWeight, in.EffectiveWeight)
	float("share", was.Share, in.Share)
	if was.InFlight != in.InFlight {
		name("in_flight")
		b = strconv.AppendInt(b, in.InFlight, 10)
	}
	count("requests", was.Requests, in.Requests)
	count("failures", was.Failures, in.Failures)
	if !slices.Equal(was.Failed, in.Failed) {
		name("failed")
		b = append(b, encode(orEmpty(in.Failed))...)
	}
	float("rate", was.Rate, in.Rate)
	float("ramp", was.Ramp, in.Ramp)
	if was.Latency != in.Latency {
		b = append(b, `,"latency":{"p50_ms":`...)
		b = append(in.Latency.P50.appendTo(b), `,"p95_ms":`...)
		b = append(in.Latency.P95.appendTo(b), `,"p99_ms":`...)
		b = append(in.Latency.P99.appendTo(b), '}')
	}
	if !was.EjectedUntil.Equal(in.EjectedUntil) {
		name("ejected_until")
		if in.EjectedUntil.IsZero() {
			b = append(b, `""`...)
		} else {
			b = append(in.EjectedUntil.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
		}
	}
	text("ejected_for", was.EjectedFor, in.EjectedFor)
	return append(b, '}')
}

func appendString(b []byte, s string) []byte { return append(b, encode(s)...) }

func (s *stream) snapshot() []byte {
	if s.whole == nil {
		s.whole = s.event("snapshot", encode(struct {
			Seq uint64 `json:"seq"`
			Status
		}{s.seq, s.status}))
	}
	return s.whole
}

func (s *stream) event(name string, data []byte) []byte {
	b := make([]byte, 0, len(data)+64)
	b = append(b, "event: "+name+"\nid: "+s.epoch+"-"+strconv.FormatUint(s.seq, 10)+"\ndata: "...)
	b = append(b, data...)
	return append(b, "\n\n"...)
}

// encode is for values of this package, which always encode; JSON has no line
// breaks of its own.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null")
	}
	return b
}

// resume returns the frame after which a viewer that reconnects goes on.
func (s *stream) resume(id string) uint64 {
	epoch, seq, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(seq, 10, 63)
	if epoch != s.epoch || err != nil {
		return 0
	}
	return n
}

// getStream is GET /api/v1/stream: a snapshot, then once a second what
// changed, as server-sent events.
func (a *Admin) getStream(w http.ResponseWriter, r *http.Request) {
	defer a.stream.viewers.Add(-1)
	if a.stream.viewers.Add(1) > maxStreams {
		w.Header().Set("Retry-After", "10")
		writeProblem(w, r, http.StatusServiceUnavailable, "too_many_streams", "Too many viewers follow the stream", "GET /api/v1/status answers still.")
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	rc := http.NewResponseController(w)
	send := func(b []byte) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(sendWithin)) // a viewer that does not read is let go
		_, err := w.Write(b)
		return err == nil && rc.Flush() == nil
	}
	last := a.stream.resume(r.Header.Get("Last-Event-ID"))
	sent := time.Now()
	if !send([]byte("retry: " + strconv.Itoa(retryMillis) + "\n\n")) {
		return
	}
	ticker := time.NewTicker(frameEvery)
	defer ticker.Stop()
	for {
		b, seq := a.stream.next(last)
		if len(b) == 0 && time.Since(sent) >= heartbeat {
			b = []byte(": still here\n\n")
		}
		if len(b) > 0 {
			if !send(b) {
				return
			}
			last, sent = seq, time.Now()
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		case <-a.closed:
			return
		}
	}
}
