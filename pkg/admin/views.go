package admin

import (
	"net/http"
	"strconv"
)

func (a *Admin) getStatus(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, http.StatusOK, a.status())
}

func (a *Admin) getServices(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, http.StatusOK, struct {
		Services []Upstream `json:"services"`
	}{a.status().Upstreams})
}

// getService answers with the upstream of that name, or with the one of the
// Consul service of that name, as a link from Consul's own page has it.
func (a *Admin) getService(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	all := a.status().Upstreams
	for _, u := range all {
		if u.Name == name {
			writeJSON(w, r, http.StatusOK, u)
			return
		}
	}
	for _, u := range all {
		if u.Service == name && name != "" {
			writeJSON(w, r, http.StatusOK, u)
			return
		}
	}
	writeProblem(w, r, http.StatusNotFound, "unknown_service", "No upstream has this name", "GET /api/v1/services lists them.")
}

func (a *Admin) getRoutes(w http.ResponseWriter, r *http.Request) {
	s := a.status()
	writeJSON(w, r, http.StatusOK, struct {
		Routes   []Route    `json:"routes"`
		Rejected []Rejected `json:"rejected"`
	}{s.Routes, s.Rejected})
}

func (a *Admin) getConsumers(w http.ResponseWriter, r *http.Request) {
	rejected := []Rejected{}
	for _, x := range a.status().Rejected {
		if x.Kind == "consumer" {
			rejected = append(rejected, x)
		}
	}
	writeJSON(w, r, http.StatusOK, struct {
		Consumers []Consumer `json:"consumers"`
		Rejected  []Rejected `json:"rejected"`
	}{a.o.Consumers(), rejected})
}

func (a *Admin) getRoute(w http.ResponseWriter, r *http.Request) {
	for _, rt := range a.status().Routes {
		if rt.Name == r.PathValue("name") {
			writeJSON(w, r, http.StatusOK, rt)
			return
		}
	}
	writeProblem(w, r, http.StatusNotFound, "unknown_route", "No route has this name", "GET /api/v1/routes lists them.")
}

// instanceRow is an instance beside the upstream that it belongs to.
type instanceRow struct {
	Upstream string `json:"upstream"`
	Instance
}

func (a *Admin) getInstances(w http.ResponseWriter, r *http.Request) {
	service := r.URL.Query().Get("service")
	rows, known := []instanceRow{}, service == ""
	for _, u := range a.status().Upstreams {
		if service != "" && u.Name != service && u.Service != service {
			continue
		}
		known = true
		for _, in := range u.Instances {
			rows = append(rows, instanceRow{u.Name, in})
		}
	}
	if !known {
		writeProblem(w, r, http.StatusNotFound, "unknown_service", "No upstream has this name", "GET /api/v1/services lists them.")
		return
	}
	writeJSON(w, r, http.StatusOK, struct {
		Instances []instanceRow `json:"instances"`
	}{rows})
}

// breakerRow is a breaker beside the upstream that it guards.
type breakerRow struct {
	Upstream string `json:"upstream"`
	Breaker
}

func (a *Admin) getBreakers(w http.ResponseWriter, r *http.Request) {
	rows := []breakerRow{}
	for _, u := range a.status().Upstreams {
		rows = append(rows, breakerRow{u.Name, u.Breaker})
	}
	writeJSON(w, r, http.StatusOK, struct {
		Breakers []breakerRow `json:"breakers"`
	}{rows})
}

func (a *Admin) getEvents(w http.ResponseWriter, r *http.Request) {
	since, limit := uint64(0), uint64(maxEventsPage)
	for name, v := range map[string]*uint64{"since": &since, "limit": &limit} {
		text := r.URL.Query().Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			writeProblem(w, r, http.StatusBadRequest, "bad_request", "The parameter "+name+" is not a number", "")
			return
		}
		*v = n
	}
	events := a.o.Events.Since(since, int(min(max(limit, 1), maxEventsPage)))
	last := since
	if len(events) > 0 {
		last = events[len(events)-1].Seq
	}
	writeJSON(w, r, http.StatusOK, struct {
		Last   uint64  `json:"last"` // for the next since
		Events []Event `json:"events"`
	}{last, events})
}
