"""What measuring takes of candidates, with every size evaluated: no graph and no symbols, so that another process can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dovetail.codegen.kernel import Kernel, Launch, TensorMap
from dovetail.codegen.tactic import Emitted, Step
from dovetail.core.dims import Dim, evaluate
from dovetail.core.errors import ExecutionError
from dovetail.engine.memory import Lifetime
from dovetail.ir.graph import Time, Value
from dovetail.ops.registry import SELECT, find
from dovetail.passes.views import is_view
from dovetail.tuner.cuda_choose import Contender, Placed
from dovetail.tuner.cuda_pool import Span, span

_INTEGER_OPS = frozenset({"Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"})


@dataclass(frozen=True)
class Trial:
    """A candidate to be timed.

    Attributes:
        name: tactic and configuration.
        emitted: its kernels; all dims are numbers.
        spans: memory of the operands, inputs first.
        integers: which operands are zeros, as they may be indices.
        known: which operands are known before a run.
        inputs: how many operands are inputs.
    """

    name: str
    emitted: Emitted
    spans: tuple[Span, ...]
    integers: tuple[bool, ...]
    known: tuple[bool, ...]
    inputs: int


@dataclass(frozen=True)
class Region:
    """Memory that operands of a network share: `kind` is "float", "integer" or "weight"; `life` counts sites."""

    size: int
    kind: str
    life: Lifetime


@dataclass(frozen=True)
class Site:
    """A group of a network: what competes for it, and the region of each operand."""

    key: str
    trials: tuple[Trial, ...]
    regions: tuple[int, ...]


@dataclass(frozen=True)
class NetworkTrial:
    """All groups of a model in order."""

    regions: tuple[Region, ...]
    sites: tuple[Site, ...]

    @property
    def trials(self) -> list[Trial]:
        """Those of all sites."""
        return [trial for site in self.sites for trial in site.trials]


def trial(contender: Contender, sizes: Mapping[str, int]) -> Trial:
    """A contender at given sizes.

    Raises:
        ShapeError: a dim that these sizes do not give.
    """
    group = contender.group
    values = (*group.inputs, *group.outputs)
    known = [v.time != Time.RUN for v in group.inputs] + [False] * len(group.outputs)
    return Trial(
        contender.name, concrete(contender.emitted, sizes), tuple(span(v.tensor, sizes) for v in values),
        tuple(not v.tensor.dtype.is_float for v in values), tuple(known), len(group.inputs),
    )  # fmt: skip


def concrete(emitted: Emitted, sizes: Mapping[str, int]) -> Emitted:
    """The same kernels with numbers for dims, without what launching them does not take."""
    steps = tuple(Step(_kernel(step.kernel, sizes), step.args) for step in emitted.steps)
    return Emitted(steps, _numbers(emitted.temps, sizes))


def _kernel(kernel: Kernel, sizes: Mapping[str, int]) -> Kernel:
    return replace(
        kernel, source=kernel.source if kernel.library else "", dims=_numbers(kernel.dims, sizes), flops=0, bytes=0, config=(),
        workspace_bytes=evaluate(kernel.workspace_bytes, sizes),
        launch=None if kernel.launch is None else _launch(kernel.launch, sizes),
    )  # fmt: skip


def _launch(launch: Launch, sizes: Mapping[str, int]) -> Launch:
    x, y, z = _numbers(launch.grid, sizes)
    maps = tuple(
        None if m is None else TensorMap(_numbers(m.shape, sizes), _numbers(m.strides, sizes), m.block) for m in launch.maps
    )
    return replace(launch, grid=(x, y, z), maps=maps)


def _numbers(dims: Sequence[Dim], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, sizes) for d in dims)


# ---------------------------------------------------------------------- networks
def network_trial(groups: Sequence[Placed]) -> NetworkTrial:
    """All groups of a model with what competes for them.

    Raises:
        ExecutionError: the network cannot be timed without its data.
    """
    reason = problem(groups)
    if reason is not None:
        raise ExecutionError(f"network: {reason}; its groups are timed alone only")
    numbers: dict[object, int] = {}
    regions: list[Region] = []
    sites = []
    for position, placed in enumerate(groups):
        inputs, outputs = placed.group.inputs, placed.group.outputs
        trials = tuple(trial(c, placed.sizes) for c in placed.contenders)
        used = []
        for operand, value in enumerate((*inputs, *outputs)):
            # Results always: a constant may be copied to where a concatenation wants it, and such a copy is no run-time value.
            if value.time == Time.RUN or operand >= len(inputs):
                root = _root(value)
                key: object = root
                size = max(span(v.tensor, placed.sizes).size for v in (root, value))
                kind = "float" if root.tensor.dtype.is_float else "integer"
            else:
                key = (value, operand)
                size = max((t.spans[operand].size for t in trials), default=0)
                kind = "weight"
            if key not in numbers:
                numbers[key] = len(regions)
                regions.append(Region(size, kind, Lifetime(position, position)))
            number = numbers[key]
            known = regions[number]
            regions[number] = Region(max(size, known.size), kind, Lifetime(known.life.first, position))
            used.append(number)
        sites.append(Site(placed.key, trials, tuple(used)))
    return NetworkTrial(tuple(regions), tuple(sites))


def problem(groups: Sequence[Placed]) -> str | None:
    """None if the network can be timed, else why not: addresses that the data decide could lead anywhere."""
    for placed in groups:
        addressed = any(n.op in _INTEGER_OPS or ((s := find(n.op)) is not None and s.kind == SELECT) for n in placed.group.body.nodes)
        if addressed and any(_root(v).producer is not None and v.time == Time.RUN and v.tensor.dtype.is_int for v in placed.group.inputs):
            return f"{placed.group.node.where} reads at addresses that the run computes"
    return None


def _root(value: Value) -> Value:
    while value.producer is not None and is_view(value.producer):
        value = value.producer.input(0)
    return value
