package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/proconsul/proconsul/pkg/cohort"
	"github.com/proconsul/proconsul/pkg/rawio"
	"github.com/proconsul/proconsul/pkg/transport"
	"github.com/proconsul/proconsul/pkg/wire"
)

// How connections to instances are kept.
const (
	maxIdlePerInstance  = 16 << 10 // no more than were in use at once; what an upstream may have in flight bounds them
	keepAlivePeriod     = 15 * time.Second
	maxResponseHeader   = 256 << 10
	continueWait        = time.Second      // for an instance that ignores Expect
	pingAfter           = 10 * time.Second // of silence on an HTTP/2 connection
	pingWait            = 5 * time.Second
	sweepEvery          = 50 * time.Millisecond // how late a client's leaving may reach an instance
	defaultConnectLimit = 10 * time.Second
	defaultIdle         = 55 * time.Second
)

// Engines that speak HTTP/1.1 to instances.
const (
	EngineStd  = "std"  // net/http's transport
	EngineFast = "fast" // pkg/transport; https, h2c and upgrades stay with net/http
)

// TLS is how instances of an https upstream are verified, and who the gateway
// is to them. Files are read when an upstream is configured.
type TLS struct {
	CAFile     string // PEM; empty: the system's roots
	CertFile   string // PEM; empty: no client certificate
	KeyFile    string
	ServerName string // empty: the address that is dialled
	SkipVerify bool
}

// transportKey is everything that makes a transport what it is. A reload with
// an equal key keeps the transport and its connections.
type transportKey struct {
	scheme        string
	engine        string
	connect, idle time.Duration
	serverName    string
	skipVerify    bool
	ca, cert, key string // contents, so that rotated files are noticed
}

func keyOf(s Settings) (transportKey, error) {
	k := transportKey{scheme: s.Scheme, engine: s.Engine, connect: s.Connect, idle: s.Idle}
	switch k.engine {
	case "":
		k.engine = EngineStd
	case EngineStd, EngineFast:
	default:
		return k, fmt.Errorf("engine %q is not std or fast", k.engine)
	}
	if k.connect <= 0 {
		k.connect = defaultConnectLimit
	}
	if k.idle <= 0 {
		k.idle = defaultIdle
	}
	if s.Scheme != "https" {
		return k, nil
	}
	k.serverName, k.skipVerify = s.TLS.ServerName, s.TLS.SkipVerify
	for _, f := range []struct {
		path string
		into *string
	}{{s.TLS.CAFile, &k.ca}, {s.TLS.CertFile, &k.cert}, {s.TLS.KeyFile, &k.key}} {
		if f.path == "" {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			return k, fmt.Errorf("read TLS file: %w", err)
		}
		*f.into = string(b)
	}
	return k, nil
}

// transports are one upstream's connections to its instances.
type transports struct {
	key     transportKey
	main    pooled
	fast    *transport.Transport // main, where it is of the fast engine
	upgrade pooled               // HTTP/1.1 only, since only that can switch protocols; may be main
}

// pooled is a transport of either engine.
type pooled interface {
	http.RoundTripper
	CloseIdleConnections()
}

func newTransports(k transportKey, writes *cohort.Writes) (*transports, error) {
	var protocols, one http.Protocols
	one.SetHTTP1(true)
	var conf *tls.Config
	switch k.scheme {
	case "http":
		protocols.SetHTTP1(true)
	case "h2c":
		protocols.SetUnencryptedHTTP2(true)
	case "https":
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
		var err error
		if conf, err = k.tls(); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("scheme %q is not http, https or h2c", k.scheme)
	}
	t := &transports{key: k, main: newTransport(k, &protocols, conf)}
	if k.engine == EngineFast && k.scheme == "http" {
		t.fast = newFastTransport(k, writes, t.main)
		t.main = t.fast
	}
	t.upgrade = t.main
	if k.scheme != "http" {
		t.upgrade = newTransport(k, &one, conf)
	}
	return t, nil
}

func (k transportKey) tls() (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         k.serverName,
		InsecureSkipVerify: k.skipVerify, // asked for by name in the configuration
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
	if k.ca != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(k.ca)) {
			return nil, errors.New("the CA file holds no certificate")
		}
	}
	if k.cert != "" || k.key != "" {
		pair, err := tls.X509KeyPair([]byte(k.cert), []byte(k.key))
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

func newTransport(k transportKey, protocols *http.Protocols, conf *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: k.connect, KeepAlive: keepAlivePeriod}
	t := &http.Transport{
		// No proxy from the environment: instances are dialled, nothing else.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &connectError{err: err}
			}
			return &instanceConn{Conn: rawio.Conn(c, nil)}, nil
		},
		MaxIdleConnsPerHost:    maxIdlePerInstance,
		IdleConnTimeout:        k.idle,
		DisableCompression:     true, // bodies pass as they are
		ExpectContinueTimeout:  continueWait,
		MaxResponseHeaderBytes: maxResponseHeader,
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingWait},
	}
	if conf == nil {
		return t
	}
	conf = conf.Clone()
	if protocols.HTTP2() {
		conf.NextProtos = []string{"h2", "http/1.1"}
	} else {
		conf.NextProtos = []string{"http/1.1"}
	}
	// Dial and handshake in one place, so that a failure of either is known to
	// have sent nothing of the request, under one deadline.
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, k.connect)
		defer cancel()
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, &connectError{err: err}
		}
		mine := conf
		if mine.ServerName == "" {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				host = addr
			}
			mine = conf.Clone()
			mine.ServerName = host
		}
		tc := tls.Client(&instanceConn{Conn: rawio.Conn(c, nil)}, mine)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = c.Close() // the handshake's error is the one that matters
			return nil, &connectError{err: fmt.Errorf("TLS handshake with %s: %w", addr, err), tls: isTLS(err) || !timedOut(err)}
		}
		return tc, nil
	}
	return t
}

// newFastTransport returns a transport of the fast engine, which hands what it
// does not do to std.
func newFastTransport(k transportKey, writes *cohort.Writes, std http.RoundTripper) *transport.Transport {
	dialer := &net.Dialer{KeepAlive: keepAlivePeriod}
	return transport.New(transport.Options{
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &connectError{err: err}
			}
			return c, nil
		},
		MaxIdlePerHost:    maxIdlePerInstance,
		IdleTimeout:       k.idle,
		ConnectTimeout:    k.connect,
		ContinueTimeout:   continueWait,
		MaxResponseHeader: maxResponseHeader,
		Sweep:             sweepEvery,
		Writes:            writes,
		Fallback:          std,
	})
}

// call makes the round trips of one flight's requests on the fast engine, if
// they have no body or one that is on hand, one at a time, in memory that the
// next flight uses again.
type call struct {
	t      *transport.Transport
	answer transport.Memory
}

// RoundTrip implements http.RoundTripper.
func (c *call) RoundTrip(req *http.Request) (*http.Response, error) {
	return c.RoundTripBy(req, time.Time{})
}

// RoundTripBy implements breaker.Timed. The answer's header is a list, in
// c.answer; of the map there is what the breaker looks for, and no more.
func (c *call) RoundTripBy(req *http.Request, by time.Time) (*http.Response, error) {
	c.answer.Clear() // of the attempt before
	resp, err := c.t.RoundTripInto(req, &c.answer, by)
	if err == nil {
		if code, ok := wire.Find(c.answer.Lines, "Grpc-Status"); ok {
			resp.Header = http.Header{"Grpc-Status": {code}}
		}
	}
	return resp, err
}

// instanceConn is a connection to an instance that tells the upload on it when
// it is closed: net/http closes it as soon as the instance has, and then waits
// for the upload.
type instanceConn struct {
	net.Conn
	upload atomic.Pointer[view]
}

// Close implements net.Conn.
func (c *instanceConn) Close() error {
	err := c.Conn.Close()
	if v := c.upload.Swap(nil); v != nil {
		_ = v.Close() // never fails
	}
	return err
}

// CloseWrite lets switched connections be half-closed.
func (c *instanceConn) CloseWrite() error { return rawio.CloseWrite(c.Conn) }

// scheme is what the transport's URLs have.
func (t *transports) scheme() string {
	if t.key.scheme == "https" {
		return "https"
	}
	return "http"
}

// closeIdle closes the connections that no request uses. Those in use go to
// no idle pool afterwards: net/http closes them when their requests end.
func (t *transports) closeIdle() {
	t.main.CloseIdleConnections()
	if t.upgrade != t.main {
		t.upgrade.CloseIdleConnections()
	}
}
