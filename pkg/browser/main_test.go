package browser_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/proconsul/proconsul/pkg/parts"
)

// pictures is where the demo's test puts what it sees, for README.md.
var pictures = flag.String("pictures", "", "directory that the pictures of README.md are written to")

// patience is how long a test waits for what must come. It is long: only what
// never comes may fail on a machine that has other things to do.
const patience = time.Minute

// build builds the commands at the first test that needs them, once.
var build = sync.OnceValues(func() (parts.Binaries, error) {
	dir, err := os.MkdirTemp("", "proconsul-browser-")
	if err != nil {
		return parts.Binaries{}, err
	}
	built = dir
	return parts.Build(dir)
})

var built string // what build made, to be removed

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

func binaries(t testing.TB) parts.Binaries {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tab is a page in a Chromium of its own.
type tab struct {
	t   testing.TB
	ctx context.Context

	mu     sync.Mutex
	faults []string // what the browser complained of
}

// watcher is in every document before its own scripts: it keeps what the
// content security policy stopped, and whether a hostile script has run.
const watcher = `window.violations = []; window.alerts = 0; window.alert = () => { window.alerts++ };
document.addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective + " " + e.blockedURI));`

// open starts a Chromium and shows it the address.
func open(t testing.TB, url string, width, height int64) *tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(patience)}
	for _, name := range []string{"headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
		"disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx)
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) }) // waits until the browser is gone
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	call(b, log.Enable, cdp.Empty{})
	call(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watcher})
	b.do(chromedp.EmulateViewport(width, height))
	b.do(chromedp.Navigate(url))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the page:\n%s", b.text("body"))
		}
	})
	return b
}

// call sends a command of the browser's own protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	r, err := chromedp.Call(ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// listen keeps what the browser complains of. That a gateway which was stopped
// does not answer is no complaint.
func (b *tab) listen(ev any) {
	var text string
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		text = ev.ExceptionDetails.Text
		if x := ev.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError && ev.Entry.Source != log.EntrySourceNetwork {
			text = ev.Entry.Text
		}
	}
	if text != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, text)
	}
}

// clean fails the test if anything went wrong inside the page.
func (b *tab) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) > 0 {
		b.t.Errorf("the browser complains: %s", strings.Join(b.faults, "\n"))
	}
	if got := js[[]string](b, "window.violations"); len(got) > 0 {
		b.t.Errorf("the content security policy stopped %v", got)
	}
	if n := js[int](b, "window.alerts"); n > 0 {
		b.t.Errorf("a hostile script has run %d times", n)
	}
}

// do runs actions; none may take longer than the test's patience.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// js returns what an expression is in the page.
func js[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%v in %s", err, expression)
	}
	return v
}

// text returns what a reader sees of the element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return js[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

// until waits until the expression is true in the page, and returns how long
// that took.
func (b *tab) until(what, expression string) time.Duration {
	b.t.Helper()
	began := time.Now()
	parts.Eventually(b.t, patience, what, func() bool { return js[bool](b, "!!("+expression+")") })
	return time.Since(began)
}

// soon reports whether the expression holds within the next few frames of the
// stream.
func (b *tab) soon(expression string) bool {
	b.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); <-tick.C {
		if js[bool](b, "!!("+expression+")") {
			return true
		}
	}
	return false
}

// shows waits until the element's text has every one of words.
func (b *tab) shows(selector string, words ...string) time.Duration {
	b.t.Helper()
	began := time.Now()
	for _, w := range words {
		parts.Eventually(b.t, patience, fmt.Sprintf("%s shows %q", selector, w), func() bool { return strings.Contains(b.text(selector), w) })
	}
	return time.Since(began)
}

// click presses the mouse on the middle of the first element that the selector
// finds and whose text is as wanted; any text where that is empty.
func (b *tab) click(selector, text string) {
	b.t.Helper()
	var at []float64
	parts.Eventually(b.t, patience, fmt.Sprintf("there is %s %q to click", selector, text), func() bool {
		at = js[[]float64](b, fmt.Sprintf(`(() => {
			const e = [...document.querySelectorAll(%q)].find(e => e.checkVisibility() && (!%[2]q || e.innerText.trim() === %[2]q));
			if (!e) return [];
			e.scrollIntoView({ block: "center" });
			const r = e.getBoundingClientRect();
			return [r.x + r.width / 2, r.y + r.height / 2];
		})()`, selector, text))
		return len(at) == 2
	})
	b.do(chromedp.MouseClickXY(at[0], at[1]))
}

// keys types what is on no input field in particular.
func (b *tab) keys(keys string) { b.t.Helper(); b.do(chromedp.KeyEvent(keys)) }

// fill types text into an input field, in place of what was there.
func (b *tab) fill(selector, text string) {
	b.t.Helper()
	b.click(selector, "")
	js[any](b, "document.activeElement.value = ''")
	b.keys(text)
}

// dark makes the page believe that its viewer likes it dark.
func (b *tab) dark(on bool) {
	b.t.Helper()
	value := "light"
	if on {
		value = "dark"
	}
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}}})
}

// count returns how many elements there are.
func (b *tab) count(selector string) int {
	b.t.Helper()
	return js[int](b, fmt.Sprintf("document.querySelectorAll(%q).length", selector))
}
