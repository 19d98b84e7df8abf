package proxy

import (
	"sync"
	"time"

	"github.com/proconsul/proconsul/balancer"
)

// defaultDrain is how long streams of an instance that is going away may last
// where the settings do not say.
const defaultDrain = 30 * time.Second

// streams are an upstream's switched connections and event streams: what would
// otherwise go on for ever.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
}

// stream is what GoAway can end.
type stream struct {
	all      *streams
	instance string
	once     sync.Once
	end      func() // must not block
	done     chan struct{}
	watched  sync.WaitGroup
}

// add registers a stream to member. end is called at most once: by goAway, or
// when the instance has been going away for drain. The stream must be removed
// when it is over.
func (s *streams) add(member *balancer.Member, drain time.Duration, end func()) *stream {
	if drain <= 0 {
		drain = defaultDrain
	}
	st := &stream{all: s, instance: member.ID(), end: end, done: make(chan struct{})}
	s.mu.Lock()
	if s.open == nil {
		s.open = make(map[*stream]struct{})
	}
	s.open[st] = struct{}{}
	s.mu.Unlock()
	draining := member.Draining()
	st.watched.Go(func() {
		select {
		case <-st.done:
			return
		case <-draining:
		}
		timer := time.NewTimer(drain)
		defer timer.Stop()
		select {
		case <-st.done:
		case <-timer.C:
			st.once.Do(st.end)
		}
	})
	return st
}

// remove forgets a stream that is over and joins its watch.
func (st *stream) remove() {
	st.all.mu.Lock()
	delete(st.all.open, st)
	st.all.mu.Unlock()
	close(st.done)
	st.watched.Wait()
}

func (s *streams) goAway(instance string) int {
	s.mu.Lock()
	var ending []*stream
	for st := range s.open {
		if instance == "" || st.instance == instance {
			ending = append(ending, st)
			delete(s.open, st)
		}
	}
	s.mu.Unlock()
	for _, st := range ending {
		st.once.Do(st.end)
	}
	return len(ending)
}
