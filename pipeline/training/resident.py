"""Where the rows of a training are: in the memory of its device, or in the host's.

A batch costs nothing but the gathering of its rows if they are on the GPU (a copy of a byte as a
byte). Rows that do not fit there stay in host memory, and each batch is copied.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.5
"""The share of a GPU's free memory that rows may take; the networks need the rest."""


def place_rows(x: NDArray[Any], device: str) -> Tensor:
    """Return rows (rows, *x_shape) as a tensor on the device, or on the CPU if they do not fit."""
    rows = torch.from_numpy(x)
    return rows if device == "cpu" or not fits_on_gpu(x.nbytes) else rows.to(device)


def fits_on_gpu(size: int) -> bool:
    """Whether this many bytes fit in the share of the free memory of the current GPU."""
    free, _ = torch.cuda.mem_get_info()
    return size <= SHARE * free


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of these numbers, on the device of the numbers (len(indices), *x_shape)."""
    return x.index_select(0, indices.to(x.device)).to(indices.device)
