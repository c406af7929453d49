"""What a graph of CUDA is fed and gives, shown in the memory of the CPU, which records nothing.

That a GPU replays what it recorded is what `tests/integration/test_cuda_serving.py` shows.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest

from serving import engine as engines
from serving.bundle import Bundle
from serving.cuda_graphs import SIZES, OneThreadSession, RecordedSession, record_sessions
from serving.engine import MAX_BATCH, Engine
from serving.errors import DeviceUnavailable
from serving.sessions import open_session
from tests.serving.conftest import SEALED

ENCODED = ["z_loc", "z_scale"]


@pytest.fixture(scope="module")
def recorded() -> RecordedSession:
    return RecordedSession(open_session(SEALED / "encoder.onnx", "cpu"), memory="cpu")


def test_no_run_of_an_engine_has_more_rows_than_the_largest_graph() -> None:
    assert SIZES[-1] == MAX_BATCH


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 63, 64, 65, 1023, 1024], ids=str)
def test_any_number_of_rows_gives_what_the_session_gives(
    recorded: RecordedSession, engine: Engine, x: Any, rows: int
) -> None:
    found = recorded.run(ENCODED, {"x": x[:rows]})
    expected = engine.encode(x[:rows])
    for name, value in zip(ENCODED, found, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=2e-5)


def test_results_stay_what_they_were_after_another_run(recorded: RecordedSession, x: Any) -> None:
    first = recorded.run(ENCODED, {"x": x[:5]})[0]
    kept = first.copy()
    assert not np.array_equal(recorded.run(ENCODED, {"x": x[5:10]})[0], kept)
    np.testing.assert_array_equal(first, kept)


def test_outputs_come_in_the_order_that_was_asked_for(recorded: RecordedSession, x: Any) -> None:
    loc, scale = recorded.run(ENCODED, {"x": x[:3]})
    backwards = recorded.run(ENCODED[::-1], {"x": x[:3]})
    np.testing.assert_array_equal(backwards, [scale, loc])


def test_runs_of_several_threads_do_not_mix(recorded: RecordedSession, x: Any) -> None:
    starts = range(0, 400, 4)
    alone = [recorded.run(ENCODED, {"x": x[start : start + 3]})[0] for start in starts]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda s: recorded.run(ENCODED, {"x": x[s : s + 3]})[0], starts)
        for ours, theirs in zip(alone, found, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_one_thread_runs_all_sessions() -> None:
    class Session:
        def run(self, names: list[str], feeds: object) -> list[str]:
            return [threading.current_thread().name]

    found = {tuple(OneThreadSession(Session()).run([], {})) for _ in range(3)}
    assert len(found) == 1
    assert threading.current_thread().name not in found.pop()


def test_an_engine_records_what_takes_no_free_number_of_draws(
    bundle: Bundle, x: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU stands in for the GPU: it opens the sessions, and lends its memory."""
    asked: dict[str, bool] = {}

    def open_here(graph: Any, device: str, *, cuda_graph: bool, **settings: Any) -> Any:
        asked[graph.name] = cuda_graph
        return open_session(graph, device, **settings)

    def record_here(sessions: Any, recorded: Any) -> Any:
        runners = record_sessions(sessions, ())
        return runners | {n: RecordedSession(sessions[n], "cpu") for n in sorted(recorded)}

    monkeypatch.setattr(engines, "open_session", open_here)
    monkeypatch.setattr(engines, "record_sessions", record_here)
    graphs = Engine(bundle, cuda_graph=True)
    graphs.self_check()
    assert asked == {
        "encoder.onnx": True,
        "decoder.onnx": True,
        "reconstruct.onnx": True,
        "score.onnx": False,
        "draw.onnx": True,
    }
    np.testing.assert_allclose(graphs.sample(1500, 3), engine.sample(1500, 3), rtol=1e-5, atol=1e-4)
    for name, value in graphs.score(x[:50], 3, 1).items():
        np.testing.assert_array_equal(value, engine.score(x[:50], 3, 1)[name])


def test_a_graph_without_cuda_is_refused(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable, match="device cpu has no CUDA graphs: use --device cuda"):
        Engine(bundle, cuda_graph=True)
    assert DeviceUnavailable.exit_code == 8


def test_the_session_is_opened_with_the_option(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def refuse(graph: object, options: object, providers: Any, **_: object) -> None:
        seen.extend(providers)
        raise RuntimeError("no GPU")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(DeviceUnavailable, match=r"device cuda cannot run encoder.onnx: no GPU"):
        open_session(bundle.path / "encoder.onnx", "cuda", cuda_graph=True)
    assert seen == [("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})]
