"""Seeded ONNX models from stored topologies.

`topologies.zip` stores graphs without the bytes of their large float initializers; this module gives every such
initializer values that depend on its name and shape alone, so a name always means the same model. Random weights
say nothing about accuracy on a data set; they serve agreement with other runtimes, and speed.

    python -m models.zoo --list
    python -m models.zoo torchvision_resnet50 -o resnet50.onnx --inputs x.npz
"""

from __future__ import annotations

import argparse
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ARCHIVE = Path(__file__).with_name("topologies.zip")

DEFAULT_SIZES = {"seq": 24, "past": 5, "height": 96, "width": 128}
"""Sizes of symbolic dimensions that `inputs` uses unless told otherwise."""


def names() -> list[str]:
    """All model names, sorted."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return sorted(m[: -len(".onnx")] for m in archive.namelist() if m.endswith(".onnx"))


def load(name: str) -> onnx.ModelProto:
    """The model `name` with seeded weights.

    Raises:
        KeyError: no such model.
    """
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = set(archive.namelist())
        if f"{name}.onnx" not in members:
            raise KeyError(f"no model {name!r} in {ARCHIVE.name}; python -m models.zoo --list")
        model = onnx.load_from_string(archive.read(f"{name}.onnx"))
        statistics: dict[str, np.ndarray] = {}
        if f"{name}.stats.npz" in members:
            with np.load(io.BytesIO(archive.read(f"{name}.stats.npz"))) as stored:
                statistics = dict(stored)
    for tensor in model.graph.initializer:
        if tensor.doc_string == "stripped":
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            value = _weight(tensor.name, tuple(tensor.dims)).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    _normalise_batch_norms(model.graph, statistics)
    return model


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep activations in scale, chosen by what the name says the tensor is."""
    rng, low = _generator(name), name.lower()
    if "relative_position_index" in name:
        return _relative_positions(math.prod(shape)).reshape(shape)
    if len(shape) == 2 and "embed" in low:
        return rng.standard_normal(shape) * 0.05
    if len(shape) >= 2:
        fan_in = min(shape) if len(shape) == 2 else math.prod(shape[1:])
        return rng.standard_normal(shape) * (1.3 / fan_in) ** 0.5
    if low.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if low.endswith(("running_mean", "bias")):
        return rng.standard_normal(shape) * 0.05
    if low.endswith("weight"):
        return rng.uniform(0.8, 1.2, shape)
    return rng.standard_normal(shape) * 0.02


def _relative_positions(count: int) -> np.ndarray:
    """Swin's index of the relative position of each pair of pixels in a window of sqrt(sqrt(count)) rows."""
    side = round(count**0.25)
    row, column = np.divmod(np.arange(side * side), side)
    d_row = row[:, None] - row[None, :] + side - 1
    d_column = column[:, None] - column[None, :] + side - 1
    return np.asarray(d_row * (2 * side - 1) + d_column).reshape(-1)


def _normalise_batch_norms(graph: onnx.GraphProto, statistics: Mapping[str, np.ndarray]) -> None:
    """Give each BatchNormalization its own parameters, with the stored batch statistics where there are some."""
    tensors = {t.name: t for t in graph.initializer}
    identities = {n.output[0]: n for n in graph.node if n.op_type == "Identity"}
    for node in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        for name in node.input[1:5]:
            if name not in tensors:
                tensors[name] = _own_copy(graph, name, tensors, identities)
        scale, bias, mean, variance = node.input[1:5]
        channels = tensors[scale].dims[0]
        rng = _generator(scale)
        values = {
            scale: rng.uniform(0.7, 1.3, channels),
            bias: rng.standard_normal(channels) * 0.2,
        }
        if mean in statistics:
            values[mean] = statistics[mean]
            values[variance] = np.maximum(statistics[variance].astype(np.float32), 1e-4)
        for name, value in values.items():
            tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def _own_copy(
    graph: onnx.GraphProto,
    name: str,
    tensors: Mapping[str, onnx.TensorProto],
    identities: Mapping[str, onnx.NodeProto],
) -> onnx.TensorProto:
    """Replace the Identity that made `name` by an initializer: equal parameters differ once they are seeded."""
    source = identities[name].input[0]
    while source in identities and source not in tensors:
        source = identities[source].input[0]
    tensor = graph.initializer.add()
    tensor.CopyFrom(tensors[source])
    tensor.name = name
    graph.node.remove(identities[name])
    return tensor


def inputs(
    model: onnx.ModelProto, batch: int = 1, seed: int = 0, **sizes: int
) -> dict[str, np.ndarray]:
    """Seeded inputs: blobs over noise for images, small token ids, masks, positions, else normal floats.

    Args:
        model: gives the names, dtypes and shapes.
        batch: size of every symbolic dimension that has no size of its own.
        seed: another seed gives other values.
        sizes: sizes of symbolic dimensions by name; height and width must be multiples of 32.
    """
    rng = np.random.default_rng(seed)
    known = DEFAULT_SIZES | {"batch": batch} | sizes
    initializers = {t.name for t in model.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name in initializers:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value or known.get(d.dim_param, batch) for d in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.INT64:
            feeds[value.name] = _integers(value.name, shape, len(feeds), known["past"], rng)
        elif _is_image(shape):
            feeds[value.name] = _image(shape, rng)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _is_image(shape: list[int]) -> bool:
    return len(shape) in (3, 4) and shape[-1] > 8 and shape[-1] % 8 == 0 and shape[-2] % 8 == 0


def _image(shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Coarse blobs and a colour cast over noise, so that two images still differ after global pooling."""
    *lead, height, width = shape
    blobs = rng.standard_normal([*lead, 8, 8]).repeat(height // 8, -2).repeat(width // 8, -1)
    cast = rng.standard_normal([*lead, 1, 1])
    return np.asarray(blobs + cast + 0.3 * rng.standard_normal(shape), np.float32)


def _integers(
    name: str, shape: list[int], position: int, past: int, rng: np.random.Generator
) -> np.ndarray:
    if not shape:
        return np.array(4, np.int64)
    if name == "positions":
        return np.broadcast_to(past + np.arange(shape[-1]), shape).astype(np.int64)
    if "mask" in name or len(shape) == 3 or position == 2:
        mask = np.ones(shape, np.int64)
        mask[1:, ..., -1] = 0
        return mask
    return rng.integers(1, 1000, shape)


def main(argv: list[str] | None = None) -> int:
    """The command line: list the models, or write one (and inputs for it) to files."""
    parser = argparse.ArgumentParser(prog="python -m models.zoo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="model to write")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("-o", "--output", type=Path, help="ONNX file (default: NAME.onnx)")
    parser.add_argument("--inputs", type=Path, help="also write seeded inputs to this .npz")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.list or not args.name:
        print("\n".join(names()))
        return 0
    if args.name not in names():
        parser.error(f"no model {args.name!r}; --list shows all")
    model = load(args.name)
    output = args.output or Path(f"{args.name}.onnx")
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, output)
    print(output)
    if args.inputs:
        feeds: dict[str, Any] = inputs(model, batch=args.batch, seed=args.seed)
        np.savez(args.inputs, **feeds)
        print(args.inputs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
