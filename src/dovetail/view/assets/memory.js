// The memory plan: buffers as rectangles, from the step that fills them to the last that reads them, at their place in the arena.

function memoryView() {
  const plan = doc.memory;
  const plot = h("div", { class: "plot" });
  const view = h(
    "div",
    { class: "view chart" },
    h("h2", {}, `Activations: ${bytes(plan.total_bytes)}`),
    h(
      "p",
      {},
      `${plural(plan.buffers.length, "buffer")} share one arena over ${plural(steps.length, "step")}. No placement needs less than ${bytes(plan.bound_bytes)}. Weights take ${bytes(doc.totals.weight_bytes)} more.` +
        (plan.data_dependent ? ` ${plural(plan.data_dependent, "buffer")} whose size depends on data are not shown.` : ""),
    ),
    plot,
  );
  const draw = () => plot.clientWidth && plot.replaceChildren(memoryPlot(plot.clientWidth, plot.clientHeight, plan));
  new ResizeObserver(draw).observe(plot);
  on("select", draw);
  on("theme", draw);
  return view;
}

function memoryPlot(width, height, plan) {
  const pad = { left: 74, right: 16, top: 8, bottom: 92 };
  const total = plan.total_bytes || 1;
  const count = steps.length;
  const px = (step) => pad.left + (step / count) * (width - pad.left - pad.right);
  const py = (offset) => height - pad.bottom - (offset / total) * (height - pad.top - pad.bottom);
  const parts = [];
  for (let i = 0; i <= 4; i++) {
    const y = py((total * i) / 4);
    parts.push(
      s("line", { class: "tick", x1: pad.left, x2: width - pad.right, y1: y, y2: y }),
      s("text", { x: pad.left - 8, y: y + 4, "text-anchor": "end" }, bytes((total * i) / 4)),
    );
  }
  const every = Math.max(1, Math.ceil(count / 16));
  for (let i = 0; i < count; i += every) parts.push(s("text", { x: px(i + 0.5), y: height - 26, "text-anchor": "middle" }, i));
  parts.push(
    s("text", { x: (width + pad.left) / 2, y: height - 8, "text-anchor": "middle" }, "step"),
    s("text", { transform: `translate(12 ${(height - pad.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "offset in the arena"),
  );
  if (state.step >= 0)
    parts.push(
      s("rect", {
        x: px(state.step),
        y: pad.top,
        width: Math.max(1.5, px(1) - px(0)),
        height: height - pad.top - 40,
        fill: css("accent"),
        opacity: 0.22,
      }),
    );
  plan.buffers.forEach((b, n) => {
    const scratch = b.kind === "workspace";
    const mine = state.step >= b.first && state.step <= b.last;
    parts.push(
      s("rect", {
        class: `block ${mine ? "chosen" : ""}`,
        x: px(b.first),
        y: py(b.offset + b.bytes),
        width: Math.max(1, px(b.last + 1) - px(b.first)),
        height: Math.max(0.75, py(b.offset) - py(b.offset + b.bytes)),
        fill: scratch ? css("faint") : PALETTE[n % PALETTE.length],
        rx: 2,
        click: () => select(b.first, "memory"),
        mousemove: (event) =>
          tip(
            event,
            h("b", {}, b.name || (scratch ? "workspace" : "between steps of one tactic")),
            h("div", { class: "muted" }, `${bytes(b.bytes)} at offset ${bytes(b.offset)} · steps ${b.first} to ${b.last}`),
          ),
        mouseleave: () => tip(null),
      }),
    );
  });
  parts.push(...usage(plan, px, height, count));
  return s("svg", { role: "img", "aria-label": "Memory plan", viewBox: `0 0 ${width} ${height}` }, parts);
}

/** Bytes in use at every step, as a strip below. */
function usage(plan, px, height, count) {
  const change = new Array(count + 1).fill(0);
  for (const b of plan.buffers) {
    change[b.first] += b.bytes;
    change[b.last + 1] -= b.bytes;
  }
  let level = 0;
  const levels = change.slice(0, count).map((c) => (level += c));
  const peak = Math.max(...levels, 1);
  const [base, tall] = [height - 42, 38];
  const points = levels.flatMap((v, n) => [`${px(n)},${base - (v / peak) * tall}`, `${px(n + 1)},${base - (v / peak) * tall}`]);
  return [
    s("polygon", { points: [`${px(0)},${base}`, ...points, `${px(count)},${base}`].join(" "), fill: css("accent"), opacity: 0.3 }),
    s("text", { x: px(0) - 8, y: base - tall / 2 + 4, "text-anchor": "end" }, "in use"),
  ];
}
