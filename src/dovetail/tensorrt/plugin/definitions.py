"""The decorators `register`, `impl`, `aot_impl`, `autotune`, and the operators of `tensorrt.plugin.op`."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dovetail.tensorrt.enums import QuickPluginCreationRequest, TensorRTPhase
from dovetail.tensorrt.plugin.attributes import check, encoded, field_type
from dovetail.tensorrt.plugin.template import QuickCreator
from dovetail.tensorrt.plugin.tensors import TensorDesc
from dovetail.tensorrt.plugin_fields import PluginField, PluginFieldCollection
from dovetail.tensorrt.plugin_registry import get_plugin_registry
from dovetail.tensorrt.tensor import ITensor

F = TypeVar("F", bound=Callable[..., Any])

class Definition:
    """A plugin by its decorated functions; called with tensors and attributes, it gives what `add_plugin` takes.

    Attributes:
        namespace, name: its id.
        describe, impl, aot_impl, autotune: the functions; None for one that is not defined.
        tensors: names of the inputs.
        attributes: annotations of the attributes.
        outputs: how many outputs it has.
    """

    def __init__(self, namespace: str, name: str, describe: Callable[..., Any]) -> None:
        self.namespace, self.name, self.describe = namespace, name, describe
        self.impl: Callable[..., Any] | None = None
        self.aot_impl: Callable[..., Any] | None = None
        self.autotune: Callable[..., Any] | None = None
        where = f"{namespace}::{name}"
        hints = _hints(describe)
        self.tensors: list[str] = []
        self.attributes: dict[str, Any] = {}
        for parameter in inspect.signature(describe).parameters.values():
            annotation = hints.get(parameter.name)
            if annotation is None:
                raise ValueError(f"{where}: got {parameter.name!r} without annotation, expected TensorDesc or an attribute's type")
            if isinstance(annotation, type) and issubclass(annotation, TensorDesc):
                if self.attributes:
                    raise ValueError(f"{where}: got the tensor {parameter.name!r} behind attributes, expected all tensors first")
                self.tensors.append(parameter.name)
            else:
                field_type(annotation, f"{where}: {parameter.name}")
                self.attributes[parameter.name] = annotation
        if not self.tensors:
            raise ValueError(f"{where}: got no parameter of type TensorDesc, expected at least one input")
        self.outputs = _outputs(hints.get("return"), where)
        self.creator = QuickCreator(self)

    def field_names(self) -> PluginFieldCollection:
        """The attributes, for parsers."""
        return PluginFieldCollection(PluginField(n, None, field_type(a, n)) for n, a in self.attributes.items())

    def enlist(self) -> None:
        """Make the creator known to the registry."""
        registry = get_plugin_registry()
        if registry.find(self.name, "1", self.namespace) is not self.creator:
            registry.register_creator(self.creator, self.namespace)

    def taken(self, function: Callable[..., Any] | None) -> list[str]:
        """The attributes that a function takes, in its order."""
        return [] if function is None else [n for n in inspect.signature(function).parameters if n in self.attributes]

    def selected(self, function: Callable[..., Any], attributes: Mapping[str, Any]) -> list[Any]:
        """The values of the attributes that a function takes."""
        return [attributes[name] for name in self.taken(function)]

    @staticmethod
    def wants_tactic(function: Callable[..., Any]) -> bool:
        """Whether a function takes the tactic."""
        return "tactic" in inspect.signature(function).parameters

    def check(self, function: Callable[..., Any], last: tuple[str, ...], optional: tuple[str, ...]) -> None:
        """Refuse a function whose parameters are not those of the registered one.

        Raises:
            ValueError: they are not.
        """
        where = f"{self.namespace}::{self.name}: {getattr(function, '__name__', function)}"
        names = list(inspect.signature(function).parameters)
        tensors, rest = names[: len(self.tensors)], names[len(self.tensors) :]
        tail = [n for n in rest if n not in self.attributes]
        if tensors != self.tensors or not set(last) <= set(tail) or not set(tail) <= {*last, *optional}:
            wanted = [*self.tensors, *self.attributes, *last]
            raise ValueError(f"{where}: got the parameters {names}, expected those of {wanted}; attributes may be left out")
        hints = _hints(function)
        for name in rest:
            if name in hints and name in self.attributes and hints[name] != self.attributes[name]:
                raise ValueError(f"{where}: got {hints[name]!r} for {name!r}, expected {self.attributes[name]!r} as it is registered")

    def __call__(self, *args: Any, **kwargs: Any) -> Callable[..., tuple[list[ITensor], list[ITensor], Any]]:
        """What `INetworkDefinition.add_plugin` takes, of tensors of a network and attributes.

        Raises:
            ValueError: the wrong tensors or attributes.
        """
        where = f"{self.namespace}::{self.name}"
        if len(args) != len(self.tensors) or not all(isinstance(t, ITensor) for t in args):
            raise ValueError(f"{where}: got {[type(t).__name__ for t in args]}, expected {len(self.tensors)} of ITensor")
        if set(kwargs) != set(self.attributes):
            raise ValueError(f"{where}: got the attributes {sorted(kwargs)}, expected {sorted(self.attributes)}")
        for name, value in kwargs.items():
            check(value, self.attributes[name], f"{where}: {name}")
        self.enlist()

        def make(request: QuickPluginCreationRequest | None = None) -> tuple[list[ITensor], list[ITensor], Any]:
            wanted = QuickPluginCreationRequest.UNKNOWN if request is None else request
            fields = encoded({name: kwargs[name] for name in self.attributes})
            return list(args), [], self.creator.create_plugin(self.name, self.namespace, fields, TensorRTPhase.BUILD, wanted)

        return make


class _Namespace(types.ModuleType):
    """The plugins of a namespace as attributes."""

    def __getattr__(self, name: str) -> Any:
        there = ", ".join(sorted(_public(self))) or "none"
        raise AttributeError(f"{self.__name__}: got {name!r}, expected a plugin that is registered: {there}")


op = _Namespace("tensorrt.plugin.op")
_definitions: dict[str, Definition] = {}


def _public(module: types.ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def register(plugin_id: str, lazy_register: bool = False) -> Callable[[F], F]:
    """Define a plugin `namespace::name` by a function that describes its outputs.

    The function gets a TensorDesc per input, then attributes, all annotated, and returns a TensorDesc or a tuple of them, as its
    annotation says. The plugin is `tensorrt.plugin.op.namespace.name`.

    Args:
        plugin_id: `namespace::name`.
        lazy_register: wait with the registry's creator until the plugin is first used.

    Raises:
        ValueError: the id is taken or malformed, or annotations are missing.
    """

    def decorate(function: F) -> F:
        namespace, separator, name = plugin_id.partition("::")
        if not separator or not namespace.isidentifier() or not name.isidentifier():
            raise ValueError(f"register: got {plugin_id!r}, expected 'namespace::name' of identifiers")
        if plugin_id in _definitions:
            raise ValueError(f"register: got {plugin_id!r} a second time, expected another name")
        made = Definition(namespace, name, function)
        _definitions[plugin_id] = made
        home = vars(op).get(namespace)
        if home is None:
            home = _Namespace(f"tensorrt.plugin.op.{namespace}")
            setattr(op, namespace, home)
        setattr(home, name, made)
        if not lazy_register:
            made.enlist()
        return function

    return decorate


def impl(plugin_id: str) -> Callable[[F], F]:
    """Define how a registered plugin runs: a function of tensors, attributes (or some of them), `outputs`, `stream`, maybe `tactic`.

    Raises:
        ValueError: the plugin is not registered, or the parameters do not fit.
    """

    def decorate(function: F) -> F:
        found = _registered(plugin_id)
        found.check(function, ("outputs", "stream"), ("tactic",))
        found.impl = function
        return function

    return decorate


def aot_impl(plugin_id: str) -> Callable[[F], F]:
    """Define how a registered plugin is compiled: a function of descriptions, attributes, `outputs`, maybe `tactic`.

    It returns the kernel's name, its PTX, `KernelLaunchParams` and `SymIntExprs`.

    Raises:
        ValueError: the plugin is not registered, or the parameters do not fit.
    """

    def decorate(function: F) -> F:
        found = _registered(plugin_id)
        found.check(function, ("outputs",), ("tactic",))
        found.aot_impl = function
        return function

    return decorate


def autotune(plugin_id: str) -> Callable[[F], F]:
    """Define what types, formats and tactics a registered plugin offers: a function of descriptions, attributes, `outputs`.

    It returns a list of `AutoTuneCombination`. Without one, types are those of the network, and formats LINEAR.

    Raises:
        ValueError: the plugin is not registered, or the parameters do not fit.
    """

    def decorate(function: F) -> F:
        found = _registered(plugin_id)
        found.check(function, ("outputs",), ())
        found.autotune = function
        return function

    return decorate


def _registered(plugin_id: str) -> Definition:
    if plugin_id not in _definitions:
        raise ValueError(f"Plugin {plugin_id} is not registered. Did you register it with tensorrt.plugin.register API?")
    return _definitions[plugin_id]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _outputs(annotation: Any, where: str) -> int:
    """The number of outputs that a return annotation tells."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (annotation,)
    if not members or not all(isinstance(m, type) and issubclass(m, TensorDesc) for m in members):
        raise ValueError(f"{where}: got the return annotation {annotation!r}, expected TensorDesc or a tuple of them")
    return len(members)
