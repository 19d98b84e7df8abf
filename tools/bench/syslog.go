//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// startSyslog runs a syslog server for a target, which needs one to log in the
// way that its package has it, and returns its address. It shares the load's core.
func (b *bench) startSyslog(name string) (addr string, p *process, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	file, err := b.write(name, "access.log", "")
	if err != nil {
		return "", nil, err
	}
	addr = b.address() // free for TCP, and so for UDP, as a rule
	if p, err = start(loadCore, nil, nil, self, "syslog", addr, file); err != nil {
		return "", nil, err
	}
	b.running = append(b.running, p)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return addr, p, nil // it has taken its place
		}
		_ = c.Close()
		select {
		case <-p.done:
			return "", nil, fmt.Errorf("the syslog server has ended: %s", p.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return "", nil, errors.New("the syslog server does not listen on " + addr)
}

// syslogServer writes what it is sent into a file.
func syslogServer(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: syslog ADDR FILE")
	}
	c, err := net.ListenPacket("udp4", args[0])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	out, line := bufio.NewWriterSize(f, 64<<10), make([]byte, 8<<10)
	for {
		n, _, err := c.ReadFrom(line)
		if err != nil {
			return err
		}
		line[n] = '\n'
		if _, err := out.Write(line[:n+1]); err != nil {
			return err
		}
	}
}
