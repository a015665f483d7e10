// The side panel: all that is known of the selected kernel, host step, scope, input or output.

function showPanel() {
  const panel = byId("panel");
  const node = state.node === null ? null : current().nodes[state.node];
  panel.hidden = state.step < 0 && !node;
  if (panel.hidden) return panel.replaceChildren();
  const contents = state.step >= 0 ? stepPanel(steps[state.step]) : node.kind === "steps" ? scopePanel(node) : portPanel(node);
  panel.replaceChildren(...contents.flat().filter(Boolean));
  panel.scrollTop = 0;
}

function head(title, ...chips) {
  return [
    h(
      "header",
      {},
      h("h2", { tabindex: "-1" }, title),
      h("button", { class: "square", title: "Close (Esc)", "aria-label": "Close", click: () => select(-1, "panel") }, "×"),
    ),
    h("div", { class: "chips" }, chips.filter(Boolean)),
  ];
}

const chip = (text, colour) => h("span", { class: "chip" }, colour && h("span", { class: "swatch", style: { background: colour } }), text);
const fact = (name, value, note) =>
  value && h("div", {}, h("span", { class: "name" }, name), h("span", { class: "value" }, value, note && h("small", {}, ` ${note}`)));

function section(name, count, open, ...contents) {
  return h("details", { open }, h("summary", {}, name, count !== null && h("span", { class: "count" }, count)), contents);
}

function stepPanel(step) {
  const group = doc.groups[step.group];
  const rank = timed && step.us ? 1 + steps.filter((x) => (x.us || 0) > step.us).length : 0;
  return [
    head(
      step.label,
      chip(step.tactic, step.kind === "kernel" ? tacticColour(step.base) : HOST),
      chip(step.dtype),
      step.lane > 0 && chip(`lane ${step.lane}`),
      step.parent >= 0 && chip(`inside of ${steps[step.parent].kernel}`),
      chip(`step ${step.id}`),
    ),
    h(
      "div",
      { class: "facts" },
      fact("Time", step.us === null ? null : time(step.us), `${percent(step.share)}, number ${rank} of ${steps.length}`),
      fact(
        "Of the roofline",
        step.roof === null ? null : percent(step.roof),
        step.roof > 1 ? "data come from caches" : `bound by ${step.bound}`,
      ),
      fact("Arithmetic", step.flops ? flops(step.flops) : "none", step.us && step.flops ? `${short(step.gflops)} GFLOP/s` : ""),
      fact("Bytes", bytes(step.bytes), step.us ? `${short(step.gigabytes)} GB/s` : ""),
      fact("Read / written", `${bytes(step.read)} / ${bytes(step.written)}`),
      fact("Weights", step.weight_bytes ? bytes(step.weight_bytes) : "none", step.intensity ? `${short(step.intensity)} FLOP/byte` : ""),
    ),
    section(
      "ONNX nodes",
      step.nodes.length,
      true,
      step.nodes.length
        ? list(
            step.nodes.map((name) =>
              h("span", {}, mono(name), doc.onnx_ops[name] && h("span", { class: "type" }, ` ${doc.onnx_ops[name]}`)),
            ),
          )
        : h("p", { class: "muted" }, "none: the compiler added this step"),
    ),
    section(
      "Values",
      null,
      true,
      h(
        "ul",
        {},
        step.reads.map((v) => valueItem(v, "reads")),
        step.writes.map((v) => valueItem(v, "writes")),
        step.constants.map((name) => h("li", {}, h("span", { class: "type" }, "weights "), mono(name))),
      ),
    ),
    why(step, group),
    children(step),
    sourceSection(step),
  ];
}

const mono = (text) => h("span", { class: "mono" }, text);
const list = (items) =>
  h(
    "ul",
    {},
    items.map((item) => h("li", {}, item)),
  );
const stepLink = (id) =>
  h(
    "button",
    { class: "link", click: () => select(id, "panel") },
    `${steps[id].label} `,
    h("span", { class: "type" }, tail(steps[id].place, 40)),
  );

function valueItem(number, what) {
  const value = doc.values[number];
  const others =
    what === "reads" ? (value.producer >= 0 ? [value.producer] : []) : steps.filter((x) => x.reads.includes(number)).map((x) => x.id);
  return h(
    "li",
    {},
    h("span", { class: "type" }, `${what} `),
    unnamed(value) ? "scratch between the kernels of this tactic" : mono(value.name),
    h("div", { class: "type" }, unnamed(value) ? bytes(value.bytes) : `${value.dtype} ${shape(value.shape)} · ${bytes(value.bytes)}`),
    others.slice(0, 6).map((id) => h("div", {}, h("span", { class: "type" }, what === "reads" ? "← " : "→ "), stepLink(id))),
  );
}

/** Why this tactic: what else was able and how fast it was, what was not, and what was not fused. */
function why(step, group) {
  if (step.kind !== "kernel") {
    const reasons = doc.host_steps.filter(
      (x) => step.nodes.some((name) => x.node === name || x.node.startsWith(`${name} `)) || x.node === step.place,
    );
    return section(
      "Why not a kernel",
      null,
      true,
      reasons.length
        ? list(reasons.map((x) => x.reason))
        : h("p", { class: "muted" }, "Its operator is control flow or works on the host by nature."),
    );
  }
  if (!group) return null;
  const measured = [...group.measured_us].sort((a, b) => a[1] - b[1]);
  const config = group.config.map(([name, value]) => `${name}=${value}`).join(" ");
  const mine = `${group.tactic} ${config}`.trim();
  const largest = Math.max(...measured.map(([, us]) => us), 1e-9);
  const names = new Set(step.nodes);
  const declined = doc.not_fused.filter((entry) => entry.slice(0, -1).some((text) => names.has(nodeName(text))));
  const kept = doc.kept_in_fp32?.filter((x) => names.has(nodeName(x.node))) || [];
  return [
    section(
      "Tactic",
      null,
      true,
      h(
        "ul",
        {},
        h("li", {}, h("span", { class: "type" }, "chosen "), mono(mine || group.tactic)),
        h("li", {}, h("span", { class: "type" }, "fused "), group.ops.join(" + ")),
        step.dims.length > 0 && h("li", {}, h("span", { class: "type" }, "called with "), mono(step.dims.join(", "))),
      ),
    ),
    section(
      "Candidates",
      measured.length,
      measured.length > 0,
      measured.length
        ? h(
            "div",
            { class: "bars" },
            measured.map(([name, us]) => [
              h("span", { class: "what mono" }, name),
              h("span", { class: `bar ${name === mine ? "chosen" : ""}`, style: { width: `${(100 * us) / largest}%` } }),
              h("span", { class: "us" }, time(us)),
            ]),
          )
        : h("p", { class: "muted" }, "Not measured: this tactic came first by rule."),
    ),
    group.rejected.length > 0 && section("Not able", group.rejected.length, false, list(group.rejected)),
    declined.length > 0 &&
      section(
        "Not fused",
        declined.length,
        true,
        list(
          declined.map((entry) =>
            h("span", {}, mono(entry.slice(0, -1).join(" + ")), h("div", { class: "muted" }, entry[entry.length - 1])),
          ),
        ),
      ),
    kept.length > 0 && section("Kept in fp32", kept.length, true, list(kept.map((x) => x.reason))),
  ];
}

/** The name of a node in a sentence such as "/conv1/Conv (Conv)". */
const nodeName = (text) => String(text).replace(/ \([^()]*\)$/, "");

function children(step) {
  const inside = steps.filter((x) => x.parent === step.id);
  return (
    inside.length > 0 && section("Body", inside.length, true, list(inside.map((x) => h("span", {}, stepLink(x.id), ` ${time(x.us)}`))))
  );
}

function sourceSection(step) {
  if (step.kind !== "kernel") return null;
  const text = sourceOf(step.kernel);
  const others = steps.filter((x) => x.kernel === step.kernel).length - 1;
  return section(
    "Source",
    others ? `${step.kernel}, also of ${plural(others, "other step")}` : step.kernel,
    true,
    text
      ? [
          h(
            "div",
            { class: "chips" },
            h("button", { class: "chip", click: (event) => copy(event, text) }, "Copy"),
            chip(`${text.split("\n").length} lines`),
          ),
          h("pre", { class: "source", tabindex: "0", id: "source" }, highlighted(text)),
        ]
      : h("p", { class: "muted" }, "A call of a library, or an engine that came without sources."),
  );
}

function copy(event, text) {
  const done = () => {
    event.target.textContent = "Copied";
  };
  if (navigator.clipboard && isSecureContext) navigator.clipboard.writeText(text).then(done, () => selectText());
  else selectText();
}

function selectText() {
  getSelection().selectAllChildren(byId("source"));
}

const KEYWORDS =
  "for if else while return static const void int int32_t int64_t uint8_t uint32_t uint64_t float double char long restrict inline typedef " +
  "struct union def in range import from as not and or None True False tl triton";
/** What is coloured in C, or in Python: comments, strings, words, numbers. */
const tokens = (comments) =>
  new RegExp(
    [
      comments,
      /("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')/.source,
      `\\b(${KEYWORDS.replaceAll(" ", "|")})\\b`,
      /\b(\d[\w.]*)\b/.source,
    ].join("|"),
    "g",
  );
const C_TOKENS = tokens(/(\/\/[^\n]*|\/\*[^]*?\*\/)/.source);
const PYTHON_TOKENS = tokens(/(#[^\n]*)/.source);

/** Source text as elements, at most as much as a browser shows at ease. */
function highlighted(text) {
  const shown = text.slice(0, 60000);
  const parts = [];
  let at = 0;
  for (const match of shown.matchAll(/^(@|def )/.test(text) ? PYTHON_TOKENS : C_TOKENS)) {
    parts.push(shown.slice(at, match.index), h("span", { class: "cskn"[[1, 2, 3, 4].findIndex((i) => match[i] !== undefined)] }, match[0]));
    at = match.index + match[0].length;
  }
  parts.push(shown.slice(at), text.length > shown.length ? `\n… ${bytes(text.length - shown.length)} more; Copy gives all` : "");
  return parts;
}

function scopePanel(node) {
  const sum = summary(node);
  const mine = node.steps.map((id) => steps[id]).sort((a, b) => (b.us || 0) - (a.us || 0));
  return [
    head(node.label || "added by the compiler", chip(plural(mine.length, "kernel"))),
    h(
      "div",
      { class: "facts" },
      fact("Time", sum.us === null ? null : time(sum.us), percent(sum.share)),
      fact("Arithmetic", flops(mine.reduce((t, x) => t + x.flops, 0))),
      fact("Bytes", bytes(mine.reduce((t, x) => t + x.bytes, 0))),
    ),
    section(
      "Kernels",
      mine.length,
      true,
      list(mine.map((x) => h("span", {}, stepLink(x.id), h("span", { class: "type" }, ` ${time(x.us)}`)))),
    ),
  ];
}

function portPanel(node) {
  const value = doc.values[node.value];
  const others =
    node.kind === "input"
      ? steps.filter((x) => x.reads.includes(node.value)).map((x) => x.id)
      : value.producer >= 0
        ? [value.producer]
        : [];
  return [
    head(value.name, chip(node.kind), chip(value.dtype)),
    h("div", { class: "facts" }, fact("Shape", shape(value.shape)), fact("Bytes", bytes(value.bytes))),
    section(node.kind === "input" ? "Read by" : "Made by", others.length, true, list(others.map(stepLink))),
  ];
}
