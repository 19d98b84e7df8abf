package tracing

import (
	"context"
	"log/slog"
	"sync"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
)

// lastCall bounds the sending of what is left when the process ends.
const lastCall = 5 * time.Second

// Stats count spans by what became of them.
type Stats struct {
	Exported uint64 // the collector has taken them
	Dropped  uint64 // they came faster than they could be sent
	Failed   uint64 // the collector did not take them
}

// outbox keeps ended spans until they are sent. It is the SDK's batch
// processor without a goroutine of its own, and it tells what it loses.
type outbox struct {
	exporter sdk.SpanExporter
	log      *slog.Logger
	max      int // spans kept
	batch    int // spans sent at once
	every    time.Duration
	within   time.Duration // one export
	wake     chan struct{}

	mu    sync.Mutex
	spans []sdk.ReadOnlySpan
	count Stats
}

// newOutbox returns an outbox with the bounds of the OTEL_BSP_* variables.
func newOutbox(exporter sdk.SpanExporter, log *slog.Logger) *outbox {
	b := &outbox{
		exporter: exporter, log: log, wake: make(chan struct{}, 1),
		max:    number("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
		batch:  number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
		every:  millis("OTEL_BSP_SCHEDULE_DELAY", 5*time.Second),
		within: millis("OTEL_BSP_EXPORT_TIMEOUT", 30*time.Second),
	}
	b.batch = min(b.batch, b.max)
	return b
}

// OnStart implements the SDK's SpanProcessor.
func (b *outbox) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd implements the SDK's SpanProcessor.
func (b *outbox) OnEnd(s sdk.ReadOnlySpan) {
	b.mu.Lock()
	if len(b.spans) >= b.max {
		b.count.Dropped++
	} else {
		b.spans = append(b.spans, s)
	}
	full := len(b.spans) >= b.batch
	b.mu.Unlock()
	if full {
		select {
		case b.wake <- struct{}{}:
		default: // it is awake already
		}
	}
}

// Shutdown implements the SDK's SpanProcessor.
func (b *outbox) Shutdown(context.Context) error { return nil }

// ForceFlush implements the SDK's SpanProcessor.
func (b *outbox) ForceFlush(context.Context) error { return nil }

func (b *outbox) stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// take returns the next spans to send.
func (b *outbox) take() []sdk.ReadOnlySpan {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(b.batch, len(b.spans))
	batch := b.spans[:n:n]
	if b.spans = b.spans[n:]; len(b.spans) == 0 {
		b.spans = nil // its array goes with the batch
	}
	return batch
}

// run sends spans until ctx is done, then what is left.
func (b *outbox) run(ctx context.Context) error {
	ticker := time.NewTicker(b.every)
	defer ticker.Stop()
	lost := false // the last export failed
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			lost = b.send(ctx, lost)
		case <-b.wake:
			lost = b.send(ctx, lost)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCall)
	defer cancel()
	b.send(last, lost)
	b.mu.Lock()
	b.count.Failed += uint64(len(b.spans))
	b.spans = nil
	b.mu.Unlock()
	return b.exporter.Shutdown(last)
}

// back puts a batch back that was interrupted.
func (b *outbox) back(batch []sdk.ReadOnlySpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spans = append(batch, b.spans...)
}

// send sends all there is, in batches, and reports whether the last of them
// was lost. It says so once per change.
func (b *outbox) send(ctx context.Context, lost bool) bool {
	for batch := b.take(); len(batch) > 0; batch = b.take() {
		within, cancel := context.WithTimeout(ctx, b.within)
		err := b.exporter.ExportSpans(within, batch)
		cancel()
		if err != nil && ctx.Err() != nil {
			b.back(batch)
			return lost
		}
		b.mu.Lock()
		if err == nil {
			b.count.Exported += uint64(len(batch))
		} else {
			b.count.Failed += uint64(len(batch))
		}
		b.mu.Unlock()
		switch {
		case err != nil && !lost:
			b.log.Warn("spans cannot be sent", "err", err)
		case err == nil && lost:
			b.log.Info("spans are sent again", "failed", b.stats().Failed, "dropped", b.stats().Dropped)
		}
		lost = err != nil
	}
	return lost
}
