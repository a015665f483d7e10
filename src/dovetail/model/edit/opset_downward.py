"""How single operators are written in the opset before the one that changed them, where onnx's converter knows no way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dovetail.model.proto_graph import attribute, constant_value

_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Call:
    """A node to be rewritten, and what may be asked about it.

    Attributes:
        node: the node.
        constant: value of an input, None where only a run can tell.
        shape: sizes of an input, as far as they are known; None without a rank.
        element: element type of an input, 0 where it is unknown.
        weight: adds a constant to the model, for its name.
        unique: a name that nothing has.
    """

    node: onnx.NodeProto
    constant: Callable[[str], np.ndarray[Any, Any] | None]
    shape: Callable[[str], tuple[int | str | None, ...] | None]
    element: Callable[[str], int]
    weight: Callable[[np.ndarray[Any, Any], str], str]
    unique: Callable[[str], str]

    def input(self, position: int) -> str:
        """An input's name; "" where it is absent."""
        return self.node.input[position] if position < len(self.node.input) else ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return attribute(self.node, name, default)

    def rank(self) -> int:
        """The number of axes of the first input.

        Raises:
            ValueError: it is not known.
        """
        shape = self.shape(self.input(0))
        if shape is None:
            raise ValueError("the rank of its operand is not known")
        return len(shape)

    def known(self, position: int, what: str) -> np.ndarray[Any, Any] | None:
        """The value of an input that has to be constant, None where it is absent.

        Raises:
            ValueError: it is not constant.
        """
        name = self.input(position)
        if not name:
            return None
        value = self.constant(name)
        if value is None:
            raise ValueError(f"its {what} is computed, but was an attribute; `dovetail simplify` first computes what it can")
        return value

    def again(self, inputs: Sequence[str] | None = None, without: Sequence[str] = (), /, **attributes: Any) -> onnx.NodeProto:
        """The node with other inputs and attributes; a value of None stands for none, and so does an empty name of an input."""
        made = onnx.NodeProto()
        made.CopyFrom(self.node)
        if inputs is not None:
            kept = list(inputs)
            while kept and not kept[-1]:
                kept.pop()
            made.input[:] = kept
        del made.attribute[:]
        made.attribute.extend(a for a in self.node.attribute if a.name not in without and a.name not in attributes)
        made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items() if value is not None)
        return made


Adapter = Callable[[Call], list[onnx.NodeProto]]

ADAPTERS: dict[tuple[str, int], Adapter] = {}
"""By operator and the opset that changed it: how a node of that opset is written in the one before."""


def _adapter(version: int, *operators: str) -> Callable[[Adapter], Adapter]:
    def decorate(function: Adapter) -> Adapter:
        for operator in operators:
            ADAPTERS[operator, version] = function
        return function

    return decorate


def _ints(value: np.ndarray[Any, Any] | None) -> list[int] | None:
    return None if value is None else [int(v) for v in value.reshape(-1)]


def _number(value: np.ndarray[Any, Any] | None) -> float | None:
    return None if value is None else float(value.reshape(-1)[0])


# ---------------------------------------------------------------- inputs that were attributes
@_adapter(
    18, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"
)
@_adapter(13, "ReduceSum")
def _reduction(call: Call) -> list[onnx.NodeProto]:
    axes = _ints(call.known(1, "list of axes"))
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return [helper.make_node("Identity", [call.input(0)], call.node.output, name=call.node.name)]
    return [call.again([call.input(0)], ["noop_with_empty_axes"], axes=axes or None)]


@_adapter(13, "Squeeze", "Unsqueeze")
def _axes(call: Call) -> list[onnx.NodeProto]:
    return [call.again([call.input(0)], axes=_ints(call.known(1, "list of axes")))]


@_adapter(13, "Split")
def _split_sizes(call: Call) -> list[onnx.NodeProto]:
    return [call.again([call.input(0)], split=_ints(call.known(1, "list of sizes")))]


@_adapter(12, "Dropout")
def _dropout(call: Call) -> list[onnx.NodeProto]:
    mode = call.known(2, "mode")
    if mode is not None and mode.any():
        raise ValueError("it computes as in training")
    return [call.again([call.input(0)], ["seed"], ratio=_number(call.known(1, "ratio")))]


@_adapter(11, "Clip")
def _clip(call: Call) -> list[onnx.NodeProto]:
    low, high = call.known(1, "bound"), call.known(2, "bound")
    return [call.again([call.input(0)], min=_number(low), max=_number(high))]


@_adapter(18, "Pad")
def _pad_axes(call: Call) -> list[onnx.NodeProto]:
    axes = _ints(call.known(3, "list of axes"))
    if axes is None:
        return [call.again(call.node.input[:3])]
    pads, rank = _ints(call.known(1, "list of pads")) or [], call.rank()
    wide = np.zeros((2, rank), np.int64)
    wide[:, [a % rank for a in axes]] = np.reshape(pads, (2, len(axes)))
    return [call.again([call.input(0), call.weight(wide.reshape(-1), "pads"), call.input(2)])]


@_adapter(11, "Pad")
def _pads(call: Call) -> list[onnx.NodeProto]:
    return [call.again([call.input(0)], pads=_ints(call.known(1, "list of pads")), value=_number(call.known(2, "value")))]


@_adapter(10, "Slice")
def _slice(call: Call) -> list[onnx.NodeProto]:
    steps = _ints(call.known(4, "list of steps"))
    if steps is not None and set(steps) - {1}:
        raise ValueError(f"its steps are {steps}")
    starts, ends, axes = (_ints(call.known(position, "list")) for position in (1, 2, 3))
    return [call.again([call.input(0)], starts=starts, ends=ends, axes=axes)]


@_adapter(11, "TopK")
def _top_k_order(call: Call) -> list[onnx.NodeProto]:
    if not call.attribute("largest", 1):
        raise ValueError("it takes the smallest")
    return [call.again(None, ["largest", "sorted"])]


@_adapter(10, "TopK")
def _top_k(call: Call) -> list[onnx.NodeProto]:
    count = call.known(1, "number")
    return [call.again([call.input(0)], k=None if count is None else int(count.reshape(-1)[0]))]


# ---------------------------------------------------------------- other forms
@_adapter(19, "Pad")
def _wrap(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("mode", b"constant") == b"wrap":
        raise ValueError("it wraps around, which came with opset 19")
    return [call.node]


@_adapter(18, "Split")
def _split_evenly(call: Call) -> list[onnx.NodeProto]:
    count = call.attribute("num_outputs")
    if count is None or call.input(1):
        return [call.again(None, ["num_outputs"])]
    shape, axis = call.shape(call.input(0)), call.attribute("axis", 0)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int) or size % count == 0:  # where it does not divide, the split of before is refused by who runs it
        return [call.again(None, ["num_outputs"])]
    chunk = -(-size // count)
    sizes = np.array([chunk] * (count - 1) + [size - chunk * (count - 1)], np.int64)
    return [call.again([call.input(0), call.weight(sizes, "sizes")], ["num_outputs"])]


@_adapter(15, "Shape")
def _shape(call: Call) -> list[onnx.NodeProto]:
    start, end = call.attribute("start", 0), call.attribute("end")
    plain = call.again(None, ["start", "end"])
    if not start and end is None:
        return [plain]
    plain.output[:] = [call.unique(f"{call.node.output[0]}_all")]
    bounds = [call.weight(np.array([v], np.int64), hint) for v, hint in ((start, "start"), (_INT64_MAX if end is None else end, "end"))]
    return [plain, helper.make_node("Slice", [plain.output[0], *bounds, call.weight(np.zeros(1, np.int64), "axes")], call.node.output)]


@_adapter(14, "Reshape")
def _reshape(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("allowzero", 0):
        target = call.constant(call.input(1))
        if target is not None and not target.all():
            raise ValueError("its allowzero makes an axis of no elements")
    return [call.again(None, ["allowzero"])]


@_adapter(13, "Resize")
def _resize_operands(call: Call) -> list[onnx.NodeProto]:
    given = call.input(1) and call.input(2)
    empty = "" if given else call.weight(np.zeros(0, np.float32), "none")
    return [call.again([call.input(0), call.input(1) or empty, call.input(2) or empty, call.input(3)])]


@_adapter(18, "Resize")
def _resize_axes(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("axes") is not None or call.attribute("antialias", 0):
        raise ValueError("its axes or antialias came with opset 18")
    if call.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("its keep_aspect_ratio_policy came with opset 18")
    return [call.again(None, ["antialias", "keep_aspect_ratio_policy"])]


@_adapter(19, "Resize")
def _resize_symmetric(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("coordinate_transformation_mode", b"half_pixel") == b"half_pixel_symmetric":
        raise ValueError("its half_pixel_symmetric came with opset 19")
    return [call.node]


@_adapter(11, "Resize")
def _resize_nearest(call: Call) -> list[onnx.NodeProto]:
    form = [call.attribute(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if form[0] not in (None, b"nearest") or form[1:] != [b"asymmetric", b"floor"] or call.input(3):
        raise ValueError("before opset 11 it scales by nearest, asymmetric and floor only")
    later = ["coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value"]
    return [call.again([call.input(0), call.input(2)], later)]


@_adapter(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call) -> list[onnx.NodeProto]:
    """Before, all axes from `axis` on were one: the same for the last axis, to which another one is moved."""
    rank = call.rank()
    axis = call.attribute("axis", -1) % max(rank, 1)
    if axis >= rank - 1:
        return [call.again(None, axis=max(rank - 1, 0))]
    order = [*(a for a in range(rank) if a != axis), axis]
    moved, done = (call.unique(f"{call.node.output[0]}_{hint}") for hint in ("moved", "last"))
    inner = call.again([moved], axis=rank - 1)
    inner.output[:] = [done]
    return [
        helper.make_node("Transpose", [call.input(0)], [moved], perm=order), inner,
        helper.make_node("Transpose", [done], call.node.output, perm=[order.index(a) for a in range(rank)]),
    ]  # fmt: skip


@_adapter(23, "RMSNormalization")
def _rms_norm(call: Call) -> list[onnx.NodeProto]:
    """As ONNX defines it, with constant axes, which its own function computes."""
    rank, kind = call.rank(), call.element(call.input(0))
    if not kind:
        raise ValueError("the type of its operand is not known")
    wide = call.attribute("stash_type", onnx.TensorProto.FLOAT)
    number = helper.tensor_dtype_to_np_dtype(wide)
    axes = call.weight(np.arange(call.attribute("axis", -1) % rank, rank), "axes")
    names = {hint: call.unique(f"{call.node.output[0]}_{hint}") for hint in ("wide", "square", "mean", "sum", "root", "scaled", "narrow")}
    epsilon = call.weight(np.asarray(call.attribute("epsilon", 1e-5), number), "epsilon")
    nodes = [
        helper.make_node("Cast", [call.input(0)], [names["wide"]], to=wide),
        helper.make_node("Mul", [names["wide"], names["wide"]], [names["square"]]),
        helper.make_node("ReduceMean", [names["square"], axes], [names["mean"]], keepdims=1),
        helper.make_node("Add", [names["mean"], epsilon], [names["sum"]]),
        helper.make_node("Sqrt", [names["sum"]], [names["root"]]),
        helper.make_node("Div", [names["wide"], names["root"]], [names["scaled"]]),
        helper.make_node("Cast", [names["scaled"]], [names["narrow"]], to=kind),
        helper.make_node("Mul", [names["narrow"], call.input(1)], call.node.output),
    ]
    if kind != wide:
        return nodes
    nodes[1].input[:] = [call.input(0)] * 2  # nothing to cast
    nodes[5].input[0], nodes[7].input[0] = call.input(0), names["scaled"]
    return [*nodes[1:6], nodes[7]]


def counts_from_the_end(node: onnx.NodeProto) -> bool:
    """Whether attributes name axes by negative numbers, which opset 11 brought."""
    named = {a.name: a for a in node.attribute}
    return ("axis" in named and named["axis"].i < 0) or ("axes" in named and min(named["axes"].ints, default=0) < 0)


def count_from_the_front(call: Call) -> onnx.NodeProto:
    """The node with axes counted from the front.

    Raises:
        ValueError: their number is not known.
    """
    axes = call.attribute("axes")
    rank = call.rank() + {"Unsqueeze": len(axes or ()), "OneHot": 1}.get(call.node.op_type, 0)
    axis = call.attribute("axis")
    given: dict[str, Any] = {} if axis is None else {"axis": axis % rank}
    return call.again(None, **given if axes is None else {"axes": [a % rank for a in axes]})


@_adapter(11, "Slice")
def _slice_axes(call: Call) -> list[onnx.NodeProto]:
    name = call.input(3)
    axes = call.constant(name) if name else None
    if axes is None or (axes >= 0).all():
        return [call.node]
    return [call.again([*call.node.input[:3], call.weight(axes % call.rank(), "axes"), *call.node.input[4:]])]


@_adapter(11, "Gemm")
def _gemm(call: Call) -> list[onnx.NodeProto]:
    if call.input(2):
        return [call.node]
    kind = helper.tensor_dtype_to_np_dtype(call.element(call.input(0)) or onnx.TensorProto.FLOAT)
    return [call.again([*call.node.input[:2], call.weight(np.zeros(1, kind), "bias")])]


@_adapter(10, "MaxPool", "AveragePool")
@_adapter(19, "AveragePool")
def _pool(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("ceil_mode", 0) or set(call.attribute("dilations", [1])) - {1}:
        raise ValueError("its ceil_mode or dilations mean something else, or nothing, before")
    return [call.again(None, ["dilations", "ceil_mode"])]


@_adapter(12, "Constant")
def _constant(call: Call) -> list[onnx.NodeProto]:
    held = call.node.attribute[0]
    value = constant_value(call.node, None)
    if value is None and held.name in ("value_string", "value_strings"):
        value = np.asarray(helper.get_attribute_value(held), object)
    if value is None or held.name == "value":
        return [call.node]
    return [call.again(None, [held.name], value=numpy_helper.from_array(value))]


@_adapter(13, "QuantizeLinear", "DequantizeLinear")
def _quantize(call: Call) -> list[onnx.NodeProto]:
    shape = call.shape(call.input(1))
    if shape is None or [s for s in shape if s != 1]:
        raise ValueError("its scales are not one for the whole tensor")
    return [call.again(None, ["axis"])]


@_adapter(16, "RoiAlign")
def _roi_align(call: Call) -> list[onnx.NodeProto]:
    if call.attribute("coordinate_transformation_mode", b"half_pixel") != b"output_half_pixel":
        raise ValueError("before opset 16 it places samples by output_half_pixel")
    return [call.again(None, ["coordinate_transformation_mode"])]


@_adapter(20, "GridSample")
def _grid_sample(call: Call) -> list[onnx.NodeProto]:
    shape = call.shape(call.input(0))
    if shape is None or len(shape) != 4:
        raise ValueError("before opset 20 it takes images only")
    names = {b"linear": "bilinear", b"cubic": "bicubic", b"nearest": "nearest"}
    return [call.again(None, mode=names[call.attribute("mode", b"linear")])]
