package breaker

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// The engines that ask a circuit.
const (
	// EngineCommand runs each attempt in a hystrix command (hystrix.DoC).
	EngineCommand = "command"
	// EngineDirect asks and tells the same circuits without a command: no
	// goroutines and a quarter of the time.
	EngineDirect = "direct"
)

// Settings are what a breaker obeys. All of them may change while requests
// run. The zero value is a breaker with the defaults.
type Settings struct {
	Disabled     bool          // requests always pass; the limit and the timers still hold
	ErrorPercent int           // of the attempts of the last ten seconds that opens it, 1 to 100; 0: 50
	MinRequests  int           // attempts in the last ten seconds before it may open; 0: 20
	OpenFor      time.Duration // until one request may probe, in whole milliseconds; 0: 5 s
	MaxInFlight  int           // permits; 0: no limit
	Engine       string        // EngineCommand or EngineDirect; empty: EngineCommand
	FailOn       []int         // statuses that count as failures; nil: 500, 502, 503, 504; empty: none
}

// hystrixLimits are what every command is made with. Tests lower them.
type hystrixLimits struct {
	// backstop is hystrix's own timeout. Our timer ends a try; this one would
	// only fire where a transport ignores its context. It is longer than any
	// timeout that the configuration takes.
	backstop time.Duration
	// tickets is the least number of hystrix's tickets, of which at most half
	// are used (command.do).
	tickets int
}

const (
	defaultBackstop = 25 * time.Hour
	minTickets      = 1 << 10
	openTickets     = 1 << 11 // where there is no limit
	maxTickets      = 1 << 16 // half a megabyte
)

// compiled are Settings in the form that requests read them in.
type compiled struct {
	Settings
	engine  engine
	circuit *circuit // nil until the breaker is first enabled
}

// Check returns everything that is wrong with the settings, before a running
// breaker is given them.
func (s Settings) Check() error {
	_, err := s.compile()
	return err
}

func (s Settings) compile() (*compiled, error) {
	var faults []error
	whole := func(name string, value *int, least, most, def int) {
		if *value == 0 {
			*value = def
		}
		if *value < least || *value > most {
			faults = append(faults, fmt.Errorf("%s is %d: want %d to %d", name, *value, least, most))
		}
	}
	whole("error percent", &s.ErrorPercent, 1, 100, 50)
	whole("min requests", &s.MinRequests, 1, 1<<30, 20)
	whole("max in flight", &s.MaxInFlight, 0, 1<<30, 0)
	if s.OpenFor == 0 {
		s.OpenFor = 5 * time.Second
	}
	if s.OpenFor < 0 {
		faults = append(faults, fmt.Errorf("open for is %s: want a positive duration", s.OpenFor))
	}
	s.OpenFor = (s.OpenFor + time.Millisecond - 1).Truncate(time.Millisecond) // hystrix's unit
	if s.FailOn == nil {
		s.FailOn = []int{
			http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout,
		}
	}
	s.FailOn = slices.Clone(s.FailOn)
	for _, code := range s.FailOn {
		if code < 400 || code > 599 {
			faults = append(faults, fmt.Errorf("fail on %d: want a status from 400 to 599", code))
		}
	}
	c := &compiled{}
	switch s.Engine {
	case "", EngineCommand:
		s.Engine = EngineCommand
		c.engine = command{}
	case EngineDirect:
		c.engine = direct{}
	default:
		faults = append(faults, fmt.Errorf("engine %q: want %s or %s", s.Engine, EngineCommand, EngineDirect))
	}
	c.Settings = s
	return c, errors.Join(faults...)
}

// trips reports whether a window of that many attempts and errors opens the
// breaker. The arithmetic is hystrix's (metricExchange.ErrorPercent), so that
// the two never disagree about the same numbers.
func (s *Settings) trips(requests, errs int) bool {
	return requests >= s.MinRequests && int(float64(errs)/float64(requests)*100+0.5) >= s.ErrorPercent
}

// hystrix returns the settings of the command. The number of tickets takes
// effect when the circuit is made and never again.
func (s *Settings) hystrix(l hystrixLimits) hystrix.CommandConfig {
	return hystrix.CommandConfig{
		Timeout:                int(l.backstop / time.Millisecond),
		MaxConcurrentRequests:  s.tickets(l),
		RequestVolumeThreshold: s.MinRequests,
		SleepWindow:            int(s.OpenFor / time.Millisecond),
		ErrorPercentThreshold:  s.ErrorPercent,
	}
}

// tickets is at least twice what the limit lets through: hystrix takes a
// ticket back only after it has delivered the result, so that at 100 % use it
// refuses requests (and counts them as errors) that it has room for.
func (s *Settings) tickets(l hystrixLimits) int {
	if s.MaxInFlight == 0 && l.tickets == minTickets {
		return openTickets
	}
	n := l.tickets
	for n < 2*s.MaxInFlight && n < maxTickets {
		n *= 2
	}
	return n
}
