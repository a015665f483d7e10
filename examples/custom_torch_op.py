"""A custom operator of PyTorch in Dovetail: exported as a node of a domain of its own, and run by a plugin.

    python examples/custom_torch_op.py

`library::soft_shrink` is defined with torch.library: exporters know nothing of it, and ONNX has nothing like it. The translation below
writes it as a node `library::SoftShrink`, with its arguments as attributes; the plugin of that name runs the node. Both exporters
take the translation. From the command line:

    dovetail export examples/custom_torch_op.py:make -o shrink.onnx --dynamic x:0=batch --plugins examples/custom_torch_op.py
    dovetail build shrink.onnx -o shrink.plan --plugins examples/custom_torch_op.py
"""

import numpy as np
import torch

import dovetail

# --- PyTorch: the operator, its meaning, and what its result looks like ---------------------------


@torch.library.custom_op("library::soft_shrink", mutates_args=())
def soft_shrink(x: torch.Tensor, threshold: float, axes: list[int], keep_sign: bool = True) -> torch.Tensor:
    """Take `threshold` times the mean magnitude over `axes` off every magnitude, down to 0."""
    limit = threshold * x.abs().mean(axes, keepdim=True)
    magnitude = torch.clamp(x.abs() - limit, min=0)
    return magnitude * x.sign() if keep_sign else magnitude


@soft_shrink.register_fake
def _(x, threshold, axes, keep_sign=True):
    return torch.empty_like(x)


# --- ONNX: one node -------------------------------------------------------------------------------


@dovetail.export.symbolic("library::soft_shrink")
def export_soft_shrink(op, x, threshold, axes, keep_sign):
    """Numbers and lists are Python's own here: they become attributes."""
    return op("library::SoftShrink", x, threshold=threshold, axes=axes, keep_sign=keep_sign, results=[x])


# --- Dovetail: what runs the node -----------------------------------------------------------------


@dovetail.plugin("SoftShrink")
def run_soft_shrink(x: np.ndarray, *, threshold: float, axes: list, keep_sign: bool = True) -> np.ndarray:
    """The same on NumPy arrays."""
    limit = np.float32(threshold) * np.abs(x).mean(axis=tuple(axes), keepdims=True)
    magnitude = np.maximum(np.abs(x) - limit, 0)
    return magnitude * np.sign(x) if keep_sign else magnitude


@run_soft_shrink.shape
def soft_shrink_shape(x, **_):
    """The shape of x, also where it is dynamic."""
    return x.shape


class Denoise(torch.nn.Module):
    """Convolution, shrinkage, convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.analyse = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.synthesise = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        """x[N, 3, H, W] → the same shape."""
        return self.synthesise(soft_shrink(self.analyse(x), 0.5, [2, 3]))


def make():
    """What the command line exports: the module and example inputs."""
    return Denoise(), (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def main():
    """By both exporters, with a batch that the export has not seen."""
    module, inputs = make()
    x = np.random.default_rng(2).normal(0, 1, (5, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    for exporter in ("dynamo", "torchscript"):
        model = dovetail.export.pytorch(module, inputs, dynamic={"x": {0: "batch"}}, exporter=exporter)
        node = next(n for n in model.proto.graph.node if n.op_type == "SoftShrink")
        engine = dovetail.build(model)
        got = engine.run({"x": x})["output"]
        assert np.abs(got - want).max() < 1e-5, np.abs(got - want).max()
        attributes = sorted(a.name for a in node.attribute)
        print(f"{exporter}: {node.domain}::{node.op_type} with {', '.join(attributes)}; {got.shape} equal to PyTorch's")


if __name__ == "__main__":
    main()
