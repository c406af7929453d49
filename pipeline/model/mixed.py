"""The likelihood of a mixed table: a distribution for each column, and gaps that take no part.

Rows in network units are (batch, 2 * columns): a value for each cell, 0 for a gap, then 1 for each
cell that is seen and 0 for a gap. The network reads the values of cells that are seen, and which
these are; the log-likelihood sums over them (Mattei & Frellsen, 2019, MIWAE, equation 4; Nazabal
et al., 2020, HI-VAE, section 2.2). What stands in a gap cannot change any result.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.model.cell_reference import CellReference
from pipeline.model.column_units import Values
from pipeline.model.columns import ColumnsOfKind
from pipeline.model.count_columns import Counts
from pipeline.model.inversion import Drawn
from pipeline.model.number_columns import Positives, Reals
from pipeline.model.remainder import MAX_FEATURES, Remainder
from pipeline.model.word_columns import Words
from serving.errors import DataRefused
from serving.schema import Kind, Schema
from serving.value_range import MAX_BYTE

Array = NDArray[Any]

LARGE = 1e30
TINY = math.exp(-80)

_MODULES: Mapping[type[Reals | Positives | Counts | Words], tuple[Kind, ...]] = {
    Reals: ("real",),
    Positives: ("positive",),
    Counts: ("count",),
    Words: ("binary", "category"),
}
"""The module of each kind, in the order of the network's inputs and outputs."""


class Mixed(nn.Module):
    """The columns of a schema, each with the distribution of its kind, given z independent.

    Inside, those of one kind stand together: nothing then has to be gathered from here and there.
    """

    places: Tensor
    """The columns of the schema in the order in which they stand inside."""
    order: Tensor
    """Where each column of the schema stands inside."""
    gap: Tensor
    each: Tensor
    """The unit matrix: 1 for a column beside itself."""
    owns: Tensor
    """1 for each parameter of a column, else 0, (columns, params_width); ordered as inside."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.parts = nn.ModuleDict()
        places: list[int] = []
        self._sizes = []
        gaps: list[float] = []
        for kind, kinds in _MODULES.items():
            own = [i for i, column in enumerate(schema.columns) if column.kind in kinds]
            if own:
                module = kind([schema.columns[i] for i in own])
                self.parts[kind.__name__.lower()] = module
                self._sizes.append(len(own))
                places += own
                gaps += [module.gap] * len(own)
        self.register_buffer("places", torch.tensor(places))
        self.register_buffer("order", torch.tensor(np.argsort(places)))
        self.register_buffer("gap", torch.tensor(gaps))
        self.reference = CellReference([schema.columns[i] for i in places])
        self.remainder = self._make_remainder()
        self.x_width = sum(module.x_width for module in self.modules_of_kinds()) + len(places)
        self.params_width = sum(module.params_width for module in self.modules_of_kinds())
        # these follow from the schema, and are too large to save for thousands of columns
        self.register_buffer("each", torch.eye(len(places)), persistent=False)
        self.register_buffer("owns", self.each[:, self._find_owners()], persistent=False)

    @torch.no_grad()
    def fit(self, train: Array, max_byte: int = MAX_BYTE) -> None:
        """Set all units from the training rows, (rows, columns) with NaN for gaps."""
        for module, columns in self._training_values(train):
            module.fit(columns)
        rows = self.standardize(torch.from_numpy(train).double())  # as scores have them
        values, seen = self._split_rows(rows)
        self.reference.fit(values.numpy(), seen.numpy() > 0)

    def check(self, x: Array) -> None:
        """Refuse infinite values."""
        if np.isinf(x).any():
            raise DataRefused("a mixed likelihood needs numbers or gaps, got infinite values")

    def output_bias(self, train: Array) -> Tensor:
        """Return parameters that fit each column on its own, (params_width,)."""
        return torch.cat(
            [module.output_bias(columns) for module, columns in self._training_values(train)]
        )

    def standardize(self, x: Tensor) -> Tensor:
        """Return values and which cells are seen, (batch, 2 * columns)."""
        x = x.index_select(-1, self.places)
        seen = ~x.isnan()
        known = torch.where(seen, x, 1.0)  # any value that all kinds can hold
        pairs = zip(self.modules_of_kinds(), self.split_columns(known), strict=True)
        values = torch.cat([module.standardize(part) for module, part in pairs], -1)
        return torch.cat([torch.where(seen, values, self.gap), seen.to(x.dtype)], -1)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return what the network reads of rows, (batch, x_width)."""
        values, seen = self._split_rows(rows)
        triples = zip(
            self.modules_of_kinds(),
            self.split_columns(values),
            self.split_columns(seen),
            strict=True,
        )
        return torch.cat([*(module.inputs(u, shown) for module, u, shown in triples), seen], -1)

    def hide_each(self, rows: Tensor) -> Tensor:
        """Return each row once for each column, with that cell as a gap: (batch, columns, …).

        Copies and cells are in the order in which the columns stand inside.
        """
        values, seen = (part.unsqueeze(1) for part in self._split_rows(rows))
        own = self.each
        return torch.cat([values * (1 - own) + self.gap * own, seen * (1 - own)], -1)

    def own_params(self, params: Tensor) -> Tensor:
        """Return of each copy of `hide_each` the parameters of the cell that is hidden in it.

        `params` are (batch, columns, num_samples, params_width); the copies are left out.
        """
        return (params * self.owns.to(params.dtype).unsqueeze(1)).sum(1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log p(x given params) in nats, summed over the cells that are seen."""
        return self.cell_log_prob(params, x).sum(-1)

    def cell_log_prob(self, params: Tensor, rows: Tensor) -> Tensor:
        """Return the log-likelihood of each cell in the data's units, 0 for a gap, (…, columns).

        The columns are in the order in which they stand inside, see `in_order`.
        """
        values, seen = self._split_rows(rows)
        triples = zip(
            self.modules_of_kinds(),
            self.split_params(params),
            self.split_columns(values),
            strict=True,
        )
        found = [module.log_prob(own, u) for module, own, u in triples]
        return (torch.cat(found, -1) - self._log_units(values)) * seen

    def cell_reference(self, rows: Tensor) -> Tensor:
        """Return the log-density of each value among all rows, in the data's units, (…, columns).

        It is that of `CellReference`, and 0 for a gap; the columns stand as in `cell_log_prob`.
        """
        values, seen = self._split_rows(rows)
        density = cast(Tensor, self.reference(values.float())).to(values.dtype)
        return (density - self._log_units(values)) * seen

    def _log_units(self, values: Tensor) -> Tensor:
        pairs = zip(self.modules_of_kinds(), self.split_columns(values), strict=True)
        return torch.cat([module.log_unit(u) for module, u in pairs], -1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the median of a number, the mean of a count and the likeliest code of a word."""
        pairs = zip(self.modules_of_kinds(), self.split_params(params), strict=True)
        return self.in_order(torch.cat([module.mean(own) for module, own in pairs], -1))

    def mean_gap(self, params: Tensor) -> Tensor:
        """Return how far each word that `mean` gives is from another; see `Drawn`."""
        gaps = []
        for module, own in zip(self.modules_of_kinds(), self.split_params(params), strict=True):
            if isinstance(module, Words):
                gaps.append(module.mean_gap(own))
            else:
                gaps.append(torch.ones_like(module.mean(own)))
        return self.in_order(torch.cat(gaps, -1))

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Draw all cells, none of them a gap."""
        noise = noise.index_select(-1, self.places)
        triples = zip(
            self.modules_of_kinds(),
            self.split_params(params),
            self.split_columns(noise),
            strict=True,
        )
        return self.join_drawn(module.draw(own, part) for module, own, part in triples)

    def modules_of_kinds(self) -> list[ColumnsOfKind]:
        """Return the module of each kind that the schema has."""
        return [cast(ColumnsOfKind, part) for part in self.parts.values()]

    @property
    def words(self) -> Words | None:
        """The module of words, if the table has any."""
        return cast(Words, self.parts["words"]) if "words" in self.parts else None

    def split_params(self, params: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of each kind."""
        return torch.split(params, [part.params_width for part in self.modules_of_kinds()], -1)

    def in_order(self, columns: Tensor) -> Tensor:
        """Return columns (…, columns) that stand as they do inside in the order of the schema."""
        return columns.index_select(-1, self.order)

    def seen(self, rows: Tensor) -> Tensor:
        """Return 1 for each cell that is seen, else 0; columns as in `cell_log_prob`."""
        return self._split_rows(rows)[1]

    def _make_remainder(self) -> Remainder | None:
        words = sum(len(column.words) + 1 for column in self.schema.columns if column.words)
        numbers = self.reference.numbers
        features = 2 * numbers + words
        fits = features <= MAX_FEATURES
        return Remainder(numbers, features, numbers + words) if fits else None

    def _split_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        values, seen = rows.chunk(2, -1)
        return values, seen

    def split_columns(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the columns of each kind, of those that stand as they do inside."""
        return torch.split(values, self._sizes, -1)

    def _find_owners(self) -> list[int]:
        owners: list[int] = []
        for module in self.modules_of_kinds():
            start = max(owners, default=-1) + 1
            owners += [start + owner for owner in module.owners]
        return owners

    def join_drawn(self, drawn: Iterable[Drawn]) -> Drawn:
        """Join what each kind gives, in the order of the schema."""
        parts = zip(*drawn, strict=True)
        return Drawn(*(self.in_order(torch.cat(part, -1)) for part in parts))

    def _training_values(self, train: Array) -> Iterator[tuple[ColumnsOfKind, list[Values]]]:
        """Yield each module, and the values of its columns that are not gaps."""
        parts = self.split_columns(self.places[None])
        for module, places in zip(self.modules_of_kinds(), parts, strict=True):
            columns = (train[:, place] for place in places[0].tolist())
            yield module, [column[~np.isnan(column)].astype(np.float64) for column in columns]


class CellScores(NamedTuple):
    """What the cells of a row say about it; columns are in the order of the schema."""

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
    seen = px.seen(rows)
    top = (-cells).amax(1)
    log_mean = (-cells - top.unsqueeze(1)).exp().mean(1).log() + top
    # of the rows as the log-likelihood had them, so that a graph computes their units once
    reference = px.cell_reference(rows.unsqueeze(1)).squeeze(1)
    lift = (-log_mean - reference) * seen
    # a gap has no part in the mean; it does not enter the largest one either
    odds = torch.where(seen > 0, -lift, -LARGE)
    most = odds.amax(-1, keepdim=True)
    total = ((odds - most).exp() * seen).sum(-1)
    count = seen.sum(-1)
    mean = (total / count.clamp(min=1)).clamp(min=TINY).log() + most.squeeze(-1)
    consistency = torch.where(count > 0, -mean, 0.0)
    return CellScores(consistency, px.in_order(cells.mean(1)), px.in_order(lift))
