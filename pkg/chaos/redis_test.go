package chaos_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

const (
	limitCount  = 40
	limitWindow = 2 * time.Second
	exactCount  = 50
	sharing     = 2 // replicas
)

// outage is a time in which Redis does not decide: it begins before the fault
// and ends when every replica says that it is over.
type outage struct {
	from, to time.Time
	brief    bool // the machine was so slow that single calls to Redis were given up before or after
}

// redisOutage sends five times what a limit admits through two replicas, over
// an outage of their Redis.
func (s *scene) redisOutage(redis string, fault, heal func()) {
	s.Helper()
	for _, id := range []string{"1", "2"} {
		s.echo(id)
	}
	route := func(name, limit, mode string) string {
		return fmt.Sprintf("  - {name: %s-%s, match: {path: /%s}, upstream: {service: %s}, rate_limit: {by: \"header(X-Key)\", limits: [%s], on_store_error: %s}}\n",
			s.service, name, name, s.service, limit, mode)
	}
	config := s.config(s.agent.Addr, options, fmt.Sprintf("redis: {addr: %q, timeout: 250ms}\nregistration: {enabled: true, name: %s-gateway}", redis, s.service))
	config += (route("limited", fmt.Sprintf("%d/%v", limitCount, limitWindow), "local") +
		route("exact", fmt.Sprintf("%d/1h", exactCount), "local") +
		route("open", "1/1h", "open") + route("closed", "1000/1h", "closed"))
	for range sharing {
		s.replica(config).AwaitUsable(s.service, 2)
	}
	s.redis("up")
	eventually(s, "the replicas do not know of one another", func() bool {
		for _, r := range s.replicas {
			if !strings.HasPrefix(r.MustStatus().Redis.Detail, fmt.Sprintf("%d replicas", sharing)) {
				return false
			}
		}
		return true
	})
	s.exact("before the outage")

	shots := []shot{{method: http.MethodGet, path: "/limited", header: map[string]string{"X-Key": "k"}}}
	var loads []*traffic
	for _, r := range s.replicas {
		loads = append(loads, send(s, "http://"+r.Addr, 100/sharing, shots))
	}
	windows := func(n int) { loads[0].await(n * 100 / sharing * int(limitWindow/time.Second)) }
	windows(2)
	out := outage{from: time.Now(), brief: s.alone() > 0}
	fault()
	s.redis("down")
	windows(2)
	if got := s.ask("open"); got != http.StatusOK {
		s.Errorf("open, while Redis is away: %d", got)
	}
	if got := s.ask("closed"); got == http.StatusOK {
		s.Errorf("closed, while Redis is away: %d", got)
	}
	back := time.Now()
	heal()
	s.redis("up")
	out.to = time.Now()
	s.recovered(back)
	alone := s.alone()
	s.exact("after the outage")
	windows(2)
	out.brief = out.brief || s.alone() > alone
	for _, l := range loads {
		s.end(l)
	}
	s.bounds(out)
}

// redis waits until every replica says so of Redis.
func (s *scene) redis(state string) {
	s.Helper()
	eventually(s, "Redis does not turn "+state, func() bool {
		for _, r := range s.replicas {
			if r.MustStatus().Redis.State != state {
				return false
			}
		}
		return true
	})
}

// ask sends one request to a limited path.
func (s *scene) ask(path string) int {
	s.Helper()
	req, err := http.NewRequest(http.MethodGet, s.replicas[0].URL("/"+path), nil)
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("X-Key", "one")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// alone returns how many decisions the replicas have made without Redis.
func (s *scene) alone() (n float64) {
	s.Helper()
	for _, r := range s.replicas {
		local, _ := r.Metric("proconsul_ratelimit_decisions_total", `decision="local"`)
		n += local
	}
	return n
}

// exact fails unless a key that nobody has used has exactly its limit, over
// all replicas. On a machine so slow that a call to Redis is given up, that is
// an outage of its own: then another key is asked.
func (s *scene) exact(when string) {
	s.Helper()
	for try := range 10 {
		alone := s.alone()
		got := s.fireExact(fmt.Sprint(when, try))
		if s.alone() > alone {
			continue
		}
		if got[http.StatusOK] != exactCount || got[http.StatusTooManyRequests] != 2*exactCount {
			s.Errorf("%s: %v, want exactly %d admitted", when, got, exactCount)
		}
		return
	}
	s.Errorf("%s: Redis does not answer in time", when)
}

func (s *scene) fireExact(key string) map[int]int {
	s.Helper()
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range 3 * exactCount {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			req, err := http.NewRequest(http.MethodGet, s.replicas[i%len(s.replicas)].URL("/exact"), nil)
			if err != nil {
				panic(err)
			}
			req.Header.Set("X-Key", key)
			resp, err := http.DefaultClient.Do(req)
			code := 0
			if err == nil {
				resp.Body.Close()
				code = resp.StatusCode
			}
			mu.Lock()
			got[code]++
			mu.Unlock()
		})
	}
	wg.Wait()
	return got
}

// bounds holds what was admitted against the limit: never more than it in a
// window that the outage does not touch, and never more than
// limit x (2 - 1/replicas) in one that it does.
func (s *scene) bounds(out outage) {
	s.Helper()
	var at []time.Time
	var longest time.Duration
	var during []time.Duration
	for i := range s.results {
		r := &s.results[i]
		if r.ok() {
			at = append(at, r.began)
			longest = max(longest, r.took)
		}
		if r.began.After(out.from.Add(time.Second)) && r.end().Before(out.to) {
			during = append(during, r.took)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	// A request was admitted some time between its beginning and its end: so
	// many that began within length were admitted within a window.
	length := limitWindow - longest
	most, worst := 0, 0
	from := 0
	for i, t := range at {
		for at[from].Before(t.Add(-length)) {
			from++
		}
		n := i - from + 1
		if t.Before(out.from) || at[from].After(out.to.Add(limitWindow)) {
			most = max(most, n)
		} else {
			worst = max(worst, n)
		}
	}
	if out.brief {
		worst, most = max(worst, most), min(most, limitCount)
		s.note("the machine was too slow for Redis at times")
	}
	if most > limitCount {
		s.Errorf("%d admitted in a window of %v without an outage, the limit is %d", most, limitWindow, limitCount)
	}
	if bound := limitCount * (2*sharing - 1) / sharing; worst > bound {
		s.Errorf("%d admitted in a window of %v that straddles the outage, the bound is %d", worst, limitWindow, bound)
	}
	if most < limitCount*3/4 {
		s.Errorf("%d admitted in a window at most, far from the limit of %d", most, limitCount)
	}
	slices.Sort(during)
	if len(during) == 0 {
		s.Error("no request during the outage")
		return
	}
	s.note("limit %d: at most %d admitted in a window, %d in one that straddles the outage; median answer without Redis %.1f ms",
		limitCount, most, worst, float64(during[len(during)/2].Microseconds())/1000)
}

func redisKilled(s *scene) {
	r := parts.StartRedis(s)
	s.redisOutage(r.Addr, r.Kill, r.Start)
}

func redisFrozen(s *scene) {
	r := parts.StartRedis(s)
	s.redisOutage(r.Addr, r.Freeze, r.Thaw)
}

func redisDropped(s *scene) {
	r := parts.StartRedis(s)
	w := parts.StartWire(s, r.Addr)
	s.redisOutage(w.Addr, w.Drop, w.Heal)
}

// redisFailover has the server become the replica of another, which it stays
// for a while: it answers and takes no writes. The scripts are gone as well.
func redisFailover(s *scene) {
	r, other := parts.StartRedis(s), parts.StartRedis(s)
	host, port, _ := strings.Cut(other.Addr, ":")
	s.redisOutage(r.Addr, func() {
		s.command(r.Addr, "REPLICAOF "+host+" "+port)
		s.command(r.Addr, "SCRIPT FLUSH")
	}, func() { s.command(r.Addr, "REPLICAOF NO ONE") })
}

// command sends one command to a Redis.
func (s *scene) command(addr, line string) {
	s.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.Fatal(err)
	}
	fmt.Fprintf(c, "%s\r\n", line)
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.HasPrefix(answer, "+") {
		s.Fatalf("%s: %q %v", line, answer, err)
	}
}
