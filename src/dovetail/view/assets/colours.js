// What colours mean: time, tactic, element type, or share of the roofline.

const PALETTE = ["#4e86c6", "#e8924a", "#5aa469", "#a77bca", "#4fb3b0", "#d96a8a", "#c9a93b", "#8c7a6b", "#7f8ee0", "#93b05a"];
const TYPES = {
  f32: "#4e86c6",
  tf32: "#7f8ee0",
  f16: "#5aa469",
  bf16: "#4fb3b0",
  f64: "#a77bca",
  i8: "#e8924a",
  u8: "#e8924a",
  f8e4m3: "#c9a93b",
  f8e5m2: "#c9a93b",
};
const HOST = "#d9534f";

const tactics = [...new Set(steps.filter((step) => step.kind === "kernel").map((step) => step.base))];
const timeOf = Object.fromEntries(
  tactics.map((name) => [name, steps.reduce((t, step) => t + (step.base === name ? step.us || 1e-9 : 0), 0)]),
);
tactics.sort((a, b) => timeOf[b] - timeOf[a]);

const MODES = {
  time: { title: "Time", on: timed },
  tactic: { title: "Tactic", on: true },
  type: { title: "Type", on: true },
  roof: { title: "Roofline", on: timed && doc.machine !== null },
};

let themeColours = {};
/** A colour of the style sheet. */
function css(name) {
  return (themeColours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
}
function forgetColours() {
  themeColours = {};
  ramps.clear();
}

const tacticColour = (name) => (tactics.includes(name) ? PALETTE[tactics.indexOf(name) % PALETTE.length] : HOST);

/** The colour of a step. */
function colourOf(step) {
  if (step.kind === "host") return HOST;
  if (step.kind === "control") return PALETTE[3];
  if (state.colour === "tactic") return tacticColour(step.base);
  if (state.colour === "type") return TYPES[step.dtype] || PALETTE[7];
  if (state.colour === "roof") return step.roof === null ? css("faint") : mixed(["bad", "warn", "good"], Math.min(1, step.roof));
  return mixed(["heat0", "heat1", "heat2"], Math.sqrt((step.us || 0) / most));
}

const ramps = new Map();
/** A colour between those of the style sheet, in 33 grades. */
function mixed(names, at) {
  const grade = Math.round(at * 32);
  const key = names[0] + grade;
  if (!ramps.has(key)) {
    const place = (grade / 32) * (names.length - 1);
    const low = Math.min(Math.floor(place), names.length - 2);
    const [a, b] = [rgb(css(names[low])), rgb(css(names[low + 1]))];
    ramps.set(key, `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * (place - low))).join(",")})`);
  }
  return ramps.get(key);
}
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** What the colours say, as elements. */
function legend() {
  const key = (colour, ...text) => h("span", { class: "key" }, h("span", { class: "swatch", style: { background: colour } }), text);
  const ramp = (names) => h("span", { class: "ramp", style: { background: `linear-gradient(90deg, ${names.map((n) => `var(--${n})`)})` } });
  const host = steps.some((step) => step.kind === "host") ? [key(HOST, "host step")] : [];
  if (state.colour === "time") return [h("span", { class: "key" }, "0", ramp(["heat0", "heat1", "heat2"]), time(slowest())), ...host];
  if (state.colour === "roof") return [h("span", { class: "key" }, "0 %", ramp(["bad", "warn", "good"]), "100 % of the roofline"), ...host];
  if (state.colour === "type") {
    return [
      ...[...new Set(steps.filter((x) => x.kind === "kernel").map((x) => x.dtype))].map((n) => key(TYPES[n] || PALETTE[7], n)),
      ...host,
    ];
  }
  return [...tactics.map((name) => key(tacticColour(name), name)), ...host];
}
