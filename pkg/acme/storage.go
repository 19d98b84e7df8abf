package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"

	"github.com/proconsul/proconsul/consul"
)

// shared is certmagic's storage in Consul's KV, so that replicas find what one
// of them has obtained, and only one obtains it.
type shared struct {
	kv *consul.Store

	mu   sync.Mutex
	held map[string]func() error
}

func newShared(kv *consul.Store) *shared { return &shared{kv: kv, held: map[string]func() error{}} }

func (s *shared) Store(ctx context.Context, key string, value []byte) error {
	return s.kv.Put(ctx, key, value)
}

func (s *shared) Load(ctx context.Context, key string) ([]byte, error) {
	e, err := s.kv.Get(ctx, key)
	return e.Value, err
}

func (s *shared) Delete(ctx context.Context, key string) error { return s.kv.Delete(ctx, key) }

func (s *shared) Exists(ctx context.Context, key string) bool {
	if _, err := s.kv.Get(ctx, key); err == nil {
		return true
	}
	below, err := s.kv.Keys(ctx, key)
	return err == nil && len(below) > 0
}

func (s *shared) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	keys, err := s.kv.Keys(ctx, path)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("list %s: %w", path, fs.ErrNotExist)
	}
	if recursive {
		return keys, nil
	}
	folder := strings.Trim(path, "/")
	if folder != "" {
		folder += "/"
	}
	for i, key := range keys { // a folder's name stands for all that is in it
		name, _, _ := strings.Cut(strings.TrimPrefix(key, folder), "/")
		keys[i] = folder + name
	}
	return slices.Compact(keys), nil // in order, as Consul has them
}

func (s *shared) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) && s.Exists(ctx, key) {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{Key: key, Modified: e.At, Size: int64(len(e.Value)), IsTerminal: true}, err
}

func (s *shared) Lock(ctx context.Context, name string) error {
	unlock, err := s.kv.Lock(ctx, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = unlock
	return nil
}

func (s *shared) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	unlock := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if unlock == nil {
		return fmt.Errorf("lock %s is not held", name)
	}
	return unlock()
}
