package gateway

import (
	"net/url"
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	for _, tc := range []struct{ in, want, match string }{
		{"/", "/", "/"},
		{"", "/", "/"},
		{"*", "/", "/"},
		{"/a/b", "/a/b", "/a/b"},
		{"/a/b/", "/a/b/", "/a/b/"},
		{"//a///b//", "/a/b/", "/a/b/"},
		{"/a/./b", "/a/b", "/a/b"},
		{"/a/../b", "/b", "/b"},
		{"/a/b/..", "/a/", "/a/"},
		{"/../../x", "/x", "/x"},
		{"/a/%2e%2E/b", "/b", "/b"},
		{"/%61dmin", "/admin", "/admin"},
		{"/caf%c3%a9", "/caf%C3%A9", "/caf%C3%A9"},
		{"/a b", "/a%20b", "/a%20b"},
		{"/a%20b", "/a%20b", "/a%20b"},
		{"/.well-known/x", "/.well-known/x", "/.well-known/x"},
		{"/...", "/...", "/..."},
		{"/admin;v=1/x", "/admin;v=1/x", "/admin/x"},
		{"/a/;v=1/x", "/a/;v=1/x", "/a/x"},
		{"/a%3Bv/x", "/a%3Bv/x", "/a%3Bv/x"},
		{"/a:b@c/d=e,f", "/a:b@c/d=e,f", "/a:b@c/d=e,f"},
		{"/a%25b", "/a%25b", "/a%25b"},
		{"/%252e%252e/x", "/%252e%252e/x", "/%252e%252e/x"},
	} {
		got, err := canonicalPath(tc.in, false)
		if err != nil || got != tc.want || matchPath(got) != tc.match {
			t.Errorf("canonicalPath(%q) = %q, %v, matched as %q; want %q, matched as %q", tc.in, got, err, matchPath(got), tc.want, tc.match)
		}
	}
	for _, bad := range []string{"/a%00", "/a%0d%0aX", "/a%7f", `/a\b`, "/a%5cb", "/a%2fb", "/..;/admin", "/a/.;x/b", "/a%", "/a%2", "/a%zz", "a"} {
		if got, err := canonicalPath(bad, false); err == nil {
			t.Errorf("canonicalPath(%q) = %q, want it refused", bad, got)
		}
	}
	for in, want := range map[string]string{"/g%2fp/x": "/g%2Fp/x", "/..%2fadmin": "", "/a%2f..%2fb": "", "/a%2f..;x": ""} {
		got, err := canonicalPath(in, true)
		if (err != nil) != (want == "") || got != want {
			t.Errorf("canonicalPath(%q, keep) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/a/%2e%2e/b", "//", "/a;b/..;", "/%2F..", "/\x00", "/é", "/a%2f%2e%2e"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, in string, keep bool) {
		got, err := canonicalPath(in, keep)
		if err != nil {
			return
		}
		if again, err := canonicalPath(got, keep); err != nil || again != got {
			t.Fatalf("%q became %q, which becomes %q, %v", in, got, again, err)
		}
		decoded, err := url.PathUnescape(got)
		if err != nil || got[0] != '/' {
			t.Fatalf("%q became %q, which is no path: %v", in, got, err)
		}
		for _, p := range []string{decoded, matchPath(got)} {
			for s := range strings.SplitSeq(p, "/") {
				if name, _, _ := strings.Cut(s, ";"); name == "." || name == ".." {
					t.Fatalf("%q became %q, which holds a dot segment", in, got)
				}
			}
		}
		if strings.Contains(got, "//") || strings.Contains(matchPath(got), "//") || strings.ContainsAny(decoded, "\x00\r\n\\") {
			t.Fatalf("%q became %q", in, got)
		}
	})
}
