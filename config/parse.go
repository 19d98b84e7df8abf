package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// formatError says what a text is not. The caller quotes the text itself,
// because it may be a secret's or come from a file.
type formatError struct {
	code Code
	is   string // "is not a duration (want 250ms, 2s or 1m)"
	hint string
}

func (e *formatError) Error() string { return e.is }

// parseScalar reads text as a value of type t, which isScalar. It is the one
// place where text becomes a value, whether from a file, a variable or a flag.
func parseScalar(t reflect.Type, text string) (reflect.Value, error) {
	v := reflect.New(t).Elem()
	switch t {
	case reflect.TypeFor[time.Duration]():
		d, err := parseDuration(text)
		if err != nil {
			return v, err
		}
		v.SetInt(int64(d))
		return v, nil
	case reflect.TypeFor[netip.Prefix]():
		p, err := parsePrefix(text)
		if err != nil {
			return v, err
		}
		return reflect.ValueOf(p), nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			var fe *formatError
			if errors.As(err, &fe) {
				return v, fe
			}
			return v, &formatError{CodeFormat, "is not valid: " + err.Error(), ""}
		}
		return v, nil
	}
	switch t.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch strings.ToLower(text) {
		case "true":
			v.SetBool(true)
		case "false":
		default:
			hint := ""
			switch strings.ToLower(text) {
			case "yes", "on", "1", "y":
				hint = `did you mean "true"?`
			case "no", "off", "0", "n":
				hint = `did you mean "false"?`
			}
			return v, &formatError{CodeType, "is not true or false", hint}
		}
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return v, &formatError{CodeType, "is not a whole number", ""}
		}
		v.SetInt(int64(n))
	default:
		return v, fmt.Errorf("no way to read a %s", t)
	}
	return v, nil
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err == nil && d >= 0 {
		return d, nil
	}
	e := &formatError{CodeFormat, "is not a duration (want 250ms, 2s, 1m or 1h)", ""}
	if err == nil {
		e.is = "is a negative duration"
		e.code = CodeRange
	} else if n, err := strconv.ParseFloat(text, 64); err == nil && n >= 0 {
		e.is = "has no unit (want 250ms, 2s, 1m or 1h)"
		e.hint = fmt.Sprintf("did you mean %q or %q?", text+"s", text+"ms")
	} else if n, ok := strings.CutSuffix(text, "d"); ok {
		if days, err := strconv.Atoi(n); err == nil && days >= 0 && days < 100_000 {
			e.hint = fmt.Sprintf("did you mean %q?", strconv.Itoa(days*24)+"h")
		}
	}
	return 0, e
}

func parsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if m := p.Masked(); m != p {
			return p, &formatError{CodeFormat, "has bits set behind its mask", fmt.Sprintf("did you mean %q?", m)}
		}
		return p, nil
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, &formatError{CodeFormat, "is not a network (want 10.0.0.0/8, fd00::/8 or one address)", ""}
}

// formatDuration writes a duration as people do: "1m", not "1m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
