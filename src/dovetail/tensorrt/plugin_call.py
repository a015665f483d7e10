"""Runs of clients' plugins: a creator's plugins as one plugin of Dovetail, which makes objects of the creator's and enqueues them.

An engine names plugin, version and namespace, and keeps in the call's attributes (`Call`) what the build decided: the state that
the creator makes the object again from, types and formats of tensors, shapes of outputs as programs over the shapes of inputs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail import plugins
from dovetail.core import dims
from dovetail.core.errors import Error, ExecutionError, PluginError
from dovetail.plugins.attributes import encode
from dovetail.runtime.cuda.arrays import DeviceArray
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enums import DataType, TensorFormat
from dovetail.tensorrt.plugin_adapter import Adapter, State, remake
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, desc, dynamic
from dovetail.tensorrt.plugin_expr import size_symbol
from dovetail.tensorrt.plugin_formats import pack, stored_shape, unpack
from dovetail.tensorrt.plugin_memory import ALIGNMENT, Memory, memory

Array = np.ndarray[Any, Any]
Key = tuple[str, str, str]
Program = list[Any]

NAMESPACE = "tensorrt"
"""The namespace of clients' plugins among Dovetail's, ahead of their own."""

_MOST_KEPT = 256


def namespace_of(own: str) -> str:
    """The namespace of a client's plugin among Dovetail's."""
    return f"{NAMESPACE}.{own}" if own else NAMESPACE


@dataclass
class Call:
    """What an engine knows of one plugin layer; the attributes of a plugin call.

    Attributes:
        layer: its name.
        state: of the plugin object (`Adapter.state`).
        inputs: how many of the call's inputs are the plugin's; the rest are shape inputs, of which values are read.
        sources, targets: name of the element type and of the memory format of each input and output.
        shapes: of outputs: each extent a number or a program over `i0_1` (an input's extent), `v0_1` (a shape input's value) and
            `z1` (what the run writes to an output).
        bounds: of size tensors by output: the largest value.
        aliases: pairs of an output and the input whose memory it shares.
        tactic: 0 for none.
        batched: whether the leading extent is an implicit batch.
    """

    layer: str
    state: State
    inputs: int
    sources: list[list[str]]
    targets: list[list[str]]
    shapes: list[list[Program]]
    bounds: dict[str, Program] = field(default_factory=dict)
    aliases: list[list[int]] = field(default_factory=list)
    tactic: int = 0
    batched: bool = False

    def attributes(self) -> dict[str, Any]:
        """As attributes of a plugin call."""
        return dict(vars(self))


class Instance:
    """A plugin object that is ready to run, and the shapes that it was last told."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.shapes: tuple[tuple[int, ...], ...] | None = None
        self.workspace = 0
        self.memory: Memory = memory()

    def close(self) -> None:
        """The object is not used any more."""
        self.memory.close()
        self.adapter.close()


class Creators:
    """The plugin objects of one creator: idle ones by call, which runs take and give back, so that each serves one run at a time."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, list[Instance]] = OrderedDict()
        self._live: OrderedDict[str, Adapter] = OrderedDict()

    def keep(self, call: Call, adapter: Adapter) -> None:
        """Serve a call by copies of the object that the build had, where no creator is registered."""
        text = encode(call.attributes())
        with self._lock:
            stale = self._idle.pop(text, [])
            self._live[text] = adapter
            self._live.move_to_end(text)
            while len(self._live) > _MOST_KEPT:
                self._live.popitem(last=False)
        for instance in stale:
            instance.close()

    @contextmanager
    def taken(self, call: Call) -> Iterator[Instance]:
        """An object for one run; one that failed is not used again."""
        text = encode(call.attributes())
        with self._lock:
            idle = self._idle.get(text)
            instance = idle.pop() if idle else None
        if instance is None:
            instance = self._made(call, text)
        try:
            yield instance
        except BaseException:
            instance.memory.close()
            raise
        with self._lock:
            self._idle.setdefault(text, []).append(instance)
            self._idle.move_to_end(text)
            oldest = self._idle.popitem(last=False)[1] if len(self._idle) > _MOST_KEPT else []
        for old in oldest:
            old.close()

    def _made(self, call: Call, text: str) -> Instance:
        from dovetail.tensorrt.plugin_registry import get_plugin_registry

        creator = get_plugin_registry().find(*self.key)
        if creator is not None:
            adapter = remake(creator, call.layer, self.key[2], call.state)
        elif text in self._live:
            adapter = self._live[text].clone()
        else:
            raise PluginError(
                f"plugin {self.key[0]} (version {self.key[1]}, namespace {self.key[2]!r}): got no creator in the plugin registry, expected "
                "one of that name, version and namespace; register it ahead of loading the engine"
            )
        attached = adapter.attach(call.tactic)
        attached.batched = call.batched
        return Instance(attached)

    def close(self) -> None:
        """End all idle objects."""
        with self._lock:
            idle = [instance for several in self._idle.values() for instance in several]
            self._idle.clear()
            self._live.clear()
        for instance in idle:
            instance.close()

    # ---- the function of Dovetail's plugin ----
    def __call__(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        """Run the plugin on host arrays."""
        call = Call(**attributes)
        try:
            with self.taken(call) as instance:
                return _run(call, instance, [np.asarray(x) for x in inputs])
        except Error as error:
            raise ExecutionError(f"{call.layer}: {error}") from error

    def on_gpu(self, *inputs: Any, out: Sequence[DeviceArray], stream: int, **attributes: Any) -> Any:
        """Run the plugin on arrays on the GPU; NotImplemented where formats other than dense rows have to be packed."""
        call = Call(**attributes)
        if call.bounds or any(f != TensorFormat.LINEAR.name for _, f in (*call.sources, *call.targets)):
            return NotImplemented
        with self.taken(call) as instance:
            _run_on_gpu(call, instance, inputs, out, stream)
        return None


def _data_type(name: str) -> DataType:
    found: DataType = getattr(DataType, name)
    return found


def _format(name: str) -> TensorFormat:
    found: TensorFormat = getattr(TensorFormat, name)
    return found


def _environment(call: Call, inputs: Sequence[Array]) -> dict[str, int]:
    """The symbols of shape programs: extents of inputs, values of shape inputs."""
    found = {f"i{i}_{axis}": n for i, x in enumerate(inputs[: call.inputs]) for axis, n in enumerate(x.shape)}
    found |= {f"v{i}_{k}": int(v) for i, x in enumerate(inputs[call.inputs :]) for k, v in enumerate(x.reshape(-1))}
    return found


def extent(program: Any, env: Mapping[str, int]) -> int:
    """The value of an extent."""
    return int(dims.run_program(list(program), env))


def shapes_at(call: Call, env: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The shapes of outputs."""
    return [tuple(extent(p, env) for p in shape) for shape in call.shapes]


def _run(call: Call, instance: Instance, inputs: list[Array]) -> tuple[Array, ...]:
    adapter, place = instance.adapter, instance.memory
    env = _environment(call, inputs)
    most = {size_symbol(int(i)): extent(p, env) for i, p in call.bounds.items()}
    largest = shapes_at(call, env | most)
    given = inputs[: call.inputs]
    sources = [(_data_type(t), _format(f)) for t, f in call.sources]
    targets = [(_data_type(t), _format(f)) for t, f in call.targets]
    unknown = shapes_at(call, env | dict.fromkeys(most, 0)) if most else largest
    # What the run decides is -1, as far as descriptions go.
    told = [tuple(-1 if a != b else b for a, b in zip(*pair, strict=True)) for pair in zip(unknown, largest, strict=True)]
    ins = [_described(x.shape, x.shape, t, f) for x, (t, f) in zip(given, sources, strict=True)]
    outs = [_described(s, m, t, f) for s, m, (t, f) in zip(told, largest, targets, strict=True)]
    shapes = (*(x.shape for x in given), *largest)
    if shapes != instance.shapes:
        instance.shapes = None
        instance.workspace = adapter.reshape(ins, outs)
        instance.shapes = shapes
    with place.run() as work:
        stored = [pack(x, f) for x, (_, f) in zip(given, sources, strict=True)]
        aliased = {int(output): int(i) for output, i in call.aliases}
        shared = set(aliased.values())
        addresses = [work.source(x, writable=i in shared) for i, x in enumerate(stored)]
        results = [
            addresses[aliased[j]] if j in aliased else work.target(stored_shape(s, f), to_dtype(t))
            for j, (s, (t, f)) in enumerate(zip(largest, targets, strict=True))
        ]
        scratch = work.scratch(instance.workspace)
        adapter.enqueue(ins, outs, [a.address for a in addresses], [a.address for a in results], scratch, work.stream)
        arrays = work.fetch(results)
    return _cut(call, env, most, arrays, targets)


def _run_on_gpu(call: Call, instance: Instance, inputs: Sequence[DeviceArray], out: Sequence[DeviceArray], stream: int) -> None:
    """Enqueue in the engine's own stream, on the engine's own memory."""
    driver = out[0].driver
    linear = TensorFormat.LINEAR
    given = inputs[: call.inputs]
    ins = [_described(x.shape, x.shape, _data_type(t), linear) for x, (t, _) in zip(given, call.sources, strict=True)]
    outs = [_described(x.shape, x.shape, _data_type(t), linear) for x, (t, _) in zip(out, call.targets, strict=True)]
    shapes = (*(x.shape for x in given), *(x.shape for x in out))
    if shapes != instance.shapes:
        instance.shapes = None
        instance.workspace = instance.adapter.reshape(ins, outs)
        instance.shapes = shapes
    temporary: list[int] = []

    def piece(size: int) -> int:
        temporary.append(driver.allocate_ordered(max(size, ALIGNMENT), stream))
        return temporary[-1]

    try:
        # Tensors may lie at any address of a larger buffer; plugins are promised aligned ones.
        results = [piece(x.nbytes) if x.address % ALIGNMENT else x.address for x in out]
        aliased = {int(i): int(output) for output, i in call.aliases}
        addresses = []
        for i, x in enumerate(given):
            place = results[aliased[i]] if i in aliased else piece(x.nbytes) if x.address % ALIGNMENT else x.address
            if place != x.address and x.nbytes:
                driver.copy(place, x.address, x.nbytes, stream)
            addresses.append(place)
        scratch = piece(instance.workspace) if instance.workspace else 0
        instance.adapter.enqueue(ins, outs, addresses, results, scratch, stream)
        for x, place in zip(out, results, strict=True):
            if place != x.address and x.nbytes:
                driver.copy(x.address, place, x.nbytes, stream)
    finally:
        for address in temporary:
            driver.free_ordered(address, stream)


def _described(shape: Sequence[int], most: Sequence[int], kind: DataType, memory_format: TensorFormat) -> DynamicPluginTensorDesc:
    return dynamic(desc(shape, kind, memory_format), [0 if d < 0 else d for d in shape], most, most)


def _cut(
    call: Call, env: Mapping[str, int], most: Mapping[str, int], arrays: Sequence[Array], targets: Sequence[tuple[DataType, TensorFormat]]
) -> tuple[Array, ...]:
    """Results as tensors, in the shapes that size tensors say."""
    sizes = {name: int(arrays[int(name[1:])].reshape(-1)[0]) for name in most}
    for name, size in sizes.items():
        if not 0 <= size <= most[name]:
            raise ExecutionError(f"output {name[1:]}: got the size {size} from the plugin, expected 0 to its upper bound of {most[name]}")
    made = []
    for array, shape, (_, memory_format) in zip(arrays, shapes_at(call, {**env, **sizes}), targets, strict=True):
        stored = stored_shape(shape, memory_format)
        made.append(unpack(array.reshape(-1)[: int(np.prod(stored, dtype=np.int64))].reshape(stored), shape, memory_format))
    return tuple(made)


# ---- Dovetail's table ----

_known: dict[Key, Creators] = {}
_lock = threading.Lock()


def creators(key: Key) -> Creators:
    """What runs the plugins of a name, a version and a namespace; made, and made known to Dovetail, when first asked for."""
    with _lock:
        found = _known.get(key)
        if found is None:
            found = _known[key] = Creators(key)
            name, version, own = key
            made = plugins.Plugin(
                plugins.Key(namespace_of(own), name, version or "1"), found, (), 0, "inputs", {}, {}, True, None, module=""
            )
            made.gpu(found.on_gpu)
            plugins.register(made, replace=True)
        return found


def announce(key: Key) -> None:
    """A creator was registered."""
    creators(key).close()


def withdraw(key: Key) -> None:
    """A creator was deregistered: its objects end, and engines that need it no longer load."""
    with _lock:
        found = _known.pop(key, None)
    name, version, own = key
    plugins.unregister(name, version or "1", namespace_of(own))
    if found is not None:
        found.close()
