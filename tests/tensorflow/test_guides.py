"""The guide for TensorFlow runs as it stands."""

from pathlib import Path

from tests.guides import runner

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"


def test_guide(tmp_path: Path) -> None:
    assert runner.run(GUIDES / "tensorflow.md", tmp_path) > 0
