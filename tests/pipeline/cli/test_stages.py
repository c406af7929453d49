"""What the stages tell before they work."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.stages import evaluate, prepare
from pipeline.config import configure
from tests.trained_models import Trained


@pytest.mark.parametrize(
    ("shape", "change"),
    [((3, 8, 8), "x.transpose(0, 2, 3, 1)"), ((1, 8, 8), "x[:, 0]"), ((8, 8, 3), "")],
    ids=["colours first", "one channel first", "colours last"],
)
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_channels_first_are_told_with_what_to_change(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: tuple[int, ...],
    change: str,
    model: str,
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    config = configure(data=str(tmp_path / "x.npy"), model=model, hidden_dims=(4,), latent_dim=2)
    prepare(config, "cpu", 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    expected = (
        f"warning: rows of {shape} look like images with their channels first, but here the last "
        f"axis holds them: if so, save {change}"
    )
    assert lines == ([expected] if change else [])


def test_the_figures_fit_the_lines_of_a_terminal(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, dataset = trained
    metrics = evaluate(checkpoint.model, dataset.test, 2, 0, "cpu", 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        f"test loss {-metrics.elbo:.2f} nats: ELBO {metrics.elbo:.2f} ± {metrics.elbo_se:.2f}, "
        f"log-likelihood {metrics.log_likelihood:.2f}, KL {metrics.kl:.2f}",
        f"NLL {metrics.nll:.2f} ± {metrics.nll_se:.2f}, {metrics.active_units} of "
        f"{checkpoint.model.latent_dim} latents active, {metrics.informative_units} informative",
        *(f"warning: {text}" for text in metrics.warnings),
    ]
    assert max(map(len, lines[:3])) <= 80
