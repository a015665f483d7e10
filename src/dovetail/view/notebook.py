"""What notebooks show of engines, reports, profiles and comparisons: small HTML without scripts, style sheets or other files.

All text is escaped. Colours come from the page: text inherits its colour, lines and bars are see-through, so that light and dark
themes both fit.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dovetail.core.text import size_text

_SHOWN = 20
_NODES = 3
_LINE = "1px solid rgba(128,128,128,.35)"
_GOOD, _BAD = "#2e9e5b", "#d64545"
_NUMBERS = "text-align:right;font-variant-numeric:tabular-nums;"


# ---------------------------------------------------------------------- pieces
def _tag(name: str, content: str, style: str = "", **attributes: str) -> str:
    """An element; `content` is HTML, attributes are text."""
    given = {"style": style, **attributes} if style else attributes
    inside = "".join(f' {key}="{html.escape(text)}"' for key, text in given.items())
    return f"<{name}{inside}>{content}</{name}>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _page(title: str, note: str, *parts: str) -> str:
    head = _tag("div", _tag("b", _text(title)) + _tag("span", " " + _text(note), "opacity:.7"), "margin-bottom:.4em")
    return _tag("div", head + "".join(parts), "font-size:13px;line-height:1.45;max-width:72em;text-align:left")


def _tiles(facts: Mapping[str, str]) -> str:
    """Short facts beside each other."""
    label, value = "opacity:.65;font-size:11px", "font-weight:600"
    tiles = [
        _tag("div", _tag("div", _text(name), label) + _tag("div", _text(fact), value), f"border-left:{_LINE};padding:0 .8em 0 .6em")
        for name, fact in facts.items() if fact
    ]  # fmt: skip
    return _tag("div", "".join(tiles), "display:flex;flex-wrap:wrap;gap:.5em 0;margin:.3em 0 .6em")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; cells are HTML, the columns `numbers` stand right."""
    cell = f"padding:.15em .7em;border:0;border-bottom:{_LINE};background:none;"

    def line(name: str, cells: Sequence[str]) -> str:
        sides = (_NUMBERS if i in numbers else "text-align:left;" for i in range(len(cells)))
        return _tag("tr", "".join(_tag(name, c, cell + side) for c, side in zip(cells, sides, strict=True)), "background:none")

    body = "".join(line("td", row) for row in rows)
    inner = _tag("thead", line("th", [_text(h) for h in head])) + _tag("tbody", body)
    return _tag("table", inner, "border-collapse:collapse;margin:.2em 0;font-size:inherit;color:inherit;background:none")


def _bar(share: float, label: str) -> str:
    """A share as a bar with its text."""
    width = f"{100 * max(0.0, min(1.0, share)):.1f}%"
    bar = _tag("div", "", f"width:{width};height:.75em;background:rgba(66,133,244,.6);border-radius:2px")
    holder = _tag("div", bar, "width:9em;background:rgba(128,128,128,.15);border-radius:2px;display:inline-block;vertical-align:middle")
    return _tag("div", holder + _tag("span", " " + _text(label), "font-variant-numeric:tabular-nums"), "white-space:nowrap")


def _fold(title: str, content: str) -> str:
    """Something to open."""
    return _tag("details", _tag("summary", _text(title), "cursor:pointer") + content, "margin:.3em 0") if content else ""


def _list(entries: Sequence[str]) -> str:
    """Lines of text, the first of many."""
    more = [f"… {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    items = "".join(_tag("li", _text(e)) for e in [*entries[:_SHOWN], *more])
    return _tag("ul", items, "margin:.2em 0 .2em 1.2em;padding:0") if entries else ""


def _names(names: Sequence[str]) -> str:
    """Node names, the first few with all of them as a tooltip."""
    shown = ", ".join(names[:_NODES]) + (f" and {len(names) - _NODES} more" if len(names) > _NODES else "")
    return _tag("span", _text(shown), title=", ".join(names)) if len(names) > _NODES else _text(shown)


def _verdict(ok: bool, text: str) -> str:
    return _tag("div", ("✓ " if ok else "✗ ") + _text(text), f"color:{_GOOD if ok else _BAD};font-weight:600;margin:.2em 0")


def bindings_table(inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """Inputs and outputs with types and shapes."""
    rows = []
    for role, group in (("input", inputs), ("output", outputs)):
        for port in group:
            shape = "?" if port.shape is None else "[" + ", ".join(map(str, port.shape)) + "]"
            rows.append([role, _tag("code", _text(port.name), "background:none;color:inherit"), _text(port.dtype), _text(shape)])
    return _table(("", "name", "type", "shape"), rows)


# ---------------------------------------------------------------------- what is shown
def report_facts(data: Mapping[str, Any]) -> dict[str, str]:
    """What matters of a report at a glance."""
    at = ", ".join(f"{k}={v}" for k, v in data["sizes"].items())
    return {
        "kernel steps": f"{data['native_steps']} ({data['kernels']} distinct)",
        "host steps": str(data["host_calls"] or "none"),
        "arithmetic" + (f" at {at}" if at else ""): ", ".join(f"{v:.3g} GFLOP in {k}" for k, v in data["gflop"].items()),
        "activations": size_text(data["memory"]["arena_bytes"]),
        "weights": size_text(data["memory"]["weight_bytes"]),
    }


def engine_html(inputs: Sequence[Any], outputs: Sequence[Any], target: str, report: Mapping[str, Any] | None, certificate: str) -> str:
    """An engine: bindings, facts of its report (None: it has none), certificate."""
    asked = f"{report['actual']['precision']} on {target}" if report else target
    parts = [bindings_table(inputs, outputs)]
    if report is not None:
        parts += [_tiles(report_facts(report)), _fold("tactics", _tactics(report))]
    return _page("Dovetail engine", asked, *parts, _tag("div", _text(certificate), "opacity:.8"))


def _tactics(data: Mapping[str, Any]) -> str:
    total = sum(data["tactics"].values()) or 1
    return _table(("tactic", "fusions"), [(_text(name), _bar(count / total, str(count))) for name, count in data["tactics"].items()])


def report_html(data: Mapping[str, Any], certificate: str, ranges: Sequence[str]) -> str:
    """A build report; what is long can be opened."""
    asked, got = data["requested"], data["actual"]
    tuned = "" if got.get("tuned", True) else ", not tuned"
    note = f"requested {asked['device']} {asked['precision']}, got {got['target']} {got['precision']}{tuned}"
    host = [f"{s['node']}: {s['reason']}" for s in data["host_steps"]]
    copies = [": ".join(map(str, c)) for c in data["copies"]]
    training = [f"{s['node']}: {s['reason']}" for s in data.get("training", ())]
    kept = [f"{s['node']}: {s['reason']}" for s in data.get("kept_in_fp32", ())]
    declined = [" + ".join(map(str, entry[:-1])) + f": {entry[-1]}" for entry in data["not_fused"]]
    return _page(
        "Dovetail build report", note, _tiles(report_facts(data)), _tactics(data),
        *(_tag("div", _text(line)) for line in ranges),
        *(_fold(f"{title} ({len(found)})", _list(found)) for title, found in
          (("as in training", training), ("on the reference", host), ("copies", copies), ("kept in fp32", kept), ("not fused", declined))),
        _tag("div", _text(certificate), "opacity:.8;margin-top:.3em"),
    )  # fmt: skip


def profile_html(data: Mapping[str, Any], by_tactic: Mapping[str, float]) -> str:
    """A profile: the slowest steps with their shares, and the sums per tactic."""
    rows = sorted(data["rows"], key=lambda r: -r["us"])
    largest = max((r["share"] for r in rows), default=0.0) or 1.0
    where = f"{data['threads']} thread(s)" if data["device"] == "cpu" else f"one by one on {data['device']}"
    cells = [
        (f"{r['us']:.1f}", _bar(r["share"] / largest, f"{100 * r['share']:.1f} %"),
         _text(r["tactic"] if r["kind"] == "native" else f"host {r['kernel']}"), _names(r["origin"]))
        for r in rows[:_SHOWN]
    ]  # fmt: skip
    rest = sum(r["us"] for r in rows[_SHOWN:])
    left = _tag("div", _text(f"{len(rows) - _SHOWN} more steps, {rest:.1f} µs"), "opacity:.7") if len(rows) > _SHOWN else ""
    total = data["total_us"] or 1.0
    sums = _table(("tactic", "µs", "share"), [
        (_text(name), f"{us:.1f}", _bar(us / total, f"{100 * us / total:.1f} %")) for name, us in by_tactic.items()
    ], numbers=(1,))  # fmt: skip
    note = f"{data['total_us']:.1f} µs in {len(rows)} steps, {where}, median of {data['runs']} runs"
    return _page("Dovetail profile", note, _table(("µs", "share", "tactic", "nodes"), cells, (0,)), left, _fold("by tactic", sums))


def comparison_html(data: Mapping[str, Any]) -> str:
    """A comparison: the verdict, outputs, and the layers that are off."""
    bad = data["first_bad"]
    allowed = f"{data['tolerance']:.0e}"
    first = "" if bad is None else f"first bad {bad['kind']}: {bad['name']}, relative L2 {_number(bad['relative_l2'])}"
    verdict = f"equal within {allowed}" if data["ok"] else first
    wrong = [d for d in data["layers"] if not d["ok"]]
    layers = f"{len(data['layers'])} layers, {len(wrong)} beyond {allowed}" if data["layers"] else ""
    return _page(
        "Dovetail comparison", f"relative L2 allowed: {allowed}", _verdict(data["ok"], verdict), _differences(data["outputs"]),
        _tag("div", _text(layers)), _differences(wrong[:_SHOWN]) if wrong else "",
    )  # fmt: skip


def _differences(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (_tag("span", "ok" if d["ok"] else "BAD", f"color:{_GOOD if d['ok'] else _BAD}"), _text(d["kind"]), _text(d["name"]),
         _number(d["relative_l2"]), _number(d["max_abs"]), _text(d["note"]))
        for d in found
    ]  # fmt: skip
    return _table(("", "", "name", "relative L2", "max abs", ""), rows, (3, 4))


def _number(value: float | str) -> str:
    return _text(value) if isinstance(value, str) else f"{value:.2e}"


def text_html(title: str, text: str) -> str:
    """Text with its lines, under a title."""
    return _page(title, "", _tag("pre", _text(text), "margin:0;background:none;color:inherit;font-size:12px;white-space:pre-wrap"))
