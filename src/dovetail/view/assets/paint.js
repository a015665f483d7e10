// How the graph is drawn: edges, boxes of steps, inputs and outputs, at any scale.

function bounds(pieces) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const piece of pieces) {
    for (let i = 0; i < piece.length; i += 2) {
      box[0] = Math.min(box[0], piece[i]);
      box[1] = Math.min(box[1], piece[i + 1]);
      box[2] = Math.max(box[2], piece[i]);
      box[3] = Math.max(box[3], piece[i + 1]);
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
    if (edge.from === chosen || edge.to === chosen) {
      marked.push(edge);
      continue;
    }
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
    slowest: first,
    us,
    share: us === null ? null : us / (doc.totals.profile.total_us || 1),
    title: one ? first.title : tail(node.label || first.place, 24),
    sub: one ? tail(scope(first.place), 18) : plural(mine.length, "kernel"),
    tag: one ? first.tactic : [...new Set(mine.map((x) => x.base))].slice(0, 2).join(", "),
  };
  return node.sum;
}

/** The time of the slowest box of this level. */
function slowest() {
  const view = current();
  return (view.slowest ??= Math.max(...view.nodes.map((node) => (node.steps ? summary(node).us || 0 : 0)), 1e-9));
}

const boxColour = (sum) =>
  state.colour === "time" && sum.slowest.kind === "kernel"
    ? mixed(["heat0", "heat1", "heat2"], Math.sqrt((sum.us || 0) / slowest()))
    : colourOf(sum.slowest);

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
