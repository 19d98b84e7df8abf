package consul

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Store is the part of Consul's key-value store below a prefix, for what replicas
// share. Values are at most 512 KiB. It is safe for concurrent use.
type Store struct {
	client *Client
	prefix string // ends with a slash, or is empty
}

// Store returns the store below prefix.
func (c *Client) Store(prefix string) *Store {
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return &Store{client: c, prefix: prefix}
}

// Entry is a key with its value and when it was put.
type Entry struct {
	Key   string // without the prefix
	Value []byte
	At    time.Time
}

// lockTTL is how long a lock outlives a replica that died with it.
const lockTTL = 15 * time.Second

// Get returns the entry of a key, or an error that is fs.ErrNotExist.
func (s *Store) Get(ctx context.Context, key string) (Entry, error) {
	pair, _, err := s.client.api.KV().Get(s.prefix+key, s.query(ctx))
	if err != nil {
		return Entry{}, fmt.Errorf("consul: get %s: %w", s.prefix+key, err)
	}
	if pair == nil {
		return Entry{}, fmt.Errorf("consul: get %s: %w", s.prefix+key, fs.ErrNotExist)
	}
	return Entry{Key: key, Value: pair.Value, At: time.UnixMilli(int64(pair.Flags))}, nil
}

// Put sets a key's value. Consul keeps no time of a change, so the flags do.
func (s *Store) Put(ctx context.Context, key string, value []byte) error {
	pair := &api.KVPair{Key: s.prefix + key, Value: value, Flags: uint64(time.Now().UnixMilli())}
	if _, err := s.client.api.KV().Put(pair, s.write(ctx)); err != nil {
		return fmt.Errorf("consul: put %s: %w", pair.Key, err)
	}
	return nil
}

// Delete removes a key and, where it is the name of a folder, all in it.
func (s *Store) Delete(ctx context.Context, key string) error {
	_, err := s.client.api.KV().Delete(s.prefix+key, s.write(ctx))
	if err == nil {
		_, err = s.client.api.KV().DeleteTree(s.prefix+key+"/", s.write(ctx))
	}
	if err != nil {
		return fmt.Errorf("consul: delete %s: %w", s.prefix+key, err)
	}
	return nil
}

// Keys lists every key in a folder and the folders below it; an empty one is
// the whole store.
func (s *Store) Keys(ctx context.Context, folder string) ([]string, error) {
	under := s.prefix
	if folder = strings.Trim(folder, "/"); folder != "" {
		under += folder + "/"
	}
	keys, _, err := s.client.api.KV().Keys(under, "", s.query(ctx))
	if err != nil {
		return nil, fmt.Errorf("consul: list %s: %w", under, err)
	}
	for i, key := range keys {
		keys[i] = strings.TrimPrefix(key, s.prefix)
	}
	return keys, nil
}

// Lock waits until no other replica holds the lock of that name, and holds it
// until unlock is called, or the replica is dead for 15 s.
func (s *Store) Lock(ctx context.Context, name string) (unlock func() error, err error) {
	key := path.Join(s.prefix+"locks", name)
	lock, err := s.client.api.LockOpts(&api.LockOptions{Key: key, SessionName: "proconsul " + name, SessionTTL: lockTTL.String(),
		LockDelay:      time.Millisecond, // the session of a dead replica has had its time already
		LockWaitTime:   time.Second,      // after which the context is looked at
		MonitorRetries: 3})
	if err != nil {
		return nil, fmt.Errorf("consul: lock %s: %w", key, err)
	}
	held, err := lock.Lock(ctx.Done())
	switch {
	case err != nil:
		return nil, fmt.Errorf("consul: lock %s: %w", key, err)
	case held == nil:
		return nil, fmt.Errorf("consul: lock %s: %w", key, context.Cause(ctx))
	}
	return func() error {
		if err := lock.Unlock(); err != nil {
			return fmt.Errorf("consul: unlock %s: %w", key, err)
		}
		_ = lock.Destroy() // somebody else may hold it by now
		return nil
	}, nil
}

func (s *Store) query(ctx context.Context) *api.QueryOptions {
	// Whoever has just been given a lock has to see what was put before.
	return (&api.QueryOptions{Datacenter: s.client.datacenter, RequireConsistent: true}).WithContext(ctx)
}

func (s *Store) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{Datacenter: s.client.datacenter}).WithContext(ctx)
}
