// The roofline: each kernel's arithmetic per byte against the speed that it reaches, below what the machine can do.

function rooflineView() {
  const view = h("div", { class: "view chart" });
  const known = steps.filter((x) => x.us && x.flops && x.bytes);
  if (!MODES.roof.on || !known.length) {
    const why = !timed
      ? doc.totals.not_run
      : doc.machine === null
        ? "the rates of this GPU are not known"
        : "no kernel of this engine computes";
    view.append(h("h2", {}, "Roofline"), h("p", {}, `Not drawn: ${why}.`));
    return view;
  }
  const m = doc.machine;
  const plot = h("div", { class: "plot" });
  const rates = Object.entries(m.gflops).filter(([type]) => type === "f32" || known.some((x) => x.dtype === type));
  view.append(
    h("h2", {}, `Roofline of ${m.name}`),
    h(
      "p",
      {},
      `${rates.map(([type, rate]) => `${short(rate)} GFLOP/s in ${type}`).join(", ")} and ${short(m.gigabytes)} GB/s from memory (${m.source}${m.threads ? ` on ${plural(m.threads, "thread")}` : ""}). ` +
        "A dot is a kernel, its area the time that it takes. Above the slope, data come from caches; above the flat, a faster algorithm than the operations counted (Winograd).",
    ),
    plot,
  );
  const draw = () => plot.clientWidth && plot.replaceChildren(rooflinePlot(plot.clientWidth, plot.clientHeight, known, rates, m.gigabytes));
  new ResizeObserver(draw).observe(plot);
  for (const event of ["select", "find", "theme", "colour"]) on(event, draw);
  return view;
}

function rooflinePlot(width, height, known, rates, bandwidth) {
  const pad = { left: 58, right: 24, top: 12, bottom: 40 };
  const top = Math.max(...rates.map(([, rate]) => rate));
  const xs = [...known.map((x) => x.intensity), top / bandwidth];
  const ys = [...known.map((x) => x.gflops), top];
  const [x0, x1] = [Math.floor(Math.log10(Math.min(...xs)) - 0.1), Math.ceil(Math.log10(Math.max(...xs)) + 0.1)];
  const [y0, y1] = [Math.max(Math.floor(Math.log10(Math.min(...ys))), Math.log10(top) - 6), Math.log10(Math.max(...ys)) + 0.25];
  const px = (x) => pad.left + ((Math.log10(x) - x0) / (x1 - x0)) * (width - pad.left - pad.right);
  const py = (y) => height - pad.bottom - ((Math.log10(y) - y0) / (y1 - y0)) * (height - pad.top - pad.bottom);
  const parts = [];
  for (let e = x0; e <= x1; e++)
    parts.push(
      s("line", { class: "tick", x1: px(10 ** e), x2: px(10 ** e), y1: pad.top, y2: height - pad.bottom }),
      s("text", { x: px(10 ** e), y: height - pad.bottom + 16, "text-anchor": "middle" }, short(10 ** e)),
    );
  for (let e = Math.ceil(y0); e <= y1; e++)
    parts.push(
      s("line", { class: "tick", x1: pad.left, x2: width - pad.right, y1: py(10 ** e), y2: py(10 ** e) }),
      s("text", { x: pad.left - 8, y: py(10 ** e) + 4, "text-anchor": "end" }, short(10 ** e)),
    );
  parts.push(
    s("text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, "arithmetic intensity, FLOP/byte"),
    s("text", { transform: `translate(14 ${height / 2}) rotate(-90)`, "text-anchor": "middle" }, "GFLOP/s"),
  );
  for (const [type, rate] of rates) {
    const ridge = rate / bandwidth;
    const start = Math.max(10 ** x0, 10 ** y0 / bandwidth);
    parts.push(
      s("polyline", {
        class: `roof ${rate < top ? "minor" : ""}`,
        points: [
          [start, start * bandwidth],
          [ridge, rate],
          [10 ** x1, rate],
        ]
          .map(([x, y]) => `${px(x)},${py(y)}`)
          .join(" "),
      }),
      s("text", { x: width - pad.right - 4, y: py(rate) - 6, "text-anchor": "end" }, `${short(rate)} GFLOP/s ${type}`),
    );
  }
  const at = Math.sqrt(10 ** x0 * (top / bandwidth));
  parts.push(
    s(
      "text",
      {
        transform: `translate(${px(at) - 6} ${py(at * bandwidth) - 6}) rotate(${(-180 / Math.PI) * Math.atan2(py(at) - py(at * 10), px(at * 10) - px(at))})`,
        "text-anchor": "middle",
      },
      `${short(bandwidth)} GB/s`,
    ),
  );
  const largest = Math.sqrt(most);
  for (const x of [...known].sort((a, b) => b.us - a.us)) {
    parts.push(
      s("circle", {
        class: `dot ${x.id === state.step ? "chosen" : ""} ${state.found && !state.found.has(x.id) ? "dim" : ""}`,
        cx: px(x.intensity),
        cy: py(Math.max(x.gflops, 10 ** y0)),
        r: 3 + 15 * (Math.sqrt(x.us) / largest),
        fill: tacticColour(x.base),
        click: () => select(x.id, "roofline"),
        mousemove: (event) =>
          tip(
            event,
            h("b", {}, x.label),
            h("div", {}, x.place),
            h(
              "div",
              { class: "muted" },
              `${short(x.gflops)} GFLOP/s at ${short(x.intensity)} FLOP/byte · ${time(x.us)} · ${percent(x.roof)} of the roofline`,
            ),
          ),
        mouseleave: () => tip(null),
      }),
    );
  }
  return s("svg", { role: "img", "aria-label": "Roofline", viewBox: `0 0 ${width} ${height}` }, parts);
}
