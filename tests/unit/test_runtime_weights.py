"""Running plans: refit, profiles, taps, the first NaN."""

import threading

import numpy as np
import pytest

from dovetail.core.env import override
from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    RefitError,
)
from dovetail.engine.plan import (
    Guard,
    digest,
)
from tests.unit.native_engines import STEPS, F, engine, expected, ramp
from tests.unit.native_plans import (
    chain,
    plan,
    scaled,
)


@pytest.fixture(scope="module")
def simple():
    return engine(plan(chain(*STEPS)))


# --- weights --------------------------------------------------------------------------------------


def test_refit_changes_all_later_runs_and_no_earlier_result():
    weights = {"w": ramp(4)}
    tested = engine(scaled(), weights)
    context = tested.context()
    x = np.ones(8, F)
    first = context.run({"x": x})["y"]
    new = np.full(4, 5, F)
    tested.set_weights({"w": new})
    new[:] = 99  # the engine has its own copy
    np.testing.assert_array_equal(context.run({"x": x})["y"], np.full(8, 10, F))
    np.testing.assert_array_equal(first, np.tile(2 * ramp(4), 2))
    np.testing.assert_array_equal(tested.weight("w"), np.full(4, 5, F))
    with pytest.raises(ValueError, match="read-only"):
        tested.weight("w")[0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ww": ramp(4)}, "got the weight 'ww', .*did you mean 'w'"),
        ({"w": ramp(5)}, r"weight 'w': got float32 \(5,\), expected float32 \(4,\)"),
        ({"w": np.zeros(4)}, "got float64"),
    ],
)
def test_refit_is_all_or_nothing(changes, message):
    tested = engine(scaled(), {"w": ramp(4)})
    before = tested.run({"x": np.ones(8, F)})["y"]
    with pytest.raises(RefitError, match=message):
        tested.set_weights({"w": np.full(4, 7, F), **changes})
    np.testing.assert_array_equal(tested.run({"x": np.ones(8, F)})["y"], before)


def test_guarded_weights_must_keep_their_value():
    from dataclasses import replace

    guard = Guard("w", digest(ramp(4)), "Clip's bounds were read from it")
    tested = engine(replace(scaled(), guards=(guard,)), {"w": ramp(4)})
    tested.set_weights({"w": ramp(4)})
    with pytest.raises(RefitError, match="because Clip's bounds were read from it; rebuild"):
        tested.set_weights({"w": ramp(4) + 1})


def test_runs_pin_their_weights_while_others_refit():
    tested = engine(scaled(), {"w": np.ones(4, F)})
    errors, stop = [], threading.Event()

    def runner():
        context = tested.context()
        while not stop.is_set():
            y = context.run({"x": np.ones(400, F)})["y"]
            if len(set(y.tolist())) != 1:
                errors.append(set(y.tolist()))

    threads = [threading.Thread(target=runner) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(100):
        tested.set_weights({"w": np.full(4, i, F)})
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_old_weights_are_freed():
    import gc
    import weakref

    tested = engine(scaled(), {"w": np.ones(4, F)})
    tested.run({"x": np.ones(8, F)})
    old = weakref.ref(tested._weights)
    tested.set_weights({"w": np.zeros(4, F)})
    gc.collect()
    assert old() is None


def test_missing_weights_are_named():
    with pytest.raises(RefitError, match="got no 'w'"):
        engine(scaled())


# --- profiles, taps, NaN --------------------------------------------------------------------------


def test_profiles_name_steps_and_times(simple):
    outputs, records = simple.profile({"x": ramp(100_000)})
    np.testing.assert_array_equal(outputs["y"], expected(ramp(100_000)))
    assert [r.kernel for r in records] == list(STEPS)
    assert [r.origin for r in records] == [(f"node{i}",) for i in range(5)]
    assert records[0].tactic == "tactic0" and all(0 < r.nanoseconds < 1e9 for r in records)


@pytest.mark.parametrize("in_place", [False, True])
def test_taps_copy_values_between_steps(in_place):
    steps = ("k_double", "k_increment", "k_double", "k_increment")
    tested = engine(plan(chain(*steps, in_place=in_place)))
    x = ramp()
    outputs, taps = tested.tap({"x": x}, ["value0", "value2", "value3"], threads=2)
    np.testing.assert_array_equal(taps["value0"][0], 2 * x)
    np.testing.assert_array_equal(taps["value2"][0], 2 * (2 * x + 1))
    np.testing.assert_array_equal(taps["value3"][0], outputs["y"])
    np.testing.assert_array_equal(outputs["y"], tested.run({"x": x})["y"])
    with pytest.raises(BindingError, match="nowhere"):
        tested.tap({"x": x}, ["nowhere"])


def test_the_first_nan_is_named():
    tested = engine(plan(chain("k_double", "k_increment")))
    x = ramp()
    x[3] = np.nan
    with pytest.raises(ExecutionError, match="node0: got 1 NaN of 8 elements in 'value0'"):
        tested.check_nan({"x": x})
    with override(check_nan=True), pytest.raises(ExecutionError, match="node0"):
        tested.run({"x": x})
    tested.run({"x": x})
