package app

import (
	"fmt"
	"io"
	"os"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/middleware/accesslog"
)

// openAccessLog opens where access lines go. The file is appended to, so that
// copytruncate rotates it.
func (a *App) openAccessLog(cfg *config.Config) error {
	c := cfg.AccessLog
	if c.Disabled {
		return nil
	}
	var out io.Writer = os.Stdout
	if a.options.AccessLog != nil {
		out = a.options.AccessLog
	}
	if c.Path != "" {
		f, err := os.OpenFile(c.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("access_log.path: %w", err)
		}
		a.stack.push("access log", f.Close)
		out = f
	}
	a.accessLog = accesslog.NewLog(out, c, a.log.With("component", "access_log"))
	return nil
}
