"""Score the held-out rows of a version, for the p-values of new rows and for the test of drift.

In: the model in the precision of its graphs, and its held-out rows. Out: every score of a row, as
`vae score` computes it with the seed and the number of draws of held-out rows. Of tables, the
log-likelihoods of the cells of some rows are kept, by which columns are tested for drift.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.model.operations import FUNCTIONS, Array
from pipeline.model.vae import VAE
from serving.combined_score import fit_combined
from serving.drift import SCORE_SEED, held_out_samples
from serving.noise import draw_eps
from serving.operations import Operation
from serving.p_values import HeldOutScores, smallest_lift
from serving.row_distance import RowDistance

MOST_ROWS = 10_000
MOST_CELLS, LEAST_ROWS = 200_000, 1000
"""Cells whose log-likelihood is kept, 0.8 MB, and the rows that are kept in any case."""
_DECODED_ROWS = 1024
"""Rows times draws at a time, which fit a processor's cache."""
_DECODED_VALUES = 2**20
"""Values of those at a time, so that wide rows do not fill memory."""


def score_held_out(
    model: VAE, score: Operation, x: Array, distance: RowDistance | None = None
) -> HeldOutScores:
    """Score the rows, or `MOST_ROWS` of them by a fixed random choice.

    Those of a mixed table have the score `combined` if the `distance` from its training rows is
    given. Rows with a score that is not finite are left out, as `vae score` sets them aside.
    """
    x = _choose(x, MOST_ROWS)
    model = copy.deepcopy(model).float()  # the weights of fp16 are half numbers
    num_samples = held_out_samples(mixed=model.mixed is not None)
    decoded = min(_DECODED_ROWS, _DECODED_VALUES // x[0].size)
    step = max(1, decoded // num_samples)
    parts = [
        _score(model, score, x[start : start + step], num_samples)
        for start in range(0, len(x), step)
    ]
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    finite = np.isfinite([values for values in scores.values() if values.ndim == 1]).all(0)
    scores = {name: values[finite] for name, values in scores.items()}
    if (cells := scores.pop("column_log_likelihood", None)) is not None:
        scores["column_log_likelihood"] = _choose(
            cells, max(LEAST_ROWS, MOST_CELLS // cells.shape[1])
        )
    combined = None
    if distance is not None:
        combined, scores["combined"] = fit_combined(scores["consistency"], x[finite], distance)
    return HeldOutScores(num_samples, SCORE_SEED, scores, combined)


def _choose(rows: Array, most: int) -> Array:
    """Return `most` of the rows by a fixed random choice, in their order; all if they are fewer."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


@torch.no_grad()
def _score(model: VAE, score: Operation, x: Array, num_samples: int) -> Mapping[str, Array]:
    eps = draw_eps(x, SCORE_SEED, num_samples, model.latent_dim)
    outputs = FUNCTIONS[score.label](model, torch.from_numpy(x), torch.from_numpy(eps))
    found: dict[str, Array] = {}
    for tensor, values in zip(score.outputs, outputs, strict=True):
        if tensor.shape == ("batch",):
            found[tensor.name] = values.numpy()
        elif tensor.name == "column_lift":
            found["column_max"] = smallest_lift(values.numpy())
        elif tensor.name == "column_log_likelihood":
            found[tensor.name] = values.numpy()
    return found
