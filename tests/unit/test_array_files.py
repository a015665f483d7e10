"""Arrays by name in files, as the command line writes and reads them."""

from pathlib import Path

import numpy as np

from dovetail.cli.data import load_arrays, save_arrays


def test_names_and_types_come_back(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(3, dtype=np.int8), "allow_pickle": np.ones((0, 2), np.float16), "/block/0:1": np.array(True),
        "words": np.array([["a", "b c"], ["", "ä"]], object),
    }  # fmt: skip
    save_arrays(tmp_path / "new" / "x.npz", arrays)
    found = load_arrays(tmp_path / "new" / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert name == "words" or found[name].dtype == array.dtype
