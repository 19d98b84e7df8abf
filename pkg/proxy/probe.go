package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Probe asks the instance at address whether it answers, for a pool that has
// ejected it: with OPTIONS *, HTTP's own ping, of which RFC 9110 (9.3.7) says
// that it concerns the server and none of its resources. Any answer is a proof,
// also one that refuses the method. A connection alone is none: the kernel of a
// machine whose process hangs gives one too.
func (u *Upstream) Probe(ctx context.Context, address string) error {
	s := u.settings.Load()
	req := (&http.Request{
		Method: http.MethodOptions, URL: &url.URL{Scheme: s.scheme, Host: address, Path: "*"}, Host: address,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"proconsul-probe"}},
	}).WithContext(ctx)
	resp, err := s.main.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("probe %s: %w", address, err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection may be kept
	return resp.Body.Close()
}
