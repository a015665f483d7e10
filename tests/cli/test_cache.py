"""`dovetail cache` and `dovetail doctor`."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail.cli import doctor, sizes
from dovetail.core.env import override

_DAY = 86400


@pytest.fixture
def root(tmp_path: Path):
    """A cache with three files of 1000 bytes: 40, 10 and 2 days old."""
    now = time.time()
    for name, days in [("objects/old.so", 40), ("objects/mid.so", 10), ("timings/new.json", 2)]:
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (now - days * _DAY,) * 2)
    with override(cache=tmp_path / "cache"):
        yield tmp_path / "cache"


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.rglob("*") if p.is_file())


def test_show(root: Path, call: Callable) -> None:
    data = call("cache", "show", "--json").json
    assert data["bytes"] == 3000
    assert data["sections"] == {"objects": {"files": 2, "bytes": 2000}, "timings": {"files": 1, "bytes": 1000}}
    assert "objects" in call("cache", "show").out


def test_show_of_an_empty_cache(tmp_path: Path, call: Callable) -> None:
    with override(cache=tmp_path / "none"):
        assert "empty" in call("cache", "show").out


def test_prune_by_default_takes_what_is_older_than_a_month(root: Path, call: Callable) -> None:
    assert call("cache", "prune", "--json").json["removed_files"] == 1
    assert left(root) == ["mid.so", "new.json"]


def test_prune_by_age(root: Path, call: Callable) -> None:
    call("cache", "prune", "--older-than", 5)
    assert left(root) == ["new.json"]
    assert not (root / "objects").exists()


def test_prune_by_size_takes_the_least_recently_used(root: Path, call: Callable) -> None:
    call("cache", "prune", "--max-size", "2K")
    assert left(root) == ["mid.so", "new.json"]


def test_prune_leaves_files_of_a_running_build(root: Path, call: Callable) -> None:
    (root / "objects" / "fresh.so").write_bytes(b"x")
    call("cache", "prune", "--max-size", "0")
    assert left(root) == ["fresh.so"]
    call("cache", "prune", "--all")
    assert left(root) == []


def test_prune_leaves_a_running_compiler_its_files(root: Path, call: Callable) -> None:
    for name, age in (("compile-new", 60), ("compile-old", 2 * 3600)):
        path = root / "cubins" / "sm_90" / name / "kernel.py"
        path.parent.mkdir(parents=True)
        path.write_text("x")
        os.utime(path, (time.time() - age,) * 2)
    call("cache", "prune", "--all")
    assert [p.parent.name for p in root.rglob("*") if p.is_file()] == ["compile-new"]


@pytest.mark.parametrize("text, value", [("10", 10), ("2k", 2048), ("3M", 3 << 20), ("1GB", 1 << 30)])
def test_sizes(text: str, value: int) -> None:
    assert sizes.byte_count(text) == value


def test_doctor_finds_a_working_machine(call: Callable) -> None:
    data = call("doctor", "--json").json
    assert data["healthy"] is True
    found = {f["name"]: f for f in data["findings"]}
    assert "compiles and runs a kernel" in found["compiler"]["detail"]
    assert set(doctor.REQUIRED) <= set(found)


def test_doctor_names_the_fix(call: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no_such_package_here"))
    with override(cc="/no/such/compiler", cache=tmp_path / "file" / "cache"):
        outcome = call("doctor")
    assert outcome.code == 1
    assert "pip install no_such_package_here" in outcome.out
    assert "export DOVETAIL_CACHE=" in outcome.out
