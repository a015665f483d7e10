"""Tests of TensorRT's Python API: what a test claims to exercise, it must touch."""

from collections.abc import Iterator

import pytest

from tests.tensorrt.coverage import watch


def pytest_configure(config: pytest.Config) -> None:
    """The mark of `coverage.exercises`."""
    config.addinivalue_line("markers", "exercises(*names): names of TensorRT's API whose effect the test observes")


@pytest.fixture(autouse=True)
def _claims_are_touched(request: pytest.FixtureRequest) -> Iterator[None]:
    finish = watch(name for mark in request.node.iter_markers("exercises") for name in mark.args)
    yield
    unused = finish()
    assert not unused, f"claimed by @exercises but never touched: {unused}"
