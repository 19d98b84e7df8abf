package middleware_test

import (
	"strings"
	"testing"

	"github.com/proconsul/proconsul/pkg/middleware"
)

func TestParseTraceparent(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	const good = "00-" + id + "-" + span + "-01"
	tests := []struct {
		name        string
		in          []string
		ok, sampled bool
	}{
		{"sampled", []string{good}, true, true},
		{"not sampled", []string{good[:54] + "0"}, true, false},
		{"other flags", []string{good[:53] + "fe"}, true, false},
		{"a later version with more", []string{"cc" + good[2:] + "-what-is-more"}, true, true},
		{"a later version glued", []string{"cc" + good[2:] + "x"}, false, false},
		{"this version with more", []string{good + "-x"}, false, false},
		{"no version", []string{"ff" + good[2:]}, false, false},
		{"upper case", []string{strings.ToUpper(good)}, false, false},
		{"a trace of zeros", []string{"00-" + strings.Repeat("0", 32) + good[35:]}, false, false},
		{"a span of zeros", []string{good[:36] + strings.Repeat("0", 16) + good[52:]}, false, false},
		{"short", []string{good[:54]}, false, false},
		{"two lines", []string{good, good}, false, false},
		{"none", nil, false, false},
		{"misplaced hyphen", []string{"00-" + id[:31] + "-" + span + "c-01"}, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gotID, gotSpan, sampled, ok := middleware.ParseTraceparent(tt.in)
			if ok != tt.ok || sampled != tt.sampled {
				t.Fatalf("got %v, sampled %v", ok, sampled)
			}
			if ok && (gotID.String() != id || gotSpan.String() != span) || !ok && gotID != (middleware.TraceID{}) {
				t.Errorf("got %s, %s", gotID, gotSpan)
			}
		})
	}
}

func TestTraceparentIsReadAsWritten(t *testing.T) {
	for _, sampled := range []bool{true, false} {
		tr := middleware.Trace{ID: middleware.NewTraceID(), Sampled: sampled}
		span := middleware.NewSpanID()
		id, gotSpan, gotSampled, ok := middleware.ParseTraceparent([]string{tr.Traceparent(span)})
		if !ok || id != tr.ID || gotSpan != span || gotSampled != sampled {
			t.Errorf("%s is read as %s %s %v %v", tr.Traceparent(span), id, gotSpan, gotSampled, ok)
		}
	}
}
