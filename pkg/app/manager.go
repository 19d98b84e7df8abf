package app

import (
	"context"
	"fmt"
)

// tellManager tells the service manager when the app is ready, and from then
// on that it lives: what a request needs can be read and is not locked up.
func (a *App) tellManager(ctx context.Context) error {
	select {
	case <-a.ready:
		a.managerTold(a.options.Notifier.Ready(a.summary()))
	case <-ctx.Done():
		return nil
	}
	return a.options.Notifier.Run(ctx, func() { a.readiness() })
}

// summary is what the service manager shows of the app.
func (a *App) summary() string {
	cur := a.current.Load()
	if cur.err != "" {
		return fmt.Sprintf("serving by configuration %s; a newer one was refused: %s", cur.config.Hash, cur.err)
	}
	return fmt.Sprintf("serving by configuration %s, %d routes", cur.config.Hash, len(cur.config.Routes))
}

// managerTold keeps why the manager could not be told: it will end an app of
// which it hears nothing.
func (a *App) managerTold(err error) {
	if err != nil {
		a.log.Warn("the service manager was not told", "err", err)
	}
}
