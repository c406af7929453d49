"""Training by a CUDA graph, in bfloat16 and from host memory: collected where there is a GPU.

None of these tests has run yet.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.cli.devices import torch_device
from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingStopped
from pipeline.evaluation.evaluate import evaluate
from pipeline.training.batches import Batch
from pipeline.training.beginning import begin_training, restore_training
from pipeline.training.cuda_graph import WARM_UP_STEPS
from pipeline.training.loop import TrainHooks, TrainResult, continue_training, train, train_step
from pipeline.training.state import read_state
from tests.mixed_tables import make_dataset
from tests.trained_models import tiny_config

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def float32() -> None:
    torch_device("cuda", 1)


def train_by_graph(dataset: Dataset, config: Config) -> tuple[TrainResult, int]:
    state = begin_training(dataset, config, "cuda")
    result = continue_training(state, dataset)
    assert state.graph is not None
    return result, state.graph.replays


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


CONFIGS: dict[str, dict[str, Any]] = {
    "schedules that change at every step": {"kl_warmup_steps": 9, "schedule": "cosine"},
    "pixels drawn at every step": {"binarize": "dynamic"},
    "several draws of noise": {"objective": "iwae", "train_samples": 3},
    "convolutions": {"model": "conv", "hidden_dims": (8, 16), "output_bias": True},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_a_graph_trains_what_eager_steps_train(images: Dataset, settings: dict[str, Any]) -> None:
    eager = train(images, tiny_config(images, epochs=3, **settings), device="cuda")
    config = tiny_config(images, epochs=3, cuda_graph=True, **settings)
    by_graph, replays = train_by_graph(images, config)
    assert replays == 3 * 5 - WARM_UP_STEPS
    torch.testing.assert_close(weights(by_graph.model), weights(eager.model), rtol=1e-2, atol=1e-3)
    assert by_graph.history[-1] == pytest.approx(eager.history[-1], rel=1e-3)


def test_sums_that_are_replaced_between_two_steps_are_counted_on(images: Dataset) -> None:
    """A state that is read, or gathered from processes, has them in other memory."""
    state = begin_training(images, tiny_config(images, epochs=1, cuda_graph=True), "cuda")
    assert state.graph is not None
    batch = Batch(torch.from_numpy(images.sample[:50]).cuda(), 50)
    counted = []
    for _ in range(WARM_UP_STEPS + 3):
        state.sums = torch.zeros(1, 3, device="cuda")
        train_step(state, batch, 100)
        counted.append(state.sums)
    assert state.graph.replays == 3
    assert all(sums[0, 0] < 0 for sums in counted)


def test_a_graph_trains_a_table_with_hidden_cells() -> None:
    rows = make_dataset(270)
    eager = train(rows, tiny_config(rows, epochs=2, likelihood="mixed"), device="cuda")
    config = tiny_config(rows, epochs=2, likelihood="mixed", cuda_graph=True)
    by_graph, replays = train_by_graph(rows, config)
    assert replays == 2 * 5 - WARM_UP_STEPS
    assert by_graph.history[-1] == pytest.approx(eager.history[-1], rel=1e-3)


def test_a_training_by_a_graph_is_resumed(images: Dataset) -> None:
    config = tiny_config(images, epochs=3, cuda_graph=True)
    whole, _ = train_by_graph(images, config)
    saved: list[bytes] = []
    state = begin_training(images, config, "cuda")
    hooks = TrainHooks(save=lambda s: saved.append(s.to_bytes()), stop=lambda: state.step == 10)
    with pytest.raises(TrainingStopped):
        continue_training(state, images, hooks)
    result = continue_training(restore_training(read_state(saved[-1]), images), images)
    assert result.history[-1] == pytest.approx(whole.history[-1], rel=1e-3)


def test_bfloat16_costs_little_on_the_gpu(images: Dataset) -> None:
    elbos = [
        evaluate(
            train(images, tiny_config(images, epochs=12, bf16=bf16), device="cuda").model,
            images.test.x,
            nll_samples=2,
            seed=0,
        ).elbo
        for bf16 in (False, True)
    ]
    assert elbos[1] >= elbos[0] - 0.3


def test_rows_that_do_not_fit_on_the_gpu_give_the_same_training(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(images, epochs=2, cuda_graph=True)
    resident, _ = train_by_graph(images, config)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    copied, replays = train_by_graph(images, config)
    assert replays == 2 * 5 - WARM_UP_STEPS
    torch.testing.assert_close(weights(copied.model), weights(resident.model))
