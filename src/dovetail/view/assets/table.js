// Tables that sort by any column and draw only the rows that are seen.

const ROW = 30;

/** Columns: {name, width (least), stretch (share of what is left), value (to sort by), cell (text or element; default the value), right}. Rows: any records. */
class Table {
  constructor({ columns, rows, label, pick, chosen, sort = 0, descending = false }) {
    Object.assign(this, { columns, rows, shown: rows, pick, chosen, sort, descending });
    this.template = columns.map((c) => (c.stretch ? `minmax(${c.width}px, ${c.stretch}fr)` : `${c.width}px`)).join(" ");
    const least = `${columns.reduce((sum, c) => sum + c.width + 12, 24)}px`;
    this.headrow = h(
      "div",
      { class: "row headrow", role: "row", style: { gridTemplateColumns: this.template, minWidth: least } },
      columns.map((c, n) =>
        h("span", { role: "columnheader", class: c.right && "right", title: c.title }, h("button", { click: () => this.by(n) }, c.name)),
      ),
    );
    this.space = h("div", { class: "space", style: { minWidth: least } });
    this.box = h(
      "div",
      { class: "rows", role: "grid", "aria-label": label, tabindex: "0", scroll: () => this.draw(), keydown: (event) => this.key(event) },
      this.headrow,
      this.space,
    );
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.arrange();
  }

  by(column) {
    this.descending = this.sort === column ? !this.descending : Boolean(this.columns[column].right);
    this.sort = column;
    this.arrange();
  }

  /** Show those rows alone for which `keep` holds. */
  filter(keep) {
    this.keep = keep;
    this.arrange();
  }

  arrange() {
    const value = this.columns[this.sort].value;
    const rank = (a, b) =>
      typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b;
    const known = (x) => (x === null || x === undefined ? -Infinity : x);
    this.shown = this.rows.filter((row) => !this.keep || this.keep(row));
    this.shown.sort((a, b) => (this.descending ? -1 : 1) * rank(known(value(a)), known(value(b))));
    [...this.headrow.children].forEach((cell, n) =>
      cell.setAttribute("aria-sort", n !== this.sort ? "none" : this.descending ? "descending" : "ascending"),
    );
    this.space.style.height = `${this.shown.length * ROW}px`;
    this.box.setAttribute("aria-rowcount", this.shown.length);
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 4);
    const count = Math.ceil((this.box.clientHeight || 600) / ROW) + 8;
    this.space.replaceChildren(
      ...this.shown.slice(first, first + count).map((row, n) =>
        h(
          "div",
          {
            class: "row body",
            role: "row",
            "aria-rowindex": first + n + 1,
            "aria-selected": this.chosen?.(row) || false,
            style: { top: `${(first + n) * ROW}px`, gridTemplateColumns: this.template },
            click: () => this.pick?.(row),
          },
          this.columns.map((c) => {
            const cell = c.cell ? c.cell(row) : c.value(row);
            return h("span", { role: "gridcell", class: c.right && "right", title: typeof cell === "string" ? cell : null }, cell);
          }),
        ),
      ),
    );
  }

  key(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (!move || !this.pick) return;
    event.preventDefault();
    const at = this.shown.findIndex((row) => this.chosen(row));
    const next = Math.max(0, Math.min(this.shown.length - 1, at + move));
    this.pick(this.shown[next]);
    const top = next * ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + 2 * ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + 2 * ROW - this.box.clientHeight;
    this.draw();
  }
}

/** A share as a bar and a number; `full` is the share that fills the bar. */
const meter = (share, colour, full = 1) =>
  h(
    "span",
    { class: "meter" },
    h(
      "span",
      { class: "track" },
      h("span", {
        class: "fill",
        style: { display: "block", width: `${Math.min(100, (100 * (share || 0)) / full)}%`, background: colour },
      }),
    ),
    h("span", { class: "text" }, percent(share)),
  );

function kernelTable() {
  const roof = MODES.roof.on;
  const columns = [
    { name: "#", width: 44, right: true, value: (x) => x.id },
    { name: "Operation", width: 170, stretch: 1, value: (x) => x.label, cell: (x) => (x.depth ? "↳ " : "") + x.label },
    {
      name: "ONNX nodes",
      width: 220,
      stretch: 2,
      value: (x) => x.place,
      cell: (x) => (x.nodes.length > 1 ? `${x.place}  +${x.nodes.length - 1}` : x.place),
    },
    {
      name: "Tactic",
      width: 130,
      value: (x) => x.tactic,
      cell: (x) =>
        h(
          "span",
          {},
          h("span", { class: "swatch", style: { background: x.kind === "kernel" ? tacticColour(x.base) : HOST } }),
          ` ${x.kind === "kernel" ? x.tactic : `${x.kind} ${x.kernel}`}`,
        ),
    },
    { name: "Type", width: 50, value: (x) => x.dtype },
    timed && { name: "Time", width: 76, right: true, value: (x) => x.us, cell: (x) => time(x.us) },
    timed && {
      name: "Share",
      width: 140,
      right: true,
      value: (x) => x.share,
      cell: (x) => meter(x.share, tacticColour(x.base), most / doc.totals.profile.total_us),
    },
    { name: "Arithmetic", width: 92, right: true, value: (x) => x.flops, cell: (x) => (x.flops ? flops(x.flops) : "–") },
    { name: "Bytes", width: 80, right: true, value: (x) => x.bytes, cell: (x) => bytes(x.bytes) },
    timed && { name: "GFLOP/s", width: 70, right: true, value: (x) => x.gflops, cell: (x) => (x.flops && x.us ? short(x.gflops) : "–") },
    timed && { name: "GB/s", width: 60, right: true, value: (x) => x.gigabytes, cell: (x) => (x.us ? short(x.gigabytes) : "–") },
    roof && {
      name: "Roofline",
      width: 140,
      right: true,
      title: "least time by arithmetic and bytes, as a share of the time measured",
      value: (x) => x.roof,
      cell: (x) => (x.roof === null ? "–" : meter(x.roof, mixed(["bad", "warn", "good"], Math.min(1, x.roof)))),
    },
  ].filter(Boolean);
  const sort = columns.findIndex((c) => c.name === (timed ? "Time" : "#"));
  const table = new Table({
    columns,
    rows: steps,
    label: "Kernels",
    sort,
    descending: timed,
    pick: (x) => select(x.id, "table"),
    chosen: (x) => x.id === state.step,
  });
  on("select", () => table.draw());
  on("theme", () => table.draw());
  on("find", () => table.filter(state.found && ((x) => state.found.has(x.id))));
  return h("div", { class: "view grid" }, timed && h("div", { class: "lead" }, timeStack()), table.box);
}

/** The time of a run as one bar, cut by tactic. */
function timeStack() {
  const parts = [...tactics, "host", "control"]
    .map((name) => ({ name, mine: steps.filter((x) => x.base === name && x.parent < 0) }))
    .filter((p) => p.mine.length);
  const us = (p) => p.mine.reduce((t, x) => t + (x.us || 0), 0);
  const total = parts.reduce((t, p) => t + us(p), 0) || 1;
  return [
    h(
      "div",
      { class: "stack", role: "img", "aria-label": "Time by tactic" },
      parts.map((p) =>
        h("span", {
          style: { flex: us(p) / total, background: tacticColour(p.name) },
          mousemove: (event) =>
            tip(event, h("b", {}, p.name), `${time(us(p))} · ${percent(us(p) / total)} · ${plural(p.mine.length, "step")}`),
          mouseleave: () => tip(null),
        }),
      ),
    ),
    h(
      "div",
      { class: "keys" },
      parts.map((p) =>
        h(
          "span",
          { class: "key" },
          h("span", { class: "swatch", style: { background: tacticColour(p.name) } }),
          ` ${p.name} `,
          h("b", {}, time(us(p))),
          ` ${percent(us(p) / total)} in ${plural(p.mine.length, "step")}`,
        ),
      ),
    ),
  ];
}
