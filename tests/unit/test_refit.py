"""`engine.refit`: sources, names, all or nothing, and back again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.api.weight_names import WeightMap
from dovetail.cli import main
from dovetail.core.env import override
from dovetail.engine.file import EngineFile

F = np.float32
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with override(home=tmp_path_factory.mktemp("home")):
        yield


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "conv.weight": (6, 3, 3, 3), "conv.bias": (6,), "bn.weight": (6,), "bn.bias": (6,), "bn.running_mean": (6,),
        "onnx::MatMul_7": (6, 6), "fc.bias": (6,), "shared": (6,),
    }  # fmt: skip
    found: Arrays = {n: rng.standard_normal(s).astype(F) for n, s in shapes.items()}
    found["bn.running_var"] = rng.uniform(0.5, 2, 6).astype(F)
    found["low"] = np.array(-1, F)
    return found


def model(arrays: Arrays) -> onnx.ModelProto:
    """A folded convolution, a linear layer as torch exports it, a shared weight, a guarded bound, and a free batch."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="/conv/Conv"),
        node("BatchNormalization", ["c", *(f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var"))], ["b"], name="/bn/Norm"),
        node("Clip", ["b", "low"], ["k"], name="/act/Clip"),
        node("GlobalAveragePool", ["k"], ["p"], name="/pool"),
        node("Flatten", ["p"], ["f"], name="/flatten"),
        node("Mul", ["f", "shared"], ["m"], name="/scale"),
        node("MatMul", ["m", "onnx::MatMul_7"], ["h"], name="/head/fc/MatMul"),
        node("Add", ["h", "fc.bias"], ["g"], name="/head/fc/Add"),
        node("Mul", ["g", "shared"], ["y"], name="/scale_1"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(v, n) for n, v in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def built(seed: int = 0) -> dovetail.Engine:
    return dovetail.build(model(weights(seed)), verify="off", tune=False)


def image(n: int = 2, h: int = 7) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).standard_normal((n, 3, h, 9)).astype(F)


@pytest.fixture
def engine() -> dovetail.Engine:
    return built()


@pytest.fixture(scope="module")
def wanted() -> dovetail.Engine:
    return built(1)


def same(a: dovetail.Engine, b: dovetail.Engine) -> bool:
    return all(a(image(*size)).tobytes() == b(image(*size)).tobytes() for size in ((1, 5), (3, 8)))


class Tensor:
    """A tensor as torch has them, of a narrow type that NumPy lacks if asked for."""

    def __init__(self, array: np.ndarray[Any, Any], dtype: str = "torch.float32") -> None:
        self.array, self.dtype, self.shape = array, dtype, array.shape

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self.array.astype(F))

    def numpy(self) -> np.ndarray[Any, Any]:
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array

    def data_ptr(self) -> int:
        return int(self.array.__array_interface__["data"][0])

    def stride(self) -> tuple[int, ...]:
        return self.array.strides

    def numel(self) -> int:
        return self.array.size


# --- sources --------------------------------------------------------------------------------------
def _safetensors(path: Path) -> object:
    from safetensors.numpy import save_file

    save_file(weights(1), path / "w.safetensors")
    return path / "w.safetensors"


def _npz(path: Path) -> object:
    np.savez(path / "w.npz", **weights(1))  # type: ignore[arg-type]  # names are data
    return str(path / "w.npz")


def _onnx(path: Path) -> object:
    onnx.save(model(weights(1)), path / "w.onnx")
    return path / "w.onnx"


def _external(path: Path) -> object:
    onnx.save(model(weights(1)), path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    return path / "e.onnx"


def _module(path: Path) -> object:
    class Module:
        def state_dict(self) -> dict[str, Tensor]:
            return {n: Tensor(a) for n, a in weights(1).items()}

    return Module()


@pytest.mark.parametrize(
    "make",
    [_safetensors, _npz, _onnx, _external, _module, lambda path: model(weights(1)), lambda path: weights(1),
     lambda path: {"state_dict": {n: Tensor(a) for n, a in weights(1).items()}, "epoch": 3}],
    ids=["safetensors", "npz", "onnx", "external", "module", "proto", "mapping", "checkpoint"],
)  # fmt: skip
def test_every_source_gives_what_a_build_gives(make: Any, engine: dovetail.Engine, wanted: dovetail.Engine, tmp_path: Path) -> None:
    assert not same(engine, wanted)
    done = engine.refit(make(tmp_path), strict=True)
    assert same(engine, wanted) and "shared" in done.names
    assert engine.certificate["stale"] is True


def test_narrow_tensors_are_widened_exactly(engine: dovetail.Engine) -> None:
    import ml_dtypes

    narrow = {n: a.astype(ml_dtypes.bfloat16) for n, a in weights(1).items() if n != "low"}
    engine.refit({n: Tensor(a, "torch.bfloat16") for n, a in narrow.items()})
    for name, array in narrow.items():
        np.testing.assert_array_equal(engine.weight(name), array.astype(F))


@pytest.mark.parametrize(
    "source, message",
    [
        (7, "got int as weights, expected a mapping"),
        ("no/such.npz", "no/such.npz: cannot be read"),
        ("w.pt", "expected .safetensors, .npz or .onnx; load a pickled checkpoint"),
        ({"conv.bias": object()}, "weights: weight 'conv.bias': got object, expected an array"),
    ],
)
def test_what_is_no_source_is_refused(source: Any, message: str, engine: dovetail.Engine) -> None:
    with pytest.raises(dovetail.RefitError, match=message):
        engine.refit(source)


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_damaged_files_are_refused(name: str, engine: dovetail.Engine, tmp_path: Path) -> None:
    for data in (b"", b"PK", b"\xff" * 100):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(dovetail.RefitError, match=f"{name}: .*"):
            engine.refit(tmp_path / name)


# --- all or nothing -------------------------------------------------------------------------------
def test_all_that_is_wrong_is_listed_and_nothing_changes(engine: dovetail.Engine) -> None:
    before = built()
    bad = {"conv.wieght": np.zeros((6, 3, 3, 3), F), "fc.bias": np.zeros(5, F), "low": np.array(-2, F), "conv.bias": np.ones(6, F)}
    with pytest.raises(dovetail.RefitError) as caught:
        engine.refit(bad)
    text = str(caught.value)
    assert "3 problems, so no weight is changed" in text
    assert "'conv.wieght', float32 (6, 3, 3, 3)," in text and "did you mean 'conv.weight' (f32 (6, 3, 3, 3))" in text
    assert "weight 'fc.bias': got float32 (5,), expected float32 (6,)" in text
    assert "weight 'low': got a new value [-2.], expected the original one" in text and "relied on its value [-1.]" in text
    assert same(engine, before) and "stale" not in engine.certificate


def test_a_failure_while_packing_leaves_the_old_weights(engine: dovetail.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from dovetail.runtime import weights as module

    def fail(*args: object) -> None:
        raise MemoryError("out of memory")

    before = built()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_pack", fail)
        with pytest.raises(MemoryError):
            engine.refit({"conv.weight": weights(1)["conv.weight"]})
    assert same(engine, before)
    np.testing.assert_array_equal(engine.weight("conv.weight"), weights()["conv.weight"])


def test_some_weights_may_be_given_unless_strict(engine: dovetail.Engine) -> None:
    some = {"conv.weight": weights(1)["conv.weight"], "shared": weights(1)["shared"]}
    with pytest.raises(dovetail.RefitError, match=r"got no value for the weight 'bn.weight', expected f32 .6,., because all are"):
        engine.refit(some, strict=True)
    engine.refit(some)
    assert same(engine, dovetail.build(model(weights() | some), verify="off", tune=False))


# --- back again -----------------------------------------------------------------------------------
def test_a_block_ends_with_the_old_weights(engine: dovetail.Engine, wanted: dovetail.Engine) -> None:
    before = built()
    certificate = engine.certificate
    with pytest.raises(ZeroDivisionError), engine.refit(weights(1)) as inside:
        assert same(engine, wanted)
        with engine.refit({"fc.bias": np.zeros(6, F)}):
            assert not same(engine, wanted)
        assert same(engine, wanted) and len(inside.names) == 10
        raise ZeroDivisionError
    assert same(engine, before) and engine.certificate == certificate
    inside.undo()  # once is enough
    assert same(engine, before)


def test_there_and_back_is_bitwise(engine: dovetail.Engine) -> None:
    before = built()
    packed = {n: a.tobytes() for n, a in engine.runtime._weights.packed.items()}
    engine.refit(weights(1))
    engine.refit(weights(0))
    assert same(engine, before)
    assert packed == {n: a.tobytes() for n, a in engine.runtime._weights.packed.items()}


def test_runs_see_old_or_new_weights_and_never_a_mix(engine: dovetail.Engine, wanted: dovetail.Engine) -> None:
    x = image()
    allowed = {engine(x).tobytes(), wanted(x).tobytes()}
    strange: list[bytes] = []
    seen: set[bytes] = set()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            y = engine(x).tobytes()
            seen.add(y)
            if y not in allowed:
                strange.append(y)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    new, old = weights(1), weights(0)
    for i in range(20_000):
        engine.refit(old if i % 2 else new)
        if i >= 150 and seen == allowed:  # threads may not have had their turn between two refits before
            break
    with engine.refit(new):
        pass
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not strange, f"{len(strange)} of {len(seen)} results"
    assert seen == allowed


# --- names ----------------------------------------------------------------------------------------
def state(seed: int = 1) -> Arrays:
    """As torch names them: the linear layer's weight is the transposed one."""
    found = weights(seed)
    found["head.fc.weight"] = np.ascontiguousarray(found.pop("onnx::MatMul_7").T)
    found["bn.num_batches_tracked"] = np.array(3)
    return found


def test_exported_linear_layers_are_found_and_transposed(engine: dovetail.Engine, wanted: dovetail.Engine) -> None:
    engine.refit(state(), strict=True)
    assert same(engine, wanted)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, engine: dovetail.Engine, wanted: dovetail.Engine) -> None:
    engine.refit({prefix + n: a for n, a in weights(1).items()}, strict=True)
    assert same(engine, wanted)


def test_names_may_be_given(engine: dovetail.Engine, wanted: dovetail.Engine) -> None:
    new = weights(1)
    given = {"w": new["onnx::MatMul_7"].T, "b": new["fc.bias"], "half": new["shared"] / 2}
    rest = {n: a for n, a in new.items() if n not in ("onnx::MatMul_7", "fc.bias", "shared")}
    engine.refit({**given, **rest}, strict=True, names={
        "onnx::MatMul_7": ("w", (1, 0)), "fc.bias": "b", "shared": lambda source: source["half"] * 2,
    })  # fmt: skip
    assert same(engine, wanted)
    other = built()
    other.refit({f"net/{n}": a for n, a in new.items()}, names=lambda name: f"net/{name}")
    assert same(other, wanted)


@pytest.mark.parametrize(
    "names, message",
    [
        ({"fc.bais": "b"}, "names: got the weight 'fc.bais', expected one of .*did you mean 'fc.bias'"),
        ({"fc.bias": "c"}, "weight 'fc.bias': got no 'c' in the source"),
        ({"fc.bias": 3}, r"names\['fc.bias'\]: got 3, expected a name"),
        ({"fc.bias": lambda source: source["c"]}, "weight 'fc.bias': <lambda> failed .KeyError"),
        ({"fc.bias": ("b", (1, 0))}, "weight 'fc.bias': b transposed .1, 0. failed"),
    ],
)
def test_names_that_lead_nowhere_are_said(names: Any, message: str, engine: dovetail.Engine) -> None:
    with pytest.raises(dovetail.RefitError, match=message):
        engine.refit({"b": np.zeros(6, F)}, names=names, ignore=["b"] if "fc.bais" in names else [])


def test_tied_tensors_need_one_name(engine: dovetail.Engine) -> None:
    tied = Tensor(weights(1)["shared"])
    engine.refit({"shared": tied, "decoder.shared": tied})
    with pytest.raises(dovetail.RefitError, match=r"decoder.shared"):
        engine.refit({"shared": tied, "decoder.shared": Tensor(tied.array + 1)})


def folded(original: Arrays) -> Arrays:
    """As an exporter leaves it: the normalisation inside the convolution, names of its own."""
    scale = original["bn.weight"] / np.sqrt(original["bn.running_var"] + F(1e-5))
    found = {n: a for n, a in original.items() if not n.startswith(("bn.", "conv.", "head."))}
    found["onnx::Conv_1"] = original["conv.weight"] * scale[:, None, None, None]
    found["onnx::Conv_2"] = (original["conv.bias"] - original["bn.running_mean"]) * scale + original["bn.bias"]
    found["onnx::MatMul_7"] = np.ascontiguousarray(original["head.fc.weight"].T)
    return found


def folded_model(arrays: Arrays) -> onnx.ModelProto:
    proto = model({**weights(), **arrays})
    proto.graph.node[0].input[1:] = ["onnx::Conv_1", "onnx::Conv_2"]
    proto.graph.node[2].input[0] = "c"
    del proto.graph.node[1]
    kept = [t for t in proto.graph.initializer if not t.name.startswith(("bn.", "conv."))]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


@pytest.mark.parametrize("of", ["engine", "model"])
def test_weights_are_matched_by_their_contents(of: str) -> None:
    engine = dovetail.build(folded_model(folded(state(0))), verify="off", tune=False)
    with pytest.raises(dovetail.RefitError, match=r"'conv.weight'"):
        engine.refit(state(1))  # nothing is guessed where contents were changed
    names = dovetail.match_weights(engine if of == "engine" else folded_model(folded(state(0))), state(0))
    assert isinstance(names, WeightMap) and not names.missing and not names.ambiguous
    assert names.unused == ("bn.num_batches_tracked",)
    assert "onnx::Conv_1 = folded_weight(conv.weight, bn.weight, bn.running_var)" in str(names)
    engine.refit(state(1), names=names, strict=True)
    fresh = dovetail.build(folded_model(folded(state(1))), verify="off", tune=False)
    for name, array in fresh.weights().items():
        np.testing.assert_allclose(engine.weight(name), array, rtol=1e-5, atol=1e-6)


def test_matching_finds_parts_concats_and_weight_norms() -> None:
    rng = np.random.default_rng(4)
    v, g = rng.standard_normal((5, 4)).astype(F), rng.uniform(1, 2, (5, 1)).astype(F)
    packed = rng.standard_normal((12, 4)).astype(F)
    a, b = (rng.standard_normal((3, 4)).astype(F) for _ in range(2))
    source = {"l.weight_g": g, "l.weight_v": v, "in_proj": packed, "a": a, "b": b, "z1": np.zeros(3, F), "z2": np.zeros(3, F)}
    arrays = {
        "normed": (v * (g / np.linalg.norm(v, axis=1, keepdims=True))).T.copy(), "q": packed[:4].T.copy(), "v": packed[8:].copy(),
        "ab": np.concatenate([a, b]).T.copy(), "zero": np.zeros(3, F), "gone": rng.standard_normal(7).astype(F), "z2": np.zeros(3, F),
    }  # fmt: skip
    names = sorted(arrays)
    graph = helper.make_graph(
        [helper.make_node("Mul", [n, "x"], [f"y_{n}"], name=f"/{n}/Mul") for n in names], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"y_{n}", TensorProto.FLOAT, None) for n in names],
        [numpy_helper.from_array(v, n) for n, v in arrays.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = dovetail.match_weights(proto, source)
    assert found.missing == ("gone",) and set(found.ambiguous) == {"zero"}
    assert set(found) == {"normed", "q", "v", "ab", "z2"}
    for name, recipe in found.items():
        assert callable(recipe)
        np.testing.assert_allclose(recipe(source), arrays[name], rtol=1e-6)


# --- files ----------------------------------------------------------------------------------------
def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_file_is_refitted_whole_or_not_at_all(
    engine: dovetail.Engine, wanted: dovetail.Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "m.plan", tmp_path / "new.plan"
    engine.save(old)
    before = old.read_bytes()
    np.savez(tmp_path / "w.npz", **weights(1))  # type: ignore[arg-type]  # names are data
    code, out, _ = run_cli(capsys, "refit", old, tmp_path / "w.npz", "-o", new, "--strict", "--json")
    assert code == 0 and len(json.loads(out)["weights"]) == 10
    assert old.read_bytes() == before
    loaded = dovetail.load(new)
    assert same(loaded, wanted)
    file = EngineFile(new)
    assert file.trusted(file.targets[0]).plan == loaded.plan
    np.savez(tmp_path / "bad.npz", nothing=np.zeros(3))
    code, _, err = run_cli(capsys, "refit", old, tmp_path / "bad.npz", "-o", tmp_path / "no.plan")
    assert code == 1 and "'nothing'" in err and not (tmp_path / "no.plan").exists()
    (tmp_path / "names.json").write_text(json.dumps({"fc.bias": "b", "onnx::MatMul_7": ["w", [1, 0]]}))
    np.savez(tmp_path / "named.npz", b=weights(1)["fc.bias"], w=weights(1)["onnx::MatMul_7"].T)
    code, out, _ = run_cli(capsys, "refit", new, tmp_path / "named.npz", "--names", tmp_path / "names.json")
    assert code == 0 and "2 weights replaced" in out and same(dovetail.load(new), wanted)


def test_a_file_without_weights_becomes_one_with_weights(engine: dovetail.Engine, wanted: dovetail.Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "bare.plan", strip_weights=True, sign=False)
    with pytest.raises(dovetail.RefitError, match=r"holds no weights, so all must be given; got no"):
        dovetail.refit_file(tmp_path / "bare.plan", {"fc.bias": np.zeros(6, F)}, tmp_path / "w.plan")
    new = weights(1)
    del new["low"]  # what the program relies on is in the file
    dovetail.refit_file(tmp_path / "bare.plan", new, tmp_path / "w.plan", strict=True)
    file = EngineFile(tmp_path / "w.plan")
    file.verify()
    with pytest.raises(dovetail.TrustError):
        file.trusted(file.targets[0])
    assert same(dovetail.load(tmp_path / "w.plan"), wanted)


def test_an_engine_is_loaded_with_other_weights(engine: dovetail.Engine, wanted: dovetail.Engine, tmp_path: Path) -> None:
    for strip in (True, False):
        engine.save(tmp_path / "m.plan", strip_weights=strip)
        onnx.save(model(weights(1)), tmp_path / "new.onnx")
        assert same(dovetail.load(tmp_path / "m.plan", weights=tmp_path / "new.onnx"), wanted)
        with pytest.raises(dovetail.RefitError, match=r"weight 'low': got a new value"):
            dovetail.load(tmp_path / "m.plan", weights=weights(1) | {"low": np.array(5, F)})


def test_strict_does_without_constants_of_nodes() -> None:
    proto = model(weights())
    moved = next(t for t in proto.graph.initializer if t.name == "shared")
    node = helper.make_node("Constant", [], ["shared"], name="/Constant", value=moved)
    proto.graph.initializer.remove(moved)
    proto.graph.node.insert(0, node)
    engine = dovetail.build(proto, verify="off", tune=False)
    new = weights(1)
    shared = new.pop("shared")
    engine.refit(new, strict=True)
    engine.refit({"shared": shared})
    assert same(engine, built(1))
    other = model(weights(1))
    engine.refit(other, strict=True)
    from dovetail import api

    assert api.tune(engine, time_budget=0, verify="off").info["node_constants"] == engine.info["node_constants"] == ["shared"]


def test_arrays_need_no_onnx(tmp_path: Path, engine: dovetail.Engine) -> None:
    import subprocess
    import sys

    engine.save(tmp_path / "m.plan")
    code = (
        "import sys, numpy as np, dovetail\n"
        f"e = dovetail.load({str(tmp_path / 'm.plan')!r})\n"
        "e.refit({'fc.bias': np.ones(6, 'f4')})\n"
        "assert 'onnx' not in sys.modules, 'a refit from arrays'\n"
    )
    from dovetail.core.env import env, inherited

    subprocess.run([sys.executable, "-c", code], check=True, env=inherited(DOVETAIL_HOME=str(env().home)))
