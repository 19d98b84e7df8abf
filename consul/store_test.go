package consul_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/proconsul/proconsul/consul"
	"github.com/proconsul/proconsul/pkg/parts"
)

// TestStore keeps what replicas share in a real Consul: entries with their time,
// folders, and a lock that one of them holds.
func TestStore(t *testing.T) {
	agent := parts.StartConsul(t)
	open := func() *consul.Store {
		c, err := consul.NewClient(consul.Options{Addr: agent.Addr})
		if err != nil {
			t.Fatal(err)
		}
		return c.Store("/proconsul/test/")
	}
	a, b := open(), open()
	ctx := t.Context()
	if _, err := a.Get(ctx, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is not there: %v", err)
	}
	before := time.Now().Truncate(time.Millisecond)
	for _, key := range []string{"certs/x/x.crt", "certs/x/x.key", "certs/y", "other"} {
		if err := a.Put(ctx, key, []byte("of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	e, err := b.Get(ctx, "certs/x/x.crt")
	if err != nil || string(e.Value) != "of certs/x/x.crt" || e.At.Before(before) || e.At.After(time.Now()) {
		t.Errorf("got %+v, %v", e, err)
	}
	for folder, want := range map[string][]string{
		"": {"certs/x/x.crt", "certs/x/x.key", "certs/y", "other"}, "certs": {"certs/x/x.crt", "certs/x/x.key", "certs/y"}, "certs/x/": {"certs/x/x.crt", "certs/x/x.key"}, "cert": nil,
	} {
		if got, err := b.Keys(ctx, folder); err != nil || !slices.Equal(got, want) {
			t.Errorf("keys of %q: %q, %v; want %q", folder, got, err, want)
		}
	}
	if err := b.Delete(ctx, "certs"); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Keys(ctx, ""); err != nil || !slices.Equal(got, []string{"other"}) {
		t.Errorf("after the folder was deleted: %q, %v", got, err)
	}

	unlock, err := a.Lock(ctx, "job")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := b.Lock(short, "job"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that another holds: %v", err)
	}
	if other, err := b.Lock(ctx, "another job"); err != nil {
		t.Errorf("another lock: %v", err)
	} else if err := other(); err != nil {
		t.Error(err)
	}
	got := make(chan error, 1)
	go func() {
		unlock, err := b.Lock(ctx, "job")
		if err == nil {
			err = unlock()
		}
		got <- err
	}()
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("the lock after it was released: %v", err)
	}
}
