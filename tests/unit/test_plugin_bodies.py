"""Kernel bodies of plugins: what they are given, when they are used, tuned, checked and refused."""

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail import builder, runtime
from dovetail.builder.verify import verify_built
from dovetail.codegen.triton_host import host_driver
from dovetail.core.dims import ceil_div
from dovetail.core.errors import BuildError, CompileError, VerificationError
from dovetail.frontend.importer import import_onnx
from dovetail.plugins import CKernel, TritonKernel
from tests.unit.plugin_models import F32, call, onnx_model, own_registry


@pytest.fixture(autouse=True)
def _own():
    with own_registry():
        yield


def rng():
    return np.random.default_rng(3)


def scaled_sum(name="ScaledSum", **options):
    """The plugin `a * x + y` with bodies for both devices; y may be absent; wrong where `by` is -1 on purpose."""

    @dovetail.plugin(name, **options)
    def plugin(x, y=None, *, by: float):
        return x * np.float32(by) + (0 if y is None else y)

    @plugin.c(configs=[{"unroll": 1}, {"unroll": 4}])
    def c_body(call, *, unroll):
        x = call.inputs[0]
        if call.attributes["by"] == 99:
            call.decline("99 is not for kernels")
        by = 7.0 if call.attributes["by"] == -1 else call.attributes["by"]
        second = len(call.inputs) > 1 and call.inputs[1] is not None
        plus = f"+ ((const float *){call.input(1)})[i]" if second else ""
        return CKernel(
            f"""
            static inline float @ENTRY@_scale(float v) {{ return v * {by}f; }}
            {call.prototype} {{
              const float *x = {call.input(0)};
              float *y = {call.output()};
              const int64_t n = {call.dim(x.size)}, low = n * tid / nt, high = n * (tid + 1) / nt;
              #pragma clang loop unroll_count({unroll})
              for (int64_t i = low; i < high; i++) y[i] = @ENTRY@_scale(x[i]) {plus};
            }}
            """,
            flops=2 * x.size,
        )

    @plugin.triton(configs=lambda call: [{"block": 64}, {"block": 256, "warps": 2}])
    def triton_body(call, *, block, warps=4):
        x = call.inputs[0]
        by = 7.0 if call.attributes["by"] == -1 else call.attributes["by"]
        second = len(call.inputs) > 1 and call.inputs[1] is not None
        plus = f" + tl.load({call.input(1)} + i, mask=i < n)" if second else ""
        return TritonKernel(
            f"""
@triton.jit
def @ENTRY@_scale(v):
    return v * {by}

@triton.jit
def @ENTRY@(@PARAMS@):
    i = tl.program_id(0) * {block} + tl.arange(0, {block})
    n = {call.dim(x.size)}
    tl.store({call.output()} + i, @ENTRY@_scale(tl.load({call.input(0)} + i, mask=i < n)){plus}, mask=i < n)
""",
            grid=[ceil_div(x.size, block)],
            warps=warps,
        )

    return plugin


def sum_model(by: float = 2.0, shape=("N", 5), second: bool = True):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        call("ScaledSum", ["r", "x"] if second else ["r"], ["s"], by=by),
        helper.make_node("Neg", ["s"], ["y"]),
    ]
    return onnx_model(nodes, {"x": (F32, shape)}, ["y"])


def wanted(x, by=2.0, second=True):
    return -(np.maximum(x, 0) * np.float32(by) + (x if second else 0))


def on_gpu(model):
    """(engine on host memory with Triton's interpreter, what was built)."""
    built = builder.build(model, builder.BuildOptions(target="cuda:sm_90", tune=False))
    driver = host_driver(built.kernels)
    return runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver), built


def group_tactics(plan) -> list[tuple[str, list]]:
    return [(g["tactic"], g["config"]) for g in plan.meta["report"]["groups"] if g["kind"] == "plugin"]


@pytest.mark.parametrize("second", [True, False])
def test_c_bodies_run_between_kernels(second) -> None:
    scaled_sum()
    engine = dovetail.build(sum_model(second=second), tune=False)
    assert group_tactics(engine.plan) == [("plugin", [["unroll", 1]])] and engine.report().on_generated_code
    for n in (3, 0, 1, 1000):
        x = rng().standard_normal((n, 5), np.float32)
        for threads in (1, 2):
            assert np.allclose(engine.run({"x": x}, threads=threads)["y"], wanted(x, second=second), rtol=1e-6, atol=1e-6)
    assert engine.certificate["kernels"]["checked"] == 3


@pytest.mark.parametrize("second", [True, False])
def test_triton_bodies_compile_and_run(second) -> None:
    scaled_sum()
    engine, built = on_gpu(sum_model(second=second))
    assert group_tactics(built.plan) == [("plugin", [["block", 64]])]
    for n in (3, 0, 30):
        x = rng().standard_normal((n, 5), np.float32)
        assert np.allclose(engine.run({"x": x})["y"], wanted(x, second=second), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by", [2.0, -1.0])
def test_triton_bodies_are_checked_on_the_device(by) -> None:
    scaled_sum()
    model = sum_model(by=by)
    engine, built = on_gpu(model)

    def check():
        return verify_built(
            built, engine.run, lambda: import_onnx(model), content="c", level="sample", threads=1, driver=engine.driver, fresh=True
        )

    if by == 2.0:
        assert check()["kernels"]["checked"] == 3
        return
    with pytest.raises(VerificationError, match="tactic plugin differs"):
        check()


def test_one_value_twice_is_one_pointer() -> None:
    scaled_sum()
    model = onnx_model([helper.make_node("Relu", ["x"], ["r"]), call("ScaledSum", ["r", "r"], ["y"], by=3.0)], {"x": (F32, [7])}, ["y"])
    x = rng().standard_normal(7, np.float32)
    assert np.allclose(dovetail.build(model, tune=False).run({"x": x})["y"], 4 * np.maximum(x, 0))
    assert np.allclose(on_gpu(model)[0].run({"x": x})["y"], 4 * np.maximum(x, 0))


def test_operands_are_dense_for_bodies() -> None:
    scaled_sum()
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("Slice", ["r", "one", "three", "one"], ["s"]),
        call("ScaledSum", ["t"], ["y"], by=3.0),
        call("ScaledSum", ["s"], ["z"], by=3.0),
    ]
    weights = {"one": np.array([1], np.int64), "three": np.array([3], np.int64)}
    x = rng().standard_normal((4, 6), np.float32)
    for engine in (dovetail.build(m := onnx_model(nodes, {"x": (F32, [4, 6])}, ["y", "z"], weights), tune=False), on_gpu(m)[0]):
        got = engine.run({"x": x})
        assert np.array_equal(got["y"], 3 * np.maximum(x, 0).T) and np.array_equal(got["z"], 3 * np.maximum(x, 0)[:, 1:3])


def test_a_body_that_declines_leaves_the_call_to_the_function() -> None:
    scaled_sum()
    engine = dovetail.build(sum_model(by=99.0), tune=False)
    assert group_tactics(engine.plan) == []
    assert "its C body declines: 99 is not for kernels" in str(engine.report().host_steps)
    x = rng().standard_normal((2, 5), np.float32)
    assert np.allclose(engine.run({"x": x})["y"], wanted(x, 99), rtol=1e-6)


def test_extents_of_the_run_and_strings_have_no_kernels() -> None:
    @dovetail.plugin("Some")
    def some(x):
        return x[x > 0]

    @some.c()
    def body(call):
        raise AssertionError("is not asked")

    engine = dovetail.build(onnx_model([call("Some", ["x"], ["y"])], {"x": (F32, ["N"])}, ["y"]), tune=False)
    assert "the run decides how large its results are" in str(engine.report().host_steps)


def test_a_wrong_body_is_found_by_verification() -> None:
    scaled_sum()
    with pytest.raises(VerificationError, match="tactic plugin differs from the reference"):
        dovetail.build(sum_model(by=-1.0), tune=False)


def test_the_tolerance_is_the_plugins_own() -> None:
    def make(tolerance, version):
        @dovetail.plugin("Rough", version=version, tolerance=tolerance)
        def rough(x):
            return x * np.float32(2)

        @rough.c()
        def body(call):
            return f"""{call.prototype} {{
                const float *x = {call.input(0)}; float *y = {call.output()};
                if (tid == 0) for (int64_t i = 0; i < {call.dim(call.inputs[0].size)}; i++) y[i] = x[i] * 2.002f;
            }}"""

        return onnx_model([call("Rough", ["x"], ["y"], plugin_version=version)], {"x": (F32, [64])}, ["y"])

    with pytest.raises(VerificationError):
        dovetail.build(make(None, "1"), tune=False)
    engine = dovetail.build(make(1e-2, "2"), tune=False)
    worst = engine.certificate["kernels"]["worst"][0]
    assert 5e-4 < worst["error"] < 2e-3 and worst["tolerance"] == 1e-2


def test_bodies_that_depend_on_threads_are_found() -> None:
    @dovetail.plugin("Racy")
    def racy(x):
        return x + 1

    @racy.c()
    def body(call):
        return f"""{call.prototype} {{
            const float *x = {call.input(0)}; float *y = {call.output()};
            if (tid == 0) for (int64_t i = 0; i < {call.dim(call.inputs[0].size)}; i++) y[i] = x[i] + 1.0f + 1e-7f * (float)nt;
        }}"""

    with pytest.raises(VerificationError, match="number of threads"):
        dovetail.build(onnx_model([call("Racy", ["x"], ["y"])], {"x": (F32, [50000])}, ["y"]), tune=False)


def test_workspace_and_several_results() -> None:
    @dovetail.plugin("MinMax")
    def minmax(x):
        return x.min(-1), x.argmax(-1)

    @minmax.c()
    def body(call):
        x = call.inputs[0]
        n = call.dim(x.shape[1])
        return CKernel(
            f"""{call.prototype} {{
                const float *x = {call.input(0)}; float *row = {call.workspace};
                float *low = {call.output(0)}; int64_t *at = {call.output(1)};
                if (tid) return;
                for (int64_t r = 0; r < {call.dim(x.shape[0])}; r++) {{
                  for (int64_t i = 0; i < {n}; i++) row[i] = x[r * {n} + i];
                  float least = row[0]; int64_t best = 0;
                  for (int64_t i = 1; i < {n}; i++) {{ if (row[i] < least) least = row[i]; if (row[i] > row[best]) best = i; }}
                  low[r] = least; at[r] = best;
                }}
            }}""",
            workspace_bytes=4 * x.shape[1],
        )

    engine = dovetail.build(onnx_model([call("MinMax", ["x"], ["a", "b"])], {"x": (F32, ["N", "M"])}, ["a", "b"]), tune=False)
    x = rng().standard_normal((3, 17), np.float32)
    got = engine.run({"x": x})
    assert np.array_equal(got["a"], x.min(-1)) and np.array_equal(got["b"], x.argmax(-1))
    assert engine.report().on_generated_code


def test_configurations_are_measured_and_kept() -> None:
    plugin = scaled_sum()

    @plugin.c(configs=[{"slow": 64}, {"slow": 1}])
    def body(call, *, slow):
        x = call.inputs[0]
        return f"""{call.prototype} {{
            const float *x = {call.input(0)}; float *y = {call.output()};
            const int64_t n = {call.dim(x.size)};
            for (int64_t k = 0; k < {slow}; k++)
              for (int64_t i = n * tid / nt; i < n * (tid + 1) / nt; i++) ((volatile float *)y)[i] = x[i] * 2.0f;
        }}"""

    model = sum_model(shape=(400, 1000), second=False)
    engine = dovetail.build(model)
    (group,) = [g for g in engine.plan.meta["report"]["groups"] if g["kind"] == "plugin"]
    assert group["config"] == [["slow", 1]] and len(group["measured_us"]) == 2
    plugin.c(configs=[{"slow": 2}, {"slow": 1}])(body)
    again = dovetail.build(model)
    (group,) = [g for g in again.plan.meta["report"]["groups"] if g["kind"] == "plugin"]
    assert len(group["measured_us"]) == 2 and "slow=2" in str(group["measured_us"]), "times of other functions are not reused"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (lambda call: 3, BuildError, "P .version 1.: its C body failed .TypeError: got something else than C text"),
        (lambda call: "void f() {}", BuildError, "named @ENTRY@"),
        (lambda call: call.input(5), BuildError, "reads input 5, which the call lacks"),
        (lambda call: call.inputs[3].size, BuildError, "P .version 1.: its C body failed .IndexError"),
        (lambda call, wrong: "", BuildError, "its C body failed .TypeError"),
        (lambda call: f"{call.prototype} {{ this is no C }}", CompileError, "this is no C|error:"),
    ],
)
def test_faults_of_c_bodies_are_errors_of_the_build(body, error, message) -> None:
    p = dovetail.plugin("P")(lambda x: x)
    p.c()(body)
    with pytest.raises(error, match=message):
        dovetail.build(onnx_model([call("P", ["x"], ["y"])], {"x": (F32, [4])}, ["y"]), tune=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda call: "text", "TritonKernel"),
        (lambda call: TritonKernel("def f(): pass", [1]), "@ENTRY@"),
        (lambda call: TritonKernel("@triton.jit\ndef @ENTRY@(@PARAMS@):\n    pass\n", ()), "grid of 0 axes"),
        (lambda call: TritonKernel("@triton.jit\ndef @ENTRY@(@PARAMS@):\n    nonsense(1)\n", (1,)), "nonsense"),
    ],
)
def test_faults_of_triton_bodies_are_errors_of_the_build(body, message) -> None:
    p = dovetail.plugin("P")(lambda x: x)
    p.triton()(body)
    model = onnx_model([call("P", ["x"], ["y"])], {"x": (F32, [4])}, ["y"])
    with pytest.raises(BuildError, match=message):
        builder.build(model, builder.BuildOptions(target="cuda:sm_90", tune=False))


def test_configurations_must_be_plain() -> None:
    p = dovetail.plugin("P")(lambda x: x)
    with pytest.raises(dovetail.UsageError, match="got no configuration"):
        p.c(configs=[])
    p.c(configs=[{"block": 1.5}])(lambda call, block: "")
    with pytest.raises(BuildError, match=r"P \(version 1\).*configuration"):
        dovetail.build(onnx_model([call("P", ["x"], ["y"])], {"x": (F32, [4])}, ["y"]), tune=False)


def test_narrow_types_reach_functions_and_kernels_as_they_are() -> None:
    @dovetail.plugin("Half")
    def half(x, *, by: int):
        assert x.dtype == np.float16
        return (x * np.float16(by)).astype(np.float16)

    nodes = [helper.make_node("Cast", ["x"], ["h"], to=10), call("Half", ["h"], ["g"], by=2), helper.make_node("Cast", ["g"], ["y"], to=1)]
    model = onnx_model(nodes, {"x": (F32, ["N"])}, ["y"])
    x = rng().standard_normal(9, np.float32)

    @half.triton()
    def body(call):
        return TritonKernel(
            f"""
@triton.jit
def @ENTRY@(@PARAMS@):
    i = tl.arange(0, 16)
    inside = i < {call.dim(call.inputs[0].size)}
    tl.store({call.output()} + i, tl.load({call.input(0)} + i, mask=inside) * 2, mask=inside)
""",
            [1],
        )

    engine, built = on_gpu(model)
    assert group_tactics(built.plan)
    for run in (dovetail.build(model, tune=False).run, engine.run):
        assert np.array_equal(run({"x": x})["y"], (x.astype(np.float16) * np.float16(2)).astype(np.float32))


def test_an_fp16_build_keeps_what_plugins_take() -> None:
    seen = []

    @dovetail.plugin("Wide")
    def wide(x):
        seen.append(x.dtype)
        return x + np.float32(1)

    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), call("Wide", ["m"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["y"])]
    model = onnx_model(nodes, {"x": (F32, ["N", 16])}, ["y"], {"w": rng().standard_normal((16, 16), np.float32)})
    built = builder.build(model, builder.BuildOptions(target="cuda:sm_90", precision="fp16", tune=False))
    assert ("/wide (Plugin)" in str(built.precision.kept)) and set(seen) == {np.dtype(np.float32)}


def test_remade_kernels_follow_the_registered_body(tmp_path, monkeypatch) -> None:
    scaled_sum()
    engine = dovetail.build(sum_model(), tune=False)
    engine.save(tmp_path / "m.plan")

    def untrusted(self, target):
        raise dovetail.TrustError("no signature")

    monkeypatch.setattr("dovetail.engine.file.EngineFile.trusted", untrusted)
    x = rng().standard_normal((3, 5), np.float32)
    for _ in range(2):
        loaded = dovetail.load(tmp_path / "m.plan")
        assert np.allclose(loaded.run({"x": x})["y"], wanted(x), rtol=1e-6, atol=1e-6) and group_tactics(loaded.plan)
    with own_registry():
        plain = scaled_sum(replace=True)
        plain.bodies.clear()
        loaded = dovetail.load(tmp_path / "m.plan")
        assert not group_tactics(loaded.plan), "the cache of remade plans knows the bodies"
        assert np.allclose(loaded.run({"x": x})["y"], wanted(x), rtol=1e-6, atol=1e-6)
