"""Models in older opsets: each operator that changed, with what it becomes, its values, and what cannot be written there."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import dovetail
from dovetail.model.edit import checked
from dovetail.model.edit.opset_downward import ADAPTERS

X = "float[N,4,6] x"
CASES = {
    # name: (opset, inputs, outputs, nodes, constants, {opset: operators})
    "mean": (18, X, "float[A,B,C] y", "y = ReduceMean <keepdims=1> (x, a)", {"a": [-1]}, {17: "ReduceMean", 9: "ReduceMean"}),
    "mean of nothing": (18, X, "float[A,B,C] y", "y = ReduceMean <noop_with_empty_axes=1> (x)", {}, {17: "Identity", 9: "Identity"}),
    "mean of all": (18, X, "float[A,B,C] y", "y = ReduceMean (x)", {}, {17: "ReduceMean", 8: "ReduceMean"}),
    "sum": (13, X, "float[A,B] y", "y = ReduceSum <keepdims=0> (x, a)", {"a": [1]}, {12: "ReduceSum", 9: "ReduceSum"}),
    "squeeze": (13, X, "float[A,B,C] y", "u = Unsqueeze (x, a)  y = Squeeze (u, a)", {"a": [-2]},
                {12: "Unsqueeze Squeeze", 9: "Unsqueeze Squeeze"}),
    "split": (18, X, "float[A,B,C] y, float[A,B,D] z", "y, z = Split <axis=-1, num_outputs=2> (x)", {},
              {17: "Split", 12: "Split", 10: "Split"}),
    "split unevenly": (18, "float[N,5,6] x", "float[A,B,C] y, float[A,D,C] z, float[A,E,C] w",
                       "y, z, w = Split <axis=1, num_outputs=3> (x)", {}, None),
    "split by sizes": (18, X, "float[A,B,C] y, float[A,B,D] z", "y, z = Split <axis=2> (x, s)", {"s": [1, 5]},
                       {17: "Split", 12: "Split", 9: "Split"}),
    "shape": (15, X, "int64[A] y", "y = Shape <start=-2> (x)", {}, {14: "Shape Slice", 9: "Shape Slice"}),
    "first sizes": (19, X, "int64[A] y", "y = Shape <start=0, end=1> (x)", {}, {14: "Shape Slice", 10: "Shape Slice"}),
    "reshape": (14, X, "float[A,B] y", "y = Reshape <allowzero=1> (x, s)", {"s": [-1, 3]}, {13: "Reshape", 9: "Reshape"}),
    "dropout": (13, X, "float[A,B,C] y", "y = Dropout (x, r)", {"r": np.float32(0.25)}, {11: "Dropout", 9: "Dropout"}),
    "clip": (13, X, "float[A,B,C] y", "y = Clip (x, l, h)", {"l": np.float32(-0.5), "h": np.float32(0.25)}, {10: "Clip"}),
    "clip above": (11, X, "float[A,B,C] y", "y = Clip (x, , h)", {"h": np.float32(0.25)}, {10: "Clip", 7: "Clip"}),
    "pad axes": (18, X, "float[A,B,C] y", "y = Pad (x, p, v, a)", {"p": [1, 2], "v": np.float32(3), "a": [-1]}, {17: "Pad", 10: "Pad"}),
    "reflect": (19, X, "float[A,B,C] y", 'y = Pad <mode="reflect"> (x, p)', {"p": [0, 1, 2, 0, 1, 0]}, {18: "Pad", 9: "Pad"}),
    "slice": (13, X, "float[A,B,C] y", "y = Slice (x, s, e, a)", {"s": [1], "e": [-1], "a": [-1]}, {12: "Slice", 10: "Slice", 9: "Slice"}),
    "top k": (11, X, "float[A,B,C] y", "y, i = TopK (x, k)", {"k": [2]}, {10: "TopK", 9: "TopK"}),
    "softmax": (13, X, "float[A,B,C] y", "y = Softmax <axis=1> (x)", {},
                {12: "Transpose Softmax Transpose", 9: "Transpose Softmax Transpose"}),
    "last softmax": (13, X, "float[A,B,C] y", "y = LogSoftmax (x)", {}, {12: "LogSoftmax", 9: "LogSoftmax"}),
    "flatten": (13, X, "float[A,B] y", "y = Flatten <axis=-1> (x)", {}, {11: "Flatten", 10: "Flatten"}),
    "gemm": (13, "float[N,4] x", "float[A,B] y", "y = Gemm (x, w)", {"w": np.ones((4, 3), np.float32)}, {11: "Gemm", 7: "Gemm"}),
    "pool": (12, "float[N,2,6,6] x", "float[A,B,C,D] y", "y = MaxPool <kernel_shape=[3,3], dilations=[1,1], ceil_mode=0> (x)", {},
             {10: "MaxPool", 9: "MaxPool", 8: "MaxPool"}),
    "constants": (13, X, "float[A,B,C] y", "c = Constant <value_float=2.5> ()  y = Mul (x, c)", {},
                  {12: "Constant Mul", 11: "Constant Mul", 7: "Constant Mul"}),
    "grow": (19, "float[N,2,3,3] x", "float[A,B,C,D] y",
             'y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , s)',
             {"s": np.array([1, 1, 2, 3], np.float32)}, {17: "Resize", 12: "Resize", 10: "Resize"}),
    "grow to": (18, "float[N,2,3,3] x", "float[A,B,C,D] y", 'y = Resize <mode="linear"> (x, , , s)', {"s": [2, 2, 5, 7]},
                {13: "Resize", 11: "Resize"}),
    "sample": (20, "float[N,2,3,3] x, float[N,4,4,2] g", "float[A,B,C,D] y", "y = GridSample (x, g)", {},
               {19: "GridSample", 16: "GridSample"}),
    "align": (16, "float[1,2,8,8] x", "float[A,B,C,D] y",
              'y = RoiAlign <coordinate_transformation_mode="output_half_pixel", output_height=2, output_width=2> (x, r, i)',
              {"r": np.array([[0, 0, 4, 4]], np.float32), "i": [0]}, {15: "RoiAlign", 10: "RoiAlign"}),
    "norm": (17, X, "float[A,B,C] y", "y = LayerNormalization (x, s)", {"s": np.arange(1, 7, dtype=np.float32)}, None),
    "gelu": (20, X, "float[A,B,C] y", "y = Gelu (x)", {}, None),
    "rms norm": (23, X, "float[A,B,C] y", "y = RMSNormalization <axis=1> (x, s)", {"s": np.ones((4, 6), np.float32)},
                 {22: "Mul ReduceMean Add Sqrt Div Mul", 11: "Mul ReduceMean Add Sqrt Div Mul"}),
    "rms norm of halves": (23, "float16[N,6] x, float16[6] s", "float16[A,B] y", "y = RMSNormalization (x, s)", {},
                           {17: "Cast Mul ReduceMean Add Sqrt Div Cast Mul"}),
    "hard swish": (14, X, "float[A,B,C] y", "y = HardSwish (x)", {}, {13: "HardSigmoid Mul"}),
    "group norm": (21, "float[N,4,6] x", "float[A,B,C] y", "y = GroupNormalization <num_groups=2> (x, s, b)",
                   {"s": np.arange(1, 5, dtype=np.float32), "b": np.ones(4, np.float32)}, None),
    "compare": (16, X, "bool[A,B,C] y", "y = GreaterOrEqual (x, z)", {"z": np.float32(0.1)},
                {12: "GreaterOrEqual", 11: "Greater Equal Or"}),
}  # fmt: skip


def model_of(opset: int, inputs: str, outputs: str, nodes: str, constants: dict) -> dovetail.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {nodes} }}')
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return dovetail.Model.load(proto)


@pytest.mark.parametrize("name", CASES)
def test_operators_in_older_opsets(name: str) -> None:
    *case, becomes = CASES[name]
    model = model_of(*case)
    for opset, operators in (becomes or dict.fromkeys((case[0] - 1, 13, 11))).items():
        result = model.convert_opset(opset)
        assert result.opset == opset
        assert operators is None or [n.op_type for n in result.proto.graph.node] == operators.split()
        assert checked.same(model, result, "convert-opset") < 1e-6


def test_every_way_down_was_gone() -> None:
    gone = set()
    for *case, becomes in CASES.values():
        names = {n.op_type for n in model_of(*case).proto.graph.node}
        low = min(becomes or (11,))
        gone |= {(op, v) for op, v in ADAPTERS if op in names and low < v <= case[0]}
    assert ADAPTERS.keys() - gone <= {
        *((op, 18) for op, v in ADAPTERS if op.startswith("Reduce")), ("Hardmax", 13), ("AveragePool", 10), ("AveragePool", 19),
        ("QuantizeLinear", 13), ("DequantizeLinear", 13),
    }  # fmt: skip


@pytest.mark.parametrize(
    "opset, to, nodes, constants, reason",
    [
        (13, 9, "y = Slice (x, s, e, a, p)", {"s": [0], "e": [4], "a": [1], "p": [2]}, r"Slice: its steps are \[2\]"),
        (13, 9, "q = Shape (x)  y = Slice (x, z, q)", {"z": [0, 0, 0]},
         "Slice: its list is computed, but was an attribute; `dovetail simplify`"),
        (14, 13, "y = Reshape <allowzero=1> (x, s)", {"s": [0, 4, 6]}, "Reshape: its allowzero makes an axis of no elements"),
        (19, 18, 'y = Pad <mode="wrap"> (x, p)', {"p": [0, 0, 1, 0, 0, 1]}, "Pad: it wraps around"),
        (11, 10, "y, i = TopK <largest=0> (x, k)", {"k": [2]}, "TopK: it takes the smallest"),
        (18, 17, "y = Resize <antialias=1, mode=\"linear\"> (x, , s)", {"s": np.ones(3, np.float32)}, "Resize: its axes or antialias"),
        (13, 10, 'y = Resize <mode="linear"> (x, , s)', {"s": np.ones(3, np.float32)}, "Resize: before opset 11 it scales by nearest"),
        (13, 11, "t = Constant <value = bool {1}> ()  y = Dropout (x, r, t)", {"r": np.float32(0.5)},
         "Dropout: it computes as in training"),
        (14, 13, "y = Trilu (x)", {}, "Trilu is not in opset 13"),
        (13, 10, "i = Cast <to=7> (x)  p = Pad (i, w)  y = Cast <to=1> (p)", {"w": [0, 0, 1, 0, 0, 1]},
         "Pad: in opset 10 it takes no int64"),
    ],
)  # fmt: skip
def test_what_an_older_opset_cannot_say(opset: int, to: int, nodes: str, constants: dict, reason: str) -> None:
    model = model_of(opset, X, "float[A,B,C] y", nodes, constants)
    with pytest.raises(dovetail.UsageError, match=reason):
        model.convert_opset(to)


def test_constants_inside_of_branches() -> None:
    model = model_of(
        13, f"{X}, bool flag", "float[A,B,C,D] y",
        """y = If (flag) <
             then_branch = t () => (float[A,B,C,D] u) { a = Constant <value_ints=[0]> ()  u = Unsqueeze (x, a) },
             else_branch = e () => (float[A,B,C,D] w) { b = Constant <value = int64[1] {-4}> ()  w = Unsqueeze (x, b) }
           >""",
        {},
    )  # fmt: skip
    for opset in (12, 9):
        assert checked.same(model, model.convert_opset(opset), "convert-opset") == 0
