// The live half of the status page. The server has rendered a whole page
// already; this replaces its rows by ones that follow the stream. Everything
// that comes from the gateway becomes a text node or an attribute of a fixed
// name: a service can call itself <script> and stays text.
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// el("p.why", "text", node, …) makes an element.
function el(spec, ...kids) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  node.append(...kids.filter(k => k !== "" && k != null));
  return node;
}
function svg(tag, attrs, ...kids) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v);
  node.append(...kids);
  return node;
}
// put, cls and fill touch the document only where something differs: a page
// with thousands of rows is mostly rows in which nothing did.
function put(node, text) { text = String(text); if (node.textContent !== text) node.textContent = text; }
function cls(node, name) { if (node.className !== name) node.className = name; }
function fill(node, key, make) { if (node.dataset.key !== key) { node.dataset.key = key; node.replaceChildren(...make()); } }

// --- words and numbers -----------------------------------------------------
const icons = { passing: "✓", ok: "✓", up: "✓", ready: "✓", closed: "✓", warning: "!", degraded: "!", half_open: "!", starting: "!", warn: "!",
  refused: "!", maintenance: "–", disabled: "–", empty: "–", draining: "↓", ejected: "↯", info: "·" };
const label = (state, text) => (icons[state] ?? "✕") + " " + (text ?? state);
function pill(node, state, text) { cls(node, "pill " + state.replace(/\W/g, "")); put(node, label(state, text)); }

function ms(v) {
  if (!(v > 0)) return "–";
  if (v < 10) return v.toFixed(1) + " ms";
  if (v < 1000) return Math.floor(v) + " ms";
  return (v < 10000 ? (v / 1000).toFixed(1) : Math.floor(v / 1000)) + " s";
}
const rate = v => v > 0 && v < 10 ? v.toFixed(1) : Math.round(v || 0).toLocaleString("en");
const count = v => (v || 0).toLocaleString("en");
function percent(share) { const p = (share || 0) * 100; return (p > 0 && p < 10 ? p.toFixed(2) : p.toFixed(0)) + " %"; }
let skew = 0; // the gateway's clock less ours, in ms
const now = () => Date.now() + skew;
function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + "s";
  if (s < 3600) return Math.floor(s / 60) + "m " + s % 60 + "s";
  if (s < 86400) return Math.floor(s / 3600) + "h " + Math.floor(s % 3600 / 60) + "m";
  return Math.floor(s / 86400) + "d " + Math.floor(s % 86400 / 3600) + "h";
}
const ago = t => t ? span((now() - Date.parse(t)) / 1000) : "–";
const clock = t => !t ? "–" : now() - Date.parse(t) < 864e5 ? t.slice(11, 19) : t.slice(0, 16).replace("T", " "); // UTC, as it comes
const shortID = id => id.slice(id.indexOf("/") + 1);

// --- what is known ---------------------------------------------------------
const known = { head: null, upstreams: new Map(), instances: new Map(), routes: new Map(), events: [], lastEvent: 0 };
const history = []; // of the last five minutes, for the sparklines
let heard = 0;

function snapshot(s) {
  known.upstreams.clear(); known.instances.clear(); known.routes.clear();
  known.head = s;
  for (const u of s.upstreams) {
    known.upstreams.set(u.name, u);
    for (const i of u.instances) setInstance(u.name, { upstream: u.name, ...i });
  }
  for (const r of s.routes) known.routes.set(r.name, r);
  addEvents(s.events);
}
function setInstance(upstream, i) {
  if (!known.instances.has(upstream)) known.instances.set(upstream, new Map());
  known.instances.get(upstream).set(i.id, i);
}
function delta(d) {
  known.head = d.head;
  for (const u of d.upstreams ?? []) known.upstreams.set(u.name, u);
  for (const i of d.instances ?? []) setInstance(i.upstream, i);
  for (const i of d.live ?? []) { const old = known.instances.get(i.upstream)?.get(i.id); if (old) Object.assign(old, i); }
  for (const r of d.routes ?? []) known.routes.set(r.name, r);
  for (const key of d.gone ?? []) {
    const name = key.slice(2);
    if (key[0] === "u") { known.upstreams.delete(name); known.instances.delete(name); }
    if (key[0] === "r") known.routes.delete(name);
    if (key[0] === "i") for (const [u, list] of known.instances) if (name.startsWith(u + "/")) list.delete(name.slice(u.length + 1));
  }
  addEvents(d.events ?? []);
}
function addEvents(list) {
  if (list.length && list.at(-1).seq < known.lastEvent) { known.events = []; known.lastEvent = 0; } // another process
  for (const e of list) if (e.seq > known.lastEvent) { known.events.unshift(e); known.lastEvent = e.seq; }
  known.events.length = Math.min(known.events.length, 300);
}

// --- lists of rows ---------------------------------------------------------
// List keeps one row per key in the order of its items and makes, updates and
// removes rows as items come and go.
class List {
  constructor(box, make) { this.box = box; this.make = make; this.rows = new Map(); box.replaceChildren(); }
  show(items, keyOf, none) {
    const left = new Set(this.rows.keys());
    let at = this.box.firstChild;
    for (const item of items) {
      const key = keyOf(item);
      let row = this.rows.get(key);
      if (!row) { row = this.make(item); this.rows.set(key, row); }
      left.delete(key);
      row.update(item);
      if (row.node === at) at = at.nextSibling; else this.box.insertBefore(row.node, at);
    }
    for (const key of left) { this.rows.get(key).node.remove(); this.rows.delete(key); }
    if (!items.length && none) { if (!this.empty) this.empty = el("p.none"); put(this.empty, none); this.box.append(this.empty); }
    else this.empty?.remove();
  }
}
function cells(...names) {
  return names.map(n => { const c = el("span.n"); c.dataset.l = n; return c; });
}
function bar() { return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }); }

const severity = ["passing", "warning", "draining", "maintenance", "ejected", "critical"];

function serviceRow(first) {
  const name = el("b"), service = el("small"), stale = el("span.pill.warning", "! stale"), health = el("span.pill"), segments = bar(), breaker = el("span.pill");
  const [rps, p50, p99, errors] = cells("req/s", "p50", "p99", "errors"), [flight] = cells("in flight");
  const breakerCell = el("span", breaker); breakerCell.dataset.l = "breaker";
  const summary = el("summary.row.svc-row", el("span.name", name, " ", service, " ", stale), el("span.health", health, segments), rps, p50, p99, errors, breakerCell, flight);
  const titles = el("div.row.head.inst-row", ...["instance", "state", "weight and share"].map(t => el("span", t)), ...["in flight", "requests", "failures", "p50", "p99"].map(t => el("span.n", t)));
  const why = el("p.why"), box = el("div"), node = el("details.svc", summary, el("div.insts", why, titles, box));
  const list = new List(box, instanceRow);
  const total = [...known.instances.values()].reduce((n, l) => n + l.size, 0);
  node.open = total <= 24 || first.health !== "ok";
  let shown = first;
  const instances = () => {
    if (!node.open) return;
    const hit = matches(shown.name + " " + shown.service);
    const items = [...(known.instances.get(shown.name)?.values() ?? [])].filter(i => hit || matches(instanceText(i)));
    items.sort((a, b) => a.id < b.id ? -1 : 1);
    titles.hidden = !items.length;
    list.show(items, i => i.id, "No instances are registered.");
  };
  node.addEventListener("toggle", instances);
  return { node, update(u) {
    shown = u;
    cls(node, "svc " + u.health);
    put(name, u.name);
    put(service, u.service && u.service !== u.name ? u.service : "");
    stale.hidden = !u.stale;
    pill(health, u.health, u.usable + "/" + u.total);
    const counts = {};
    for (const i of known.instances.get(u.name)?.values() ?? []) { const s = severity.includes(i.state) ? i.state : "critical"; counts[s] = (counts[s] || 0) + 1; }
    fill(segments, JSON.stringify(counts), () => {
      let x = 0;
      return severity.filter(s => counts[s]).map(s => { const width = 100 * counts[s] / u.total, r = svg("rect", { class: s, x, width, height: 6 }); x += width; return r; });
    });
    put(rps, rate(u.rate)); put(p50, ms(u.latency.p50_ms)); put(p99, ms(u.latency.p99_ms)); put(errors, percent(u.error_share));
    errors.classList.toggle("bad", u.error_share > 0.01);
    const probe = u.breaker.state === "open" && u.breaker.retry_at ? " " + span((Date.parse(u.breaker.retry_at) - now()) / 1000) : "";
    pill(breaker, u.breaker.state, u.breaker.state.replace("_", " ") + probe);
    put(flight, count(u.in_flight) + (u.max_in_flight ? "/" + count(u.max_in_flight) : ""));
    put(why, u.error ?? ""); why.hidden = !u.error;
    instances();
  } };
}

function reasonOf(i) {
  if (i.state === "ejected") {
    const left = i.ejected_until ? Math.ceil((Date.parse(i.ejected_until) - now()) / 1000) : 0;
    return "ejected" + (i.ejected_for ? ": " + i.ejected_for : "") + (left > 0 ? ", probe in " + left + " s" : "");
  }
  const c = (i.checks ?? []).find(c => c.status !== "passing");
  return c ? (c.name + (c.output ? ": " + c.output : "")).replace(/\s+/g, " ").slice(0, 200) : "";
}

function instanceRow() {
  const id = el("b"), version = el("small"), address = el("code"), state = el("span.pill"), since = el("small"), why = el("span.why");
  const weight = el("span"), share = bar(), shareText = el("span"), shareCell = el("span.share", weight, share, shareText);
  shareCell.dataset.l = "weight";
  const [flight, requests, failures, p50, p99] = cells("in flight", "requests", "failures", "p50", "p99");
  const more = el("div.more");
  const node = el("details.inst", el("summary.row.inst-row", el("span.name", id, " ", version, address), el("span", state, " ", since), shareCell, flight, requests, failures, p50, p99, why), more);
  let item;
  const details = () => {
    if (!node.open || !item) return;
    const { checks = [], tags = [], meta = {}, datacenter, zone, node: machine } = item;
    fill(more, JSON.stringify([checks, tags, meta, datacenter, zone, item.id]), () => [
      ...checks.flatMap(c => {
        const p = el("span.pill"); pill(p, c.status);
        return [el("p", p, " " + c.name + " ", el("small", (c.type ?? "") + (c.node ? " node" : ""))), c.output ? el("pre", c.output) : ""];
      }),
      el("p", el("small", ["id " + item.id, datacenter && "dc " + datacenter, machine && "node " + machine, zone && "zone " + zone].filter(Boolean).join(" · "))),
      tags.length ? el("p.tags", ...tags.flatMap(t => [el("code", t), " "])) : "",
      Object.keys(meta).length ? el("p.tags", ...Object.entries(meta).flatMap(([k, v]) => [el("code", k + "=" + v), " "])) : "",
    ].filter(Boolean));
  };
  node.addEventListener("toggle", details);
  return { node, update(i) {
    item = i;
    cls(node, "inst " + i.state.replace(/\W/g, "") + (target === i.upstream + "/" + i.id || target === i.upstream + "/" + shortID(i.id) ? " target" : ""));
    put(id, shortID(i.id)); put(version, i.version ?? ""); put(address, i.address);
    pill(state, i.state); put(since, ago(i.since)); since.title = i.since ?? "";
    const full = Math.abs(i.effective_weight - i.weight) < 0.01 || !i.usable;
    put(weight, "w" + (full ? i.weight : (+i.effective_weight.toFixed(1)) + "/" + i.weight));
    fill(share, String(i.share), () => [svg("rect", { class: "share", width: i.share * 100, height: 6 })]);
    put(shareText, percent(i.share));
    put(flight, count(i.in_flight)); put(requests, count(i.requests)); put(failures, count(i.failures));
    put(p50, ms(i.latency.p50_ms)); put(p99, ms(i.latency.p99_ms));
    const text = reasonOf(i); put(why, text); why.hidden = !text;
    details();
  } };
}
const instanceText = i => [i.id, i.address, i.state, i.status, i.version, i.zone, ...(i.tags ?? []), ...Object.entries(i.meta ?? {}).flat()].join(" ");

function routeText(r) {
  return [(r.methods ?? []).join(","), (r.host ?? "") + r.path, ...(r.headers ?? []).map(h => "header " + h), ...(r.query ?? []).map(q => "query " + q)].filter(Boolean).join(" ");
}
function routeRow() {
  const name = el("b"), match = el("code"), to = el("span"), from = el("small"), [rps, p99, errors] = cells("req/s", "p99", "errors");
  to.dataset.l = "to";
  const node = el("div.row.route-row", el("span.name", name), el("span", match), to, rps, p99, errors, el("span.from", from));
  return { node, update(r) {
    put(name, r.name); put(match, routeText(r));
    fill(to, JSON.stringify([r.redirect, r.upstream, r.strip, r.prepend, r.rate_limit, r.policies]), () => [
      r.redirect ? el("span", "→ ", el("code", r.redirect)) : link("#/services/" + encodeURIComponent(r.upstream), r.upstream),
      ...["strip", "prepend"].filter(k => r[k]).map(k => el("small", " " + k + " ", el("code", r[k]))),
      r.rate_limit ? el("small", " limit " + r.rate_limit) : "", r.policies?.length ? el("small", " use " + r.policies.join(", ")) : "",
    ].filter(Boolean));
    put(rps, rate(r.rate)); put(p99, ms(r.latency.p99_ms)); put(errors, percent(r.error_share)); errors.classList.toggle("bad", r.error_share > 0.01);
    put(from, r.source + (r.location ? " " + r.location : ""));
  } };
}
function link(href, text) { const a = el("a", text); a.href = href; return a; }

function eventRow(e) {
  const p = el("span.pill"), t = el("time", clock(e.at)); pill(p, e.severity, e.kind); t.title = e.at;
  const node = el("li." + e.severity, t, p, el("span", e.service ? el("b", e.service + " ") : "", e.instance ? el("code", e.instance + " ") : "", e.message, e.actor ? el("small", " by " + e.actor) : ""));
  return { node, update() {} };
}
function rejectedRow() {
  const name = el("b"), kind = el("small"), why = el("span.why");
  return { node: el("div.row.rejected-row", el("span.name", name, " ", kind), why), update(r) { put(name, r.name); put(kind, r.kind + (r.service ? " of " + r.service : "")); put(why, r.reason); } };
}

// --- the top of the page ---------------------------------------------------
function tile(title, sparkOf) {
  const big = el("b"), unit = el("span"), sub = el("p"), spark = sparkOf && svg("svg", { class: "spark", viewBox: "0 0 300 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  const area = spark && svg("path", { class: "area" }), line = spark && svg("path", {});
  spark?.append(area, line);
  const node = el("div.tile", el("h3", title), el("p", big, unit), sub, spark);
  return { node, set(value, suffix, below, alarm) {
    put(big, value); put(unit, " " + suffix); put(sub, below ?? ""); node.classList.toggle("alarm", !!alarm);
    if (!spark || history.length < 2) return;
    const top = Math.max(...history.map(sparkOf), 1e-9), step = 300 / Math.max(history.length - 1, 60), points = history.map((h, i) => (300 - (history.length - 1 - i) * step).toFixed(1) + " " + (96 - 90 * sparkOf(h) / top).toFixed(1));
    line.setAttribute("d", "M" + points.join("L"));
    area.setAttribute("d", "M" + points.join("L") + "V100H" + (300 - (history.length - 1) * step).toFixed(1) + "Z");
  } };
}
let top_;
function head(h) {
  if (!top_) {
    top_ = { req: tile("requests", h => h.rate), lat: tile("latency", h => h.p99), err: tile("errors", h => h.err), fly: tile("in flight", h => h.fly), lists: {
      services: new List($("service-list"), serviceRow), routes: new List($("route-list"), routeRow), events: new List($("event-list"), eventRow), rejected: new List($("rejected-list"), rejectedRow) } };
    $("tiles").replaceChildren(top_.req.node, top_.lat.node, top_.err.node, top_.fly.node);
    top_.about = ["replica", "version", "up", "config"].map(t => el("dd"));
    $("about").replaceChildren(...["replica", "version", "up", "config"].map((t, i) => el("div", el("dt", t), top_.about[i])));
    top_.deps = ["Consul", "Redis", "TLS", "Config"].map(n => { const d = { p: el("span.pill"), text: el("span"), why: el("p") }; d.node = el("div.dep", el("b", n), " ", d.p, " ", d.text, d.why); return d; });
    $("deps").replaceChildren(...top_.deps.map(d => d.node));
  }
  const t = h.traffic, l = t.latency;
  top_.req.set(rate(t.rate), "/s", count(t.requests) + " since the start");
  top_.lat.set(ms(l.p50_ms), "p50", ms(l.p95_ms) + " p95 · " + ms(l.p99_ms) + " p99");
  top_.err.set(percent(t.error_share), "5xx", count(t.errors) + " since the start", t.error_share > 0.01);
  top_.fly.set(count(t.in_flight), "", count(t.limited) + " limited since the start");
  pill($("state"), h.replica.state); $("state").title = (h.replica.reasons ?? []).join(", ");
  const [id, version, up, config] = top_.about;
  put(id, h.replica.id); put(version, h.replica.version); put(up, span(h.replica.uptime_seconds));
  fill(config, h.config.hash + h.config.loaded_at, () => [el("code", h.config.hash), " " + clock(h.config.loaded_at) + " UTC"]);
  const dep = (d, state, text, why) => { cls(d.node, "dep " + state.replace(/\W/g, "")); pill(d.p, state); put(d.text, text); put(d.why, why ?? ""); d.why.hidden = !why; };
  const stale = h.consul.stale?.length ? "served from the last answer: " + h.consul.stale.join(", ") : "";
  dep(top_.deps[0], h.consul.state, [h.consul.last_contact && "heard " + span((now() - Date.parse(h.consul.last_contact)) / 1000) + " ago", h.consul.detail].filter(Boolean).join(" · "), [h.consul.error, stale].filter(Boolean).join(" · "));
  dep(top_.deps[1], h.redis.state, [h.redis.latency_ms && ms(h.redis.latency_ms), h.redis.detail].filter(Boolean).join(" · "), h.redis.error);
  dep(top_.deps[2], h.tls.state, h.tls.detail, h.tls.error);
  dep(top_.deps[3], h.config.state, h.config.source, h.config.error ?? (h.config.warnings ?? []).join(" · "));
  document.title = (h.replica.state === "ready" ? "" : h.replica.state + " · ") + h.replica.id + " · proconsul";
}

// --- views, filter, keys ---------------------------------------------------
const views = ["services", "routes", "events", "rejected"];
let view = "services", target = "", words = [];
const matches = text => { text = text.toLowerCase(); return words.every(w => text.includes(w)); };

function render() {
  if (!known.head) return;
  head(known.head);
  const lists = top_.lists, services = [...known.upstreams.values()].sort((a, b) => a.name < b.name ? -1 : 1);
  const rejected = known.head.rejected ?? [];
  if (view === "services") lists.services.show(services.filter(u => matches(u.name + " " + u.service + " " + u.health) || [...(known.instances.get(u.name)?.values() ?? [])].some(i => matches(instanceText(i)))), u => u.name, "No service matches.");
  if (view === "routes") lists.routes.show([...known.routes.values()].sort((a, b) => a.order - b.order).filter(r => matches(r.name + " " + routeText(r) + " " + (r.upstream ?? "") + " " + r.source)), r => r.name, "No route matches.");
  if (view === "events") lists.events.show(known.events.filter(e => matches([e.kind, e.service, e.instance, e.message].join(" "))), e => e.seq, "Nothing has happened yet.");
  if (view === "rejected") lists.rejected.show(rejected.filter(r => matches(r.name + " " + r.service + " " + r.reason)), r => r.kind + " " + r.service + " " + r.name + " " + r.reason, "Nothing was rejected.");
  for (const a of document.querySelectorAll("nav a")) {
    const n = { services: services.length, routes: known.routes.size, rejected: rejected.length }[a.dataset.view], i = a.querySelector("i");
    if (i && n !== undefined) { put(i, n); i.classList.toggle("alarm", a.dataset.view === "rejected" && n > 0); }
  }
}
function go() {
  const [v, name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(p => { try { return decodeURIComponent(p); } catch { return p; } });
  view = views.includes(v) ? v : "services";
  target = v === "services" && name ? name + "/" + rest.join("/") : "";
  for (const n of views) $(n).hidden = n !== view;
  for (const a of document.querySelectorAll("nav a")) a.dataset.view === view ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current");
  render();
  if (target && top_) {
    const row = top_.lists.services.rows.get(name);
    if (row) { row.node.open = true; render(); (row.node.querySelector(".target") ?? row.node).scrollIntoView({ block: "center" }); }
  }
}
for (const a of document.querySelectorAll("nav a")) a.href = "#/" + a.dataset.view;
addEventListener("hashchange", go);
$("filter").addEventListener("input", () => { words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean); render(); });
addEventListener("keydown", e => {
  if (e.target === $("filter") && e.key === "Escape") { $("filter").value = ""; words = []; $("filter").blur(); render(); return; }
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA)$/.test(e.target.tagName)) return;
  const to = { s: "services", r: "routes", e: "events" }[e.key];
  if (e.key === "/") { e.preventDefault(); $("filter").focus(); }
  else if (to) location.hash = "#/" + to;
  else if (e.key === "x" && view === "services") { const all = [...$("service-list").children].filter(n => n.tagName === "DETAILS"), open = all.some(d => !d.open); for (const d of all) d.open = open; }
});

// --- following the gateway -------------------------------------------------
let token = "", login = null, following = null;
const headers = () => token ? { Authorization: "Bearer " + token } : {};
const pause = ms => new Promise(done => setTimeout(done, ms));

function received(h, apply) {
  skew = Date.parse(h.replica.now) - Date.now();
  heard = Date.now();
  apply();
  const t = h.traffic;
  history.push({ rate: t.rate, p99: t.latency.p99_ms, err: t.error_share, fly: t.in_flight });
  if (history.length > 300) history.shift();
  const first = !top_;
  first ? go() : render();
}
async function askToken() {
  $("content").hidden = true; $("login").hidden = false; $("token").focus();
  await new Promise(done => { login = done; });
  $("login").hidden = true; $("content").hidden = false;
}
$("login").addEventListener("submit", e => { e.preventDefault(); token = $("token").value.trim(); $("token").value = ""; login?.(); });

async function get(path, signal) {
  const res = await fetch(path, { headers: headers(), cache: "no-store", signal });
  if (res.status === 401 || res.status === 403) { token = ""; await askToken(); return get(path, signal); }
  if (!res.ok) throw new Error(res.status);
  return res;
}
async function follow() {
  following = new AbortController();
  const res = await get("api/v1/stream", following.signal);
  const reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let buffer = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
      const event = {};
      for (const line of buffer.slice(0, end).split("\n")) { const at = line.indexOf(": "); if (at > 0) event[line.slice(0, at)] = line.slice(at + 2); }
      if (!event.data) continue;
      const d = JSON.parse(event.data);
      if (event.event === "snapshot") received(d, () => snapshot(d)); else received(d.head, () => delta(d));
    }
  }
}
async function run() {
  for (;;) {
    while (document.hidden) await new Promise(done => document.addEventListener("visibilitychange", done, { once: true }));
    try { await follow(); } catch { /* the banner says so */ }
    if (document.hidden) continue;
    // No stream: poll as long as there is none.
    try { const s = await (await get("api/v1/status", AbortSignal.timeout(5000))).json(); received(s, () => snapshot(s)); } catch { /* the banner says so */ }
    await pause(Date.now() - heard < 3000 ? 2000 : 5000);
  }
}
document.addEventListener("visibilitychange", () => { if (document.hidden) following?.abort(); });
setInterval(() => {
  const old = heard ? Math.floor((Date.now() - heard) / 1000) : 0, banner = $("banner");
  banner.hidden = old < 5 || document.hidden;
  put(banner, "The gateway does not answer: what you see is " + span(old) + " old.");
  if (old > 20) following?.abort();
}, 1000);
go();
run();
