"""Binarize batches: each value is the probability of a one, which is drawn anew at each step."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.training.processes import ALONE, Processes
from serving.value_range import MAX_BYTE


def binarize_batch(
    rows: Tensor,
    generator: torch.Generator,
    max_byte: int = MAX_BYTE,
    size: int | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Draw each pixel as 0 or 1 (bytes: 0 or `max_byte`); its value is the probability of 1.

    The probability of a byte is exact, byte / max_byte; that of a float is exact to 2⁻²⁴. If the
    rows are one process's share of a batch, `size` is that of the batch.
    """
    shape = (len(rows) if size is None else size, *rows.shape[1:])
    if rows.dtype == torch.uint8:
        ones = processes.own(_draw_bytes(shape, generator, max_byte)) < rows
        return ones.view(torch.uint8).mul_(max_byte)
    noise = processes.own(torch.rand(shape, generator=generator, device=rows.device))
    return (noise < rows).to(rows.dtype)


def _draw_bytes(shape: Sequence[int], generator: torch.Generator, max_byte: int) -> Tensor:
    device = generator.device
    if device.type == "cuda" or max_byte != MAX_BYTE:
        noise = torch.empty(shape, dtype=torch.uint8, device=device)
        return noise.random_(0, max_byte, generator=generator)
    # eight bytes at a time, with those that are 255 drawn again, take a third of the time
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:count]
    again = np.flatnonzero(noise.numpy() == 255)  # torch's nonzero takes ten times as long
    redrawn = torch.empty(len(again), dtype=torch.uint8).random_(0, 255, generator=generator)
    noise.numpy()[again] = redrawn.numpy()
    return noise.view(shape)
