package transport

import (
	"net/http"
	"strings"

	"github.com/proconsul/proconsul/pkg/wire"
)

// head is an answer's header.
type head struct {
	minor       int
	status      int
	text        string      // "200 OK"
	header      http.Header // where there is one already, empty, it is filled
	length      int64       // of the body by Content-Length, or -1
	chunked     bool
	close       bool // Connection has "close"
	keepAlive   bool // or "keep-alive"
	trailers    bool // Trailer is there
	contentSeen bool
}

// parseHead parses a header as readHead returns it: lines that end in CRLF,
// an empty one last. known says that the same header was parsed before, whose
// bytes need no second look. values is room for the values; it may be short.
func parseHead(s string, known bool, values []string, h *head) error {
	h.length = -1
	line, rest := wire.CutLine(s)
	if err := h.statusLine(line, known); err != nil {
		return err
	}
	fields := strings.Count(rest, "\n") - 1 // the empty line
	if fields > cap(values) {
		values = make([]string, 0, fields)
	}
	if h.header == nil {
		h.header = make(http.Header, fields)
	}
	transfer := false
	for {
		line, rest = wire.CutLine(rest)
		if line == "" {
			break
		}
		var name, value string
		if known {
			name, value = wire.KnownField(line)
		} else {
			var err error
			if name, value, err = wire.Field(line); err != nil {
				return malformed("%v", err)
			}
		}
		switch name {
		case "Content-Length":
			if h.contentSeen {
				return malformed("more than one Content-Length")
			}
			h.contentSeen = true
			var err error
			if h.length, err = wire.ContentLength(value); err != nil {
				return malformed("%v", err)
			}
		case "Transfer-Encoding":
			if transfer {
				return malformed("more than one Transfer-Encoding")
			}
			transfer = true
			if len(value) != len("chunked") || !strings.EqualFold(value, "chunked") {
				return malformed("unsupported transfer encoding")
			}
			h.chunked = true
			continue // not the caller's business
		case "Connection":
			h.close = h.close || wire.HasToken(value, "close")
			h.keepAlive = h.keepAlive || wire.HasToken(value, "keep-alive")
		case "Trailer":
			h.trailers = true
		}
		if old, ok := h.header[name]; ok {
			h.header[name] = append(old, value) // copies: the capacity is 1
			continue
		}
		values = append(values, value)
		h.header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	if h.chunked {
		if h.contentSeen {
			return malformed("Content-Length and Transfer-Encoding in one answer; it cannot contain both")
		}
		if h.minor == 0 {
			return malformed("Transfer-Encoding in an HTTP/1.0 answer")
		}
	}
	return nil
}

// statusLine parses "HTTP/1.1 200 OK"; the reason and the space before it may
// be missing.
func (h *head) statusLine(s string, known bool) error {
	if len(s) < len("HTTP/1.1 200") || s[:len(protocol)] != protocol || s[7] != '0' && s[7] != '1' || s[8] != ' ' ||
		len(s) > 12 && s[12] != ' ' {
		return malformed("status line")
	}
	h.minor = int(s[7] - '0')
	for _, c := range []byte(s[9:12]) {
		if c < '0' || c > '9' {
			return malformed("status code")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 {
		return malformed("status code")
	}
	if !known && !wire.ValidValue(s[12:]) {
		return malformed("control character in the status line")
	}
	h.text = s[9:]
	return nil
}
