"""Named arrays, as the engine takes and gives them, and their comparison byte for byte."""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def same(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name
