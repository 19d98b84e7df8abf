package validate

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/schema"
)

// param is a config.Param in the form that requests are checked by.
type param struct {
	config.Param
	pattern  *regexp.Regexp // nil: none
	min, max *float64
}

func compileParams(list []config.Param) ([]param, error) {
	var out []param
	for _, c := range list {
		p := param{Param: c}
		if c.In == "header" {
			p.Name = http.CanonicalHeaderKey(c.Name)
		}
		var err error
		if c.Pattern != "" {
			if p.pattern, err = regexp.Compile("^(?:" + c.Pattern + ")$"); err != nil {
				return nil, fmt.Errorf("parameter %s: %w", c.Name, err)
			}
		}
		for _, bound := range []struct {
			text string
			to   **float64
		}{{c.Min, &p.min}, {c.Max, &p.max}} {
			if bound.text == "" {
				continue
			}
			f, err := strconv.ParseFloat(bound.text, 64)
			if err != nil {
				return nil, fmt.Errorf("parameter %s: %w", c.Name, err)
			}
			*bound.to = &f
		}
		out = append(out, p)
	}
	return out, nil
}

// checkParams returns what is wrong with a request's parameters.
func checkParams(list []param, r *http.Request) []schema.Fault {
	if len(list) == 0 {
		return nil
	}
	var faults []schema.Fault
	query := r.URL.Query()
	for i := range list {
		p := &list[i]
		var values []string
		switch p.In {
		case "query":
			values = query[p.Name]
		case "header":
			values = r.Header[p.Name]
		case "cookie":
			for _, c := range r.CookiesNamed(p.Name) {
				values = append(values, c.Value)
			}
		}
		if why := p.check(values); why != "" {
			faults = append(faults, schema.Fault{In: p.In, Name: p.Name, Detail: why})
		}
		if len(faults) == schema.MaxFaults {
			break
		}
	}
	return faults
}

// check says what is wrong with a parameter's values; empty: nothing.
func (p *param) check(values []string) string {
	switch {
	case len(values) == 0 && p.Required:
		return "is required"
	case len(values) > 1 && !p.Repeat:
		return "is there more than once"
	}
	for _, v := range values {
		if why := p.one(v); why != "" {
			return why
		}
	}
	return ""
}

func (p *param) one(v string) string {
	switch {
	case utf8.RuneCountInString(v) > p.MaxLength:
		return fmt.Sprintf("is longer than %d characters", p.MaxLength)
	case len(p.Enum) > 0 && !slices.Contains(p.Enum, v):
		return "is none of " + strings.Join(p.Enum, ", ")
	case p.pattern != nil && !p.pattern.MatchString(v):
		return "does not match the pattern " + p.Pattern
	}
	switch p.Type {
	case "boolean":
		if v != "true" && v != "false" {
			return "is neither true nor false"
		}
	case "integer", "number":
		f, ok := number(v, p.Type == "integer")
		switch {
		case !ok:
			return "is no " + p.Type
		case p.min != nil && f < *p.min:
			return "is below " + p.Min
		case p.max != nil && f > *p.max:
			return "is above " + p.Max
		}
	}
	return ""
}

// number reads a number as JSON writes it: Go's parser takes more.
func number(v string, whole bool) (float64, bool) {
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return !strings.ContainsRune("0123456789+-.eE", r) }) || v[0] == '+' || v[0] == '.' {
		return 0, false
	}
	if whole {
		n, err := strconv.ParseInt(v, 10, 64)
		return float64(n), err == nil
	}
	f, err := strconv.ParseFloat(v, 64)
	return f, err == nil
}
