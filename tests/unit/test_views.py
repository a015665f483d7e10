"""Views as strides agree with NumPy's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dovetail.core.dims import sym
from dovetail.core.dtypes import F32
from dovetail.ir.layout import Layout, channels_last
from dovetail.ir.types import TensorType
from dovetail.passes.views import is_channels_last, is_row_major, reshape_strides


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=0, max_size=4), st.randoms())
def test_reshape_of_a_transposed_array(shape: list[int], random: object) -> None:
    perm = list(range(len(shape)))
    random.shuffle(perm)  # type: ignore[attr-defined]
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).transpose(perm)
    flat = list(array.shape)
    random.shuffle(flat)  # type: ignore[attr-defined]
    for target in ([int(np.prod(shape))], flat, [*array.shape, 1], [d for d in array.shape if d != 1]):
        strides = reshape_strides(array.shape, [s // 8 for s in array.strides], target)
        expected = array.reshape(target)
        if strides is None:
            assert not np.shares_memory(expected, array) or array.size <= 1
        else:
            view = np.lib.stride_tricks.as_strided(array, target, [int(s) * 8 for s in strides])  # type: ignore[call-overload]
            assert np.array_equal(view, expected)


def test_symbolic_reshapes() -> None:
    n, s = sym("N"), sym("S")
    dense = (s * 768, 768, 1)
    assert reshape_strides((n, s, 768), dense, (n, s, 12, 64)) == (s * 768, 768, 64, 1)
    assert reshape_strides((n, s, 768), dense, (n * s, 768)) == (768, 1)
    swapped = (s * 768, 64, 768, 1)
    assert reshape_strides((n, 12, s, 64), swapped, (n, 12, s * 64)) is None


def test_flattening_the_pixels_of_channels_last_is_free() -> None:
    shape = (2, 768, 14, 14)
    strides = channels_last(4).strides(shape)
    assert reshape_strides(shape, strides, (2, 768, 196)) == (14 * 14 * 768, 1, 768)


def test_channels_last_at_a_pitch() -> None:
    n = sym("N")
    part = Layout((0, 2, 3, 1), pitch=96, offset=32)
    assert is_channels_last(TensorType(F32, (n, 24, 7, 7), part))
    assert is_channels_last(TensorType(F32, (n, 24, 1, 1), part))
    assert not is_channels_last(TensorType(F32, (n, 24, 7, 7)))
    assert is_row_major(TensorType(F32, (n, 24, 1, 1), channels_last(4)))
