"""Known rewrites: the same result by operators that exporters translate, for operators that often do not export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewrite:
    """How to say the same in other operators: a sentence, and Python code to use in the model's source."""

    text: str
    code: str


def rewrite_of(op: str) -> Rewrite | None:
    """The known rewrite of an operator of PyTorch ("aten::kthvalue") or TensorFlow ("Roll"); None where there is none."""
    bare = op.split(".", maxsplit=1)[0].removesuffix("_")
    bare = bare if "::" in bare else f"tf::{bare}"
    return REWRITES.get(_SAME.get(bare, bare))


_SAME = {"aten::special_i0": "aten::i0", "aten::special_erfinv": "aten::erfinv", "aten::linalg_inv_ex": "aten::linalg_inv"}

REWRITES: dict[str, Rewrite] = {
    "aten::kthvalue": Rewrite(
        "the last of the k smallest (topk).",
        "def kthvalue(x, k, dim=-1, keepdim=False):\n"
        "    values, indices = torch.topk(x, k, dim, largest=False, sorted=True)\n"
        "    values, indices = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)\n"
        "    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))",
    ),
    "aten::median": Rewrite(
        "the middle one of the sorted values (topk); of an even number it is the lower, as PyTorch has it.",
        "def median(x, dim=-1):\n"
        "    k = (x.shape[dim] + 1) // 2\n"
        "    values, indices = torch.topk(x, k, dim, largest=False, sorted=True)\n"
        "    return values.select(dim, -1), indices.select(dim, -1)",
    ),
    "aten::searchsorted": Rewrite(
        "count the boundaries below, where there are not too many; with right=True, those not above (<=).",
        "def searchsorted(boundaries, x):\n    return (boundaries < x.unsqueeze(-1)).sum(-1)",
    ),
    "aten::bucketize": Rewrite(
        "count the boundaries below, where there are not too many; with right=True, those not above (<=).",
        "def bucketize(x, boundaries):\n    return (boundaries < x.unsqueeze(-1)).sum(-1)",
    ),
    "aten::hypot": Rewrite("by Pythagoras, where squares stay in range.", "def hypot(x, y):\n    return torch.sqrt(x * x + y * y)"),
    "aten::dist": Rewrite("the norm of the difference.", "def dist(x, y):\n    return torch.sqrt(torch.sum((x - y) * (x - y)))"),
    "aten::copysign": Rewrite(
        "by comparison, where the sign of zero does not matter.",
        "def copysign(x, y):\n    return torch.where(y < 0, -torch.abs(x), torch.abs(x))",
    ),
    "aten::ldexp": Rewrite("a power of two.", "def ldexp(x, exponent):\n    return x * 2.0 ** exponent"),
    "aten::fmax": Rewrite(
        "the greater, or the one that is a number.",
        "def fmax(x, y):\n    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.maximum(x, y)))",
    ),
    "aten::fmin": Rewrite(
        "the lesser, or the one that is a number.",
        "def fmin(x, y):\n    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.minimum(x, y)))",
    ),
    "aten::cumprod": Rewrite(
        "the exponential of a sum of logarithms, where nothing is zero or negative.",
        "def cumprod(x, dim):\n    return torch.exp(torch.cumsum(torch.log(x), dim))",
    ),
    "aten::cummax": Rewrite(
        "the maximum over a triangle, along the last axis, where that is short.",
        "def cummax(x):\n"
        "    n = x.shape[-1]\n"
        "    later = torch.ones(n, n, dtype=torch.bool).triu(1)\n"
        "    return x.unsqueeze(-2).expand(*x.shape[:-1], n, n).masked_fill(later, float('-inf')).max(-1)",
    ),
    "aten::cummin": Rewrite(
        "the minimum over a triangle, along the last axis, where that is short.",
        "def cummin(x):\n"
        "    n = x.shape[-1]\n"
        "    later = torch.ones(n, n, dtype=torch.bool).triu(1)\n"
        "    return x.unsqueeze(-2).expand(*x.shape[:-1], n, n).masked_fill(later, float('inf')).min(-1)",
    ),
    "aten::erfinv": Rewrite(
        "a start and two Newton steps; relative error below 1e-4 up to |x| = 0.999.",
        "def erfinv(x):\n"
        "    log = torch.log(1 - x * x)\n"
        "    half = 2 / (math.pi * 0.147) + log / 2\n"
        "    y = torch.sign(x) * torch.sqrt(torch.sqrt(half * half - log / 0.147) - half)\n"
        "    for _ in range(2):\n"
        "        y = y - (torch.erf(y) - x) * torch.exp(y * y) * (math.sqrt(math.pi) / 2)\n"
        "    return y",
    ),
    "aten::i0": Rewrite(
        "its power series, for |x| up to 8.",
        "def i0(x):\n"
        "    quarter = x * x / 4\n"
        "    term = total = torch.ones_like(x)\n"
        "    for k in range(1, 25):\n"
        "        term = term * quarter / (k * k)\n"
        "        total = total + term\n"
        "    return total",
    ),
    "aten::lgamma": Rewrite(
        "Stirling's series after a shift by 6, for x > 0.",
        "def lgamma(x):\n"
        "    product = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5)\n"
        "    z = x + 6\n"
        "    series = 1 / (12 * z) - 1 / (360 * z * z * z) + 1 / (1260 * z * z * z * z * z)\n"
        "    return (z - 0.5) * torch.log(z) - z + 0.5 * math.log(2 * math.pi) + series - torch.log(product)",
    ),
    "aten::digamma": Rewrite(
        "its asymptotic series after a shift by 6, for x > 0.",
        "def digamma(x):\n"
        "    shift = 1 / x + 1 / (x + 1) + 1 / (x + 2) + 1 / (x + 3) + 1 / (x + 4) + 1 / (x + 5)\n"
        "    z = x + 6\n"
        "    square = 1 / (z * z)\n"
        "    return torch.log(z) - 0.5 / z - square * (1 / 12 - square * (1 / 120 - square / 252)) - shift",
    ),
    "aten::linalg_inv": Rewrite(
        "Newton's iteration, for well conditioned matrices; of a matrix that does not depend on the input, keep the inverse as a buffer.",
        "def inverse(a, steps=30):\n"
        "    identity = torch.eye(a.shape[-1], dtype=a.dtype)\n"
        "    scale = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)\n"
        "    x = a.transpose(-2, -1) / scale[..., None, None]\n"
        "    for _ in range(steps):\n"
        "        x = x @ (2 * identity - a @ x)\n"
        "    return x",
    ),
    "aten::masked_select": Rewrite("indexing by the mask.", "def masked_select(x, mask):\n    return x[mask]"),
    "tf::Roll": Rewrite(
        "two parts, exchanged (of one axis, for a shift from 1 to the extent - 1).",
        "def roll(x, shift, axis):\n"
        "    first, second = tf.split(x, [x.shape[axis] - shift, shift], axis)\n"
        "    return tf.concat([second, first], axis)",
    ),
    "tf::Bincount": Rewrite(
        "a sum of one-hot rows.", "def bincount(x, size):\n    return tf.reduce_sum(tf.one_hot(x, size, dtype=tf.int32), axis=0)"
    ),
}
