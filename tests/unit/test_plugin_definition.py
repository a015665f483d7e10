"""Plugins: signatures and attributes, the registry and where plugins come from, result types."""

import functools
import importlib.metadata
import logging
import math
import sys
import types

import numpy as np
import pytest

import dovetail
from dovetail.core import dims
from dovetail.core.dims import sym
from dovetail.core.dtypes import BOOL, F16, F32, F64, I64
from dovetail.core.errors import (
    ExecutionError,
    PlanFormatError,
    PluginError,
    TypeInferenceError,
    UsageError,
)
from dovetail.frontend.plugin_types import Given, result_types
from dovetail.ir.types import TensorType
from dovetail.plugins import attributes as texts
from dovetail.plugins import find, load, load_file, registered, registry, require, unregister
from dovetail.plugins.digests import digest_of
from tests.unit.plugin_models import own_registry

N, M = sym("N"), sym("M")


@pytest.fixture(autouse=True)
def _own():
    with own_registry():
        yield


def define(function=None, **options):
    """A plugin "P" of a function that takes (x, *, …)."""
    return dovetail.plugin("P", **options)(function or (lambda x: x))


def types_of(plugin, *inputs, bounds=None, **attributes):
    """Result types as (dtype, shape) for (dtype, shape) inputs or `Given`."""
    given = [g if g is None or isinstance(g, Given) else Given(TensorType(*g)) for g in inputs]
    return list(result_types(plugin, given, plugin.complete(attributes), bounds or {}))


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**62),
        1.5,
        math.inf,
        -math.inf,
        "",
        'ü "$x"',
        [],
        [1, [2, None]],
        {},
        {"a": {"b": [1.0, "x"]}},
        {"$float": 3},
        {"$a": 1, "b": 2},
    ],
)
def test_attributes_survive_as_text(value: object) -> None:
    text = texts.encode({"a": value})
    assert texts.decode(text) == {"a": value}
    assert type(texts.decode(text)["a"]) is type(value)
    assert texts.encode(texts.decode(text)) == text


def test_nan_tuples_and_numpy_scalars_become_what_plugins_get() -> None:
    assert math.isnan(texts.decode(texts.encode({"a": math.nan}))["a"])
    assert texts.decode(texts.encode({"a": (1, (2.0,)), "b": np.float32(0.5), "c": np.bool_(True)})) == {
        "a": [1, [2.0]],
        "b": 0.5,
        "c": True,
    }


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 3), np.float16),
        np.array(3.0),
        np.array([["a", "bc"]], object),
        np.arange(8, dtype=np.float32)[::2],
        np.ones(3, F16.numpy),
        np.array([True, False]),
    ],
)
def test_arrays_are_attributes(array: np.ndarray) -> None:
    found = texts.decode(texts.encode({"a": {"deep": [array]}}))["a"]["deep"][0]
    assert found.dtype == array.dtype and np.array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0


def test_decoded_lists_are_new_each_time() -> None:
    text = texts.encode({"a": [1, {"b": [2]}]})
    texts.decode(text)["a"][1]["b"].append(3)
    assert texts.decode(text) == {"a": [1, {"b": [2]}]}


@pytest.mark.parametrize("value", [object(), {1: 2}, b"x", 1j, {"a": {2, 3}}, np.zeros(2, np.complex64).tolist()])
def test_other_values_are_refused_with_where_they_are(value: object) -> None:
    with pytest.raises(UsageError, match=r"^a"):
        texts.encode({"a": value})


def test_large_arrays_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'table'.*make it an input"):
        texts.encode({"small": 1, "table": np.zeros(4 << 20, np.float32)})


def test_nesting_is_bounded() -> None:
    value: list = []
    for _ in range(100):
        value = [value]
    with pytest.raises(UsageError, match="nested"):
        texts.encode({"a": value})


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": {"$array": ["f32", [2], "AAAA"]}}', '{"a": {"$array": 3}}', '{"a": {"$float": []}}']
)
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(PlanFormatError, match="plugin attributes"):
        texts.decode(text)


def test_attributes_get_defaults_and_the_types_of_annotations() -> None:
    @dovetail.plugin("P")
    def p(x, *, depth: int, scale: float = 1.0, flag: bool = False, mode: str = "a", rest=None):
        return x

    assert p.complete({"depth": 3}) == {"depth": 3, "scale": 1.0, "flag": False, "mode": "a", "rest": None}
    found = p.complete({"depth": np.int64(3), "scale": 2, "flag": 1, "rest": (1, 2)})
    assert found["scale"] == 2.0 and type(found["scale"]) is float and found["flag"] is True and found["rest"] == [1, 2]
    for given, message in (
        ({}, "no value for the attribute 'depth'"),
        ({"depth": 1, "dept": 2}, "unknown attribute 'dept'.*one of: depth, scale, flag, mode, rest"),
        ({"depth": 1.5}, "'depth': got 1.5, expected int"),
        ({"depth": True}, "'depth': got True, expected int"),
        ({"depth": 1, "flag": 2}, "'flag': got 2, expected bool"),
        ({"depth": 1, "mode": 0}, "'mode': got 0, expected str"),
    ):
        with pytest.raises(TypeInferenceError, match=r"plugin P \(version 1\).*" + message):
            p.complete(given)


def test_any_attribute_where_the_function_says_so() -> None:
    @dovetail.plugin("P")
    def p(x, *, a: int = 1, **others):
        return x

    assert p.complete({"b": [2], "c": None}) == {"a": 1, "b": [2], "c": None}


# --- definition and registry ----------------------------------------------------------------------


def test_a_plugin_is_still_its_function() -> None:
    @dovetail.plugin("Twice", version="2", namespace="mine")
    def twice(x, *, by: int = 2):
        """x times by."""
        return x * by

    assert twice(3) == 6 and twice(np.ones(2), by=5).tolist() == [5, 5]
    assert twice.__doc__ == "x times by." and twice.__name__ == "twice" and repr(twice) == "<plugin mine::Twice (version 2)>"
    assert find("Twice", "2", "mine") is twice and find("Twice") is None and twice in registered()


def test_a_second_plugin_of_one_name_is_refused_unless_it_replaces() -> None:
    first = define()
    with pytest.raises(UsageError, match="got a second one"):
        define()
    assert find("P") is first
    second = define(replace=True)
    assert find("P") is second
    assert define(version="2") is find("P", "2") and define(namespace="n") is find("P", "1", "n")
    assert unregister("P") and not unregister("P") and find("P") is None


def test_a_missing_plugin_names_what_there_is() -> None:
    define(version="3", namespace="far")
    with pytest.raises(PluginError, match=r"P \(version 1\).*one of far::P \(version 3\)"):
        require("P")
    with pytest.raises(PluginError, match=r"Q \(version 1\).*import the module"):
        require("Q")


@pytest.mark.parametrize(
    "arguments",
    [{"name": ""}, {"name": 3}, {"name": "P", "version": 1}, {"name": "P", "tolerance": -1.0}, {"name": "P", "tolerance": math.nan}],
)
def test_names_and_tolerances_that_cannot_be(arguments: dict) -> None:
    with pytest.raises(UsageError, match="plugin"):
        dovetail.plugin(**arguments)(lambda x: x)


def test_signatures_that_mix_up_inputs_and_attributes_are_refused() -> None:
    with pytest.raises(UsageError, match="attributes stand behind a"):
        define(lambda x, depth=3: x)
    with pytest.raises(UsageError, match="signature"):
        define(3)


def test_digests_are_of_the_source_without_decorators() -> None:
    def first(x):
        return x + 1

    def other(x):
        return x + 2

    @dovetail.plugin("P", tolerance=0.1)
    def p(x):
        return x

    @dovetail.plugin("P", replace=True)
    def q(x):
        return x

    a, b = define(first, version="7"), define(other, version="8")
    assert a.digest != b.digest and p.digest != q.digest  # names are a part of the text
    namespace: dict = {}
    exec("def f(x):\n    return x + 1\ndef g(x):\n    return x + 3", namespace)
    assert define(namespace["f"], version="9").digest != define(namespace["g"], version="10").digest


def test_digests_follow_helpers_and_constants() -> None:
    def made(constant, helper):
        def function(x):
            return helper(x) + constant

        return digest_of(function)

    def one(x):
        return x

    def two(x):
        return -x

    def recursive(x):
        return recursive(x)

    def later(x):
        return defined_later(x)

    assert made(1, one) == made(1, one) and len({made(1, one), made(2, one), made(1, two), made((1, 2.0), one), made(None, one)}) == 5
    assert made(object(), one) == made(object(), one), "objects have no text"
    assert digest_of(recursive) and digest_of(later), "cells that are empty are no error"
    assert digest_of(functools.partial(one, 1)) != digest_of(functools.partial(one, 2))

    def defined_later(x):
        return x


class Callable:
    def __call__(self, x, *, k: int = 1):
        return x * k


def test_objects_that_can_be_called_are_plugins() -> None:
    p = dovetail.plugin("P")(Callable())
    assert p.digest == digest_of(Callable()) and p.complete({}) == {"k": 1}
    q = dovetail.plugin("P", version="2")(functools.partial(lambda x, *, k: x * k, k=3))
    assert q.run([np.ones(1)], q.complete({}))[0] == 3


def test_files_are_run_once_and_again_when_they_have_changed(tmp_path) -> None:
    file = tmp_path / "mine.py"
    text = "import dovetail\nCOUNT = {count}\n@dovetail.plugin('FromFile')\ndef f(x):\n    return x + {count}\n"
    file.write_text(text.format(count=1))
    (first,) = load_file(file)
    load([file, str(file)])
    assert find("FromFile") is first and first(1) == 2
    file.write_text(text.format(count=2))
    load(file)
    assert find("FromFile")(1) == 3


def test_files_that_fail_change_nothing_and_say_why(tmp_path) -> None:
    kept = define()
    (tmp_path / "bad.py").write_text("import dovetail\n@dovetail.plugin('New')\ndef f(x): return x\nraise RuntimeError('boom')\n")
    (tmp_path / "twice.py").write_text("import dovetail\n@dovetail.plugin('P')\ndef f(x): return x\n")
    with pytest.raises(PluginError, match=r"bad\.py failed \(RuntimeError: boom\)"):
        load([tmp_path / "bad.py"])
    with pytest.raises(PluginError, match=r"twice\.py failed \(UsageError: .*second one"):
        load([tmp_path / "twice.py"])
    with pytest.raises(PluginError, match="cannot be read"):
        load([tmp_path / "none.py"])
    with pytest.raises(PluginError, match="cannot be imported"):
        load(["no_such_module_of_anyone"])
    assert find("P") is kept and find("New") is None


def test_modules_are_imported_by_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_plugins_module.py").write_text("import dovetail\n@dovetail.plugin('FromModule')\ndef f(x): return -x\n")
    monkeypatch.syspath_prepend(tmp_path)
    load(["own_plugins_module"])
    assert find("FromModule")(1) == -1
    load([sys.modules["own_plugins_module"], find("FromModule")])
    unregister("FromModule")


def test_packages_are_searched_once_and_only_for_unknown_names(monkeypatch, caplog) -> None:
    asked = []

    class Point:
        name, value = "p", "package:plugins"

        def __init__(self, load):
            self.load = load

    def register_it():
        dovetail.plugin("FromPackage")(lambda x: x)

    def fail():
        raise ImportError("not for this Python")

    def entry_points(group):
        asked.append(group)
        return [Point(fail), Point(lambda: register_it), Point(lambda: types.ModuleType("m"))]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_looked", False)
    define()
    assert find("P", search=True) is not None and find("FromPackage") is None and asked == []
    with caplog.at_level(logging.WARNING, "dovetail"):
        assert find("FromPackage", search=True) is not None
    assert find("Nothing", search=True) is None and asked == ["dovetail.plugins"]
    assert "not for this Python" in caplog.text


# --- result types ---------------------------------------------------------------------------------


def test_static_types_come_from_runs_on_zeros() -> None:
    @dovetail.plugin("P")
    def p(x, i=None, *, k: int):
        return np.zeros((x.shape[0], k), np.float16), x.shape[0] > 1, [1.0, 2.0] if i is None else i

    assert types_of(p, (F32, (2, 3)), k=4) == [(F16, (2, 4)), (BOOL, ()), (F64, (2,))]
    assert types_of(p, (F32, (2, 3)), (I64, (0, 7)), k=0)[2] == (I64, (0, 7))


def test_symbolic_extents_are_explained_by_inputs() -> None:
    @dovetail.plugin("P")
    def p(x, y):
        n, m = x.shape
        return x.T, np.zeros((n * m, 5)), np.zeros((2 * n + 3, m // m)), np.zeros(y.shape[0] - 1), np.zeros(m * m)

    found = [shape for _, shape in types_of(p, (F32, (N, M)), (F32, (N + 1, 4)))]
    assert found == [(M, N), (N * M, 5), (2 * N + 3, 1), (N,), (None,)]


def test_one_symbol_twice_and_sums_are_told_apart() -> None:
    @dovetail.plugin("P")
    def p(x, y):
        return np.concatenate([x, y])

    assert types_of(p, (F32, (N, 3)), (F32, (N, 3))) == [(F32, (2 * N, 3))]
    assert types_of(p, (F32, (N, 3)), (F32, (M, 3))) == [(F32, (None, 3))]  # a sum of two symbols is left to the run
    assert types_of(p, (F32, (N, 3)), (F32, (5, 3))) == [(F32, (N + 5, 3))]


def test_extents_that_values_decide_are_left_to_the_run() -> None:
    nonzero = dovetail.plugin("P")(lambda x: np.argwhere(x != 0))
    assert types_of(nonzero, (F32, (3, 4))) == [(I64, (None, 2))]
    assert types_of(nonzero, (F32, (N, 4))) == [(I64, (None, 2))]
    unique = dovetail.plugin("P", version="2")(lambda x: np.unique(x.reshape(-1)))
    assert types_of(unique, (I64, (N,))) == [(I64, (None,))]


def test_known_contents_drive_shapes() -> None:
    reshaped = dovetail.plugin("P")(lambda x, shape: x.reshape([int(d) for d in shape]))
    contents = np.array([M, 2, N], object)
    assert types_of(reshaped, (F32, (N, 2 * M)), Given(TensorType(I64, (3,)), contents)) == [(F32, (M, 2, N))]


def test_bounds_of_symbols_hold_in_trials() -> None:
    seen = []

    @dovetail.plugin("P")
    def p(x, y):
        seen.append((x.shape[0], y.shape[0]))
        assert 3 <= x.shape[0] <= 4 and y.shape[0] >= 100
        return x

    assert types_of(p, (F32, (N,)), (F32, (M,)), bounds={"N": [3, 4, 4], "M": [100, None, None]}) == [(F32, (N,))]
    assert {n for n, _ in seen} == {3, 4}


def test_symbols_that_no_trial_can_tell_apart_are_left_to_the_run() -> None:
    p = dovetail.plugin("P")(lambda x, y: np.zeros(x.shape[0] + 1 - y.shape[0] // y.shape[0]))
    assert types_of(p, (F32, (N,)), (F32, (M,)), bounds={"N": [2, 3, 3], "M": [2, 3, 3]})[0][1][0] in (N, None)


def test_failing_trials_name_plugin_types_and_remedy() -> None:
    @dovetail.plugin("P", namespace="s")
    def p(x, *, k: int = 3):
        raise KeyError("weird")

    with pytest.raises(TypeInferenceError, match=r"s::P \(version 1\).*KeyError.*weird.*f32\[N, 2\]|f32\[N,2\].*shape rule"):
        types_of(p, (F32, (N, 2)))
    q = dovetail.plugin("P", version="2")(lambda x: np.zeros(3, np.float32 if x.shape[0] < 10 else np.int64))
    with pytest.raises(TypeInferenceError, match="different types"):
        types_of(q, (F32, (N,)))
    ragged = dovetail.plugin("P", version="4")(lambda x: ([[1], [1, 2]], x))
    with pytest.raises(TypeInferenceError, match=r"P \(version 4\): result 0 is a list"):
        types_of(ragged, (F32, (2,)))
    r = dovetail.plugin("P", version="3")(lambda x: object())
    with pytest.raises(TypeInferenceError, match="expected an array"):
        types_of(r, (F32, (2,)))


def test_trials_survive_sizes_and_values_that_the_function_refuses() -> None:
    @dovetail.plugin("P")
    def p(x, i):
        assert x.shape[0] % 2 == 0, "pairs only"
        return x[0, i], x[::2]

    assert types_of(p, (F32, (N, 2)), (I64, (3,))) == [(F32, (3,)), (F32, (None, 2))]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (lambda x, k: x, [(F32, (N, 3))]),
        (lambda x, k: (*x.shape, k), [(F32, (N, 3, 2))]),
        (lambda x, k: [*x.shape, k], [(F32, (N, 3, 2))]),
        (lambda x, k: (), [(F32, ())]),
        (lambda x, k: (x.shape, "i64"), [(I64, (N, 3))]),
        (lambda x, k: ((x.shape[0] * k,), np.bool_), [(BOOL, (2 * N,))]),
        (lambda x, k: [x, (None, k)], [(F32, (N, 3)), (F32, (None, 2))]),
        (lambda x, k: ((3, None), ((dims.maximum(N, 3),), F16)), [(F32, (3, None)), (F16, (dims.maximum(N, 3),))]),
        (lambda x, k: (x.with_dtype(I64), x), [(I64, (N, 3)), (F32, (N, 3))]),
        (lambda x, k: (np.int64(4),), [(F32, (4,))]),
        (lambda x, k: [], []),
    ],
)
def test_shape_rules_say_types_in_several_ways(rule, wanted) -> None:
    p = dovetail.plugin("P")(lambda x, *, k=2: x)
    p.shape(lambda x, *, k: rule(x, k))
    assert types_of(p, (F32, (N, 3))) == wanted


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda x, k: 3, "got 3, expected a type"),
        (lambda x, k: (-1, 2), "extents of 0 or more"),
        (lambda x, k: ("N",), "expected a type"),
        (lambda x, k: x.shape[7], "IndexError"),
        (lambda x, k: (x.shape, "f33"), "expected one of"),
        (lambda x, k: None, "expected a type"),
    ],
)
def test_shape_rules_that_say_nothing_are_refused(rule, message) -> None:
    p = dovetail.plugin("P")(lambda x, *, k=2: x)
    p.shape(lambda x, *, k: rule(x, k))
    with pytest.raises(TypeInferenceError, match=r"plugin P \(version 1\): its shape rule.*" + message):
        types_of(p, (F32, (N, 3)))


# --- running --------------------------------------------------------------------------------------


def test_functions_get_read_only_arrays_and_give_arrays() -> None:
    p = dovetail.plugin("P")(lambda x: (x.sum(), "text", [True, False], x))
    total, text, flags, same = p.run([np.ones((2, 3), np.float32)], {})
    assert total.shape == () and total.dtype == np.float32 and text.dtype == object and flags.dtype == np.bool_ and same.shape == (2, 3)

    def overwrite(x):
        x += 1
        return x

    array = np.zeros(3)
    with pytest.raises(ExecutionError, match=r"plugin P \(version 2\) failed \(ValueError: .*read-only"):
        define(overwrite, version="2").run([array], {})
    assert array.tolist() == [0, 0, 0] and array.flags.writeable


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ((np.zeros((2, 3), np.float32),), ""),
        ((np.zeros((2, 9), np.float32),), ""),
        ((np.zeros((3, 3), np.float32),), r"f32\[3, 3\].*expected f32\[2, any\]"),
        ((np.zeros((2, 3)),), r"f64\[2, 3\]"),
        ((np.zeros(2, np.float32),), r"f32\[2\]"),
        ((), "got 0 results, expected the 1"),
    ],
)
def test_promises_are_checked(results, message) -> None:
    p = define()
    if not message:
        return p.check_promise(results, ((F32, (2, None)),))
    with pytest.raises(ExecutionError, match=r"plugin P \(version 1\).*" + message + ".*shape rule"):
        p.check_promise(results, ((F32, (2, None)),))


def test_numbers_of_inputs_are_checked() -> None:
    p = define(lambda x, y, z=None: x)
    p.check_inputs(2)
    p.check_inputs(3)
    define(lambda *xs: xs[0], version="2").check_inputs(17)
    for count, absent, message in (
        (1, (), "no input 1 .y."),
        (4, (), "got 4 inputs, expected at most 3 .x, y, z."),
        (3, (0,), "no input 0"),
    ):
        with pytest.raises(TypeInferenceError, match=message):
            p.check_inputs(count, absent)
