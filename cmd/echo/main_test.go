package main

import "testing"

func TestExitCodes(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code int
	}{
		{"help", []string{"-help"}, 0},
		{"unknown flag", []string{"-nmae", "x"}, 2},
		{"meta that is no pair", []string{"-meta", "x"}, 2},
		{"argument", []string{"x"}, 2},
		{"nonsense that only Run sees", []string{"-consul", "none", "-fail-rate", "2"}, 1},
		{"Consul address of nonsense", []string{"-consul", "ftp://x"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if code := run(t.Context(), tt.args); code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
		})
	}
}
