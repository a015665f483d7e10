"""Open blocks of C text while a kernel is printed, and the statements that accumulate reductions."""

from __future__ import annotations

from collections.abc import Callable

from dovetail.codegen import scalar
from dovetail.codegen.c_scalar import literal, local_type
from dovetail.codegen.loop_ir import Axis, Expr, Row
from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType


class Block:
    """An open C block: the axes bound here and outside, its lines, and what it has computed."""

    def __init__(self, parent: Block | None, axes: tuple[Axis, ...], *, lane: str | None = None) -> None:
        self.parent = parent
        self.bound: frozenset[str] = (parent.bound if parent else frozenset()) | {a.name for a in axes}
        self.own = axes
        self.lines: list[str] = []
        self.memo: dict[Expr, str] = {}
        self.texts: dict[str, str] = {}
        self.known: frozenset[Dim] = parent.known if parent else frozenset()
        self.fused: dict[Row, tuple[str, tuple[Axis, ...]]] = {}
        # In a loop over the vector axis: the lane variable.
        inherited: str | None = parent.lane if parent else None
        self.lane: str | None = lane if lane is not None else inherited

    def chain(self) -> list[Block]:
        """This block and its ancestors, outermost first."""
        blocks: list[Block] = []
        block: Block | None = self
        while block is not None:
            blocks.append(block)
            block = block.parent
        return blocks[::-1]

    def lookup(self, e: Expr) -> str | None:
        """The variable that holds e, if an open block has computed it."""
        block: Block | None = self
        while block is not None:
            if e in block.memo:
                return block.memo[e]
            block = block.parent
        return None


Body = Callable[[Block], list[str]]
"""Gives the lines that belong into a block; may add to the block itself what must stand before them."""


def indent(lines: list[str]) -> list[str]:
    """Lines one level deeper."""
    return ["  " + line for line in lines]


def wrap(condition: str, lines: list[str]) -> list[str]:
    """Lines under a condition (C text with its parentheses)."""
    return [f"if {condition} {{", *indent(lines), "}"]


def neutral(kind: str, dtype: DType) -> str:
    """What a reduction starts from."""
    return literal(scalar.neutral(kind, dtype), dtype)


def accumulate(kind: str, dtype: DType, acc: str, value: str, *, lanes: bool = False) -> str:
    """One accumulation; over lanes no reordering is wanted, hence plain operations."""
    operator = {"sum": "+", "prod": "*"}.get(kind)
    if dtype.is_float:
        suffix = "d" if dtype.name == "f64" else "f"
        if lanes and operator:
            return f"{acc} {operator} {value}"
        return f"dt_{kind}{'' if lanes else '_step'}{suffix}({acc}, {value})"
    if operator:
        return f"({local_type(dtype)})({acc} {operator} {value})"
    return f"{acc} {'>' if kind == 'max' else '<'} {value} ? {acc} : {value}"
