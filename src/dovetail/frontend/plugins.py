"""Plugin calls in a graph: attributes are completed, result types found, data-dependent extents get symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dovetail.core.errors import TypeInferenceError, UnsupportedOpError, UsageError
from dovetail.frontend.plugin_types import Given, Results, result_types
from dovetail.ir.graph import Time, Value
from dovetail.ir.types import TensorType
from dovetail.plugins import Key, Plugin, find, suggestion
from dovetail.plugins.attributes import encode

if TYPE_CHECKING:
    from dovetail.frontend.importer import ImportContext


def has_plugin(name: str, version: str = "1", namespace: str = "") -> bool:
    """Whether a plugin is registered, or an installed package brings it."""
    return find(name, version, namespace, search=True) is not None


def call_plugin(
    ctx: ImportContext,
    name: str,
    inputs: Sequence[Value | None],
    version: str = "1",
    namespace: str = "",
    attributes: Mapping[str, Any] | None = None,
    outputs: int = 0,
    results: Results | None = None,
) -> tuple[Value, ...]:
    """Add a call of a plugin to a graph; returns its results.

    Args:
        attributes: JSON values and arrays by name, as the plugin's function takes them.
        outputs: how many results there have to be at least.
        results: their types, where the caller knows them; default: what the shape rule or trial runs say.

    Raises:
        UnsupportedOpError: no such plugin.
        TypeInferenceError: inputs or attributes do not fit it, or its result types cannot be found.
    """
    plugin = find(name, version, namespace, search=True)
    if plugin is None:
        raise UnsupportedOpError(f"plugin {Key(namespace, name, version)}: got none of that name, {suggestion(name)}")
    given = _without_trailing_none(inputs)
    plugin.check_inputs(len(given), [i for i, v in enumerate(given) if v is None])
    complete = plugin.complete(attributes or {})
    results = _types(ctx, plugin, given, complete) if results is None else results
    if len(results) < outputs:
        raise TypeInferenceError(f"plugin {plugin.key}: got {outputs} outputs to fill, expected at most its {len(results)} results")
    try:
        text = encode(complete)
    except UsageError as error:
        raise TypeInferenceError(f"plugin {plugin.key}: {error}") from error
    attrs: dict[str, Any] = {
        "name": name, "version": version, "namespace": namespace, "attributes": text, "digest": plugin.digest, "results": results,
    }  # fmt: skip
    free = sum(d is None for _, shape in results for d in shape)
    if free:
        attrs["symbols"] = tuple(ctx.fresh("u") for _ in range(free))
    values = ctx.emit("Plugin", *given, **attrs)
    return values if isinstance(values, tuple) else (values,)


def _types(ctx: ImportContext, plugin: Plugin, inputs: Sequence[Value | None], attributes: Mapping[str, Any]) -> Results:
    """The result types; integer weights that they depend on get a guard."""
    for value in inputs:
        if value is not None and not isinstance(value.type, TensorType):
            raise TypeInferenceError(f"plugin {plugin.key}: got the sequence %{value.name}, expected tensors; pass its elements one by one")
    bounds = ctx.module.meta.get("symbol_bounds", {})
    given = [None if v is None else Given(v.tensor, v.contents) for v in inputs]
    found = result_types(plugin, given, attributes, bounds)
    weights = [v for v in inputs if v is not None and v.time == Time.WEIGHT and v.contents is not None and not v.tensor.dtype.is_float]
    if plugin.shape_rule is None and weights:
        blind = [Given(v.tensor) if v is not None and v in weights else g for v, g in zip(inputs, given, strict=True)]
        if not _same_without(plugin, blind, attributes, bounds, found):
            for value in weights:
                ctx.constant(value, f"result types of plugin {plugin.key}")
    return found


def _same_without(plugin: Plugin, given: Sequence[Given | None], attributes: Mapping[str, Any], bounds: Any, found: Results) -> bool:
    try:
        return result_types(plugin, given, attributes, bounds) == found
    except TypeInferenceError:
        return False


def _without_trailing_none(inputs: Sequence[Value | None]) -> list[Value | None]:
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    return given
