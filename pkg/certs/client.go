package certs

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/proconsul/proconsul/config"
)

// Client is the TLS of connections that the gateway opens itself, by files that
// it reads again when it is told to. It is safe for concurrent use.
type Client struct {
	cfg config.ClientTLS

	mu   sync.Mutex // one Refresh at a time
	read [][]byte   // what the files held

	current atomic.Pointer[tls.Config]
}

// OpenClient reads the files that cfg names.
func OpenClient(cfg config.ClientTLS) (*Client, error) {
	c := &Client{cfg: cfg}
	_, err := c.Refresh()
	return c, err
}

// Files lists the files that are read.
func (c *Client) Files() (files []string) {
	for _, f := range []string{c.cfg.CAFile, c.cfg.CertFile, c.cfg.KeyFile} {
		if f != "" {
			files = append(files, f)
		}
	}
	return files
}

// Current is what the next connection is opened by. It must not be changed.
func (c *Client) Current() *tls.Config { return c.current.Load() }

// Refresh reads the files again and reports whether anything is different from
// before. Where one of them cannot be used, all that was read before stays.
func (c *Client) Refresh() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var read [][]byte
	same := c.current.Load() != nil
	for i, file := range c.Files() {
		text, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		read = append(read, text)
		same = same && bytes.Equal(text, c.read[i])
	}
	if same {
		return false, nil
	}
	next := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.cfg.ServerName, InsecureSkipVerify: c.cfg.SkipVerify} // asked for by name in the configuration
	if c.cfg.CAFile != "" {
		if next.RootCAs, err = config.ReadCAs(c.cfg.CAFile); err != nil {
			return false, fmt.Errorf("tls.ca_file: %w", err)
		}
	}
	if c.cfg.CertFile != "" {
		pair, err := config.Certificate{CertFile: c.cfg.CertFile, KeyFile: c.cfg.KeyFile}.Read()
		if err != nil {
			return false, fmt.Errorf("tls.cert_file: %w", err)
		}
		next.Certificates = []tls.Certificate{*pair}
	}
	c.read = read
	c.current.Store(next)
	return true, nil
}
