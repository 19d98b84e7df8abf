// Package api holds the description of the admin API, openapi.yaml, in the
// forms in which the gateway serves it. It is kept by hand; a test in pkg/app
// holds it against the running gateway, both ways.
package api

import (
	_ "embed"
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
)

//go:embed openapi.yaml
var document []byte

// YAML returns the document as it was written. The caller must not change it.
func YAML() []byte { return document }

// JSON returns the document as JSON.
func JSON() ([]byte, error) {
	var tree any
	if err := yaml.Unmarshal(document, &tree); err != nil {
		return nil, fmt.Errorf("api/openapi.yaml: %w", err)
	}
	out, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("api/openapi.yaml as JSON: %w", err)
	}
	return out, nil
}
