// The live half of the status page. What comes from the gateway becomes a text
// node or an attribute of a fixed name: <script> stays text.
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// el("p.why", "text", node, …) makes an element.
function el(spec, ...kids) {
	const [tag, ...classes] = spec.split(".");
	const node = document.createElement(tag);
	if (classes.length) node.className = classes.join(" ");
	node.append(...kids.flat().filter(k => k !== "" && k != null && k !== false));
	return node;
}
function svg(tag, attrs, ...kids) {
	const node = document.createElementNS(SVG, tag);
	for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v);
	node.append(...kids);
	return node;
}
const enc = encodeURIComponent;
function to(view, name) { const a = el("a", name); a.href = "#/" + view + "/" + enc(name); return a; }
function button(text, act) {
	const b = el("button.ghost", text);
	b.type = "button";
	b.addEventListener("click", e => { e.preventDefault(); e.stopPropagation(); act(); });
	return b;
}
function put(node, text) { text = String(text); if (node.said !== text) node.textContent = node.said = text; }
function cls(node, name) { if (node.className !== name) node.className = name; }
function show(node, on) { if (node.hidden === !!on) node.hidden = !on; }
function say(node, text) { put(node, text); show(node, text); }
function fill(node, key, make) { if (node.key !== key) { node.key = key; node.replaceChildren(...make().flat().filter(Boolean)); } }

// --- words and numbers -----------------------------------------------------
const icons = { draining: "↓", redirected: "→", ejected: "↯", info: "·" };
for (const [icon, states] of [["✓", "passing ok up ready closed proxied"], ["!", "warning degraded half_open starting warn refused diverged"], ["–", "maintenance disabled empty"]]) for (const s of states.split(" ")) icons[s] = icon;
const label = (state, text) => (icons[state] ?? "✕") + " " + (text ?? state);
const plain = state => String(state).replace(/\W/g, ""); // as a class
function pill(node, state, text) { cls(node, "pill " + plain(state)); put(node, label(state, text)); return node; }
const newPill = (state, text) => pill(el("span"), state, text);

function ms(v) {
	if (!(v > 0)) return "–";
	if (v < 10) return v.toFixed(1) + " ms";
	if (v < 1000) return Math.floor(v) + " ms";
	return (v < 10000 ? (v / 1000).toFixed(1) : Math.floor(v / 1000)) + " s";
}
const format = new Intl.NumberFormat("en");
const count = v => v < 1000 ? String(v) : format.format(v || 0);
const rate = v => v > 0 && v < 10 ? v.toFixed(1) : count(Math.round(v || 0));
function percent(share) { const p = (share || 0) * 100; return (p > 0 && p < 10 ? p.toFixed(2) : p.toFixed(0)) + " %"; }
const plural = (n, noun) => count(n) + " " + (n === 1 ? noun : noun.replace(/y$/, "ie") + "s");
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
const left = t => t ? Math.ceil((Date.parse(t) - now()) / 1000) : 0; // seconds until then
const clock = t => !t ? "–" : now() - Date.parse(t) < 864e5 ? t.slice(11, 19) : t.slice(0, 16).replace("T", " "); // UTC, as it comes
const shortID = id => id.slice(id.indexOf("/") + 1);
const trouble = { down: 0, empty: 1, degraded: 2 }; // first
const byTrouble = (a, b) => (trouble[a.health] ?? 9) - (trouble[b.health] ?? 9) || (a.name < b.name ? -1 : 1);

// fate says what became of failed tries.
function fate(failed) {
	const tries = failed.reduce((n, f) => n + f.tries, 0), again = failed.reduce((n, f) => n + f.again, 0);
	if (!tries) return "";
	const what = failed.map(f => count(f.tries) + " " + f.reason.replaceAll("_", " ")).join(", ");
	if (again === tries) return what + ": " + (tries === 1 ? "it was" : "all were") + " tried again on another instance";
	return what + ": " + (again ? count(again) + " tried again, " : "") + count(tries - again) + " failed for the client";
}

// --- what is known ---------------------------------------------------------
const lists = ["rejected", "fleet", "limits", "limited", "overrides"];
const known = { head: null, upstreams: new Map(), instances: new Map(), routes: new Map(), events: [], lastEvent: 0, samples: [] };
const past = []; // of the last five minutes, for the sparklines
let heard = 0;

function snapshot(s) {
	known.upstreams.clear(); known.instances.clear(); known.routes.clear();
	known.head = s;
	for (const name of lists) known[name] = s[name] ?? [];
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
const instancesOf = u => [...(known.instances.get(u)?.values() ?? [])];
function delta(d) {
	known.head = d.head;
	for (const name of lists) if (d[name]) known[name] = d[name];
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
// sample keeps ten seconds of what the limiter decided, for its pace.
function sample() {
	known.samples.push({ at: now(), of: new Map(known.limits.map(l => [l.route, l])) });
	if (known.samples.length > 11) known.samples.shift();
}
function pace(route, what) {
	const a = known.samples[0], b = known.samples.at(-1), from = a?.of.get(route), to = b?.of.get(route);
	return from && to && b.at > a.at ? Math.max(0, (what(to) - what(from)) * 1000 / (b.at - a.at)) : 0;
}

// --- lists of rows ---------------------------------------------------------
// Rows out of sight catch up when they come into it.
const rowOf = new WeakMap();
const sight = new IntersectionObserver(entries => {
	for (const e of entries) {
		const row = rowOf.get(e.target);
		if (!row) continue;
		row.away = !e.isIntersecting;
		if (!row.away && row.late) { row.update(row.late); row.late = null; }
	}
}, { rootMargin: "200px" });

class List {
	constructor(box, make) { this.box = box; this.make = make; this.rows = new Map(); box.replaceChildren(); }
	show(items, keyOf, none) {
		const gone = new Set(this.rows.keys());
		let at = this.box.firstChild;
		for (const item of items) {
			const key = keyOf(item);
			let row = this.rows.get(key);
			if (!row) {
				row = this.make(item);
				this.rows.set(key, row);
				rowOf.set(row.node, row);
				sight.observe(row.node);
			}
			gone.delete(key);
			if (row.away) row.late = item; else row.update(item);
			if (row.node === at) at = at.nextSibling; else this.box.insertBefore(row.node, at);
		}
		for (const key of gone) { this.rows.get(key).node.remove(); this.rows.delete(key); }
		if (!items.length && none) { this.empty ??= el("p.none"); put(this.empty, none); this.box.append(this.empty); }
		else this.empty?.remove();
	}
}
// cells are a row's numbers, with their names for narrow screens.
const cells = (...names) => names.map(n => { const c = el("span.n"); c.dataset.l = n; return c; });
const set = (cells, ...values) => values.forEach((v, i) => put(cells[i], v));
const quantiles = l => [ms(l.p50_ms), ms(l.p95_ms), ms(l.p99_ms)];
function bar() { return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }); }

const severity = ["passing", "warning", "draining", "maintenance", "ejected", "critical"];

function serviceRow(first) {
	const name = el("b"), service = el("small"), stale = newPill("warning", "stale"), health = el("span"), segments = bar(), breaker = button("", () => ask("the breaker of " + u.name, ["open", "close", "reset"], "", "breakers/" + enc(u.name)));
	const numbers = cells("req/s", "p50", "p95", "p99", "failed", "retries"), [flight] = cells("in flight");
	const breakerCell = el("span", breaker); breakerCell.dataset.l = "breaker";
	const summary = el("summary.row.svc-row", el("span.name", name, " ", service, " ", stale), el("span.health", health, segments), numbers, breakerCell, flight);
	const titles = el("div.row.head.inst-row", ["instance", "state", "weight and share"].map(t => el("span", t)), ["in flight", "req/s", "failed", "p50", "p95", "p99"].map(t => el("span.n", t)));
	const why = el("p.why"), lost = el("p.fate"), box = el("div"), node = el("details.svc", summary, el("div.insts", why, lost, titles, box));
	const list = new List(box, instanceRow);
	const total = [...known.instances.values()].reduce((n, l) => n + l.size, 0);
	node.open = total <= 24 || first.health !== "ok";
	let u = first;
	const instances = () => {
		if (!node.open) return;
		const b = u.breaker, notes = [u.error, u.panic && "too few are left: instances serve that are distrusted",
			left(u.held_until) > 0 && "an update that took most instances is not believed for another " + left(u.held_until) + " s",
			b.why && "breaker " + b.state.replace("_", " ") + " for " + ago(b.since) + ": " + b.why + (left(b.retry_at) > 0 ? ", " + (b.forced ? "until" : "next probe in") + " " + span(left(b.retry_at)) : "") + (b.rejected ? ", " + plural(b.rejected, "request") + " refused so far" : "")];
		say(why, notes.filter(Boolean).join(" · "));
		const failed = fate(u.failed ?? []);
		say(lost, failed && "failed tries: " + failed + (u.retries ? " · " + count(u.rescued) + " of " + plural(u.retries, "second try") + " brought an answer" : ""));
		const hit = matches(() => u.name + " " + u.service);
		const all = instancesOf(u.name), sum = all.reduce((n, i) => n + i.rate, 0);
		for (const i of all) i.got = sum && i.rate / sum;
		const items = all.filter(i => hit || matches(() => instanceText(i)));
		items.sort((a, b) => a.id < b.id ? -1 : 1);
		show(titles, items.length);
		list.show(items, i => i.id, "No instances are registered.");
	};
	node.addEventListener("toggle", instances);
	return { node, list, update(item) {
		u = item;
		cls(node, "svc " + plain(u.health));
		put(name, u.name);
		put(service, u.service && u.service !== u.name ? u.service : "");
		show(stale, u.stale);
		pill(health, u.health, u.usable + "/" + u.total);
		const counts = {};
		for (const i of instancesOf(u.name)) { const s = severity.includes(i.state) ? i.state : "critical"; counts[s] = (counts[s] || 0) + 1; }
		fill(segments, JSON.stringify(counts), () => {
			let x = 0;
			return severity.filter(s => counts[s]).map(s => { const width = 100 * counts[s] / u.total, r = svg("rect", { class: s, x, width, height: 6 }); x += width; return r; });
		});
		set(numbers, rate(u.rate), ...quantiles(u.latency), percent(u.error_share), count(u.retries));
		numbers[4].classList.toggle("bad", u.error_share > 0.01);
		const wait = u.breaker.state === "open" && left(u.breaker.retry_at) > 0 ? " " + span(left(u.breaker.retry_at)) : "";
		pill(breaker, u.breaker.state, u.breaker.state.replace("_", " ") + wait); breaker.title = (u.breaker.why ?? "") + "\nopen, close or reset it";
		const most = u.concurrency?.limit ?? u.max_in_flight;
		put(flight, count(u.in_flight) + (most ? "/" + count(most) : ""));
		instances();
	} };
}

function reasonOf(i) {
	if (i.state === "ejected") return "ejected" + (i.ejected_for ? ": " + i.ejected_for : "") + (left(i.ejected_until) > 0 ? ", probe in " + left(i.ejected_until) + " s" : "");
	const c = (i.checks ?? []).find(c => c.status !== "passing");
	if (c) return (c.name + (c.output ? ": " + c.output : "")).replace(/\s+/g, " ").slice(0, 200);
	return i.ramp > 0 && i.ramp < 1 ? "slow start: " + percent(i.ramp) + " of its weight" : "";
}

function instanceRow() {
	const id = el("b"), version = el("small"), address = el("code"), state = el("span"), since = el("small"), why = el("span.why"), lost = el("span.fate");
	const weight = el("span"), share = bar(), shareText = el("span"), shareCell = el("span.share", weight, share, shareText);
	shareCell.dataset.l = "weight";
	const numbers = cells("in flight", "req/s", "failed", "p50", "p95", "p99");
	const more = el("div.more"), act = el("span.act");
	const node = el("details.inst", el("summary.row.inst-row", el("span.name", id, " ", version, address), el("span", state, " ", since), shareCell, numbers, act, why, lost), more);
	let i;
	const details = () => {
		if (!node.open || !i) return;
		const { checks = [], tags = [], meta = {}, failed = [], datacenter, zone, node: machine } = i;
		fill(more, JSON.stringify([checks, tags, meta, failed, i.requests, datacenter, zone, i.id]), () => [
			checks.flatMap(c => [el("p", newPill(c.status), " " + c.name + " ", el("small", (c.type ?? "") + (c.node ? " node" : ""))), c.output ? el("pre", c.output) : ""]),
			el("p", el("small", plural(i.requests, "request") + " since it joined" + (failed.length ? " · failed: " + fate(failed) : ""))),
			el("p", el("small", ["id " + i.id, datacenter && "dc " + datacenter, machine && "node " + machine, zone && "zone " + zone].filter(Boolean).join(" · "))),
			tags.length ? el("p.tags", tags.flatMap(t => [el("code", t), " "])) : "",
			Object.keys(meta).length ? el("p.tags", Object.entries(meta).flatMap(([k, v]) => [el("code", k + "=" + v), " "])) : "",
		]);
	};
	node.addEventListener("toggle", details);
	return { node, update(item) {
		i = item;
		cls(node, "inst " + plain(i.state) + (target === i.upstream + "/" + i.id || target === i.upstream + "/" + shortID(i.id) ? " target" : ""));
		put(id, shortID(i.id)); put(version, i.version ?? ""); put(address, i.address);
		pill(state, i.state); put(since, ago(i.since)); since.title = i.since ?? "";
		const full = Math.abs(i.effective_weight - i.weight) < 0.01 || !i.usable;
		put(weight, "w" + (full ? i.weight : (+i.effective_weight.toFixed(1)) + "/" + i.weight));
		fill(share, String(i.share), () => [svg("rect", { class: "share", width: i.share * 100, height: 6 })]);
		put(shareText, percent(i.share) + (i.rate ? ", got " + percent(i.got) : ""));
		set(numbers, count(i.in_flight), rate(i.rate), count(i.failures), ...quantiles(i.latency));
		const name = i.state === "ejected" ? "restore" : i.state === "draining" ? "undrain" : "drain";
		fill(act, name, () => [button(name, () => ask(shortID(i.id) + " in " + i.upstream, ["drain", "undrain", "eject", "restore"], name, "instances/" + enc(i.id), i.upstream))]);
		say(why, reasonOf(i));
		say(lost, i.state !== "passing" || i.ramp < 1 ? fate(i.failed ?? []) : "");
		details();
	} };
}
const instanceText = i => [i.id, i.address, i.state, i.status, i.version, i.zone, ...(i.tags ?? []), ...Object.entries(i.meta ?? {}).flat()].join(" ");
const answers = list => (list ?? []).map(a => a.reason + " " + count(a.count)).join(" · ");

function routeText(r) {
	return [(r.methods ?? []).join(","), (r.host ?? "") + r.path, ...(r.headers ?? []).map(h => "header " + h), ...(r.query ?? []).map(q => "query " + q)].filter(Boolean).join(" ");
}
function routeRow() {
	const name = el("b"), match = el("code"), goal = el("span"), own = el("span.fate"), from = el("small"), numbers = cells("req/s", "p50", "p95", "p99", "errors");
	goal.dataset.l = "to";
	const node = el("div.row.route-row", el("span.name", name), el("span", match), goal, numbers, el("span.from", from), own);
	return { node, update(r) {
		cls(node, "row route-row" + (target === r.name ? " target" : ""));
		put(name, r.name); put(match, routeText(r));
		fill(goal, JSON.stringify([r.redirect, r.upstream, r.strip, r.prepend, r.rate_limit, r.policies]), () => [
			r.redirect ? el("span", "→ ", el("code", r.redirect)) : to("services", r.upstream),
			["strip", "prepend"].filter(k => r[k]).map(k => el("small", " " + k + " ", el("code", r[k]))),
			r.rate_limit && el("small", " limit " + r.rate_limit), r.policies?.length && el("small", " use " + r.policies.join(", ")),
		]);
		set(numbers, rate(r.rate), ...quantiles(r.latency), percent(r.error_share)); numbers[4].classList.toggle("bad", r.error_share > 0.01);
		put(from, r.source + (r.location ? " " + r.location : ""));
		say(own, r.answers?.length ? "answered by the gateway: " + answers(r.answers) : "");
	} };
}
function eventRow(e) {
	const t = el("time", clock(e.at)); t.title = e.at;
	const node = el("li." + plain(e.severity), t, newPill(e.severity, e.kind), el("span", e.service && el("b", e.service + " "), e.instance && el("code", shortID(e.instance) + " "), e.message, e.actor && el("small", " by " + e.actor)));
	return { node, update() {} };
}
// small rows are made anew whenever what they say changes.
const small = (kind, make) => () => {
	const node = el("div.row." + kind);
	return { node, update(x) { const parts = make(x); fill(node, parts.map(p => p?.textContent ?? p).join("\n"), () => parts.map(p => typeof p === "string" ? el("span", p) : p)); } };
};
const named = (name, more) => el("span.name", el("b", name), more && el("small", " " + more));
const number = (name, text) => { const [c] = cells(name); put(c, text); return c; };
const rejectedRow = small("rejected-row", r => [named(r.name, r.kind + (r.service ? " of " + r.service : "")), el("span.why", r.reason)]);
const limitedRow = small("limited-row", l => [el("span.name", el("code", l.key)), l.route, number("limited", count(l.denied) + " times")]);
const limitRow = small("limit-row", l => {
	const passed = l.allowed + l.local + l.fail_open, stopped = l.limited + l.fail_closed;
	const alone = [[l.local, "by this replica's share"], [l.fail_open, "let through"], [l.fail_closed, "refused"]].filter(([n]) => n).map(([n, t]) => count(n) + " " + t);
	return [el("span.name", to("routes", l.route)), el("span", el("code", l.limit)),
		number("allowed/s", rate(pace(l.route, x => x.allowed + x.local + x.fail_open))), number("limited/s", rate(pace(l.route, x => x.limited + x.fail_closed))),
		number("decisions", count(passed + stopped)), number("limited", percent(stopped / (passed + stopped))), alone.length && el("span.fate", "without Redis: " + alone.join(", "))];
});
const peerRow = small("peer-row", p => [named(p.replica || shortID(p.id), p.self && "this one"), el("span", el("code", p.address)), el("span", newPill(p.status)), p.version ?? "",
	el("span", el("code", p.config || "unknown"), " ", p.diverged && newPill("diverged")), p.diverged && el("span.why", "serves by another configuration than the others: reload it, or see in its log why it refused")]);
const undo = { drain: ["instances/", "undrain"], eject: ["instances/", "restore"], breaker: ["breakers/", "reset"], replica: ["", "undrain"] };
const overrideRow = small("override-row", o => {
	const [where, act] = undo[o.kind] ?? [];
	return [named(o.kind.replace("_", " ") + ": " + o.state), (o.upstream && o.upstream !== o.target ? o.upstream + " " : "") + shortID(o.target), "ends in " + span(left(o.until)), el("small", "by " + (o.actor || "–") + (o.reason ? ": " + o.reason : "")),
		act && button("end it", () => ask(shortID(o.target), [act], act, where + (where && enc(o.target)), where === "instances/" ? o.upstream : ""))];
});

// --- the top of the page ---------------------------------------------------
function tile(title, sparkOf) {
	const big = el("b"), unit = el("span"), sub = el("p"), spark = svg("svg", { class: "spark", viewBox: "0 0 300 100", preserveAspectRatio: "none", "aria-hidden": "true" });
	const area = svg("path", { class: "area" }), line = svg("path", {});
	spark.append(area, line);
	const node = el("div.tile", el("h3", title), el("p", big, unit), sub, spark);
	return { node, set(value, suffix, below, alarm) {
		put(big, value); put(unit, " " + suffix); put(sub, below ?? ""); sub.title = below ?? ""; node.classList.toggle("alarm", !!alarm);
		if (past.length < 2) return;
		const top = Math.max(...past.map(sparkOf), 1e-9), step = 300 / Math.max(past.length - 1, 60), points = past.map((h, i) => (300 - (past.length - 1 - i) * step).toFixed(1) + " " + (96 - 90 * sparkOf(h) / top).toFixed(1));
		line.setAttribute("d", "M" + points.join("L"));
		area.setAttribute("d", "M" + points.join("L") + "V100H" + (300 - (past.length - 1) * step).toFixed(1) + "Z");
	} };
}
let top_;
function makeTop() {
	const list = (id, make) => new List($(id), make);
	top_ = { req: tile("requests", h => h.rate), lat: tile("latency", h => h.p99), err: tile("errors", h => h.err), fly: tile("in flight", h => h.fly), lists: {
		services: list("service-list", serviceRow), routes: list("route-list", routeRow), events: list("event-list", eventRow), rejected: list("rejected-list", rejectedRow),
		limits: list("limit-list", limitRow), limited: list("limited-list", limitedRow), fleet: list("peer-list", peerRow), overrides: list("override-list", overrideRow) } };
	$("tiles").replaceChildren(top_.req.node, top_.lat.node, top_.err.node, top_.fly.node);
	const about = ["replica", "version", "up", "config"];
	top_.about = about.map(() => el("dd"));
	$("about").replaceChildren(...about.map((t, i) => el("div", el("dt", t), top_.about[i])));
	top_.deps = ["Consul", "Redis", "TLS", "Config", "Fleet"].map(n => { const d = { p: el("span"), text: el("span"), why: el("p") }; d.node = el("div.dep", el("b", n), " ", d.p, " ", d.text, d.why); return d; });
	$("deps").replaceChildren(...top_.deps.map(d => d.node));
}
function head(h) {
	if (!top_) makeTop();
	const t = h.traffic, l = t.latency, c = h.config;
	top_.req.set(rate(t.rate), "/s", count(t.requests) + " since the start");
	top_.lat.set(ms(l.p50_ms), "p50", ms(l.p95_ms) + " p95 · " + ms(l.p99_ms) + " p99");
	top_.err.set(percent(t.error_share), "5xx", answers(t.answers) || count(t.errors) + " since the start", t.error_share > 0.01);
	top_.fly.set(count(t.in_flight), "", count(t.limited) + " limited since the start");
	pill($("state"), h.replica.state); $("state").title = (h.replica.reasons ?? []).join(", ");
	const [id, version, up, config] = top_.about;
	put(id, h.replica.id); put(version, h.replica.version); put(up, span(h.replica.uptime_seconds));
	fill(config, c.hash + c.loaded_at, () => [el("code", c.hash), " " + clock(c.loaded_at) + " UTC"]);
	const dep = (i, state, text, why) => { const d = top_.deps[i]; cls(d.node, "dep " + plain(state)); pill(d.p, state); put(d.text, text); say(d.why, why ?? ""); };
	const asked = d => [d.last_contact && "heard " + span((now() - Date.parse(d.last_contact)) / 1000) + " ago", d.latency_ms && ms(d.latency_ms), d.detail].filter(Boolean).join(" · ");
	dep(0, h.consul.state, asked(h.consul), [h.consul.error, h.consul.stale?.length && "served from the last answer: " + h.consul.stale.join(", ")].filter(Boolean).join(" · "));
	dep(1, h.redis.state, asked(h.redis), h.redis.error);
	dep(2, h.tls.state, h.tls.detail, h.tls.error);
	dep(3, c.state, c.source, (c.warnings ?? []).join(" · "));
	const odd = known.fleet.filter(p => p.diverged), n = known.fleet.length;
	dep(4, !n ? "disabled" : odd.length ? "diverged" : "ok", n ? plural(n, "replica") + (odd.length ? "" : n > 1 ? ", all by one configuration" : "") : "not registered", odd.length ? odd.map(p => p.replica || p.id).join(", ") + ": another configuration" : "");
	refused(c);
	document.title = (h.replica.state === "ready" ? "" : h.replica.state + " · ") + h.replica.id + " · proconsul";
}
// refused shows why the newest configuration was not taken over.
function refused(c) {
	show($("refused"), c.state === "refused");
	if (c.state !== "refused") return;
	put($("refused-head"), "The configuration that came " + ago(c.refused_at) + " ago was refused. Still serving by " + c.hash + " of " + clock(c.loaded_at) + " UTC.");
	const faults = c.faults ?? [];
	fill($("refused-list"), JSON.stringify([c.error, faults]), () => faults.length ? faults.map(f =>
		el("li", newPill(f.severity === "error" ? "error" : "warn", f.severity), " ", el("code", [f.file, f.line, f.col].filter(Boolean).join(":")), " " + f.message, f.hint && el("small", " – " + f.hint))) : [el("li", c.error ?? "")]);
}

// --- views, filter, keys ---------------------------------------------------
const tabs = [...document.querySelectorAll("nav a")], views = tabs.map(a => a.dataset.view);
let view = "services", target = "", words = [];
const matches = textOf => { if (!words.length) return true; const text = textOf().toLowerCase(); return words.every(w => text.includes(w)); };

function render() {
	if (!known.head) return;
	head(known.head);
	const l = top_.lists, services = [...known.upstreams.values()].sort(byTrouble), by = key => x => x[key];
	const pick = (list, textOf) => list.filter(x => matches(() => textOf(x)));
	switch (view) {
	case "services": l.services.show(services.filter(u => matches(() => u.name + " " + u.service + " " + u.health) || instancesOf(u.name).some(i => matches(() => instanceText(i)))), by("name"), "No service matches."); break;
	case "routes": l.routes.show(pick([...known.routes.values()].sort((a, b) => a.order - b.order), r => r.name + " " + routeText(r) + " " + (r.upstream ?? "") + " " + r.source), by("name"), "No route matches."); break;
	case "events": l.events.show(pick(known.events, e => [e.kind, e.service, e.instance, e.message].join(" ")), by("seq"), "Nothing has happened yet."); break;
	case "rejected": l.rejected.show(pick(known.rejected, r => r.name + " " + r.service + " " + r.reason), r => [r.kind, r.service, r.name, r.reason].join(" "), "Nothing was rejected."); break;
	case "limits":
		l.limits.show(pick(known.limits, x => x.route + " " + x.limit), by("route"), "No route has a limit.");
		l.limited.show(pick(known.limited, x => x.route + " " + x.key), x => x.route + x.key, "Nobody was limited lately.");
		break;
	case "fleet":
		l.fleet.show(pick(known.fleet, p => [p.id, p.replica, p.address, p.config].join(" ")), by("id"), "This replica does not register itself (registration.enabled): replicas cannot see one another.");
		l.overrides.show(known.overrides, o => [o.kind, o.upstream, o.target].join(" "), "No operator overrides anything.");
	}
	const n = { services: services.length, routes: known.routes.size, limits: known.limits.length, fleet: known.fleet.length, rejected: known.rejected.length };
	const alarm = { rejected: n.rejected > 0, fleet: known.fleet.some(p => p.diverged), services: services.some(u => u.health === "down" || u.health === "empty") };
	for (const a of tabs) {
		const i = a.querySelector("i"), v = a.dataset.view;
		if (i && n[v] !== undefined) { put(i, n[v]); i.classList.toggle("alarm", !!alarm[v]); }
	}
}
function go() {
	const [v, name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(p => { try { return decodeURIComponent(p); } catch { return p; } });
	view = views.includes(v) ? v : "services";
	target = view === "services" && name ? name + "/" + rest.join("/") : view === "routes" ? name ?? "" : "";
	for (const n of views) show($(n), n === view);
	for (const a of tabs) a.dataset.view === view ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current");
	if (view === "explain" && name && rest.length) explainLink(name, rest.join("/"));
	render();
	if (!target || !top_) return;
	// A link from Consul has the service's name.
	const u = known.upstreams.get(name) ?? [...known.upstreams.values()].find(u => u.service === name), row = top_.lists[view].rows.get(view === "routes" ? name : u?.name);
	if (!row) return;
	if (view === "services") {
		row.node.open = true;
		row.update(u);
		for (const r of row.list.rows.values()) if (r.late) { r.update(r.late); r.late = null; }
	}
	(row.node.querySelector(".target") ?? row.node).scrollIntoView({ block: "center" });
}
for (const a of tabs) a.href = "#/" + a.dataset.view;
addEventListener("hashchange", go);
$("filter").addEventListener("input", () => { words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean); render(); });
const keys = { s: "services", r: "routes", l: "limits", f: "fleet", e: "events", x: "explain" };
addEventListener("keydown", e => {
	if (e.target === $("filter") && e.key === "Escape") { $("filter").value = ""; words = []; $("filter").blur(); render(); return; }
	if (e.ctrlKey || e.metaKey || e.altKey || $("act").open || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) return;
	if (e.key === "/") { e.preventDefault(); $("filter").focus(); }
	else if (keys[e.key]) { e.preventDefault(); location.hash = "#/" + keys[e.key]; go(); if (e.key === "x") $("x-url").focus(); }
	else if (e.key === "u" && view === "services") { const all = [...$("service-list").children].filter(n => n.tagName === "DETAILS"), open = all.some(d => !d.open); for (const d of all) d.open = open; }
});

// --- what operators do -----------------------------------------------------
const effects = {
	drain: "It gets no new requests; those in flight finish.", undrain: "It gets requests again.",
	eject: "It leaves the pool, and comes back after a probe when the time is over.", restore: "It is back in the pool at once, whatever ejected it.",
	open: "Every request is refused with 503 breaker_open.", close: "Every request passes, whatever happens to it.", reset: "The breaker goes by its numbers again, from zero.",
};
const lasting = ["drain", "eject", "open", "close"];
let order = null;
function ask(name, acts, act, path, upstream) {
	order = { name, path, upstream };
	put($("act-title"), name); say($("act-error"), "");
	$("act-what").replaceChildren(...acts.map(a => el("option", a)));
	$("act-what").value = act || acts[0];
	show($("act-token-label"), !token);
	$("act-reason").value = "";
	chosen();
	$("act").showModal();
}
function chosen() {
	const act = $("act-what").value;
	put($("act-text"), effects[act]); put($("act-go"), act); show($("act-for-label"), lasting.includes(act));
}
$("act-what").addEventListener("change", chosen);
$("act-cancel").addEventListener("click", () => $("act").close());
$("act-form").addEventListener("submit", async e => {
	e.preventDefault();
	const act = $("act-what").value, entered = $("act-token").value.trim(), body = {};
	if (lasting.includes(act)) body.for = $("act-for").value;
	if ($("act-reason").value.trim()) body.reason = $("act-reason").value.trim();
	if (order.upstream) body.upstream = order.upstream;
	$("act-go").disabled = true;
	try {
		const res = await post(order.path + (order.path && "/") + act, body, entered || token);
		const answer = await res.json().catch(() => ({}));
		if (!res.ok) {
			if (res.status === 401 || res.status === 403) { show($("act-token-label"), true); $("act-token").focus(); }
			say($("act-error"), (answer.title ?? res.status) + (answer.detail ? ": " + answer.detail : ""));
			return;
		}
		if (entered) token = entered;
		$("act-token").value = "";
		$("act").close();
		note(order.name + ": " + answer.result + (answer.until ? " until " + clock(answer.until) + " UTC" : "") + (answer.changed ? "" : " (it was so before)"));
	} catch { say($("act-error"), "The gateway does not answer."); } finally { $("act-go").disabled = false; }
});
let noted;
function note(text) { say($("note"), text); clearTimeout(noted); noted = setTimeout(() => say($("note"), ""), 6000); }

// --- explain ---------------------------------------------------------------
function explainLink(method, url) {
	if ($("x-url").value === url && $("x-method").value === method) return;
	$("x-method").value = [...$("x-method").options].some(o => o.value === method) ? method : "GET"; $("x-url").value = url;
	explain();
}
$("x-form").addEventListener("submit", e => {
	e.preventDefault();
	history.replaceState(null, "", "#/explain/" + $("x-method").value + "/" + enc($("x-url").value)); // headers stay out of it: they may be credentials
	explain();
});
async function explain() {
	const q = { method: $("x-method").value, url: $("x-url").value.trim(), headers: $("x-headers").value.split("\n").map(h => h.trim()).filter(Boolean) };
	if ($("x-ip").value.trim()) q.client_ip = $("x-ip").value.trim();
	const out = $("x-result");
	try {
		const res = await post("explain", q, token);
		const e = await res.json();
		out.replaceChildren(...(res.ok ? explained(e) : [el("p.why", e.title + (e.detail ? ": " + e.detail : ""))]));
	} catch { out.replaceChildren(el("p.why", "The gateway does not answer.")); }
}
function explained(e) {
	const o = e.outcome, steps = el("ol.steps"), step = (name, bad, ...kids) => steps.append(el("li" + (bad ? ".bad-step" : ""), el("b", name), el("div", ...kids)));
	const near = e.passed_over.map(p => p.route + " (" + p.text + ")").join(", ") + (e.passed_over_more ? " and " + e.passed_over_more + " more" : "");
	step("request", false, el("p", e.request.method + " " + e.request.scheme + "://" + e.request.host + (e.request.path ?? "") + (e.request.query ? "?" + e.request.query : "")),
		el("small", "client " + e.request.client_ip + (e.request.trusted ? " (told by a trusted proxy)" : "")));
	step("match", !e.route, e.route ? el("p", to("routes", e.route.name), " ", el("code", e.route.match), el("small", " from " + e.route.source + " " + (e.route.location ?? ""))) : el("p", e.request.path ? "no route" : "refused before any route is looked for"),
		near && el("small", "passed over: " + near));
	for (const s of e.steps) {
		if (!s.text && s.verdict === "pass") continue; // it lets everything pass
		step(s.name.replaceAll("_", " "), s.verdict !== "pass", el("p", s.text ?? "", s.verdict !== "pass" && newPill("error", " refused: " + s.reason)),
			(s.limits ?? []).map(l => el("p", el("code", l.limit), " " + count(l.remaining) + " of " + count(l.count) + " left" + (l.reset_ms > 0 ? ", more in " + span(Math.max(1, l.reset_ms / 1000)) : ""), el("small", " looked at, nothing taken"))));
	}
	const u = e.upstream;
	if (u) step("pool", u.health === "down" || u.health === "empty", el("p", to("services", u.name), " " + u.candidates.filter(c => c.usable).length + " of " + u.candidates.length + " usable, " + u.balance + ", breaker ", newPill(u.breaker.state, u.breaker.state.replace("_", " ")), u.breaker.why && el("small", " " + u.breaker.why), u.stale && el("small", " · Consul does not answer: as last known")),
		el("div.candidates", u.candidates.map(c => el("div" + (c.usable ? "" : ".out"), newPill(c.state), el("b", shortID(c.id)), el("code", c.address), el("span", c.usable ? "share " + percent(c.share) + ", weight " + c.weight + ", in flight " + c.in_flight + ", p99 " + ms(c.p99_ms) + (c.why ? " · " + c.why : "") : c.why || c.state)))));
	const s = e.send;
	if (s) {
		const times = ["connect", "response", "total"].filter(k => s.timeouts[k + "_ms"] > 0).map(k => k + " " + ms(s.timeouts[k + "_ms"])).join(", ");
		const again = !s.retry.attempts ? "no retries" : "up to " + plural(s.retry.attempts, "retry") + (s.retry.replayable ? " on " + s.retry.on.join(", ") : ", only where nothing was sent");
		step("send", false, el("p", s.method + " ", el("code", s.url), " Host ", el("code", s.host), s.rewrite && el("small", " " + s.rewrite)), el("small", "timeouts: " + (times || "none") + " · " + again),
			el("p.tags", s.headers.flatMap(h => [el("code", h.name + ": " + h.value), " "])));
	}
	const text = o.answer === "proxied" ? "proxied" : o.answer + " " + o.status + (o.reason ? " " + o.reason : "") + (o.location ? " to " + o.location : "");
	return [el("p.outcome", newPill(o.answer === "refused" ? "error" : o.answer, text), " ", o.detail ?? "", o.retry_after_ms > 0 && " again in " + span(Math.max(1, o.retry_after_ms / 1000)), el("small", " no request was sent")), steps];
}

// --- following the gateway -------------------------------------------------
let token = "", login = null, following = null; // the token is kept here and nowhere else
const bearer = t => t ? { Authorization: "Bearer " + t } : {};
const post = (path, body, t) => fetch("api/v1/" + path, { method: "POST", cache: "no-store", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...bearer(t) } });
const pause = ms => new Promise(done => setTimeout(done, ms));

function received(h, apply) {
	skew = Date.parse(h.replica.now) - Date.now();
	heard = Date.now();
	apply();
	const t = h.traffic;
	past.push({ rate: t.rate, p99: t.latency.p99_ms, err: t.error_share, fly: t.in_flight });
	if (past.length > 300) past.shift();
	sample();
	top_ ? render() : go();
	show($("banner"), false);
}
async function askToken() {
	show($("content"), false); show($("login"), true); $("token").focus();
	await new Promise(done => { login = done; });
	show($("login"), false); show($("content"), true);
}
$("login").addEventListener("submit", e => { e.preventDefault(); token = $("token").value.trim(); $("token").value = ""; login?.(); });

async function get(path, signal, more) {
	const res = await fetch(path, { headers: { ...bearer(token), ...more }, cache: "no-store", signal });
	if (res.status === 401 || res.status === 403) { token = ""; await askToken(); return get(path, signal, more); }
	if (!res.ok) throw new Error(res.status);
	return res;
}
let lastID = "";
async function follow() {
	following = new AbortController();
	const res = await get("api/v1/stream", following.signal, lastID ? { "Last-Event-ID": lastID } : {});
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
			lastID = event.id;
		}
	}
}
async function run() {
	for (;;) {
		while (document.hidden) await new Promise(done => document.addEventListener("visibilitychange", done, { once: true }));
		try { await follow(); } catch { /* the banner says so */ }
		if (document.hidden) continue;
		// As long as there is no stream.
		try { const s = await (await get("api/v1/status", AbortSignal.timeout(5000))).json(); lastID = ""; received(s, () => snapshot(s)); } catch { /* the banner says so */ }
		await pause(Date.now() - heard < 3000 ? 2000 : 5000);
	}
}
document.addEventListener("visibilitychange", () => { if (document.hidden) following?.abort(); });
setInterval(() => {
	const old = heard ? Math.floor((Date.now() - heard) / 1000) : 0;
	if (old >= 5 && !document.hidden) say($("banner"), "The gateway does not answer: what you see is " + span(old) + " old.");
	if (old > 20) following?.abort();
}, 1000);
go();
run();
