"""Cells within rounding of another value are compared with nothing; all others are."""

import numpy as np
import pytest
import torch

from pipeline.export.ambiguity import doubtful_cells, settle_inputs
from pipeline.model.operations import draw_inputs, run_reference
from pipeline.model.vae import VAE
from pipeline.model.word_columns import Words
from serving.operations import operation_table
from tests.mixed_tables import SCHEMA, draw_rows
from tests.pipeline.model.test_mixed import make_model, mixed_of

ROWS = 200
COLOUR = next(i for i, column in enumerate(SCHEMA.columns) if column.name == "colour")


@pytest.fixture(scope="module")
def model() -> VAE:
    return make_model()


def table(model: VAE):  # type: ignore[no-untyped-def]
    return operation_table(model.x_shape, "float32", model.latent_dim, mixed=True)


def inputs_of(model: VAE, name: str) -> dict[str, np.ndarray]:
    return draw_inputs(table(model)[name], draw_rows(ROWS), num_samples=4, seed=3)


def noise_at_an_edge(model: VAE, inputs: dict[str, np.ndarray], row: int) -> np.float32:
    """Find by bisection the noise of a row at which its colour changes."""
    low, high = np.float32(-6), np.float32(6)

    def colour(noise: np.float32) -> float:
        one = {name: values[row : row + 1].copy() for name, values in inputs.items()}
        one["noise"][0, COLOUR] = noise
        drawn = run_reference(model, table(model)["draw"], one, torch.float64)["x"]
        return float(drawn[0, COLOUR])

    first = colour(low)
    while np.nextafter(low, high) < high:
        middle = np.float32((low + high) / 2)
        if middle in (low, high):
            break
        low, high = (middle, high) if colour(middle) == first else (low, middle)
    return low


def test_noise_at_an_edge_is_doubtful_and_gets_other_noise(model: VAE) -> None:
    draw, inputs = table(model)["draw"], inputs_of(model, "draw")
    inputs["noise"][5, COLOUR] = noise_at_an_edge(model, inputs, 5)
    doubtful = doubtful_cells(model, draw, inputs)
    assert doubtful[5, COLOUR]
    assert doubtful.mean() < 0.01
    settled, rows = settle_inputs(model, draw, inputs)
    assert rows.tolist() == list(range(ROWS))
    changed = settled["noise"] != inputs["noise"]
    np.testing.assert_array_equal(changed, doubtful)
    assert not doubtful_cells(model, draw, settled).any()
    exact, rounded = (
        run_reference(model, draw, settled, kind)["x"] for kind in (torch.float64, torch.float32)
    )
    np.testing.assert_array_equal(exact[:, COLOUR], rounded[:, COLOUR])


@pytest.mark.parametrize("name", ["decode", "reconstruct"])
def test_two_words_that_are_equally_likely_are_doubtful(name: str) -> None:
    model = make_model()
    words = mixed_of(model).parts["words"]
    assert isinstance(words, Words)
    operation, inputs = table(model)[name], inputs_of(model, name)
    _, rows = settle_inputs(model, operation, inputs)
    assert len(rows) > 0.9 * ROWS
    first = sum(part.params_width for part in mixed_of(model).modules_of_kinds()) - sum(words.sizes)
    weight, bias = model.decoder.x_params.weight, model.decoder.x_params.bias
    weight[first + 1], bias[first + 1] = weight[first], bias[first]
    weight[first : first + 2], bias[first : first + 2] = 0, 30  # above all others
    _, rows = settle_inputs(model, operation, inputs)
    assert rows.size == 0


def test_what_is_seen_is_never_doubtful(model: VAE) -> None:
    impute, inputs = table(model)["impute"], inputs_of(model, "impute")
    assert np.isnan(inputs["x"]).any()
    doubtful = doubtful_cells(model, impute, inputs)
    assert not doubtful[~np.isnan(inputs["x"])].any()


def test_nothing_is_doubtful_where_nothing_jumps(model: VAE) -> None:
    encode = table(model)["encode"]
    assert not doubtful_cells(model, encode, inputs_of(model, "encode")).any()
