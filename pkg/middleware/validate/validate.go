// Package validate refuses requests that do not fit before an instance sees
// them. Its settings are config.Validate.
//
// A body of another kind is answered 415, one above its limit 413, one that is
// no JSON, is nested too deep or names a key twice 400, and what does not fit the
// schema or the OpenAPI document 422 invalid_request with each fault by its JSON
// pointer or parameter, twenty at most; none holds the value that was sent. An
// operation that the document lacks is answered 404 or 405.
//
// JSON is read to its end, within max_body, and passed on byte for byte. Bodies
// of other kinds stream, and are checked by kind and length only.
package validate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware"
	"github.com/proconsul/proconsul/pkg/problem"
	"github.com/proconsul/proconsul/pkg/schema"
)

// New returns the middleware for those settings. path says what path an
// instance sees for that of the client, which the OpenAPI document is about.
func New(c config.Validate, path func(escaped string) string) (middleware.Middleware, error) {
	g, err := compile(c, path)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			held, refusal := g.check(w, r)
			if refusal != nil {
				g.release(held)
				problem.Write(w, r, refusal)
				return
			}
			if held == nil {
				next.ServeHTTP(w, r)
				return
			}
			b := &body{held: held}
			r.Body = b
			defer func() {
				b.end()
				g.release(held)
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

// Peek says what New's middleware would do with a request without a body, or
// before it has read one.
func Peek(c config.Validate, path func(escaped string) string, r *http.Request) (text string, refusal *problem.Error) {
	g, err := compile(c, path)
	if err != nil { // Build has compiled it before
		return "", problem.From(err)
	}
	parts := []string{"bodies up to " + c.MaxBody.String()}
	if c.Schema != nil {
		parts = append(parts, "JSON by body_schema")
	}
	if n := len(g.params); n > 0 {
		parts = append(parts, fmt.Sprintf("%d parameters", n))
	}
	op, refusal := g.operation(r)
	if op != nil {
		parts = append(parts, "operation "+op.String())
	}
	if refusal == nil {
		if faults := g.parameters(op, r); len(faults) > 0 {
			refusal = unfit(faults)
		}
	}
	return strings.Join(parts, "; "), refusal
}

type guard struct {
	c      config.Validate
	path   func(string) string
	params []param
	types  []string
	bounds schema.Bounds
	pool   sync.Pool // of *bytes.Buffer
}

// pooled is how large a body may be for its memory to be used again.
const pooled = 256 << 10

func compile(c config.Validate, path func(string) string) (*guard, error) {
	if c.BodySchema != "" && c.Schema == nil || c.OpenAPI != "" && c.API == nil {
		return nil, errors.New("a document has not been compiled")
	}
	g := &guard{c: c, path: path, types: c.ContentTypes,
		bounds: schema.Bounds{Depth: c.MaxDepth, Values: c.MaxValues, Duplicates: c.DuplicateKeys == "allow"}}
	if len(g.types) == 0 && c.Schema != nil {
		g.types = []string{"application/json", "application/*+json"}
	}
	g.pool.New = func() any { return new(bytes.Buffer) }
	var err error
	g.params, err = compileParams(c.Params)
	return g, err
}

// check says why a request is refused; nil: it is not. held is its body, where
// that had to be read.
func (g *guard) check(w http.ResponseWriter, r *http.Request) (held *bytes.Buffer, refusal *problem.Error) {
	op, refusal := g.operation(r)
	if refusal != nil {
		return nil, refusal
	}
	kind, refusal := g.kind(op, r)
	if refusal != nil {
		return nil, refusal
	}
	if r.ContentLength > int64(g.c.MaxBody) {
		return nil, g.tooLarge(nil)
	}
	faults := g.parameters(op, r)
	if len(faults) > 0 {
		return nil, unfit(faults)
	}
	if !hasBody(r) {
		if g.wantsBody(op, r) {
			return nil, unfit([]schema.Fault{{Detail: "a body is required"}})
		}
		return nil, nil
	}
	if !isJSON(kind) {
		r.Body = http.MaxBytesReader(w, r.Body, int64(g.c.MaxBody))
		return nil, nil
	}
	if held, refusal = g.read(r); refusal != nil {
		return held, refusal
	}
	return held, g.fits(op, kind, held.Bytes())
}

// hasBody reports whether a request may have a body: of one without a length
// that is seen when it is read.
func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// operation finds what the document says of a request; nil without a document.
func (g *guard) operation(r *http.Request) (*schema.Operation, *problem.Error) {
	if g.c.API == nil {
		return nil, nil
	}
	op, allow := g.c.API.Find(r.Method, g.path(r.URL.EscapedPath()))
	switch {
	case op != nil:
		return op, nil
	case len(allow) > 0:
		p := problem.New(problem.MethodNotAllowed, "the API's description does not have this method", nil)
		p.Header = http.Header{"Allow": {strings.Join(allow, ", ")}}
		return nil, p
	}
	return nil, problem.New(problem.NoRoute, "the API's description does not have this path", nil)
}

// kind returns the media type of a request's body, or refuses it.
func (g *guard) kind(op *schema.Operation, r *http.Request) (string, *problem.Error) {
	if !hasBody(r) {
		return "", nil
	}
	lists := [][]string{g.types}
	if op != nil {
		described, _ := op.Body()
		if len(described) == 0 {
			return "", unfit([]schema.Fault{{Detail: "the operation takes no body"}})
		}
		lists = append(lists, described)
	}
	kind, ok := mediaType(r)
	for _, types := range lists {
		if len(types) > 0 && (!ok || !accepts(types, kind)) {
			return "", problem.New(problem.UnsupportedMediaType, "the body may be "+strings.Join(types, ", "), nil)
		}
	}
	if _, named := r.Header["Content-Type"]; named && !ok {
		return "", problem.New(problem.UnsupportedMediaType, "the Content-Type is malformed, written twice or has another charset than UTF-8", nil)
	}
	if isJSON(kind) && coded(r) {
		return "", problem.New(problem.UnsupportedMediaType, "a body that is validated must not have a Content-Encoding", nil)
	}
	return kind, nil
}

// mediaType reads Content-Type. What readers could read in two ways is none.
func mediaType(r *http.Request) (string, bool) {
	lines := r.Header["Content-Type"]
	if len(lines) != 1 {
		return "", false
	}
	kind, params, err := mime.ParseMediaType(lines[0])
	if err != nil {
		return "", false
	}
	if charset := params["charset"]; isJSON(kind) && charset != "" && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "us-ascii") {
		return "", false
	}
	return kind, true
}

func coded(r *http.Request) bool {
	for _, line := range r.Header["Content-Encoding"] {
		if line != "" && !strings.EqualFold(line, "identity") {
			return true
		}
	}
	return false
}

func isJSON(kind string) bool {
	return kind == "application/json" || strings.HasSuffix(kind, "+json") || kind == "text/json"
}

// accepts reports whether one of the types takes in a media type.
func accepts(types []string, kind string) bool {
	return slices.ContainsFunc(types, func(t string) bool { return schema.Accepts(t, kind) })
}

func (g *guard) tooLarge(err error) *problem.Error {
	return problem.New(problem.BodyTooLarge, fmt.Sprintf("the limit is %d bytes", g.c.MaxBody), err)
}

func (g *guard) parameters(op *schema.Operation, r *http.Request) []schema.Fault {
	if op == nil && len(g.params) == 0 {
		return nil
	}
	// What cannot be read here an instance may read in another way.
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return []schema.Fault{{In: "query", Detail: "is malformed"}}
	}
	faults := checkParams(g.params, r)
	if op != nil {
		faults = append(faults, op.Parameters(r)...)
	}
	return faults
}

func (g *guard) wantsBody(op *schema.Operation, r *http.Request) bool {
	if op != nil {
		if _, required := op.Body(); required {
			return true
		}
	}
	if g.c.Schema == nil {
		return false
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		return true
	}
	return false
}

// read reads a body to its end, with which trailers come.
func (g *guard) read(r *http.Request) (*bytes.Buffer, *problem.Error) {
	held := g.pool.Get().(*bytes.Buffer)
	held.Reset()
	if r.ContentLength > 0 {
		held.Grow(int(min(r.ContentLength, pooled)) + bytes.MinRead)
	}
	_, err := held.ReadFrom(io.LimitReader(r.Body, int64(g.c.MaxBody)+1))
	switch {
	case err != nil:
		return held, problem.Upload(err)
	case held.Len() > int(g.c.MaxBody):
		return held, g.tooLarge(nil)
	}
	delete(r.Header, "Expect") // it has been answered by reading
	return held, nil
}

// fits says whether a JSON body is what it should be.
func (g *guard) fits(op *schema.Operation, kind string, text []byte) *problem.Error {
	if len(text) == 0 && !g.needs(op) {
		return nil
	}
	if g.c.Schema == nil && op == nil {
		if f := schema.Scan(text, g.bounds); f != nil {
			return malformed(*f)
		}
		return nil
	}
	v, f := schema.Parse(text, g.bounds)
	if f != nil {
		return malformed(*f)
	}
	var faults []schema.Fault
	if g.c.Schema != nil {
		faults = g.c.Schema.Check(v)
	}
	if op != nil {
		faults = append(faults, op.Check(kind, v)...)
	}
	if len(faults) > 0 {
		return unfit(faults)
	}
	return nil
}

// needs reports whether a body that turned out to be empty is a fault.
func (g *guard) needs(op *schema.Operation) bool {
	if op != nil {
		if _, required := op.Body(); required {
			return true
		}
	}
	return g.c.Schema != nil
}

func malformed(f schema.Fault) *problem.Error {
	p := unfit([]schema.Fault{f})
	p.Status, p.Detail = http.StatusBadRequest, "the body is malformed"
	return p
}

// unfit is the answer to a request with those faults.
func unfit(faults []schema.Fault) *problem.Error {
	p := problem.New(problem.InvalidRequest, fmt.Sprintf("%d faults", len(faults)), nil)
	switch {
	case len(faults) == 1:
		p.Detail = "one fault"
	case len(faults) >= schema.MaxFaults:
		faults = faults[:schema.MaxFaults]
		p.Detail = fmt.Sprintf("%d faults, and perhaps more", len(faults))
	}
	for _, f := range faults {
		row := problem.Fault{In: f.In, Parameter: f.Name, Detail: f.Detail}
		if f.In == "" || f.Pointer != "" {
			row.Pointer = "#" + f.Pointer
		}
		p.Faults = append(p.Faults, row)
	}
	return p
}

func (g *guard) release(held *bytes.Buffer) {
	if held != nil && held.Cap() <= pooled {
		g.pool.Put(held)
	}
}

// body is a body that has been read. A transport may read it in a goroutine of
// its own, also for a while after the handler has returned.
type body struct {
	mu   sync.Mutex
	held *bytes.Buffer
	at   int
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	rest := b.held.Bytes()[b.at:]
	if len(rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, rest)
	b.at += n
	return n, nil
}

// Close implements io.Closer. The server closes its own body itself.
func (b *body) Close() error { return nil }

// end makes sure that nobody reads any more.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = nil
}
