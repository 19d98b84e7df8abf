package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// closest returns the candidate nearest to word, or "" where none is near
// enough to be what was meant.
func closest(word string, candidates []string) string {
	best, bestDistance := "", max(1, min(3, len(word)/3))+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c), bestDistance); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// didYouMean returns the hint for closest, or "".
func didYouMean(word string, candidates []string) string {
	if c := closest(word, candidates); c != "" {
		return fmt.Sprintf("did you mean %q?", c)
	}
	return ""
}

// distance counts the insertions, deletions, substitutions and swaps of
// neighbours between a and b; it stops counting at limit.
func distance(a, b string, limit int) int {
	if len(a) > 256 || len(b) > 256 || max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(row[j-1]+1, last[j]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}

// otherWords are keys of other gateways, and what ours are called.
var otherWords = [...]struct {
	ours   string
	theirs []string
}{
	{"addr", []string{"address", "adress", "bind", "url", "port"}},
	{"strip", []string{"strip_prefix", "strip_path", "stripprefix"}},
	{"prepend", []string{"add_prefix", "prefix_path"}},
	{"host", []string{"hosts", "hostname", "domain", "domains"}},
	{"path", []string{"paths", "prefix", "path_prefix", "uri"}},
	{"use", []string{"policies", "policy", "middleware", "middlewares", "plugins", "filters"}},
	{"balance", []string{"lb", "lb_policy", "load_balancer", "load_balancing", "algorithm", "strategy"}},
	{"service", []string{"backend", "cluster", "target", "app"}},
	{"upstream", []string{"backend", "cluster", "target", "service", "to"}},
	{"rate_limit", []string{"limit", "limits", "rate", "rate_limiting", "throttle"}},
	{"instances", []string{"nodes", "servers", "endpoints", "targets", "hosts", "backends"}},
	{"breaker", []string{"circuit_breaker", "circuitbreaker", "hystrix"}},
	{"outlier", []string{"outlier_detection", "passive_health", "health_check"}},
	{"attempts", []string{"retries", "num_retries", "count"}},
	{"grace", []string{"grace_period", "drain", "timeout"}},
}

// suggestKey returns the key that an unknown one was probably meant to be: of
// the section itself, or else of one below it, as "upstream.timeout".
func suggestKey(unknown string, t reflect.Type) string {
	fields := fieldsOf(t)
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	if c := closest(unknown, keys); c != "" {
		return c
	}
	if c := translated(unknown, keys); c != "" {
		return c
	}
	for _, f := range fields {
		inner := deref(f.typ)
		if inner.Kind() != reflect.Struct || isScalar(inner) {
			continue
		}
		below := fieldsOf(inner)
		keys = keys[:0]
		for _, g := range below {
			keys = append(keys, g.key)
		}
		if c := closest(unknown, keys); c != "" {
			return f.key + "." + c
		}
		if c := translated(unknown, keys); c != "" {
			return f.key + "." + c
		}
	}
	return ""
}

func translated(unknown string, keys []string) string {
	for _, w := range otherWords {
		if slices.Contains(keys, w.ours) && slices.Contains(w.theirs, strings.ToLower(unknown)) {
			return w.ours
		}
	}
	return ""
}
