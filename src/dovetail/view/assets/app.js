// The page: header, tabs, search, keys.

const VIEWS = {
  graph: { title: "Graph", make: graphView, count: doc.views[0].nodes.filter((n) => n.kind === "steps").length },
  kernels: { title: "Kernels", make: kernelTable, count: steps.length },
  roofline: { title: "Roofline", make: rooflineView },
  memory: { title: "Memory", make: memoryView },
  accuracy: { title: "Accuracy", make: accuracyView },
  decisions: { title: "Decisions", make: decisionsView, count: doc.not_fused.length + doc.host_steps.length + doc.copies.length },
  weights: { title: "Weights", make: weightsView, count: doc.constants.length },
};

function tile(name, value, note, mood = "") {
  return h(
    "div",
    { class: `tile ${mood}`, title: [name, note].filter(Boolean).join(": ") },
    h("div", { class: "name" }, name),
    h("div", { class: "value" }, value),
    h("div", { class: "note" }, note),
  );
}

function header() {
  const t = doc.totals;
  const e = doc.engine;
  const sizes = Object.entries(e.sizes)
    .map(([name, n]) => `${name}=${n}`)
    .join(", ");
  const asked = `asked for ${doc.requested.device} ${doc.requested.precision}, got ${doc.actual.target} ${doc.actual.precision}${doc.actual.tuned === false ? ", not tuned" : ""}`;
  const ports = `${e.inputs.map((v) => `${v.name} ${v.dtype}${shape(v.shape)}`).join(", ")} → ${e.outputs.map((v) => `${v.name} ${v.dtype}${shape(v.shape)}`).join(", ")}`;
  const latency = t.latency && (t.latency.device_median_ms ?? t.latency.median_ms);
  const c = doc.certificate;
  const checked = c.level && c.level !== "off";
  const error = checked && c.engine.checked ? Math.max(...c.engine.outputs.map((o) => o.relative_l2), 0) : null;
  byId("head").replaceChildren(
    h(
      "div",
      { class: "title" },
      h("h1", {}, doc.title),
      h("span", { class: "sub", title: ports }, [asked, sizes && `at ${sizes}`, ports].filter(Boolean).join("  ·  ")),
      h("button", { class: "square", title: "Light or dark", "aria-label": "Light or dark", click: toggleTheme }, "◐"),
    ),
    h(
      "div",
      { class: "tiles" },
      latency
        ? tile(
            "Latency, median",
            time(latency * 1e3),
            `p99 ${time((t.latency.device_p99_ms ?? t.latency.p99_ms) * 1e3)}, ${t.profile.device === "cpu" ? plural(t.profile.threads, "thread") : t.profile.device}`,
          )
        : tile("Latency", "not run", t.not_run, "warn"),
      tile(
        "Arithmetic",
        t.flops ? flops(t.flops) : "none",
        latency && t.flops ? `${short(t.flops / latency / 1e6)} GFLOP/s` : Object.keys(t.flops_by_dtype).join(", "),
      ),
      latency && t.roof_us !== null && tile("Of the roofline", percent(t.roof_us / (latency * 1e3)), `least time ${time(t.roof_us)}`),
      tile(
        "Kernels",
        [String(t.steps), h("small", {}, ` steps`)],
        `${t.kernels} distinct, ${t.host_calls || "none"} on host`,
        t.host_calls ? "warn" : "",
      ),
      tile("Bytes moved", bytes(t.bytes), "caches left aside"),
      tile(
        "Activations",
        bytes(doc.memory.total_bytes),
        doc.memory.bound_bytes ? `×${(doc.memory.total_bytes / doc.memory.bound_bytes).toFixed(2)} of the lower bound` : "",
      ),
      tile("Weights", bytes(t.weight_bytes), plural(doc.constants.length, "tensor")),
      checked
        ? tile(
            "Accuracy",
            error === null ? "kernels only" : [error.toExponential(1), h("small", {}, " rel. L2")],
            `${c.kernels.checked} of ${c.kernels.distinct} fusions checked`,
            c.stale ? "warn" : c.ok === false ? "bad" : "good",
          )
        : tile("Accuracy", "not verified", "built with --verify off", "warn"),
    ),
  );
}

function tabs() {
  const nav = byId("tabs");
  const buttons = Object.entries(VIEWS).map(([name, view]) =>
    h(
      "button",
      { role: "tab", id: `tab-${name}`, "aria-controls": "main", click: () => show(name) },
      view.title,
      view.count !== undefined && h("span", { class: "count" }, view.count.toLocaleString("en")),
    ),
  );
  const input = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search nodes, kernels, values  ( / )",
    "aria-label": "Search nodes, kernels, tactics and values",
    spellcheck: "false",
    input: (event) => find(event.target.value),
    keydown: searchKey,
  });
  const hits = h("span", { class: "hits", id: "hits" });
  nav.replaceChildren(...buttons, h("div", { class: "search" }, hits, input));
  nav.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || event.target.getAttribute("role") !== "tab") return;
    const names = Object.keys(VIEWS);
    show(names[(names.indexOf(state.tab) + move + names.length) % names.length]);
    byId(`tab-${state.tab}`).focus();
  });
  on("find", () => {
    hits.textContent = state.found ? plural(state.found.size, "hit") : "";
  });
}

/** Enter goes through what was found, backwards with Shift. */
function searchKey(event) {
  if (event.key === "Escape") {
    event.target.value = "";
    find("");
    event.target.blur();
  }
  if (event.key !== "Enter" || !state.found?.size) return;
  const ids = [...state.found];
  const at = ids.indexOf(state.step);
  select(ids[(at + (event.shiftKey ? ids.length - 1 : 1) + (at < 0 && event.shiftKey ? 1 : 0)) % ids.length], "search");
}

function show(name) {
  state.tab = name;
  for (const [other, view] of Object.entries(VIEWS)) {
    byId(`tab-${other}`).setAttribute("aria-selected", other === name);
    byId(`tab-${other}`).tabIndex = other === name ? 0 : -1;
    if (view.element) view.element.hidden = other !== name;
  }
  const view = VIEWS[name];
  if (!view.element) byId("main").append((view.element = view.make()));
  remember();
}

/** The address names the view and the step, so that it can be sent to others. */
function remember() {
  const hash = `#${state.tab}${state.step >= 0 ? `/${state.step}` : ""}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  forgetColours();
  emit("theme");
  if (byId("legend")) emit("colour");
}
function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "Escape" && !typing) return select(-1, "key");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = Number(event.key);
  if (event.key === "/") {
    event.preventDefault();
    byId("search").focus();
  } else if (event.key === "+" || event.key === "=") graph.surface?.zoom(1.3);
  else if (event.key === "-") graph.surface?.zoom(1 / 1.3);
  else if (event.key === "0") graph.surface?.fit();
  else if (digit >= 1 && digit <= Object.keys(VIEWS).length) show(Object.keys(VIEWS)[digit - 1]);
});

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
header();
tabs();
on("select", () => {
  showPanel();
  remember();
});
const [tab, step] = location.hash.slice(1).split("/");
show("graph");
if (VIEWS[tab] && tab !== "graph") show(tab);
requestAnimationFrame(() => {
  if (step !== undefined && steps[Number(step)]) select(Number(step), "address");
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  });
});
