"""`dovetail trust`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dovetail.core.env import override


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    with override(home=tmp_path / "home"):
        yield tmp_path / "home"


def test_own_key_is_listed_and_shown(call: Callable) -> None:
    own = call("trust", "list", "--json").json
    assert own["added"] == []
    shown = call("trust", "show", "--json").json
    assert shown["id"] == own["own"] and len(shown["key"]) == 64
    assert call("trust", "show").out.strip() == shown["key"]


def test_add_and_remove(call: Callable, tmp_path: Path) -> None:
    key = "ab" * 32
    identity = call("trust", "add", key, "--json").json["added"]
    assert call("trust", "list", "--json").json["added"] == [identity]
    assert call("trust", "remove", identity).code == 0
    assert call("trust", "list", "--json").json["added"] == []
    (tmp_path / "other.key").write_text(key)
    assert call("trust", "add", tmp_path / "other.key", "--json").json["added"] == identity


def test_bad_keys_are_user_errors(call: Callable) -> None:
    assert call("trust", "add", "zz").code == 1
    assert call("trust", "remove", "0123456789abcdef").code == 1


@pytest.mark.parametrize("arguments", [["add"], ["remove"], ["list", "x"], ["show", "x"]])
def test_a_key_where_none_is_wanted_is_bad_usage(arguments: list[str], call: Callable) -> None:
    assert call("trust", *arguments).code == 2
