"""Distributions of the columns of a mixed table; each module holds all columns of one kind.

A module reads the values of its columns, (…, columns), in the data's units, and writes them in
units of its own, in which they are close to 1. `log_prob` is in those units, and `log_unit` what
it takes to return to the data's; both are in the precision of the values. A gap holds `gap` in the
module's units, and is read as zeros.

In: the columns of a `Schema`. Sizes follow from it, and everything else from the training rows.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from pipeline.model.column_units import Limits, Values
from pipeline.model.inversion import Drawn


class ColumnsOfKind(Protocol):
    """The methods of a module."""

    x_width: int
    """Values that the network reads."""
    params_width: int
    """Parameters that the network gives."""
    owners: list[int]
    """The column of each parameter."""
    gap: float
    """What a gap holds."""

    def fit(self, columns: Sequence[Values]) -> None:
        """Set the units from the values of each column that are not gaps."""

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return parameters that fit each column on its own, (params_width,)."""

    def standardize(self, x: Tensor) -> Tensor:
        """Convert values to the module's units."""

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return what the network reads, (batch, x_width): zeros for a cell that is not seen."""

    def expected_inputs(self, x: Tensor) -> Tensor:
        """Return what the network would read of means in the data's units; words have none."""

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-density or log-probability of each value."""

    def log_unit(self, u: Tensor) -> Tensor:
        """Return the log of the data's units in one unit of the module at each value."""

    def mean(self, params: Tensor) -> Tensor:
        """Return the centre of each distribution in the data's units."""

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Draw values in the data's units, which grow with the standard normal noise."""

    def impute(self, params: Tensor, weights: Tensor, limits: Limits) -> Drawn:
        """Return the mean, or the mode of words, of a mixture of distributions.

        `params` are (batch, num_samples, params_width), `weights` (batch, num_samples). What stands
        beyond the `limits` of the training rows counts as if it stood there; words have none.
        """
