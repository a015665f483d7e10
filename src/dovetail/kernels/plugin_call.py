"""What a plugin's kernel body is given, and what it gives back; and what the tactics of all devices share.

    @one_hot.c(configs=[{"unroll": 4}, {"unroll": 1}])
    def one_hot_c(call, *, unroll):
        x, y = call.inputs[0], call.outputs[0]
        return f'''
    {call.prototype} {{
      const int64_t *x = {call.input(0)}; float *y = {call.output(0)};
      const int64_t rows = {call.dim(x.size)};
      …
    }}'''
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dovetail.codegen.kernel import Param
from dovetail.codegen.tactic import ROW_MAJOR, Config, Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, total
from dovetail.core.errors import BuildError, Error
from dovetail.ir.graph import Node
from dovetail.ir.types import TensorType
from dovetail.plugins import Body, Plugin, find
from dovetail.plugins.attributes import decode


class Declined(Exception):
    """A body does not cover a call, and says why."""


class PluginCall(ABC):
    """One call of a plugin, as a body of it sees it: types, attributes, and what pointers and run-time dims are called.

    Operands are dense and row-major. Kernels must not reach outside of them whatever their values are.

    Attributes:
        inputs: the types of the plugin's inputs; None where one is absent.
        outputs: the types of its results.
        attributes: as the plugin's function gets them.
        target: what the kernel is for; `str(target)` is such as "cpu:avx2" or "cuda:sm_90".
    """

    def __init__(self, group: Group, node: Node, target: Target) -> None:
        self.inputs: tuple[TensorType | None, ...] = tuple(None if v is None else group.inputs[v.index].tensor for v in node.inputs)
        self.outputs: tuple[TensorType, ...] = tuple(v.tensor for v in group.outputs)
        self.attributes: dict[str, Any] = decode(str(node.attrs.get("attributes", "{}")))
        self.target = target
        self._indices = tuple(None if v is None else v.index for v in node.inputs)
        self._where = node.where

    def input(self, position: int) -> str:
        """The pointer to an input, as text.

        Raises:
            BuildError: that input is absent.
        """
        index = self._indices[position] if 0 <= position < len(self._indices) else None
        if index is None:
            raise BuildError(f"{self._where}: its body reads input {position}, which the call lacks; ask `call.inputs` first")
        return self.pointer(Param("in", index), group_type(self.inputs[position]))

    def output(self, position: int = 0) -> str:
        """The pointer to a result, as text."""
        return self.pointer(Param("out", position), self.outputs[position])

    def decline(self, reason: str) -> NoReturn:
        """Leave this call to the plugin's function, or this configuration to the others."""
        raise Declined(reason)

    @abstractmethod
    def pointer(self, param: Param, type_: TensorType) -> str:
        """The name of a parameter."""

    @abstractmethod
    def dim(self, dim: Dim) -> str:
        """A dim as text: a literal, or an expression over what the run passes."""

    @property
    def moved(self) -> Dim:
        """Bytes of all operands."""
        operands = [t for t in (*self.inputs, *self.outputs) if t is not None]
        return total(t.size * t.dtype.itemsize for t in operands)


def group_type(type_: TensorType | None) -> TensorType:
    """The type of an input that is there."""
    assert type_ is not None
    return type_


class PluginTactic(Tactic):
    """A plugin's own kernel body on one device."""

    name = "plugin"
    kinds = ("plugin",)
    language: str

    def supports(self, group: Group, target: Target) -> str | None:
        """A call of a plugin whose body for this device takes it in some configuration."""
        node = group.anchor
        if node is None or node.op != "Plugin" or len(group.body) != 1:
            return "the group is not one call of a plugin"
        found = plugin_of(node)
        if found is None:
            return f"plugin {node.attrs.get('name')} is not registered"
        if self.device not in found.bodies:
            where = "; it runs as Python on the GPU's arrays" if self.device == "cuda" and found.gpu_function is not None else ""
            return f"plugin {found.key} has no {self.language} body{where}"
        if node.attrs.get("symbols"):
            return "the run decides how large its results are"
        if any(t.dtype.kind == "string" for t in (*(v.tensor for v in group.inputs), *(v.tensor for v in group.outputs))):
            return "strings live on the host"
        taken, reasons = self._taken(group, target)
        return None if taken else f"its {self.language} body declines: {'; '.join(dict.fromkeys(reasons))}"

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Dense operands."""
        return (ROW_MAJOR,) * len(group.inputs), (ROW_MAJOR,) * len(group.outputs)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The configurations that the body takes, in its order."""
        return self._taken(group, target)[0]

    def tolerance(self, group: Group) -> float:
        """The plugin's own, where it states one."""
        found = None if group.anchor is None else plugin_of(group.anchor)
        return self.relative_error() if found is None or found.tolerance is None else found.tolerance

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """What the body prints."""
        try:
            return self._printed(group, config, target)
        except Declined as declined:
            raise BuildError(f"{group.node.where}: its {self.language} body declines {dict(config)}: {declined}") from declined

    @abstractmethod
    def make_call(self, group: Group, node: Node, target: Target) -> PluginCall:
        """The call as the body is to see it."""

    @abstractmethod
    def finish(self, call: PluginCall, answer: object, config: Config) -> Emitted:
        """The kernel of a body's answer.

        Raises:
            TypeError: it is no such answer.
        """

    def _taken(self, group: Group, target: Target) -> tuple[list[Config], list[str]]:
        """(configurations that the body takes, why it declines the others)."""
        assert group.anchor is not None
        found = plugin_of(group.anchor)
        assert found is not None
        body = found.bodies[self.device]
        taken: list[Config] = []
        reasons: list[str] = []
        for config in self._configs(body, found, group, group.anchor, target):
            try:
                self._printed(group, config, target)
                taken.append(config)
            except Declined as declined:
                reasons.append(str(declined))
        return taken, reasons

    def _configs(self, body: Body, found: Plugin, group: Group, node: Node, target: Target) -> list[Config]:
        listed: object = body.configs
        if callable(listed):
            listed = self._asked(found, "configurations", lambda: list(body.configs(self.make_call(group, node, target))))  # type: ignore[operator]
        assert isinstance(listed, Sequence)
        configs = []
        for config in listed:
            if not isinstance(config, Mapping) or not all(isinstance(k, str) and type(v) in (int, str) for k, v in config.items()):
                raise BuildError(f"plugin {found.key}: got the configuration {config!r}, expected a dict of ints and text by name")
            configs.append(tuple(config.items()))
        return configs

    def _printed(self, group: Group, config: Config, target: Target) -> Emitted:
        assert group.anchor is not None
        found = plugin_of(group.anchor)
        if found is None or self.device not in found.bodies:
            raise BuildError(f"{group.node.where}: plugin {group.anchor.attrs.get('name')} has lost its {self.language} body; register it")
        call = self.make_call(group, group.anchor, target)
        answer = self._asked(found, f"{self.language} body", lambda: found.bodies[self.device].function(call, **dict(config)))
        made: Emitted = self._asked(found, f"{self.language} body", lambda: self.finish(call, answer, config))
        return made

    @staticmethod
    def _asked(found: Plugin, what: str, ask: Any) -> Any:
        try:
            return ask()
        except (Declined, Error):
            raise
        except Exception as error:
            raise BuildError(f"plugin {found.key}: its {what} failed ({type(error).__name__}: {error}); correct the function") from error


def plugin_of(node: Node) -> Plugin | None:
    """The plugin that a node calls."""
    attrs = node.attrs
    return find(attrs.get("name", ""), attrs.get("version", "1"), attrs.get("namespace", ""))
