package admin_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/admin"
)

// viewerPipe serves the stream to one viewer inside a bubble of synctest,
// where a network may not be used.
type viewerPipe struct {
	http.ResponseWriter
	header http.Header
	code   int
	w      *io.PipeWriter
}

func (p *viewerPipe) Header() http.Header         { return p.header }
func (p *viewerPipe) WriteHeader(code int)        { p.code = code }
func (p *viewerPipe) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *viewerPipe) Flush()                      {}

type sse struct{ event, id, data string }

// watch follows the stream and returns its events.
func watch(t *testing.T, a *admin.Admin, lastID string) <-chan sse {
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "/api/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host, req.RemoteAddr = "localhost", "127.0.0.1:1"
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	go func() {
		a.ServeHTTP(&viewerPipe{header: http.Header{}, w: w}, req)
		w.Close()
	}()
	out := make(chan sse, 100)
	go func() {
		defer close(out)
		var e sse
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 10<<20)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "event":
				e.event = value
			case "id":
				e.id = value
			case "data":
				e.data = value
			case "":
				if e.data != "" {
					out <- e
				}
				e = sse{}
			}
		}
	}()
	return out
}

func next(t *testing.T, c <-chan sse) sse {
	t.Helper()
	select {
	case e, ok := <-c:
		if !ok {
			t.Fatal("the stream ended")
		}
		return e
	case <-time.After(time.Minute):
		t.Fatal("no frame")
	}
	panic("unreachable")
}

func TestStreamSendsWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		s := status()
		reads := 0
		events := admin.NewEvents(10)
		a := admin.New(admin.Options{Events: events, Status: func() admin.Status {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return s
		}})
		defer synctest.Wait()
		defer a.Close()
		c := watch(t, a, "")
		first := next(t, c)
		if first.event != "snapshot" {
			t.Fatalf("the first is %q", first.event)
		}
		whole := decode[admin.Status](t, first.data)
		if len(whole.Upstreams) != 2 || len(whole.Upstreams[0].Instances) != 4 {
			t.Errorf("snapshot %s", first.data)
		}

		type change struct {
			Seq                          uint64
			Head                         struct{ Replica admin.Replica }
			Upstreams, Instances, Routes []struct{ Name, ID, Upstream, State string }
			Live                         []struct{ ID, Upstream, State string }
			Gone                         []string
			Events                       []admin.Event
		}
		quiet := next(t, c)
		if d := decode[change](t, quiet.data); quiet.event != "delta" || len(d.Upstreams)+len(d.Instances)+len(d.Routes)+len(d.Gone) != 0 || d.Head.Replica.ID != "gw-1" {
			t.Errorf("nothing happened, and the stream says %s", quiet.data)
		}

		mu.Lock()
		s = status()
		s.Upstreams[1].Instances = s.Upstreams[1].Instances[:3]
		s.Upstreams[1].Instances[0].State = "critical"
		s.Routes = s.Routes[:1]
		mu.Unlock()
		events.Append(admin.Event{Kind: "instance", Message: "orders-4 left"})
		d := decode[change](t, next(t, c).data)
		if len(d.Live) == 0 || d.Live[0].ID != "n1/orders-1" || d.Live[0].State != "critical" || d.Live[0].Upstream != "orders" {
			t.Errorf("live %+v", d.Live)
		}
		if len(d.Upstreams) != 1 || len(d.Routes) != 0 || fmt.Sprint(d.Gone) != "[i/orders/n2/orders-4 r/hello:shop.example.com/hello]" || len(d.Events) != 1 {
			t.Errorf("delta %+v", d)
		}

		// A second viewer costs no second reading, and one that comes back
		// goes on where it was.
		mu.Lock()
		before := reads
		mu.Unlock()
		second, resumed := watch(t, a, ""), watch(t, a, quiet.id)
		if e := next(t, second); e.event != "snapshot" {
			t.Errorf("a new viewer gets %q", e.event)
		}
		if e := next(t, resumed); e.event != "delta" || decode[change](t, e.data).Seq != 3 {
			t.Errorf("a viewer that comes back gets %s %s", e.event, e.data)
		}
		if e := next(t, watch(t, a, "other-2")); e.event != "snapshot" {
			t.Errorf("a viewer of another process gets %q", e.event)
		}
		for range 10 {
			next(t, c)
			next(t, second)
			next(t, resumed)
		}
		mu.Lock()
		if n := reads - before; n > 11 {
			t.Errorf("%d readings in ten seconds with three viewers", n)
		}
		mu.Unlock()
	})
}

// A viewer that follows the deltas knows what one that asks anew is told.
func TestDeltasAddUpToTheStatus(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		word := rapid.SampledFrom([]string{"", "passing", "ejected", hostile, "\u2028\xff"})
		at := rapid.SampledFrom([]time.Time{{}, began, began.Add(1500 * time.Millisecond)})
		instance := rapid.Custom(func(rt *rapid.T) admin.Instance {
			in := admin.Instance{
				ID: rapid.SampledFrom([]string{"n/1", "n/2", "n/" + hostile}).Draw(rt, "id"), State: word.Draw(rt, "state"), Address: word.Draw(rt, "address"),
				Usable: rapid.Bool().Draw(rt, "usable"), EffectiveWeight: rapid.Float64Range(0, 1e6).Draw(rt, "weight"), InFlight: rapid.Int64().Draw(rt, "flight"),
				Requests: rapid.Uint64Max(1<<53).Draw(rt, "requests"), Failures: rapid.Uint64Max(9).Draw(rt, "failures"),
				Latency: admin.Latency{P99: admin.Millis(rapid.Int64Range(0, 1e11).Draw(rt, "p99"))}, EjectedUntil: at.Draw(rt, "until"), EjectedFor: word.Draw(rt, "for"),
				Rate: rapid.Float64Range(0, 1e5).Draw(rt, "rate"), Ramp: rapid.Float64Range(0, 1).Draw(rt, "ramp"),
			}
			if rapid.Bool().Draw(rt, "failed") {
				in.Failed = []admin.Failure{{Reason: word.Draw(rt, "reason"), Tries: rapid.Uint64Max(9).Draw(rt, "tries"), Again: 1}}
			}
			if rapid.Bool().Draw(rt, "tagged") {
				in.Tags, in.Meta, in.Checks = []string{word.Draw(rt, "tag")}, map[string]string{"k": word.Draw(rt, "meta")}, []admin.Check{{Output: word.Draw(rt, "output")}}
			}
			return in
		})
		var now admin.Status
		frame := admin.FrameForTest(func() admin.Status { return now })
		known := map[string]map[string]any{}
		for range rapid.IntRange(1, 6).Draw(rt, "frames") {
			up := admin.Upstream{Name: "u", Instances: rapid.SliceOfNDistinct(instance, 0, 3, func(in admin.Instance) string { return in.ID }).Draw(rt, "instances")}
			now = admin.Status{Upstreams: []admin.Upstream{up}}
			delta, whole := frame()
			var d struct {
				Instances, Live []map[string]any
				Gone            []string
			}
			if err := json.Unmarshal(delta, &d); err != nil {
				rt.Fatalf("%v in %s", err, delta)
			}
			for _, in := range d.Instances {
				known[in["id"].(string)] = in
			}
			for _, in := range d.Live {
				maps.Copy(known[in["id"].(string)], in)
			}
			for _, key := range d.Gone {
				delete(known, strings.TrimPrefix(key, "i/u/"))
			}
			var s struct {
				Upstreams []struct{ Instances []map[string]any }
			}
			if err := json.Unmarshal(whole, &s); err != nil {
				rt.Fatalf("%v in %s", err, whole)
			}
			if len(known) != len(s.Upstreams[0].Instances) {
				rt.Fatalf("knows %d instances of %d", len(known), len(s.Upstreams[0].Instances))
			}
			for _, want := range s.Upstreams[0].Instances {
				got := maps.Clone(known[want["id"].(string)])
				delete(got, "upstream")
				empty := func(_ string, v any) bool {
					list, ok := v.([]any)
					return ok && len(list) == 0 || v == ""
				}
				maps.DeleteFunc(got, empty)
				maps.DeleteFunc(want, empty)
				if !reflect.DeepEqual(got, want) {
					rt.Fatalf("knows %v\n of   %v", got, want)
				}
			}
		}
	})
}

func TestViewerThatWasAwayGetsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admin.New(admin.Options{Status: status})
		defer synctest.Wait()
		defer a.Close()
		c := watch(t, a, "")
		id := next(t, c).id
		for range 30 {
			next(t, c)
		}
		if e := next(t, watch(t, a, id)); e.event != "snapshot" {
			t.Errorf("after half a minute it gets %q", e.event)
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	f := start(t)
	var open []*http.Response
	defer func() {
		for _, r := range open {
			r.Body.Close()
		}
	}()
	for range 64 {
		resp, err := http.Get(f.server.URL + "/api/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, resp)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("viewer %d: %d", len(open), resp.StatusCode)
		}
	}
	resp, body := f.do("GET /api/v1/stream")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "too_many_streams") {
		t.Errorf("viewer 65: %d %s", resp.StatusCode, body)
	}
	if resp, _ := f.do("HEAD /api/v1/status"); resp.StatusCode != 200 {
		t.Errorf("the API beside it answers %d", resp.StatusCode)
	}
}

func TestStatusIsReadOnlyWhileSomeoneLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		a := admin.New(admin.Options{Status: func() admin.Status { reads.Add(1); return status() }})
		time.Sleep(time.Hour)
		if n := reads.Load(); n != 0 {
			t.Errorf("%d readings for nobody", n)
		}
		a.Close()
	})
}

// Every member of a row reaches a viewer when it changes, and is taken back
// when it goes, whichever of them it is: what rests is not sent anew each
// second, so a member that was forgotten in comparing would never change.
func TestEveryMemberOfARowArrives(t *testing.T) {
	for what, place := range map[string]func(*admin.Status) reflect.Value{
		"upstream": func(s *admin.Status) reflect.Value { return reflect.ValueOf(&s.Upstreams[0]).Elem() },
		"instance": func(s *admin.Status) reflect.Value { return reflect.ValueOf(&s.Upstreams[0].Instances[0]).Elem() },
		"route":    func(s *admin.Status) reflect.Value { return reflect.ValueOf(&s.Routes[0]).Elem() },
	} {
		base := func() admin.Status {
			return admin.Status{Upstreams: []admin.Upstream{{Name: "u", Concurrency: new(admin.Concurrency), Instances: []admin.Instance{{ID: "n/1"}}}},
				Routes: []admin.Route{{Name: "r", Upstream: "u"}}}
		}
		row := place(new(base()))
		for i := range row.NumField() {
			field := row.Type().Field(i)
			if (field.Name == "Name" || field.Name == "ID") || what == "upstream" && field.Name == "Instances" {
				continue // what it is, and rows themselves
			}
			t.Run(what+"/"+field.Name, func(t *testing.T) {
				now := base()
				frame := admin.FrameForTest(func() admin.Status { return now })
				page := map[string]map[string]any{}
				step := func() {
					t.Helper()
					delta, whole := frame()
					follow(t, page, delta)
					want := map[string]map[string]any{}
					read(t, want, whole)
					if !reflect.DeepEqual(tidy(page), tidy(want)) {
						t.Fatalf("a viewer knows\n%v\nof\n%v", page, want)
					}
				}
				step()
				now = base()
				fill(place(&now).Field(i), 1)
				step()
				now = base()
				fill(place(&now).Field(i), 2)
				step()
				now = base()
				step()
			})
		}
	}
}

// fill sets all that a value consists of to something that depends on n.
func fill(v reflect.Value, n int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text ", n))
	case reflect.Bool:
		v.SetBool(n%2 == 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(n) * 1_001_000)
	case reflect.Uint64:
		v.SetUint(uint64(n))
	case reflect.Float64:
		v.SetFloat(float64(n) + .12)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": fmt.Sprint(n)}))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(began.Add(time.Duration(n) * time.Second)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	default:
		panic("a kind of member that this test does not know: " + v.Kind().String())
	}
}

// follow does with a frame what the page does.
func follow(t *testing.T, page map[string]map[string]any, delta []byte) {
	t.Helper()
	var d struct {
		Upstreams, Instances, Live, Routes []map[string]any
		Gone                               []string
	}
	if err := json.Unmarshal(delta, &d); err != nil {
		t.Fatalf("%v in %s", err, delta)
	}
	for _, u := range d.Upstreams {
		page["u/"+u["name"].(string)] = u
	}
	for _, r := range d.Routes {
		page["r/"+r["name"].(string)] = r
	}
	for _, in := range d.Instances {
		delete(in, "upstream")
		page["i/u/"+in["id"].(string)] = in
	}
	for _, in := range d.Live {
		delete(in, "upstream")
		maps.Copy(page["i/u/"+in["id"].(string)], in)
	}
	for _, key := range d.Gone {
		delete(page, key)
	}
}

// read reads the same rows out of a snapshot.
func read(t *testing.T, page map[string]map[string]any, whole []byte) {
	t.Helper()
	var s struct{ Upstreams, Routes []map[string]any }
	if err := json.Unmarshal(whole, &s); err != nil {
		t.Fatalf("%v in %s", err, whole)
	}
	for _, u := range s.Upstreams {
		for _, in := range u["instances"].([]any) {
			in := in.(map[string]any)
			page["i/u/"+in["id"].(string)] = in
		}
		delete(u, "instances")
		page["u/"+u["name"].(string)] = u
	}
	for _, r := range s.Routes {
		page["r/"+r["name"].(string)] = r
	}
}

// tidy drops what is empty: left out and empty are one for the page.
func tidy(page map[string]map[string]any) map[string]map[string]any {
	for _, row := range page {
		maps.DeleteFunc(row, func(_ string, v any) bool {
			list, ok := v.([]any)
			return ok && len(list) == 0 || v == ""
		})
	}
	return page
}

// moving is a status of 200 services with ten instances each, whose counters
// all move from one to the next.
func moving() func() admin.Status {
	n := 0
	return func() admin.Status {
		n++
		s := status()
		pace := admin.Stats{Requests: uint64(n), Rate: float64(n%50) / 10, Latency: admin.Latency{P50: admin.Millis(n * 1001), P99: admin.Millis(n * 20_000)}}
		for u := range 200 {
			name := fmt.Sprintf("svc-%d", u)
			up := admin.Upstream{Name: name, Breaker: admin.Breaker{State: "closed"}, Stats: pace}
			for i := range 10 {
				up.Instances = append(up.Instances, admin.Instance{ID: fmt.Sprintf("node-%d/svc-%d-%d", i, u, i), Address: "10.0.0.1:8080", Status: "passing", State: "passing", Usable: true, Weight: 1, EffectiveWeight: 1,
					Requests: pace.Requests, Rate: pace.Rate, Latency: pace.Latency, Tags: []string{"a", "b"}, Checks: []admin.Check{{Name: "http", Status: "passing", Output: "HTTP GET http://10.0.0.1:8080/health: 200 OK Output: ok"}}})
			}
			s.Upstreams = append(s.Upstreams, up)
			s.Routes = append(s.Routes, admin.Route{Name: name, Path: "/" + name, Upstream: name, Source: "file", Stats: pace})
		}
		return s
	}
}

// A frame in which everything moved is written without an allocation for each
// row: five viewers of 2,000 instances are to cost less than a hundredth of a
// core, see TestFiveViewersCostLittle in pkg/app.
func TestAFrameAllocatesLittle(t *testing.T) {
	read := moving()
	var next admin.Status
	frame := admin.AdvanceForTest(func() admin.Status { return next })
	both := testing.AllocsPerRun(5, func() { next = read(); frame() })
	if n := both - testing.AllocsPerRun(5, func() { next = read() }); n > 700 { // lists of the routes that lead to an upstream are most of them
		t.Errorf("%.0f allocations for a frame of 2,400 rows", n)
	}
}

func BenchmarkFrame(b *testing.B) {
	read := moving()
	var next admin.Status
	frame := admin.AdvanceForTest(func() admin.Status { return next })
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		next = read()
		b.StartTimer()
		frame()
	}
}
