"""The guides for PyTorch run as they stand."""

from pathlib import Path

import pytest

from tests.guides import runner

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"


@pytest.mark.parametrize("page", ["pytorch.md", "missing-operator.md"])
def test_guide(page: str, tmp_path: Path) -> None:
    assert runner.run(GUIDES / page, tmp_path) > 0
