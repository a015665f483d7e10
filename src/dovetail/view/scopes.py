"""The fused graph at several levels of detail: every kernel, or those of a scope of the model's names as one box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.view.graph import FusedGraph, GraphStep
from dovetail.view.layout import HEIGHT, WIDTH, draw

_LEVELS = 3
_SMALLER = 0.75  # a level is worth showing if it has at most this share of the boxes of the one below


def drawings(fused: FusedGraph) -> list[dict[str, Any]]:
    """Levels of detail, all kernels first, each laid out. A box is a model input, an output, or some steps that follow each other."""
    outer = [n for n, s in enumerate(fused.steps) if s.parent < 0]
    found = [_drawing("kernels", fused, [([n], "") for n in outer])]
    depth = max((len(_path(fused.steps[n]).split("/")) for n in outer), default=0)
    coarser: list[tuple[int, list[tuple[list[int], str]]]] = []
    size = len(outer)
    for level in range(depth, 0, -1):
        boxes = _runs(fused.steps, outer, level)
        if 1 < len(boxes) <= _SMALLER * size and any(len(members) > 1 for members, _ in boxes):
            coarser.append((level, boxes))
            size = len(boxes)
    for number, (_, boxes) in enumerate(coarser[-_LEVELS:]):
        found.append(_drawing(f"scopes {number + 1}", fused, boxes))
    return found


def _path(step: GraphStep) -> str:
    """The scope of a step: what the names of its nodes have in common, up to the last slash."""
    if not step.info.origin:
        return ""
    names = [name.strip("/").split("/") for name in step.info.origin]
    common = names[0][:-1]
    for name in names[1:]:
        length = 0
        while length < min(len(common), len(name) - 1) and common[length] == name[length]:
            length += 1
        # A batch norm or an activation that was fused lies in a scope beside; the first node says where the step belongs.
        if length == 0:
            break
        common = common[:length]
    return "/".join(common)


def _runs(steps: Sequence[GraphStep], outer: Sequence[int], level: int) -> list[tuple[list[int], str]]:
    """Steps that follow each other and share the first parts of their scope. In program order, so that no cycle can arise."""
    boxes: list[tuple[list[int], str]] = []
    for number in outer:
        path = _path(steps[number])
        name = "/".join(path.split("/")[:level])
        if boxes and name and boxes[-1][1] == name:
            boxes[-1][0].append(number)
        elif boxes and not name and not steps[number].info.origin:
            boxes[-1][0].append(number)  # copies that the compiler added
        else:
            boxes.append(([number], name))
    return boxes


def _drawing(name: str, fused: FusedGraph, boxes: Sequence[tuple[list[int], str]]) -> dict[str, Any]:
    """One level, laid out: boxes are inputs, then steps, then outputs."""
    first = len(fused.inputs)
    at_step = {s: first + b for b, (members, _) in enumerate(boxes) for s in members}
    at_value = {v: n for n, v in enumerate(fused.inputs)}
    edges: dict[tuple[int, int], list[int]] = {}
    for producer, reader, value in fused.edges():
        if producer >= 0 and fused.values[value].producer >= 0:
            a = at_step.get(producer)
        else:
            a = at_value.get(value)
        b = at_step.get(reader)
        if a is not None and b is not None and a != b and value not in edges.setdefault((a, b), []):
            edges[a, b].append(value)
    last = first + len(boxes)
    for n, value in enumerate(fused.outputs):
        source = fused.values[value].producer
        a = at_value.get(value) if source < 0 else at_step.get(source)
        if a is not None:
            edges[a, last + n] = [value]
    pairs = list(edges)
    drawing = draw(last + len(fused.outputs), pairs)
    nodes: list[dict[str, Any]] = [{"kind": "input", "value": v} for v in fused.inputs]
    nodes += [{"kind": "steps", "steps": members, "label": label} for members, label in boxes]
    nodes += [{"kind": "output", "value": v} for v in fused.outputs]
    for node, (x, y) in zip(nodes, drawing.nodes, strict=True):
        node["x"], node["y"] = round(x), round(y)
    return {
        "name": name, "width": round(drawing.width), "height": round(drawing.height), "node_width": WIDTH, "node_height": HEIGHT,
        "nodes": nodes,
        "edges": [
            {"from": a, "to": b, "values": edges[a, b], "path": [[round(c) for p in piece for c in p] for piece in pieces]}
            for (a, b), pieces in zip(pairs, drawing.edges, strict=True)
        ],
    }  # fmt: skip
