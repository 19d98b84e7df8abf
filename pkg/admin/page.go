package admin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The page is three files that any browser understands as they are: nothing
// builds them and they load nothing from elsewhere.
//
//go:embed page
var pageFiles embed.FS

// page renders the status page and serves its files under names that carry
// their hash, so that browsers may keep them.
type page struct {
	template *template.Template
	assets   map[string]asset // by name with hash
	names    map[string]string
}

type asset struct {
	contentType string
	data        []byte
}

func newPage() *page {
	p := &page{assets: map[string]asset{}, names: map[string]string{}}
	for name, contentType := range map[string]string{
		"app.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		data, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			continue // go:embed has it, or nothing would build
		}
		sum := sha256.Sum256(data)
		base, ext, _ := strings.Cut(name, ".")
		hashed := base + "." + hex.EncodeToString(sum[:4]) + "." + ext
		p.assets[hashed], p.names[name] = asset{contentType, data}, hashed
	}
	p.template = template.Must(template.New("index.html").Funcs(template.FuncMap{
		"asset": func(name string) string { return p.names[name] },
		"ms":    formatMillis, "rate": formatRate, "percent": formatPercent, "ago": formatAgo, "clock": formatClock,
		"icon": func(state any) string { return stateIcon(fmt.Sprint(state)) }, "join": strings.Join,
		"shortID": shortID, "weight": weightText, "match": matchText, "why": why, "iso": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	}).ParseFS(pageFiles, "page/index.html"))
	return p
}

func (p *page) asset(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets[r.PathValue("name")]
	if !ok {
		writeProblem(w, r, http.StatusNotFound, "not_found", "There is nothing at this path", "")
		return
	}
	w.Header().Set("Content-Type", a.contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.data)))
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.data) // the caller may have gone
	}
}

// Bounds of what is rendered for browsers without JavaScript; the API has the
// rest.
const (
	maxRendered = 500 // instances
	openBelow   = 24  // instances in all, up to which every service is unfolded
)

// view is what the template renders.
type view struct {
	Status
	Viewer   bool // whether the data may be shown
	OpenAll  bool
	Omitted  int // instances that are not rendered
	Newest   []Event
	Interval int
}

// index is the status page: the whole status as it is now, which the script
// then keeps current. Callers who may not see it get the page without data
// and a form for a token.
func (a *Admin) index(w http.ResponseWriter, r *http.Request) {
	v := view{Viewer: a.viewer(r), Interval: 5}
	code := http.StatusUnauthorized
	if v.Viewer {
		code = http.StatusOK
		v.Status = a.status()
		v.Newest = slices.Clone(v.Events)
		slices.Reverse(v.Newest)
		v.bound()
	} else {
		w.Header().Set("WWW-Authenticate", `Bearer realm="proconsul admin"`)
	}
	var b bytes.Buffer
	if err := a.page.template.Execute(&b, v); err != nil {
		a.o.Log.Error("status page not rendered", "err", err)
		writeProblem(w, r, http.StatusInternalServerError, "internal_error", "The page could not be rendered", "")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // the caller may have gone
	}
}

func (v *view) bound() {
	total := 0
	for i := range v.Upstreams {
		u := &v.Upstreams[i]
		total += len(u.Instances)
		if room := max(0, maxRendered-(total-len(u.Instances))); len(u.Instances) > room {
			v.Omitted += len(u.Instances) - room
			u.Instances = u.Instances[:room]
		}
	}
	v.OpenAll = total <= openBelow
}

// Folded reports whether the service's instances are folded away at first.
func (v view) Folded(u Upstream) bool { return !v.OpenAll && u.Health == "ok" }

// stateIcon is beside every state's word and colour, for those who cannot
// tell the colours apart.
func stateIcon(state string) string {
	switch state {
	case "passing", "ok", "up", "ready", "closed":
		return "✓"
	case "warning", "degraded", "half_open", "starting", "warn", "refused", "diverged":
		return "!"
	case "maintenance", "disabled", "empty":
		return "–"
	case "draining":
		return "↓"
	case "ejected":
		return "↯"
	case "info":
		return "·"
	}
	return "✕"
}

// why says in a line why an instance is not simply passing.
func why(in Instance) string {
	if in.State == "ejected" {
		text := "ejected"
		if in.EjectedFor != "" {
			text += ": " + in.EjectedFor
		}
		if left := time.Until(in.EjectedUntil); left > 0 {
			text += fmt.Sprintf(", probe in %d s", int(left.Seconds())+1)
		}
		return text
	}
	for _, c := range in.Checks {
		if c.Status != "passing" {
			text := c.Name
			if c.Output != "" {
				text += ": " + c.Output
			}
			return clip(strings.Join(strings.Fields(text), " "), 200)
		}
	}
	return ""
}

// shortID is an instance's id without its node.
func shortID(id string) string { return id[strings.IndexByte(id, '/')+1:] }

// weightText is an instance's weight, with the part of it that slow start
// gives now where that is less.
func weightText(in Instance) string {
	if full := float64(in.Weight); !in.Usable || math.Abs(in.EffectiveWeight-full) < .01 {
		return strconv.Itoa(in.Weight)
	}
	return strconv.FormatFloat(round(in.EffectiveWeight, 1), 'f', -1, 64) + "/" + strconv.Itoa(in.Weight)
}

// matchText is what a route matches, in a line.
func matchText(r Route) string {
	parts := []string{r.Host + r.Path}
	if len(r.Methods) > 0 {
		parts = append([]string{strings.Join(r.Methods, ",")}, parts...)
	}
	for _, h := range r.Headers {
		parts = append(parts, "header "+h)
	}
	for _, q := range r.Query {
		parts = append(parts, "query "+q)
	}
	return strings.Join(parts, " ")
}

func formatMillis(m Millis) string {
	switch d := time.Duration(m); {
	case d <= 0:
		return "–"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) + " ms"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	default:
		return strconv.Itoa(int(d.Seconds())) + " s"
	}
}

func formatRate(f float64) string {
	if f > 0 && f < 10 {
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}

func formatPercent(share float64) string {
	p := share * 100
	if p > 0 && p < 10 {
		return strconv.FormatFloat(p, 'f', 2, 64) + " %"
	}
	return strconv.FormatFloat(p, 'f', 0, 64) + " %"
}

// formatAgo is how long ago t was, in the largest unit and the one below.
func formatAgo(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	s := max(0, int(time.Since(t).Seconds()))
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh %dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%dd %dh", s/86400, s%86400/3600)
}

func formatClock(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	if time.Since(t) > 24*time.Hour {
		return t.UTC().Format("2006-01-02 15:04")
	}
	return t.UTC().Format("15:04:05")
}
