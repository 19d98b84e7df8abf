package accesslog

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
)

// form is the rules for what is worth a line, and how lines look. It is made
// once per configuration.
type form struct {
	config.AccessLog
	statuses [][2]int
	fields   []string                                       // header fields that lines name, canonical; nil: none
	line     func(b []byte, e *entry, end time.Time) []byte // nil: appendLine
}

// referer may hold the query of another page, and with it its secrets.
const referer = "Referer"

func newForm(c config.AccessLog) *form {
	f := &form{AccessLog: c}
	if c.Filter != nil {
		for _, text := range c.Filter.Status {
			if from, to, err := config.ParseStatuses(text); err == nil { // Load has refused others
				f.statuses = append(f.statuses, [2]int{from, to})
			}
		}
	}
	switch c.Format {
	case "otel":
		f.line = appendOTel
	case "clf":
		f.line = func(b []byte, e *entry, _ time.Time) []byte { return append(appendCommon(b, e), '\n') }
	case "combined":
		f.fields = []string{referer, "User-Agent"}
		f.line = func(b []byte, e *entry, _ time.Time) []byte {
			b = append(appendCommon(b, e), ` "`...)
			b = appendClean(b, orDash(e.header[0]), true)
			b = append(b, `" "`...)
			b = appendClean(b, orDash(e.header[1]), true)
			return append(b, '"', '\n')
		}
	case "template":
		f.template(c.Template)
	}
	return f
}

// keep returns the values of the fields that lines name. The request's header
// is used up by what is sent to the instance.
func (f *form) keep(h http.Header) []string {
	values := make([]string, len(f.fields))
	for i, name := range f.fields {
		values[i] = strings.Join(h[name], ", ")
		if name == referer {
			values[i], _, _ = strings.Cut(values[i], "?")
		}
	}
	return values
}

// template compiles a template into the parts of a line.
func (f *form) template(text string) {
	var parts []func(b []byte, e *entry, end time.Time) []byte
	quoted := false // inside "...": a value must not end it
	for _, part := range config.SplitTemplate(text) {
		if part == "$$" || part[0] != '$' {
			literal := strings.ReplaceAll(part, "$$", "$")
			quoted = quoted != (strings.Count(literal, `"`)%2 == 1)
			parts = append(parts, func(b []byte, _ *entry, _ time.Time) []byte { return append(b, literal...) })
			continue
		}
		quote := quoted
		if name, ok := strings.CutPrefix(part, "$header."); ok {
			n := len(f.fields)
			f.fields = append(f.fields, http.CanonicalHeaderKey(name))
			parts = append(parts, func(b []byte, e *entry, _ time.Time) []byte { return appendClean(b, orDash(e.header[n]), quote) })
			continue
		}
		value := variables[part]
		parts = append(parts, func(b []byte, e *entry, end time.Time) []byte {
			return appendClean(b, orDash(value(e, end)), quote)
		})
	}
	f.line = func(b []byte, e *entry, end time.Time) []byte {
		for _, part := range parts {
			b = part(b, e, end)
		}
		return append(b, '\n')
	}
}

// variables are what a template may name; config.LogVariables lists them.
var variables = map[string]func(e *entry, end time.Time) string{
	"$bytes_in":           func(e *entry, _ time.Time) string { return strconv.FormatInt(e.x.BytesIn, 10) },
	"$cache":              func(e *entry, _ time.Time) string { return e.x.Cache },
	"$consumer":           func(e *entry, _ time.Time) string { return e.x.Consumer },
	"$ratelimit":          func(e *entry, _ time.Time) string { return e.x.RateLimit },
	"$reason":             func(e *entry, _ time.Time) string { return string(e.x.Reason) },
	"$remote_addr":        func(e *entry, _ time.Time) string { return e.peer },
	"$remote_host":        func(e *entry, _ time.Time) string { return client(e) },
	"$request":            func(e *entry, _ time.Time) string { return e.method + " " + e.path + " " + e.proto },
	"$request_host":       func(e *entry, _ time.Time) string { return e.host },
	"$request_id":         func(e *entry, _ time.Time) string { return e.x.RequestID },
	"$request_method":     func(e *entry, _ time.Time) string { return e.method },
	"$request_proto":      func(e *entry, _ time.Time) string { return e.proto },
	"$request_scheme":     func(e *entry, _ time.Time) string { return e.x.Scheme },
	"$request_uri":        func(e *entry, _ time.Time) string { return e.path },
	"$response_body_size": func(e *entry, _ time.Time) string { return strconv.FormatInt(e.x.Bytes, 10) },
	"$response_status":    func(e *entry, _ time.Time) string { return strconv.Itoa(e.status()) },
	"$response_time_ms":   func(e *entry, end time.Time) string { return milliseconds(end.Sub(e.x.Start)) },
	"$response_time_ns":   func(e *entry, end time.Time) string { return strconv.FormatInt(end.Sub(e.x.Start).Nanoseconds(), 10) },
	"$response_time_us":   func(e *entry, end time.Time) string { return strconv.FormatInt(end.Sub(e.x.Start).Microseconds(), 10) },
	"$route":              func(e *entry, _ time.Time) string { return e.x.Route },
	"$span_id": func(e *entry, _ time.Time) string {
		if _, span := e.trace(); span != (middleware.SpanID{}) {
			return span.String()
		}
		return ""
	},
	"$time_common":     func(e *entry, _ time.Time) string { return e.x.Start.UTC().Format(commonTime) },
	"$time_rfc3339":    func(e *entry, _ time.Time) string { return e.x.Start.UTC().Format(time.RFC3339) },
	"$time_rfc3339_ms": func(e *entry, _ time.Time) string { return string(appendTime(nil, e.x.Start)) },
	"$time_unix_ms":    func(e *entry, _ time.Time) string { return strconv.FormatInt(e.x.Start.UnixMilli(), 10) },
	"$trace_id": func(e *entry, _ time.Time) string {
		if id, _ := e.trace(); id != (middleware.TraceID{}) {
			return id.String()
		}
		return ""
	},
	"$ttfb_ms": func(e *entry, _ time.Time) string {
		if e.x.FirstByte > 0 {
			return milliseconds(e.x.FirstByte)
		}
		return ""
	},
	"$upstream_addr": func(e *entry, _ time.Time) string {
		if n := len(e.x.Attempts); n > 0 {
			return e.x.Attempts[n-1].Address
		}
		return ""
	},
	"$upstream_instance": func(e *entry, _ time.Time) string { return e.x.Instance },
	"$upstream_ms":       func(e *entry, _ time.Time) string { return milliseconds(e.x.Upstreamed) },
	"$upstream_service":  func(e *entry, _ time.Time) string { return e.x.Upstream },
	"$upstream_tries":    func(e *entry, _ time.Time) string { return strconv.Itoa(len(e.x.Attempts)) },
}

const (
	commonTime = "02/Jan/2006:15:04:05 -0700"
)

func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', -1, 64)
}

// client is who the request is counted for.
func client(e *entry) string {
	if e.x.ClientIP.IsValid() {
		return e.x.ClientIP.String()
	}
	host, _, err := net.SplitHostPort(e.peer)
	if err != nil {
		return e.peer
	}
	return host
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendCommon appends a line in Apache's common log format.
// https://httpd.apache.org/docs/2.4/logs.html#common
func appendCommon(b []byte, e *entry) []byte {
	b = appendClean(b, orDash(client(e)), false)
	b = append(b, " - "...)
	b = appendClean(b, orDash(e.x.Consumer), false)
	b = append(b, " ["...)
	b = e.x.Start.UTC().AppendFormat(b, commonTime)
	b = append(b, `] "`...)
	b = appendClean(b, e.method, true)
	b = append(b, ' ')
	b = appendClean(b, e.path, true)
	b = append(b, ' ')
	b = appendClean(b, e.proto, true)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(e.status()), 10)
	b = append(b, ' ')
	if e.x.Bytes == 0 {
		return append(b, '-')
	}
	return strconv.AppendInt(b, e.x.Bytes, 10)
}

// appendClean appends a value to a line of plain text as Apache does: what
// could end the line, or a quoted value, or act on a terminal, is escaped.
// Outside quotes spaces are too, since they part the fields.
func appendClean(b []byte, s string, quoted bool) []byte {
	const hex = "0123456789abcdef"
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f || c == ' ' && !quoted:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 || r < 0xa0 || r == 0x2028 || r == 0x2029 {
				for _, c := range []byte(s[i : i+n]) {
					b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
				}
			} else {
				b = append(b, s[i:i+n]...)
			}
			i += n
			continue
		}
		i++
	}
	return b
}

// appendOTel appends a line of JSON in the keys of OpenTelemetry's semantic
// conventions. https://opentelemetry.io/docs/specs/semconv/http/http-spans
func appendOTel(b []byte, e *entry, end time.Time) []byte {
	x := e.x
	b = append(b, `{"timestamp":"`...)
	b = appendTime(b, x.Start)
	b = append(b, '"')
	b = appendTrace(b, e)
	if x.ClientIP.IsValid() {
		b = append(b, `,"client.address":"`...)
		b = x.ClientIP.AppendTo(b)
		b = append(b, '"')
	}
	b = appendText(b, "http.request.method", e.method)
	b = appendText(b, "url.scheme", x.Scheme)
	b = appendText(b, "server.address", e.host)
	b = appendText(b, "url.path", e.path)
	b = appendText(b, "network.protocol.version", strings.TrimPrefix(e.proto, "HTTP/"))
	b = appendNumber(b, "http.response.status_code", int64(e.status()))
	b = appendNumber(b, "http.request.body.size", x.BytesIn)
	b = appendNumber(b, "http.response.body.size", x.Bytes)
	b = strconv.AppendFloat(appendKey(b, "http.server.request.duration"), end.Sub(x.Start).Seconds(), 'f', 6, 64)
	b = appendText(b, "error.type", string(x.Reason))
	b = appendText(b, "proconsul.request_id", x.RequestID)
	b = appendText(b, "proconsul.consumer", x.Consumer)
	b = appendText(b, "proconsul.route", x.Route)
	b = appendText(b, "proconsul.upstream", x.Upstream)
	b = appendText(b, "proconsul.instance", x.Instance)
	b = appendText(b, "proconsul.cache", x.Cache)
	b = appendText(b, "proconsul.ratelimit", x.RateLimit)
	if n := len(x.Attempts); n > 0 {
		b = appendNumber(b, "proconsul.tries", int64(n))
	}
	if x.Err != nil {
		b = appendText(b, "error.message", x.Err.Error())
	}
	return append(b, '}', '\n')
}
