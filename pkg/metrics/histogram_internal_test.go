package metrics

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"
)

// A scrape shows what client_golang's own histogram would have, at the bounds
// themselves and a nanosecond beside them too.
func TestHistogramsAreCountedAsClientGolangCountsThem(t *testing.T) {
	for name, s := range map[string]*scale{"requests": requestScale, "fast": fastScale} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				bound := rapid.SampledFrom(s.bounds)
				near := rapid.Custom(func(t *rapid.T) time.Duration {
					return time.Duration(bound.Draw(t, "bound")*1e9+.5) + time.Duration(rapid.IntRange(-1, 1).Draw(t, "beside"))
				})
				anywhere := rapid.Map(rapid.Int64Range(-1, int64(5*time.Minute)), func(n int64) time.Duration { return time.Duration(n) })
				theirs := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Help: "h", Buckets: s.bounds})
				ours := new(histogram)
				for _, d := range rapid.SliceOf(rapid.OneOf(near, anywhere)).Draw(t, "durations") {
					theirs.Observe(d.Seconds())
					ours.observe(s, s.place(d), d, "")
				}
				var want, got dto.Metric
				if err := theirs.Write(&want); err != nil {
					t.Fatal(err)
				}
				if err := ours.metric(s, prometheus.NewDesc("h", "h", nil, nil)).Write(&got); err != nil {
					t.Fatal(err)
				}
				w, g := want.GetHistogram(), got.GetHistogram()
				if w.GetSampleCount() != g.GetSampleCount() || len(w.GetBucket()) != len(g.GetBucket()) {
					t.Fatalf("count %d in %d buckets, want %d in %d", g.GetSampleCount(), len(g.GetBucket()), w.GetSampleCount(), len(w.GetBucket()))
				}
				if off := w.GetSampleSum() - g.GetSampleSum(); off > 1e-6 || off < -1e-6 {
					t.Fatalf("sum %v, want %v", g.GetSampleSum(), w.GetSampleSum())
				}
				for i, b := range w.GetBucket() {
					if o := g.GetBucket()[i]; o.GetUpperBound() != b.GetUpperBound() || o.GetCumulativeCount() != b.GetCumulativeCount() {
						t.Fatalf("up to %v: %d, want %d up to %v", o.GetUpperBound(), o.GetCumulativeCount(), b.GetCumulativeCount(), b.GetUpperBound())
					}
				}
			})
		})
	}
}

// Whoever ended before a slot began and comes after belongs to the slot that
// runs: beginning the one before again would lose what is known of it.
func TestASlotBeginsOnce(t *testing.T) {
	var ts timings
	at := time.Unix(1_000_000, 0)
	count := func(at time.Time) {
		ts.turn(at)
		ts.class(2).observe(requestScale, 0, 0, "")
	}
	count(at.Add(-time.Second)) // of the slot before
	count(at)
	count(at.Add(-time.Second))
	count(at)
	if c := ts.since(at.Unix() / slotSeconds); c == nil || c.places[0].Load() != 1 {
		t.Errorf("what was counted before the slot: %v, want 1", c)
	}
	// A clock that was set back begins slots anew rather than none for hours.
	count(at.Add(-time.Hour))
	if st := ts.stats(at.Add(-time.Hour)); st.Requests != 5 || st.Rate == 0 {
		t.Errorf("after the clock was set back: %+v", st)
	}
}
