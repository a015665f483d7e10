"""A difference in words: the sections of `Diff`, each with its first entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dovetail.api.comparison import Comparison
from dovetail.core.text import size_text

_SHOWN = 8


def text_of(data: Mapping[str, Any], outputs: Comparison | None) -> str:
    """The text of a difference, the verdict first."""
    lines = [_verdict(data, outputs), f"  a  {data['a']['name']} ({data['a']['kind']})", f"  b  {data['b']['name']} ({data['b']['kind']})"]
    if data["graph"] is not None:
        lines += ["", *_graph(data["graph"])]
    if data["engine"] is not None:
        lines += ["", *_engine(data["engine"])]
    if data["weights"] is not None:
        lines += ["", *_weights(data["weights"])]
    if outputs is not None:
        lines += ["", "outputs", *_indented(str(outputs).splitlines())]
    if data["speed"] is not None:
        lines += ["", *_speed(data["speed"])]
    for section, reason in data["notes"].items():
        lines += ["", f"{section}: not compared: {reason}"]
    return "\n".join(lines)


def _verdict(data: Mapping[str, Any], outputs: Comparison | None) -> str:
    """The one line that matters."""
    parts = []
    if outputs is not None:
        bad = outputs.first_bad
        if bad is None:
            worst = max((d.relative_l2 for d in outputs.outputs), default=0.0)
            parts.append(f"outputs agree (relative L2 {worst:.1e}, allowed {outputs.tolerance:.0e})")
        else:
            first = "first bad layer" if bad.kind == "layer" else "first bad output"
            parts.append(f"outputs DIFFER: {first} {bad.name}, relative L2 {bad.relative_l2:.1e}, allowed {outputs.tolerance:.0e}")
    elif "outputs" in data["notes"]:
        parts.append("outputs not compared")
    for section, word in (("graph", "graph"), ("engine", "compilation"), ("weights", "weights")):
        if data[section] is not None:
            parts.append(f"{word} {'equal' if data[section]['equal'] else 'differs' if word != 'weights' else 'differ'}")
    if data["speed"] is not None:
        parts.append(_ratio(data["speed"]))
    return "; ".join(parts) or "nothing compared"


def _ratio(speed: Mapping[str, Any]) -> str:
    interval = f"{speed['ratio']:.3f} times as long [{speed['low']:.3f}, {speed['high']:.3f}]"
    said = {"same": "the same speed within 2 %: b takes", "undecided": "speed not decided, measure on a quieter machine: b takes"}
    return f"{said.get(speed['verdict']) or 'b is ' + speed['verdict'] + ': takes'} {interval}"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    shown = [f"  {title}  {entry}" for entry in entries[:_SHOWN]]
    return shown + ([f"  {title}  … {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else [])


def _graph(graph: Mapping[str, Any]) -> list[str]:
    before, after = graph["nodes"]
    changed = [c for c in graph["changed"] if not c["rewired"]]
    rewired = [c for c in graph["changed"] if c["rewired"]]
    counts = (
        f"{graph['same']} equal, {len(graph['removed'])} only in a, {len(graph['added'])} only in b, {len(changed)} changed, "
        f"{len(rewired)} with other inputs, {len(graph['renamed'])} only called otherwise"
    )
    lines = [f"graph: {before} -> {after} nodes: {counts}"]
    lines += _indented(graph["io"])
    lines += [f"  opset {domain}: {a} -> {b}" for domain, (a, b) in graph["opsets"].items()]
    if graph["operators"]:
        lines.append("  operators: " + ", ".join(f"{op} {a} -> {b}" for op, (a, b) in graph["operators"].items()))
    lines += _listed("only in a  ", [f"{n['name']} ({n['op']})" for n in graph["removed"]])
    lines += _listed("only in b  ", [f"{n['name']} ({n['op']})" for n in graph["added"]])
    lines += _listed("changed    ", [_change(c) for c in changed])
    lines += _listed("other input", [_change(c) for c in rewired])
    return lines


def _change(change: Mapping[str, Any]) -> str:
    called = "" if change["name"] == change["in_b"] else f", in b {change['in_b']}"
    return f"{change['name']} ({change['op']}){called}: {'; '.join(change['what'])}"


def _engine(engine: Mapping[str, Any]) -> list[str]:
    lines = [
        f"compilation: {engine['same_fusions']} fusions equal, {len(engine['tactics'])} computed otherwise, "
        f"{len(engine['only_a'])} only in a, {len(engine['only_b'])} only in b"
    ]
    lines += [f"  {name.replace('_', ' ')}: {_fact(name, a)} -> {_fact(name, b)}" for name, (a, b) in engine["facts"].items()]
    lines += _listed("otherwise", [f"{_nodes(t['nodes'])}: {t['a']} -> {t['b']}" for t in engine["tactics"]])
    lines += _listed("only in a", [f"{_nodes(g['nodes'])}: {g['tactic']}" for g in engine["only_a"]])
    lines += _listed("only in b", [f"{_nodes(g['nodes'])}: {g['tactic']}" for g in engine["only_b"]])
    return lines


def _fact(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return size_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{count} in {kind}" for kind, count in value.items()) or "none"
    return str(value)


def _nodes(names: Sequence[str]) -> str:
    return " + ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _weights(weights: Mapping[str, Any]) -> list[str]:
    lines = [
        f"weights: {weights['same']} equal, {len(weights['changed']) + len(weights['unread'])} with other values, "
        f"{len(weights['retyped'])} of another type or shape, {len(weights['removed'])} only in a, {len(weights['added'])} only in b"
    ]
    if weights["changed"]:
        worst = weights["changed"][0]
        lines.append(f"  farthest: {worst['name']}, relative L2 {_number(worst['relative_l2'])}")
    found = weights["found"]
    lines += _listed("changed  ", [_value(c, found) for c in weights["changed"]])
    lines += _listed("changed  ", [f"{name}: by its hash; the values are not stored" for name in weights["unread"]])
    lines += _listed("type     ", [_retyped(n, *types) + _match(n, found) for n, types in weights["retyped"].items()])
    moved = [n for n in weights["removed"] if n in set(weights["used"])]
    if moved:
        lines.append(f"  {len(moved)} of those that are only in a went into weights of b")
    lines += _listed("only in a", [n for n in weights["removed"] if n not in set(moved)])
    lines += _listed("only in b", [f"{n}{_match(n, found)}" for n in weights["added"]])
    return lines


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2e}"


def _value(change: Mapping[str, Any], found: Mapping[str, str]) -> str:
    size = f"{change['changed']} of {change['size']} elements"
    text = f"{change['name']}: relative L2 {_number(change['relative_l2'])}, max abs {change['max_abs']:.2e}, {size}"
    return text + _match(change["name"], found)


def _retyped(name: str, a: str, b: str, distance: float | str | None) -> str:
    return f"{name}: {a} -> {b}" + ("" if distance is None else f", relative L2 {_number(distance)}")


def _match(name: str, found: Mapping[str, str]) -> str:
    return f" = {found[name]} of a" if name in found else ""


def _speed(speed: Mapping[str, Any]) -> list[str]:
    shapes = ", ".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in speed["inputs"].items())
    where = " and ".join(dict.fromkeys(speed["devices"]))
    lines = [
        f"speed: a {speed['a_ms']:.3f} ms, b {speed['b_ms']:.3f} ms; {_ratio(speed)}",
        f"  {speed['rounds']} interleaved rounds on {where}, {speed['threads']} thread(s), inputs {shapes}",
    ]
    return lines + [f"  {name} was built with default options" for name in speed["built"]]
