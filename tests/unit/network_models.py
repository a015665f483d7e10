"""Networks and ONNX models in text form that several tests share."""

from typing import Any

import numpy as np
import onnx
from onnx import parser

import dovetail

RNG = np.random.default_rng(4)


def f32(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def text(body: str, opset: int = 21) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{body}')


def if_network() -> dovetail.Network:
    net = dovetail.Network()
    c, x, z = net.input("c", "bool", ()), net.input("x", "f32", ("N", 4)), net.input("z", "f32", ("N", 4))
    a = net.op("Mul", x, z)

    def otherwise(inner: Any) -> tuple[Any, Any]:
        u = inner.op("Sub", a, z)
        return u, inner.op("Gather", u, [0, 1], axis=1)

    y, s = net.if_(c, lambda inner: (inner.op("Add", x, a), inner.op("Gather", x, [1, 3], axis=1)), otherwise)
    net.output(y, "y")
    net.output(s, "s")
    return net
