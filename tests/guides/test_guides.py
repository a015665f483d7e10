"""Guides that need nothing but Dovetail run as they stand; those for PyTorch and TensorFlow run beside these packages' tests."""

from pathlib import Path

import pytest

from tests.guides import runner

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"
ELSEWHERE = {"pytorch.md": "tests/torch", "missing-operator.md": "tests/torch", "tensorflow.md": "tests/tensorflow"}


@pytest.mark.parametrize("page", sorted(p.name for p in GUIDES.glob("*.md") if p.name not in {"README.md", *ELSEWHERE}))
def test_guide(page: str, tmp_path: Path) -> None:
    assert runner.run(GUIDES / page, tmp_path) > 0


def test_guides_of_other_packages_are_run_where_these_are() -> None:
    for page, folder in ELSEWHERE.items():
        if (GUIDES / page).exists():
            assert any(page in test.read_text() for test in (ROOT / folder).glob("test_*.py")), f"{folder} runs {page}"


def test_the_runner_notices_what_a_page_gets_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text, why in (
        ("```sh\npython -c 'raise SystemExit(3)'\n```\n", "exit code 3, the page says 0"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "shows '2'"),
        ("```python\nprint('a 1.5 ms b')\n```\n\n```text\na … ms b\n```\n\n```bash\nls\n```\n", "not bash"),
    ):
        page.write_text(text)
        with pytest.raises(AssertionError, match=why):
            runner.run(page, tmp_path)
    commands = "python m.py    # prints x\npython -c 'raise SystemExit(2)'  # exit code 2"
    page.write_text(f"```python file=m.py\nprint('x')\n```\n\n```sh\n{commands}\n```\n\n```text\nx\n```\n")
    assert runner.run(page, tmp_path) == 2
