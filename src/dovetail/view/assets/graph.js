// The fused graph on a canvas, with a map of the whole, levels of detail and colours.

const graph = { surface: null, edges: [], over: -1 };

function graphView() {
  const canvas = h("canvas", { id: "graph", tabindex: "0", role: "application",
    "aria-label": "Fused graph. Arrow keys move along it, plus and minus zoom, 0 shows all, Enter opens details." });
  const map = h("canvas", { "aria-hidden": "true" });
  const view = h("div", { class: "view" }, canvas,
    h("div", { class: "overlay top" }, detailSwitch(), colourSwitch()),
    h("div", { class: "minimap" }, map),
    h("div", { class: "overlay legend", id: "legend" }),
    h("div", { class: "overlay corner" },
      h("button", { class: "square", title: "Zoom in (+)", "aria-label": "Zoom in", click: () => graph.surface.zoom(1.3) }, "+"),
      h("button", { class: "square", title: "Zoom out (−)", "aria-label": "Zoom out", click: () => graph.surface.zoom(1 / 1.3) }, "−"),
      h("button", { class: "square", title: "Show all (0)", "aria-label": "Show all", click: () => graph.surface.fit() }, "⤢")));
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
  map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); mapTo(event, map); });
  map.addEventListener("pointermove", (event) => event.buttons && mapTo(event, map));
  on("select", (from) => { if (from !== "graph" && state.step >= 0) reveal(state.step); graph.surface.draw(); });
  on("find", () => graph.surface.draw());
  on("theme", () => graph.surface.draw());
  on("colour", () => { byId("legend").replaceChildren(...legend()); graph.surface.draw(); });
  requestAnimationFrame(() => { graph.surface.resize(); showDetail(0, -1); });
  return view;
}

const current = () => doc.views[state.view];

function detailSwitch() {
  const names = { kernels: "Kernels" };
  const box = h("div", { class: "segments", role: "group", "aria-label": "Level of detail" }, h("span", {}, "Show"),
    doc.views.map((v, n) => h("button", { "aria-pressed": n === 0, title: v.name, click: () => showDetail(n, -1) },
      `${names[v.name] || (n === doc.views.length - 1 && n > 1 ? "Stages" : n === 1 ? "Blocks" : "Parts")} ${v.nodes.filter((b) => b.kind === "steps").length}`)));
  on("detail", () => [...box.querySelectorAll("button")].forEach((b, n) => b.setAttribute("aria-pressed", n === state.view)));
  return box;
}

function colourSwitch() {
  const box = h("div", { class: "segments", role: "group", "aria-label": "Colours" }, h("span", {}, "Colour"),
    Object.entries(MODES).filter(([, mode]) => mode.on).map(([name, mode]) =>
      h("button", { "data-mode": name, "aria-pressed": name === state.colour, click: () => { state.colour = name; emit("colour"); } }, mode.title)));
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

function bounds(pieces) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const piece of pieces) {
    for (let i = 0; i < piece.length; i += 2) {
      box[0] = Math.min(box[0], piece[i]); box[1] = Math.min(box[1], piece[i + 1]);
      box[2] = Math.max(box[2], piece[i]); box[3] = Math.max(box[3], piece[i + 1]);
    }
  }
  return box;
}

/** The course of an edge: smooth within a column, with round corners between columns. */
function course(pieces) {
  const line = new Path2D();
  pieces.forEach((p, n) => {
    if (n === 0) line.moveTo(p[0], p[1]);
    for (let i = 2; i < p.length; i += 2) {
      const [x0, y0, x1, y1] = [p[i - 2], p[i - 1], p[i], p[i + 1]];
      if (n % 2) {
        if (i + 2 < p.length) line.arcTo(x1, y1, p[i + 2], p[i + 3], 7);
        else line.lineTo(x1, y1);
      } else if (Math.abs(x1 - x0) < 1) line.lineTo(x1, y1);
      else line.bezierCurveTo(x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1);
    }
  });
  return line;
}

function chosenNode() {
  if (state.node !== null) return state.node;
  let step = state.step;
  while (step >= 0 && !current().boxOf.has(step)) step = steps[step].parent;
  return step >= 0 ? current().boxOf.get(step) : -1;
}

function paintGraph(c, { scale }) {
  const view = current();
  const seen = graph.surface.seen();
  const chosen = chosenNode();
  const outside = (x0, y0, x1, y1) => x1 < seen.left || x0 > seen.right || y1 < seen.top || y0 > seen.bottom;
  c.lineJoin = "round";
  c.strokeStyle = css("edge");
  c.lineWidth = Math.max(1.2, 0.6 / scale);
  c.globalAlpha = state.found ? 0.45 : 1;
  const marked = [];
  for (const edge of graph.edges) {
    if (edge.from === chosen || edge.to === chosen) { marked.push(edge); continue; }
    if (outside(...edge.box)) continue;
    c.stroke((edge.line ??= course(edge.path)));
  }
  c.globalAlpha = 1;
  c.lineWidth = Math.max(2.2, 1.2 / scale);
  for (const edge of marked) {
    c.strokeStyle = css(edge.to === chosen ? "in" : "out");
    c.stroke((edge.line ??= course(edge.path)));
  }
  const fine = scale > 0.4;
  view.nodes.forEach((node, n) => {
    if (outside(node.x, node.y, node.x + view.node_width, node.y + view.node_height)) return;
    c.globalAlpha = state.found && !(node.steps || []).some((id) => state.found.has(id)) ? 0.22 : 1;
    if (node.kind === "steps") paintBox(c, node, view, fine, scale);
    else paintPort(c, node, view, fine);
    if (n === chosen || n === graph.over) {
      c.globalAlpha = 1;
      c.strokeStyle = css(n === chosen ? "accent" : "muted");
      c.lineWidth = Math.max(n === chosen ? 2.5 : 1.5, 1.5 / scale);
      c.beginPath();
      c.roundRect(node.x - 2, node.y - 2, view.node_width + 4, view.node_height + 4, 10);
      c.stroke();
    }
  });
  c.globalAlpha = 1;
}

/** What a box shows: of several steps, their sum and the colour of the slowest. */
function summary(node) {
  if (node.sum) return node.sum;
  const mine = node.steps.map((id) => steps[id]);
  const first = mine.reduce((a, b) => ((b.us || 0) > (a.us || 0) ? b : a));
  const us = timed ? mine.reduce((t, x) => t + (x.us || 0), 0) : null;
  const one = mine.length === 1;
  node.sum = {
    slowest: first, us, share: us === null ? null : us / (doc.totals.profile.total_us || 1),
    title: one ? first.title : tail(node.label || first.place, 24), sub: one ? tail(scope(first.place), 18) : plural(mine.length, "kernel"),
    tag: one ? first.tactic : [...new Set(mine.map((x) => x.base))].slice(0, 2).join(", "),
  };
  return node.sum;
}

/** The time of the slowest box of this level. */
function slowest() {
  const view = current();
  return (view.slowest ??= Math.max(...view.nodes.map((node) => (node.steps ? summary(node).us || 0 : 0)), 1e-9));
}

const boxColour = (sum) => (state.colour === "time" && sum.slowest.kind === "kernel" ? mixed(["heat0", "heat1", "heat2"], Math.sqrt((sum.us || 0) / slowest())) : colourOf(sum.slowest));

function paintBox(c, node, view, fine, scale) {
  const sum = summary(node);
  const [w, hgt] = [view.node_width, view.node_height];
  const several = node.steps.length > 1;
  const colour = boxColour(sum);
  if (!fine) {
    c.fillStyle = colour;
    c.fillRect(node.x, node.y, w, hgt);
    return;
  }
  if (several) {
    c.fillStyle = css("card");
    c.strokeStyle = css("line");
    c.lineWidth = 1;
    c.beginPath();
    c.roundRect(node.x + 4, node.y + 4, w, hgt, 8);
    c.fill();
    c.stroke();
  }
  c.fillStyle = css("card");
  c.strokeStyle = css("line");
  c.lineWidth = 1;
  c.beginPath();
  c.roundRect(node.x, node.y, w, hgt, 8);
  c.fill();
  c.stroke();
  c.fillStyle = colour;
  c.beginPath();
  c.roundRect(node.x, node.y, 7, hgt, [8, 0, 0, 8]);
  c.fill();
  c.textBaseline = "alphabetic";
  c.fillStyle = css("text");
  c.font = "600 12.5px system-ui, sans-serif";
  const right = sum.us === null ? "" : time(sum.us);
  const room = right ? c.measureText(right).width + 10 : 0;
  if (right) {
    c.textAlign = "right";
    c.fillText(right, node.x + w - 10, node.y + 20);
  }
  c.textAlign = "left";
  c.fillText(clipped(c, sum.title, w - 28 - room), node.x + 16, node.y + 20);
  c.font = "11px system-ui, sans-serif";
  c.fillStyle = css("muted");
  c.textAlign = "right";
  const tag = clipped(c, sum.tag, 66);
  c.fillText(tag, node.x + w - 10, node.y + 37);
  const used = c.measureText(tag).width;
  c.textAlign = "left";
  c.fillText(clipped(c, sum.sub, w - 34 - used), node.x + 16, node.y + 37);
  if (sum.us === null) return;
  c.fillStyle = css("soft");
  c.fillRect(node.x + 16, node.y + hgt - 11, w - 26, 4);
  c.fillStyle = colour;
  c.fillRect(node.x + 16, node.y + hgt - 11, Math.max(1, (w - 26) * Math.min(1, sum.us / slowest())), 4);
}

function paintPort(c, node, view, fine) {
  const value = doc.values[node.value];
  const [w, hgt] = [view.node_width, view.node_height];
  c.fillStyle = css(fine ? "soft" : "faint");
  c.strokeStyle = css("faint");
  c.lineWidth = 1;
  c.beginPath();
  c.roundRect(node.x, node.y + 7, w, hgt - 14, (hgt - 14) / 2);
  c.fill();
  if (!fine) return;
  c.stroke();
  c.textAlign = "center";
  c.fillStyle = css("text");
  c.font = "600 12px system-ui, sans-serif";
  c.fillText(clipped(c, `${node.kind} ${value.name}`, w - 30), node.x + w / 2, node.y + 27);
  c.fillStyle = css("muted");
  c.font = "11px system-ui, sans-serif";
  c.fillText(clipped(c, `${value.dtype} ${shape(value.shape)}`, w - 30), node.x + w / 2, node.y + 41);
}

const widths = new Map();
/** A text cut to a width. */
function clipped(c, text, width) {
  const key = `${c.font}|${Math.round(width)}|${text}`;
  if (!widths.has(key)) {
    let found = text;
    while (found.length > 1 && c.measureText(found === text ? found : `${found}…`).width > width) found = found.slice(0, -1);
    widths.set(key, found === text ? text : `${found}…`);
  }
  return widths.get(key);
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
  if (graph.over !== (node ? n : -1)) { graph.over = node ? n : -1; graph.surface.draw(); }
  graph.surface.canvas.style.cursor = node ? "pointer" : "grab";
  if (!node) return tip(null);
  if (node.kind !== "steps") {
    const value = doc.values[node.value];
    return tip(event, h("b", {}, value.name), h("div", { class: "muted" }, `${node.kind} · ${value.dtype} ${shape(value.shape)}`));
  }
  if (node.steps.length === 1) return stepTip(event, steps[node.steps[0]]);
  const sum = summary(node);
  tip(event, h("b", {}, node.label), h("div", { class: "muted" }, `${plural(node.steps.length, "kernel")} · ${time(sum.us)} · double click shows them`));
}

/** Bring a step into view, on the level that is shown. */
function reveal(step) {
  const n = chosenNode();
  const view = current();
  const node = view.nodes[n];
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
    const next = n < 0 ? 0 : event.key === "ArrowUp" ? view.edges.find((e) => e.to === n)?.from
      : event.key === "ArrowDown" ? view.edges.find((e) => e.from === n)?.to : beside(view, n, event.key === "ArrowRight" ? 1 : -1);
    if (next !== undefined && next >= 0) { chooseNode(next, "graph"); reveal(); }
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
