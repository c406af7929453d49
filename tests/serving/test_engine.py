from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from serving import engine as engines
from serving import sessions
from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from serving.errors import DataRefused, DeviceUnavailable, UsageRefused, VerificationFailed
from serving.input_checks import check_floats
from serving.noise import draw_eps, draw_rows


def test_every_operation_equals_its_graph_in_plain_onnxruntime(engine: Engine, x: Any) -> None:
    eps, score_eps = draw_rows(5, 0, 4, 3), draw_eps(x[:9], 5, 4, 3)
    calls = {
        "encoder.onnx": (engine.encode(x[:9]), {"x": x[:9]}),
        "reconstruct.onnx": ({"x_loc": engine.reconstruct(x[:9])}, {"x": x[:9]}),
        "decoder.onnx": ({"x_loc": engine.sample(4, 5)}, {"z": eps}),
        "score.onnx": (engine.score(x[:9], 4, 5), {"x": x[:9], "eps": score_eps}),
    }
    for graph, (outputs, feeds) in calls.items():
        session = onnxruntime.InferenceSession(
            engine.bundle.path / graph, providers=["CPUExecutionProvider"]
        )
        for name, value in outputs.items():
            np.testing.assert_allclose(value, session.run([name], feeds)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(engine.decode(eps), engine.sample(4, 5))


def test_scores_agree_with_each_other(engine: Engine, x: Any) -> None:
    scores = engine.score(x, 64, 0)
    assert {value.shape for value in scores.values()} == {(2500,)}
    np.testing.assert_allclose(
        scores["elbo"], scores["log_likelihood"] - scores["kl"], rtol=1e-5, atol=1e-4
    )
    assert scores["iw_elbo"].mean() > scores["elbo"].mean()
    assert (scores["kl"] > 0).all()


@pytest.mark.parametrize("rows", [1, 7, 1023, 1024, 1025], ids=str)
def test_a_row_does_not_depend_on_its_batch(engine: Engine, x: Any, rows: int) -> None:
    whole = engine.score(x, 3, 1)
    for name, value in engine.score(x[:rows], 3, 1).items():
        np.testing.assert_allclose(value, whole[name][:rows], rtol=2e-6, atol=2e-5)


def test_order_of_rows_changes_nothing_but_the_order(engine: Engine, x: Any) -> None:
    backwards = engine.score(x[:1024][::-1], 3, 1)
    for name, value in engine.score(x[:1024], 3, 1).items():
        np.testing.assert_allclose(value[::-1], backwards[name], rtol=2e-6, atol=2e-5)


def test_same_seed_gives_the_same_bytes(engine: Engine, x: Any) -> None:
    again = Engine(engine.bundle)
    assert engine.sample(2000, 7).tobytes() == again.sample(2000, 7).tobytes()
    assert engine.sample(3, 7).tobytes() != engine.sample(3, 8).tobytes()
    for name, value in engine.score(x, 2, 7).items():
        assert value.tobytes() == again.score(x, 2, 7)[name].tobytes()


def test_samples_can_be_drawn_in_parts(engine: Engine) -> None:
    parts = [engine.sample(1000, 7), engine.sample(1500, 7, start=1000)]
    np.testing.assert_allclose(np.concatenate(parts), engine.sample(2500, 7), rtol=1e-5, atol=1e-4)


def test_no_rows_give_no_results(engine: Engine, x: Any) -> None:
    assert engine.reconstruct(x[:0]).shape == (0, 6, 5)
    assert engine.score(x[:0], 2, 0)["elbo"].shape == (0,)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param({"x": np.zeros((2, 6, 5))}, "x must be uint8, got float64", id="dtype"),
        pytest.param(
            {"x": np.zeros((2, 5, 6), np.uint8)},
            r"x must be \(batch, 6, 5\), got \(2, 5, 6\)",
            id="shape",
        ),
        pytest.param({"x": np.zeros(30, np.uint8)}, r"x must be \(batch, 6, 5\)", id="rank"),
        pytest.param({}, "encode takes x, got none", id="missing"),
        pytest.param(
            {"x": np.zeros((2, 6, 5), np.uint8), "y": np.zeros(2)}, "encode takes x", id="unknown"
        ),
    ],
)
def test_bad_arrays_are_refused(engine: Engine, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataRefused, match=message):
        engine.run("encode", inputs)


def test_a_latent_that_is_not_finite_is_refused_with_its_row(engine: Engine) -> None:
    z = np.zeros((5, 3), np.float32)
    z[3, 1] = np.nan
    with pytest.raises(DataRefused, match="z must be finite, row 3 is not"):
        engine.decode(z)


def test_inputs_of_unequal_length_are_refused(engine: Engine, x: Any) -> None:
    eps = np.zeros((3, 1, 3), np.float32)
    with pytest.raises(DataRefused, match="eps must be"):
        engine.run("score", {"x": x[:2], "eps": eps})


def test_no_draw_is_refused(engine: Engine, x: Any) -> None:
    with pytest.raises(DataRefused, match="num_samples must be at least 1, got 0"):
        engine.score(x[:2], 0, 0)


def test_an_unknown_operation_lists_the_known(engine: Engine) -> None:
    known = "encode, decode, reconstruct, sample, score, draw"
    with pytest.raises(UsageRefused, match=f"{known}, got 'x'"):
        engine.run("x", {})


@pytest.mark.parametrize("value", [-0.1, 1.1], ids=str)
def test_floats_outside_a_bernoulli_support_are_refused(value: float) -> None:
    with pytest.raises(DataRefused, match="from 0 to 1 for a bernoulli likelihood"):
        check_floats("x", np.array([[value]], np.float32), unit_range=True)


def test_self_check_passes_and_sees_a_changed_output(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engine(bundle).self_check()
    golden = bundle.golden()
    assert golden["encode.z_loc.budget"] > 0
    for change in (100 * golden["encode.z_loc.budget"], np.nan):
        changed = {**golden, "encode.z_loc": golden["encode.z_loc"] + change}
        monkeypatch.setattr(Bundle, "golden", lambda self, changed=changed: changed)
        with pytest.raises(VerificationFailed, match="encode puts z_loc off by"):
            Engine(bundle).self_check()


@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_every_optimisation_level_passes_the_self_check(
    bundle: Bundle, level: sessions.Level
) -> None:
    engine = Engine(bundle, level=level, threads=2)
    engine.self_check()
    assert engine.placement().keys() == {"CPUExecutionProvider"}


def test_every_node_runs_on_the_cpu(engine: Engine) -> None:
    assert engine.placement().keys() == {"CPUExecutionProvider"}


def has_cuda() -> bool:
    try:
        sessions.require_cuda()
    except DeviceUnavailable:
        return False
    return True


def test_cuda_that_is_not_there_is_refused_and_named(bundle: Bundle) -> None:
    if has_cuda():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceUnavailable, match=r"device cuda is not available: .+") as caught:
        Engine(bundle, device="cuda")
    assert caught.value.exit_code == 8


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime only warns when it uses the CPU instead, so the engine reads each placement."""
    if has_cuda():
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(sessions, "require_cuda", lambda: None)
    with pytest.raises(DeviceUnavailable, match=r"cuda was asked for, but .* CPUExecutionProvider"):
        Engine(bundle, device="cuda")


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle) -> None:
    (bundle.path / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(VerificationFailed, match=r"onnxruntime cannot open .*encoder.onnx"):
        Engine(bundle)


def test_graphs_in_each_others_place_are_refused(bundle: Bundle) -> None:
    graph = (bundle.path / "decoder.onnx").read_bytes()
    (bundle.path / "encoder.onnx").write_bytes(graph)
    with pytest.raises(VerificationFailed, match="the operation table says"):
        Engine(bundle)


def test_the_bundle_of_these_tests_is_sealed() -> None:
    assert open_bundle(Path(__file__).parent / "bundle").manifest.x_shape == (6, 5)


def test_many_draws_are_split_into_runs_of_bounded_size(engine: Engine, x: Any) -> None:
    noise = draw_rows(0, 0, 3000, 3)
    assert engines.rows_of_a_run({"eps": np.broadcast_to(noise, (5, 3000, 3))}) == 1
    assert engines.rows_of_a_run({"eps": noise[:1500]}) == 1024
    assert engines.rows_of_a_run({"x": x}) == 1024
    assert engine.score(x[:5], 3000, 0)["elbo"].shape == (5,)


def test_one_bad_value_in_broadcast_noise_is_found() -> None:
    eps = np.broadcast_to(np.array([[np.nan]], np.float32), (5, 1, 1))
    with pytest.raises(DataRefused, match="eps must be finite, row 0 is not"):
        check_floats("eps", eps, unit_range=False)
