"""The export from PyTorch as far as it needs no PyTorch: what is missing, and how inputs and axes are written."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dovetail
from dovetail.cli import main
from dovetail.core.errors import UsageError
from dovetail.export.torch_dynamic import axes_of, other_sizes
from dovetail.export.torch_inputs import input_spec
from dovetail.export.torch_subject import is_torch_model


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m == "torch" or m.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    real: Callable[..., object] = importlib.import_module

    def refuse(name: str, package: str | None = None) -> object:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, package)

    assert find is not None
    monkeypatch.setattr(importlib, "import_module", refuse)


def test_without_torch_the_error_names_the_one_command(without_torch: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"exporting from PyTorch needs torch, .*: pip install 'dovetail\[torch\]'"):
        dovetail.export.pytorch(object())
    path = tmp_path / "m.onnx"
    assert main(["export", "torchvision:resnet18", "-o", str(path)]) == 2
    assert "pip install 'dovetail[torch]'" in capsys.readouterr().err
    assert not path.exists()


def test_modules_are_known_by_the_name_of_their_class() -> None:
    module = type("Module", (), {"__module__": "torch.nn.modules.module"})
    program = type("ExportedProgram", (), {"__module__": "torch.export.exported_program"})
    mine = type("Net", (module,), {"__module__": "mine"})
    other = type("Module", (), {"__module__": "torchlike.nn"})
    assert is_torch_model(mine()) and is_torch_model(program())
    assert not is_torch_model(other()) and not is_torch_model(b"") and not is_torch_model(np.zeros(2))
    assert "torch" not in sys.modules or importlib.util.find_spec("torch")


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "axes"),
    [
        ("x:f32[1,3,224,224]", "f32", (1, 3, 224, 224), {}),
        ("x:[]", "f32", (), {}),
        ("ids:i64[batch,seq]", "i64", (2, 8), {0: "batch", 1: "seq"}),
        ("x:bf16[1..32@4, 3]", "bf16", (4, 3), {0: "x_0"}),
        ("x.y:bool[4..9]", "bool", (4,), {0: "x_y_0"}),
    ],
)
def test_input_specs(text: str, dtype: str, shape: tuple[int, ...], axes: dict[int, str]) -> None:
    spec = input_spec(text)
    assert (spec.dtype.name, spec.shape, dict(spec.axes)) == (dtype, shape, axes)


@pytest.mark.parametrize("text", ["x", "x:", "x[2]", "x:f32", "x:f32[a b]", "x:f32[-1]", "x:float[2]", ":[2]"])
def test_bad_input_specs(text: str) -> None:
    with pytest.raises(UsageError, match=r"--input: got "):
        input_spec(text)


def test_dynamic_axes_by_name_by_number_and_as_text() -> None:
    leaves = {"x": np.zeros((2, 5)), "input1": np.zeros((2, 3))}
    wanted = {"x": {0: "n"}, "input1": {0: "n", 1: "input1_1"}}
    assert axes_of({"x": {0: "n"}, "input1": {-2: "n", 1: "input1_1"}}, leaves) == wanted
    assert axes_of(["input0:0=n", "input1:0=n", "input1:-1"], leaves) == wanted
    assert axes_of({"x": [1]}, leaves) == {"x": {1: "x_1"}}
    assert axes_of(None, leaves) == {}
    with pytest.raises(UsageError, match="did you mean 'input1'"):
        axes_of(["inptu1:0"], leaves)


def test_sizes_to_compare_at_differ_from_the_first() -> None:
    for sizes in ({"n": 1}, {"n": 2, "m": 8}):
        tried = other_sizes(sizes)
        assert tried and all(t != sizes and set(t) == set(sizes) and min(t.values()) >= 1 for t in tried)
