"""An operator that PyTorch's exporter does not translate: aten::asinh at opset 12, by a translation of one's own.

    python examples/asinh_opset12.py

ONNX has Asinh since opset 9, but PyTorch's torchscript exporter, the one that writes opset 12, never learned it. The function
below is all that is missing. It serves the dynamo exporter too, which writes opset 18 and newer, where it takes the place of
PyTorch's own translation.
From the command line, this file is both the model and the translations:

    dovetail export examples/asinh_opset12.py:make -o asinh.onnx --exporter torchscript --opset 12 --plugins examples/asinh_opset12.py
"""

import numpy as np
import torch

import dovetail


@dovetail.export.symbolic("aten::asinh", opset=12)
def asinh(op, x):
    """One ONNX operator is enough; where there is none, several are composed, as below."""
    return op.Asinh(x)


def asinh_by_logarithms(op, x):
    """asinh x = sign x · log(|x| + √(x² + 1)). The numbers become constants of x's element type."""
    magnitude = op.Abs(x)
    root = op.Sqrt(op.Add(op.Mul(x, x), 1.0))
    return op.Mul(op.Sign(x), op.Log(op.Add(magnitude, root)))


class Compress(torch.nn.Module):
    """A linear layer whose results are compressed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x):
        """x[N, 8] → [N, 4]."""
        return torch.asinh(8 * self.linear(x))


def make():
    """What the command line exports: the module and example inputs."""
    return Compress(), (torch.ones(2, 8),)


def check(exporter, opset):
    """Export, and compare PyTorch, ONNX Runtime and Dovetail on a batch that the export has not seen."""
    module, inputs = make()
    model = dovetail.export.pytorch(module, inputs, dynamic={"x": {0: "batch"}}, exporter=exporter, opset=opset)
    x = np.random.default_rng(1).normal(0, 3, (5, 8)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    differences = {"Dovetail": np.abs(dovetail.build(model).run({"x": x})["output"] - want).max()}
    try:
        import onnxruntime
    except ModuleNotFoundError:
        pass
    else:
        session = onnxruntime.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
        differences["ONNX Runtime"] = np.abs(session.run(None, {"x": x})[0] - want).max()
    assert max(differences.values()) < 1e-5, differences
    version = next(o.version for o in model.proto.opset_import if o.domain == "")
    operators = ", ".join(dict.fromkeys(node.op_type for node in model.proto.graph.node))
    print(f"{exporter}, opset {version} ({operators}): equal to PyTorch in {' and '.join(differences)}")


def main():
    """With the translation, with another one, and without."""
    check("torchscript", 12)
    check("dynamo", 18)
    with dovetail.export.symbolic("aten::asinh", opset=12, replace=True).use(asinh_by_logarithms):
        check("torchscript", 12)
        check("dynamo", 18)
    asinh.remove()
    try:
        check("torchscript", 12)
    except dovetail.ExportError as error:
        print(error)


if __name__ == "__main__":
    main()
