"""Everything in this folder needs a GPU and is skipped where there is none."""

import pytest

from dovetail.core.errors import DeviceError
from dovetail.device.cuda.driver import driver


def pytest_collection_modifyitems(items):
    mine = [item for item in items if "tests/gpu" in item.path.as_posix()]
    reason = ""
    if mine:
        try:
            driver(0)
        except DeviceError as error:
            reason = str(error)
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device():
    """The driver of the first GPU."""
    return driver(0)


@pytest.fixture(scope="session")
def torch(device):
    """PyTorch with CUDA, where it is installed."""
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module
