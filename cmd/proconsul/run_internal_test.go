package main

import (
	"bytes"
	stdlog "log"
	"os"
	"strings"
	"testing"

	"github.com/proconsul/proconsul/config"
)

// What libraries print is a line of our log, without what they quote.
func TestStandardLogIsOurs(t *testing.T) {
	defer func() { stdlog.SetOutput(os.Stderr); stdlog.SetFlags(stdlog.LstdFlags) }()
	var out bytes.Buffer
	log, _ := newLogger(&out, config.Log{Level: "debug", Format: "json"})
	adoptStandardLog(log)
	stdlog.Printf("Unsolicited response received on idle HTTP channel starting with %q; err=%v", "HTTP/1.1 200 OK\r\nSet-Cookie: s3cret", nil)
	got := out.String()
	if !strings.Contains(got, `"msg":"Unsolicited response received on idle HTTP channel starting with "`) || !strings.Contains(got, `"level":"DEBUG"`) {
		t.Errorf("got %s", got)
	}
	if strings.Contains(got, "s3cret") {
		t.Errorf("what an instance sent is in the log: %s", got)
	}
}
