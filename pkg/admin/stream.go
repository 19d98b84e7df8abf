package admin

import (
	"bytes"
	"encoding/json"
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
	upstreams map[string]*upstreamFrame
	routes    map[string]*routeFrame
	lists     map[string][]byte // as they were sent, by name
	seen      uint64            // newest event that was sent
	status    Status            // that the newest frame was made of
	whole     []byte            // the newest frame as a snapshot, made when asked for
	frames    [keptFrames]frame
	scratch   struct{ frame, upstreams, instances, live, routes, events list } // used again by each frame
}

type frame struct {
	seq  uint64
	data []byte // a whole server-sent event
}

func newStream(read func() Status, events *Events) *stream {
	return &stream{
		read: read, events: events, epoch: strconv.FormatInt(time.Now().UnixNano(), 36),
		upstreams: map[string]*upstreamFrame{}, routes: map[string]*routeFrame{}, lists: map[string][]byte{},
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
	if newest := s.frames[s.seq%keptFrames]; last+1 == s.seq && newest.seq == s.seq {
		return newest.data, s.seq // the same bytes for all who follow
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

// advance makes the next frame.
//
// A frame is an object of seq, head, and where there are any: upstreams,
// instances and routes (rows that are new or changed), live (rows of which
// only what moves all the time changed), gone (keys: u/NAME, i/UPSTREAM/ID,
// r/NAME), events, and those of lists that changed.
func (s *stream) advance(now time.Time) {
	status := s.read()
	s.seq++
	t := &s.scratch
	for _, l := range []*list{&t.frame, &t.upstreams, &t.instances, &t.live, &t.routes, &t.events} {
		l.b = l.b[:0]
	}
	for i := range status.Upstreams {
		u := &status.Upstreams[i]
		f := s.upstreams[u.Name]
		if f == nil {
			f = &upstreamFrame{instances: map[string]*instanceFrame{}}
			s.upstreams[u.Name] = f
		}
		f.seq = s.seq
		f.add(u, &t.upstreams)
		for k := range u.Instances {
			s.addInstance(f, u.Name, &u.Instances[k])
		}
	}
	for i := range status.Routes {
		r := &status.Routes[i]
		f := s.routes[r.Name]
		if f == nil {
			f = new(routeFrame)
			s.routes[r.Name] = f
		}
		f.seq = s.seq
		f.add(r, &t.routes)
	}
	for _, e := range s.events.Since(s.seen, pageEvents) {
		t.events.add(encode(e))
		s.seen = e.Seq
	}
	b := strconv.AppendUint(append(t.frame.b, `{"seq":`...), s.seq, 10)
	b = append(append(b, `,"head":`...), encode(head{status.Replica, status.Config, status.Consul, status.Redis, status.TLS, status.Traffic})...)
	b = t.upstreams.appendTo(b, "upstreams")
	b = t.instances.appendTo(b, "instances")
	b = t.live.appendTo(b, "live")
	b = t.routes.appendTo(b, "routes")
	b = t.events.appendTo(b, "events")
	if gone := s.forget(); len(gone) > 0 {
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
	t.frame.b = append(b, '}')

	status.Events = s.events.Since(0, pageEvents) // none that a later frame would leave out
	s.made, s.status, s.whole = now, status, nil
	s.frames[s.seq%keptFrames] = frame{s.seq, s.event("delta", t.frame.b)}
}

// addInstance appends an instance to the list of those that are new or whose
// registration changed, or what moved of it to the live ones.
func (s *stream) addInstance(of *upstreamFrame, upstream string, in *Instance) {
	f := of.instances[in.ID]
	if f == nil {
		f = newInstanceFrame(upstream, in.ID)
		of.instances[in.ID] = f
	}
	switch {
	case f.was == nil || !sameRegistration(f.was, in):
		s.scratch.instances.add(encode(instanceRow{upstream, *in}))
	case !sameLive(f.was, in):
		s.scratch.live.row(f.prefix)
		s.scratch.live.b = appendLive(s.scratch.live.b, f.was, in)
	}
	f.was, f.seq = in, s.seq // every status has instances of its own
}

// forget forgets what the newest frame does not have, and returns its keys.
func (s *stream) forget() (gone []string) {
	for name, u := range s.upstreams {
		for id, in := range u.instances {
			if in.seq != s.seq {
				gone = append(gone, "i/"+name+"/"+id)
				delete(u.instances, id)
			}
		}
		if u.seq != s.seq {
			gone = append(gone, "u/"+name)
			delete(s.upstreams, name)
		}
	}
	for name, r := range s.routes {
		if r.seq != s.seq {
			gone = append(gone, "r/"+name)
			delete(s.routes, name)
		}
	}
	slices.Sort(gone)
	return gone
}

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
			if role, _ := a.roleOf(r); !role.covers(RoleViewer) {
				return
			}
		case <-r.Context().Done():
			return
		case <-a.closed:
			return
		}
	}
}
