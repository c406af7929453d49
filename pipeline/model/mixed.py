"""The likelihood of a mixed table: a distribution for each column, and gaps that take no part.

Rows in network units are (batch, 2 * columns): a value for each cell, 0 for a gap, then 1 for each
cell that is seen and 0 for a gap. The network reads the values of cells that are seen, and which
these are; the log-likelihood sums over them (Mattei & Frellsen, 2019, MIWAE, equation 4; Nazabal
et al., 2020, HI-VAE, section 2.2). What stands in a gap cannot change any result.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.model.cell_reference import CellReference
from pipeline.model.columns import ColumnsOfKind, Counts, Positives, Reals, Words
from serving.errors import DataRefused
from serving.schema import Kind, Schema
from serving.value_range import MAX_BYTE

Array = NDArray[Any]

_MODULES: Mapping[type[nn.Module], tuple[Kind, ...]] = {
    Reals: ("real",),
    Positives: ("positive",),
    Counts: ("count",),
    Words: ("binary", "category"),
}
"""The module of each kind, in the order of the network's inputs and outputs."""


class Part(NamedTuple):
    """A module, and where its columns are in a row."""

    module: ColumnsOfKind
    places: Tensor


class Mixed(nn.Module):
    """The columns of a schema, each with the distribution of its kind, given z independent."""

    order: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.parts = nn.ModuleDict()
        places = []
        for kind, kinds in _MODULES.items():
            own = [i for i, column in enumerate(schema.columns) if column.kind in kinds]
            if own:
                name = kind.__name__.lower()
                self.parts[name] = kind([schema.columns[i] for i in own])
                self.register_buffer(f"{name}_places", torch.tensor(own))
                places += own
        self.register_buffer("order", torch.tensor(np.argsort(places)))
        self.reference = CellReference(schema)
        self.x_width = sum(part.x_width for part in self._modules_of_kinds()) + len(schema.columns)
        self.params_width = sum(part.params_width for part in self._modules_of_kinds())

    @torch.no_grad()
    def fit(self, train: Array, max_byte: int = MAX_BYTE) -> None:
        """Set all units from the training rows, (rows, columns) with NaN for gaps."""
        columns = _values_of(train)
        for module, places in self._parts():
            module.fit([columns[i] for i in places.tolist()])
        rows = self.standardize(torch.from_numpy(train))
        self.reference.fit(self._values(rows).numpy(), self._seen(rows).numpy() > 0)

    def check(self, x: Array) -> None:
        """Refuse infinite values."""
        if np.isinf(x).any():
            raise DataRefused("a mixed likelihood needs numbers or gaps, got infinite values")

    def output_bias(self, train: Array) -> Tensor:
        """Return parameters that fit each column on its own, (params_width,)."""
        columns = _values_of(train)
        return torch.cat(
            [
                module.output_bias([columns[i] for i in places.tolist()])
                for module, places in self._parts()
            ]
        )

    def standardize(self, x: Tensor) -> Tensor:
        """Return values and which cells are seen, (batch, 2 * columns)."""
        seen = ~x.isnan()
        known = torch.where(seen, x, 1.0)  # any value that all kinds can hold
        values = [
            module.standardize(known.index_select(-1, places)) for module, places in self._parts()
        ]
        shown = seen.to(x.dtype)
        return torch.cat([self._in_order(values) * shown, shown], -1)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return what the network reads of rows, (batch, x_width)."""
        values, seen = self._values(rows), self._seen(rows)
        read = []
        for module, places in self._parts():
            shown = module.widen(seen.index_select(-1, places))
            read.append(module.inputs(values.index_select(-1, places)) * shown)
        return torch.cat([*read, seen], -1)

    def hide(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """Return rows in which the cells that `hidden` (batch, columns) marks are gaps."""
        shown = (~hidden).to(rows.dtype)
        return rows * torch.cat([shown, shown], -1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log p(x given params) in nats, summed over the cells that are seen."""
        return self.cell_log_prob(params, x).sum(-1)

    def cell_log_prob(self, params: Tensor, rows: Tensor) -> Tensor:
        """Return the log-likelihood of each cell in the data's units, 0 for a gap, (…, columns)."""
        values = self._values(rows)
        found = []
        for (module, places), own in zip(self._parts(), self._split(params), strict=True):
            u = values.index_select(-1, places)
            found.append(module.log_prob(own, u) - module.log_unit(u))
        return self._in_order(found) * self._seen(rows)

    def cell_reference(self, rows: Tensor) -> Tensor:
        """Return the log-density of each value among all rows, in the data's units, (…, columns).

        It is that of `CellReference`, and 0 for a gap.
        """
        values = self._values(rows)
        units = [
            module.log_unit(values.index_select(-1, places)) for module, places in self._parts()
        ]
        density = cast(Tensor, self.reference(values))
        return (density - self._in_order(units)) * self._seen(rows)

    def mean(self, params: Tensor) -> Tensor:
        """Return the median of a number, the mean of a count and the likeliest code of a word."""
        pairs = zip(self._modules_of_kinds(), self._split(params), strict=True)
        return self._in_order([module.mean(own) for module, own in pairs])

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Not possible yet."""
        raise NotImplementedError

    def _modules_of_kinds(self) -> list[ColumnsOfKind]:
        return [cast(ColumnsOfKind, part) for part in self.parts.values()]

    def _parts(self) -> list[Part]:
        return [
            Part(cast(ColumnsOfKind, part), getattr(self, f"{name}_places"))
            for name, part in self.parts.items()
        ]

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        return torch.split(params, [part.params_width for part in self._modules_of_kinds()], -1)

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1).index_select(-1, self.order)

    def _values(self, rows: Tensor) -> Tensor:
        return rows[..., : len(self.schema.columns)]

    def _seen(self, rows: Tensor) -> Tensor:
        return rows[..., len(self.schema.columns) :]


class CellScores(NamedTuple):
    """What the cells of a row say about it."""

    consistency: Tensor
    """Minus the log of the odds that one cell, any, was replaced, (batch,)."""
    column_log_likelihood: Tensor
    """Mean log-likelihood of each cell over the draws, (batch, columns); 0 for a gap."""
    column_lift: Tensor
    """log p(value given the rest of its row) - log p(value among all rows), (batch, columns)."""


def cell_scores(px: Mixed, cells: Tensor, rows: Tensor) -> CellScores:
    """Judge each cell by the rest of its row; `cells` are (batch, num_samples, columns).

    If p(x given z) is a product over cells, then 1 / p(cell given the others) is the mean of
    1 / p(cell given z) over q(z given x), as far as q is the posterior: the identity of
    leave-one-out predictions (Gelfand, Dey & Chang, 1992). The likelihood ratio of a row of which
    one cell, any, was drawn from the reference, to one that is as the model says, is the mean over
    cells of exp(-lift).
    """
    seen = px._seen(rows)
    top = (-cells).amax(1)
    log_mean = (-cells - top.unsqueeze(1)).exp().mean(1).log() + top
    lift = (-log_mean - px.cell_reference(rows)) * seen
    # a gap has no part in the mean; it does not enter the largest one either
    odds = torch.where(seen > 0, -lift, -LARGE)
    most = odds.amax(-1, keepdim=True)
    total = ((odds - most).exp() * seen).sum(-1)
    count = seen.sum(-1)
    mean = (total / count.clamp(min=1)).clamp(min=TINY).log() + most.squeeze(-1)
    return CellScores(torch.where(count > 0, -mean, 0.0), cells.mean(1), lift)


LARGE = 1e30
TINY = math.exp(-80)


def _values_of(train: Array) -> list[NDArray[np.float64]]:
    """Return the values of each column that are not gaps."""
    return [column[~np.isnan(column)].astype(np.float64) for column in train.T]
