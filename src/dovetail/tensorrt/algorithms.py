"""A client's `IAlgorithmSelector` around what decides between tactics: it is asked for every group of layers, and told what was taken."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from dovetail.api.workspace import workspace_of
from dovetail.builder.select import Chooser, Decision
from dovetail.codegen.tactic import Config, Group, Tactic, only
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate_at
from dovetail.core.errors import BuildError
from dovetail.ir.graph import Value
from dovetail.tensorrt.calibrator import (
    IAlgorithm,
    IAlgorithmContext,
    IAlgorithmIOInfo,
    IAlgorithmSelector,
    IAlgorithmVariant,
)
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.enums import DataType
from dovetail.tensorrt.hooks import call
from dovetail.tensorrt.logger import Reporter


def asking(selector: IAlgorithmSelector, reporter: Reporter) -> Callable[[Chooser], Chooser]:
    """What `dovetail.build` puts around its choice (`selector`)."""

    def around(choose: Chooser) -> Chooser:
        def decide(groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]) -> Sequence[Decision]:
            contexts = [_context(group, sizes) for group, _ in groups]
            left = []
            for (group, able), context in zip(groups, contexts, strict=True):
                ways = [(tactic, config) for tactic in able for config in tactic.configs(group, target)]
                choices = [_algorithm(group, tactic, config, target, sizes) for tactic, config in ways]
                asked = call(reporter, "select_algorithms", selector.select_algorithms, context, choices, default=list(range(len(ways))))
                kept = {i for i in asked if isinstance(i, int) and 0 <= i < len(ways)}
                if not kept:
                    raise BuildError(f"algorithm selector: got no algorithm for {context.name!r}, expected some of {len(ways)}")
                left.append((group, only(able, [way for i, way in enumerate(ways) if i in kept])))
            decisions = choose(left, target, sizes)
            taken = [
                _algorithm(group, tactic, config, target, sizes, min(dict(times).values(), default=0.0))
                for (group, _), (tactic, config, times) in zip(left, decisions, strict=True)
            ]
            call(reporter, "report_algorithms", selector.report_algorithms, contexts, taken, default=None)
            return decisions

        return decide

    return around


def _context(group: Group, sizes: Mapping[str, int]) -> IAlgorithmContext:
    names = dict.fromkeys(name for node in group.body.nodes for name in node.origin)
    shapes = [[Dims(_shape(v, sizes))] * 3 for v in (*group.inputs, *group.outputs)]
    return IAlgorithmContext(" + ".join(names) or group.node.where, shapes, len(group.inputs))


def _algorithm(
    group: Group, tactic: Tactic, config: Config, target: Target, sizes: Mapping[str, int], time_us: float = 0.0
) -> IAlgorithm:
    """A tactic and its configuration as an algorithm: numbers of their names, which stay the same from build to build."""
    variant = IAlgorithmVariant(zlib.crc32(tactic.name.encode()), zlib.crc32(f"{tactic.name} {config}".encode()))
    infos = [IAlgorithmIOInfo(_data_type(v), Dims(_strides(_shape(v, sizes)))) for v in (*group.inputs, *group.outputs)]
    return IAlgorithm(variant, infos, time_us / 1000, workspace_of(group, tactic, config, target, sizes))


def _data_type(value: Value) -> DataType:
    """The element type; FLOAT for those that TensorRT does not have."""
    try:
        return to_data_type(value.dtype)
    except TypeError:
        return DataType.FLOAT


def _shape(value: Value, sizes: Mapping[str, int]) -> list[int]:
    """The shape at the likely sizes; the first axes, where there are more than TensorRT has."""
    extents = [evaluate_at(d, sizes) for d in value.shape]
    return extents[: Dims.MAX_DIMS]


def _strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return strides[::-1]
