// The map of the whole graph in a corner; it hides where the whole is seen anyway.

function mapScale(map) {
  return Math.min(map.clientWidth / graph.surface.width, map.clientHeight / graph.surface.height) * 0.94;
}

function paintMap(map) {
  const seen = graph.surface.seen();
  map.parentElement.hidden = seen.left <= 0 && seen.top <= 0 && seen.right >= graph.surface.width && seen.bottom >= graph.surface.height;
  if (map.parentElement.hidden) return;
  const ratio = devicePixelRatio || 1;
  const view = current();
  map.width = map.clientWidth * ratio;
  map.height = map.clientHeight * ratio;
  const c = map.getContext("2d");
  const k = mapScale(map);
  c.setTransform(
    ratio * k,
    0,
    0,
    ratio * k,
    (ratio * (map.clientWidth - view.width * k)) / 2,
    (ratio * (map.clientHeight - view.height * k)) / 2,
  );
  for (const node of view.nodes) {
    c.fillStyle = node.kind === "steps" ? boxColour(summary(node)) : css("faint");
    c.globalAlpha = state.found && !(node.steps || []).some((id) => state.found.has(id)) ? 0.2 : 1;
    c.fillRect(node.x, node.y, view.node_width, Math.max(view.node_height, 1.5 / k));
  }
  c.globalAlpha = 1;
  c.strokeStyle = css("accent");
  c.lineWidth = 1.5 / k;
  c.strokeRect(seen.left, seen.top, seen.right - seen.left, seen.bottom - seen.top);
}

function mapTo(event, map) {
  const box = map.getBoundingClientRect();
  const k = mapScale(map);
  const { width, height } = graph.surface;
  graph.surface.centre(
    (event.clientX - box.left - (box.width - width * k) / 2) / k,
    (event.clientY - box.top - (box.height - height * k) / 2) / k,
  );
}
