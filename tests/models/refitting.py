"""Refits of whole models against fresh builds, bit by bit.

    python -m tests.models.refitting [NAME …]        # every weight of every model, with a fresh build each
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import dovetail
from models import zoo

Arrays = dict[str, np.ndarray[Any, Any]]


def changed(engine: dovetail.Engine, seed: int) -> Arrays:
    """Other values for all weights that no guard holds; integers, which are often indices, stay in their order of size."""
    rng = np.random.default_rng(seed)
    guarded = {g.weight for g in engine.plan.guards}
    found: Arrays = {}
    for name, array in engine.weights().items():
        if name in guarded or name.startswith("~") or array.dtype == object:
            continue
        noise = rng.uniform(0.9, 1, min(array.size, 1 << 16))
        found[name] = (array * np.resize(noise, array.shape)).astype(array.dtype) if array.dtype.kind == "f" else array.copy()
    return found


def put(graph: onnx.GraphProto, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write weights into a model."""
    for tensor in graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and node.output[0] in arrays:
                attribute.t.CopyFrom(numpy_helper.from_array(arrays[node.output[0]]))
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                put(inner, arrays)


def outputs(engine: dovetail.Engine, feeds: Mapping[str, Any]) -> dict[str, bytes]:
    return {n: np.asarray(a).tobytes() for n, a in engine.run(dict(feeds)).items()}


def packed(engine: dovetail.Engine) -> dict[str, bytes]:
    """What runs read of the weights."""
    found = engine.runtime._weights.packed
    return {n: a.tobytes() for n, a in found.items() if isinstance(a, np.ndarray) and a.dtype != object}


def feeds_of(model: onnx.ModelProto) -> Iterator[dict[str, Any]]:
    """Inputs of one or two batches."""
    symbols = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim}
    for batch in (1, 2) if "batch" in symbols else (1,):
        yield zoo.inputs(model, batch=batch)


def check(name: str, whole: bool) -> str:
    """Refit a model and go back. `whole`: every weight, against a fresh build; else a sample of the weights, against packing all anew."""
    model = zoo.load(name)
    engine = dovetail.build(model, verify="off", tune=False)
    feeds = list(feeds_of(model))
    new = changed(engine, 1)
    old = {n: engine.weight(n) for n in new}
    first = packed(engine), [outputs(engine, f) for f in feeds]
    if whole:
        put(model.graph, new)
        fresh = dovetail.build(model, verify="off", tune=False)
        same = fresh.plan.main == engine.plan.main and fresh.plan.weights_program == engine.plan.weights_program
        assert same, "other tactics without tuning"
        engine.refit(model)
        assert packed(engine) == packed(fresh)
        assert [outputs(engine, f) for f in feeds] == [outputs(fresh, f) for f in feeds]
    else:
        names = sorted(new)[:: max(1, len(new) // 7)]
        engine.refit({n: new[n] for n in names})
        one = packed(engine)
        engine.refit({n: engine.weight(n) for n in new})  # all at once
        assert packed(engine) == one
    engine.refit(old)
    assert (packed(engine), [outputs(engine, f) for f in feeds]) == first
    guarded = sorted({g.weight for g in engine.plan.guards})
    numbers = [n for n in guarded if engine.weight(n).size and engine.weight(n).dtype.kind in "iuf"]
    for held in numbers[:: max(1, len(numbers) // 5)]:
        with pytest.raises(dovetail.RefitError, match=r"got a new value .*, because .* relied on its value .*; rebuild") as caught:
            engine.refit({held: engine.weight(held) + 1})
        assert repr(held) in str(caught.value)
    assert (packed(engine), [outputs(engine, f) for f in feeds]) == first
    return f"{len(new)} weights, {len(guarded)} guarded"


if __name__ == "__main__":
    for each in sys.argv[1:] or zoo.names():
        start = time.perf_counter()
        print(f"{each}: {check(each, True)}, {time.perf_counter() - start:.1f} s", flush=True)
