"""A temporary folder without room: it is said at the start, and later it stops nothing."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from serving import Client
from serving.engine import Engine
from serving.errors import VaeError
from tests.serving import running
from tests.serving.conftest import SEALED
from tests.serving.places import needs_mounts
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.arrays import Arrays, same
from tests.serving.server.grpc_requests import arrays_of, method, request_of

pytestmark = pytest.mark.slow
IN_TMPFS = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o "size=$0" tmpfs "$TMPDIR" && exec "$@"',
)
"""Run a command with a small temporary folder that only it sees; its arguments follow the size."""


def refusal(folder: Path, *command: str, largest_file: int = 2**20) -> str:
    """Return the only line that a server says that cannot start, in a temporary folder `tmp`."""
    (folder / "tmp").mkdir()
    # bytecode that is cut off at the limit would stay behind
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "--model", str(SEALED), "--port", "0", "--grpc-port", "0"],
        cwd=folder,
        env=env,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (VaeError.exit_code, "")
    assert list((folder / "tmp").iterdir()) == []
    (line,) = done.stderr.splitlines()
    return line


def test_no_room_for_the_counters_ends_the_start(tmp_path: Path) -> None:
    """The file of the version to serve has some 300 bytes, the counters have several thousand."""
    line = refusal(tmp_path, *SERVE, largest_file=4096)
    assert line.startswith("error: cannot reserve ")
    assert str(tmp_path / "tmp") in line
    advice = "make room there, or name another temporary folder in TMPDIR"
    assert line.endswith(f"File too large; {advice}")


@needs_mounts
@pytest.mark.parametrize("size", ["4k", "8k", "12k"])
def test_a_full_temporary_folder_ends_the_start(tmp_path: Path, size: str) -> None:
    """The folder takes one page, the version another, and the counters three."""
    line = refusal(tmp_path, *IN_TMPFS, size, *SERVE)
    assert line.startswith("error: cannot ")
    assert "No space left on device" in line
    assert str(tmp_path / "tmp") in line


def test_no_temporary_folder_ends_the_start(tmp_path: Path) -> None:
    """Nothing may be written, so that neither TMPDIR nor /tmp can be used."""
    line = refusal(tmp_path, *SERVE, largest_file=0)
    assert line.startswith("error: cannot make a temporary folder: No usable temporary directory")
    assert line.endswith("; name one in TMPDIR")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose temporary folder was filled to the last byte after its start."""
    folder = tmp_path_factory.mktemp("filled")
    temporary = folder / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SERVE", (*IN_TMPFS, "64k", *SERVE))
        arguments = ("--workers", "2", "--drain", "1")
        with serve(folder, SEALED, *arguments, TMPDIR=str(temporary)) as server:
            inside = Path(f"/proc/{server.children()[0]}/root{temporary}")
            with pytest.raises(OSError, match="No space left"):
                (inside / "filler").write_bytes(bytes(2**20))
            yield server


@needs_mounts
def test_a_folder_that_fills_up_later_kills_no_worker(filled: Running, engine: Engine) -> None:
    """A worker would end at the first request whose counters are on a page without a block."""
    workers = filled.children()
    inputs: dict[str, Arrays] = {
        "encode": {"x": np.ones((2, 6, 5), np.uint8)},
        "decode": {"z": np.ones((2, 3), np.float32)},
        "reconstruct": {"x": np.ones((2, 6, 5), np.uint8)},
        "sample": {"eps": np.ones((2, 3), np.float32)},
        "score": {
            "x": np.ones((2, 6, 5), np.uint8),
            "eps": np.ones((2, 1, 3), np.float32),
        },
        "draw": {"z": np.ones((2, 3), np.float32), "noise": np.ones((2, 6, 5), np.float32)},
    }
    assert {*inputs} == {*engine.operations}
    for _ in range(8):  # each connection may reach another worker
        with (
            Client(filled.rest) as client,
            grpc.insecure_channel(filled.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            for operation, arrays in inputs.items():
                expected = engine.run(operation, arrays)
                same(client.infer(operation, arrays).outputs, expected)
                reply = method(channel, "ModelInfer")(request_of(operation, arrays), timeout=20)
                same(arrays_of(reply), expected)
    assert filled.children() == workers
    metrics = httpx.get(f"{filled.rest}/metrics").text
    answered = 'vae_requests_total{operation="score",status="200",transport="grpc"} 8.0'
    assert answered in metrics
