"""`dovetail export`: models by name, inputs, weights; and modules in build and compare."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dovetail

SOURCE = '''
import torch
from torch import nn

class Net(nn.Module):
    """A module with options."""
    def __init__(self, width=4, act=None):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x, bias=None):
        y = self.b(torch.relu(self.a(x)))
        return y if bias is None else y + bias

def pair():
    return Net(), (torch.ones(2, 3),)

def number():
    return 3

made = Net(8)
'''
OLD = ("--exporter", "torchscript")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_torchvision_model_becomes_an_engine(exporter: str, vision: None, folder: Path, call: Callable) -> None:
    outcome = call("export", "torchvision:mobilenet_v3_small", "-o", "m.onnx", "--dynamic", "input0:0=batch", "--exporter", exporter,
                   "--input", "x:f32[2,3,64,64]", "--arg", "num_classes=10", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["exporter"] == exporter and data["inputs"] == {"x": "f32[batch,3,64,64]"} and data["outputs"] == {"output": "f32[batch,10]"}
    assert len(data["differences"]) == 2 and all(d["relative_l2"] < 1e-4 for d in data["differences"])
    assert data["weights"] == 210 and data["renamed"] == [] and any("random, seed 0" in n for n in data["notes"])
    assert any("statistics of seeded noise" in n for n in data["notes"]) and data["differences"][0]["max_abs"] > 1e-10
    engine = dovetail.build("m.onnx", tune=False, verify="off")
    import torchvision

    model = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 1.5)
    engine.refit(model.state_dict())
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32))
    assert dovetail.compare(model, engine, {"x": x.numpy()}).ok


def test_callables_of_files_and_packages(folder: Path, call: Callable) -> None:
    for spec, more in (
        ("nets.py:Net", ("--input", "x:[n,3]", "--arg", "width=6", "--arg", "act=relu")),
        ("nets:pair", ("--dynamic", "x:0=n")),
        ("nets.py:made", ("--input", "x:f32[1..8,3]", "--input", "bias:f32[2]")),
        ("nets.py:Net", ("--input", "bild:[1,3]")),
    ):
        outcome = call("export", spec, "-o", "m.onnx", *more, *OLD)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith(f"{spec}: opset ") and "same     output" in outcome.out
        onnx.checker.check_model("m.onnx")
    assert [v.name for v in onnx.load("m.onnx").graph.input] == ["bild"]
    np.savez("x.npz", x=np.ones((4, 3), np.float32))
    assert call("export", "nets.py:Net", "-o", "m.onnx", "--inputs", "x.npz", "--simplify", "--output-names", "y", *OLD, "-q").code == 0
    assert [v.name for v in onnx.load("m.onnx").graph.output] == ["y"]


def test_a_saved_program(folder: Path, call: Callable) -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(2, 3),))
    torch.export.save(program, "saved.pt2")
    assert call("export", "saved.pt2", "-o", "m.onnx", "--no-check").code == 0
    assert dovetail.compare(program, dovetail.build("m.onnx", tune=False)).ok


def test_weights_from_files(folder: Path, call: Callable) -> None:
    from dovetail.export.torch_sources import load

    state = {f"module.{n}": t + 1 for n, t in load("nets.py:Net").model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, "w.pt")
    save_file({n.removeprefix("module."): t for n, t in state.items()}, "w.safetensors")
    for file in ("w.pt", "w.safetensors"):
        outcome = call("export", "nets.py:Net", "-o", "m.onnx", "--input", "x:[1,3]", "--weights", file, *OLD)
        assert outcome.code == 0 and f"weights: 4 from {file}" in outcome.out, outcome.err
        found = dovetail.Model.load("m.onnx").weights
        np.testing.assert_array_equal(found["a.weight"], state["module.a.weight"].numpy())
    state["module.b.weights"] = state.pop("module.b.weight")
    torch.save(state, "w.pt")
    outcome = call("export", "nets.py:Net", "-o", "n.onnx", "--input", "x:[1,3]", "--weights", "w.pt")
    assert outcome.code == 2 and "got no 'b.weight'; did you mean 'b.weights'?" in outcome.err
    outcome = call("export", "nets.py:Net", "-o", "n.onnx", "--input", "x:[1,3]", "--weights", "w.safetensors", "--arg", "width=5")
    assert outcome.code == 2 and "got 'a.weight' of shape [4, 3], expected [5, 3]" in outcome.err
    torch.save(nn.Linear(2, 2), "w.pt")  # a pickled module would run code
    outcome = call("export", "nets.py:Net", "-o", "n.onnx", "--input", "x:[1,3]", "--weights", "w.pt")
    assert outcome.code == 2 and "cannot be read as a state dict" in outcome.err
    assert not Path("n.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nets.py:Nt",), 2, "nets.py has no 'Nt'; did you mean 'Net'"),
        (("nets.py",), 2, "which callable of it, nets.py:NAME?"),
        (("nowhere.py:x",), 2, "there is no such file"),
        (("nowhere:x",), 2, "no module that can be imported here"),
        (("nets.py:number",), 2, "returned a int, expected a torch.nn.Module"),
        (("nets.py:Net", "--arg", "depth=3"), 2, "unexpected keyword argument 'depth'"),
        (("nets.py:Net", "--arg", "3"), 2, "expected NAME=VALUE"),
        (("nets.py:Net",), 2, "got no example inputs, expected what forward(x, bias=None) takes"),
        (("nets.py:Net", "--input", "x:[2,5]"), 1, "in 'a' (Linear): the module itself fails"),
        (("nets.py:Net", "--input", "x:[2,3]", "--input", "bas:[2]"), 2, "did you mean 'bias'?"),
        (("nets.py:Net", "--input", "x[2,3]"), 2, "expected NAME:TYPE[DIMS]"),
        (("nets.py:Net", "--input", "x:f99[2,3]"), 2, "got the type 'f99'"),
        (("nets.py:Net", "--input", "x:[2,3]", "--opset", "99"), 2, "got 99, expected 7 to"),
        (("nets.py:Net", "--weights", "w.pt"), 2, "there is no file 'w.pt'"),
        (("nets.py:Net", "--weights", "pretrained"), 2, "the callable makes its weights"),
        (("nets.py:Net", "--model-class", "Bert"), 2, "expected a transformers:CONFIG"),
        (("torchvision:resnet5",), 2, "did you mean 'resnet50'"),
        (("torchvision:resnet50", "--weights", "IMAGENET9"), 2, "expected a file, random, pretrained, or of resnet50 IMAGENET1K_V1"),
        (("x.pt",), 2, "name the model, and give the file as --weights"),
        (("x.pt2",), 2, "there is no such file"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], code: int, message: str, vision: None, folder: Path, call: Callable) -> None:
    outcome = call("export", *arguments, "-o", "m.onnx")
    assert outcome.code == code and message in outcome.err
    assert not Path("m.onnx").exists()


def test_no_file_is_written_where_the_export_fails_or_its_place_is_wrong(folder: Path, call: Callable) -> None:
    Path("m.onnx").write_text("before")
    assert call("export", "nets.py:Net", "-o", "m.onnx", "--input", "x:[2,5]").code == 1
    assert Path("m.onnx").read_text() == "before"
    outcome = call("export", "nets.py:Net", "-o", "none/m.onnx", "--input", "x:[2,3]")
    assert outcome.code == 2 and "expected a file in a folder that exists" in outcome.err


def test_modules_and_programs_go_into_build_and_compare() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32))
    engine = dovetail.build(module, example_inputs=(x,), shapes={"input": ("1..4", 3, 8, 8)}, tune=False)
    assert [str(b.shape[0]) for b in engine.inputs] == ["input_0"]
    assert dovetail.compare(module, engine, {"input": x.numpy()[:1]}).ok
    with torch.no_grad():
        module[0].weight.add_(1)
    assert not dovetail.compare(module, engine, {"input": x.numpy()}).ok
    for model, options, message in (
        (module, {}, "got no example inputs"),
        (module, {"example_inputs": {"inptu": x}}, "do not fit forward"),
        (b"", {"example_inputs": x}, "got them for a bytes, expected an nn.Module"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            dovetail.build(model, **options)
    with pytest.raises(dovetail.UsageError, match="pass inputs="):
        dovetail.compare(module, engine)


TINY = ("num_hidden_layers=2", "hidden_size=32", "num_attention_heads=4", "intermediate_size=64", "vocab_size=50")


def tiny() -> list[str]:
    return [word for text in TINY for word in ("--arg", text)]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_transformers_config(exporter: str, vision: None, folder: Path, call: Callable) -> None:
    pytest.importorskip("transformers")
    outcome = call("export", "transformers:bert", "-o", "m.onnx", *tiny(), "--input", "input_ids:i64[batch,seq]",
                   "--input", "attention_mask:i64[batch,seq]", "--exporter", exporter, "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["inputs"] == {"input_ids": "i64[batch,seq]", "attention_mask": "i64[batch,seq]"}
    assert list(data["outputs"]) == ["last_hidden_state", "pooler_output"] and data["renamed"] == []
    assert {d["case"] for d in data["differences"]} == {"example inputs", "batch=3, seq=10"}
    engine = dovetail.build("m.onnx", tune=False, verify="off")
    ids = np.array([[3, 7, 49, 1, 0]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert dovetail.compare("m.onnx", engine, feeds).ok


def test_a_folder_of_transformers_with_weights_and_a_class(vision: None, folder: Path, call: Callable) -> None:
    library = pytest.importorskip("transformers")
    sizes = {name: int(value) for name, value in (text.split("=") for text in TINY)}
    config = library.BertConfig(**sizes, num_labels=3)
    torch.manual_seed(1)
    model = library.BertForSequenceClassification(config)
    model.save_pretrained("saved")
    outcome = call("export", "transformers:saved", "-o", "m.onnx", "--model-class", "BertForSequenceClassification", *OLD)
    assert outcome.code == 0 and "weights: those in saved" in outcome.out, outcome.err
    np.testing.assert_array_equal(dovetail.Model.load("m.onnx").weights["classifier.bias"], model.classifier.bias.detach().numpy())
    for spec, more, message in (
        ("transformers:brt", (), "has no model type 'brt'; did you mean 'bert'"),
        ("transformers:saved", ("--model-class", "BertForSequenceClass"), "did you mean 'BertForSequenceClassification'"),
        ("transformers:x.json", (), "x.json is no JSON"),
    ):
        outcome = call("export", spec, "-o", "n.onnx", *more)
        assert outcome.code == 2 and message in outcome.err, outcome.err


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:test_convnext", "transformers:bert"])
def test_a_torchvision_that_does_not_fit_its_torch_says_so(spec: str, folder: Path) -> None:
    if importlib.util.find_spec(spec.partition(":")[0]) is None:
        pytest.skip("not installed")
    command = f"import sys; from dovetail.cli import main; sys.exit(main(['export', {spec!r}, '-o', 'm.onnx']))"
    probe = "import torch; print(hasattr(torch.ops.torchvision, 'nms'))\ntry:\n import torchvision\nexcept RuntimeError as e: print(e)"
    if "does not exist" not in subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this torchvision fits its torch")
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "not built for each other; install the pair" in done.stderr, done.stderr


def test_a_timm_model(vision: None, folder: Path, call: Callable) -> None:
    pytest.importorskip("timm")
    outcome = call("export", "timm:test_convnext", "-o", "m.onnx", *OLD)
    assert outcome.code == 0 and "x: f32[1,3," in outcome.out, outcome.err
    outcome = call("export", "timm:test_convnxt", "-o", "m.onnx")
    assert outcome.code == 2 and "did you mean 'test_convnext" in outcome.err
