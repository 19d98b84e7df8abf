package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones of days and months, where the image has none
)

// maxLimits bounds how many windows one decision charges.
const maxLimits = 8

// SplitBy returns the identities that a rate limit's by names, which are one
// identity together: client_ip+header(X-Team) is each team's at each address.
// A + inside parentheses belongs to the name there.
func SplitBy(by string) []string {
	var parts []string
	depth, from := 0, 0
	for i := range len(by) {
		switch by[i] {
		case '(':
			depth++
		case ')':
			depth--
		case '+':
			if depth == 0 {
				parts = append(parts, strings.TrimSpace(by[from:i]))
				from = i + 1
			}
		}
	}
	return append(parts, strings.TrimSpace(by[from:]))
}

func (b *builder) checkRateLimit(path string, l RateLimit) {
	b.checkBy(path, l)
	for _, key := range []string{"max_delay", "max_queue"} {
		if p := join(path, key); l.Over == "reject" && b.written(p) && b.sound(p) {
			b.warn(p, CodeNoEffect, p+" has no effect: over is reject, so nobody waits", "write over: delay")
		}
	}
	if zone := join(path, "zone"); b.sound(zone) {
		// LoadLocation takes "" for UTC and "Local" for the machine's own,
		// which is not the same on every replica.
		if _, err := time.LoadLocation(l.Zone); err != nil || l.Zone == "Local" {
			b.bad(zone, l.Zone, CodeFormat, "is no time zone", "write it as Europe/Berlin")
		}
	}
	if burst := join(path, "burst"); b.sound(burst) && l.Burst > 0 && l.Algorithm != "token_bucket" {
		b.bad(burst, strconv.Itoa(l.Burst), CodeContradicts, "is nothing to a "+l.Algorithm, "write algorithm: token_bucket")
	}
	rate, limits := join(path, "rate"), join(path, "limits")
	if !b.sound(rate) || !b.sound(limits) {
		return
	}
	switch {
	case l.Rate != (Limit{}):
		b.exclusive(path, "rate", "limits", true, true)
	case len(l.Limits) == 0:
		if !b.meant[rate] && !b.meant[limits] {
			b.fault(Fault{Path: path, Code: CodeMissing, Message: path + " has neither rate nor limits", Hint: "write rate: 100/1m"})
		}
	case len(l.Limits) > maxLimits:
		b.fault(Fault{Path: limits, Code: CodeRange, Message: fmt.Sprintf("%s has %d entries, and %d are the most", limits, len(l.Limits), maxLimits)})
	}
	windows := map[Limit]int{}
	for i, limit := range l.Limits {
		p := at(limits, i)
		if _, ok := b.places[rate]; ok {
			p = rate
		}
		window := limit
		window.Count = 0
		if j, ok := windows[window]; ok && len(l.Limits) > 1 {
			b.bad(p, limit.String(), CodeContradicts, fmt.Sprintf("has the window of %s too", at(limits, j)), "keep the smaller one")
		}
		windows[window] = i
		switch {
		case limit.Count > 1_000_000_000:
			b.bad(p, limit.String(), CodeRange, "is more than a billion", "")
		case limit.Calendar == "" && limit.Window < 10*time.Millisecond:
			b.bad(p, limit.String(), CodeRange, "has a window below 10ms", "")
		case limit.Calendar == "" && l.Algorithm == "token_bucket" && limit.Window.Microseconds() < int64(limit.Count):
			b.bad(p, limit.String(), CodeRange, "refills a token_bucket faster than a million times a second", "")
		}
	}
	b.checkCost(path, l)
	b.checkTiers(path, l)
}

// checkTiers checks that each consumer is in one tier, and that a tier has the
// windows of the section: only then counts carry over from tier to tier.
func (b *builder) checkTiers(path string, l RateLimit) {
	tiers := join(path, "tiers")
	b.unique(tiers, len(l.Tiers), func(i int) string { return l.Tiers[i].Name })
	of := map[string]string{}
	for i, t := range l.Tiers {
		p := at(tiers, i)
		for j, c := range t.Consumers {
			if other, ok := of[c]; ok {
				b.bad(at(join(p, "consumers"), j), c, CodeContradicts, "is in tier "+other+" too", "")
			}
			of[c] = t.Name
		}
		limits := join(p, "limits")
		if !b.sound(limits) {
			continue
		}
		same := len(t.Limits) == len(l.Limits)
		for k := range min(len(t.Limits), len(l.Limits)) {
			same = same && t.Limits[k].Window == l.Limits[k].Window && t.Limits[k].Calendar == l.Limits[k].Calendar
			if t.Limits[k].Count > 1_000_000_000 {
				b.bad(at(limits, k), t.Limits[k].String(), CodeRange, "is more than a billion", "")
			}
		}
		switch {
		case t.Unlimited && len(t.Limits) > 0:
			b.fault(Fault{Path: limits, Code: CodeContradicts, Message: limits + " are those of an unlimited tier"})
		case !t.Unlimited && !same:
			b.fault(Fault{Path: p, Code: CodeContradicts, Message: p + " has other windows than " + join(path, "limits"),
				Hint: "write one limit for each of its windows, in its order"})
		case !t.Unlimited:
			b.checkCost(p, RateLimit{Limits: t.Limits, Cost: l.Cost, Algorithm: l.Algorithm, Burst: l.Burst})
		}
	}
}

// checkBy checks each identity that by names.
func (b *builder) checkBy(path string, l RateLimit) {
	by := join(path, "by")
	if !b.sound(by) {
		return
	}
	plain := []string{"client_ip", "route", "all", "consumer", "api_key", "method"}
	named := []string{"header", "cookie", "claim"}
	parts := SplitBy(l.By)
	for i, part := range parts {
		kind, _, _ := strings.Cut(part, "(")
		name, closed := Argument(part, kind)
		secret := kind == "api_key" || kind == "cookie" || kind == "header" && slices.Contains([]string{"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key"}, name)
		switch isNamed := slices.Contains(named, kind) && kind != part; {
		case isNamed && (!closed || name == "" || kind != "claim" && !token(name)):
			b.bad(by, part, CodeHeader, "names no "+kind, "write "+kind+"(NAME)")
		case !isNamed && !slices.Contains(plain, part):
			b.bad(by, part, CodeChoice, "is none of client_ip, route, all, consumer, api_key, method, header(NAME), cookie(NAME), claim(NAME)",
				didYouMean(part, append(plain, "header(NAME)", "cookie(NAME)", "claim(NAME)")))
		case slices.Contains(parts[:i], part):
			b.bad(by, part, CodeContradicts, "is named twice", "")
		case kind == "claim" && !slices.ContainsFunc(b.methods, func(m AuthMethod) bool { return m.JWT != nil }):
			b.bad(by, part, CodeReference, "is of a token, and no method of auth reads any", "add an auth method with jwt")
		case secret && l.ShowKeys:
			b.bad(join(path, "show_keys"), "true", CodeContradicts, "would show credentials: the limit is by "+part, "leave it out")
		}
	}
}

// Cost is how many tokens a request costs. One field is set.
type Cost struct {
	Fixed          int
	Header         string // of the request, whose number is the cost
	ResponseHeader string // of the answer
	ResponseBytes  Size   // of the answer's body, for a token
}

// ParseCost reads a cost as configurations have it.
func ParseCost(text string) (c Cost, ok bool) {
	if text == "" {
		return Cost{Fixed: 1}, true
	}
	if name, ok := Argument(text, "header"); ok {
		return Cost{Header: name}, token(name)
	}
	if name, ok := Argument(text, "response_header"); ok {
		return Cost{ResponseHeader: name}, token(name)
	}
	if size, ok := Argument(text, "response_bytes"); ok {
		err := c.ResponseBytes.UnmarshalText([]byte(size))
		return c, err == nil && c.ResponseBytes > 0
	}
	n, err := strconv.Atoi(text)
	return Cost{Fixed: n}, err == nil && n >= 1
}

// checkCost checks that some request can pass at all.
func (b *builder) checkCost(path string, l RateLimit) {
	p := join(path, "cost")
	if !b.sound(p) {
		return
	}
	c, ok := ParseCost(l.Cost)
	if !ok {
		b.bad(p, l.Cost, CodeFormat, "is no cost", "write a number from 1 on, header(NAME), response_header(NAME) or response_bytes(64KiB)")
		return
	}
	for _, limit := range l.Limits {
		room := limit.Count
		if l.Algorithm == "token_bucket" && l.Burst > 0 && limit.Calendar == "" {
			room = l.Burst
		}
		if c.Fixed > room {
			b.bad(p, l.Cost, CodeContradicts, fmt.Sprintf("is above %s: no request would ever pass", limit), "")
			return
		}
	}
}

// checkDelays reports a route of which more than one limit would make requests
// wait: what the first had given would be old by the time of the second.
func (b *builder) checkDelays(c *Config, path string, r Route) {
	var delaying []string
	for _, l := range c.Limits(r) {
		if l.Over == "delay" {
			delaying = append(delaying, l.Name)
		}
	}
	if len(delaying) > 1 && b.sound(path) {
		b.fault(Fault{Path: path, Code: CodeContradicts, Message: fmt.Sprintf("%s is under several limits with over: delay (%s)", b.label(path), strings.Join(delaying, ", ")),
			Hint: "let one of them delay, the others reject"})
	}
}

// checkRedis checks that the topology and its keys fit.
func (b *builder) checkRedis(r Redis) {
	if r.Addr != "" {
		b.address("redis.addr", r.Addr, false)
	}
	for i, addr := range r.Addrs {
		b.address(at("redis.addrs", i), addr, false)
	}
	if !b.sound("redis.mode") {
		return
	}
	if r.Mode == "single" {
		switch {
		case len(r.Addrs) > 0:
			b.fault(Fault{Path: "redis.addrs", Code: CodeContradicts, Message: "redis.addrs are of sentinels or a cluster, and redis.mode is single", Hint: "write mode: cluster, or addr"})
		case r.Master != "":
			b.bad("redis.master", r.Master, CodeContradicts, "is the sentinels', and redis.mode is single", "write mode: sentinel")
		}
		return
	}
	switch {
	case r.Addr != "":
		b.bad("redis.addr", r.Addr, CodeContradicts, "is one address, and mode "+r.Mode+" takes several", "write it into addrs")
	case len(r.Addrs) == 0 && b.sound("redis.addrs"):
		b.fault(Fault{Path: "redis.mode", Code: CodeMissing, Message: "redis.mode " + r.Mode + " needs redis.addrs", Hint: "write addrs: [host:port, ...]"})
	}
	switch {
	case r.Mode == "sentinel" && r.Master == "":
		b.fault(Fault{Path: "redis.mode", Code: CodeMissing, Message: "redis.mode sentinel needs redis.master", Hint: "write the name that sentinel.conf monitors it by"})
	case r.Mode == "cluster" && r.DB != 0:
		b.bad("redis.db", strconv.Itoa(r.DB), CodeContradicts, "is no database of a cluster: there is 0 only", "")
	case r.Mode == "cluster" && r.Master != "":
		b.bad("redis.master", r.Master, CodeContradicts, "is the sentinels', and redis.mode is cluster", "write mode: sentinel")
	}
}
