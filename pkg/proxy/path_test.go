package proxy_test

import (
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/pkg/proxy"
)

func TestRewritePath(t *testing.T) {
	tests := []struct{ path, strip, prepend, want string }{
		{"/a/b", "", "", "/a/b"},
		{"/api/x", "/api", "", "/x"},
		{"/api", "/api", "", "/"},
		{"/api/", "/api", "", "/"},
		{"/api/x/", "/api/", "", "/x/"},
		{"/apix/y", "/api", "", "/apix/y"},
		{"/API/x", "/api", "", "/API/x"},
		{"/x", "/api", "", "/x"},
		{"/api%2Fx", "/api", "", "/api%2Fx"},
		{"/%61pi/x%2Fy", "/api", "", "/x%2Fy"},
		{"/a%20b/x", "/a%20b", "", "/x"},
		{"/a%2fb/x", "/a%2Fb", "", "/x"},
		{"/a%zz/x", "/a%zz", "", "/x"},
		{"/a%zz/x", "/api", "", "/a%zz/x"},
		{"/api//x", "/api", "", "//x"},
		{"/x", "", "/v1", "/v1/x"},
		{"/", "", "/v1/", "/v1/"},
		{"/api", "/api", "/v1", "/v1"},
		{"/api/", "/api", "/v1", "/v1/"},
		{"/api/x;v=1", "/api", "/v1", "/v1/x;v=1"},
		{"", "", "", "/"},
		{"*", "", "", "/*"},
	}
	for _, tt := range tests {
		if got := proxy.RewritePath(tt.path, tt.strip, tt.prepend); got != tt.want {
			t.Errorf("RewritePath(%q, %q, %q) = %q, want %q", tt.path, tt.strip, tt.prepend, got, tt.want)
		}
	}
}

// What is put together from segments comes apart at the same places.
func TestRewritePathBySegments(t *testing.T) {
	segment := rapid.StringMatching(`[a-c%2F.;~]{0,4}`).Filter(func(s string) bool { _, err := url.PathUnescape(s); return err == nil })
	rapid.Check(t, func(t *rapid.T) {
		prefix := "/" + strings.Join(rapid.SliceOfN(segment.Filter(func(s string) bool { return s != "" }), 1, 3).Draw(t, "prefix"), "/")
		rest := "/" + strings.Join(rapid.SliceOfN(segment, 1, 3).Draw(t, "rest"), "/")
		if got := proxy.RewritePath(prefix+rest, prefix, ""); got != rest {
			t.Fatalf("%q without %q: got %q, want %q", prefix+rest, prefix, got, rest)
		}
		if got := proxy.RewritePath(rest, "", prefix); got != prefix+rest {
			t.Fatalf("%q with %q: got %q", rest, prefix, got)
		}
		if longer := prefix + "x" + rest; proxy.RewritePath(longer, prefix, "") != longer {
			t.Fatalf("%q lost %q", longer, prefix)
		}
	})
}

// Whatever goes in, a path comes out whose segments are the prepended ones and
// then the last ones of the path, and nothing is decoded on the way.
func FuzzRewritePath(f *testing.F) {
	f.Add("/api/a%2Fb", "/api", "/v1")
	f.Add("//x", "/", "")
	f.Add("/%61/..", "/a", "/b/")
	f.Fuzz(func(t *testing.T, path, strip, prepend string) {
		if !strings.HasPrefix(path, "/") || strip != "" && strip[0] != '/' || prepend != "" && prepend[0] != '/' {
			return
		}
		got := proxy.RewritePath(path, strip, prepend)
		if got == "" || got[0] != '/' {
			t.Fatalf("%q", got)
		}
		prepend = strings.TrimRight(prepend, "/")
		rest, ok := strings.CutPrefix(got, prepend)
		if !ok {
			t.Fatalf("%q lacks %q", got, prepend)
		}
		if rest != "/" && !strings.HasSuffix(path, rest) {
			t.Fatalf("%q is no end of %q", rest, path)
		}
		if strip = strings.TrimRight(strip, "/"); strip == "" && prepend == "" && got != path {
			t.Fatalf("%q became %q", path, got)
		}
	})
}
