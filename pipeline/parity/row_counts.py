"""Which rows parity compares, and how many: fewer of a wide model, each of which has more values.

In: a model. Out: `RowCounts`. All models are compared under the same rules, settings and kinds of
rows. What grows with the model, the float64 reference first of all, is spent on fewer rows: 64
pictures of 64 by 64 in colour have as many values as 1,000 of MNIST. Tables keep all rows, since
each of their columns has weights of its own, and a single row may stand out.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.vae import VAE

Kind = Literal["held-out", "zeros", "maxima", "noise", "six sigma", "far", "denormals", "gaps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Numbers of rows, and of draws for each."""

    different: int
    """Held-out rows that differ from each other and have a reference; larger batches repeat them.
    The rules of the ELBO, of rows in reverse and of reruns are about these."""
    batches: tuple[int, ...]
    """Batch sizes of held-out rows under the setting that serves."""
    other_batches: tuple[int, ...]
    """Batch sizes of held-out rows under the other settings."""
    adversarial: tuple[int, ...]
    """Batch sizes of the other kinds of rows; other settings check the largest alone."""
    rerun: int
    """The batch that is run twice."""
    num_samples: int
    """Draws of noise for each row, where an operation takes several."""


FULL = RowCounts(
    different=1000,
    batches=(1, 2, 7, 64, 256, 1000),
    other_batches=(1, 2, 7, 64, 256, 1000),
    adversarial=(1, 7, 256),
    rerun=256,
    num_samples=3,
)
WIDE = RowCounts(
    different=64,
    batches=(1, 2, 7, 64, 1000),
    other_batches=(1, 2, 7, 64),
    adversarial=(1, 7, 16),
    rerun=64,
    num_samples=2,
)
WIDEST = replace(WIDE, batches=(1, 2, 7, 64, 256))

WIDE_FLOPS = 20e6
"""Operations, for encoding and decoding one row, above which a model is wide. The preset `conv`
needs 9 million on MNIST and 43 million on pictures of 64 by 64 in colour; `default` 2 and 25."""
LARGE_FLOPS, LARGE_ROW = 1e9, 2**15
"""Operations and values of a row above which a batch of 1,000 would take minutes or gigabytes, and
256 rows are the largest. `resnet` needs 1.5e9 for pictures of 64 by 64 in colour; those of 128 by
128 have 49,152 values."""


def choose_counts(model: VAE) -> RowCounts:
    """Return how many rows a model is compared on; it depends on the network alone."""
    if len(model.x_shape) < 2:
        return FULL
    flops = row_flops(model)
    if flops <= WIDE_FLOPS:
        return FULL
    large = flops > LARGE_FLOPS or math.prod(model.x_shape) > LARGE_ROW
    return WIDEST if large else WIDE


@torch.no_grad()
def row_flops(model: VAE) -> float:
    """Return the operations of products that encoding and decoding a row takes."""
    with FlopCounterMode(display=False) as counter:
        model.decode(model.encode(torch.zeros(2, *model.x_shape)).loc)
    return float(counter.get_total_flops()) / 2
