"""`dovetail.bisect`: which rewrite, fusion or kernel makes an engine compute something else than its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dovetail.api.building import build
from dovetail.api.comparison import Comparison, compare, default_tolerance
from dovetail.api.engine import Engine
from dovetail.core.errors import Error, UsageError
from dovetail.frontend.reader import ModelSource
from dovetail.ir.limit import Rewritten, limited

Tried = Callable[[str], None]
"""Told in words what each build has shown."""


@dataclass(frozen=True)
class Culprit:
    """What a bisection has found.

    Attributes:
        kind: "none" (the engine is right), "rewrite" (a rule or a fusion), or "kernel" (wrong although nothing is rewritten).
        what: the rule, the fusion, or the tactic.
        where: the node or nodes of the model.
        error: largest relative L2 distance of an output with it.
        without: the same without it.
        tolerance: what was allowed.
        number: which of the rewrites of the build it is, counted from 1; 0 for kernels.
        rewrites: how many the whole build makes.
        builds: how many engines were built to find it.
        first_bad: the first value that is off, where values could be compared; else "".
    """

    kind: str
    what: str
    where: str
    error: float
    without: float
    tolerance: float
    number: int
    rewrites: int
    builds: int
    first_bad: str

    @property
    def ok(self) -> bool:
        """Whether there was nothing to find."""
        return self.kind == "none"

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; infinities as text."""
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()} | {"ok": self.ok}

    def __str__(self) -> str:
        if self.ok:
            return f"the engine is right: relative L2 {self.error:.1e}, allowed {self.tolerance:.0e}"
        lines = [f"{self.kind}: {self.what}", f"at: {self.where}"]
        if self.kind == "rewrite":
            lines.append(
                f"rewrite {self.number} of {self.rewrites}: relative L2 {self.error:.1e} with it, {self.without:.1e} without it, "
                f"allowed {self.tolerance:.0e}"
            )
        else:
            other = f"{self.without:.1e} with another kernel" if self.without != self.error else "and no other kernel computes it"
            lines.append(f"relative L2 {self.error:.1e} with it, {other}, allowed {self.tolerance:.0e}")
        if self.first_bad:
            lines.append(f"first value that is off: {self.first_bad}")
        return "\n".join([*lines, f"found with {self.builds} builds"])


def bisect(
    model: ModelSource,
    inputs: Mapping[str, Any] | None = None,
    *,
    tolerance: float | None = None,
    tried: Tried | None = None,
    **options: Any,
) -> Culprit:
    """Find what makes the engine of a model wrong, by builds that make fewer and fewer of the compiler's rewrites.

    Args:
        model: what `dovetail.build` takes.
        inputs: arrays by name on which it is wrong; default: seeded ones.
        tolerance: relative L2 distance of outputs up to which an engine is right; default: the precision's, as in `compare`.
        tried: told after each build what it showed.
        options: of `dovetail.build`. Tactics are chosen by rule unless `tune=True` is given; nothing is verified.

    Raises:
        UsageError: options that cannot be used here.
        dovetail.Error: the model cannot be built, or not run on the inputs.
    """
    if "verify" in options:
        raise UsageError("bisect: got verify=, expected options of the engine that is wrong; every build is compared with the model here")
    options = {"tune": False, **options, "verify": "off"}
    allowed = default_tolerance(options) if tolerance is None else tolerance
    search = _Search(model, inputs, allowed, tried or (lambda text: None), options)
    return search.find()


class _Search:
    def __init__(
        self, model: ModelSource, inputs: Mapping[str, Any] | None, tolerance: float, tried: Tried, options: Mapping[str, Any]
    ) -> None:
        self.model, self.inputs, self.tolerance, self.tried, self.options = model, inputs, tolerance, tried, options
        self.builds = 0

    def find(self) -> Culprit:
        error, rewrites, engine = self.attempt(None)
        total = len(rewrites)
        if error <= self.tolerance:
            return self.culprit("none", "", "", error, error, 0, total, "")
        bad, good, wrong = total, 0, (error, engine)
        bare, _, engine = self.attempt(0)
        if not bare <= self.tolerance:
            return self.kernel(bare, engine, total)
        right = bare
        while bad - good > 1:
            middle = (good + bad) // 2
            error, _, engine = self.attempt(middle)
            if error <= self.tolerance:
                good, right = middle, error
            else:
                bad, wrong = middle, (error, engine)
        found = rewrites[bad - 1]
        return self.culprit("rewrite", found.what, found.where, wrong[0], right, bad, total, self.first_bad(wrong[1]))

    def attempt(self, most: int | None, without: tuple[str, ...] = ()) -> tuple[float, list[Rewritten], Engine | None]:
        """(largest error, rewrites made, engine) of a build with so many rewrites; an engine that fails is infinitely wrong."""
        self.builds += 1
        with limited(most) as limit:
            try:
                engine = build(self.model, without=without, **self.options)
            except Error as failure:
                if most == 0 or not limit.made:
                    raise  # no rewrite is to blame
                self.tried(f"build {self.builds}: {_limit_text(most, limit.made)}: the build fails: {failure}")
                return math.inf, limit.made, None
        try:
            error = max((d.relative_l2 for d in self.compared(engine).outputs), default=0.0)
        except Error as failure:
            if most is None and self.builds == 1:
                compare(self.model, self.model, self.inputs)  # where the model itself does not run, no engine is to blame
            self.tried(f"build {self.builds}: {_limit_text(most, limit.made)}: the run fails: {failure}")
            return math.inf, limit.made, None
        error = math.inf if math.isnan(error) else error
        verdict = "right" if error <= self.tolerance else "wrong"
        self.tried(f"build {self.builds}: {_limit_text(most, limit.made)}: {verdict}, relative L2 {error:.1e}")
        return error, limit.made, engine

    def compared(self, engine: Engine, layers: bool = False) -> Comparison:
        return compare(self.model, engine, self.inputs, layers, tolerance=self.tolerance)

    def first_bad(self, engine: Engine | None) -> str:
        if engine is None:
            return ""
        bad = self.compared(engine, layers=True).first_bad
        return "" if bad is None else f"{bad.name} (relative L2 {bad.relative_l2:.1e})"

    def kernel(self, error: float, engine: Engine | None, total: int) -> Culprit:
        """With every node in a kernel of its own, the kernel that gives the first bad value is to blame."""
        if engine is None:
            return self.culprit("kernel", "a step that fails", "see the error above", error, error, 0, total, "")
        bad = self.compared(engine, layers=True).first_bad
        name = "" if bad is None else bad.name
        report: Any = engine.plan.meta["report"]
        group = next((g for g in report["groups"] if g["name"] == name), None)
        first = "" if bad is None else f"{name} (relative L2 {bad.relative_l2:.1e})"
        if group is None:
            return self.culprit("kernel", "a step that is no kernel of a group", name, error, error, 0, total, first)
        other = self.attempt(0, (str(group["tactic"]),))[0]
        return self.culprit("kernel", str(group["tactic"]), ", ".join(group["origin"]), error, other, 0, total, first)

    def culprit(self, kind: str, what: str, where: str, error: float, without: float, number: int, rewrites: int, first: str) -> Culprit:
        return Culprit(kind, what, where, error, without, self.tolerance, number, rewrites, self.builds, first)


def _limit_text(most: int | None, made: list[Rewritten]) -> str:
    return f"all {len(made)} rewrites" if most is None else f"the first {most} rewrites"
