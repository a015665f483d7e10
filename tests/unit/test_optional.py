"""Optional packages: the error names the one command, and tells a missing package from a broken one."""

from pathlib import Path

import pytest

from dovetail.core.errors import UsageError
from dovetail.core.optional import require


def test_an_installed_module_is_given() -> None:
    import json.decoder

    assert require("json.decoder", "x", "reading") is json.decoder


@pytest.mark.parametrize("name", ["no_such_package_of_anyone", "no_such_package_of_anyone.part"])
def test_a_missing_package_names_the_command(name: str) -> None:
    with pytest.raises(UsageError, match=r"exporting needs no_such_package_of_anyone, .*: pip install 'dovetail\[torch\]'"):
        require(name, "torch", "exporting")


def test_a_package_that_misses_another_or_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_package_a.py").write_text("import no_such_package_of_anyone\n")
    (tmp_path / "half_a_package_b.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"half_a_package_a is installed, but what it needs itself is not: no_such_package_of_anyone"):
        require("half_a_package_a", "torch", "exporting")
    with pytest.raises(UsageError, match=r"half_a_package_b is installed, but does not import .operator nms does not exist"):
        require("half_a_package_b", "torch", "exporting")
