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

	mu     sync.Mutex
	epoch  string // tells this process's frames from those of one before
	seq    uint64
	made   time.Time
	head   []byte
	rows   map[string][]byte // by kind and name
	seen   uint64            // newest event that was sent
	status Status            // that the newest frame was made of
	whole  []byte            // the newest frame as a snapshot, made when asked for
	frames [keptFrames]frame
}

type frame struct {
	seq  uint64
	data []byte // a whole server-sent event
}

func newStream(read func() Status, events *Events) *stream {
	return &stream{read: read, events: events, epoch: strconv.FormatInt(time.Now().UnixNano(), 36)}
}

// head is what changes with every second.
type head struct {
	Replica  Replica    `json:"replica"`
	Config   Config     `json:"config"`
	Consul   Dependency `json:"consul"`
	Redis    Dependency `json:"redis"`
	Traffic  Traffic    `json:"traffic"`
	Rejected []Rejected `json:"rejected"`
}

// upstreamRow is an upstream without its instances, which are rows themselves.
type upstreamRow struct {
	Upstream
	Instances *struct{} `json:"instances,omitempty"` // hides the embedded list
}

// delta is one frame: what changed since the one before.
type delta struct {
	Seq       uint64            `json:"seq"`
	Head      json.RawMessage   `json:"head"`
	Upstreams []json.RawMessage `json:"upstreams,omitempty"`
	Instances []json.RawMessage `json:"instances,omitempty"`
	Routes    []json.RawMessage `json:"routes,omitempty"`
	Gone      []string          `json:"gone,omitempty"` // keys: u/NAME, i/UPSTREAM/ID, r/NAME
	Events    []Event           `json:"events,omitempty"`
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

// advance makes the next frame.
func (s *stream) advance(now time.Time) {
	status := s.read()
	d := delta{Seq: s.seq + 1}
	rows := make(map[string][]byte, len(s.rows))
	add := func(key string, v any, list *[]json.RawMessage) {
		b, err := json.Marshal(v)
		if err != nil {
			return // a NaN from somewhere costs its row alone
		}
		rows[key] = b
		if !bytes.Equal(s.rows[key], b) {
			*list = append(*list, b)
		}
	}
	for _, u := range status.Upstreams {
		add("u/"+u.Name, upstreamRow{Upstream: u}, &d.Upstreams)
		for _, in := range u.Instances {
			add("i/"+u.Name+"/"+in.ID, instanceRow{u.Name, in}, &d.Instances)
		}
	}
	for _, r := range status.Routes {
		add("r/"+r.Name, r, &d.Routes)
	}
	for key := range s.rows {
		if _, there := rows[key]; !there {
			d.Gone = append(d.Gone, key)
		}
	}
	slices.Sort(d.Gone)
	d.Head = encode(head{status.Replica, status.Config, status.Consul, status.Redis, status.Traffic, status.Rejected})
	d.Events = s.events.Since(s.seen, pageEvents)
	if n := len(d.Events); n > 0 {
		s.seen = d.Events[n-1].Seq
	}
	status.Events = s.events.Since(0, pageEvents) // none that a later frame would leave out
	s.seq, s.made, s.rows, s.status, s.whole = d.Seq, now, rows, status, nil
	s.frames[s.seq%keptFrames] = frame{s.seq, s.event("delta", encode(d))}
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
		case <-r.Context().Done():
			return
		case <-a.closed:
			return
		}
	}
}
