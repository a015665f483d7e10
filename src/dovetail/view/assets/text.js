// Elements and numbers as text. Elements get their contents as text nodes alone: names of a model are never read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes (functions are listeners), then children: elements, or what becomes text. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

const byId = (id) => document.getElementById(id);

/** Three significant digits. */
function short(x) {
  if (!Number.isFinite(x)) return String(x);
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(x) || 1)));
  return x
    .toFixed(Math.min(digits, 6))
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}

function scaled(x, step, units) {
  let at = 0;
  while (Math.abs(x) >= step && at < units.length - 1) {
    x /= step;
    at += 1;
  }
  return `${short(x)} ${units[at]}`;
}

const bytes = (n) => scaled(n, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const time = (us) => (us === null || us === undefined ? "–" : scaled(us, 1000, ["µs", "ms", "s"]));
const flops = (n) => scaled(n, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"]);
const percent = (x) => (x === null || x === undefined ? "–" : `${x >= 0.0995 ? (100 * x).toFixed(0) : short(100 * x)} %`);
const shape = (dims) => (dims ? `[${dims.join(", ")}]` : "[?]");
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** The path of a node without its last part, which exporters name after the operator. */
const scope = (name) => name.replace(/^\//, "").replace(/(.)\/[^/]+$/, "$1");

/** The end of a path: its last parts, as many as fit. */
function tail(name, length = 30) {
  if (name.length <= length) return name;
  const parts = name.split("/");
  let text = parts.pop();
  while (parts.length && text.length + parts[parts.length - 1].length + 1 <= length) text = `${parts.pop()}/${text}`;
  return text.length > length ? `…${text.slice(1 - length)}` : `…/${text}`.replace("…//", "/");
}
