package config

import _ "embed"

// proconsul.schema.json is generated from the tree by a test (go test ./config
// -update), which has the comments that editors show.
//
//go:embed proconsul.schema.json
var schemaText []byte

// Schema returns the JSON Schema of configurations, for editors and tools. The
// caller must not change it. Load checks more than it can say.
func Schema() []byte { return schemaText }
