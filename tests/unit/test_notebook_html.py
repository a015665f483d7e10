"""What notebooks show: well-formed, escaped, self-contained HTML."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.api.profile import summarise
from dovetail.runtime.observe import Record

EVIL = """<script>alert('1')</script>"&amp;"""


def evil_model(weight: float = 2.0) -> onnx.ModelProto:
    """A model all of whose names try to be HTML."""
    nodes = [
        helper.make_node("MatMul", [f"x{EVIL}", f"w{EVIL}"], [f"h{EVIL}"], name=f"fc{EVIL}"),
        helper.make_node("Relu", [f"h{EVIL}"], [f"y{EVIL}"], name=f"act{EVIL}"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(f"x{EVIL}", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(f"y{EVIL}", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.full((4, 4), weight, np.float32), f"w{EVIL}")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def engine() -> dovetail.Engine:
    return dovetail.build(evil_model(), verify="off", tune=False)


def text_of(html: str) -> str:
    """The text of well-formed HTML that holds nothing but plain elements, and refers to nothing."""
    root = ElementTree.fromstring(html)
    assert {e.tag for e in root.iter()} <= {
        "div", "b", "span", "table", "thead", "tbody", "tr", "td", "th", "code", "details", "summary", "ul", "li", "pre",
    }  # fmt: skip
    assert {name for e in root.iter() for name in e.attrib} <= {"style", "title"}
    styles = ";".join(e.get("style", "") for e in root.iter())
    assert "url(" not in styles and "@import" not in styles
    # Neither text nor background has a colour of its own that one of the themes would swallow.
    assert not re.search(r"(?<!-)color:(?!inherit|#2e9e5b|#d64545)", styles)
    assert set(re.findall(r"background:([^;]+)", styles)) <= {"none", "rgba(66,133,244,.6)", "rgba(128,128,128,.15)"}
    return "".join(root.itertext())


def test_engine(engine: dovetail.Engine) -> None:
    html = engine._repr_html_()
    text = text_of(html)
    assert f"x{EVIL}" in text and f"y{EVIL}" in text and "[N, 4]" in text and engine.plan.target in text and "verification: off" in text
    assert "<script" not in html


def test_report(engine: dovetail.Engine) -> None:
    text = text_of(engine.report()._repr_html_())
    assert "requested cpu fp32" in text and "kernel steps" in text and "host stepsnone" in text
    (tactic,) = engine.report().tactics
    assert tactic in text


def test_profile(engine: dovetail.Engine) -> None:
    profile = engine.profile(runs=1)
    text = text_of(profile._repr_html_())
    assert f"fc{EVIL}" in text and "by tactic" in text and "%" in text
    many = [Record((f"n{i}",), "gemm", "k", "native", 1000.0 * (i + 1)) for i in range(30)]
    text = text_of(summarise([many], 1)._repr_html_())
    assert "10 more steps" in text and "n29" in text and "n3," not in text
    assert text_of(summarise([[]], 1)._repr_html_())


def test_comparison_and_diff() -> None:
    same = dovetail.compare(evil_model(), evil_model(), layers=True)
    assert "✓ equal within 1e-04" in text_of(same._repr_html_())
    other = dovetail.compare(evil_model(), evil_model(3.0), layers=True)
    text = text_of(other._repr_html_())
    assert f"✗ first bad layer: h{EVIL}" in text and "BAD" in text
    found = dovetail.diff(evil_model(), evil_model(3.0))
    assert text_of(found._repr_html_()).endswith(str(found))


def test_values_that_are_not_finite() -> None:
    a, b = evil_model(), evil_model(float("nan"))
    assert "inf" in text_of(dovetail.compare(a, b)._repr_html_())

