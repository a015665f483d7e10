"""Statistics of weights against NumPy, and what counts as suspicious."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dovetail.model import statistics as module
from dovetail.model.statistics import BINS, statistics, suspicions


@pytest.fixture(params=[7, 1 << 20])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large pieces must agree."""
    monkeypatch.setattr(module, "_CHUNK", request.param)


@pytest.mark.usefixtures("pieces")
def test_moments_and_histogram_are_those_of_numpy() -> None:
    array = np.random.default_rng(0).normal(1000.0, 0.5, (5, 11)).astype(np.float32)
    found = statistics(array)
    wide = array.astype(np.float64)
    assert found["mean"] == pytest.approx(wide.mean(), rel=1e-12) and found["std"] == pytest.approx(wide.std(), rel=1e-9)
    assert found["rms"] == pytest.approx(np.sqrt((wide**2).mean()), rel=1e-12)
    assert (found["min"], found["max"]) == (wide.min(), wide.max())
    assert found["histogram"] == np.histogram(wide, BINS)[0].tolist()


@pytest.mark.usefixtures("pieces")
def test_odd_values_are_counted_and_left_out_of_the_moments() -> None:
    array = np.array([1, -2, 0, np.nan, np.inf, -np.inf, np.nan, 1e-40, -1e-41, 70000, -65504, 1e-9, 2.0**-25, 2.0**-24], np.float32)
    found = statistics(array)
    assert {k: found[k] for k in ("nan", "inf", "zeros", "denormal", "beyond_fp16", "below_fp16")} == {
        "nan": 2, "inf": 2, "zeros": 1, "denormal": 2, "beyond_fp16": 1, "below_fp16": 4,
    }  # fmt: skip
    with np.errstate(over="ignore"):
        finite = array[np.isfinite(array)]
        assert found["below_fp16"] == int(((finite != 0) & (finite.astype(np.float16) == 0)).sum())
        assert found["beyond_fp16"] == int(np.isinf(finite.astype(np.float16)).sum())
    assert found["max"] == 70000 and found["min"] == -65504
    assert found["abs_min_nonzero"] == pytest.approx(1e-41, rel=1e-3)
    assert sum(found["histogram"]) == 10


def test_nothing_finite_has_no_moments() -> None:
    found = statistics(np.array([np.nan, np.inf], np.float32))
    assert found["mean"] is None and found["nan"] == 1 and found["inf"] == 1 and sum(found["histogram"]) == 0
    assert statistics(np.empty((0, 3), np.float32))["min"] is None
    assert statistics(np.array(["a"], object))["histogram"] is None


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_denormals_are_those_of_the_arrays_own_type(kind: Any) -> None:
    tiny = float(ml_dtypes.finfo(kind).smallest_normal)
    array = np.array([tiny, tiny / 2, -tiny / 2, 0, 1], np.float64).astype(kind)
    assert statistics(array)["denormal"] == 2


def test_histograms_of_extremes_do_not_overflow() -> None:
    largest = np.finfo(np.float64).max
    assert sum(statistics(np.array([-largest, 0.0, largest]))["histogram"]) == 3
    assert statistics(np.full((2, 3), 4.0, np.float32))["constant"] is True


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.usefixtures("pieces")
def test_dead_channels_are_found_along_any_axis(axis: int) -> None:
    array = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(np.float32)
    np.moveaxis(array, axis, 0)[2] = 0
    found = statistics(array, axis)
    assert (found["zero_channels"], found["channels"]) == (1, array.shape[axis])


def test_memory_mapped_weights_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.bin"
    np.arange(1000, dtype=np.float32).tofile(path)
    monkeypatch.setattr(module, "_CHUNK", 100)
    largest = 0
    add = module._Moments.add

    def watched(self: Any, piece: Any) -> None:
        nonlocal largest
        largest = max(largest, piece.size)
        add(self, piece)

    monkeypatch.setattr(module._Moments, "add", watched)
    found = statistics(np.memmap(path, np.float32, "r", 0, (10, 100)), 0)
    assert largest == 100 and found["mean"] == pytest.approx(499.5)


def _weight(name: str, array: np.ndarray, dtype: str = "float", axis: int | None = None) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(array.shape), **statistics(array, axis)}


def test_suspicions_name_weights_with_counts_serious_ones_first() -> None:
    rng = np.random.default_rng(2)
    plain = rng.standard_normal((8, 8)).astype(np.float32)
    bad, hot, dead = plain.copy(), plain.copy(), plain.copy()
    bad[0, :3] = np.nan
    hot[1, 1] = 1e6
    dead[3] = 0
    spiky = (rng.standard_normal((300, 300)) * 1e-2).astype(np.float32)
    spiky[0, 0] = 50
    found = suspicions([
        _weight("plain", plain), _weight("bad", bad), _weight("hot", hot), _weight("dead", dead, axis=0),
        _weight("same", np.ones((8, 8), np.float32)),
        _weight("small", np.ones((3, 3), np.float32)), _weight("bias", np.zeros(9, np.float32)), _weight("spiky", spiky),
        _weight("ids", np.full((8, 8), 10**6), "int64"),
    ])  # fmt: skip
    kinds = {s.kind: s.weights for s in found}
    assert kinds["nan"] == (("bad", 3),) and kinds["beyond_fp16"] == (("hot", 1),)
    assert kinds["zero_channels"] == (("dead", 1),)
    assert [n for n, _ in kinds["constant"]] == ["same"]
    assert kinds["outliers"] == (("spiky", 1),)
    assert [s.serious for s in found] == sorted((s.serious for s in found), reverse=True)


def test_denormals_of_narrow_types_and_a_few_tiny_values_are_ordinary() -> None:
    narrow = np.full((4, 4), 1e-6, np.float16)
    narrow[0] = 1
    assert [s.kind for s in suspicions([_weight("h", narrow, "float16")])] == []
    few = np.ones((100, 100), np.float32)
    few[0, :5] = 1e-20
    assert suspicions([_weight("few", few)]) == []
    few[1] = 1e-20
    assert [s.kind for s in suspicions([_weight("many", few)])] == ["below_fp16"]
