package consul

import (
	"os"
	"strings"
	"sync"
	"time"
)

// token is where the ACL token comes from. A file is looked at again at most
// once a second, so that a rotated token is used by the next query without a
// restart; consul/api reads it only once.
type token struct {
	from string // the setting's name, for messages
	path string // empty: value is all there is

	mu      sync.Mutex
	value   string
	checked time.Time
	mtime   time.Time
	size    int64
}

// source names the token for a message: never its value.
func (t *token) source() string {
	if t.get() == "" {
		return "no token is set: it"
	}
	return "the token from " + t.from
}

func (t *token) get() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.path == "" || time.Since(t.checked) < time.Second {
		return t.value
	}
	// A file that is gone or empty for a moment, as while it is replaced,
	// leaves the last token in use: Consul says 403 if it is no longer good.
	_ = t.read()
	return t.value
}

// read takes the token from the file where it changed.
func (t *token) read() error {
	t.checked = time.Now()
	info, err := os.Stat(t.path)
	if err != nil {
		return err
	}
	if t.value != "" && info.ModTime().Equal(t.mtime) && info.Size() == t.size {
		return nil
	}
	text, err := os.ReadFile(t.path)
	if err != nil {
		return err
	}
	if value := strings.TrimSpace(string(text)); value != "" {
		t.value, t.mtime, t.size = value, info.ModTime(), info.Size()
	}
	return nil
}
