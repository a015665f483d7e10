"""What a build did: kernels and their tactics, what runs on the reference and why, copies, memory, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import PlanFormatError, ShapeError
from dovetail.core.text import counted, size_text
from dovetail.engine import memory
from dovetail.engine.plan import Plan, Program
from dovetail.model.rules.log import text as rule_lines
from dovetail.plugins import Key, has_changed, requirements

_SHOWN = 12


@dataclass(frozen=True)
class Report:
    """The report of an engine; `str` is the summary, `json()` all of it."""

    data: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return dict(self.data)

    @property
    def tactics(self) -> dict[str, int]:
        """Number of fusions per tactic, most frequent first."""
        return dict(self.data["tactics"])

    @property
    def host_steps(self) -> list[dict[str, str]]:
        """Nodes that run on the reference, with reasons."""
        return list(self.data["host_steps"])

    @property
    def on_generated_code(self) -> bool:
        """Whether every step of a run is a kernel."""
        return not self.data["host_calls"]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dovetail.view.notebook import report_html

        return report_html(self.data, certificate_text(self.data["certificate"]), ranges_text(self.data))

    def __str__(self) -> str:
        d = self.data
        asked, got = d["requested"], d["actual"]
        lines = [
            f"requested {asked['device']} {asked['precision']}{' strict' if asked.get('strict_fp32') else ''}, "
            f"got {got['target']} {got['precision']}{'' if got.get('tuned', True) else ', not tuned: chosen by rule (dovetail tune)'}",
            f"{counted(len(d['groups']), 'fusion')} as {counted(d['native_steps'], 'kernel step')} "
            f"({counted(d['kernels'], 'distinct kernel')}), {counted(d['host_calls'], 'host step')}, "
            f"{len(d['copies'])} {'copy' if len(d['copies']) == 1 else 'copies'}",
            "tactics: " + (", ".join(f"{name} {count}" for name, count in d["tactics"].items()) or "none"),
        ]
        if d.get("branches", {}).get("lanes", 1) > 1:
            lines.append(f"branches: up to {d['branches']['lanes']} kernels beside each other, {d['branches']['reason']}")
        if d["gflop"]:
            lines.append("arithmetic: " + ", ".join(f"{v:.3g} GFLOP in {k}" for k, v in d["gflop"].items()) + _at(d["sizes"]))
        lines += ranges_text(d)
        used = d["memory"]
        lines.append(
            f"memory: activations {size_text(used['arena_bytes'])} (lower bound {size_text(used['bound_bytes'])}, "
            f"x{used['ratio']:.2f}){_at(d['sizes'])}, weights {size_text(used['weight_bytes'])}"
        )
        if d["plugins"]:
            lines.append(f"plugins: {', '.join(plugin_text(p) for p in d['plugins'])}")
        lines += rules_text(d.get("rules"), d["certificate"].get("level", "off") != "off")
        lines += _section(
            "as in training; export the model in evaluation mode", [f"{t['node']}: {t['reason']}" for t in d.get("training", [])]
        )
        lines += _section("on the reference", [f"{s['node']}: {s['reason']}" for s in d["host_steps"]])
        lines += _section("copies", [": ".join(map(str, c)) for c in d["copies"]])
        lines.append(certificate_text(d["certificate"]))
        return "\n".join(lines)


def report(plan: Plan, sizes: Mapping[str, int] | None = None) -> Report:
    """The report of a plan.

    Args:
        sizes: symbol values that memory and arithmetic are given for; default: 1, or the least allowed.

    Raises:
        PlanFormatError: the plan holds no build report.
    """
    stored = plan.meta.get("report")
    if not isinstance(stored, dict):
        raise PlanFormatError("report: got a plan without a build report, expected one; build the engine again")
    at = {s.name: max(1, s.lower) for s in plan.symbols} | dict(sizes or {})
    data: dict[str, Any] = {k: v for k, v in stored.items() if k != "flops"}
    data["tactics"] = dict(Counter(g["tactic"] for g in data["groups"]).most_common())
    data["sizes"] = at
    data["flops_by_dtype"] = flops_by_dtype(plan, at)
    data["gflop"] = {name: count / 1e9 for name, count in data["flops_by_dtype"].items()}
    data["memory"] = activation_memory(plan.main, at) | {"weight_bytes": weight_bytes(plan)}
    data["symbols"] = [[s.name, s.lower, s.upper] for s in plan.symbols]
    data["certificate"] = dict(plan.certificate)
    data["plugins"] = [{**record, "changed": has_changed(record)} for record in requirements(plan.meta)]
    return Report(data)


def plugin_text(record: Mapping[str, Any]) -> str:
    """A plugin that an engine needs, in words."""
    key = Key(*(str(record.get(part, "")) for part in ("namespace", "name", "version")))
    return f"{key}, another function than when the engine was built" if record.get("changed") else str(key)


def activation_memory(program: Program, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Arena bytes of a program, the liveness bound no placement can beat, and their ratio.

    Buffers whose sizes depend on data are left out (`data_dependent` counts them).
    """
    lives = memory.lifetimes(program)
    root = memory.roots(program)
    bytes_: dict[int, int] = {}
    unknown = 0
    for buffer in program.buffers:
        owner = root[buffer.id]
        if program.buffers[owner].kind not in ("arena", "workspace") or owner not in lives:
            continue
        try:
            size = run_program(buffer.size, sizes) * dtype(buffer.dtype).itemsize
        except ShapeError:
            unknown += 1
            continue
        bytes_[owner] = max(bytes_.get(owner, 0), size)
    owners = list(bytes_)
    spans = [lives[o] for o in owners]
    _, total = memory.place([bytes_[o] for o in owners], spans)
    bound = memory.lower_bound([bytes_[o] for o in owners], spans)
    return {
        "arena_bytes": total, "bound_bytes": bound, "ratio": total / bound if bound else 1.0, "data_dependent": unknown,
    }  # fmt: skip


def weight_bytes(plan: Plan) -> int:
    """Bytes of the original initializers."""
    total = 0
    for spec in plan.weights:
        count = dtype(spec.dtype).itemsize
        for extent in spec.shape:
            count *= extent
        total += count
    return total


def flops_by_dtype(plan: Plan, sizes: Mapping[str, int]) -> dict[str, int]:
    """Operations of a run's contractions by the element type that they multiply ("host": on the reference).

    What depends on data is left out.
    """
    stored = plan.meta.get("report")
    programs: Any = stored.get("flops", {}) if isinstance(stored, dict) else {}
    found: dict[str, int] = {}
    for name, parts in programs.items():
        total = 0
        for program in parts:
            try:
                total += run_program(program, sizes)
            except ShapeError:  # its size depends on data
                continue
        if total:
            found[str(name)] = total
    return found


def _section(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    shown = [f"  {entry}" for entry in entries[:_SHOWN]]
    more = [f"  … {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"{title}:", *shown, *more]


def ranges_text(data: Mapping[str, Any]) -> list[str]:
    """What an fp16 build knows of the ranges of its values, and what it keeps in fp32 for them; nothing for other precisions."""
    found = data.get("ranges")
    if not found or data["requested"].get("precision") != "fp16":
        return []
    if not found["measured"]:
        return [f"ranges: not measured: {found['reason'] or 'the build did not say'}"]
    name, largest = found["peak"]
    head = f"ranges: measured on {found['inputs']}; the largest value is {largest:.2g} ({name}), safe in fp16 is {found['limit']:.0f}"
    kept = [f"{k['node']}: {k['value']} reaches {k['largest']:.2g}" for k in found["kept"]]
    return [head, *_section("kept in fp32 for their range", kept)]


def rules_text(data: Mapping[str, Any] | None, verified: bool = True) -> list[str]:
    """What rewrite rules did, where they did something or nearly did; and against what the engine was checked, if it was."""
    if not data or not (data["matches"] or data["near_misses"]):
        return []
    lines = rule_lines(dict(data), _SHOWN, skipped=False)
    if data["matches"]:
        why = f", because {data['reason']}" if data.get("reason") else ""
        checked = data.get("checked_against", "nothing") if verified else "nothing: verification is off"
        lines[0] += f"; verified against {checked}{why if verified else ''}"
    return lines


def certificate_text(data: Mapping[str, Any]) -> str:
    """A certificate in one line."""
    if data.get("level", "off") == "off":
        return "verification: off"
    kernels, engine = data["kernels"], data["engine"]
    worst = kernels.get("worst") or []
    text = f"verification ({data['level']}): {kernels['checked']} of {kernels['distinct']} distinct fusions"
    if worst:
        text += f", worst {worst[0]['error']:.1e} ({worst[0]['tactic']})"
    if engine["checked"]:
        largest = max((o["relative_l2"] for o in engine["outputs"]), default=0.0)
        text += f"; engine end to end {largest:.1e}"
    else:
        text += f"; engine not checked: {engine['reason']}"
    return text + ("; not checked since the weights were changed or the kernels made again: run verify" if data.get("stale") else "")


def _at(sizes: Mapping[str, int]) -> str:
    return f" at {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else ""
