"""Settings that every test runs under, set before any flag is read."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

_BUILD = Path(__file__).resolve().parent.parent / "build"

# A cache and a key of the checkout's own: tests neither read nor touch the user's.
os.environ.setdefault("DOVETAIL_CACHE", str(_BUILD / "test-cache"))
os.environ.setdefault("DOVETAIL_HOME", str(_BUILD / "test-home"))
os.environ.setdefault("DOVETAIL_VERIFY", "1")
# Parallel test workers, each compiling on all cores, would only queue behind each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("DOVETAIL_JOBS", "1")

# A busy machine is no failure: properties have no time limit of their own.
settings.register_profile("dovetail", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dovetail")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--exhaustive` also runs the checks of whole models that take too long for every run."""
    parser.addoption("--exhaustive", action="store_true", help="every model in every check (about half an hour)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests record as the property `summary`, in whichever worker they ran."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in report.user_properties:
                if name == "summary":
                    terminalreporter.write_line(text)


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> bool:
    """Whether every model goes through every check."""
    return bool(request.config.getoption("--exhaustive"))


@pytest.fixture(autouse=True)
def _own_random_numbers(request: pytest.FixtureRequest) -> None:
    """Seed a module's `RNG` by the test's name, so that no test depends on those before it."""
    if hasattr(request.module, "RNG"):
        seed = zlib.crc32(request.node.name.encode())
        request.module.RNG = np.random.default_rng(seed)
