"""Models larger than memory: simplified and written without their weights ever being in memory as a whole."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dovetail
from dovetail.model import equivalence
from dovetail.model.simplifier import simplify
from dovetail.model.simplify import scope as scopes

LAYERS, WIDTH = 8, 5792  # 8 x 128 MiB


def large_model(folder: Path, layers: int, width: int) -> Path:
    """A chain of layers with rubbish in it; the weights are a file of which only a few bytes take up room."""
    nodes, tensors, value = [], [], "x"
    size = width * width * 4
    for i in range(layers):
        nodes += [
            helper.make_node("Identity", [value], [f"i{i}"]),
            helper.make_node("MatMul", [f"i{i}", f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "zero"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"y{i}"]),
        ]
        value = f"y{i}"
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "w.bin"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(entry))
        tensors.append(tensor)
    tensors.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, width])] for n in ("x", value)]
    graph = helper.make_graph(nodes, "large", *ports, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    with open(folder / "w.bin", "wb") as file:
        file.truncate(layers * size)
        for i in range(layers):
            file.seek(i * size + 4 * i)
            file.write(np.float32(i + 1).tobytes())
    return folder / "m.onnx"


def test_a_gigabyte_of_weights_needs_a_fraction_of_it_in_memory(tmp_path: Path) -> None:
    path, result = large_model(tmp_path, LAYERS, WIDTH), tmp_path / "small.onnx"
    code = """
        import json, resource, sys
        import dovetail, dovetail.model.simplifier
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak()
        model = dovetail.Model.load(sys.argv[1])
        small = model.simplify()
        small.check()
        small.save(sys.argv[2])
        print(json.dumps(peak() - before))
    """
    root = Path(dovetail.__file__).parents[1]
    run = [sys.executable, "-c", textwrap.dedent(code), str(path), str(result)]
    grown = json.loads(subprocess.run(run, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(root)}).stdout)
    data = tmp_path / "small.onnx.data"
    try:
        assert data.stat().st_size >= LAYERS * WIDTH * WIDTH * 4
        assert grown < 300 << 20
        small = dovetail.Model.load(result)
        assert [n.op_type for n in small.proto.graph.node] == ["MatMul", "Relu"] * LAYERS
        for i in range(LAYERS):
            weight = small.weights[f"w{i}"].reshape(-1)
            assert weight[i] == i + 1 and not weight[:i].any() and not weight[i + 1 : 1000].any()
    finally:
        data.unlink()


def test_large_weights_are_checked_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "MAPPED_LIMIT_BYTES", 1000)
    monkeypatch.setattr(equivalence.peers, "onnxruntime_run", None)  # would load them
    model = dovetail.Model.load(large_model(tmp_path, 2, 64))
    result = model.simplify()
    assert equivalence.check(model, result) == 0.0
    result.weights["w0"] = result.weights["w0"] + np.eye(64, dtype=np.float32)
    with pytest.raises(dovetail.VerificationError, match="differs from the original"):
        equivalence.check(model, result)


def test_weights_in_files_are_folded_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = large_model(tmp_path, 3, 64)
    proto = onnx.load(path, load_external_data=False)
    for i in range(3):
        proto.graph.node[5 * i + 1].input[1] = f"t{i}"
        proto.graph.node.insert(0, helper.make_node("Transpose", [f"w{i}"], [f"t{i}"]))
    onnx.save(proto, path)
    model = dovetail.Model.load(path)
    assert "Transpose" not in [n.op_type for n in simplify(model).model.proto.graph.node]
    monkeypatch.setattr(scopes.Readings.__init__, "__defaults__", (2 * 64 * 64 * 4,))
    made = simplify(model)
    assert [n.op_type for n in made.model.proto.graph.node].count("Transpose") == 1
    assert equivalence.check(model, made.model) == 0.0
