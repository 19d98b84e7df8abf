// Package demo runs the whole gateway on embedded parts: a Consul API and a
// Redis in this process, services that register themselves, some traffic, and
// keys that break things. Nothing leaves the machine and nothing is kept.
//
// It is the gateway that users run (pkg/app), on the code that they run it
// with; only the parts around it are small.
package demo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/consul/devcatalog"
	"github.com/proconsul/proconsul/pkg/app"
)

// Options are what a demo is run with.
type Options struct {
	Version string
	Command string    // how the viewer calls proconsul; empty: proconsul
	Listen  string    // public address; a busy default port moves to a free one
	Admin   string    // admin address; likewise
	Out     io.Writer // the screen
	Keys    io.Reader // what the viewer types; nil: nobody types
	Log     *slog.Logger
	Traffic int // requests a second; 0: none

	// Ready, if set, is called when the first screen has been printed, with
	// the public and the admin address.
	Ready func(listen, admin string)
}

// Default addresses. All are on the loopback interface.
const (
	DefaultListen = "127.0.0.1:8080"
	DefaultAdmin  = "127.0.0.1:8081"
	catalogAddr   = "127.0.0.1:8500"
	redisAddr     = "127.0.0.1:6379"
)

// demo is a running one.
type demo struct {
	o        Options
	screen   *screen
	catalog  *devcatalog.Server
	redis    *miniredis.Miniredis
	services []*instance
	app      *app.App
	traffic  *traffic

	text   []byte      // of the configuration
	broken atomic.Bool // it has mistakes in it
}

// Run runs a demo until ctx ends or the viewer quits.
func Run(ctx context.Context, o Options) (err error) {
	ctx, quit := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer quit()
	started := time.Now()
	d := &demo{o: o, screen: newScreen(o.Out)}
	d.screen.printf("  proconsul %s demo - nothing leaves this machine, Ctrl-C removes everything\n", o.Version)

	catalog, err := d.startCatalog(ctx, &running)
	if err != nil {
		return err
	}
	d.screen.ok("catalog", "embedded Consul API on %s   (your real `consul` CLI works against it)%s", catalog.addr, catalog.note)

	redis, err := d.startRedis()
	if err != nil {
		return err
	}
	defer d.redis.Close()
	d.screen.ok("redis", "embedded on %s%s", redis.addr, redis.note)

	if err := d.startServices(ctx, &running, catalog.addr); err != nil {
		return err
	}
	d.screen.ok("services", "orders x3 (one 'canary'), users x2, inventory x2, flaky x2   registered by themselves")

	listen, admin := vacantFor(o.Listen, DefaultListen), vacantFor(o.Admin, DefaultAdmin)
	token := rand.Text()[:12] // of this run: other programs here must not steer it
	d.text = configText(listen.addr, admin.addr, catalog.addr, redis.addr, token)
	cfg, err := d.load()
	if err != nil {
		return err
	}
	if d.app, err = app.New(cfg, app.Options{Version: o.Version, Log: o.Log, AccessLog: io.Discard, OnEvent: d.screen.event, Load: d.load}); err != nil {
		return err
	}
	listen.addr, admin.addr = d.app.Addr(""), d.app.AdminAddr()
	failed := make(chan error, 1)
	running.Go(func() { failed <- d.app.Run(ctx) })
	select {
	case <-d.app.Ready():
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
	d.screen.ok("gateway", "http://%s   %d routes, ready in %v%s%s", listen.addr, len(cfg.Routes), time.Since(started).Round(time.Millisecond), listen.note, admin.note)

	d.traffic = newTraffic("http://"+listen.addr, o.Traffic)
	running.Go(func() { d.traffic.run(ctx) })
	d.screen.ok("traffic", "%d req/s synthetic (stop and start: t)", o.Traffic)
	d.screen.guide(cmp.Or(o.Command, "proconsul"), listen.addr, admin.addr, catalog.addr, token, o.Keys != nil)
	d.screen.live()
	if o.Ready != nil {
		o.Ready(listen.addr, admin.addr)
	}

	keys := d.readKeys(ctx)
	for {
		select {
		case <-ctx.Done():
			return <-failed
		case err := <-failed:
			return err
		case key := <-keys:
			if key == 'q' {
				quit()
				continue
			}
			d.press(key)
		}
	}
}

// load reads the configuration, as a reload does.
func (d *demo) load() (*config.Config, error) {
	text := d.text
	if d.broken.Load() {
		text = append(bytes.Replace(text, []byte("timeout: {response: 2s}"), []byte("timout: {response: 2s}"), 1), mistake...)
	}
	return config.Parse("demo.yaml", text, config.LoadOptions{Pure: true})
}

// mistake is a route that a reload refuses.
const mistake = `  - name: cart
    match: {path: "/api/cart/**"}
    upstream: {service: cart, strip: /api/basket}
`

// place is an address and what the viewer has to know of it.
type place struct{ addr, note string }

// vacant returns def to listen on, or any free port where somebody has that.
func vacant(def string) place {
	l, err := net.Listen("tcp", def)
	if err != nil {
		return place{"127.0.0.1:0", "   (" + def + " is taken)"}
	}
	_ = l.Close() // it was only asked for
	return place{addr: def}
}

// vacantFor returns an address that the viewer asked for as it is, and where
// that is the default or nothing, a vacant one.
func vacantFor(asked, def string) place {
	if asked != "" && asked != def {
		return place{addr: asked}
	}
	return vacant(def)
}

func (d *demo) startCatalog(ctx context.Context, running *sync.WaitGroup) (place, error) {
	at := vacant(catalogAddr)
	l, err := net.Listen("tcp", at.addr)
	if err != nil {
		return at, fmt.Errorf("embedded catalog: %w", err)
	}
	at.addr = l.Addr().String()
	d.catalog = devcatalog.New(devcatalog.Options{NodeName: "demo", Log: d.o.Log, Streaming: true,
		// What a check says is news at once here, not after minutes.
		CheckUpdateInterval: time.Second})
	// The agents' limit of header bytes; what the API does not know answers 404.
	srv := &http.Server{Handler: d.catalog, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(d.o.Log.Handler(), slog.LevelDebug)}
	running.Go(func() { _ = d.catalog.Run(ctx) }) // ends with ctx, and fails only when run twice
	running.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.o.Log.Error("embedded catalog ended", "err", err)
		}
	})
	running.Go(func() {
		<-ctx.Done()
		// The services deregister first: they have until Run's other parts end.
		waitFor(5*time.Second, d.servicesGone)
		_ = srv.Close()
	})
	return at, nil
}

func (d *demo) startRedis() (place, error) {
	at := vacant(redisAddr)
	d.redis = miniredis.NewMiniRedis()
	// Keys expire by the clock, as in a real Redis.
	d.redis.ClockTTL(true)
	if err := d.redis.StartAddr(at.addr); err != nil {
		return at, fmt.Errorf("embedded Redis: %w", err)
	}
	at.addr = d.redis.Addr()
	return at, nil
}

// configText is the demo's configuration: what an operator would write.
func configText(listen, admin, catalog, redis, token string) []byte {
	return fmt.Appendf(nil, `version: 1
listen: [{name: public, addr: %q}]
admin: {addr: %q, tokens: [{name: demo, role: operator, token: %q}]}
consul: {addr: %q}
redis: {addr: %q, timeout: 500ms} # its scripts are interpreted, in this busy process
registration: {enabled: true, name: proconsul}
shutdown: {delay: 0s, grace: 2s}
upstreams:
  - service: orders
    slow_start: 10s
    timeout: {response: 2s}
  - service: inventory
    balance: least_requests
    timeout: {response: 2s}
  - service: flaky
    breaker: {error_rate: 50%%, min_requests: 20, open_for: 3s}
    outlier: {disabled: true}
routes:
  - name: orders
    match: {path: "/api/orders/**"}
    upstream: {service: orders, strip: /api/orders}
  - name: users
    match: {path: "/api/users/**", methods: [GET, POST]}
    upstream: {service: users, strip: /api/users}
  - name: inventory
    match: {path: "/api/inventory/**"}
    upstream: {service: inventory, strip: /api/inventory}
    headers: {response: {set: [{name: Cache-Control, value: no-store}]}}
  - name: flaky
    match: {path: "/api/flaky/**"}
    upstream: {service: flaky, strip: /api/flaky}
  - name: limited
    match: {path: /api/limited}
    upstream: {service: users, strip: /api/limited}
    rate_limit: {by: client_ip, limits: [5/10s]}
  - name: events
    match: {path: /api/events}
    upstream: {service: inventory, strip: /api}
  - name: home
    match: {path: /}
    redirect: {to: "http://%s/", code: 302}
`, listen, admin, token, catalog, redis, admin)
}
