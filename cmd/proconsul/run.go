package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/app"
	"github.com/proconsul/proconsul/pkg/systemd"
)

// configFlags say where the configuration comes from.
type configFlags struct {
	path string
	set  []string

	mu   sync.Mutex
	refs []string // files that the text read last refers to
}

func (f *configFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.path, "config", "c", "", "configuration: a file, or a directory of *.yaml files")
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "KEY=VALUE that beats the file, as consul.addr=10.0.0.1:8500 (repeatable)")
	_ = cmd.MarkFlagRequired("config") // it exists, see the line above
}

func (f *configFlags) options() (config.LoadOptions, error) {
	o := config.LoadOptions{Set: map[string]string{}}
	for _, s := range f.set {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return o, usage("--set %q: want KEY=VALUE", s)
		}
		o.Set[key] = value
	}
	return o, nil
}

// load reads the configuration for a command. What is wrong with it is the
// caller's to mend, and is shown whole.
func (f *configFlags) load() (*config.Config, error) {
	cfg, err := f.read()
	if err != nil {
		return nil, invalid{faults(err)}
	}
	return cfg, nil
}

// reread reads the configuration for a reload. Every fault is named, in the
// log and on the status page; the snippets are for those who mend the file.
func (f *configFlags) reread() (*config.Config, error) {
	cfg, err := f.read()
	var fs *config.Faults
	if !errors.As(err, &fs) {
		return cfg, err
	}
	var lines []string
	for _, fault := range fs.All {
		line := fault.String()
		if fault.Hint != "" {
			line += " (" + fault.Hint + ")"
		}
		lines = append(lines, line)
	}
	return nil, refusal{strings.Join(lines, "; "), fs}
}

// refusal is an error that names every fault in a line, for logs, and keeps
// them apart for pages.
type refusal struct {
	text   string
	faults *config.Faults
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.faults }

// read reads the configuration.
func (f *configFlags) read() (*config.Config, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	var refs []string
	o.OnFile = func(path string) { refs = append(refs, path) }
	defer func() {
		f.mu.Lock()
		f.refs = refs // also of what was refused: a file that was missing may come
		f.mu.Unlock()
	}()
	return config.Load(f.path, o)
}

// referenced lists the files that the configuration refers to.
func (f *configFlags) referenced() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.refs)
}

// parse reads a text as load reads the file, beside which it may stand.
func (f *configFlags) parse(name string, text []byte) (*config.Config, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	o.HideOutside = true
	return config.Parse(name, text, o)
}

// faults words every fault of a configuration, one below the other.
func faults(err error) error {
	var fs *config.Faults
	if !errors.As(err, &fs) {
		return err
	}
	var b strings.Builder
	_ = fs.Text(&b) // a Builder takes everything
	return errors.New(strings.TrimRight(b.String(), "\n"))
}

func runCommand() *cobra.Command {
	var from configFlags
	var watch bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway",
		Long: `Runs the gateway until SIGTERM or SIGINT, then turns unready, deregisters, waits
shutdown.delay, stops accepting, and lets requests in flight finish for up to
shutdown.grace. A second signal ends it at once. SIGHUP, or a change of the
configuration, reloads; a configuration that is not valid changes nothing.

The garbage collector runs as GOGC=400 and within 90% of the container's memory,
unless the variables GOGC and GOMEMLIMIT say otherwise.`,
		Example: "  proconsul run -c /etc/proconsul/proconsul.yaml\n  proconsul run -c conf.d/ --set consul.addr=10.0.0.1:8500",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// From the very beginning: one that came before would end the process.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			cfg, err := from.load()
			if err != nil {
				return err
			}
			log, level := newLogger(cmd.ErrOrStderr(), cfg.Log)
			adoptStandardLog(log)
			tune(log)
			if cfg.Warnings.Len() > 0 {
				for _, f := range cfg.Warnings.All {
					log.Warn("configuration warning", "fault", f.String())
				}
			}
			a, err := app.New(cfg, app.Options{
				Version:   version,
				Log:       log,
				AccessLog: cmd.OutOrStdout(),
				Level:     level,
				Load:      from.reread,
				Parse:     from.parse,
				Watch:     from.watcher(hup, watch),
				Notifier:  systemd.FromEnvironment(os.Getenv, os.Getpid()),
			})
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&watch, "watch", true, "reload when the configuration changes; SIGHUP reloads in any case")
	return cmd
}

// watcher calls its argument after a signal and, with files, after a change of
// the configuration or of a file that it refers to.
func (f *configFlags) watcher(hup <-chan os.Signal, files bool) func(ctx context.Context, changed func(source string)) error {
	return func(ctx context.Context, changed func(source string)) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		failed := make(chan error, 1)
		if files {
			wg.Go(func() { failed <- config.Watch(ctx, f.path, f.referenced, func() { changed("file") }) })
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
				changed("signal")
			case err := <-failed:
				if err != nil {
					return fmt.Errorf("watch %s: %w", f.path, err)
				}
			}
		}
	}
}

// newLogger returns the gateway's log and what its level follows.
func newLogger(w io.Writer, c config.Log) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o)), level
	}
	return slog.New(slog.NewJSONHandler(w, o)), level
}

// adoptStandardLog has what libraries write to the standard logger go to the
// gateway's, at its debug level. net/http quotes there what an instance sent on
// an idle connection, which may be a secret: the text ends where a quote begins.
func adoptStandardLog(to *slog.Logger) {
	stdlog.SetFlags(0)
	stdlog.SetOutput(unquoted{to.With("component", "library")})
}

// unquoted is the writer of a log.Logger.
type unquoted struct{ log *slog.Logger }

// Write implements io.Writer.
func (u unquoted) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), `"`)
	u.log.Debug(text)
	return len(line), nil
}
