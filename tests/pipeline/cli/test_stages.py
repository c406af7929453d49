"""What the stages tell before they work."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.stages import prepare
from pipeline.config import configure


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
