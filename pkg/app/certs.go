package app

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/acme"
	"github.com/proconsul/proconsul/pkg/admin"
	"github.com/proconsul/proconsul/pkg/certs"
	"github.com/proconsul/proconsul/pkg/metrics"
)

// recheck is how often certificate files are read where nothing says that they
// have changed: a file system may not say so, and time alone makes one expire.
const recheck = time.Hour

// secured is a public listener's certificates.
type secured struct {
	listener string
	store    *certs.Store
}

// files are what a connection of the gateway's own is opened by.
type files interface {
	Files() []string
	Refresh() (changed bool, err error)
}

// ours are the files for connections to something that the gateway stands on.
type ours struct {
	of string
	files
}

// follow has files read again when they change.
func (a *App) follow(of string, f files) { a.ours = append(a.ours, ours{of, f}) }

// openCertificates reads the certificates of a listener; nil where it is clear.
func (a *App) openCertificates(c config.Listen) (*certs.Store, error) {
	if c.TLS == nil {
		return nil, nil
	}
	store, err := certs.Open(*c.TLS)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", c.Name, err)
	}
	if a.acme != nil && len(c.TLS.ACME) > 0 {
		store.Also(a.acme.Get)
	}
	a.secured = append(a.secured, secured{c.Name, store})
	a.warnOfExpiry(c.Name, store)
	return store, nil
}

// openACME prepares to obtain the certificates that listeners have no files
// for. Clear listeners answer the issuer's challenges from then on.
func (a *App) openACME(cfg *config.Config, sockets []net.Listener) error {
	o := acme.Options{Config: cfg.ACME, OnEvent: a.onACME}
	for i, c := range cfg.Listen {
		addr := sockets[i].Addr().String()
		switch {
		case c.TLS == nil && o.Clear == "":
			o.Clear = addr
		case c.TLS != nil && len(c.TLS.ACME) > 0:
			o.Names = append(o.Names, c.TLS.ACME...)
			o.Secure = addr
		}
	}
	if len(o.Names) == 0 {
		return nil
	}
	if cfg.ACME.Storage == "consul" {
		o.KV = a.client.Store(cfg.ACME.KVPrefix)
	}
	slices.Sort(o.Names)
	o.Names = slices.Compact(o.Names)
	obtained, err := acme.New(o)
	if err != nil {
		return err
	}
	a.stack.push("acme", obtained.Close)
	a.acme = obtained
	a.follow("acme", obtained)
	return nil
}

// onACME tells of a certificate that was obtained, or was not.
func (a *App) onACME(e acme.Event) {
	log := a.log.With("component", "tls", "name", e.Name)
	if e.Err != nil {
		a.metrics.CertificatesRefused()
		log.Error("certificate not obtained, it is tried again", "err", e.Err)
		a.tell(admin.Event{Kind: "tls", Severity: admin.Error, Message: fmt.Sprintf("no certificate for %s: %v", e.Name, e.Err)})
		return
	}
	a.metrics.CertificatesLoaded()
	log.Info("certificate obtained")
	a.tell(admin.Event{Kind: "tls", Severity: admin.Info, Message: "certificate for " + e.Name + " obtained"})
}

// shownCertificates lists what the listeners show, by listener.
func (a *App) shownCertificates() (list []shownCertificate) {
	for _, s := range a.secured {
		for _, c := range s.store.List() {
			list = append(list, shownCertificate{s.listener, c})
		}
	}
	if a.acme != nil {
		for _, c := range a.acme.List() {
			list = append(list, shownCertificate{"acme", certs.InfoOf(c.Leaf)})
		}
	}
	return list
}

type shownCertificate struct {
	listener string // or acme
	certs.Info
}

// followCertificates reads certificate files again after they may have changed,
// those of listeners, for instances, for Consul and for Redis. It is no reload: one that cannot
// be used leaves the old in place, and everything else alone.
func (a *App) followCertificates(ctx context.Context) error {
	files := func() (list []string) {
		for _, s := range a.secured {
			list = append(list, s.store.Files()...)
		}
		for _, o := range a.ours {
			list = append(list, o.Files()...)
		}
		return append(list, a.upstreams.tlsFiles()...)
	}
	again := make(chan struct{}, 1)
	watching := newGroup(ctx)
	watching.run("certificate files", func(ctx context.Context) error {
		return config.WatchFiles(ctx, files, func() {
			select {
			case again <- struct{}{}:
			default: // it is about to be read anyway
			}
		})
	})
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()
	for {
		select {
		case <-watching.ctx.Done():
			return watching.stop()
		case <-again:
			a.readCertificates()
		case <-ticker.C:
			a.readCertificates()
			for _, s := range a.secured {
				a.warnOfExpiry(s.listener, s.store)
			}
		}
	}
}

// readCertificates reads all of them once.
func (a *App) readCertificates() {
	a.reloading.Lock() // upstreams may be about to change
	defer a.reloading.Unlock()
	for _, s := range a.secured {
		changed, err := s.store.Load()
		a.tellCertificates("listener "+s.listener, changed, err)
		if changed {
			a.warnOfExpiry(s.listener, s.store)
		}
	}
	for _, o := range a.ours {
		changed, err := o.Refresh()
		a.tellCertificates(o.of, changed, err)
	}
	for _, up := range a.upstreams.list() {
		if len(up.tlsFiles()) == 0 {
			continue
		}
		changed, err := up.proxy.Refresh()
		a.tellCertificates("upstream "+up.config.Name, changed, err)
	}
}

// tellCertificates tells of certificates that were taken over, or refused.
func (a *App) tellCertificates(of string, changed bool, err error) {
	log := a.log.With("component", "tls", "of", of)
	if err != nil {
		a.metrics.CertificatesRefused()
		log.Error("certificate refused, the one before stays", "err", err)
		a.tell(admin.Event{Kind: "tls", Severity: admin.Error, Message: of + ": certificate refused, the one before stays: " + err.Error()})
	}
	if changed {
		a.metrics.CertificatesLoaded()
		log.Info("certificates taken over")
		a.tell(admin.Event{Kind: "tls", Severity: admin.Info, Message: of + ": new certificates taken over"})
	}
}

// warnOfExpiry tells of certificates that are about to be of no use.
func (a *App) warnOfExpiry(listener string, store *certs.Store) {
	for _, c := range store.List() {
		if c.NotAfter.IsZero() {
			continue
		}
		state := config.Expiry(c.NotBefore, c.NotAfter, time.Now())
		if state == "" {
			continue
		}
		a.log.Warn("certificate expires", "component", "tls", "listener", listener, "subject", c.Subject, "file", c.File, "not_after", c.NotAfter)
		a.tell(admin.Event{Kind: "tls", Severity: admin.Warn, Message: fmt.Sprintf("listener %s: certificate %s %s", listener, c.Subject, state)})
	}
}

// certificates lists what the listeners show, for the status.
func (a *App) certificates() []admin.Certificate {
	var list []admin.Certificate
	for _, c := range a.shownCertificates() {
		row := admin.Certificate{Listener: c.listener, Subject: c.Subject, Names: c.Names, Issuer: c.Issuer,
			NotBefore: c.NotBefore, NotAfter: c.NotAfter, File: c.File, Error: c.Err, State: "ok"}
		switch now := time.Now(); {
		case c.NotAfter.IsZero():
			row.State = "refused"
		case now.After(c.NotAfter) || now.Before(c.NotBefore):
			row.State = "invalid"
		case config.Expiry(c.NotBefore, c.NotAfter, now) != "":
			row.State = "expiring"
		}
		list = append(list, row)
	}
	return list
}

// tlsStatus sums the certificates up.
func (a *App) tlsStatus() admin.Dependency {
	list := a.certificates()
	if len(a.secured) == 0 {
		return admin.Dependency{State: "disabled", Detail: "every listener is clear"}
	}
	d := admin.Dependency{State: "up", Detail: fmt.Sprintf("%d certificates", len(list))}
	var first admin.Certificate
	for _, c := range list {
		if !c.NotAfter.IsZero() && (first.NotAfter.IsZero() || c.NotAfter.Before(first.NotAfter)) {
			first = c
		}
		switch {
		case c.Error != "":
			d.State, d.Error = "down", c.Error
		case c.State == "invalid":
			d.State, d.Error = "down", c.Subject+" "+config.Expiry(c.NotBefore, c.NotAfter, time.Now())
		case c.State == "expiring" && d.State == "up":
			d.State = "warning"
		}
	}
	if !first.NotAfter.IsZero() {
		d.Detail += fmt.Sprintf(", the first expires %s (%s)", first.NotAfter.UTC().Format(time.DateOnly), first.Subject)
	}
	return d
}

// certificatesState is the same for the metrics.
func (a *App) certificatesState() (list []metrics.CertificateState) {
	for _, c := range a.shownCertificates() {
		if !c.NotAfter.IsZero() {
			list = append(list, metrics.CertificateState{Subject: c.Subject, NotAfter: c.NotAfter})
		}
	}
	return list
}

// tlsFiles lists the certificate files of all upstreams.
func (us *upstreams) tlsFiles() (files []string) {
	for _, up := range us.list() {
		files = append(files, up.tlsFiles()...)
	}
	return files
}

func (up *upstream) tlsFiles() (files []string) {
	if up.config.Scheme != "https" {
		return nil
	}
	for _, f := range []string{up.config.TLS.CAFile, up.config.TLS.CertFile, up.config.TLS.KeyFile} {
		if f != "" {
			files = append(files, f)
		}
	}
	return files
}
