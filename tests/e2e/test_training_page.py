"""The commands and the code of docs/training.md do what it says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import draw_images, run_vae

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
TINY = ("--epochs", "1", "--latent-dim", "3", "--nll-samples", "2", "--threads", "1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


ANY = ("--min-active-units", "0")
"""After one epoch no latent is active yet."""


@pytest.mark.slow(20)
def test_a_user_s_own_networks_go_from_training_to_the_registry(tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(blocks("python")[0])
    np.save(tmp_path / "x.npy", draw_images(200))
    command, *evaluations = [line.split() for block in blocks("sh") for line in block.splitlines()]
    assert command == ["vae", "run", "--model", "my_nets:build", "--name", "mine"]
    run = run_vae(tmp_path, *command[1:], "--data", "x.npy", "--out", "bundle", *TINY, *ANY)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["parity"], result["decision"]) == ("passed", "promoted")
    assert "likelihood bernoulli, for bytes; rows of uint8 (6, 5)" in run.stderr

    (tmp_path / "my_nets.py").unlink()  # serving does not need it
    sample = run_vae(tmp_path, "sample", "--model", "bundle", "--count", "4", "--out", "grid.png")
    assert sample.returncode == 0, sample.stderr
    without = run_vae(tmp_path, "evaluate", "bundle")
    assert without.returncode == 2
    assert "cannot import model 'my_nets:build'" in without.stderr

    (tmp_path / "my_nets.py").write_text(blocks("python")[0])
    np.save(tmp_path / "other.npy", draw_images(50)[:, ::-1])
    np.save(tmp_path / "more.npy", draw_images(100))
    for words in evaluations:
        words = [word.replace("vae@", "mine@").replace("5000", "50") for word in words[1:]]
        more = ("--model", "my_nets:build", *TINY) if words[0] == "train" else ()
        evaluated = run_vae(tmp_path, *words, *more)
        assert evaluated.returncode == 0, evaluated.stderr
        assert json.loads(evaluated.stdout.splitlines()[-1])["nll"] > 0
    assert "rows of other data" in evaluated.stderr
