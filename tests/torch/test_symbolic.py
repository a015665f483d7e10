"""Translations that users register, in both of PyTorch's exporters: the same function, its arguments, its mistakes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

import dovetail
from dovetail.core.dtypes import F32
from dovetail.export import symbolic
from dovetail.export.translations import install, registered, translation_table

TARGETS = [("torchscript", 12), ("torchscript", 17), ("dynamo", 18)]


class Of(torch.nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(autouse=True)
def table():
    """No test leaves a translation behind."""
    before = registered()
    yield
    assert registered() == before


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).normal(0, 2, shape)).to(dtype)


def agree(function, exporter: str, opset: int, x: torch.Tensor, *, tolerance: float = 1e-6, build: bool = False):
    """Export, and compare PyTorch, ONNX Runtime and perhaps Dovetail at another size than the example's; gives the model."""
    model = dovetail.export.pytorch(Of(function), (x,), exporter=exporter, opset=opset, dynamic={"x": {0: "batch"}}, check=False)
    big = torch.cat([x, x.flip(0)])
    want = function(big)
    want = [t.numpy() for t in (want if isinstance(want, tuple) else (want,))]
    session = onnxruntime.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ran = session.run(None, {"x": big.numpy()})
    built = list(dovetail.build(model, verify="off").run({"x": big.numpy()}).values()) if build else ran
    for expected, *others in zip(want, ran, built, strict=True):
        for got in others:
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    return model


@pytest.mark.parametrize(("exporter", "opset"), TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_numbers_take_the_element_type_of_their_place(exporter: str, opset: int, dtype: torch.dtype) -> None:
    seen = []

    def asinh(op, x):
        seen.append((op.exporter, x.dtype.name, x.rank, x.shape[1]))
        return op.Mul(op.Sign(x), op.Log(op.Add(op.Abs(x), op.Sqrt(op.Add(op.Mul(x, x), 1.0)))))

    with symbolic("aten::asinh", opset=12).use(asinh):
        tolerance, build = (2e-2 if dtype == torch.float16 else 1e-6), dtype == torch.float32
        model = agree(torch.asinh, exporter, opset, sample(3, 4, dtype=dtype), tolerance=tolerance, build=build)
    assert seen == [(exporter, {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16"}[dtype], 2, 4)]
    assert "Asinh" not in {n.op_type for n in model.proto.graph.node}
    assert any("aten::asinh: 1 call by the translation at" in note for note in model.report.notes)


@pytest.mark.parametrize(("exporter", "opset"), TARGETS)
def test_several_results_and_python_arguments(exporter: str, opset: int) -> None:
    seen = []

    def kthvalue(op, x, k, dim, keepdim):
        seen.append((k, dim, keepdim))
        values, indices = op.TopK(x, [k], axis=dim, largest=0)
        last = [k - 1] if keepdim else k - 1
        return op.Gather(values, last, axis=dim), op.Gather(indices, last, axis=dim)

    with symbolic("aten::kthvalue", opset=11).use(kthvalue):
        agree(lambda x: tuple(torch.kthvalue(x, 2)), exporter, opset, sample(3, 5), build=True)
        agree(lambda x: torch.kthvalue(x, 3, dim=1, keepdim=True)[1], exporter, opset, sample(3, 5))
    assert seen == [(2, -1, False), (3, 1, True)]


@pytest.mark.parametrize(("exporter", "opset"), TARGETS)
def test_lists_none_text_and_element_types(exporter: str, opset: int) -> None:
    """aten::linalg_vector_norm has a number, a list or None, a flag, and an element type or None."""
    seen = []

    def norm(op, x, ord, dim, keepdim, dtype):
        seen.append((ord, dim, keepdim, dtype))
        squares = op.Mul(x, x)
        total = op.ReduceSum(squares, dim, keepdims=keepdim) if op.opset >= 13 else op.ReduceSum(squares, axes=dim, keepdims=keepdim)
        result = op.Sqrt(total)
        return result if dtype is None else op.Cast(result, to=dtype)

    with symbolic("aten::linalg_vector_norm").use(norm):
        agree(lambda x: torch.linalg.vector_norm(x, 2, [1, 2], True), exporter, opset, sample(2, 3, 4))
        agree(lambda x: torch.linalg.vector_norm(x, dim=[1], dtype=torch.float32), exporter, opset, sample(2, 3))
    assert seen == [(2, [1, 2], True, None), (2, [1], False, F32)]


def test_only_arguments_in_their_default_may_be_left_out() -> None:
    with symbolic("aten::gelu").use(lambda op, x: op.Mul(x, 0.5)):
        dovetail.export.pytorch(Of(torch.nn.functional.gelu), (sample(2, 3),), opset=18, check=False)
        with pytest.raises(dovetail.ExportError, match=r"approximate='tanh', which the function does not take"):
            dovetail.export.pytorch(Of(torch.nn.GELU("tanh")), (sample(2, 3),), opset=18, check=False)


def test_keyword_only_parameters_are_taken_by_name() -> None:
    seen = []

    def gelu(op, x, *, approximate):
        seen.append(approximate)
        return op.Identity(x)

    with symbolic("aten::gelu").use(gelu):
        dovetail.export.pytorch(Of(torch.nn.GELU("tanh")), (sample(2, 3),), opset=18, check=False)
    assert seen == ["tanh"]


@pytest.mark.parametrize(("exporter", "opset"), TARGETS)
def test_an_overload_alone(exporter: str, opset: int) -> None:
    """The translation of one overload leaves the others to PyTorch's own."""

    def largest(op, x, dim, keepdim):
        raise AssertionError("not this one")

    with symbolic("aten::max.dim").use(largest):
        agree(lambda x: torch.max(x, x * 2), exporter, opset, sample(3, 4))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_newest_registration_that_fits_the_opset(exporter: str) -> None:
    used = []

    def note(what):
        def asinh(op, x):
            used.append(what)
            return op.Asinh(x)

        return asinh

    with (
        symbolic("aten::asinh", opset=9).use(note("9")), symbolic("aten::asinh", opset=(19, 19)).use(note("19")),
        symbolic("aten::asinh", opset=20).use(note("20")),
    ):  # fmt: skip
        for opset in (18, 19, 20):
            dovetail.export.pytorch(Of(torch.asinh), (sample(2),), exporter=exporter, opset=opset, check=False)
    assert used == ["9", "19", "20"]


def test_a_second_function_is_refused_unless_it_replaces_the_first() -> None:
    def first(op, x):
        return op.Asinh(x)

    def second(op, x):
        return op.Neg(x)

    with symbolic("aten::asinh", opset=12).use(first):
        with pytest.raises(dovetail.UsageError, match=r"got a second function for opset 12 and newer .*test_symbolic.py:\d+"):
            symbolic("aten::asinh", opset=12).use(second)
        with symbolic("aten::asinh", opset=12, replace=True).use(second):
            assert translation_table(18)[torch.ops.aten.asinh.default].__name__ == "second"
        assert translation_table(18)[torch.ops.aten.asinh.default].__name__ == "first"


def test_a_cell_that_is_run_again_redefines_its_function() -> None:
    def define():
        @symbolic("aten::asinh")
        def asinh(op, x):
            return op.Asinh(x)

        return asinh

    count = len(registered())
    define()
    again = define()
    assert len(registered()) == count + 1
    again.remove()
    again.remove()
    assert len(registered()) == count


def test_the_exporter_is_as_it_was_after_an_export() -> None:
    kept = lambda g, x: g.op("Neg", x)  # noqa: E731
    torch.onnx.register_custom_op_symbolic("aten::asinh", kept, 17)
    try:
        with symbolic("aten::asinh").use(lambda op, x: op.Asinh(x)), install("torchscript", 17):
            pass
        model = dovetail.export.pytorch(Of(torch.asinh), (sample(2),), exporter="torchscript", opset=17, check=False)
        assert [n.op_type for n in model.proto.graph.node] == ["Neg"]
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::asinh", 17)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("asinh", {}, "expected a qualified name such as 'aten::asinh'"),
        ("aten::asinh", {"opset": 0}, "got opset 0"),
        ("aten::asinh", {"opset": (12, 9)}, "got opset"),
    ],
)
def test_registrations_that_make_no_sense(name: str, options: dict, said: str) -> None:
    with pytest.raises(dovetail.UsageError, match=said):
        symbolic(name, **options).use(lambda op, x: x)
    with pytest.raises(dovetail.UsageError, match="expected a function"):
        symbolic("aten::asinh").use(42)


def test_an_operator_that_pytorch_does_not_have() -> None:
    with (
        symbolic("aten::asinhh").use(lambda op, x: op.Asinh(x)),
        pytest.raises(dovetail.UsageError, match=r"aten::asinhh \(.*that PyTorch .* does not have.*the nearest are .*aten::asinh"),
    ):
        translation_table(18)
    with (
        symbolic("aten::add.Tensors").use(lambda op, x: x),
        pytest.raises(dovetail.UsageError, match=r"got the overload 'Tensors', expected one of .*Tensor"),
    ):
        translation_table(18)
    with symbolic("not_there::op").use(lambda op, x: x):
        assert not translation_table(18)


MISTAKES = [
    (lambda op, x: op.Asinhh(x), r"op.Asinhh: ONNX has no operator of that name; the nearest are Asinh"),
    (lambda op, x: op.RMSNormalization(x, x), r"op.RMSNormalization: it came with opset 23, expected an operator of opset 18"),
    (lambda op, x: op.Add(x), r"op.Add: got 1 inputs, expected 2"),
    (lambda op, x: op.Add(x, op.Cast(x, to="i64")), r"op.Add: got i64 for input 1 \(B\), expected f32"),
    (lambda op, x: op.Softmax(x, axes=1), r"op.Softmax: got the unknown attribute 'axes', expected one of: axis"),
    (lambda op, x: op.MatMul(x, np.ones((5, 5), np.float32)), r"op.MatMul: the inputs do not fit"),
    (lambda op, x: op.Mul(op.Cast(x, to="i64"), 0.5), r"op.Mul: got 0.5 for input 1 \(B\), expected i64"),
    (lambda op, x: ..., r"it returned Ellipsis as result 0, expected what op"),
    (lambda op, x: (x, x), r"it returned 2 results, expected 1"),
    (lambda op, x: 1 / 0, r"failed: ZeroDivisionError: .*test_symbolic.py:\d+\); the fault is in that function"),
    (lambda op, x: x if x else op.Neg(x), r"got a tensor where Python needs True or False"),
    (lambda op, x, y: x, r"it takes 2 arguments, expected at most those of aten::asinh: self"),
]


@pytest.mark.parametrize(
    ("exporter", "function", "said"), [("torchscript", *m) for m in MISTAKES] + [("dynamo", *m) for m in MISTAKES[::4]]
)
def test_mistakes_in_a_translation_name_it_and_its_line(exporter: str, function, said: str) -> None:
    with symbolic("aten::asinh").use(function), pytest.raises(dovetail.ExportError, match=said) as caught:
        dovetail.export.pytorch(Of(torch.asinh), (sample(2, 3),), exporter=exporter, opset=18, check=False)
    assert [f.kind for f in caught.value.failures] == ["translation"]
    if "True or False" not in said:
        assert "translation of aten::asinh (" in str(caught.value)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_absent_inputs_attributes_and_outputs_of_other_domains(exporter: str) -> None:
    def asinh(op, x):
        left, right = op("mine::Twin", x, None, 2.5, [1, 2], alpha=0.5, count=3, names=["a", "b"], table=np.ones(2, np.int64),
                         absent=None, results=[x, ("f32", x.shape)])  # fmt: skip
        return op.Add(left, right)

    with symbolic("aten::asinh").use(asinh):
        model = dovetail.export.pytorch(Of(torch.asinh), (sample(2, 3),), exporter=exporter, opset=18, check=False)
    node = next(n for n in model.proto.graph.node if n.op_type == "Twin")
    assert (node.domain, len(node.input), len(node.output)) == ("mine", 4, 2)
    assert node.input[1] == ""
    found = {a.name: dovetail_attribute(a) for a in node.attribute}
    assert found == {"alpha": 0.5, "count": 3, "names": ["a", "b"], "table": [1, 1]}
    assert {o.domain: o.version for o in model.proto.opset_import}["mine"] == 1


def dovetail_attribute(attribute):
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value).tolist()
    return [v.decode() for v in value] if isinstance(value, list) else value


def test_an_operator_that_pytorch_would_take_apart() -> None:
    """A registered operator stays whole until it is translated."""

    def inverse(op, x):
        return op("mine::Inverse", x, results=[x])

    with symbolic("aten::linalg_inv").use(inverse):
        for exporter in ("dynamo", "torchscript"):
            model = dovetail.export.pytorch(Of(torch.linalg.inv), (sample(3, 3),), exporter=exporter, opset=18, check=False)
            assert [n.op_type for n in model.proto.graph.node] == ["Inverse"]
