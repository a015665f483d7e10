"""What imports what, and how much an import costs; each in a fresh interpreter."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILE_STACK = (
    "onnx", "triton", "torch", "ziglang", "rich", "dovetail.ir", "dovetail.ops", "dovetail.codegen",
    "dovetail.frontend", "dovetail.passes", "dovetail.kernels", "dovetail.tuner", "dovetail.builder", "dovetail.api",
)  # fmt: skip


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    return set(done.stdout.split())


def test_the_runtime_loads_neither_compiler_nor_onnx() -> None:
    statement = "import pkgutil, importlib\n" + "\n".join(
        f"import dovetail.{layer}\n"
        f"for m in pkgutil.walk_packages(dovetail.{layer}.__path__, 'dovetail.{layer}.'): importlib.import_module(m.name)"
        for layer in ("runtime", "engine", "device", "core")
    )
    loaded = modules_after(statement)
    assert "dovetail.runtime" in loaded
    assert sorted(loaded & set(COMPILE_STACK)) == []


def test_importing_the_package_loads_none_of_its_layers() -> None:
    loaded = modules_after("import dovetail")
    assert {m for m in loaded if m.startswith("dovetail.")} == set()
    assert not loaded & {"numpy", "onnx", "rich"}


def test_importing_the_package_costs_a_few_modules() -> None:
    # What keeps the statement within milliseconds; a time would say more of what runs beside this test.
    assert len(modules_after("import dovetail") - modules_after("pass")) < 60


@pytest.fixture(scope="module")
def contracts() -> list[dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_every_folder_has_a_layer(contracts: list[dict]) -> None:
    listed = {name.strip() for row in contracts[0]["layers"] for name in row.split("|")}
    package = ROOT / "src" / "dovetail"
    present = {p.stem for p in package.iterdir() if (p.is_dir() and p.name != "__pycache__") or p.suffix == ".py"} - {"__init__"}
    assert present == listed


def test_import_contracts_hold(contracts: list[dict]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(contracts)} kept" in done.stdout
