"""Export from PyTorch: both exporters, names, dynamic axes, modes, and that what differs is refused."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import dovetail
from dovetail.export import torch_check, torch_exporters
from tests.torch.torch_models import Baked, Broken, Net, Random, Several, Stubborn, Tied

EXPORTERS = ("dynamo", "torchscript")


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_weights_nodes_and_border_are_named_and_a_state_dict_refits(exporter: str) -> None:
    module = made(Net).eval()
    model = dovetail.export.pytorch(module, (tensor(2, 3, 8, 8),), dynamic={"x": {0: "batch"}}, exporter=exporter)
    state = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(model.weights) >= state
    assert model.report.renamed == [] and model.report.weights == len(state)
    assert model.report.exporter == exporter and model.report.worst < 1e-5
    assert [str(b.shape) for b in model.inputs] == ["(Dim(batch), 3, 8, 8)"] and [b.name for b in model.outputs] == ["output"]
    assert all(n.name.startswith("/") for n in model.proto.graph.node)
    assert not any(p.key.startswith("pkg.torch") for n in model.proto.graph.node for p in n.metadata_props)
    engine = dovetail.build(model, tune=False)
    # Batch norms start with equal statistics: an exporter that shares them would refit both with one of the two.
    with torch.no_grad():
        for i, weight in enumerate(module.state_dict().values()):
            if weight.is_floating_point():
                weight.mul_(1 + 0.1 * i).add_(0.01 * i)
    engine.refit(module.state_dict())
    x = tensor(3, 3, 8, 8, seed=2)
    with torch.no_grad():
        np.testing.assert_allclose(engine.run({"x": x})["output"], module(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_several_inputs_and_a_dict_of_outputs(exporter: str) -> None:
    module = made(Several)
    args = (tensor(2, 4), [tensor(2, 3), tensor(2, 3, seed=3)], tensor(5))
    model = dovetail.export.pytorch(
        module, args, {"mask": tensor(2, 3, seed=4)}, dynamic=["x:0=n", "pair_0:0=n", "pair_1:-2=n", "mask:0=n"], exporter=exporter
    )
    assert list(model.report.inputs) == ["x", "pair_0", "pair_1", "unused", "mask"]
    assert list(model.report.outputs) == ["sum", "parts_0", "parts_1"]
    assert model.report.inputs["x"] == "f32[n,4]" and model.report.inputs["unused"] == "f32[5]"
    assert any("unused" in note and "depends" in note for note in model.report.notes)
    assert {d.case for d in model.report.differences} == {"example inputs", "n=3"}
    renamed = dovetail.export.pytorch(
        module, args, exporter=exporter, input_names=["a", "b", "c", "d"], output_names=["p", "q", "r"], check=False
    )
    assert list(renamed.report.inputs) == ["a", "b", "c", "d"] and list(renamed.report.outputs) == ["p", "q", "r"]
    assert "not compared with PyTorch" in renamed.report.notes


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_tied_weights_stay_tied(exporter: str) -> None:
    module = made(Tied)
    model = dovetail.export.pytorch(module, (torch.tensor([[1, 2, 10]]),), dynamic={"ids": [1]}, exporter=exporter)
    assert len(set(model.weights) & {"embedding.weight", "head.weight"}) == 1
    engine = dovetail.build(model, tune=False)
    with torch.no_grad():
        module.embedding.weight.mul_(-2)
    engine.refit(module.state_dict())
    ids = torch.tensor([[3, 4]])
    np.testing.assert_allclose(engine(ids).numpy(), module(ids).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_training_mode_is_switched_said_and_put_back() -> None:
    module = made(Net).train()
    module.more.eval()
    module.stem[1].eval()
    before = {name: part.training for name, part in module.named_modules()}
    model = dovetail.export.pytorch(module, (tensor(2, 3, 8, 8),))
    assert {name: part.training for name, part in module.named_modules()} == before
    assert any("training mode: exported in evaluation mode" in note for note in model.report.notes)
    assert "Dropout" not in model.report.operators
    with pytest.raises(dovetail.ExportError, match="'norm' stays in training mode after eval"):
        dovetail.export.pytorch(made(Stubborn), (tensor(2, 4),))
    program = torch.export.export(made(Net).train(), (tensor(2, 3, 8, 8),))
    with pytest.raises(dovetail.UsageError, match=r"training mode .*expected evaluation mode; call module.eval"):
        dovetail.export.pytorch(program)


def test_a_program_is_exported_as_it_is() -> None:
    x = tensor(2, 3, 8, 8)
    program = torch.export.export(made(Net).eval(), (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    model = dovetail.export.pytorch(program, dynamic={"x": {0: "batch"}})
    assert model.report.inputs == {"x": "f32[batch,3,8,8]"} and "fc.weight" in model.weights
    fixed = torch.export.export(made(Net).eval(), (x,))
    with pytest.raises(dovetail.ExportError, match="axis 0 of 'x' is 2 in the ONNX model, expected it open"):
        dovetail.export.pytorch(fixed, dynamic={"x": {0: "batch"}})
    with pytest.raises(dovetail.UsageError, match="got 'torchscript' for an ExportedProgram"):
        dovetail.export.pytorch(fixed, exporter="torchscript")


def test_wrappers_of_modules_are_taken_off() -> None:
    module = made(Net).eval()
    for wrapped in (torch.compile(module), nn.DataParallel(module)):
        model = dovetail.export.pytorch(wrapped, (tensor(1, 3, 8, 8),), check=False)
        assert "fc.weight" in model.weights and any("the module inside" in note for note in model.report.notes)


@pytest.mark.parametrize(
    ("exporter", "opset"), [("torchscript", 9), ("torchscript", 13), ("dynamo", 9), ("dynamo", 12), ("dynamo", 16), ("dynamo", 21)]
)
def test_opsets(exporter: str, opset: int) -> None:
    model = dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),), dynamic=["x:0=batch"], exporter=exporter, opset=opset)
    assert model.opset == model.report.opset == opset
    assert model.report.worst < 1e-5


def test_opsets_out_of_range_and_other_bad_usage() -> None:
    x = (tensor(1, 3, 8, 8),)
    module = made(Net)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"opset": 99}, "got 99, expected 7 to"),
        ({"opset": 21, "exporter": "torchscript"}, "got 21, .*the dynamo exporter writes"),
        ({"exporter": "tracer"}, "got 'tracer', expected one of dynamo, torchscript"),
        ({"dynamic": {"y": {0: "n"}}}, "got the input 'y', expected one of x"),
        ({"dynamic": {"x": {4: "n"}}}, "got axis 4, expected one of the 4 axes"),
        ({"dynamic": ["x:2=n", "x:1=n"]}, "got 3 in the example inputs, expected 8"),
        ({"dynamic": ["x=2"]}, "expected INPUT:AXIS=NAME"),
        ({"dynamic": {"x": {0: "a b"}}}, "got the name 'a b'"),
        ({"output_names": ["a", "b"]}, "got 2 names, expected 1"),
        ({"input_names": ["a", "b"]}, "got a, b, expected 1 different names"),
    ]
    for options, message in cases:
        with pytest.raises(dovetail.UsageError, match=message):
            dovetail.export.pytorch(module, x, **options)
    for args, message in ((None, "got no example inputs, expected what"), ((1,), "got no tensor"), ((*x, *x), "do not fit forward")):
        with pytest.raises(dovetail.UsageError, match=message):
            dovetail.export.pytorch(module, args)
    with pytest.raises(dovetail.UsageError, match="got a int, expected a torch"):
        dovetail.export.pytorch(3, x)


def test_inputs_that_do_not_fit_name_the_part_of_the_module() -> None:
    with pytest.raises(dovetail.ExportError, match=r"in 'body\.1' \(Linear\): the module itself fails on the example inputs \(x float32"):
        dovetail.export.pytorch(made(Broken), (tensor(2, 4),))


def test_random_results_are_refused() -> None:
    with pytest.raises(dovetail.ExportError, match=r"differs by .* between two runs .*training=True"):
        dovetail.export.pytorch(made(Random), (tensor(4, 64),))


def test_a_size_that_became_a_constant_is_found_at_another_size() -> None:
    with pytest.raises(dovetail.ExportError, match=r"output 'output' differs from PyTorch's by .*\(n=3, .*nothing was written"):
        dovetail.export.pytorch(made(Baked), (tensor(2, 4),), dynamic=["x:0=n"], exporter="torchscript")
    taken = dovetail.export.pytorch(made(Baked), (tensor(2, 4),), exporter="torchscript")
    assert taken.report.worst == 0


def test_wrong_weights_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write = torch_exporters.EXPORTERS["torchscript"]

    def spoiled(*args: Any) -> Any:
        written = write(*args)
        bias = next(t for t in written.proto.graph.initializer if t.name == "fc.bias")
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.01).tobytes()
        return written

    monkeypatch.setitem(torch_exporters.EXPORTERS, "torchscript", spoiled)
    with pytest.raises(dovetail.ExportError, match=r"differs from PyTorch's by .* expected at most 0\.0001"):
        dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),), exporter="torchscript")
    assert dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),), exporter="torchscript", tolerance=1.0).report.worst > 1e-4


def test_rounding_that_a_model_amplifies_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    write = torch_exporters.EXPORTERS["torchscript"]

    def rounded(*args: Any) -> Any:
        written = write(*args)
        weight = next(t for t in written.proto.graph.initializer if t.name == "fc.weight")
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1 + 2**-23)).tobytes()
        return written

    monkeypatch.setitem(torch_exporters.EXPORTERS, "torchscript", rounded)
    monkeypatch.setitem(torch_check.TOLERANCES, "float32", 0.0)
    model = dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),), exporter="torchscript")
    assert model.report.worst > 0 and any("rounding explains" in note for note in model.report.notes)


def test_the_other_exporter_takes_over_only_if_allowed() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    x = torch.ones(3)
    with pytest.raises(dovetail.ExportError):
        dovetail.export.pytorch(Branches(), x)
    model = dovetail.export.pytorch(Branches(), x, allow_fallback=True)
    assert model.report.exporter == "torchscript"
    assert any("so the torchscript exporter wrote this" in note for note in model.report.notes)
    assert any("the trace took a value for a constant" in note for note in model.report.notes)


def test_narrow_types_and_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    half = made(Net).eval().half()
    assert dovetail.export.pytorch(half, (tensor(1, 3, 8, 8).half(),)).report.inputs == {"x": "f16[1,3,8,8]"}
    brain = nn.Linear(4, 3).bfloat16()
    report = dovetail.export.pytorch(brain, (tensor(2, 4).bfloat16(),)).report
    assert report.outputs == {"output": "bf16[2,3]"} and report.evaluator == "Dovetail's reference"
    monkeypatch.setattr(torch_check.peers, "version", lambda name: None)
    report = dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),)).report
    assert report.evaluator == "Dovetail's reference" and report.worst < 1e-5


def test_large_weights_stay_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_exporters, "LARGE_BYTES", 100)
    module = nn.Linear(64, 64)
    model = dovetail.export.pytorch(module, (tensor(1, 64),))
    assert model.folder is not None and model.report.worst < 1e-5
    model.save(tmp_path / "m.onnx")
    folder = model.folder
    del model
    assert not folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(tmp_path / "m.onnx")
    loaded = dovetail.Model.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(loaded.weights["weight"], module.weight.detach().numpy())


def test_the_module_is_not_changed() -> None:
    module = made(Net).train()
    before = copy.deepcopy(module.state_dict())
    dovetail.export.pytorch(module, (tensor(2, 3, 8, 8),), dynamic=["x:0=batch"])
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_the_report_is_text_and_json() -> None:
    report = dovetail.export.pytorch(made(Net), (tensor(1, 3, 8, 8),), exporter="torchscript", opset=13, name="net").report
    data = report.json()
    assert data["source"] == "net" and data["opset"] == 13 and data["nodes"] == sum(data["operators"].values())
    assert data["differences"][0]["output"] == "output" and set(data["seconds"]) == {"run", "export", "names", "check", "compare"}
    text = str(report)
    assert text.startswith("net: opset 13, ") and "same     output  relative L2 " in text and "f32[1,3,8,8]" in text
