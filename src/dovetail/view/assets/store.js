// The document of the engine, what follows from it, and what the user has chosen.

const doc = JSON.parse(byId("document").textContent);
const steps = doc.steps;
const timed = doc.totals.profile !== null;

let sourceTexts = null;
/** The text of a kernel; sources are read when the first one is asked for. */
function sourceOf(entry) {
  sourceTexts ??= JSON.parse(byId("sources").textContent);
  return sourceTexts[entry] || "";
}

const unnamed = (value) => value.name.includes("~"); // memory that a tactic's own kernels share

steps.forEach((step, id) => {
  const group = doc.groups[step.group];
  step.id = id;
  step.base = step.kind === "kernel" ? step.tactic.split(".")[0] : step.kind;
  step.part = step.kind === "kernel" ? (step.tactic.split(".")[1] ?? "") : "";
  const ops = step.kind === "kernel" && group ? group.ops : [step.kind === "kernel" ? step.tactic : step.kernel];
  step.title = step.label = brief(ops);
  step.place = step.nodes.length ? step.nodes[0] : "added by the compiler";
  step.intensity = step.bytes ? step.flops / step.bytes : 0;
  step.gflops = step.us ? step.flops / step.us / 1e3 : null;
  step.gigabytes = step.us ? step.bytes / step.us / 1e3 : null;
  step.roof = step.us && step.roof_us !== null ? step.roof_us / step.us : null;
});

// Kernels that one tactic takes for the same nodes say which of them they are.
for (let first = 0, last = 0; first < steps.length; first = last) {
  const same = (other) => other && other.group >= 0 && other.group === steps[first].group && other.parent === steps[first].parent;
  for (last = first + 1; same(steps[last]); last++);
  for (let id = first; last - first > 1 && id < last; id++) steps[id].label += ` (${id - first + 1} of ${last - first})`;
}
const most = Math.max(...steps.map((step) => step.us || 0), 1e-9);

function brief(ops) {
  const seen = [];
  for (const op of ops) if (seen[seen.length - 1] !== op) seen.push(op);
  return seen.length > 4 ? `${seen.slice(0, 3).join(" · ")} · +${seen.length - 3}` : seen.join(" · ");
}

// What can be found by name, made when the first search asks.
let haystacks = null;
function haystack(id) {
  haystacks ??= steps.map((step) =>
    [
      step.kernel,
      step.tactic,
      step.label,
      step.dtype,
      ...step.nodes,
      ...step.constants,
      ...[...step.reads, ...step.writes].map((v) => doc.values[v].name),
    ]
      .join("\n")
      .toLowerCase(),
  );
  return haystacks[id];
}

const state = { tab: "graph", step: -1, node: null, view: 0, colour: timed ? "time" : "tactic", query: "", found: null };
const listeners = {};
const on = (event, call) => (listeners[event] ??= []).push(call);
const emit = (event, ...values) => (listeners[event] || []).forEach((call) => call(...values));

/** Select a step; `from` is the view in which it was done. */
function select(step, from) {
  state.step = step;
  state.node = null;
  emit("select", from);
  if (step >= 0) say(`${steps[step].label}, ${steps[step].tactic}, ${time(steps[step].us)}, ${steps[step].place}`);
}

/** Select a box of the graph that is no single step. */
function selectNode(node, from) {
  state.step = -1;
  state.node = node;
  emit("select", from);
}

/** Look for a text in names of kernels, nodes, values, tactics. */
function find(query) {
  state.query = query.trim().toLowerCase();
  const words = state.query.split(/\s+/).filter(Boolean);
  state.found = words.length ? new Set(steps.filter((s) => words.every((w) => haystack(s.id).includes(w))).map((s) => s.id)) : null;
  emit("find");
}

function say(text) {
  byId("said").textContent = text;
}

/** A box beside the pointer; null hides it. */
function tip(event, ...contents) {
  const box = byId("tip");
  box.hidden = !event;
  if (!event) return;
  box.replaceChildren(...contents);
  const left = event.clientX + 16 + box.offsetWidth > innerWidth ? event.clientX - box.offsetWidth - 12 : event.clientX + 16;
  const top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8);
  Object.assign(box.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
}

function stepTip(event, step) {
  const facts = [step.tactic, step.dtype, time(step.us), step.share === null ? "" : percent(step.share)].filter(Boolean).join(" · ");
  tip(event, h("b", {}, step.label), h("div", {}, step.place), h("div", { class: "muted" }, facts));
}
