"""Words in the columns of a mixed table: categorical distributions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.model.column_units import LARGEST, Limits, Values
from pipeline.model.inversion import Drawn, draw_code
from serving.schema import Column

TINY = 1e-12
LOGIT_RANGE = 30.0
"""Largest absolute logit: no exponential or its sum leaves float32."""


class Words(nn.Module):
    """Categorical columns. The last code of each, after its words, is that of any other value.

    The columns share one axis of logits. Each column's sum is a product with a matrix of ones and
    zeros, since ONNX has no sum over unequal parts.
    """

    gap = -1.0
    code: Tensor
    starts: Tensor
    """Where the codes of each column begin."""
    members: Tensor
    places: Tensor
    own: Tensor
    """Which of `places` are not repeated."""
    number_places: Tensor
    """Where the codes of each category of numbers stand among all columns' codes, each column's
    repeated up to the widest one; from the smallest number on, (categories, codes)."""
    number_steps: Tensor
    """The next of these codes less each, (categories, codes)."""
    number_starts: Tensor
    """The code of the smallest number of each, (categories,)."""
    number_owners: Tensor
    """1 for the column of each, else 0, (categories, columns)."""
    up_to: Tensor
    """Ones on and above the diagonal, (codes, codes)."""
    writable: Tensor
    """1 for the codes that a draw or an imputation may give."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        sizes = [len(column.words) + 1 for column in columns]
        self.sizes = sizes
        self.x_width = self.params_width = sum(sizes)
        self.owners = [place for place, size in enumerate(sizes) for _ in range(size)]
        column = np.repeat(np.arange(len(sizes)), sizes)
        code = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.arange(0)
        last = np.repeat(sizes, sizes) - 1
        self._is_text = [column.type == "text" and not column.part for column in columns]
        members = column[:, None] == np.arange(len(sizes))
        # the places of each column's logits, its last one repeated up to the widest column
        widest, starts = max(sizes, default=1), np.cumsum([0, *sizes])[:-1]
        places = [
            start + np.minimum(np.arange(widest), size - 1)
            for start, size in zip(starts, sizes, strict=True)
        ]
        self.register_buffer("code", torch.from_numpy(code).float())
        self.register_buffer("starts", torch.from_numpy(starts).float(), persistent=False)
        self.register_buffer("members", torch.from_numpy(members).float(), persistent=False)
        self.register_buffer("places", torch.from_numpy(np.array(places, np.int64)))
        own = np.arange(widest) < np.array(sizes)[:, None]
        self.register_buffer("own", torch.from_numpy(own), persistent=False)
        self._add_numbers(columns, widest)
        self.register_buffer("writable", torch.from_numpy(code != last).float())

    def _add_numbers(self, columns: Sequence[Column], widest: int) -> None:
        """Set what `_median` needs of the categories whose words are numbers."""
        own = [
            place
            for place, column in enumerate(columns)
            if column.kind == "category" and column.type in ("int", "float") and not column.part
        ]
        orders = [np.argsort([float(word) for word in columns[place].words]) for place in own]
        most = max(map(len, orders), default=1)
        steps = [np.pad(np.diff(order), (0, most - len(order) + 1)) for order in orders]
        # a shorter column's codes end with that of other values, which has no share
        places = [
            np.pad(order, (0, most - len(order)), constant_values=len(order)) + place * widest
            for place, order in zip(own, orders, strict=True)
        ]
        owners = np.array(own, np.int64)[:, None] == np.arange(len(columns))
        for name, values in {
            "number_places": np.array(places, np.int64).reshape(-1, most),
            "number_steps": np.array(steps, np.float32).reshape(-1, most),
            "number_starts": np.array([order[0] for order in orders], np.float32),
            "number_owners": owners.astype(np.float32),
            "up_to": np.triu(np.ones((most, most), np.float32)),
        }.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def fit(self, columns: Sequence[Values]) -> None:
        """Set which codes stand for a value that can be written.

        The last of a column does if it is of text, and training had other words.
        """
        last = np.cumsum(self.sizes) - 1
        for place, values, size, text in zip(last, columns, self.sizes, self._is_text, strict=True):
            self.writable[place] = float(text and bool((values >= size - 1).any()))

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return the logs of the codes' shares, with one added to each count."""
        logs = []
        for values, size in zip(columns, self.sizes, strict=True):
            counts = np.bincount(np.minimum(values.astype(np.int64), size - 1), minlength=size) + 1
            logs.append(np.log(counts / counts.sum()))
        return torch.from_numpy(np.concatenate(logs)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return the code; what is no code becomes the last one."""
        last = self.members.sum(0) - 1
        codes = x.round()
        return torch.where((codes < 0) | (codes > last), last, codes)

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return one-hot codes; that of a gap is none."""
        # a product with ones and zeros repeats each column's code exactly, and is faster than to
        # gather them
        repeated = u @ self.members.to(u.dtype).T
        return (repeated == self.code).to(u.dtype)

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-probability of each code; that of a gap is without meaning.

        The softmax is over the codes of all columns, in the precision of the parameters: the scale
        that they share falls out of each column's quotient. Of all exponentials that a runtime has
        it is the fastest, and gives a row the same bytes in every batch.
        """
        shares = params.clamp(-LOGIT_RANGE, LOGIT_RANGE).softmax(-1).to(u.dtype)
        places = (self.starts + u.clamp(min=0)).long()
        chosen = shares.gather(-1, places.expand(*shares.shape[:-1], -1))
        return (chosen / (shares @ self.members.to(u.dtype))).log()

    def log_unit(self, u: Tensor) -> Tensor:
        """Return 0: codes have no unit."""
        return torch.zeros_like(u)

    def mean(self, params: Tensor) -> Tensor:
        """Return the most probable code, of those that can be written."""
        return self._of_writable(params).argmax(-1).to(params.dtype)

    def mean_gap(self, params: Tensor) -> Tensor:
        """Return how far the logit of the most probable code is above the next, (…, columns)."""
        return _gap_of_largest(torch.where(self.own, self._of_writable(params), -LARGEST))

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Draw a code by inversion, of those that can be written."""
        return draw_code(self._masses(params)[..., self.places] * self.own, noise)

    def impute(self, params: Tensor, weights: Tensor, limits: Limits) -> Drawn:
        """Return the most probable code of the mixture, or the median of numbers.

        It is one of those that can be written.
        """
        return self.choose(self.shares(params, weights))

    def shares(self, params: Tensor, weights: Tensor) -> Tensor:
        """Return the probabilities of the mixture, (batch, params_width)."""
        masses = self._masses(params)
        members = self.members.to(params.dtype)
        shares = masses / (masses @ members @ members.T)
        return (weights.unsqueeze(-1) * shares).sum(1)

    def choose(self, shares: Tensor) -> Drawn:
        """Return the code of the largest share, or the median of numbers, of those to be written.

        Shares (batch, params_width) may be off: below 0, and those of a column may not sum to 1.
        """
        low = (self.writable.to(shares.dtype) - 1) * LARGEST
        mixed = torch.where(self.own, (shares + low)[..., self.places], -LARGEST)
        code, gap = mixed.argmax(-1).to(shares.dtype), _gap_of_largest(mixed)
        if not len(self.number_places):
            return Drawn(code, gap)
        owners = self.number_owners.to(shares.dtype)
        held = mixed.clamp(min=0)
        held = held / held.sum(-1, keepdim=True).clamp(min=TINY)
        median, median_gap = self._median(held.flatten(-2))
        code, gap = (part * (1 - owners.sum(0)) for part in (code, gap))
        return Drawn(code + median @ owners, gap + median_gap @ owners)

    def _median(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the median code of each category of numbers, and how far half is from a jump.

        `shares` are (batch, columns * codes), both results (batch, categories).
        """
        dtype = shares.dtype
        share_up_to = shares[..., self.number_places] @ self.up_to.to(dtype)
        passed = (share_up_to < 0.5).to(dtype)
        code = self.number_starts.to(dtype) + (passed * self.number_steps.to(dtype)).sum(-1)
        return code, (share_up_to - 0.5).abs().amin(-1)

    def _of_writable(self, params: Tensor) -> Tensor:
        """Return the logits of each column's codes, those that cannot be written far below."""
        return (params + (self.writable - 1) * LARGEST)[..., self.places]

    def _masses(self, params: Tensor) -> Tensor:
        return params.clamp(-LOGIT_RANGE, LOGIT_RANGE).exp() * self.writable


def _gap_of_largest(values: Tensor) -> Tensor:
    """Return by how much the largest value of the last axis is above the next."""
    if values.shape[-1] == 1:
        return torch.ones_like(values[..., 0])
    largest = values.topk(2, -1).values
    return largest[..., 0] - largest[..., 1]
