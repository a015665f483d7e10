// Cards: precision and accuracy, and what the build decided.

const card = (title, note, ...contents) => h("section", { class: "cardbox" }, h("h2", {}, title), note && h("p", {}, note), contents);
const wide = (box) => {
  box.classList.add("wide");
  return box;
};

const error = (x) => (Number.isFinite(x) ? x.toExponential(1) : String(x));

/** A table of a card: numbers to the right. */
function small(headings, rows, limit = 400) {
  const right = headings.map(
    (_, n) => rows.length > 0 && rows.every((row) => typeof row[n] === "number" || /^[\d.,e+-]+( [µa-zA-Z/%]+)?$/.test(String(row[n]))),
  );
  return h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        headings.map((name, n) => h("th", { class: right[n] && "right", scope: "col" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.slice(0, limit).map((row) =>
        h(
          "tr",
          {},
          row.map((cell, n) => h("td", { class: right[n] && "right" }, cell)),
        ),
      ),
      rows.length > limit && h("tr", {}, h("td", { colspan: headings.length, class: "muted" }, `… ${rows.length - limit} more`)),
    ),
  );
}

function accuracyView() {
  const all = Object.entries(doc.totals.flops_by_dtype);
  const total = all.reduce((t, [, n]) => t + n, 0) || 1;
  const c = doc.certificate;
  const kept = doc.kept_in_fp32 || [];
  const boxes = [
    card(
      "Precision",
      `Asked for ${doc.requested.precision}, got ${doc.actual.precision}.`,
      small(
        ["arithmetic in", "operations", "share"],
        all.map(([type, n]) => [type, flops(n), percent(n / total)]),
      ),
    ),
  ];
  if (!c.level || c.level === "off")
    boxes.push(
      card("Accuracy", "This engine was built without verification: nothing is known of its errors. `dovetail verify` checks it."),
    );
  else {
    boxes.push(
      card(
        "Accuracy",
        sentence(c.text),
        c.engine.checked &&
          small(
            ["output", "relative L2", "largest difference"],
            c.engine.outputs.map((o) => [mono(o.name), error(o.relative_l2), error(o.max_abs)]),
          ),
        c.engine.checked &&
          h(
            "p",
            {},
            `The whole engine against ${c.engine.against}, ${plural(c.engine.seeds, "seed")}; tolerance ${error(c.engine.tolerance)}.`,
          ),
      ),
    );
    if (c.kernels.worst?.length)
      boxes.push(
        card(
          "Largest errors of kernels",
          `${c.kernels.checked} of ${c.kernels.distinct} distinct fusions were run against the reference.`,
          small(
            ["value", "tactic", "error", "tolerance"],
            c.kernels.worst.map((w) => [mono(w.group), w.tactic, error(w.error), error(w.tolerance)]),
          ),
        ),
      );
    if (c.kernels.not_checked?.length)
      boxes.push(
        card(
          "Not checked",
          null,
          small(
            ["value", "reason"],
            c.kernels.not_checked.map((w) => [mono(w.group), w.reason]),
          ),
        ),
      );
  }
  if (doc.ranges?.measured)
    boxes.push(
      card(
        "Ranges",
        `Measured on ${doc.ranges.inputs}. The largest value is ${short(doc.ranges.peak[1])} (${doc.ranges.peak[0]}); safe in fp16 is ${short(doc.ranges.limit)}.`,
      ),
    );
  if (kept.length)
    boxes.push(
      wide(
        card(
          "Kept in fp32",
          plural(kept.length, "node"),
          small(
            ["node", "reason"],
            kept.map((k) => [mono(k.node), k.reason]),
          ),
        ),
      ),
    );
  return h("div", { class: "view scroll" }, h("div", { class: "cards" }, boxes));
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "");

function decisionsView() {
  const boxes = [];
  const pairs = (entries) =>
    entries.map((entry) => [
      h(
        "span",
        {},
        entry.slice(0, -1).map((x) => h("div", { class: "mono" }, x)),
      ),
      entry[entry.length - 1],
    ]);
  boxes.push(
    card(
      "Host steps",
      doc.host_steps.length ? "These run on the NumPy reference, not in a kernel." : "None: every step of a run is a kernel.",
      doc.host_steps.length > 0 &&
        small(
          ["node", "reason"],
          doc.host_steps.map((x) => [mono(x.node), x.reason]),
        ),
    ),
  );
  boxes.push(
    card(
      "Copies",
      doc.copies.length ? "Moves that no view could stand for." : "None that could have been avoided.",
      doc.copies.length > 0 && small(["value", "reason"], pairs(doc.copies)),
    ),
  );
  if (doc.training?.length)
    boxes.push(
      card(
        "As in training",
        "The model was exported in training mode; export it in evaluation mode.",
        small(
          ["node", "does"],
          doc.training.map((x) => [mono(x.node), x.reason]),
        ),
      ),
    );
  const b = doc.branches;
  if (b?.lanes)
    boxes.push(
      card(
        "Branches",
        `${b.lanes === 1 ? "One kernel after the other" : `Up to ${b.lanes} kernels beside each other`}: ${b.reason}.`,
        b.measured_us?.length > 0 &&
          small(
            ["variant", "time"],
            b.measured_us.map(([what, us]) => [what, time(us)]),
          ),
      ),
    );
  if (doc.guards?.length)
    boxes.push(
      card(
        "Values that the build relied on",
        "A refit must keep these weights.",
        small(
          ["weight", "rewrite", "value"],
          doc.guards.map(([w, why, shown]) => [mono(w), why, shown]),
        ),
      ),
    );
  boxes.push(
    card(
      "Build",
      doc.engine.model,
      small(
        ["stage", "seconds"],
        Object.entries(doc.engine.build_seconds)
          .filter(([, x]) => x >= 0.001)
          .sort((x, y) => y[1] - x[1])
          .map(([stage, x]) => [stage, short(x)]),
      ),
      h(
        "p",
        {},
        Object.entries(doc.engine.versions)
          .map(([name, v]) => `${name} ${v}`)
          .join(", "),
      ),
    ),
  );
  if (doc.rules.length)
    boxes.push(
      card(
        "Rewrite rules",
        null,
        small(
          ["what they did"],
          doc.rules.map((line) => [line]),
        ),
      ),
    );
  if (doc.engine.symbols.length)
    boxes.push(
      card(
        "Shape symbols",
        "Times, memory and arithmetic are for the sizes given here.",
        small(
          ["symbol", "from", "to", "here"],
          doc.engine.symbols.map(([n, low, high]) => [n, low, high ?? "no bound", doc.engine.sizes[n]]),
        ),
      ),
    );
  if (doc.engine.plugins.length)
    boxes.push(
      card(
        "Plugins",
        null,
        small(
          ["plugin", "version"],
          doc.engine.plugins.map((p) => [`${p.namespace || ""} ${p.name}`, p.version]),
        ),
      ),
    );
  boxes.push(
    wide(
      card(
        "Not fused",
        `${plural(doc.not_fused.length, "pair")} of neighbours that stayed apart, with the reason.`,
        small(["nodes", "reason"], pairs(doc.not_fused)),
      ),
    ),
  );
  return h("div", { class: "view scroll" }, h("div", { class: "cards" }, boxes));
}

function weightsView() {
  const columns = [
    { name: "Weight", width: 260, stretch: 1, value: (w) => w.name },
    { name: "Type", width: 70, value: (w) => w.dtype },
    { name: "Shape", width: 200, value: (w) => w.shape.length, cell: (w) => shape(w.shape) },
    { name: "Bytes", width: 110, right: true, value: (w) => w.bytes, cell: (w) => bytes(w.bytes) },
    {
      name: "Share",
      width: 160,
      right: true,
      value: (w) => w.bytes,
      cell: (w) => meter(w.bytes / (doc.totals.weight_bytes || 1), "var(--accent)"),
    },
  ];
  const table = new Table({ columns, rows: doc.constants, label: "Weights", sort: 3, descending: true });
  on("find", () => table.filter(state.query && ((w) => w.name.toLowerCase().includes(state.query))));
  return h(
    "div",
    { class: "view grid" },
    h(
      "div",
      { class: "lead muted" },
      `${plural(doc.constants.length, "weight")} of the model, ${bytes(doc.totals.weight_bytes)}. The engine packs them when it is loaded.`,
    ),
    table.box,
  );
}
