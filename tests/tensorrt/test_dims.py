"""Shapes and permutations compare, slice, print and convert as clients expect."""

import copy
import pickle

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt.dims import as_dims, invalid
from tests.tensorrt.coverage import exercises


@exercises("Dims", "Dims.__eq__", "Dims.__len__", "Dims.__getitem__", "Dims.MAX_DIMS")
def test_a_shape_stands_in_for_a_tuple():
    dims = trt.Dims([1, 3, 224, 225])
    assert dims == (1, 3, 224, 225) == tuple(dims) and dims == [1, 3, 224, 225] and dims == trt.Dims4(1, 3, 224, 225)
    for other in ((1, 3, 224), [1, 3, 225, 224], trt.Dims((1, 3)), "1x3", None):
        assert dims != other
    assert (1, 3, 224, 225) == dims and (1, 3) != dims  # noqa: SIM300
    assert len(dims) == 4 and dims[0] == 1 and dims[-1] == 225 and list(dims) == [1, 3, 224, 225] and 224 in dims
    assert (
        dims[1:] == (3, 224, 225) and type(dims[1:]) is tuple and (7,) + dims[:1] == (7, 1) and dims[::-2] == (225, 3)
    )
    assert trt.volume(dims) == 151200 and np.zeros(dims).shape == (1, 3, 224, 225)
    assert trt.Dims.MAX_DIMS == 8 == dims.MAX_DIMS
    with pytest.raises(IndexError):
        dims[4]
    with pytest.raises(TypeError):
        hash(dims)


@exercises("Dims.__str__", "Dims.__repr__")
def test_a_shape_prints_like_a_tuple():
    assert (
        str(trt.Dims()) == "()"
        and str(trt.Dims([5])) == "(5,)"
        and f"{trt.Dims([2, -1])}" == repr(trt.Dims([2, -1])) == "(2, -1)"
    )


@exercises("Dims.__setitem__")
def test_extents_can_be_set():
    dims = trt.Dims([1, 2, 3])
    dims[-1] = np.int64(9)
    dims[:2] = trt.Dims2(7, 8)
    assert dims == (7, 8, 9) and all(type(x) is int for x in dims)
    with pytest.raises(ValueError, match="got 1 extents, expected 2"):
        dims[:2] = (1,)
    with pytest.raises(IndexError):
        dims[3] = 1
    with pytest.raises(TypeError, match=r"got 1\.5, expected an integer"):
        dims[0] = 1.5
    assert dims == (7, 8, 9)


@exercises("Dims2", "Dims3", "Dims4", "DimsHW", "DimsHW.h", "DimsHW.w")
def test_shapes_of_a_rank():
    assert trt.Dims2() == (0, 0) and trt.Dims3() == (0, 0, 0) and len(trt.Dims4()) == 4
    assert (
        trt.Dims2(3, 4)
        == trt.Dims2((3, 4))
        == trt.Dims2(dim0=3, dim1=4)
        == trt.Dims2(3, dim1=4)
        == trt.Dims2(shape=[3, 4])
        == (3, 4)
    )
    assert trt.Dims3(1, 2, 3) == trt.Dims3([1, 2, 3]) == (1, 2, 3) and trt.Dims4(dim0=1, dim1=2, dim2=3, dim3=4) == (
        1,
        2,
        3,
        4,
    )
    size = trt.DimsHW(h=5, w=6)
    size.h += 2
    size.w = 1
    assert size == (7, 1) and (size.h, size.w) == (7, 1) and isinstance(size, trt.Dims2) and isinstance(size, trt.Dims)
    for wrong in (lambda: trt.Dims2((1, 2, 3)), lambda: trt.Dims3([1]), lambda: trt.Dims4((1,) * 5)):
        with pytest.raises(ValueError, match=r"expected [234]"):
            wrong()
    for wrong in (
        lambda: trt.Dims2(1, 2, 3),
        lambda: trt.Dims2(1, w=2),
        lambda: trt.DimsHW(dim0=1, dim1=2),
        lambda: trt.Dims3(3),
        lambda: trt.Dims3(1, 2, dim1=3),
    ):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize("wrong", ["13", b"13", 3, [1, "2"], [1.0], [None]])
def test_what_is_no_shape_is_a_type_error(wrong):
    with pytest.raises(TypeError, match="Dims: got"):
        trt.Dims(wrong)
    with pytest.raises(TypeError, match=r"INetworkDefinition.add_input: shape: got .*expected up to 8 integers"):
        as_dims(wrong, "INetworkDefinition.add_input: shape")


def test_at_most_eight_extents():
    assert len(trt.Dims(range(8))) == 8
    with pytest.raises(ValueError, match="at most 8"):
        trt.Dims(range(9))
    with pytest.raises(TypeError, match="where"):
        as_dims(range(9), "where")
    assert as_dims((1, 2), "where") == (1, 2) and as_dims(np.array([3, 4]), "where") == (3, 4)
    dims = trt.Dims2(1, 2)
    assert as_dims(dims, "where") is dims


def test_an_invalid_shape_has_no_length():
    with pytest.raises(ValueError, match="should return >= 0"):
        len(invalid())
    assert invalid() != () and invalid() == invalid() and trt.Dims() == () and not invalid()
    with pytest.raises(ValueError, match="should return >= 0"):
        len(pickle.loads(pickle.dumps(invalid())))


@pytest.mark.parametrize("dims", [trt.Dims([4]), trt.Dims2(1, -1), trt.DimsHW(3, 4), trt.Permutation([1, 0])], ids=str)
def test_copies_are_apart(dims):
    for twin in (copy.copy(dims), copy.deepcopy(dims), pickle.loads(pickle.dumps(dims))):
        assert type(twin) is type(dims) and twin == dims
        twin[0] = 7
        assert dims[0] != 7


@exercises("Permutation")
def test_a_permutation_keeps_the_axes_that_it_is_not_given():
    order = trt.Permutation([2, 0, 1])
    assert (
        len(order) == 8
        and tuple(order) == (2, 0, 1, 3, 4, 5, 6, 7)
        and order[0] == 2
        and order[:3] == (2, 0, 1)
        and order[-1] == 7
    )
    assert list(trt.Permutation()) == list(range(8)) and trt.Permutation((2, 0, 1)) == order != trt.Permutation()
    order[0] = 1
    assert str(order) == "(1, 0, 1, 3, 4, 5, 6, 7)"
    with pytest.raises(ValueError, match="at most 8"):
        trt.Permutation(range(9))
    with pytest.raises(TypeError):
        trt.Permutation(["a"])
