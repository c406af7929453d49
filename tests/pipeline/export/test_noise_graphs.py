from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from pipeline.export.noise_graphs import noise_graph, score_noise_graph
from serving.noise import DRAWN, MAX_SEED, draw_eps, draw_noise, draw_rows, hash_rows
from serving.philox import KEY_STEPS, MULTIPLIERS

SEEDS = (0, 7, 2**32 - 1, 2**32, MAX_SEED)


def run(model: onnx.ModelProto, **inputs: object) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {name: np.atleast_1d(np.array(value, np.int64)) for name, value in inputs.items()}
    eps: NDArray[Any] = session.run(None, feeds)[0]
    return eps


@pytest.mark.parametrize("latent_dim", [1, 3, 4, 32])
@pytest.mark.parametrize("seed", SEEDS)
def test_numbered_rows_are_those_of_numpy_bit_for_bit(latent_dim: int, seed: int) -> None:
    model = noise_graph(latent_dim)
    for start, rows in ((0, 40), (2**32 - 3, 6), (MAX_SEED - 5, 5), (9, 0)):
        found = run(model, seed=seed, start=start, rows=rows)
        expected = draw_rows(seed, start, start + rows, latent_dim)
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cells_of_samples_are_those_of_numpy_bit_for_bit(seed: int) -> None:
    model = noise_graph(30, DRAWN)
    found = run(model, seed=seed, start=2**32 - 3, rows=6)
    np.testing.assert_array_equal(found, draw_noise(seed, 2**32 - 3, 2**32 + 3, 30), strict=True)


@pytest.mark.parametrize("num_samples", [1, 3, 10])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_hashed_rows_are_those_of_numpy_bit_for_bit(num_samples: int, rows: int) -> None:
    model = score_noise_graph(5)
    x = np.random.default_rng(0).standard_normal((rows, 7)).astype(np.float32)
    for seed in SEEDS:
        found = run(model, seed=seed, hash=hash_rows(x).view(np.int64), num_samples=num_samples)
        np.testing.assert_array_equal(found, draw_eps(x, seed, num_samples, 5), strict=True)


def test_another_implementation_of_onnx_gives_the_same_bits() -> None:
    """onnx's own evaluator, which computes with numpy."""
    feeds = {"seed": np.array([2**40 + 1]), "start": np.array([5]), "rows": np.array([30])}
    (found,) = ReferenceEvaluator(noise_graph(3)).run(None, feeds)
    np.testing.assert_array_equal(found, draw_rows(2**40 + 1, 5, 35, 3), strict=True)


@pytest.mark.parametrize("constant", [MULTIPLIERS[0] & 0xFFFF, KEY_STEPS[1], 2**23 - 1], ids=hex)
def test_a_changed_constant_changes_the_noise(constant: int) -> None:
    """Each constant matters, so that a graph that differs in one is seen to differ."""
    model = noise_graph(3)
    (tensor,) = (t for t in model.graph.initializer if t.name == str(constant))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(constant - 1), tensor.name))
    found = run(model, seed=7, start=0, rows=50)
    assert not np.array_equal(found, draw_rows(7, 0, 50, 3))


def test_graphs_need_no_float64_and_the_oldest_opset_that_has_their_operators() -> None:
    for model in (noise_graph(3), score_noise_graph(3)):
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert types == {onnx.TensorProto.INT64, onnx.TensorProto.FLOAT}
        assert (model.opset_import[0].version, model.ir_version) == (18, 8)
