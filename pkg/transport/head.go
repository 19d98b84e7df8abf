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
	text        string // "200 OK"
	lines       []wire.Line
	length      int64 // of the body by Content-Length, or -1
	chunked     bool
	close       bool // Connection has "close"
	keepAlive   bool // or "keep-alive"
	trailers    bool // Trailer is there
	contentSeen bool
}

// parseHead parses a header as readHead returns it: lines that end in CRLF,
// an empty one last. Its lines, but for what is not the caller's business, are
// put into the room of h's.
func parseHead(s string, h *head) error {
	*h = head{lines: h.lines[:0], length: -1}
	line, rest := wire.CutLine(s)
	if err := h.statusLine(line); err != nil {
		return err
	}
	transfer := false
	for {
		line, rest = wire.CutLine(rest)
		if line == "" {
			break
		}
		name, value, err := wire.Field(line)
		if err != nil {
			return malformed("%v", err)
		}
		switch name {
		case "Content-Length":
			if h.contentSeen {
				return malformed("more than one Content-Length")
			}
			h.contentSeen = true
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
			continue
		case "Connection":
			h.close = h.close || wire.HasToken(value, "close")
			h.keepAlive = h.keepAlive || wire.HasToken(value, "keep-alive")
		case "Trailer":
			h.trailers = true
		}
		h.lines = append(h.lines, wire.Line{Name: name, Value: value})
	}
	clear(h.lines[len(h.lines):cap(h.lines)]) // of a longer header before
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

// header returns the lines as a map. values is room for the values; it may be
// short.
func (h *head) header(values []string) http.Header {
	m := make(http.Header, len(h.lines))
	wire.Fill(m, h.lines, values)
	return m
}

// values returns the values of the lines of that name.
func (h *head) values(name string) (values []string) {
	for _, l := range h.lines {
		if l.Name == name {
			values = append(values, l.Value)
		}
	}
	return values
}

// statusLine parses "HTTP/1.1 200 OK"; the reason and the space before it may
// be missing.
func (h *head) statusLine(s string) error {
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
	if !wire.ValidValue(s[12:]) {
		return malformed("control character in the status line")
	}
	h.text = s[9:]
	return nil
}
