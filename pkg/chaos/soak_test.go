package chaos_test

import (
	"time"

	"github.com/proconsul/proconsul/pkg/parts"
)

// soon is options with connections that go soon after their use, so that what
// is left can be told from what is kept.
const soon = "timeout: {connect: 500ms, response: 1s, idle: 1s}, outlier: {eject_for: 2s}"

// size is what a replica holds.
type size struct{ goroutines, series, memory float64 }

func (s *scene) size(r *parts.Replica) size {
	s.Helper()
	g, _ := r.Metric("go_goroutines")
	m, _ := r.Metric("process_resident_memory_bytes")
	return size{goroutines: g, series: float64(r.Series()), memory: m}
}

// shrunk fails if a replica keeps what it needed for what is over. Without
// traffic its idle connections are all that may differ.
func (s *scene) shrunk(r *parts.Replica, before size) {
	s.Helper()
	var now size
	parts.Eventually(s, time.Minute, "the replica has not shrunk again", func() bool {
		now = s.size(r)
		return now.goroutines <= before.goroutines+8 && now.series <= before.series+8
	})
	s.note("goroutines %.0f, then %.0f; series %.0f, then %.0f", before.goroutines, now.goroutines, before.series, now.series)
}
