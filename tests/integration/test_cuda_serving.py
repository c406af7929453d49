"""Serving by CUDA graphs: collected where there is a GPU. None of these tests has run yet."""

from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle, open_bundle
from serving.client import Client
from serving.engine import Engine
from tests.serving.running import serve
from tests.trained_models import Trained, share_bundle

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def trained_bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return share_bundle(tmp_path_factory, "cuda_graphs", trained)


def test_graphs_give_what_runs_without_them_give(trained: Trained, trained_bundle: Bundle) -> None:
    x = trained[1].test.x
    plain = Engine(trained_bundle, device="cuda")
    graphs = Engine(trained_bundle, device="cuda", cuda_graph=True)
    graphs.self_check()
    for rows in (1, 3, 4, 5, 64, 90, 7, 1):
        for start in (0, 5):
            found = graphs.encode(x[start : start + rows])
            expected = plain.encode(x[start : start + rows])
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5)
    np.testing.assert_allclose(graphs.sample(1500, 3), plain.sample(1500, 3), rtol=0, atol=1e-3)
    for name, value in plain.score(x[:50], 3, 1).items():
        np.testing.assert_allclose(graphs.score(x[:50], 3, 1)[name], value, rtol=1e-6, atol=1e-5)


def test_a_server_answers_by_graphs(
    trained: Trained, trained_bundle: Bundle, tmp_path: Path
) -> None:
    x = trained[1].test.x[:70]
    expected = Engine(open_bundle(trained_bundle.path)).encode(x)
    with (
        serve(tmp_path, trained_bundle.path, "--device", "cuda", "--cuda-graph") as running,
        Client(running.rest) as client,
    ):
        for rows in (1, 70, 3):
            found = client.encode(x[:rows])
            np.testing.assert_allclose(found["z_loc"], expected["z_loc"][:rows], rtol=0, atol=1e-5)
