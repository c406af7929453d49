"""What a method must offer to be measured: functions from tables to tables and scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """How unusual rows are; higher is more unusual.

    `rows` is (rows,). `columns` is (rows, columns) in the order of the table, where the method
    says how much each column makes a row unusual. `p_values` and `flagged` are (rows,), where the
    method says how sure it is; `flagged` is at a false discovery rate of `metrics.FDR`, and
    `held_out` is the number of held-out rows that the p-values compare with. `others` has other
    scores (rows,) that the method could rank rows by, by name.
    """

    rows: Array
    columns: Array | None = None
    p_values: Array | None = None
    flagged: NDArray[np.bool_] | None = None
    held_out: int = 0
    others: Mapping[str, Array] = field(default_factory=dict)


Scorer = Callable[[pd.DataFrame, Sequence[pd.DataFrame], int], Sequence[Scores]]
"""(train, tests, seed) -> scores of each test; it trains once."""
Imputer = Callable[[pd.DataFrame, pd.DataFrame, int], pd.DataFrame]
"""(train, test with gaps, seed) -> the test without gaps, with the same columns and rows."""
Sampler = Callable[[pd.DataFrame, int, int], pd.DataFrame]
"""(train, count, seed) -> that many new rows."""
