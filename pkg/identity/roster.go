package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"

	"github.com/proconsul/proconsul/config"
)

// roster is every consumer at one time, by what makes a caller one. It is
// immutable; methods look at the present one of their directory for each
// request, so that consumers change without anything else.
type roster struct {
	partial bool // there are consumers that are not known yet
	names   map[string]*Identity
	keys    map[digest]knownKey        // by the hash of the key
	logins  map[string]login           // by user name
	dummy   []byte                     // hash for names that do not exist, so that they take as long
	claims  map[string][]consumerClaim // that make a token a consumer's, by method
	certs   Holders[*Identity]
}

// maxCost bounds what a check of a password costs: about a second.
const maxCost = 14

type people = atomic.Pointer[roster]

type knownKey struct {
	digest   digest
	identity *Identity
}

type login struct {
	hash     []byte
	identity *Identity
}

type consumerClaim struct {
	name, equals string
	identity     *Identity
}

// newRoster returns the roster of those consumers, or every fault in them.
func newRoster(consumers []config.Consumer) (*roster, error) {
	r := &roster{names: map[string]*Identity{}, keys: map[digest]knownKey{}, logins: map[string]login{}, claims: map[string][]consumerClaim{}, certs: NewHolders[*Identity]()}
	var faults []error
	for _, c := range consumers {
		id := (&Identity{Consumer: c.Name, Groups: c.Groups, Roles: c.Roles}).sealed()
		r.names[c.Name] = id
		for _, k := range c.APIKeys {
			b, err := hex.DecodeString(k.SHA256.Reveal())
			if err != nil || len(b) != len(digest{}) {
				faults = append(faults, fmt.Errorf("consumer %s: API key %s: sha256 is not 64 hex digits", c.Name, k.ID))
				continue
			}
			r.keys[digest(b)] = knownKey{digest(b), id}
		}
		for _, b := range c.Basic {
			hash := []byte(b.Bcrypt.Reveal())
			cost, err := bcrypt.Cost(hash)
			if err != nil {
				faults = append(faults, fmt.Errorf("consumer %s: login %s: bcrypt is not a bcrypt hash", c.Name, b.Username))
				continue
			}
			if cost > maxCost {
				faults = append(faults, fmt.Errorf("consumer %s: login %s: bcrypt has the cost %d, and each check would take seconds (at most %d)", c.Name, b.Username, cost, maxCost))
				continue
			}
			r.logins[b.Username] = login{hash, id}
			if r.dummy == nil || cost > costOf(r.dummy) {
				r.dummy = hash
			}
		}
		for _, cert := range c.MTLS {
			r.certs.Add(cert, id)
		}
		for _, claim := range c.Claims {
			r.claims[claim.Method] = append(r.claims[claim.Method], consumerClaim{claim.Claim, claim.Equals, id})
		}
	}
	return r, errors.Join(faults...)
}

// CheckConsumer says what is wrong with a consumer's credentials.
func CheckConsumer(c config.Consumer) error {
	_, err := newRoster([]config.Consumer{c})
	return err
}

func costOf(hash []byte) int {
	cost, err := bcrypt.Cost(hash)
	if err != nil {
		return 0
	}
	return cost
}
