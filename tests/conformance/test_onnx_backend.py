"""Tier A of the ONNX backend suite, with a list of expected failures that may only shrink."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.runner import expected_failures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    # A process of its own, because the runner forks and a test worker may have threads.
    output = tmp_path_factory.mktemp("conformance") / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance.runner", "--json", str(output), "--timeout", "60"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    assert output.exists(), done.stderr
    print(done.stdout)
    return json.loads(output.read_text())


@pytest.mark.xdist_group("conformance")
class TestTierA:
    def test_nothing_crashes(self, results: list[dict]) -> None:
        assert [r["name"] for r in results if r["verdict"] in ("crash", "timeout")] == []

    def test_only_expected_failures(self, results: list[dict]) -> None:
        failed = {r["name"]: f"{r['verdict']}: {r['why']}" for r in results if r["verdict"] != "pass"}
        unexpected = {name: why for name, why in failed.items() if name not in expected_failures()}
        assert unexpected == {}

    def test_the_list_of_expected_failures_only_shrinks(self, results: list[dict]) -> None:
        passed = {r["name"] for r in results if r["verdict"] == "pass"}
        assert sorted(expected_failures() & passed) == [], "remove these from expected_failures.txt"

    def test_shares(self, results: list[dict]) -> None:
        verdicts = Counter(r["verdict"] for r in results)
        assert len(results) >= 1000
        assert verdicts["pass"] >= 0.95 * len(results)
        generated = sum(r["verdict"] == "pass" and r["generated"] for r in results)
        assert generated >= 0.6 * len(results)
