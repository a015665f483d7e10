"""Example inputs of a PyTorch model from what the command line says: specs, arrays, or what the model is known to take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import UsageError
from dovetail.core.optional import require
from dovetail.core.text import did_you_mean
from dovetail.export.torch_subject import parameters

_SPEC = re.compile(r"(?P<name>[^:\[\]]+):(?P<dtype>[A-Za-z]\w*)?\[(?P<dims>[^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(@(\d+))?")
_FIRST_SIZE, _SIZE = 2, 8
_TORCH = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
    "u8": "uint8", "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """One example input: a name, an element type and dims; a dim that is a name or a range is a dynamic axis.

    Attributes:
        name: a parameter of `forward`, or "input0", "input1" … in order.
        dtype: element type.
        shape: sizes.
        axes: names of dynamic axes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    axes: Mapping[int, str]


def input_spec(text: str) -> InputSpec:
    """Parse `x:f32[batch,3,224,224]`; the type may be left out (f32), and a range `1..32@8` is an axis of any size, 8 here.

    Raises:
        UsageError: it is no such text.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--input: got {text!r}, expected NAME:TYPE[DIMS], such as x:f32[1,3,224,224] or ids:i64[batch,16]")
    kind = dtype(match["dtype"] or "f32") if (match["dtype"] or "f32") in _TORCH else None
    if kind is None:
        raise UsageError(f"--input: got the type {match['dtype']!r} in {text!r}, expected one of {', '.join(_TORCH)}")
    words = [w.strip() for w in match["dims"].split(",")] if match["dims"].strip() else []
    shape, axes = [], {}
    for axis, word in enumerate(words):
        span = _RANGE.fullmatch(word)
        if span is not None:
            shape.append(int(span[4] or max(int(span[1]), min(int(span[2]), _FIRST_SIZE if axis == 0 else _SIZE))))
            axes[axis] = f"{re.sub(r'[^0-9A-Za-z_]', '_', match['name'])}_{axis}"
        elif word.isdigit():
            shape.append(int(word))
        elif word.isidentifier():
            shape.append(_FIRST_SIZE if axis == 0 else _SIZE)
            axes[axis] = word
        else:
            raise UsageError(f"--input: got the size {word!r} in {text!r}, expected a number, a name (batch), or a range (1..32)")
    return InputSpec(match["name"], kind, tuple(shape), axes)


def tensors_of(specs: Sequence[InputSpec], seed: int) -> dict[str, Any]:
    """Seeded tensors: normal floats, integers of 0 and 1, mixed booleans; axes of one name get one size.

    Masks are true but for the last place of the last row: where a mask leaves nothing, models compute what nobody has defined.
    """
    torch = require("torch", "torch", "exporting from PyTorch")
    rng = np.random.default_rng(seed)
    made = {}
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = tuple(sizes.setdefault(spec.axes[i], size) if i in spec.axes else size for i, size in enumerate(spec.shape))
        if spec.dtype.is_float:
            tensor = torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32).reshape(shape))
        elif "mask" in spec.name:
            tensor = torch.ones(shape, dtype=torch.int64)
            if tensor.numel() and tensor.shape[-1] > 1:
                tensor.view(-1)[-1] = 0
        else:
            tensor = torch.from_numpy(np.asarray(rng.integers(0, 2, shape)).reshape(shape))
        made[spec.name] = tensor.to(getattr(torch, _TORCH[spec.dtype.name]))
    return made


def tensors_from(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of arrays by name.

    Raises:
        UsageError: an array of a type that torch does not have.
    """
    torch = require("torch", "torch", "exporting from PyTorch")
    made = {}
    for name, array in arrays.items():
        try:
            made[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        except TypeError as error:
            raise UsageError(f"--inputs: got {name!r} of type {array.dtype}, which torch does not take ({error})") from error
    return made


def arguments(module: Any, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) that pass tensors by name to `forward`: parameters by name, "input0" … and, for a single input, any name in order.

    Raises:
        UsageError: a name that is no parameter, with the nearest.
    """
    known = parameters(module)
    ordered: dict[int, Any] = {}
    named: dict[str, Any] = {}
    for name, tensor in given.items():
        number = re.fullmatch(r"input(\d+)", name)
        if name in known:
            named[name] = tensor
        elif number and int(number[1]) < max(len(known), len(given)):
            ordered[int(number[1])] = tensor
        elif len(given) == 1:
            ordered[0] = tensor
        else:
            raise UsageError(
                f"{type(module).__name__}: got the input {name!r}, expected parameters of forward ({', '.join(known) or 'none'}) "
                f"or input0, input1 …{did_you_mean(name, known)}"
            )
    if sorted(ordered) != list(range(len(ordered))):
        raise UsageError(f"{type(module).__name__}: got inputs {', '.join(given)}, expected input0, input1 … without gaps")
    return tuple(ordered[i] for i in range(len(ordered))), named
