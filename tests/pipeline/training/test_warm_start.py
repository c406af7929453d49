"""A training that starts from an earlier model is that model before its first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.model.checkpoint import Checkpoint
from pipeline.training.beginning import begin_training, restore_training
from pipeline.training.loop import TrainHooks, continue_training, mean_metrics
from pipeline.training.state import TrainState, read_state
from pipeline.training.warm_start import InitialModel, warm_start
from serving.errors import UsageRefused
from tests.trained_models import Trained, draw_images, draw_table, load, tiny_config


def begin(dataset: Dataset, checkpoint: Checkpoint | None, **settings: object) -> TrainState:
    state = begin_training(dataset, tiny_config(dataset, epochs=2, **settings), "cpu")
    if checkpoint is not None:
        initial = InitialModel(checkpoint, {"from": "models:/vae/3", "sha256": "ab"})
        warm_start(state, str(dataset.train.x.dtype), initial)
    return state


@pytest.mark.parametrize("kind", ["trained", "trained_table"], ids=["images", "table"])
def test_it_is_the_earlier_model_before_the_first_step(
    request: pytest.FixtureRequest, kind: str
) -> None:
    checkpoint, dataset = request.getfixturevalue(kind)
    state = begin(dataset, checkpoint)
    x = torch.from_numpy(dataset.test.x)
    expected = mean_metrics(checkpoint.model, x, seed=3)
    assert mean_metrics(state.model.eval(), x, seed=3) == expected
    assert mean_metrics(begin(dataset, None).model.eval(), x, seed=3) != expected
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(state.best_weights[name], value)
    assert state.origin == {"from": "models:/vae/3", "sha256": "ab"}


def test_training_improves_on_the_earlier_model(trained: Trained) -> None:
    checkpoint, dataset = trained
    x = torch.from_numpy(dataset.valid.x)
    before = mean_metrics(checkpoint.model, x, seed=0)["elbo"]
    result = continue_training(begin(dataset, checkpoint), dataset)
    cold = continue_training(begin(dataset, None), dataset)
    assert max(row["valid_elbo"] for row in result.history) > before
    assert result.history[0]["valid_elbo"] > cold.history[0]["valid_elbo"]


def test_the_seed_drives_batches_and_noise(trained: Trained) -> None:
    checkpoint, dataset = trained
    histories = {
        seed: continue_training(begin(dataset, checkpoint, seed=seed), dataset).history
        for seed in (1, 2)
    }
    again = continue_training(begin(dataset, checkpoint, seed=1), dataset).history
    assert histories[1] == again != histories[2]
    cold, warm = begin(dataset, None, seed=1), begin(dataset, checkpoint, seed=1)
    assert torch.equal(cold.generator.get_state(), warm.generator.get_state())


def test_a_resumed_one_ends_bit_for_bit_the_same(trained: Trained) -> None:
    checkpoint, dataset = trained
    whole = continue_training(begin(dataset, checkpoint), dataset)
    state, saved = begin(dataset, checkpoint), []

    def save(current: TrainState) -> None:
        saved.append(current.to_bytes())

    continue_training(state, dataset, TrainHooks(save=save))
    resumed = continue_training(restore_training(read_state(saved[0]), dataset), dataset)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"hidden_dims": (8,), "latent_dim": 2},
            r"its encoder\.hidden\.0\.weight is \(16, 30\), here it is \(8, 30\): "
            r"give --hidden-dims 16 --latent-dim 3",
            id="widths",
        ),
        pytest.param(
            {"hidden_dims": (16, 16)},
            r"its encoder\.hidden\.\d\.weight is absent, here it is \(16, 16\): "
            "give --hidden-dims 16",
            id="layers",
        ),
        pytest.param(
            {"activation": "relu"},
            "it computes something else with its weights: give --activation silu",
            id="activation",
        ),
        pytest.param(
            {"likelihood": "continuous_bernoulli"},
            "it computes something else with its weights: give --likelihood bernoulli",
            id="likelihood",
        ),
        pytest.param(
            {"model": "tests.own_nets:orthogonal"},
            r"decoder\.0 computes its weight, of which a trained model keeps the value alone",
            id="weights that torch computes",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_options_that_fit(
    trained: Trained, settings: dict[str, Any], message: str
) -> None:
    checkpoint, dataset = trained
    with pytest.raises(UsageRefused, match=f"^cannot start from models:/vae/3: {message}$"):
        begin(dataset, checkpoint, **settings)


def test_other_rows_are_refused(trained: Trained, tmp_path: Path) -> None:
    checkpoint, _ = trained
    for x, rows in (
        (draw_images(100)[:, :, :4], r"uint8 \(6, 4\)"),
        ((draw_images(100) / 255).astype(np.float32), r"float32 \(6, 5\)"),
        (draw_table(100), r"float32 \(4,\)"),
    ):
        dataset = load(tmp_path, np.ascontiguousarray(x))
        with pytest.raises(UsageRefused, match=rf"its rows are uint8 \(6, 5\), these are {rows}$"):
            begin(dataset, checkpoint)


def test_rows_in_another_range_are_refused(trained: Trained) -> None:
    checkpoint, dataset = trained
    state = begin_training(dataset, tiny_config(dataset), "cpu")
    state.model.get_buffer("likelihood.x_unit").fill_(16.0)  # as for images of 16 gray values
    initial = InitialModel(checkpoint, {"from": "bundle"})
    with pytest.raises(UsageRefused, match=r"its x_unit is 255\.0, for these rows it is 16\.0"):
        warm_start(state, "uint8", initial)


@pytest.mark.parametrize("sigma", ["fixed", "optimal"])
def test_a_gaussian_with_another_scale_is_refused(trained_table: Trained, sigma: str) -> None:
    checkpoint, dataset = trained_table
    with pytest.raises(
        UsageRefused, match=r"its likelihood\.batches is absent, here it is \(\): g"
    ):
        begin(dataset, checkpoint, sigma=sigma)


def test_a_config_without_the_setting_is_read() -> None:
    content = Config().to_json()
    del content["train"]["init_from"]
    assert Config.from_json(content) == Config()
