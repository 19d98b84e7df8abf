package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/proconsul/proconsul/consul/devcatalog"
)

// readKeys hands on what the viewer types, a byte at a time. Its goroutine
// ends with the process where the reader is a terminal: a read of one cannot
// be interrupted.
func (d *demo) readKeys(ctx context.Context) <-chan byte {
	keys := make(chan byte)
	if d.o.Keys == nil {
		return keys
	}
	go func() {
		b := make([]byte, 1)
		for {
			n, err := d.o.Keys.Read(b)
			if n == 1 {
				select {
				case keys <- b[0]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return keys
}

// press does what a key stands for.
func (d *demo) press(key byte) {
	switch key {
	case 'k':
		d.each("orders-2", (*instance).kill)
		d.screen.pressed(key, "orders-2 killed")
	case 'l':
		d.each("inventory-2", func(in *instance) { in.delay.Store(int64(400 * time.Millisecond)) })
		d.screen.pressed(key, "inventory-2 answers 400ms later")
	case 'e':
		d.each("flaky-1", func(in *instance) { in.fails.Store(true) })
		d.each("flaky-2", func(in *instance) { in.fails.Store(true) })
		d.screen.pressed(key, "flaky answers 500")
	case 'c':
		d.catalog.SetFaults(devcatalog.Faults{Cut: true})
		d.screen.pressed(key, "Consul cut off: the last catalog serves")
	case 'r':
		d.redis.Close()
		d.screen.pressed(key, "Redis cut off: each replica keeps its share of the limits")
	case 'b':
		d.traffic.burst(2000)
		d.screen.pressed(key, "2,000 requests at once")
	case 'm':
		d.broken.Store(true)
		err := d.app.Reload("file")
		d.screen.pressed(key, fmt.Sprintf("a configuration with mistakes: %v", err))
	case 't':
		if d.traffic.toggle() {
			d.screen.pressed(key, "traffic on")
		} else {
			d.screen.pressed(key, "traffic off")
		}
	case 'h':
		d.heal()
		d.screen.pressed(key, "everything healed")
	}
}

// heal undoes whatever was broken.
func (d *demo) heal() {
	d.catalog.SetFaults(devcatalog.Faults{})
	if err := d.redis.Restart(); err != nil { // it runs already, or its port is taken
		d.o.Log.Debug("embedded redis was not restarted", "err", err)
	}
	if d.broken.Swap(false) {
		if err := d.app.Reload("file"); err != nil {
			d.screen.printf("  %v\n", err)
		}
	}
	for _, in := range d.services {
		in.delay.Store(0)
		in.fails.Store(false)
		if err := in.start(); err != nil {
			d.screen.printf("  %s stays down: %v\n", in.id, fmt.Errorf("start: %w", err))
		}
	}
}

// each calls do for the instance with that id.
func (d *demo) each(id string, do func(*instance)) {
	for _, in := range d.services {
		if in.id == id {
			do(in)
		}
	}
}
