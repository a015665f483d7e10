"""What ONNX itself has: which operator means what a framework's does, and since which opset."""

from __future__ import annotations

import difflib
import functools
import re

# Where a framework's name, without case and underscores, is not ONNX's.
_SAME = {
    "absolute": "Abs", "addv2": "Add", "arccos": "Acos", "arccosh": "Acosh",
    "arcsin": "Asin", "arcsinh": "Asinh", "arctan": "Atan", "arctanh": "Atanh", "batchmatmul": "MatMul", "batchmatmulv2": "MatMul",
    "batchnorm": "BatchNormalization", "bitwiseleftshift": "BitShift", "bitwiserightshift": "BitShift", "bmm": "MatMul",
    "cat": "Concat", "clamp": "Clip", "clipbyvalue": "Clip", "col2im": "Col2Im", "concatv2": "Concat", "conv1d": "Conv", "conv2d": "Conv",
    "conv3d": "Conv", "deformconv2d": "DeformConv", "fftr2c": "DFT", "fftc2c": "DFT", "gathernd": "GatherND", "gatherv2": "Gather",
    "gridsampler": "GridSample", "gridsampler2d": "GridSample", "gridsampler3d": "GridSample", "groupnorm": "GroupNormalization",
    "hardsigmoid": "HardSigmoid", "instancenorm": "InstanceNormalization", "layernorm": "LayerNormalization", "linalgdet": "Det",
    "logicaland": "And", "logicalnot": "Not", "logicalor": "Or", "logicalxor": "Xor", "maskedselect": "Compress",
    "matrixdeterminant": "Det",
    "maximum": "Max", "minimum": "Min", "mm": "MatMul", "multiply": "Mul", "nativegroupnorm": "GroupNormalization",
    "nativelayernorm": "LayerNormalization", "nms": "NonMaxSuppression", "nonmaxsuppressionv2": "NonMaxSuppression",
    "nonmaxsuppressionv3": "NonMaxSuppression", "nonmaxsuppressionv4": "NonMaxSuppression", "nonmaxsuppressionv5": "NonMaxSuppression",
    "remainder": "Mod", "rmsnorm": "RMSNormalization", "scaleddotproductattention": "Attention", "select": "Where",
    "selectv2": "Where", "sigmoid": "Sigmoid", "silu": "Swish", "softmaxcrossentropywithlogits": "SoftmaxCrossEntropyLoss",
    "split": "Split", "splitv": "Split", "topkv2": "TopK", "tril": "Trilu", "triu": "Trilu", "uniquedim": "Unique", "unique2": "Unique",
    "uniquev2": "Unique",
}  # fmt: skip


@functools.cache
def first_versions() -> dict[str, int]:
    """The operators of ONNX's own domain, with the opset in which each first came, as the installed `onnx` knows them."""
    from onnx import defs

    found: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name] = min(schema.since_version, found.get(schema.name, schema.since_version))
    return found


def newest_opset() -> int:
    """The newest opset of ONNX's own domain that the installed `onnx` knows."""
    from onnx import defs

    return int(defs.onnx_opset_version())


def equivalent(op: str) -> str | None:
    """The ONNX operator of the meaning of a framework's, by name: "aten::asinh" and "Asinh" are `Asinh`; None where there is none."""
    bare = re.sub(r"^.*::", "", op).split(".")[0].strip("_")
    key = re.sub(r"[^a-z0-9]", "", bare.lower())
    if key in _SAME:
        return _SAME[key]
    return {name.lower(): name for name in first_versions()}.get(key)


def nearest(name: str, opset: int | None = None, *, count: int = 3) -> list[str]:
    """The ONNX operators whose names are nearest to a name, the best first; only those that an opset has, if one is given."""
    known = {n.lower(): n for n, since in first_versions().items() if opset is None or since <= opset}
    return [known[m] for m in difflib.get_close_matches(name.lower(), known, n=count, cutoff=0.5)]
