//go:build linux

package main

import (
	"bufio"
	"errors"
	"net"
	"os"
)

// startSyslog runs a syslog server for a target, as HAProxy's manual has it,
// and returns its address. It shares the load's core.
func (b *bench) startSyslog(name string) (addr string, p *process, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	file, err := b.write(name, "access.log", "")
	if err != nil {
		return "", nil, err
	}
	addr = b.address()
	if p, err = start(loadCore, nil, nil, self, "syslog", addr, file); err != nil {
		return "", nil, err
	}
	b.running = append(b.running, p)
	return addr, p, p.await(addr)
}

// syslogServer writes what it is sent by UDP into a file. That it listens by TCP
// too says that it has begun.
func syslogServer(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: syslog ADDR FILE")
	}
	c, err := net.ListenPacket("udp4", args[0])
	if err != nil {
		return err
	}
	begun, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	defer begun.Close()
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
