"""Engines with plugins: types, data-dependent shapes, layouts, failures, files, threads, refit; on a CPU and on a host driver."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail import builder, runtime
from dovetail.cli import main
from dovetail.codegen.triton_host import host_driver
from dovetail.core.errors import (
    ExecutionError,
    ModelError,
    PluginError,
    UnsupportedOpError,
)
from dovetail.engine.file import EngineFile
from dovetail.frontend.importer import import_onnx
from dovetail.ir.parser import parse_module
from dovetail.ir.printer import print_module
from dovetail.plugins import unregister
from tests.unit.plugin_models import BOOL, F32, I64, call, onnx_model, own_registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own():
    with own_registry():
        yield


@pytest.fixture(params=["cpu", "cuda"])
def engine_of(request):
    """Builds and opens a model on this CPU, or for a GPU on host memory with Triton's interpreter."""

    def on_cpu(model, **options):
        return dovetail.build(model, tune=False, **options)

    def on_gpu(model, **options):
        built = builder.build(model, builder.BuildOptions(target="cuda:sm_90", tune=False, **options))
        driver = host_driver(built.kernels)
        return runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)

    return on_cpu if request.param == "cpu" else on_gpu


def rng():
    return np.random.default_rng(7)


def test_fields_of_a_node_become_attributes(engine_of) -> None:
    seen = []

    @dovetail.plugin("Scaled", version="2", namespace="far")
    def scaled(x, *, by: float, table, names: list, flag: bool = False, extra=None):
        seen.append((by, table.tolist(), names, flag, extra))
        return x * np.float32(by) + table.astype(np.float32)

    node = call(
        "Scaled", ["x"], ["y"], by=2, table=helper.make_tensor("t", I64, [3], [1, 2, 3]), names=["a", "ü"], flag=1,
        plugin_version="2", plugin_namespace="far",
    )  # fmt: skip
    model = onnx_model([node], {"x": (F32, ["N", 3])}, ["y"])
    engine = engine_of(model)
    x = rng().standard_normal((4, 3), np.float32)
    assert np.array_equal(engine.run({"x": x})["y"], x * 2 + np.array([1, 2, 3], np.float32))
    assert set(map(str, seen)) == {str((2.0, [1, 2, 3], ["a", "ü"], True, None))}


def test_unknown_ops_and_attributes_are_errors_of_the_node() -> None:
    model = onnx_model([call("Nowhere", ["x"], ["y"]), call("Also", ["x"], ["z"])], {"x": (F32, [2])}, ["y", "z"])
    with pytest.raises(UnsupportedOpError, match=r"2 nodes.*\n.*/nowhere.*plugin.*\n.*/also"):
        import_onnx(model)
    dovetail.plugin("Nowhere")(lambda x, *, k=1: x)
    dovetail.plugin("Also")(lambda x: x)
    import_onnx(model)
    with pytest.raises(ModelError, match=r"/nowhere \(user::Nowhere\): plugin Nowhere \(version 1\).*unknown attribute 'q'"):
        import_onnx(onnx_model([call("Nowhere", ["x"], ["y"], q=1)], {"x": (F32, [2])}, ["y"]))
    with pytest.raises(ModelError, match=r"/nowhere.*got 2 inputs"):
        import_onnx(onnx_model([call("Nowhere", ["x", "x"], ["y"])], {"x": (F32, [2])}, ["y"]))
    with pytest.raises(ModelError, match=r"/nowhere.*2 outputs"):
        import_onnx(onnx_model([call("Nowhere", ["x"], ["y", "z"])], {"x": (F32, [2])}, ["y"]))


def test_results_of_several_kinds_between_kernels(engine_of) -> None:
    @dovetail.plugin("Split3")
    def split3(x, y=None, *more):
        assert y is None and len(more) == 1
        return x[:, ::2], (x.sum(-1) > 0), np.asarray(x.shape[0])

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), call("Split3", ["r", "", "x"], ["a", "b", "c"]),
        helper.make_node("Exp", ["a"], ["ea"]), helper.make_node("Not", ["b"], ["nb"]),
    ]  # fmt: skip
    engine = engine_of(onnx_model(nodes, {"x": (F32, ["N", 5])}, ["ea", "nb", "c"]))
    for n in (3, 1, 0, 64):
        x = rng().standard_normal((n, 5), np.float32)
        r = np.maximum(x, 0)
        got = engine.run({"x": x})
        assert np.allclose(got["ea"], np.exp(r[:, ::2]), rtol=1e-6)
        assert np.array_equal(got["nb"], ~(r.sum(-1) > 0)) and got["c"] == n


def test_extents_that_the_run_decides(engine_of) -> None:
    dovetail.plugin("Positive")(lambda x: (x[x > 0], np.argwhere(x > 0)))
    nodes = [
        call("Positive", ["x"], ["v", "i"]),
        helper.make_node("Neg", ["v"], ["y"]),
        helper.make_node("ReduceSum", ["i"], ["s"], keepdims=0),
    ]
    engine = engine_of(onnx_model(nodes, {"x": (F32, ["N", 3])}, ["y", "s"]))
    for x in (
        rng().standard_normal((5, 3), np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros((0, 3), np.float32),
        np.ones((2, 3), np.float32),
    ):
        got = engine.run({"x": x})
        assert np.array_equal(got["y"], -x[x > 0]) and got["s"] == np.argwhere(x > 0).sum()


def test_inputs_that_are_views_arrive_as_they_are(engine_of) -> None:
    seen = []

    @dovetail.plugin("Look")
    def look(x, y):
        seen.append((x.flags.writeable, y.flags.writeable, x.shape, x.copy()))
        return np.asfortranarray(x) + y[..., ::-1]

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]), call("Look", ["t", "t"], ["y"]),
        helper.make_node("Transpose", ["y"], ["z"], perm=[1, 0]),
    ]  # fmt: skip
    engine = engine_of(onnx_model(nodes, {"x": (F32, [4, "M"])}, ["y", "z"]))
    x = rng().standard_normal((4, 3), np.float32)
    t = np.maximum(x, 0).T
    got = engine.run({"x": np.asfortranarray(x)})
    assert np.array_equal(got["y"], t + t[:, ::-1]) and np.array_equal(got["z"], got["y"].T)
    assert not any(w or v for w, v, *_ in seen) and np.array_equal(seen[-1][3], t)


def test_a_result_that_is_its_input_and_one_that_nobody_reads(engine_of) -> None:
    dovetail.plugin("Same")(lambda x: (x, x, x * 0))
    nodes = [helper.make_node("Relu", ["x"], ["r"]), call("Same", ["r"], ["a", "b", ""]), helper.make_node("Add", ["a", "b"], ["y"])]
    engine = engine_of(onnx_model(nodes, {"x": (F32, [2, 3])}, ["y", "a"]))
    x = rng().standard_normal((2, 3), np.float32)
    first, second = engine.run({"x": x}), engine.run({"x": -x})
    assert np.array_equal(first["y"], 2 * np.maximum(x, 0)) and np.array_equal(second["a"], np.maximum(-x, 0))
    assert np.array_equal(first["a"], np.maximum(x, 0)), "results outlive the next run"


def test_failures_name_node_and_plugin(engine_of) -> None:
    @dovetail.plugin("Picky")
    def picky(x):
        if x.size and x.max() > 100:
            raise ValueError("too large for me")
        return x

    nodes = [helper.make_node("Relu", ["x"], ["r"]), call("Picky", ["r"], ["y"])]
    engine = engine_of(onnx_model(nodes, {"x": (F32, ["N"])}, ["y"]))
    assert engine.run({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1]
    with pytest.raises(ExecutionError, match=r"/picky.*plugin Picky \(version 1\) failed \(ValueError: too large for me\)") as failed:
        engine.run({"x": np.full(2, 101, np.float32)})
    causes = []
    cause: BaseException | None = failed.value
    while cause is not None:
        causes.append(type(cause))
        cause = cause.__cause__
    assert ValueError in causes, "the plugin's own trace is the cause"
    assert engine.run({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1], "the engine goes on"


def test_broken_promises_name_plugin_and_remedy(engine_of) -> None:
    dovetail.plugin("Few")(lambda x: x[:5])  # trials see it cut off at 5 at all sizes but the small ones
    few = dovetail.plugin("Wrong")(lambda x: x[1:])
    few.shape(lambda x: x)
    wrong = engine_of(onnx_model([call("Wrong", ["x"], ["y"])], {"x": (F32, ["N"])}, ["y"]), verify="off")
    with pytest.raises(ExecutionError, match=r"plugin Wrong.*f32\[2\] as result 0.*expected f32\[3\].*shape rule says otherwise"):
        wrong.run({"x": np.zeros(3, np.float32)})
    guessed = engine_of(onnx_model([call("Few", ["x"], ["y"])], {"x": (F32, ["N"])}, ["y"]))
    for n in (3, 9):
        assert guessed.run({"x": np.zeros(n, np.float32)})["y"].shape == (min(n, 5),)


def test_weights_of_plugins_are_computed_at_load_and_guarded_where_they_shape_results() -> None:
    calls = []

    @dovetail.plugin("Table")
    def table(w, n):
        calls.append(w.shape)
        return np.resize(w, (int(n[0]), 2)) * 3

    nodes = [call("Table", ["w", "n"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    weights = {"w": np.arange(4, dtype=np.float32), "n": np.array([3], np.int64)}
    model = onnx_model(nodes, {"x": (F32, ["N", 3])}, ["y"], weights)
    engine = dovetail.build(model, tune=False)
    calls.clear()
    x = rng().standard_normal((2, 3), np.float32)

    def wanted(w):
        return x @ (np.resize(w, (3, 2)) * 3)

    assert np.allclose(engine.run({"x": x})["y"], wanted(weights["w"]), rtol=1e-5) and calls == []
    engine.refit({"w": np.ones(4, np.float32)})
    assert np.allclose(engine.run({"x": x})["y"], wanted(np.ones(4)), rtol=1e-5) and calls == [(4,)]
    with pytest.raises(dovetail.RefitError, match=r"n.*plugin Table"):
        engine.refit({"n": np.array([4], np.int64)})


def test_data_dependent_results_of_weights_are_settled_at_import() -> None:
    dovetail.plugin("Uniq")(lambda w: np.unique(w.reshape(-1)))
    nodes = [call("Uniq", ["w"], ["u"]), helper.make_node("Add", ["x", "u"], ["y"])]
    engine = dovetail.build(onnx_model(nodes, {"x": (F32, ["N", 1])}, ["y"], {"w": np.array([3, 1, 3], np.float32)}), tune=False)
    assert engine.run({"x": np.zeros((2, 1), np.float32)})["y"].tolist() == [[1, 3], [1, 3]]


def test_refit_goes_around_plugins(engine_of) -> None:
    dovetail.plugin("Halve")(lambda x: x / np.float32(2))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), call("Halve", ["m"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    weights = {"w": rng().standard_normal((3, 4), np.float32), "b": np.ones(4, np.float32)}
    engine = engine_of(onnx_model(nodes, {"x": (F32, ["N", 3])}, ["y"], weights))
    x = rng().standard_normal((5, 3), np.float32)
    assert np.allclose(engine.run({"x": x})["y"], x @ weights["w"] / 2 + 1, rtol=1e-4)
    refit = engine.refit if isinstance(engine, dovetail.Engine) else engine.set_weights
    refit({"w": 2 * weights["w"], "b": np.zeros(4, np.float32)})
    assert np.allclose(engine.run({"x": x})["y"], x @ weights["w"], rtol=1e-4)


def test_plugins_in_branches_and_loops(engine_of) -> None:
    dovetail.plugin("Inc")(lambda x, *, by=1: x + np.float32(by))

    def branch(name, by):
        return helper.make_graph([call("Inc", ["x"], [name], by=by)], name, [], [helper.make_tensor_value_info(name, F32, None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t", 1), else_branch=branch("e", 5))
    engine = engine_of(onnx_model([node], {"c": (BOOL, []), "x": (F32, ["N"])}, ["y"]))
    for c, by in ((True, 1), (False, 5)):
        assert engine.run({"c": np.array(c), "x": np.zeros(2, np.float32)})["y"].tolist() == [by, by]
    assert [p["name"] for p in engine.plan.meta["plugins"]] == ["Inc"]
    net = dovetail.Network()
    x = net.input("x", "f32", ("N", 2))
    last, rows = net.loop(lambda step, i, y: (True, step.plugin("Inc", y, by=3), step.op("ReduceSum", y, keepdims=0)), x, trips=4)
    net.output(last, "last")
    net.output(rows, "rows")
    got = engine_of(net).run({"x": np.zeros((3, 2), np.float32)})
    assert got["last"].tolist() == [[12, 12]] * 3 and got["rows"].tolist() == [0, 18, 36, 54]


def test_many_threads_at_once() -> None:
    dovetail.plugin("Norm")(lambda x: x / np.maximum(np.abs(x).max(), 1).astype(np.float32))
    nodes = [helper.make_node("Relu", ["x"], ["r"]), call("Norm", ["r"], ["n"]), helper.make_node("Neg", ["n"], ["y"])]
    engine = dovetail.build(onnx_model(nodes, {"x": (F32, ["N", 8])}, ["y"]), tune=False)
    wrong: list[int] = []

    def work(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(20):
            x = 10 * own.standard_normal((1 + seed, 8), np.float32)
            r = np.maximum(x, 0)
            if not np.array_equal(engine.run({"x": x})["y"], -(r / np.maximum(r.max(), 1).astype(np.float32))):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_networks_call_plugins_by_name(engine_of) -> None:
    @dovetail.plugin("Hot", version="3")
    def hot(x, *, depth: int, axis: int = -1):
        return np.moveaxis((x[..., None] == np.arange(depth)).astype(np.float32), -1, axis)

    net = dovetail.Network()
    x = net.input("x", "i64", ("N", 2))
    y = net.plugin("Hot", x, version="3", depth=4, axis=1)
    assert [str(d) for d in y.shape] == ["N", "4", "2"] and y.dtype.name == "f32"
    net.output(net.op("Mul", y, 2.0), "y")
    data = np.array([[0, 3], [5, 1], [2, 2]])
    for shapes in (None, {"x": [3, 2]}, {"x": ["1..4", 2]}):
        assert np.array_equal(engine_of(net, shapes=shapes).run({"x": data})["y"], 2 * hot(data, depth=4, axis=1))


def test_calls_may_state_the_types_of_their_results(engine_of) -> None:
    seen = []

    @dovetail.plugin("Stated")
    def stated(x, *, odd: int):
        seen.append(x.shape)
        return np.repeat(x, 2, 0), x[x > odd]

    net = dovetail.Network()
    x = net.input("x", "f32", ("N", 3))
    double, some = net.plugin("Stated", x, odd=0, results=[("f32", (2 * x.shape[0], 3)), ("f32", (None,))])
    assert double.shape == (2 * x.shape[0], 3) and some.shape[0] != x.shape[0] and not seen
    net.output(net.op("Relu", double), "y")
    net.output(some, "z")
    given = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    found = engine_of(net, verify="off").run({"x": given})
    np.testing.assert_array_equal(found["y"], np.maximum(np.repeat(given, 2, 0), 0))
    np.testing.assert_array_equal(found["z"], given[given > 0])
    wrong = dovetail.Network()
    wrong.output(wrong.plugin("Stated", wrong.input("x", "f32", (2, 3)), odd=0, results=[("f32", (2, 3)), ("f32", (None,))])[0], "y")
    with pytest.raises(ExecutionError, match="Stated"):
        engine_of(wrong, verify="off").run({"x": given})


def test_graph_text_holds_calls() -> None:
    dovetail.plugin("T")(lambda x, *, a=None, s="": (x, np.unique(x)))
    node = call("T", ["x"], ["y", "u"], s='"quoted" # {x}\n')
    text = print_module(import_onnx(onnx_model([node], {"x": (F32, ["N", 3])}, ["y", "u"])))
    assert print_module(parse_module(text)) == text and "symbols" in text


def test_the_profile_and_the_report_name_host_steps(engine_of) -> None:
    dovetail.plugin("Slow")(lambda x: x + 1)
    engine = engine_of(onnx_model([call("Slow", ["x"], ["y"])], {"x": (F32, [4])}, ["y"]))
    reasons = engine.plan.meta["report"]["host_steps"]
    assert [r["node"] for r in reasons] == ["/slow (Plugin)"] and "plugin Slow (version 1) has no" in reasons[0]["reason"]
    if isinstance(engine, dovetail.Engine):
        assert "host Plugin" in str(engine.profile({"x": np.zeros(4, np.float32)}))
        assert "plugins: Slow (version 1)\n" in str(engine.report())
        assert engine.report().json()["plugins"][0]["name"] == "Slow"


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    """An engine file of the plugin "Shift", which `tmp_path/shift.py` defines."""
    (tmp_path / "shift.py").write_text(
        "import numpy as np, dovetail\n\n@dovetail.plugin('Shift', namespace='s')\ndef shift(x, *, by=1):\n    return np.roll(x, by, -1)\n"
    )
    node = call("Shift", ["x"], ["y"], by=2, plugin_namespace="s")
    model = onnx_model([helper.make_node("Relu", ["x"], ["x1"]), node], {"x": (F32, ["N", 3])}, ["y"])
    node.input[0] = "x1"
    model.graph.node[1].input[0] = "x1"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    engine = dovetail.build(model, plugins=[tmp_path / "shift.py"], tune=False)
    engine.save(tmp_path / "m.plan")
    return tmp_path / "m.plan"


X = np.array([[1, -2, 3]], np.float32)
Y = [[0, 3, 1]]


def test_an_engine_file_names_what_it_needs(saved: Path, caplog) -> None:
    (needed,) = EngineFile(saved).plan(EngineFile(saved).targets[0]).meta["plugins"]
    assert {**needed, "digest": ""} == {"name": "Shift", "version": "1", "namespace": "s", "digest": "", "module": "shift.py"}
    assert len(needed["digest"]) == 16
    assert dovetail.load(saved).run({"x": X})["y"].tolist() == Y
    unregister("Shift", "1", "s")
    with pytest.raises(PluginError, match=r"m\.plan: got an engine that needs.*s::Shift \(version 1\): name the file shift\.py"):
        dovetail.load(saved)
    with caplog.at_level(logging.WARNING, "dovetail"):
        dovetail.plugin("Shift", namespace="s")(lambda x, *, by=1: -x)
        changed = dovetail.load(saved)
        assert changed.run({"x": X})["y"].tolist() == [[-1, 0, -3]]
    assert "plugins: s::Shift (version 1), another function than when the engine was built" in str(changed.report())
    assert "has another function than when the engine was built" in caplog.text


def test_a_file_of_another_machine_is_remade_with_the_plugin(saved: Path, monkeypatch) -> None:
    file = EngineFile(saved)

    def untrusted(self, target):
        raise dovetail.TrustError("no signature")

    monkeypatch.setattr(EngineFile, "trusted", untrusted)
    for _ in range(2):  # compiled, then from the cache
        assert dovetail.load(saved).run({"x": X})["y"].tolist() == Y
    unregister("Shift", "1", "s")
    with pytest.raises(PluginError, match="Shift"):
        dovetail.load(saved)
    assert file.plan(file.targets[0]).meta["plugins"]


def test_loading_imports_nothing_unless_trusted(tmp_path, monkeypatch) -> None:
    (tmp_path / "shift_plugins.py").write_text("import dovetail\n\n@dovetail.plugin('Imported')\ndef f(x):\n    return x + x\n")
    monkeypatch.syspath_prepend(tmp_path)
    engine = dovetail.build(onnx_model([call("Imported", ["x"], ["y"])], {"x": (F32, [2])}, ["y"]), plugins=["shift_plugins"], tune=False)
    engine.save(tmp_path / "m.plan")
    unregister("Imported")
    del sys.modules["shift_plugins"]
    with pytest.raises(PluginError, match=r"Imported \(version 1\): import shift_plugins"):
        dovetail.load(tmp_path / "m.plan")
    assert "shift_plugins" not in sys.modules
    assert dovetail.load(tmp_path / "m.plan", trust=True).run({"x": np.ones(2, np.float32)})["y"].tolist() == [2, 2]
    del sys.modules["shift_plugins"]


def test_verbs_take_files_of_plugins(saved: Path, tmp_path, capsys, monkeypatch) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    unregister("Shift", "1", "s")
    folder = str(tmp_path)
    assert main(["build", f"{folder}/m.onnx", "-o", f"{folder}/n.plan", "--no-tune", "--quiet"]) == 1
    assert "no importer" in capsys.readouterr().err
    option = f"--plugins={folder}/shift.py"
    run = [sys.executable, "-m", "dovetail.cli"]
    for arguments in (
        ["build", f"{folder}/m.onnx", "-o", f"{folder}/n.plan", "--no-tune", "--quiet", option],
        ["run", option, f"{folder}/n.plan", "--inputs", f"{folder}/x.npz", "--outputs", f"{folder}/y.npz", "--quiet"],
    ):
        done = subprocess.run(
            [*run, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
        )
        assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "y.npz")["y"].tolist() == Y
    assert main(["run", f"{folder}/n.plan", "--quiet"]) == 1 and "--plugins=FILE.py" in capsys.readouterr().err
    verbs = (["check", "m.onnx"], ["inspect", "n.plan"], ["verify", "n.plan"], ["explain", "n.plan"], ["simplify", "m.onnx", "s.onnx"])
    monkeypatch.chdir(tmp_path)
    for verb in ([*v, option] for v in verbs):
        assert main(verb) == 0, capsys.readouterr().err
