package browser_test

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"

	"github.com/proconsul/proconsul/pkg/parts"
)

// demo is a running `proconsul demo`, whose keys the test presses.
type demo struct {
	t           *testing.T
	keys        io.Writer
	admin       string
	mu          sync.Mutex
	out         bytes.Buffer
	token, addr string
}

func (d *demo) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.Write(p)
}

func (d *demo) screen() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.String()
}

func startDemo(t *testing.T) *demo {
	t.Helper()
	ports := parts.FreePorts(t, 2)
	d := &demo{t: t, addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), admin: fmt.Sprintf("127.0.0.1:%d", ports[1])}
	cmd := exec.Command(binaries(t).Proconsul(), "demo", "--listen", d.addr, "--admin", d.admin)
	cmd.Stdout, cmd.Stderr = d, d
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.keys = keys
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.press("q")
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(d.screen())
		}
	})
	parts.Eventually(t, patience, "the demo is ready", func() bool { return strings.Contains(d.screen(), "q quit") })
	if found := regexp.MustCompile(`PROCONSUL_TOKEN=(\S+)`).FindStringSubmatch(d.screen()); found != nil {
		d.token = found[1]
	}
	return d
}

func (d *demo) press(key string) { _, _ = io.WriteString(d.keys, key) }

// picture writes what the tab shows for README.md, where somebody asked for
// it: with few colours, as a page has, so that it is small.
func (b *tab) picture(name string) {
	b.t.Helper()
	if *pictures == "" {
		return
	}
	data := call(b, page.CaptureScreenshot, page.CaptureScreenshotParams{}).Data
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		b.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, fewColours(img)); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), out.Bytes(), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("%s: %d bytes", name, out.Len())
}

// fewColours maps an image to the 256 colours that it has most of.
func fewColours(img image.Image) image.Image {
	bounds := img.Bounds()
	have := map[color.NRGBA]int{}
	at := func(x, y int) color.NRGBA {
		c := color.NRGBAModel.Convert(img.At(x, y)).(color.NRGBA)
		return color.NRGBA{c.R &^ 3, c.G &^ 3, c.B &^ 3, 255} // edges of letters are many shades of the same
	}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			have[at(x, y)]++
		}
	}
	var palette color.Palette
	for len(palette) < 256 && len(have) > 0 {
		most, n := color.NRGBA{}, -1
		for c, k := range have {
			if k > n {
				most, n = c, k
			}
		}
		palette = append(palette, most)
		delete(have, most)
	}
	out := image.NewPaletted(bounds, palette)
	nearest := map[color.NRGBA]uint8{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c := at(x, y)
			i, known := nearest[c]
			if !known {
				i = uint8(palette.Index(c))
				nearest[c] = i
			}
			out.SetColorIndex(x, y, i)
		}
	}
	return out
}

// TestANewOperatorSeesWhatHappened is the first five minutes: the demo runs, an
// instance dies, and the page says which, why, and what happened to its
// requests; explain answers; and a configuration with mistakes is refused.
func TestANewOperatorSeesWhatHappened(t *testing.T) {
	d := startDemo(t)
	b := open(t, "http://"+d.admin+"/", 1280, 940)
	b.shows("#service-list", "orders-1", "orders-2", "flaky-2")
	b.until("traffic is seen", "!document.querySelector('#tiles b').textContent.startsWith('0')")

	if *pictures != "" { // their lines need some past
		b.until("half a minute has passed", `/^(4|5)\ds/.test(document.querySelector("#about div:nth-child(3) dd")?.innerText)`)
	}
	// Its health check asks once a second. Where that comes before three of its
	// requests do, they have nothing to tell, so it is killed again.
	row := instance("orders-2")
	for try := 1; ; try++ {
		d.press("k")
		took := b.until("orders-2 is out", row+"?.classList.contains('ejected') || "+row+"?.classList.contains('critical')")
		t.Logf("the page shows the death after %v", took.Round(time.Millisecond))
		b.until("it says why", row+".textContent.includes('refused')")
		if b.soon(row + ".textContent.includes('probe in') && /tried again on another instance/.test(" + row + ".textContent)") {
			break
		}
		if try == 10 {
			t.Fatal("ten deaths, and never a word of what happened to its requests and when it is probed")
		}
		d.press("h")
		b.until("orders-2 is back", row+"?.classList.contains('passing')")
	}
	b.until("what instances really got stands beside their share", `[...document.querySelectorAll("details.inst .share")].some(e => /^w\d+ *\d+ %, got \d[\d.]* %$/.test(e.textContent.trim()))`)
	d.press("e") // and a service fails
	b.until("the breaker of flaky opens", `[...document.querySelectorAll("details.svc > .insts > .why")].some(e => e.textContent.includes("tries failed within 10 s"))`)
	b.picture("services")

	b.keys("x")
	b.until("the explain panel", "document.activeElement.id === 'x-url'")
	b.fill("#x-url", "/api/orders/42")
	b.keys("\r")
	b.shows("#x-result", "proxied", "orders-2", "strip /api/orders", "no request was sent")
	b.dark(true)
	b.picture("explain")
	b.dark(false)

	d.press("h")
	d.press("m")
	b.shows("#refused", "refused", "timout", "did you mean", "cart")
	b.keys("\x1b")
	js[any](b, "document.activeElement.blur()")
	b.keys("s")
	b.until("orders-2 is back", row+"?.classList.contains('passing')")
	b.picture("refused")
	b.clean()
}
