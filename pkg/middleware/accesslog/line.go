package accesslog

import (
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/proconsul/proconsul/pkg/middleware"
)

// appendLine appends the request's line. Keys of which there is nothing to say
// are left out, but for those that every reader expects.
func appendLine(b []byte, e *entry, end time.Time) []byte {
	x := e.x
	b = append(b, `{"time":"`...)
	b = appendTime(b, x.Start)
	b = append(b, '"')
	b = appendText(b, "request_id", x.RequestID)
	b = appendTrace(b, e)
	if x.ClientIP.IsValid() {
		b = append(b, `,"client_ip":"`...)
		b = x.ClientIP.AppendTo(b)
		b = append(b, '"')
	}
	b = appendText(b, "consumer", x.Consumer)
	b = appendText(b, "method", e.method)
	b = appendText(b, "scheme", x.Scheme)
	b = appendText(b, "host", e.host)
	b = appendText(b, "path", e.path)
	b = appendText(b, "proto", e.proto)
	b = appendText(b, "route", x.Route)
	b = appendText(b, "service", x.Upstream)
	b = appendText(b, "instance", x.Instance)
	b = appendNumber(b, "status", int64(e.status()))
	b = appendNumber(b, "bytes_in", x.BytesIn)
	b = appendNumber(b, "bytes_out", x.Bytes)
	b = appendMillis(b, "dur_ms", end.Sub(x.Start))
	if len(x.Attempts) > 0 {
		b = appendMillis(b, "upstream_ms", x.Upstreamed)
	}
	if x.FirstByte > 0 {
		b = appendMillis(b, "ttfb_ms", x.FirstByte)
	}
	if len(x.Attempts) > 1 || len(x.Attempts) == 1 && x.Attempts[0].Reason != "" {
		b = append(b, `,"attempts":[`...)
		for i, a := range x.Attempts {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"instance":`...)
			b = appendString(b, a.Instance)
			if a.Status != 0 {
				b = appendNumber(b, "status", int64(a.Status))
			}
			b = appendText(b, "reason", a.Reason)
			b = appendMillis(b, "dur_ms", a.Duration)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	b = appendText(b, "cache", x.Cache)
	b = appendText(b, "ratelimit", x.RateLimit)
	if x.Delayed > 0 {
		b = appendMillis(b, "ratelimit_ms", x.Delayed)
	}
	b = appendText(b, "reason", string(x.Reason))
	if x.Err != nil {
		b = appendText(b, "err", x.Err.Error())
	}
	if e.aborted {
		b = append(b, `,"aborted":true`...)
	}
	return append(b, '}', '\n')
}

func appendTrace(b []byte, e *entry) []byte {
	id, span := e.trace()
	if id == (middleware.TraceID{}) {
		return b
	}
	b = hex.AppendEncode(append(b, `,"trace_id":"`...), id[:])
	if span != (middleware.SpanID{}) {
		b = hex.AppendEncode(append(b, `","span_id":"`...), span[:])
	}
	return append(b, '"')
}

func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = appendKey(b, key)
	return appendString(b, value)
}

func appendNumber(b []byte, key string, n int64) []byte {
	return strconv.AppendInt(appendKey(b, key), n, 10)
}

// appendMillis appends a duration in milliseconds with up to three decimals.
func appendMillis(b []byte, key string, d time.Duration) []byte {
	us := d.Microseconds()
	b = appendKey(b, key)
	if us < 0 {
		b, us = append(b, '-'), -us
	}
	b = strconv.AppendInt(b, us/1000, 10)
	if rest := us % 1000; rest != 0 {
		b = append(b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
		for b[len(b)-1] == '0' {
			b = b[:len(b)-1]
		}
	}
	return b
}

// appendTime appends a time in UTC as RFC 3339 has it, with milliseconds. It is
// a part of every line, and time's own formatting takes five times as long.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = append(appendTwo(appendTwo(b, year/100), year%100), '-')
	b = append(appendTwo(b, int(month)), '-')
	b = append(appendTwo(b, day), 'T')
	b = append(appendTwo(b, hour), ':')
	b = append(appendTwo(b, minute), ':')
	b = append(appendTwo(b, second), '.')
	ms := t.Nanosecond() / 1e6
	return append(appendTwo(append(b, byte('0'+ms/100)), ms%100), 'Z')
}

func appendTwo(b []byte, n int) []byte { return append(b, byte('0'+n/10), byte('0'+n%10)) }

func appendKey(b []byte, key string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	return append(b, '"', ':')
}

// appendString appends s as a JSON string that is safe on a terminal too:
// control characters and what is not UTF-8 never reach it as they are.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		plain := i
		for i < len(s) && s[i] >= 0x20 && s[i] < 0x7f && s[i] != '"' && s[i] != '\\' {
			i++
		}
		b = append(b, s[plain:i]...)
		if i == len(s) {
			break
		}
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(b, `\ufffd`...)
			case r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029: // C1 controls and line ends
				b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
			default:
				b = append(b, s[i:i+n]...)
			}
			i += n
		}
	}
	return append(b, '"')
}
