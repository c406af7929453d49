"""Servers with an observer: their answers stay as they are, whatever happens to it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from pyarrow import parquet

from serving import Client
from serving.engine import Engine
from serving.errors import UsageRefused
from tests.serving import running
from tests.serving.conftest import SEALED
from tests.serving.live.observed import live, live_file, observers
from tests.serving.live.test_observer import resealed
from tests.serving.places import needs_mounts
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.asking import metrics, wait_for
from tests.serving.server.grpc_requests import method, request_of

pytestmark = pytest.mark.slow
ALL = ("--drain", "1", "--watch-share", "1")


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine
) -> Iterator[tuple[Running, Path]]:
    """A server that captures and compares all it answers, and the folder of the capture."""
    folder = tmp_path_factory.mktemp("observed")
    other = resealed(engine.bundle, folder / "challenger")
    captured = folder / "captured"
    arguments = ("--shadow", str(other.path), "--capture", str(captured), "--capture-share", "1")
    with serve(folder, SEALED, *ALL, *arguments, "--capture-seconds", "0.2") as server:
        yield server, captured


def json_request(x: np.ndarray, **parameters: object) -> dict[str, object]:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [*x.shape], "data": x.tolist()}
    return {"id": "a", "parameters": parameters, "inputs": [tensor]}


def test_answers_have_the_same_bytes_with_and_without(
    observed: tuple[Running, Path], server: Running, x: np.ndarray
) -> None:
    watched, _ = observed

    def answers(each: Running) -> list[bytes]:
        found = []
        with httpx.Client(base_url=each.rest, timeout=30) as http:
            for operation in ("encode", "reconstruct", "score"):
                path = f"/v2/models/{operation}/infer"
                drawn = {"seed": 3, "num_samples": 2} if operation == "score" else {}
                content = json_request(x[:7], **drawn)
                found.append(http.post(path, json=content).content)
                binary = {**content, "parameters": {**drawn, "binary_data_output": True}}
                found.append(http.post(path, json=binary).content)
        with grpc.insecure_channel(each.grpc) as channel:
            for operation in ("encode", "reconstruct", "score"):
                for raw in (True, False):
                    message = request_of(operation, {"x": x[:7]}, raw=raw, id="a")
                    reply = method(channel, "ModelInfer")(message, timeout=30)
                    found.append(reply.SerializeToString(deterministic=True))
        return found

    assert answers(watched) == answers(server)


def test_all_answered_rows_are_watched_compared_and_captured(
    observed: tuple[Running, Path], engine: Engine, x: np.ndarray
) -> None:
    server, captured = observed

    def count() -> tuple[int, int, int]:
        status = live(server)
        if status is None or status.shadow is None or status.capture is None:
            return 0, 0, 0
        return status.rows, status.shadow.rows, status.capture.rows

    asked = metrics(server)["vae_watched_rows_total"]
    wait_for("earlier rows are taken up", lambda: count() == (asked,) * 3)
    with Client(server.rest) as client:
        for start in range(0, 100, 10):
            client.infer("encode", {"x": x[start : start + 10]})
    wait_for("rows are taken up", lambda: count() == (asked + 100,) * 3)
    status = live(server)
    assert status is not None
    assert status.shadow is not None
    assert (status.dropped_rows, status.shadow.mean_difference) == (0, 0.0)
    table = parquet.read_table(captured, filters=[("vae_operation", "==", "encode")])
    kept = np.array(table["x"].to_pylist(), np.uint8)
    places = {row.tobytes(): place for place, row in enumerate(kept)}
    expected = engine.encode(x[:100])["z_loc"]
    answers = table["vae_answer_z_loc"]
    for row, z in zip(x[:100], expected, strict=True):
        assert np.float32(answers[places[row.tobytes()]].as_py()).tobytes() == z.tobytes()


def test_a_killed_observer_fails_no_request_and_comes_back(
    observed: tuple[Running, Path], engine: Engine, x: np.ndarray
) -> None:
    server, _ = observed
    expected = engine.encode(x[:3])["z_loc"].tobytes()
    before = metrics(server)["vae_watched_rows_total"]
    killed: set[int] = set()
    sent = 0
    until = time.monotonic() + 30
    with Client(server.rest) as client:
        while time.monotonic() < until and len(killed) < 3:
            answer = client.infer("encode", {"x": x[:3]})
            assert answer.outputs["z_loc"].tobytes() == expected
            sent += 3
            for pid in {*observers(server)} - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    assert len(killed) == 3
    wait_for("it is back", lambda: bool({*observers(server)} - killed), server)
    values = metrics(server)
    lost = sum(value for name, value in values.items() if name.startswith("vae_unwatched_rows"))
    assert values["vae_watched_rows_total"] + lost == before + sent
    wait_for("it takes up rows", lambda: (s := live(server)) is not None and s.rows > 0, server)


def test_a_share_of_0_starts_and_sends_nothing(tmp_path: Path, x: np.ndarray) -> None:
    with serve(tmp_path, SEALED, "--drain", "1", "--watch-share", "0") as server:
        with Client(server.rest) as client:
            client.infer("encode", {"x": x[:3]})
        assert metrics(server)["vae_watched_rows_total"] == 0
        assert observers(server) == []
        assert not live_file(server).exists()


def test_a_quiet_server_has_no_observer_until_the_first_row(tmp_path: Path, x: np.ndarray) -> None:
    with serve(tmp_path, SEALED, *ALL, "--workers", "2") as server:
        assert observers(server) == []
        with Client(server.rest) as client:
            client.infer("encode", {"x": x[:3]})
        wait_for("it is there", lambda: (status := live(server)) is not None and status.rows == 3)
        (pid,) = observers(server)
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_is_replaced_goes_on(tmp_path: Path, x: np.ndarray) -> None:
    with serve(tmp_path, SEALED, *ALL) as server:
        with Client(server.rest) as client:
            client.infer("encode", {"x": x[:3]})
        wait_for("it is there", lambda: (status := live(server)) is not None and status.rows == 3)
        (worker,) = {*server.children()} - {*observers(server)}
        os.kill(worker, signal.SIGKILL)

        def asked() -> bool:
            with Client(server.rest) as client:
                client.infer("encode", {"x": x[:3]})
            return True

        wait_for("another worker answers", asked, server)
        wait_for("its rows arrive", lambda: (s := live(server)) is not None and s.rows >= 6, server)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        pytest.param(
            ("--shadow", "bundle", "--watch-share", "0"), "--watch-share must not be 0", id="share"
        ),
        pytest.param(("--shadow", "models:/vae"), "model must be a bundle folder", id="reference"),
        pytest.param(("--capture-hash", "age"), "name its folder", id="no folder"),
        pytest.param(
            ("--capture", "captured", "--capture-hash", "age"), "VAE_CAPTURE_KEY", id="no key"
        ),
        pytest.param(("--capture", "file/captured"), "Not a directory", id="no such place"),
    ],
)
def test_options_that_cannot_be_met_are_refused_at_the_start(
    tmp_path: Path, arguments: tuple[str, ...], refusal: str
) -> None:
    (tmp_path / "file").touch()
    command = [*SERVE, "--model", str(SEALED), "--port", "0", "--grpc-port", "0", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == UsageRefused.exit_code
    assert refusal in done.stderr
    assert done.stdout == ""


def test_what_waits_is_kept_when_the_server_stops(tmp_path: Path, x: np.ndarray) -> None:
    captured = tmp_path / "captured"
    arguments = ("--capture", str(captured), "--capture-share", "1")
    with serve(tmp_path, SEALED, *ALL, *arguments) as server:
        with Client(server.rest) as client:
            for _ in range(20):
                client.infer("encode", {"x": x[:3]})
    assert parquet.read_table(captured).num_rows == 60


@needs_mounts
def test_a_full_disk_stops_the_capture_alone(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = tmp_path / "captured"
    captured.mkdir()
    mount = f'mount -t tmpfs -o size=2m tmpfs "{captured}" && exec "$@"'
    monkeypatch.setattr(running, "SERVE", ("unshare", "--mount", "sh", "-c", mount, "sh", *SERVE))
    arguments = ("--capture", str(captured), "--capture-share", "1", "--capture-seconds", "0.2")
    with serve(tmp_path, SEALED, *ALL, *arguments) as server, Client(server.rest) as client:
        inside = Path(f"/proc/{server.process.pid}/root{captured}")
        with pytest.raises(OSError, match="No space left"):
            (inside / "filler").write_bytes(bytes(2**22))

        def fault() -> str | None:
            client.infer("encode", {"x": x[:5]})
            status = live(server)
            return status.capture.fault if status and status.capture else None

        wait_for("it is a fault", lambda: "No space left" in (fault() or ""), server)
        assert list(inside.glob("captured-*")) == []
        (inside / "filler").unlink()
        wait_for("there is room again", lambda: bool(list(inside.glob("captured-*"))), server)
        wait_for("the fault is gone", lambda: fault() is None, server)
        assert parquet.read_table(next(inside.glob("captured-*"))).num_rows > 0
    assert "no rows are captured" in server.log.read_text()
    assert "rows are captured again" in server.log.read_text()
