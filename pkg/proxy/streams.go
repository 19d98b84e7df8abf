package proxy

import "sync"

// stream is what GoAway can end. goAway is called at most once, from any
// goroutine, and must not block.
type stream struct {
	instance string
	goAway   func()
}

// streams are an upstream's switched connections and event streams.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
}

func (s *streams) add(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*stream]struct{})
	}
	s.open[st] = struct{}{}
}

func (s *streams) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
}

func (s *streams) goAway(instance string) int {
	s.mu.Lock()
	var ends []func()
	for st := range s.open {
		if instance == "" || st.instance == instance {
			ends = append(ends, st.goAway)
			delete(s.open, st)
		}
	}
	s.mu.Unlock()
	for _, end := range ends {
		end()
	}
	return len(ends)
}
