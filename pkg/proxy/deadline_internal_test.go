package proxy

import (
	"testing"
	"time"
)

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "250m": 250 * time.Millisecond, "7u": 7 * time.Microsecond, "99999999n": 99999999, "0m": 0,
	} {
		if got, ok := parseTimeout(s); !ok || got != want {
			t.Errorf("%q: got %v %t, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "m", "1", "-1S", "1.5S", "1s", " 1S", "123456789m", "99999999H"} {
		if got, ok := parseTimeout(s); ok {
			t.Errorf("%q: got %v, want none", s, got)
		}
	}
}
