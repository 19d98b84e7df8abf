//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Which core does what.
const (
	loadCore  = "0" // load and backend
	proxyCore = "1" // the proxy under test
)

// process is a process and all its children, which share a group.
type process struct {
	cmd  *exec.Cmd
	out  *bytes.Buffer
	done chan struct{}
}

// start runs a command on one core in a group of its own.
func start(core string, stdout io.Writer, env []string, name string, args ...string) (*process, error) {
	cmd := exec.Command("taskset", append([]string{"-c", core, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), env...)
	p := &process{cmd: cmd, out: new(bytes.Buffer), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = stdout, p.out
	if stdout == nil {
		cmd.Stdout = p.out
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = cmd.Wait() // it is killed at the end
		close(p.done)
	}()
	return p, nil
}

func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// await waits until something listens on addr.
func (p *process) await(addr string) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			return c.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s", strings.Join(p.cmd.Args, " "), p.out)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not listen on %s: %s", strings.Join(p.cmd.Args, " "), addr, p.out)
}

// usage is processor time in clock ticks of 10 ms.
type usage struct{ user, system int64 }

func (u usage) sub(o usage) usage { return usage{u.user - o.user, u.system - o.system} }
func (u usage) add(o usage) usage { return usage{u.user + o.user, u.system + o.system} }
func (u usage) seconds() float64  { return float64(u.user+u.system) / ticks }
func (u usage) perRequest(n int64) cost {
	return cost{User: float64(u.user) / ticks * 1e6 / float64(n), System: float64(u.system) / ticks * 1e6 / float64(n)}
}

const ticks = 100 // USER_HZ, which is 100 wherever Linux runs Go

// usage sums what the living members of the group have used.
func (p *process) usage() (u usage) {
	p.members(func(dir string, fields []string) {
		// fields[0] is the state, the third field of stat (proc(5)).
		user, _ := strconv.ParseInt(fields[11], 10, 64)
		system, _ := strconv.ParseInt(fields[12], 10, 64)
		u.user += user
		u.system += system
	})
	return u
}

// memory sums the resident memory of the group, in bytes.
func (p *process) memory() (n int64) {
	p.members(func(_ string, fields []string) {
		pages, _ := strconv.ParseInt(fields[21], 10, 64)
		n += pages * int64(os.Getpagesize())
	})
	return n
}

func (p *process) members(each func(dir string, fields []string)) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	group := strconv.Itoa(p.cmd.Process.Pid)
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has just ended
		}
		_, rest, ok := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		if ok && len(fields) > 21 && fields[2] == group {
			each(dir, fields)
		}
	}
}

// machine returns the processor time that all processes have used. Interrupts
// and what the host took are nobody's.
func machine() (usage, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return usage{}, err
	}
	fields := strings.Fields(string(b))
	if len(fields) < 4 {
		return usage{}, fmt.Errorf("cannot read /proc/stat: %.40q", b)
	}
	var n [3]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(fields[1+i], 10, 64); err != nil {
			return usage{}, fmt.Errorf("cannot read /proc/stat: %w", err)
		}
	}
	return usage{n[0] + n[1], n[2]}, nil
}
