"""Tactics: the ways to compute a fused group on a target, and their registry.

A tactic declares whether it can compute a group (or the reason why not), which layouts its operands must have, how
constant operands are packed, its configurations in order of preference, and emits kernels for one configuration.
Layout assignment asks `layouts`, selection asks `supports`, `configs` and `packs`, emission asks `emit`.

Address convention: the pointer a kernel gets for an operand is the address of the logical element (0, 0, …) of that value;
strides come from the operand's type (`value.tensor.placement.strides(shape)`) and are literals or run-time dims in the source.
Halo and pitch only show in the strides, so that kernels of equal strides share one source.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim
from dovetail.core.errors import NoTacticError
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.layout import Layout, channels_last, row_major
from dovetail.ir.types import TensorType

# What a tactic asks of an operand's placement.
ANY = "any"  # any strides
ROWS = "rows"  # neighbours on the last axis are neighbours in memory; other strides are free
ROW_MAJOR = "row_major"
CHANNELS_LAST = "channels_last"

Config = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True)
class Group:
    """A Fusion node seen by tactics.

    Attributes:
        node: the Fusion node; its inputs and outputs carry the operand types with layouts.
        body: its region; body inputs correspond to node inputs by position, as do outputs.
        anchor: the body node that the template is built around, None for plain loops.
    """

    node: Node
    body: Graph
    anchor: Node | None

    @property
    def kind(self) -> str:
        """The fusion kind: "loop", "conv", "matmul", …"""
        return str(self.node.attrs["kind"])

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Outer values read, by position."""
        return self.node.operands

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Outer values written, by position."""
        return self.node.outputs

    def outer(self, value: Value) -> Value | None:
        """The outer value of a body input; None for a value computed inside."""
        if value.producer is not None:
            return None
        return self.node.input(value.index)

    def position(self, value: Value) -> int | None:
        """The input position of a body input; None for a value computed inside."""
        return value.index if value.producer is None else None


@dataclass(frozen=True)
class Operand:
    """A kernel argument: ("in", i), ("out", i) of the group, ("temp", i) between its kernels, ("workspace", 0) or ("counters", 0)."""

    role: str
    index: int


@dataclass(frozen=True)
class Step:
    """One kernel call; a barrier stands before the next step."""

    kernel: Kernel
    args: tuple[Operand, ...]


@dataclass(frozen=True)
class Emitted:
    """The kernels of a group in order.

    Attributes:
        steps: kernel calls.
        temps: bytes of each temporary buffer (shared by all threads).
        in_place: (output position, input position) pairs that may share memory, element for element.
    """

    steps: tuple[Step, ...]
    temps: tuple[Dim, ...] = ()
    in_place: tuple[tuple[int, int], ...] = ()


def single(kernel: Kernel, in_place: tuple[tuple[int, int], ...] = ()) -> Emitted:
    """The emission of a group by one kernel whose parameters name the group's operands."""
    return Emitted((Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params)),), (), in_place)


@dataclass(frozen=True)
class Pack:
    """A rearrangement of one constant or run-time operand that a configuration wants: an op with attributes."""

    position: int
    op: str
    attrs: tuple[tuple[str, object], ...]


class Tactic(ABC):
    """One way to compute groups of some kinds on one device."""

    name: ClassVar[str]
    device: ClassVar[str] = "cpu"
    kinds: ClassVar[tuple[str, ...]]
    fallback: ClassVar[bool] = False
    """Computes almost anything and is rarely fast: competes only where no other tactic is able."""

    @abstractmethod
    def supports(self, group: Group, target: Target) -> str | None:
        """None if this tactic computes the group, else the reason why not."""

    def prologue(self, anchor: Node, producer: Node, target: Target) -> str | None:
        """None if groups around `anchor` may compute `producer`, a pointwise node ahead of its first operand, as they load; else why not.

        `supports` has the last word on the whole group; one that it refuses is built without its prologue.
        """
        return f"{anchor.op} takes no prologue"

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(per input, per output) placement wanted: ANY, ROWS, ROW_MAJOR or CHANNELS_LAST (any pitch)."""
        return (ANY,) * len(group.node.inputs), (ANY,) * len(group.outputs)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Configurations, the heuristic choice first."""
        return ((),)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """Operands to be packed before the kernels run (at weight time where they are constant)."""
        return ()

    @abstractmethod
    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The kernels for one configuration; packed operands already have their packed types."""

    def relative_error(self) -> float:
        """Relative L2 error that verification accepts for this tactic in fp32."""
        return 1e-5

    def tolerance(self, group: Group) -> float:
        """The same for one group: what this tactic's arithmetic has, unless the group says otherwise."""
        return self.relative_error()


_tactics: list[Tactic] = []


def tactic(cls: type[Tactic]) -> type[Tactic]:
    """Register a tactic class; the order of registration is the order of preference."""
    if any(t.name == cls.name and t.device == cls.device for t in _tactics):
        raise ValueError(f"tactic {cls.name} for {cls.device} is registered twice")
    _tactics.append(cls())
    return cls


def tactics(kind: str, device: str) -> tuple[Tactic, ...]:
    """All tactics for groups of a kind on a device, by preference."""
    return tuple(t for t in _tactics if t.device == device and kind in t.kinds)


def candidates(group: Group, target: Target) -> tuple[list[Tactic], list[str]]:
    """(tactics that compute the group, "name: reason" of those that do not).

    A fallback is asked only if nothing preferred to it is able.
    """
    able: list[Tactic] = []
    reasons: list[str] = []
    for candidate in tactics(group.kind, target.device):
        if candidate.fallback and able:
            continue
        reason = candidate.supports(group, target)
        if reason is None:
            able.append(candidate)
        else:
            reasons.append(f"{candidate.name}: {reason}")
    return able, reasons


def only(able: Sequence[Tactic], ways: Sequence[tuple[Tactic, Config]]) -> list[Tactic]:
    """The tactics of some ways, each with the configurations that these have."""
    made = []
    for tactic in able:
        configs = tuple(config for other, config in ways if other is tactic)
        if configs:
            limited = copy.copy(tactic)
            limited.configs = lambda group, target, configs=configs: configs  # type: ignore[method-assign,misc]
            made.append(limited)
    return made


def require(group: Group, target: Target) -> list[Tactic]:
    """The tactics that compute the group.

    Raises:
        NoTacticError: none does; the message gives each one's reason.
    """
    able, reasons = candidates(group, target)
    if not able:
        tried = "; ".join(reasons) or "none is registered"
        raise NoTacticError(f"{group.node.where}: no tactic for a {group.kind} group on {target}; tried {tried}")
    return able


def wanted_layout(want: str, type: TensorType) -> Layout | None:
    """The dense layout that fulfils a placement word for a type; None for ANY."""
    if want == CHANNELS_LAST:
        return channels_last(type.rank)
    return None if want == ANY else row_major(type.rank)
