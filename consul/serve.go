package consul

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
)

// Serve serves srv on ln and keeps the instance registered until ctx ends.
// Then it goes down in the order that loses no request: deregister, serve on
// for DrainDelay until every gateway has heard of it, then Shutdown within
// Grace. It returns nil after an orderly end, else the server's error; that
// Consul is away is never a reason to end.
func (r *Registrar) Serve(ctx context.Context, srv *http.Server, ln net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()

	failed := make(chan error, 1)
	group.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
			stop() // who does not serve must not be registered
		}
	})
	// The listener accepts from here on, so the first check passes.
	if err := r.Run(ctx); err != nil {
		r.log.Warn("instance stays registered, its check has to fail", "err", err)
	}
	select {
	case err := <-failed:
		return err
	default:
	}
	// The process is told to end: what remains is bounded by delay and grace.
	rest := context.WithoutCancel(ctx)
	if r.wasRegistered() {
		wait(rest, r.o.DrainDelay)
	}
	rest, cancel := context.WithTimeout(rest, r.o.Grace)
	defer cancel()
	if err := srv.Shutdown(rest); err != nil {
		_ = srv.Close()
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (r *Registrar) wasRegistered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ever
}
