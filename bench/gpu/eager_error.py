"""How far torch's eager fp16 is from torch's fp32 for the zoo's models and weights: what our own distance is judged by.

    python -m bench.gpu.eager_error [NAME …]

Modules of torchvision and timm get their weights from the ONNX initializers by name; a model of which a weight is missing is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.gpu.suite import initializers
from models import zoo


def _torchvision(name: str) -> Any:
    import torchvision

    if name.startswith("deeplabv3"):
        return torchvision.models.segmentation.__dict__[name](weights=None, weights_backbone=None)
    if name == "inception_v3":
        return torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False)
    return torchvision.models.__dict__[name](weights=None)


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


LIBRARIES: dict[str, Callable[[str], Any]] = {"torchvision": _torchvision, "timm": _timm}


def measure(name: str) -> dict[str, Any]:
    """Errors of one model: relative L2 of the first output in fp16, channels_last and as it comes, against fp32."""
    import torch

    library, _, rest = name.partition("_")
    proto = zoo.load(name)
    module = LIBRARIES[library](rest).eval()
    found = initializers(proto)
    state = module.state_dict()
    counted = [k for k in state if not k.endswith("num_batches_tracked") and not k.startswith(("AuxLogits", "aux_classifier"))]
    taken = {k: torch.from_numpy(np.array(found[k])) for k in counted if k in found and tuple(found[k].shape) == tuple(state[k].shape)}
    module.load_state_dict(taken, strict=False)
    row: dict[str, Any] = {"model": name, "weights": [len(taken), len(counted)]}
    if len(taken) < len(counted):
        row["missing"] = [k for k in counted if k not in taken][:4]
        return row
    x = torch.from_numpy(next(iter(zoo.inputs(proto).values()))).cuda()
    module = module.cuda()

    def run(net: Any, value: Any) -> Any:
        with torch.no_grad():
            y = net(value)
        return (y["out"] if isinstance(y, dict) else y[0] if isinstance(y, tuple) else y).float()

    want = run(module, x)
    half = module.half()
    for label, form in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        got = run(half.to(memory_format=form), x.half().contiguous(memory_format=form))
        row[label] = float(torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want))
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.eager_error", description=__doc__)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args(argv).names or [n for n in zoo.names() if n.partition("_")[0] in LIBRARIES]
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in names:
        try:
            row = measure(name)
        except Exception as error:
            row = {"model": name, "error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
