"""ONNX operators by torch's own functions, in whatever precision their operands have: what `eager_onnx` runs.

`OPS[op](a, *inputs)` gives one tensor or a tuple of them; `a` holds the attributes, an absent input is None. Shapes and indices are
int64 tensors. Attributes and operators that no shared model uses are missing rather than guessed. torch is imported when an operator
first runs: the table can be read without it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any


class _Torch:
    """torch, imported at first use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torch"), name)


class Attributes(dict[str, Any]):
    """Attributes of a node by name; one that is absent is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def only(self, **known: Any) -> None:
        """Refuse other values than these of the attributes that `known` names; absent ones are fine."""
        for name, value in known.items():
            if self.get(name, value) != value:
                raise NotImplementedError(f"{name}: got {self[name]}, expected {value}")


torch: Any = _Torch()
DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 11: "float64"}


def ints(x: Any) -> list[int]:
    """The integers in a tensor of rank 0 or 1."""
    return [int(v) for v in x.reshape(-1).tolist()]


def _pad(x: Any, pads: list[int], value: float = 0.0) -> Any:
    half = len(pads) // 2
    pairs = [p for low, high in zip(pads[:half], pads[half:], strict=True) for p in (low, high)]
    ordered = [p for i in reversed(range(half)) for p in pairs[2 * i : 2 * i + 2]]
    return torch.nn.functional.pad(x, ordered, value=value)


def _symmetric(a: Attributes, x: Any, value: float = 0.0) -> tuple[Any, list[int]]:
    """The input, padded where the pads of its two ends differ, and the padding that is left to the operator."""
    a.only(auto_pad=b"NOTSET")
    half = x.ndim - 2
    pads = list(a.pads or [0] * 2 * half)
    return (x, pads[:half]) if pads[:half] == pads[half:] else (_pad(x, pads, value), [0] * half)


def _conv(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    x, padding = _symmetric(a, x)
    n = x.ndim - 2
    conv = getattr(torch.nn.functional, f"conv{n}d")
    return conv(x, w, b, a.strides or [1] * n, padding, a.dilations or [1] * n, a.group or 1)


def _conv_transpose(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    a.only(auto_pad=b"NOTSET", output_shape=None)
    n = x.ndim - 2
    pads = a.pads or [0] * 2 * n
    if pads[:n] != pads[n:]:
        raise NotImplementedError(f"pads: got {pads}, expected equal ends")
    conv = getattr(torch.nn.functional, f"conv_transpose{n}d")
    return conv(x, w, b, a.strides or [1] * n, pads[:n], a.output_padding or [0] * n, a.group or 1, a.dilations or [1] * n)


def _average_pool(a: Attributes, x: Any) -> Any:
    a.only(dilations=None)
    x, padding = _symmetric(a, x)
    return torch.nn.functional.avg_pool2d(x, a.kernel_shape, a.strides or 1, padding, bool(a.ceil_mode), bool(a.count_include_pad))


def _max_pool(a: Attributes, x: Any) -> Any:
    x, padding = _symmetric(a, x, -math.inf)
    return torch.nn.functional.max_pool2d(x, a.kernel_shape, a.strides or 1, padding, a.dilations or 1, bool(a.ceil_mode))


def _normalised(function: str) -> Callable[..., Any]:
    def run(a: Attributes, x: Any, *weights: Any) -> Any:
        axis = -1 if a.axis is None else a.axis
        epsilon = 1e-5 if a.epsilon is None else a.epsilon
        return getattr(torch.nn.functional, function)(x, x.shape[axis:], *weights, eps=epsilon)

    return run


def _attention(a: Attributes, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    a.only(softcap=0.0, qk_matmul_output_mode=0, q_num_heads=None, kv_num_heads=None)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    return sdpa(q, k, v, mask, is_causal=bool(a.is_causal), scale=a.scale, enable_gqa=q.shape[1] != k.shape[1])


def _gate_order(w: Any, order: list[int]) -> Any:
    return torch.cat([w.chunk(len(order))[i] for i in order])


def _recurrent(kind: str, order: list[int]) -> Callable[..., Any]:
    """LSTM (gates iofc) and GRU (zrh) as torch's modules, whose gates are ifco and rzh."""

    def run(a: Attributes, x: Any, w: Any, r: Any, b: Any, lengths: Any = None, *states: Any) -> Any:
        a.only(linear_before_reset=1, layout=0, activations=None, clip=None)
        if lengths is not None or a.direction == b"reverse":
            raise NotImplementedError(f"{kind}: lengths per sample, or backwards alone")
        both = len(w) == 2
        net = getattr(torch.nn, kind)(x.shape[2], a.hidden_size, bidirectional=both).to(x.device, x.dtype)
        for i, end in enumerate(["", "_reverse"][: len(w)]):
            parts = {"weight_ih": w[i], "weight_hh": r[i], "bias_ih": b[i].chunk(2)[0], "bias_hh": b[i].chunk(2)[1]}
            for name, part in parts.items():
                getattr(net, f"{name}_l0{end}").data = _gate_order(part, order)
        given = [s for s in states if s is not None]
        y, last = net(x, (tuple(given) if kind == "LSTM" else given[0]) if given else None)
        y = y.reshape(*y.shape[:2], len(w), a.hidden_size).transpose(1, 2)
        return (y, *last) if kind == "LSTM" else (y, last)

    return run


def _gather(a: Attributes, x: Any, index: Any) -> Any:
    axis = (a.axis or 0) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    taken = x.index_select(axis, index.reshape(-1).to(x.device))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_elements(a: Attributes, x: Any, index: Any) -> Any:
    axis = a.axis or 0
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def _gather_nd(a: Attributes, x: Any, index: Any) -> Any:
    a.only(batch_dims=0)
    return x[tuple(index.unbind(-1))]


def _scatter_nd(a: Attributes, x: Any, index: Any, updates: Any) -> Any:
    a.only(reduction=b"none")
    y = x.clone()
    y[tuple(index.unbind(-1))] = updates.to(y.dtype)
    return y


def _slice(a: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    first, last = ints(starts), ints(ends)
    along = ints(axes) if axes is not None else list(range(len(first)))
    by = ints(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, torch.tensor(range(x.shape[axis])[start:end:step], dtype=torch.int64, device=x.device))
    return x


def _reshape(a: Attributes, x: Any, shape: Any) -> Any:
    sizes = [x.shape[i] if s == 0 and not a.allowzero else s for i, s in enumerate(ints(shape))]
    return x.reshape(sizes)


def _squeeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def _unsqueeze(a: Attributes, x: Any, axes: Any) -> Any:
    rank = x.ndim + axes.numel()
    for axis in sorted(i % rank for i in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _split(a: Attributes, x: Any, sizes: Any = None) -> Any:
    axis = a.axis or 0
    if sizes is not None:
        return x.split(ints(sizes), axis)
    if a.num_outputs is None:
        raise NotImplementedError("Split by neither sizes nor num_outputs")
    return x.split(-(-x.shape[axis] // a.num_outputs), axis)


def _expand(a: Attributes, x: Any, shape: Any) -> Any:
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


def _pads(a: Attributes, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    a.only(mode=b"constant")
    given, full = ints(pads), [0] * 2 * x.ndim
    for i, axis in enumerate(ints(axes) if axes is not None else range(x.ndim)):
        full[axis % x.ndim], full[axis % x.ndim + x.ndim] = given[i], given[i + len(given) // 2]
    return _pad(x, full, 0.0 if value is None else value.item())


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(a: Attributes, x: Any, axes: Any = None) -> Any:
        along = ints(axes) if axes is not None else list(a.axes or range(x.ndim))
        a.only(noop_with_empty_axes=0)
        return function(x, along, a.keepdims is None or bool(a.keepdims))

    return run


def _resize(a: Attributes, x: Any, roi: Any, scales: Any, sizes: Any = None) -> Any:
    linear = a.mode == b"linear"
    a.only(coordinate_transformation_mode=b"half_pixel" if linear else b"asymmetric", nearest_mode=b"floor", keep_aspect_ratio_policy=None)
    by = {"size": ints(sizes)[2:]} if sizes is not None else {"scale_factor": scales.tolist()[2:], "recompute_scale_factor": False}
    return torch.nn.functional.interpolate(x, mode="bilinear" if linear else "nearest", **by)


def _top_k(a: Attributes, x: Any, k: Any) -> Any:
    return x.topk(int(k), -1 if a.axis is None else a.axis, a.largest is None or bool(a.largest), True)


def _hard_sigmoid(a: Attributes, x: Any) -> Any:
    alpha, beta = (0.2 if a.alpha is None else a.alpha), (0.5 if a.beta is None else a.beta)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return torch.nn.functional.hardsigmoid(x)
    return (alpha * x + beta).clamp(0, 1)


def _divide(a: Attributes, x: Any, y: Any) -> Any:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _gemm(a: Attributes, x: Any, y: Any, bias: Any = None) -> Any:
    x, y = (x.T if a.transA else x), (y.T if a.transB else y)
    alpha, beta = (1.0 if a.alpha is None else a.alpha), (1.0 if a.beta is None else a.beta)
    return alpha * (x @ y) if bias is None else torch.addmm(bias, x, y, alpha=alpha, beta=beta)


def _batch_norm(a: Attributes, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    a.only(training_mode=0)
    return torch.nn.functional.batch_norm(x, mean, variance, scale, bias, eps=1e-5 if a.epsilon is None else a.epsilon)


def _suppress(a: Attributes, boxes: Any, scores: Any, most: Any = None, overlap: Any = None, least: Any = None) -> Any:
    """Greedy suppression by overlap, boxes given by two corners; rows of (sample, class, box)."""
    a.only(center_point_box=0)
    if most is None:
        return torch.zeros((0, 3), dtype=torch.int64)
    limit, highest, kept = (0.0 if overlap is None else float(overlap)), int(most), []
    for sample, corners in enumerate(boxes):
        low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
        area = (high - low).prod(-1)
        shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
        clear = (shared / (area[:, None] + area - shared) <= limit).cpu().numpy()
        for label, score in enumerate(scores[sample]):
            ranked = score.argsort(descending=True, stable=True)
            order = (ranked if least is None else ranked[score[ranked] > least]).cpu().numpy()
            count = 0
            while len(order) and count < highest:
                best, order, count = order[0], order[1:], count + 1
                kept.append([sample, label, int(best)])
                order = order[clear[best, order]]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


OPS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "And": lambda a, x, y: x & y,
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda a, x: x.to(getattr(torch, DTYPES[a.to])),
    "Ceil": lambda a, x: x.ceil(),
    "Clip": lambda a, x, low=None, high=None: x.clamp(None if low is None else low.item(), None if high is None else high.item()),
    "Concat": lambda a, *xs: torch.cat(xs, a.axis),
    "ConstantOfShape": lambda a, shape: torch.zeros(ints(shape)) if a.value is None else a.value.reshape([]).expand(ints(shape)).clone(),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": lambda a, x: x.cos(),
    "Div": _divide,
    "Equal": lambda a, x, y: x == y,
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Expand": _expand,
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: 1 if a.axis is None else a.axis]), -1),
    "GRU": _recurrent("GRU", [1, 0, 2]),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": lambda a, x: torch.nn.functional.gelu(x, approximate=(a.approximate or b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: torch.nn.functional.adaptive_avg_pool2d(x, 1),
    "Greater": lambda a, x, y: x > y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda a, x: torch.nn.functional.hardswish(x),
    "Identity": lambda a, x: x,
    "InstanceNormalization": lambda a, x, w, b: torch.nn.functional.instance_norm(x, weight=w, bias=b, eps=a.epsilon or 1e-5),
    "IsNaN": lambda a, x: x.isnan(),
    "LSTM": _recurrent("LSTM", [0, 2, 3, 1]),
    "LayerNormalization": _normalised("layer_norm"),
    "LeakyRelu": lambda a, x: torch.nn.functional.leaky_relu(x, 0.01 if a.alpha is None else a.alpha),
    "LessOrEqual": lambda a, x, y: x <= y,
    "MatMul": lambda a, x, y: x @ y,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "MaxPool": _max_pool,
    "Min": lambda a, x, y: torch.minimum(x, y),
    "Mod": lambda a, x, y: torch.fmod(x, y) if a.fmod else torch.remainder(x, y),
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "NonMaxSuppression": _suppress,
    "NonZero": lambda a, x: x.nonzero().T,
    "Not": lambda a, x: ~x,
    "Pad": _pads,
    "Pow": lambda a, x, y: x**y,
    "RMSNormalization": _normalised("rms_norm"),
    "Range": lambda a, start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype),
    "Reciprocal": lambda a, x: x.reciprocal(),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduce(lambda x, axes, keep: x.prod(axes[0], keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterND": _scatter_nd,
    "Shape": lambda a, x: torch.tensor(x.shape[a.start or 0 : a.end], dtype=torch.int64),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Sin": lambda a, x: x.sin(),
    "Slice": _slice,
    "Softmax": lambda a, x: torch.nn.functional.softmax(x, -1 if a.axis is None else a.axis),
    "Softplus": lambda a, x: torch.nn.functional.softplus(x),
    "Split": _split,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: x.tanh(),
    "Tile": lambda a, x, repeats: x.repeat(ints(repeats)),
    "TopK": _top_k,
    "Transpose": lambda a, x: x.permute(a.perm or list(reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, c, x, y: torch.where(c, x, y),
}  # fmt: skip
CONTROL = frozenset({"Constant", "If", "Loop"})
"""Operators that the runner itself knows."""
READ_ON_HOST = frozenset({
    "Clip", "ConstantOfShape", "Expand", "Pad", "Range", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze",
})  # fmt: skip
"""Operators that read all operands but the first as numbers, wherever these are."""
