// The fused graph on a canvas, with a map of the whole, levels of detail and colours.

const graph = { surface: null, edges: [], over: -1 };

function graphView() {
  const canvas = h("canvas", {
    id: "graph",
    tabindex: "0",
    role: "application",
    "aria-label": "Fused graph. Arrow keys move along it, plus and minus zoom, 0 shows all, Enter opens details.",
  });
  const map = h("canvas", { "aria-hidden": "true" });
  const view = h(
    "div",
    { class: "view" },
    canvas,
    h("div", { class: "overlay top" }, detailSwitch(), colourSwitch()),
    h("div", { class: "minimap" }, map),
    h("div", { class: "overlay legend", id: "legend" }),
    h(
      "div",
      { class: "overlay corner" },
      h("button", { class: "square", title: "Zoom in (+)", "aria-label": "Zoom in", click: () => graph.surface.zoom(1.3) }, "+"),
      h("button", { class: "square", title: "Zoom out (−)", "aria-label": "Zoom out", click: () => graph.surface.zoom(1 / 1.3) }, "−"),
      h("button", { class: "square", title: "Show all (0)", "aria-label": "Show all", click: () => graph.surface.fit() }, "⤢"),
    ),
  );
  graph.surface = new Surface(canvas, paintGraph, {
    click: (event, [x, y]) => chooseNode(nodeAt(x, y), "graph"),
    hover: (event, at) => hoverGraph(event, at && nodeAt(...at)),
    moved: () => paintMap(map),
  });
  canvas.addEventListener("keydown", graphKey);
  canvas.addEventListener("dblclick", (event) => {
    const node = current().nodes[nodeAt(...graph.surface.world(event))];
    if (node?.steps?.length > 1) showDetail(0, node.steps[0]);
  });
  map.addEventListener("pointerdown", (event) => {
    map.setPointerCapture(event.pointerId);
    mapTo(event, map);
  });
  map.addEventListener("pointermove", (event) => event.buttons && mapTo(event, map));
  on("select", (from) => {
    if (from !== "graph" && state.step >= 0) requestAnimationFrame(() => reveal()); // the panel takes its room first
    graph.surface.draw();
  });
  on("find", () => graph.surface.draw());
  on("theme", () => graph.surface.draw());
  on("colour", () => {
    byId("legend").replaceChildren(...legend());
    graph.surface.draw();
  });
  requestAnimationFrame(() => {
    graph.surface.resize();
    showDetail(0, -1);
  });
  return view;
}

const current = () => doc.views[state.view];

function detailSwitch() {
  const names = { kernels: "Kernels" };
  const box = h(
    "div",
    { class: "segments", role: "group", "aria-label": "Level of detail" },
    h("span", {}, "Show"),
    doc.views.map((v, n) =>
      h(
        "button",
        { "aria-pressed": n === 0, title: v.name, click: () => showDetail(n, -1) },
        `${names[v.name] || (n === doc.views.length - 1 && n > 1 ? "Stages" : n === 1 ? "Blocks" : "Parts")} ${v.nodes.filter((b) => b.kind === "steps").length}`,
      ),
    ),
  );
  on("detail", () => [...box.querySelectorAll("button")].forEach((b, n) => b.setAttribute("aria-pressed", n === state.view)));
  return box;
}

function colourSwitch() {
  const box = h(
    "div",
    { class: "segments", role: "group", "aria-label": "Colours" },
    h("span", {}, "Colour"),
    Object.entries(MODES)
      .filter(([, mode]) => mode.on)
      .map(([name, mode]) =>
        h(
          "button",
          {
            "data-mode": name,
            "aria-pressed": name === state.colour,
            click: () => {
              state.colour = name;
              emit("colour");
            },
          },
          mode.title,
        ),
      ),
  );
  on("colour", () => [...box.querySelectorAll("button")].forEach((b) => b.setAttribute("aria-pressed", b.dataset.mode === state.colour)));
  return box;
}

/** Show a level of detail, and in it a step (-1: all). */
function showDetail(level, step) {
  state.view = level;
  const view = current();
  view.boxOf ??= new Map(view.nodes.flatMap((node, n) => (node.steps || []).map((id) => [id, n])));
  graph.edges = view.edges.map((edge) => ({ ...edge, box: bounds(edge.path), line: null }));
  Object.assign(graph.surface, { width: view.width, height: view.height });
  emit("detail");
  emit("colour");
  if (step >= 0) select(step, "level");
  else graph.surface.fit();
}

function nodeAt(x, y) {
  const view = current();
  return view.nodes.findIndex((node) => x >= node.x && x <= node.x + view.node_width && y >= node.y && y <= node.y + view.node_height);
}

function chooseNode(n, from) {
  const node = current().nodes[n];
  if (!node) select(-1, from);
  else if (node.kind === "steps" && node.steps.length === 1) select(node.steps[0], from);
  else selectNode(n, from);
}

function hoverGraph(event, n) {
  const node = n === null ? null : current().nodes[n];
  if (graph.over !== (node ? n : -1)) {
    graph.over = node ? n : -1;
    graph.surface.draw();
  }
  graph.surface.canvas.style.cursor = node ? "pointer" : "grab";
  if (!node) return tip(null);
  if (node.kind !== "steps") {
    const value = doc.values[node.value];
    return tip(event, h("b", {}, value.name), h("div", { class: "muted" }, `${node.kind} · ${value.dtype} ${shape(value.shape)}`));
  }
  if (node.steps.length === 1) return stepTip(event, steps[node.steps[0]]);
  const sum = summary(node);
  tip(
    event,
    h("b", {}, node.label),
    h("div", { class: "muted" }, `${plural(node.steps.length, "kernel")} · ${time(sum.us)} · double click shows them`),
  );
}

/** Bring what is selected into view, on the level that is shown. */
function reveal() {
  const n = chosenNode();
  const view = current();
  const node = view.nodes[n];
  graph.surface.resize();
  if (!node || !graph.surface.w) return;
  graph.surface.centre(node.x + view.node_width / 2, node.y + view.node_height / 2, Math.max(graph.surface.scale, 0.8));
}

/** Arrow keys: up and down along edges, left and right to what lies beside. */
function graphKey(event) {
  const view = current();
  const n = chosenNode();
  const pan = { ArrowUp: [0, 60], ArrowDown: [0, -60], ArrowLeft: [60, 0], ArrowRight: [-60, 0] }[event.key];
  if (pan && event.shiftKey) graph.surface.pan(...pan);
  else if (pan) {
    const next =
      n < 0
        ? 0
        : event.key === "ArrowUp"
          ? view.edges.find((e) => e.to === n)?.from
          : event.key === "ArrowDown"
            ? view.edges.find((e) => e.from === n)?.to
            : beside(view, n, event.key === "ArrowRight" ? 1 : -1);
    if (next !== undefined && next >= 0) {
      chooseNode(next, "graph");
      reveal();
    }
  } else if (event.key === "Enter" && n >= 0) byId("panel").querySelector("h2")?.focus();
  else return;
  event.preventDefault();
}

function beside(view, n, direction) {
  const me = view.nodes[n];
  const near = view.nodes.map((node, i) => [i, (node.x - me.x) * direction, Math.abs(node.y - me.y)]).filter(([, dx]) => dx > 0);
  near.sort((a, b) => a[1] + 4 * a[2] - b[1] - 4 * b[2]);
  return near.length ? near[0][0] : -1;
}
