"""How --memory and --cache decide where rows are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.data_loading import load_data
from pipeline.cli.memory_options import allowed_resources, memory_options
from pipeline.config import Config, configure
from pipeline.data.dataset import Dataset
from pipeline.data.plan import Resources
from serving.io.memory import memory_limit

X = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)


def resources_of(*args: str) -> Resources:
    """Return what a command with these options is allowed."""
    found = []

    @click.command()
    @memory_options
    def command() -> None:
        found.append(allowed_resources(None))

    result = CliRunner().invoke(command, args)
    if result.exit_code:
        raise click.UsageError(result.output)
    return found[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 512 << 20), ("1.5 gb", 1_500_000_000), ("100k", 100_000)],
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert resources_of("--memory", text).memory == size
    assert resources_of("--memory", "7").memory == 7


@pytest.mark.parametrize("text", ["", "0", "much", "-1GB", "4XB", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not a size such as 4GB"):
        resources_of("--memory", text)


def test_by_default_the_processes_of_a_machine_share_half_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert resources_of().memory == memory_limit() // 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resources_of().memory == memory_limit() // 2 // 4
    assert resources_of("--memory", "4GB").memory == 10**9
    assert resources_of("--cache", str(tmp_path)).cache == tmp_path


def load(config: Config, memory: str, **settings: Any) -> Dataset:
    """Load data as a command with `--memory` does."""
    found = []

    @click.command()
    @memory_options
    def command() -> None:
        found.append(load_data(config, **settings))

    assert CliRunner().invoke(command, ["--memory", memory], catch_exceptions=False).exit_code == 0
    return found[0]


@dataclass
class Model:
    """What a manifest or a checkpoint tells of its data."""

    data: dict[str, Any]
    x_shape: tuple[int, ...] = (5,)
    x_dtype: str = "float32"
    seen: list[str] = field(default_factory=list)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    np.save(tmp_path / "x.npy", X)
    return configure(data=str(tmp_path / "x.npy"))


def test_data_that_exceed_the_memory_are_streamed(config: Config) -> None:
    fits, exceeds = load(config, "2000"), load(config, "1999")
    assert (fits.plan, exceeds.plan) != (None, None)
    assert fits.plan is not None
    assert exceeds.plan is not None
    assert (fits.plan.streamed, exceeds.plan.streamed) == (False, True)
    assert "streamed" not in fits.describe()
    assert exceeds.describe()["streamed"] == {"statistics_rows": 81}
    assert fits.plan.lines() == [
        "81 rows of 20 bytes to train on, in memory: 2 kB fits in the 2 kB of --memory"
    ]
    assert fits.digests() == exceeds.digests()


def test_a_model_reads_its_data_as_in_training_whatever_the_memory(config: Config) -> None:
    for memory in ("1GB", "10"):
        trained = load(config, memory)
        model = Model(trained.describe())
        again = load(config, "1GB" if memory == "10" else "10", model=model)
        assert again.describe() == trained.describe()
        assert again.plan is not None
        assert "as in the training" in again.plan.lines()[0]


def test_the_plan_is_told_in_lines_and_params(config: Config) -> None:
    plan = load(config, "1kB").plan
    assert plan is not None
    assert plan.lines() == [
        "81 rows of 20 bytes to train on, streamed: 2 kB exceeds the 1 kB of --memory",
        "held out: 9 rows to validate and 10 to test, in memory",
        "shuffle: each epoch in a new order of all rows",
        "scaling, output bias and ranges of int8: from all rows, 81 training rows",
    ]
    assert plan.params() == {
        "plan.rows": 81,
        "plan.bytes": 81 * 20,
        "plan.memory": 1000,
        "plan.streamed": True,
        "plan.shuffle": "rows",
        "plan.statistics_rows": 81,
        "plan.cached": False,
    }
