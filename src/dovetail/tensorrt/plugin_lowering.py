"""A layer with a client's plugin becomes a plugin call of Dovetail: types, shapes, formats and tactic are agreed with the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import DType
from dovetail.core.errors import ModelError, ShapeError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_data_type, to_dtype
from dovetail.tensorrt.enums import DataType, NetworkDefinitionCreationFlag, TensorFormat
from dovetail.tensorrt.plugin_adapter import Adapter, Descs, adapt
from dovetail.tensorrt.plugin_call import Call, creators, namespace_of
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, desc, dynamic
from dovetail.tensorrt.plugin_expr import IExprBuilder, exprs, extents, size_symbol
from dovetail.tensorrt.plugin_formats import CHOICES, fits
from dovetail.tensorrt.plugin_v2 import IPluginV2
from dovetail.tensorrt.plugin_v3 import IPluginV3

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import ILayer
    from dovetail.tensorrt.scope import Scope

_FLOATS = (DataType.FLOAT, DataType.HALF, DataType.BF16)
_PACKED = (DataType.INT4, DataType.FP4)
_MOST_QUESTIONS = 20000
_SIZES = (DataType.INT32, DataType.INT64)

Tensor = tuple[DataType, TensorFormat]
Bounds = Mapping[str, tuple[int, int, int]]


def output_count(plugin: Any, where: str) -> int:
    """How many outputs a plugin object has.

    Raises:
        TypeError: no plugin.
        ModelError: its methods fail.
    """
    if not isinstance(plugin, (IPluginV2, IPluginV3)):
        raise TypeError(f"{where}: got {type(plugin).__name__}, expected an IPluginV3 or IPluginV2")
    return adapt(plugin).outputs


def lower(layer: ILayer, scope: Scope, inputs: Sequence[Value | None]) -> list[Value]:
    """The outputs of a layer with a plugin.

    In a scope for shapes the plugin says types and shapes; in one for a build a clone of it is configured, and serialized.

    Raises:
        ModelError: a method of the plugin raised or returned what it should not, or no format suits it.
    """
    record = layer._record
    adapter = adapt(record.values["plugin"])
    adapter.batched = bool(scope.shift)
    if scope.shift and not adapter.fixed:
        raise ModelError(f"plugin {adapter.key[0]}: got a network with an implicit batch, expected an explicit one for this kind of plugin")
    count = len(inputs) - int(record.values.get("shape_inputs", 0))
    given = [v for v in inputs[:count] if v is not None]
    if len(given) < count:
        raise ModelError(f"plugin {adapter.key[0]}: input {inputs.index(None)} is absent, expected tensors; connect it")
    asked = _Question(adapter, given, [_values(scope, v) for v in inputs[count:] if v is not None])
    adapter.rank([len(v.shape) for v in given])
    types = asked.adapter.types([to_data_type(v.dtype) for v in given])
    shapes, builder = asked.shapes()
    results = [(_result_type(adapter, t), asked.in_graph(s)) for t, s in zip(types, shapes, strict=True)]
    call = Call(record.name, {}, count, [], [], [[dims.to_program(d) for d in s] for s in shapes], batched=adapter.batched)
    for index, (_, upper) in builder.sizes.items():
        _check_size_tensor(adapter, index, types, shapes)
        call.bounds[str(index)] = dims.to_program(upper)
    chosen = [(to_data_type(v.dtype), TensorFormat.LINEAR) for v in given], [(t, TensorFormat.LINEAR) for t in types]
    if scope.is_model:
        chosen = _configure(call, asked, types, shapes, builder, scope)
    call.sources, call.targets = ([[t.name, f.name] for t, f in side] for side in chosen)
    values = [scope.cast(v, to_dtype(t)) for v, (t, _) in zip(given, chosen[0], strict=True)]
    made = _emit(scope, adapter, call, [*values, *(v for v in inputs[count:] if v is not None)], results, chosen[1])
    return [scope.cast(v, dtype) for v, (dtype, _) in zip(made, results, strict=True)]


def _emit(
    scope: Scope, adapter: Adapter, call: Call, inputs: Sequence[Value],
    results: Sequence[tuple[DType, tuple[Dim | None, ...]]], chosen: Sequence[Tensor],
) -> tuple[Value, ...]:  # fmt: skip
    name, version, namespace = adapter.key
    creators(adapter.key)  # makes the plugin known to Dovetail
    promised = [(to_dtype(t), shape) for (t, _), (_, shape) in zip(chosen, results, strict=True)]
    made = scope.net.plugin(
        name, *inputs, version=version or "1", namespace=namespace_of(namespace), attributes=call.attributes(), results=promised
    )
    return made if isinstance(made, tuple) else (made,)


def _values(scope: Scope, value: Value) -> tuple[Dim, ...]:
    if len(value.shape) > 1 or value.dtype.is_float:
        raise ModelError(f"shape input {value.name}: got {value.dtype}{list(value.shape)}, expected integers of rank 0 or 1")
    return scope.dims(value)


def _result_type(adapter: Adapter, kind: DataType) -> DType:
    if kind in _PACKED:
        raise ModelError(f"plugin {adapter.key[0]}: got {kind.name} as the type of an output, expected elements of whole bytes")
    return to_dtype(kind)


def _check_size_tensor(adapter: Adapter, index: int, types: Sequence[DataType], shapes: Sequence[Sequence[Dim]]) -> None:
    if not 0 <= index < len(types) or len(shapes[index]) or types[index] not in _SIZES:
        raise ModelError(
            f"plugin {adapter.key[0]}: declare_size_tensor: got output {index}, expected a 0-d output of INT32 or INT64 among {len(types)}"
        )


class _Question:
    """Shapes as a plugin is asked for them: extents that are no numbers are symbols of their own, so that programs of them stay true.

    Attributes:
        adapter: the plugin.
        types, shapes_in: of inputs.
    """

    def __init__(self, adapter: Adapter, inputs: Sequence[Value], values: Sequence[tuple[Dim, ...]]) -> None:
        self.adapter, self.inputs = adapter, inputs
        self.known: dict[str, Dim] = {}
        self.shapes_in = [[self._own(d, f"i{i}_{axis}") for axis, d in enumerate(v.shape)] for i, v in enumerate(inputs)]
        self.values = [[self._own(d, f"v{i}_{k}") for k, d in enumerate(contents)] for i, contents in enumerate(values)]

    def _own(self, dim: Dim, symbol: str) -> Dim:
        self.known[symbol] = dim
        return dims.sym(symbol) if isinstance(dim, Expr) else dim

    def shapes(self) -> tuple[list[tuple[Dim, ...]], IExprBuilder]:
        """The shapes of outputs, with what was declared of size tensors."""
        builder = IExprBuilder()
        found = self.adapter.shapes([exprs(s) for s in self.shapes_in], [exprs(v) for v in self.values], builder)
        shapes = [extents(s) for s in found]
        if any(isinstance(d, int) and d < 0 for s in shapes for d in s):
            raise ModelError(f"plugin {self.adapter.key[0]}: got the output shapes {shapes}, expected extents of at least 0")
        return shapes, builder

    def in_graph(self, shape: Sequence[Dim]) -> tuple[Dim | None, ...]:
        """A shape in terms of the graph's symbols; None for what the run decides."""
        return tuple(None if _by_run(d) else dims.substitute(d, self.known) for d in shape)


def _by_run(dim: Dim) -> bool:
    return isinstance(dim, Expr) and any(s.startswith("z") for s in dims.symbols(dim))


# ---- agreeing on types and formats, for a build ----


def _configure(
    call: Call, asked: _Question, types: Sequence[DataType], shapes: Sequence[tuple[Dim, ...]], builder: IExprBuilder, scope: Scope
) -> tuple[list[Tensor], list[Tensor]]:
    """Choose types, formats and tactic, tell a clone of the plugin, and keep its state."""
    original = asked.adapter
    adapter = original.clone()
    adapter.batched = original.batched
    declared = [*(to_data_type(v.dtype) for v in asked.inputs), *types]
    ranges = _Ranges(_bounds(scope), asked, builder)
    described = [ranges.described(s) for s in (*asked.shapes_in, *shapes)]
    strict = bool(scope.network._flags >> int(NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1)
    chosen = _Negotiation(adapter, described, declared, len(asked.inputs), strict).result()
    tensors = [_with(d, *c) for d, c in zip(described, chosen, strict=True)]
    ins, outs = tensors[: len(asked.inputs)], tensors[len(asked.inputs) :]
    adapter.configure(ins, outs)
    aliases = adapter.aliases()
    for output, i in aliases.items():
        _check_alias(adapter, output, i, ins, outs)
    tactics = adapter.tactics()
    call.aliases, call.tactic = [list(pair) for pair in aliases.items()], tactics[0] if tactics else 0
    adapter.choose(call.tactic)
    call.state = adapter.state()
    call.sources, call.targets = ([[t.name, f.name] for t, f in side] for side in (chosen[: len(ins)], chosen[len(ins) :]))
    creators(adapter.key).keep(call, adapter)
    return chosen[: len(ins)], chosen[len(ins) :]


def _check_alias(adapter: Adapter, output: int, i: int, ins: Descs, outs: Descs) -> None:
    if i >= len(ins):
        raise ModelError(f"plugin {adapter.key[0]}: get_aliased_input: got input {i} for output {output}, expected one of {len(ins)}")
    a, b = ins[i].desc, outs[output].desc
    if a.type is not b.type or a.format is not b.format or ins[i].max != outs[output].max:
        raise ModelError(
            f"plugin {adapter.key[0]}: get_aliased_input: got output {output} as {b}, "
            f"expected that of input {i}, whose memory it shares: {a}"
        )


class _Ranges:
    """Least, likely and largest extents, as the profile has them."""

    def __init__(self, bounds: Bounds, asked: _Question, builder: IExprBuilder) -> None:
        self.known = asked.known
        self.sizes = {size_symbol(i): pair for i, pair in builder.sizes.items()}
        self.bounds = bounds

    def described(self, shape: Sequence[Dim]) -> DynamicPluginTensorDesc:
        """A tensor of that shape, of no type yet."""
        least, likely, most = ([self._at(d, which) for d in shape] for which in range(3))
        return dynamic(desc([d if isinstance(d, int) else -1 for d in shape], DataType.FLOAT), least, likely, most)

    def _at(self, dim: Dim, which: int) -> int:
        """An extent at one end; -1 where the profile does not say."""
        bound = {name: pair[0] if which == 1 else pair[1] if which == 2 else 0 for name, pair in self.sizes.items()}
        found = dims.substitute(dims.substitute(dim, bound), self.known)
        symbols = dims.symbols(found) if isinstance(found, Expr) else ()
        if any(s not in self.bounds for s in symbols):
            return -1
        try:
            return dims.evaluate(found, {s: self.bounds[s][which] for s in symbols})
        except ShapeError:
            return -1


def _bounds(scope: Scope) -> Bounds:
    """Least, likely and largest values of the symbols in inputs' shapes, as the first profile has them."""
    found: dict[str, tuple[int, int, int]] = {}
    for tensor, value in scope.known.items():
        rows = scope.network._profile.get(tensor.name)
        if tensor._producer is None and rows is not None:
            for axis, dim in enumerate(value.shape):
                if isinstance(dim, Expr) and dim == dims.sym(str(dim)):
                    found[str(dim)] = (rows[0][axis], rows[1][axis], rows[2][axis])
    return found


def _with(described: DynamicPluginTensorDesc, kind: DataType, memory: TensorFormat) -> DynamicPluginTensorDesc:
    return dynamic(desc(list(described.desc.dims), kind, memory), list(described.min), list(described.opt), list(described.max))


class _Negotiation:
    """Asks a plugin, tensor by tensor, which type and format it takes; the network's own type and LINEAR come first."""

    def __init__(
        self, adapter: Adapter, described: Sequence[DynamicPluginTensorDesc], declared: Sequence[DataType], inputs: int, strict: bool
    ) -> None:
        self.adapter, self.described, self.declared, self.inputs, self.strict = adapter, described, declared, inputs, strict
        self.questions = 0

    def result(self) -> list[Tensor]:
        """What the plugin takes.

        Raises:
            ModelError: nothing.
        """
        found = self._extend([])
        if found is None:
            shown = ", ".join(t.name for t in self.declared)
            raise ModelError(
                f"plugin {self.adapter.key[0]}: supports_format_combination: could not find any supported formats for the types {shown}; "
                "let it take one of these in TensorFormat.LINEAR"
            )
        return found

    def _extend(self, chosen: list[Tensor]) -> list[Tensor] | None:
        position = len(chosen)
        if position == len(self.declared):
            return chosen
        for candidate in self._candidates(position):
            trial = [*chosen, candidate]
            # Those behind are given as the network has them: plugins must not look at them.
            rest = [(t, TensorFormat.LINEAR) for t in self.declared[position + 1 :]]
            tensors = [_with(d, *c) for d, c in zip(self.described, [*trial, *rest], strict=True)]
            self.questions += 1
            if self.questions > _MOST_QUESTIONS:
                return None
            if self.adapter.supports(position, tensors, self.inputs):
                found = self._extend(trial)
                if found is not None:
                    return found
        return None

    def _candidates(self, position: int) -> Iterator[Tensor]:
        own = self.declared[position]
        kinds = [own, *(t for t in _FLOATS if t is not own)] if own in _FLOATS and not self.strict else [own]
        rank = len(self.described[position].desc.dims)
        for memory in CHOICES:
            if fits(memory, rank):
                yield from ((kind, memory) for kind in kinds)
