package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// What keys new prints is a configuration, of which the key is a comment.
func TestKeysNewPrintsAConfiguration(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		var out, notes bytes.Buffer
		if code := run([]string{"keys", "new", "--consumer", "acme"}, &out, &notes); code != 0 {
			t.Fatalf("exit %d: %s", code, &notes)
		}
		m := regexp.MustCompile(`(?m)^# for the consumer, shown this once: (pck_[A-Za-z0-9_-]{43})$`).FindStringSubmatch(out.String())
		if m == nil || seen[m[1]] {
			t.Fatalf("no new key in\n%s", &out)
		}
		seen[m[1]] = true
		cfg, err := config.Parse("keys.yaml", append([]byte("version: 1\n"), out.Bytes()...), config.LoadOptions{Pure: true})
		if err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		sum := sha256.Sum256([]byte(m[1]))
		got := cfg.Consumers[0]
		if got.Name != "acme" || got.APIKeys[0].ID != "acme-1" || got.APIKeys[0].SHA256.Reveal() != hex.EncodeToString(sum[:]) {
			t.Errorf("the stanza is not that of the key:\n%s", &out)
		}
	}
}

func TestKeysHashReadsAKey(t *testing.T) {
	for _, tt := range []struct {
		in   string
		code int
	}{{"a-key-of-twenty-four-bytes\n", 0}, {"a-key-of-twenty-four-bytes", 0}, {"short\n", exitInvalid}, {"", exitInvalid}} {
		var out, notes bytes.Buffer
		root := newRoot(&out, &notes)
		root.SetIn(strings.NewReader(tt.in))
		root.SetArgs([]string{"keys", "hash", "--consumer", "acme", "--id", "k"})
		err := root.Execute()
		if (err != nil) != (tt.code != 0) {
			t.Errorf("%q: %v", tt.in, err)
		}
		sum := sha256.Sum256([]byte("a-key-of-twenty-four-bytes"))
		if err == nil && !strings.Contains(out.String(), `{id: "k", sha256: "`+hex.EncodeToString(sum[:])+`"}`) {
			t.Errorf("%q: got\n%s", tt.in, &out)
		}
		if strings.Contains(out.String()+notes.String(), "twenty-four") {
			t.Errorf("the key is printed:\n%s", &out)
		}
	}
}
