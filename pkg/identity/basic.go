package identity

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/proconsul/proconsul/config"
)

// Bounds of passwords that are checked.
const (
	maxPassword   = 72               // bytes that bcrypt reads
	loginsKept    = 4096             // checked passwords that are remembered
	loginKeptFor  = 10 * time.Minute // from the check
	basicHeader   = 1024             // bytes of the encoded user name and password
	loginCheckers = 2                // shares of the processors that checks may use at once: one in this many
)

// logins are the user names and passwords of one configuration. Each check
// costs tens of milliseconds of a processor by design, so that few run at
// once, and a password that was right is remembered for a while: as a MAC
// under a key of this process, which nobody can try passwords against.
type logins struct {
	byName map[string]login
	dummy  []byte // hash for names that do not exist, so that they take as long
	secret []byte
	right  *cache[digest, *Identity]
	slots  chan struct{}
}

type login struct {
	hash     []byte
	identity *Identity
}

func newLogins(consumers []config.Consumer) (*logins, error) {
	l := &logins{
		byName: map[string]login{},
		right:  newCache[digest, *Identity](loginsKept),
		secret: make([]byte, sha256.Size),
		slots:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/loginCheckers)),
	}
	_, _ = rand.Read(l.secret) // never fails, see crypto/rand
	var faults []error
	for _, c := range consumers {
		id := (&Identity{Consumer: c.Name, Groups: c.Groups}).sealed()
		for _, b := range c.Basic {
			hash := []byte(b.Bcrypt.Reveal())
			cost, err := bcrypt.Cost(hash)
			if err != nil {
				faults = append(faults, fmt.Errorf("consumer %s: login %s: bcrypt is not a bcrypt hash", c.Name, b.Username))
				continue
			}
			l.byName[b.Username] = login{hash, id}
			if l.dummy == nil || cost > dummyCost(l.dummy) {
				l.dummy = hash
			}
		}
	}
	return l, errors.Join(faults...)
}

func dummyCost(hash []byte) int {
	cost, err := bcrypt.Cost(hash)
	if err != nil {
		return 0
	}
	return cost
}

// basicMethod knows callers by user name and password (RFC 7617).
type basicMethod struct {
	name, realm string
	logins      *logins
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
	return m.logins.check(r.Context(), name, password)
}

const errLogin = "user name or password is wrong"

func (l *logins) check(ctx context.Context, name, password string) (*Identity, error) {
	if len(password) > maxPassword {
		return nil, refused("%s", errLogin)
	}
	mac := hmac.New(sha256.New, l.secret)
	fmt.Fprintf(mac, "%d:%s%s", len(name), name, password)
	sum := digest(mac.Sum(nil))
	now := time.Now()
	if id, ok := l.right.get(sum, now); ok {
		return id, nil
	}
	known, exists := l.byName[name]
	hash := known.hash
	if !exists {
		hash = l.dummy
	}
	if hash == nil {
		return nil, refused("%s", errLogin)
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-l.slots
	if err != nil || !exists {
		return nil, refused("%s", errLogin)
	}
	l.right.put(sum, known.identity, now.Add(loginKeptFor), now)
	return known.identity, nil
}

func (m *basicMethod) Challenge(realm string, _ error) string {
	if m.realm != "" {
		realm = m.realm
	}
	return "Basic realm=" + quoted(realm) + `, charset="UTF-8"`
}

func (m *basicMethod) Strip(r *http.Request) { delete(r.Header, "Authorization") }
