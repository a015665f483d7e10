"""Known rewrites: the same result by operators that every exporter translates, for operators that often do not export."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rewrite:
    """How to say the same in other operators: a sentence, and Python code to use in the model's source."""

    text: str
    code: str


def rewrite_of(op: str) -> Rewrite | None:
    """The known rewrite of an operator of PyTorch ("aten::kthvalue") or TensorFlow ("Roll"); None where there is none."""
    bare = op.split(".", maxsplit=1)[0]
    return _REWRITES.get(bare if "::" in bare else f"tf::{bare}") or _REWRITES.get(re.sub(r"_$", "", bare))


_REWRITES: dict[str, Rewrite] = {
    "aten::hypot": Rewrite("Pythagoras, where squares stay in range.", "def hypot(x, y):\n    return torch.sqrt(x * x + y * y)"),
    "aten::kthvalue": Rewrite(
        "the last of the k smallest (topk).",
        "def kthvalue(x, k, dim=-1, keepdim=False):\n"
        "    values, indices = torch.topk(x, k, dim, largest=False, sorted=True)\n"
        "    values, indices = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)\n"
        "    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))",
    ),
}
