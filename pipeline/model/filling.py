"""What fills the gaps of a row: means of numbers, modes of words, medians of words of numbers.

In: the parameters of some draws of z, the weights of these, (batch, num_samples), which sum to 1 in
each row, and rows `x` (batch, columns) with NaN in their gaps. Numbers and words stand as they do
inside of `Mixed`, numbers first; either is None if the table has none.
"""

from typing import cast

import torch
from torch import Tensor

from pipeline.model.inversion import Drawn
from pipeline.model.mixed import Mixed
from pipeline.model.remainder import Remainder
from pipeline.model.word_columns import Words


def fill(px: Mixed, params: Tensor, weights: Tensor, x: Tensor) -> Drawn:
    """Return every cell as the draws and the rest of its row tell it, (batch, columns).

    Means are within the range of training.
    """
    means, shares = expect(px, params, weights)
    if px.remainder is not None:
        numbers, words = px.remainder(filled_row(px, px.remainder, x, means, shares))
        if means is not None:
            means = (means + numbers).maximum(px.remainder.low).minimum(px.remainder.high)
        shares = None if shares is None else shares + words
    drawn = [] if means is None else [Drawn(means, torch.ones_like(means))]
    if shares is not None:
        drawn.append(cast(Words, px.words).choose(shares))
    return px.join_drawn(drawn)


def expect(px: Mixed, params: Tensor, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the means of numbers and the shares of words over the draws, both (batch, …)."""
    means, shares = [], None
    gaps = torch.zeros(len(px.places) - px.reference.numbers)
    low, high = (
        px.split_columns(torch.cat([limit, gaps]).to(params.dtype))
        for limit in px.reference.limits()
    )
    limits = zip(low, high, strict=True)
    triples = zip(px.modules_of_kinds(), px.split_params(params), limits, strict=True)
    for module, own, pair in triples:
        if isinstance(module, Words):
            shares = module.shares(own, weights)
        else:
            means.append(module.impute(own, weights, pair).x)
    return torch.cat(means, -1) if means else None, shares


def filled_row(
    px: Mixed, remainder: Remainder, x: Tensor, means: Tensor | None, shares: Tensor | None
) -> Tensor:
    """Return what the `remainder` reads of rows and of what is expected in their gaps.

    That is each number as the network reads it and in standard deviations, and the share of each
    word, which is 1 or 0 in a cell that is seen.
    """
    like = means if means is not None else cast(Tensor, shares)
    x = x.index_select(-1, px.places).to(like.dtype)
    seen = ~x.isnan()
    features, done = [], 0
    parts = zip(px.modules_of_kinds(), *map(px.split_columns, (x, seen)), strict=True)
    for module, cells, known in parts:
        if isinstance(module, Words):
            hidden = (~known).to(like.dtype) @ module.members.to(like.dtype).T
            features.append(_one_hot(module, cells) + hidden * cast(Tensor, shares))
        else:
            own = slice(done, done + cells.shape[-1])
            filled = torch.where(known, cells, cast(Tensor, means)[..., own])
            features += [module.expected_inputs(filled), remainder.scale(filled, own)]
            done = own.stop
    return torch.cat(features, -1)


def left_over(
    px: Mixed, remainder: Remainder, x: Tensor, means: Tensor | None, shares: Tensor | None
) -> Tensor:
    """Return by how much means, in standard deviations, and shares are below `x`.

    (batch, outputs of the `remainder`), without meaning in gaps.
    """
    inner = x.index_select(-1, px.places)
    parts = []
    if means is not None:
        parts.append((inner[:, : px.reference.numbers].nan_to_num() - means) / remainder.unit)
    if shares is not None:
        codes = inner[:, px.reference.numbers :]
        parts.append(_one_hot(cast(Words, px.words), codes) - shares)
    return torch.cat(parts, -1)


def _one_hot(words: Words, cells: Tensor) -> Tensor:
    seen = ~cells.isnan()
    codes = words.standardize(torch.where(seen, cells, 1.0))
    return words.inputs(torch.where(seen, codes, words.gap), seen)
