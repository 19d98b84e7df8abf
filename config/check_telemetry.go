package config

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// LogVariables are what a template of the access log may name, beside
// $header.NAME.
func LogVariables() []string {
	return []string{
		"$bytes_in", "$cache", "$consumer", "$ratelimit", "$reason", "$remote_addr", "$remote_host", "$request",
		"$request_host", "$request_id", "$request_method", "$request_proto", "$request_scheme", "$request_uri",
		"$response_body_size", "$response_status", "$response_time_ms", "$response_time_ns", "$response_time_us",
		"$route", "$span_id", "$time_common", "$time_rfc3339", "$time_rfc3339_ms", "$time_unix_ms", "$trace_id",
		"$ttfb_ms", "$upstream_addr", "$upstream_instance", "$upstream_ms", "$upstream_service", "$upstream_tries",
	}
}

// SplitTemplate cuts a template of the access log into texts and variables;
// these begin with a dollar sign, and "$$" is a text that is one.
func SplitTemplate(template string) []string {
	var parts []string
	for rest := template; rest != ""; {
		i := strings.IndexByte(rest, '$')
		switch {
		case i < 0:
			return append(parts, rest)
		case i > 0:
			parts = append(parts, rest[:i])
			rest = rest[i:]
		case strings.HasPrefix(rest, "$$"):
			parts = append(parts, "$$")
			rest = rest[2:]
		default:
			end := 1 + strings.IndexFunc(rest[1:], func(r rune) bool { return !variableRune(r) })
			if strings.HasPrefix(rest, "$header.") {
				end = 1 + strings.IndexFunc(rest[1:], func(r rune) bool { return !variableRune(r) && r != '.' && r != '-' })
			}
			if end == 0 {
				end = len(rest)
			}
			parts = append(parts, rest[:end])
			rest = rest[end:]
		}
	}
	return parts
}

func variableRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_'
}

// ParseStatuses reads "404" or "400-499".
func ParseStatuses(text string) (from, to int, err error) {
	low, high, ranged := strings.Cut(text, "-")
	if !ranged {
		high = low
	}
	from, err1 := strconv.Atoi(strings.TrimSpace(low))
	to, err2 := strconv.Atoi(strings.TrimSpace(high))
	if err1 != nil || err2 != nil || from < 100 || to > 599 || from > to {
		return 0, 0, fmt.Errorf("%q is no status from 100 to 599 and no range of them", text)
	}
	return from, to, nil
}

func (b *builder) checkAccessLog(l AccessLog) {
	switch {
	case l.Format == "template" && l.Template == "":
		b.need("access_log", "template", "", `write template: "$remote_host $request_method $request_uri $response_status"`)
	case l.Format != "template" && l.Template != "" && b.sound("access_log.format"):
		b.bad("access_log.template", l.Template, CodeContradicts, "is not used by format "+l.Format, "write format: template")
	}
	b.checkTemplate(l.Template)
	if f := l.Filter; f != nil {
		for i, text := range f.Status {
			if _, _, err := ParseStatuses(text); err != nil {
				b.bad(at("access_log.filter.status", i), text, CodeFormat, "is no status", `write "404" or "400-499"`)
			}
		}
		if len(f.Status) == 0 && f.MinDuration == 0 && !f.Retried && b.sound("access_log.filter") {
			b.warn("access_log.filter", CodeNoEffect, "access_log.filter names no condition: only failures, slow and limited requests are logged", "add status, min_duration or retried, or remove it")
		}
	}
}

func (b *builder) checkTemplate(template string) {
	const path = "access_log.template"
	if strings.ContainsFunc(template, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		b.bad(path, "", CodeFormat, "has line breaks or control characters", "a request has one line")
		return
	}
	for _, part := range SplitTemplate(template) {
		name, header := strings.CutPrefix(part, "$header.")
		f := Fault{Path: path, Code: CodeHeader}
		switch {
		case part[0] != '$', part == "$$", slices.Contains(LogVariables(), part):
			continue
		case header && !token(name):
			f.Message = "names no header field"
		case header && (isSensitive(name) || strings.EqualFold(name, "Cookie") || strings.Contains(strings.ToLower(name), "authorization")):
			f.Message = "would write credentials into the log"
		case header:
			continue
		default:
			f.Code, f.Message, f.Hint = CodeReference, "is no variable of the access log", didYouMean(part, LogVariables())
		}
		f.Message = fmt.Sprintf("%s: %q %s", path, part, f.Message)
		b.fault(f)
	}
}

func (b *builder) checkTracing(t Tracing) {
	if t.Endpoint != "" {
		u, err := url.Parse(t.Endpoint)
		if strings.Contains(t.Endpoint, "@") {
			b.hide("tracing.endpoint")
		}
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			b.bad("tracing.endpoint", t.Endpoint, CodeAddress, "is no http or https URL", "write http://HOST:4318")
		case u.User != nil:
			b.bad("tracing.endpoint", t.Endpoint, CodeContradicts, "holds credentials", "put them into tracing.headers")
		case u.RawQuery != "" || u.Fragment != "":
			b.bad("tracing.endpoint", t.Endpoint, CodeAddress, "has a query or fragment", "write http://HOST:4318")
		case t.CAFile != "" && u.Scheme == "http":
			b.warn("tracing.ca_file", CodeNoEffect, "tracing.ca_file means nothing for an http endpoint", "write an https endpoint")
		}
	}
	for i, f := range t.Headers {
		p := at("tracing.headers", i)
		if f.Name != "" {
			b.headerName(join(p, "name"), f.Name)
		}
		if strings.ContainsFunc(f.Value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			v := join(p, "value")
			b.fault(Fault{Path: v, Code: CodeHeader, Message: v + " has line breaks or control characters"})
		}
	}
}

// hide keeps a value that may hold a credential out of messages and snippets.
func (b *builder) hide(path string) {
	p := b.places[path]
	p.masked = true
	b.places[path] = p
	if p.src != nil && p.val != nil {
		p.src.hide(p.val)
	}
}
