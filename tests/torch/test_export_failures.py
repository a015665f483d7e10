"""Exports that fail: what the error says of the operator, its place in the source, and what to do."""

from __future__ import annotations

import json
import linecache
import subprocess
import sys

import pytest
import torch

import dovetail
from dovetail.export.stubs import camel, identifier
from dovetail.export.ways_out import OpFailure, ways

X = torch.arange(16.0).reshape(4, 4) / 8


class Inner(torch.nn.Module):
    def forward(self, x):
        y = torch.kthvalue(x, 2).values
        return y + torch.special.bessel_y0(x + 1)


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Inner()

    def forward(self, x):
        return self.head(x) + self.head(2 * x)


class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


class Loop(torch.nn.Module):
    def forward(self, x):
        while x.norm() > 1:
            x = x / 2
        return x


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x + torch.ones(4, 4)


class Wrong(torch.nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting():
            return x.nothing
        return x


class Apart(torch.nn.Module):
    def forward(self, x):
        return torch.special.i0(x)


def line_of(module: type, text: str) -> str:
    """ "test_export_failures.py:12, in forward: code" """
    first = module.forward.__code__.co_firstlineno
    for number in range(first, first + 8):
        code = linecache.getline(__file__, number).strip()
        if text in code:
            return f"test_export_failures.py:{number}, in forward: {code}"
    raise AssertionError(text)


def failure(module, *, exporter: str = "dynamo", opset: int = 18, **options) -> dovetail.ExportError:
    with pytest.raises(dovetail.ExportError) as caught:
        dovetail.export.pytorch(module, (X,), exporter=exporter, opset=opset, **options)
    assert json.loads(json.dumps(caught.value.json()))["error"] == str(caught.value)
    return caught.value


@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("torchscript", 12)])
def test_all_operators_with_their_places_and_four_ways_each(exporter: str, opset: int) -> None:
    error = failure(Outer(), exporter=exporter, opset=opset)
    text = str(error)
    assert text.startswith(f"Outer: not exported to ONNX (opset {opset}, {exporter} exporter of PyTorch {torch.__version__.split('+')[0]})")
    assert "2 operators are not translated" in text
    assert [f.op for f in error.failures] == ["aten::kthvalue", "aten::special_bessel_y0"]
    for found, code in zip(error.failures, ("torch.kthvalue", "bessel_y0"), strict=True):
        assert found.kind == "operator"
        assert any(line_of(Inner, code) in place and "module head" in place for place in found.where), found.where
        assert [w.kind for w in found.ways] == ["opset", "rewrite", "translation", "plugin"]
        assert f"{found.op} (2 calls)" in text
    kth, bessel = error.failures
    assert kth.ways[1].applies and "torch.topk(x, k, dim, largest=False" in kth.ways[1].code
    assert not bessel.ways[1].applies
    assert "def kthvalue(op, x, k, dim=-1, keepdim=False):\n    return ..., ..." in kth.ways[2].code
    assert 'op("custom::Kthvalue", x, k=k, dim=dim, keepdim=keepdim, outputs=2)' in kth.ways[3].code


def test_an_operator_that_is_taken_apart_is_told_as_the_user_wrote_it() -> None:
    error = failure(Apart())
    assert [f.op for f in error.failures] == ["aten::special_i0"]
    assert "takes it apart into prims::bessel_i0" in str(error)
    assert error.failures[0].ways[1].applies


def test_the_translation_to_paste_works_once_it_is_filled_in() -> None:
    code = failure(Apart()).failures[0].ways[2].code.replace("...", "op.Exp(x)")
    scope = {"dovetail": dovetail}
    exec(code, scope)
    try:
        model = dovetail.export.pytorch(Apart(), (X,), opset=18, check=False)
    finally:
        scope["special_i0"].remove()
    assert [n.op_type for n in model.proto.graph.node] == ["Exp"]


def test_the_plugin_to_paste_works_once_it_is_filled_in() -> None:
    code = failure(Apart()).failures[0].ways[3].code.replace("...", "np.i0(x).astype(x.dtype)")
    scope = {"dovetail": dovetail, "np": __import__("numpy")}
    exec(code, scope)
    try:
        model = dovetail.export.pytorch(Apart(), (X,), opset=18)
        got = dovetail.build(model, verify="off").run({"x": X.numpy()})["output"]
    finally:
        scope["special_i0"].remove()
        dovetail.plugins.registry.unregister("SpecialI0")
    assert torch.allclose(torch.from_numpy(got), torch.special.i0(X), rtol=1e-5)


def test_a_newer_opset_and_the_other_exporter() -> None:
    class Asinh(torch.nn.Module):
        def forward(self, x):
            return torch.asinh(x)

    way = failure(Asinh(), exporter="torchscript", opset=12).failures[0].ways[0]
    assert way.applies and "--exporter dynamo --opset 18" in way.text

    class Gelu(torch.nn.Module):
        def forward(self, x):
            return torch.bitwise_and(x.int(), 3)

    way = failure(Gelu(), exporter="torchscript", opset=12).failures[0].ways[0]
    assert way.applies and "from opset 18 on: --opset 18" in way.text


def test_branches_and_loops_by_values() -> None:
    error = failure(Branch())
    assert [f.kind for f in error.failures] == ["control_flow"]
    assert line_of(Branch, "if x.sum()") in error.failures[0].where[0]
    assert "torch.where" in str(error) and "torch.cond" in str(error)
    error = failure(Loop())
    assert [f.kind for f in error.failures] == ["control_flow"]
    assert line_of(Loop, "while") in error.failures[0].where[0]
    assert "while_loop" in str(error)


@pytest.mark.parametrize(("name", "exporter"), [("Branch", "dynamo"), ("Squash", "torchscript")])
def test_nothing_but_the_error_is_printed(name: str, exporter: str, tmp_path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nclass Branch(torch.nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n\n"
        "class Squash(torch.nn.Module):\n    def forward(self, x):\n        return torch.asinh(x)\n"
    )
    command = [sys.executable, "-m", "dovetail", "export", f"{tmp_path}/net.py:{name}", "-o", str(tmp_path / "m.onnx"), "--opset", "12"]
    done = subprocess.run([*command, "--input", "x:f32[2,4]", "--exporter", exporter], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {name}: not exported to ONNX"), done.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_an_axis_that_the_module_fixes() -> None:
    error = failure(Fixed(), dynamic={"x": {0: "batch"}})
    assert [f.kind for f in error.failures] == ["dynamic_shape"]
    assert "axis 0 of x (always 4)" in str(error)


def test_a_line_that_fails_while_it_is_traced() -> None:
    error = failure(Wrong())
    assert [f.kind for f in error.failures] == ["model"]
    assert line_of(Wrong, "x.nothing") in error.failures[0].where[0]
    assert "has no attribute 'nothing'" in str(error)


def test_the_command_line_gives_failures_as_json(tmp_path, capsys) -> None:
    from dovetail.cli import main

    (tmp_path / "bessel.py").write_text(
        "import torch\nclass Bessel(torch.nn.Module):\n    def forward(self, x):\n        return torch.special.bessel_y0(x)\n\n"
        "def make():\n    return Bessel(), (torch.ones(2),)\n"
    )
    command = ["export", f"{tmp_path}/bessel.py:make", "-o", str(tmp_path / "m.onnx"), "--exporter", "torchscript", "--json"]
    assert main(command) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["type"] == "ExportError"
    assert [f["op"] for f in told["error"]["failures"]] == ["aten::special_bessel_y0"]
    assert [w["kind"] for w in told["error"]["failures"][0]["ways"]] == ["opset", "rewrite", "translation", "plugin"]
    assert not (tmp_path / "m.onnx").exists()


def test_ways_of_an_operator_of_another_framework() -> None:
    found = ways(OpFailure("Lgamma", "tensorflow", "tf2onnx", 18))
    assert [(w.kind, w.applies) for w in found] == [("opset", False), ("rewrite", False), ("translation", True), ("plugin", True)]
    assert '@dovetail.plugin("Lgamma")' in found[3].code


def test_inputs_that_may_be_absent() -> None:
    way = ways(OpFailure("mine::f", "pytorch", "dynamo", 18, inputs=("a", "b"), attributes=(("k", "1"),), optional=("b",)))[3]
    assert "def f_plugin(a, b=None, *, k=1):" in way.code
    assert 'return op("mine::F", a, b, k=k)' in way.code
    compile(way.code, "stub", "exec")


def test_names() -> None:
    assert [identifier(n) for n in ("self", "aten::add.Tensor", "lambda", "op", "2d", "GridSample")] == [
        "x", "add", "lambda_", "op_", "op_2d", "grid_sample",
    ]  # fmt: skip
    assert [camel(n) for n in ("my_library::soft_shrink", "aten::roi_align.x", "Roll")] == ["SoftShrink", "RoiAlign", "Roll"]
