package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Bounds of passwords that are checked.
const (
	maxPassword   = 72               // bytes that bcrypt reads
	loginsKept    = 4096             // checked passwords that are remembered
	loginKeptFor  = 10 * time.Minute // from the check
	basicHeader   = 1024             // bytes of the encoded user name and password
	loginCheckers = 2                // shares of the processors that checks may use at once: one in this many
	loginsWaiting = 64               // for a check, at once; guesses must not use up the listener's places
	loginWait     = 5 * time.Second
)

// passwords remember those that were right. Each check costs tens of
// milliseconds of a processor by design, so that few run at once, and a
// password that was right is remembered for a while: as a MAC under a key of
// this process, which nobody can try passwords against, with the hash that it
// was right for. They outlive configurations and changes of the consumers.
type passwords struct {
	secret  []byte
	right   *cache[digest, []byte]
	slots   chan struct{}
	waiting atomic.Int64
}

func newPasswords() *passwords {
	p := &passwords{
		right:  newCache[digest, []byte](loginsKept),
		secret: make([]byte, sha256.Size),
		slots:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/loginCheckers)),
	}
	_, _ = rand.Read(p.secret) // never fails, see crypto/rand
	return p
}

// basicMethod knows callers by user name and password (RFC 7617).
type basicMethod struct {
	name, realm string
	people      *people
	passwords   *passwords
}

func (m *basicMethod) Name() string { return m.name }

func (m *basicMethod) Identify(r *http.Request) (*Identity, error) {
	encoded, err := credentials(r, "Basic")
	if err != nil {
		return nil, err
	}
	if len(encoded) > basicHeader {
		return nil, malformed("user name and password are too long")
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, malformed("user name and password are not base64")
	}
	name, password, ok := strings.Cut(string(text), ":")
	if !ok {
		return nil, malformed("user name and password have no colon between them")
	}
	return m.passwords.check(r.Context(), m.people.Load(), name, password)
}

const errLogin = "user name or password is wrong"

func (p *passwords) check(ctx context.Context, all *roster, name, password string) (*Identity, error) {
	if len(password) > maxPassword {
		return nil, refused("%s", errLogin)
	}
	known, exists := all.logins[name]
	if !exists && all.partial {
		return nil, errPartial
	}
	mac := hmac.New(sha256.New, p.secret)
	fmt.Fprintf(mac, "%d:%s%s", len(name), name, password)
	sum := digest(mac.Sum(nil))
	now := time.Now()
	if hash, ok := p.right.get(sum, now); ok && exists && bytes.Equal(hash, known.hash) {
		return known.identity, nil
	}
	hash := known.hash
	if !exists {
		hash = all.dummy
	}
	if hash == nil {
		return nil, refused("%s", errLogin)
	}
	if err := p.queue(ctx); err != nil {
		return nil, err
	}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-p.slots
	if err != nil || !exists {
		return nil, refused("%s", errLogin)
	}
	p.right.put(sum, hash, now.Add(loginKeptFor), now)
	return known.identity, nil
}

// queue waits for a turn to check, which few do and none for long: whoever
// guesses passwords faster than they can be checked makes logins that are not
// remembered wait, and nothing else.
func (p *passwords) queue(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	default:
	}
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > loginsWaiting {
		return fmt.Errorf("%w: %d logins wait for a check already", ErrUnavailable, loginsWaiting)
	}
	late := time.NewTimer(loginWait)
	defer late.Stop()
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-late.C:
		return fmt.Errorf("%w: no check of a login began within %s", ErrUnavailable, loginWait)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

func (m *basicMethod) Challenge(realm string, _ error) string {
	if m.realm != "" {
		realm = m.realm
	}
	return "Basic realm=" + quoted(realm) + `, charset="UTF-8"`
}

func (m *basicMethod) Strip(r *http.Request) { delete(r.Header, "Authorization") }
