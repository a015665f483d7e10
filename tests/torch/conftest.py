"""What tests with PyTorch share. Without it nothing here is collected: `make test-torch` has an environment of its own."""

import importlib.util
from collections.abc import Callable

import pytest

from tests.calling import Outcome, caller

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of packages are no failures here; ours still are."""
    for item in items:
        if item.path.parent.name == "torch":
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning:torch.*"))


@pytest.fixture(scope="session")
def vision() -> None:
    """Lets torchvision be imported beside a torch that it was not compiled for: the schemas that it misses are declared."""
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call the command line in this process."""
    return caller(capsys)
