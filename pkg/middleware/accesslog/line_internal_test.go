package accesslog

import (
	"strconv"
	"testing"
	"time"
)

// What lines are made of quickly is what the standard library makes.
func TestQuickFormats(t *testing.T) {
	zone := time.FixedZone("", 5*3600+1800)
	for _, at := range []time.Time{
		time.Unix(0, 0), time.Date(2026, 11, 29, 7, 5, 4, 9_999_999, time.UTC), time.Date(2024, 2, 29, 23, 59, 59, 999_999_999, zone),
		time.Date(1999, 1, 1, 1, 1, 1, 100_000_000, zone), time.Date(9999, 12, 31, 12, 0, 0, 12_000_000, time.UTC),
	} {
		if got, want := string(appendTime(nil, at)), at.UTC().Format("2006-01-02T15:04:05.000Z07:00"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for _, us := range []int64{0, 1, 10, 100, 120, 999, 1000, 1001, 1010, 1100, 123456, 1e9 + 7, -5, -1500, 1 << 40} {
		d := time.Duration(us) * time.Microsecond
		if got, want := string(appendMillis(nil, "k", d)), `,"k":`+strconv.FormatFloat(float64(us)/1000, 'f', -1, 64); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
