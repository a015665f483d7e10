"""Attributes of plugin calls: any JSON value and arrays, as canonical JSON text in graphs and plans.

Objects with one key that starts with "$" stand for what JSON lacks: `{"$array": [dtype, shape, base64]}` and
`{"$float": "nan"}`. A user's own keys that start with "$" are written with one "$" more.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dovetail.core.dtypes import DTYPES, dtype
from dovetail.core.errors import PlanFormatError, UsageError

MAX_TEXT = 1 << 24
"""The longest text of a call's attributes; arrays that need more are inputs."""

_MAX_DEPTH = 32


def encode(attributes: Mapping[str, Any]) -> str:
    """The canonical text: equal attributes give equal text.

    Raises:
        UsageError: a value that is neither JSON nor an array.
    """
    tree = {key: _encoded(value, key, 0) for key, value in attributes.items()}
    text = json.dumps(tree, separators=(",", ":"), sort_keys=True, ensure_ascii=True, allow_nan=False)
    if len(text) > MAX_TEXT:
        largest = max(tree, key=lambda name: len(json.dumps(tree[name])))
        raise UsageError(f"attribute {largest!r}: got attributes of {len(text)} characters, expected {MAX_TEXT} at most; make it an input")
    return text


def decode(text: str) -> dict[str, Any]:
    """The attributes of a text; lists and objects are new, arrays are shared and read-only.

    Raises:
        PlanFormatError: not such a text.
    """
    tree = _decoded_once(text)
    return {key: _copied(value) for key, value in tree.items()}


def plain(value: Any) -> Any:
    """A value as plugins get it: NumPy scalars become Python's, tuples lists; arrays stay.

    Raises:
        UsageError: a value that is neither JSON nor an array.
    """
    return _decoded(json.loads(json.dumps(_encoded(value, "attribute", 0), allow_nan=False)), 0)


def _encoded(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UsageError(f"{where}: got values nested more than {_MAX_DEPTH} deep, expected fewer levels; flatten it")
    if isinstance(value, np.ndarray):
        return _encoded_array(value, where)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [_encoded(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {f"${k}" if k.startswith("$") else k: _encoded(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    raise UsageError(
        f"{where}: got a {type(value).__name__}, expected None, a bool, int, float, str, list, dict with text keys, or array; "
        "pass what the run computes as an input"
    )


def _encoded_array(array: np.ndarray[Any, Any], where: str) -> Any:
    if array.dtype.kind in "USO":
        strings = [str(item) for item in array.reshape(-1)]
        return {"$array": ["str", list(array.shape), strings]}
    kind = dtype(array.dtype)
    dense = np.ascontiguousarray(array, kind.numpy)
    return {"$array": [kind.name, list(array.shape), base64.b64encode(dense.tobytes()).decode()]}


@functools.lru_cache(maxsize=256)
def _decoded_once(text: str) -> Mapping[str, Any]:
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ValueError("no object")
        return {str(key): _decoded(value, 0) for key, value in tree.items()}
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise PlanFormatError(f"plugin attributes: got damaged text ({error}), expected JSON; rebuild the engine") from error


def _decoded(value: Any, depth: int) -> Any:
    if depth > 2 * _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_decoded(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if key == "$float":
            return float(item)
        if key == "$array":
            return _decoded_array(*item)
    return {k[1:] if k.startswith("$") else k: _decoded(v, depth + 1) for k, v in value.items()}


def _decoded_array(name: str, shape: list[int], data: Any) -> np.ndarray[Any, Any]:
    if name == "str":
        result = np.array(data, object).reshape(shape)
    else:
        result = np.frombuffer(base64.b64decode(data, validate=True), DTYPES[name].numpy).reshape(shape)
    result.flags.writeable = False
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value
