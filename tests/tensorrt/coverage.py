"""How much of TensorRT's Python API exists here, and how much of it tests observe.

A test says what it observes with `@exercises("IBuilderConfig.set_flag", ...)`, or a parameter of it with
`pytest.param(..., marks=exercises(...))`. The names are those of `names.json`. While the test runs, each claimed attribute is
watched, and a claim that the test never touches fails it (`conftest.py`). The shares are counted from the marks of
all test modules here, without running them:

    python -m tests.tensorrt.coverage [PREFIX]      # the shares, and what is missing or not exercised
"""

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt.names import LEFT_OUT

FOLDER = Path(__file__).parent
UNION: dict[str, tuple[str, str]] = json.loads((FOLDER / "names.json").read_text())
COUNTED = [name for name in UNION if name not in LEFT_OUT]


def exercises(*names: str) -> pytest.MarkDecorator:
    """Marks a test, or one parameter of it, as observing the effect of those names.

    Raises:
        ValueError: a name is not of the union.
    """
    unknown = [name for name in names if name not in UNION]
    if unknown:
        raise ValueError(f"exercises: got {unknown}, expected names of {FOLDER.name}/names.json")
    return pytest.mark.exercises(*names)


def cases(enum: str, **values: Any) -> list[Any]:
    """One parameter per member of an enum: the member and a value of the test's, claimed by that parameter alone."""
    kind = getattr(trt, enum)
    return [
        pytest.param(getattr(kind, name), value, id=name, marks=exercises(f"{enum}.{name}"))
        for name, value in values.items()
    ]


# ---- what is exposed ----


def _find(name: str) -> tuple[Any, str] | None:
    """The module or class that has the name, and the name in it; None where it is missing."""
    owner_name, _, attribute = name.rpartition(".")
    try:
        owner = importlib.import_module("dovetail.tensorrt.plugin") if owner_name == "plugin" else trt
        if owner_name not in ("", "plugin"):
            owner = getattr(trt, owner_name)
        if name == "plugin":
            importlib.import_module("dovetail.tensorrt.plugin")
        if isinstance(owner, ModuleType):
            getattr(owner, attribute)
            return owner, attribute
    except (AttributeError, ModuleNotFoundError):
        return None
    return (owner, attribute) if any(attribute in vars(base) for base in owner.__mro__ if base is not object) else None


def exposed() -> list[str]:
    """The counted names that exist."""
    return [name for name in COUNTED if _find(name) is not None]


# ---- what is exercised ----


def _claims(mark: Any) -> Iterator[str]:
    if mark.name == "exercises":
        yield from mark.args
    elif mark.name == "parametrize":
        for value in mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]:
            inner = [getattr(m, "mark", m) for m in getattr(value, "marks", ())]
            if _runs(inner):
                yield from (name for m in inner for name in _claims(m))


def _marks(of: Any) -> list[Any]:
    marks = getattr(of, "pytestmark", [])
    return [getattr(mark, "mark", mark) for mark in (marks if isinstance(marks, list) else [marks])]


def _tests(module: ModuleType) -> Iterator[list[Any]]:
    """The marks of each test of a module, those of its class and module included."""
    outer = _marks(module)
    for name, item in vars(module).items():
        if name.startswith("test") and inspect.isfunction(item):
            yield outer + _marks(item)
        elif name.startswith("Test") and inspect.isclass(item):
            tests = [f for n, f in inspect.getmembers(item, inspect.isfunction) if n.startswith("test")]
            yield from (outer + _marks(item) + _marks(test) for test in tests)


def _runs(marks: list[Any]) -> bool:
    """Whether a test with those marks runs on a machine without a GPU and is expected to pass."""
    skipped = any(mark.name == "skipif" and any(c for c in mark.args if not isinstance(c, str)) for mark in marks)
    return not skipped and not any(mark.name in ("gpu", "skip", "xfail") for mark in marks)


def exercised() -> set[str]:
    """The counted names that a test of this folder claims, of tests that run without a GPU."""
    found: set[str] = set()
    for path in sorted(FOLDER.glob("**/test_*.py")):
        try:
            module = importlib.import_module(".".join(("tests", "tensorrt", *path.relative_to(FOLDER).with_suffix("").parts)))
        except pytest.skip.Exception:
            continue  # what it needs is not installed
        for marks in _tests(module):
            if _runs(marks):
                found.update(name for mark in marks for name in _claims(mark))
    return found.intersection(COUNTED)


# ---- watching claims ----


class _Watch:
    """Stands for an attribute of a class while a test runs, and notes that it was used."""

    def __init__(self, name: str, original: Any) -> None:
        self.name = name
        self.original = original
        self.used = False
        self.is_data = hasattr(type(original), "__set__")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        self.used = True
        if instance is not None and not self.is_data and self.name in getattr(instance, "__dict__", ()):
            return instance.__dict__[self.name]
        get = getattr(type(self.original), "__get__", None)
        return get(self.original, instance, owner) if get else self.original

    def __set__(self, instance: Any, value: Any) -> None:
        self.used = True
        if self.is_data:
            self.original.__set__(instance, value)
        else:
            instance.__dict__[self.name] = value

    def __delete__(self, instance: Any) -> None:
        self.used = True
        if self.is_data:
            self.original.__delete__(instance)
        else:
            del instance.__dict__[self.name]


def watch(names: Iterable[str]) -> Callable[[], list[str]]:
    """Watches the members among some names; the result ends that and gives those that were not used.

    A method that a subclass outside the package defines counts as used: hooks are there to be overridden.
    """
    watches: list[tuple[str, type, str, _Watch, bool]] = []
    missing = []
    for name in dict.fromkeys(names):
        found = _find(name)
        if found is None:
            missing.append(name)
        elif inspect.isclass(found[0]):
            owner, attribute = found
            item = _Watch(attribute, inspect.getattr_static(owner, attribute))
            watches.append((name, owner, attribute, item, attribute in vars(owner)))
            setattr(owner, attribute, item)

    def finish() -> list[str]:
        unused = list(missing)
        for name, owner, attribute, item, own in reversed(watches):
            if own:
                setattr(owner, attribute, item.original)
            else:
                delattr(owner, attribute)
            if not item.used and not any(attribute in vars(c) for c in _foreign(owner)):
                unused.append(name)
        return unused

    return finish


def _foreign(owner: type) -> Iterator[type]:
    """The subclasses of a class, at any depth, that are not of the package."""
    for child in owner.__subclasses__():
        if not child.__module__.startswith("dovetail."):
            yield child
        yield from _foreign(child)


# ---- the report ----


def report(prefix: str | None = None) -> str:
    """The two shares; with a prefix, also the names under it that are missing or not exercised."""
    here, seen = set(exposed()), exercised()
    lines = [
        f"TensorRT API, 7.2 to 11.1: {len(COUNTED)} names and {len(UNION) - len(COUNTED)} left out; "
        f"exposed {len(here) / len(COUNTED):.1%}, exercised {len(seen & here) / len(COUNTED):.1%}"
    ]
    if prefix is not None:
        lines += [f"missing        {name}" for name in COUNTED if name.startswith(prefix) and name not in here]
        lines += [f"not exercised  {name}" for name in COUNTED if name.startswith(prefix) and name in here - seen]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(sys.argv[1] if len(sys.argv) > 1 else ""))
