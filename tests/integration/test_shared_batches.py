"""Processes that share a batch compute the gradient of the whole batch."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.e2e.torchrun import torchrun
from tests.integration.shared_batches import CASES
from tests.trained_models import draw_images, draw_table

ROWS = 137  # of which 111 are left to train on


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("shared")
    np.save(folder / "images.npy", draw_images(ROWS))
    np.save(folder / "numbers.npy", draw_table(ROWS))
    words = [("red", "green", "")[i % 3] + f",{i % 7},{i / 9:.3f}" for i in range(ROWS)]
    (folder / "mixed.csv").write_text("\n".join(["colour,count,size", *words]) + "\n")
    ended = torchrun(folder, folder, program=("-m", "tests.integration.shared_batches"))
    assert ended.exit_code == 0, ended.said
    content: Mapping[str, Any] = json.loads((folder / "differences.json").read_text())
    return content


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one(differences: Mapping[str, Any], case: str) -> None:
    assert differences[case]["gradient"] <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_two_processes_sum_what_one_sums(differences: Mapping[str, Any], case: str) -> None:
    assert differences[case]["sums"] <= 1e-4


@pytest.mark.parametrize("case", sorted(set(CASES) - {"binarized"}))
def test_every_row_comes_once_in_an_epoch(differences: Mapping[str, Any], case: str) -> None:
    seen, rows = differences[case]["rows"]
    assert seen == rows
    seen, values = differences[case]["values"]
    assert seen == pytest.approx(values, rel=1e-6)
