package config

import (
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written "64KiB", "10MiB", "1GB" or a bare number.
type Size int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	units := []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.factor {
			return &formatError{CodeFormat, "is not a size (want 64KiB, 10MiB or a number of bytes)", ""}
		}
		*s = Size(n * u.factor)
		return nil
	}
	return nil
}

// String returns the size in the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range []struct {
		suffix string
		factor Size
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s != 0 && s%u.factor == 0 {
			return strconv.FormatInt(int64(s/u.factor), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Percent is a share from 0 to 100, written "50%" or as a fraction ("0.1").
type Percent float64

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Percent) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	digits, percent := strings.CutSuffix(text, "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if !percent {
		f *= 100
	}
	if err != nil || !(f >= 0 && f <= 100) {
		return &formatError{CodeFormat, "is not a share (want 20% or 0.2, from 0% to 100%)", ""}
	}
	*p = Percent(f)
	return nil
}

// String returns the share with its sign, as "20%".
func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'g', -1, 64) + "%" }

// MarshalText implements encoding.TextMarshaler.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Fraction returns the share as a number from 0 to 1.
func (p Percent) Fraction() float64 { return float64(p) / 100 }

// UnmarshalText implements encoding.TextUnmarshaler for "100/1m", "20/s",
// "5000/d", "5000/day" and "100000/month". The last two follow the calendar.
func (l *Limit) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	bad := &formatError{CodeFormat, "is not a limit (want COUNT/WINDOW, as 100/1m, 20/s, 5000/d or 5000/day)", ""}
	count, window, ok := strings.Cut(text, "/")
	if !ok {
		return bad
	}
	n, err := strconv.Atoi(strings.TrimSpace(count))
	if err != nil || n < 1 {
		return bad
	}
	window = strings.TrimSpace(window)
	switch window {
	case "day":
		*l = Limit{n, 24 * time.Hour, window}
		return nil
	case "month":
		*l = Limit{n, 31 * 24 * time.Hour, window}
		return nil
	}
	if window != "" && (window[0] < '0' || window[0] > '9') {
		window = "1" + window
	}
	days := time.Duration(1)
	if w, ok := strings.CutSuffix(window, "d"); ok {
		window, days = w+"h", 24
	}
	d, err := time.ParseDuration(window)
	if err != nil || d <= 0 || d > 366*24*time.Hour/days {
		return bad
	}
	*l = Limit{Count: n, Window: d * days}
	return nil
}

// String returns the limit as "100/1m" or "5000/day".
func (l Limit) String() string {
	if l.Calendar != "" {
		return strconv.Itoa(l.Count) + "/" + l.Calendar
	}
	return strconv.Itoa(l.Count) + "/" + formatDuration(l.Window)
}

// MarshalText implements encoding.TextMarshaler.
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Secret is a value that never appears in a log, page, error or printed
// configuration. Reveal is the one way to its text.
type Secret struct{ text string }

// NewSecret returns a Secret that holds text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the secret's text.
func (s Secret) Reveal() string { return s.text }

// Empty reports whether the secret has no text.
func (s Secret) Empty() bool { return s.text == "" }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(b []byte) error { s.text = string(b); return nil }

// MarshalText implements encoding.TextMarshaler: the text is masked.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the mask, or nothing where the secret is empty.
func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return "***"
}

// GoString keeps the text out of %#v.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }
