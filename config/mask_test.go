package config_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/proconsul/proconsul/config"
)

const secretive = `version: 1
admin:
  addr: "127.0.0.1:8081"
  tokens:
    - {name: sre, role: operator, token: hunter2}
    - name: page
      token: "hunter2"
      role: viewer
consul:
  addr: 127.0.0.1:8500
  token: hunter2
  wait: 55s
redis:
  addr: 127.0.0.1:6379
  password: |
    hunter2
  db: 0
consumers:
  - name: c
    api_keys:
      - {id: c-1, sha256: hunter2}
    basic:
      - username: c
        bcrypt: hunter2
auth:
  - name: own
    jwt:
      issuer: own
      algorithms: [HS256]
      secret: hunter2
policies:
  - name: p
    headers:
      request:
        set:
          - {name: Authorization, value: hunter2}
          - name: X-Api-Key
            value: 'hunter2'
log: {level: info}
`

// Whatever one slip of the finger makes of the file, no message and no snippet
// shows a secret.
func TestNoSlipShowsASecret(t *testing.T) {
	check := func(t interface{ Fatalf(string, ...any) }, text string) {
		_, err := config.Parse("f.yaml", []byte(text), config.LoadOptions{Pure: true})
		var fs *config.Faults
		if err == nil {
			return
		}
		if !errors.As(err, &fs) {
			t.Fatalf("err = %v", err)
		}
		for _, format := range []string{"text", "json", "github"} {
			var out strings.Builder
			if err := fs.Write(&out, format); err != nil {
				t.Fatalf("%v", err)
			}
			if strings.Contains(out.String(), "hunter2") {
				t.Fatalf("shown as %s:\n%s\nof\n%s", format, &out, text)
			}
		}
	}
	inSecret := func(i int) bool {
		for at, rest := 0, secretive; ; {
			j := strings.Index(rest, "hunter2")
			if j < 0 {
				return false
			}
			if i > at+j && i < at+j+len("hunter2") {
				return true
			}
			at, rest = at+j+1, rest[j+1:]
		}
	}
	for i := range len(secretive) {
		if !inSecret(i) && !strings.HasPrefix(secretive[i:], "hunter2") {
			check(t, secretive[:i]+secretive[i+1:])
		}
	}
	slips := rapid.StringOfN(rapid.RuneFrom([]rune(" \n\t:-#'\"{}[],&*!|>%@`?abcz019é")), 1, 3, -1)
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(secretive)).Filter(func(i int) bool { return !inSecret(i) }).Draw(t, "at")
		check(t, secretive[:i]+slips.Draw(t, "slip")+secretive[i:])
	})
}
