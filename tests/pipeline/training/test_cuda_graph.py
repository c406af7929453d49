"""What a graph of a step is fed, shown on the CPU by a graph that runs the step anew.

That a GPU replays the recorded kernels is what `tests/integration/test_cuda_training.py` shows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from pipeline.cli.main import cli
from pipeline.config import Config, configure
from pipeline.data.dataset import Dataset
from pipeline.training.beginning import begin_training
from pipeline.training.cuda_graph import (
    WARM_UP_STEPS,
    StepGraph,
    capture_on_gpu,
    check_gpu_settings,
    find_obstacle,
)
from pipeline.training.loop import TrainResult, continue_training, train
from pipeline.training.schedules import total_steps
from pipeline.training.state import read_state
from serving.errors import DeviceUnavailable, UsageRefused
from serving.mlflow_store import connect
from tests.mixed_tables import make_dataset
from tests.trained_models import tiny_config

Function = Callable[[], None]


def run_again(function: Function) -> Function:
    """Record like a GPU: the function does not run before the replay, and has fixed inputs."""
    return function


def train_by_graph(dataset: Dataset, config: Config) -> tuple[TrainResult, StepGraph]:
    state = begin_training(dataset, config, "cpu")
    state.graph = StepGraph(state.optimizer, run_again)
    return continue_training(state, dataset), state.graph


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


CONFIGS: dict[str, dict[str, Any]] = {
    "schedules that change at every step": {"kl_warmup_steps": 9, "schedule": "cosine"},
    "pixels drawn at every step": {"binarize": "dynamic"},
    "several draws of noise": {"objective": "iwae", "train_samples": 3},
    "free bits": {"free_bits": 0.1},
    "convolutions": {"model": "conv", "hidden_dims": (8, 16), "output_bias": True},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_a_training_by_a_graph_is_the_eager_one(images: Dataset, settings: dict[str, Any]) -> None:
    """270 rows in batches of 50: five whole ones, and a last one of 20, which stays eager."""
    config = tiny_config(images, epochs=3, **settings)
    by_graph, graph = train_by_graph(images, config)
    eager = train(images, config)
    assert graph.replays == 3 * 5 - WARM_UP_STEPS
    torch.testing.assert_close(weights(by_graph.model), weights(eager.model), rtol=1e-4, atol=1e-5)
    assert by_graph.history[-1] == pytest.approx(eager.history[-1], rel=1e-4)


def test_hidden_cells_of_a_table_are_drawn_outside_of_the_graph() -> None:
    rows = make_dataset(270)
    config = tiny_config(rows, epochs=2, likelihood="mixed")
    by_graph, graph = train_by_graph(rows, config)
    eager = train(rows, config).model
    assert graph.replays == 2 * 5 - WARM_UP_STEPS
    torch.testing.assert_close(weights(by_graph.model), weights(eager), rtol=1e-4, atol=1e-5)


def test_rows_of_one_batch_are_all_of_the_same_size(images: Dataset) -> None:
    config = tiny_config(images, epochs=6, batch_size=1000)
    _, graph = train_by_graph(images, config)
    assert graph.replays == 6 - WARM_UP_STEPS


def test_a_training_that_is_resumed_in_a_last_batch_records_the_whole_ones(
    images: Dataset,
) -> None:
    state = begin_training(images, tiny_config(images, epochs=3), "cpu")
    recorded: list[int] = []

    def step(rows: Tensor, *_: object) -> Tensor:
        recorded.append(len(rows))
        return rows

    def record(function: Function) -> Function:
        function()
        return function

    graph = StepGraph(state.optimizer, record)
    for size in (20, *(50,) * 5, 20):
        graph.make_step(step, torch.zeros(size, 2), torch.zeros(size, 1, 3), 0.1, 1.0)
    assert recorded == [20, 50, 50, 50, 50, 50, 50, 20]  # once more when it was recorded
    assert graph.replays == 2


def test_a_state_is_saved_as_without_a_graph(images: Dataset) -> None:
    """So that Adam's own warning about settings for graphs does not come with eager steps."""
    config = tiny_config(images, epochs=2)
    states = [begin_training(images, config, "cpu") for _ in range(2)]
    states[0].graph = StepGraph(states[0].optimizer, run_again)
    for state in states:
        continue_training(state, images)
    groups = [read_state(state.to_bytes())["optimizer"]["param_groups"][0] for state in states]
    assert groups[0] == groups[1]
    assert groups[0]["capturable"] is False


def test_what_prevents_a_graph_is_named() -> None:
    plain = configure("default", cuda_graph=True, bf16=True, binarize="dynamic")
    own = configure("default", cuda_graph=True, model="my_nets:build")
    assert find_obstacle(plain, processes=1) == ""
    assert find_obstacle(own, processes=1).startswith("networks of your own, my_nets:build, may")
    assert find_obstacle(plain, processes=2).startswith("2 processes train together")
    with pytest.raises(UsageRefused, match=r"--cuda-graph cannot be used: networks .*; use --no"):
        check_gpu_settings(replace(own, train=replace(own.train, bf16=False)), "cuda")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
@pytest.mark.parametrize("command", ["train", "run"])
def test_without_a_gpu_a_graph_is_refused_before_a_run_is_opened(
    images: Dataset, command: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [command, "--cuda-graph", "--data", images.source, "--device", device, "--threads", "1"]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, DeviceUnavailable)
    assert result.exception.exit_code == 8
    assert connect().search_runs(["0", "1"]) == []


def test_bfloat16_is_refused_on_a_gpu_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: emulated)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(DeviceUnavailable, match="Tesla V100 does not compute in bfloat16"):
        check_gpu_settings(configure("default", bf16=True), "cuda")


def test_a_step_that_cannot_be_recorded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", fail)
    with pytest.raises(
        DeviceUnavailable, match=r"recorded as a CUDA graph: operation .*; use --no"
    ):
        capture_on_gpu(lambda: None)


def test_an_eager_training_has_no_graph(images: Dataset) -> None:
    config = tiny_config(images, epochs=1)
    assert begin_training(images, config, "cpu").graph is None
    assert total_steps(270, config.train) == 6
