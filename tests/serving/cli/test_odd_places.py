"""Commands in places where programs often break: each works, or says in one line what is wrong."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.engine import Engine
from serving.errors import UsageRefused, VaeError
from tests.serving import running
from tests.serving.conftest import SEALED
from tests.serving.places import (
    ALL_READ_ONLY,
    ASCII,
    NO_SHARED_MEMORY,
    READ_ONLY,
    as_unknown_user,
    inside,
    needs_another_user,
    needs_mounts,
    run,
)
from tests.serving.running import SERVE, serve

pytestmark = pytest.mark.slow
ROWS = 40
PLACES = [
    pytest.param((), ASCII, id="ASCII"),
    pytest.param(inside("exec <&- >&- 2>&-;"), {}, id="all streams closed"),
    pytest.param(inside("exec 2>&-;"), {}, id="stderr closed"),
    pytest.param(inside("exec 2>/dev/full;"), {}, id="stderr full"),
    pytest.param(READ_ONLY, {"HOME": "/nowhere"}, id="read-only root", marks=needs_mounts),
    pytest.param(NO_SHARED_MEMORY, {}, id="no shared memory", marks=needs_mounts),
    pytest.param(
        as_unknown_user(),
        {},
        id="unknown user without home",
        marks=needs_another_user,
    ),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with rows, whose name is neither ASCII nor plain."""
    folder = tmp_path / "ü é 50% #1"
    folder.mkdir()
    for each in (*folder.parents, folder):
        if each.is_relative_to(tempfile.gettempdir()) and each != Path(tempfile.gettempdir()):
            each.chmod(0o777)  # another user works here, too
    rows = np.random.default_rng(0).integers(0, 256, (ROWS, 30), np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 30)
    parquet.write_table(pa.table({"größe": column}), folder / "größe.parquet")
    return folder


@pytest.mark.parametrize(("prefix", "env"), PLACES)
def test_rows_are_scored(
    place: Path, engine: Engine, prefix: Sequence[str], env: Mapping[str, str]
) -> None:
    arguments = ["--model", str(SEALED), "--x", "größe", "--report", "blätter.html"]
    done = run(place, prefix, env, "score", "größe.parquet", "ergebnis", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    table = parquet.read_table(place / "ergebnis")
    x = np.stack(parquet.read_table(place / "größe.parquet")["größe"].to_numpy())
    expected = engine.score(x.reshape(ROWS, 6, 5), 1, 0)["elbo"]
    assert table["elbo"].to_numpy().tobytes() == expected.tobytes()
    assert "größe" in (place / "blätter.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("prefix", "env"), PLACES)
def test_samples_are_drawn(
    place: Path, engine: Engine, prefix: Sequence[str], env: Mapping[str, str]
) -> None:
    for out in ("größe.npy", "größen/"):
        done = run(
            place, prefix, env, "sample", "--model", str(SEALED), "--count", "3", "--out", out
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert np.load(place / "größe.npy").tobytes() == engine.sample(3, 0).tobytes()
    assert parquet.read_table(place / "größen").num_rows == 3


@pytest.mark.parametrize(
    ("prefix", "env"), [each for each in PLACES if "closed" not in str(each.id)]
)
def test_a_model_is_served(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
    prefix: Sequence[str],
    env: Mapping[str, str],
) -> None:
    monkeypatch.setattr(running, "SERVE", (*prefix, *SERVE))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with serve(place, SEALED, "--drain", "0.5", **{"TMPDIR": str(place), **env}) as server:
        answer = httpx.post(
            f"{server.rest}/v2/models/sample/infer", json={"parameters": {"seed": 4}}
        )
        data = answer.json()["outputs"][0]["data"]
        assert np.float32(data).tobytes() == engine.sample(1, 4).tobytes()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "--port", "0", "--grpc-port", "0"),
        ("sample", "--out", "/nowhere/a.npy"),
        ("score", "/nowhere", "/nowhere"),
    ],
    ids=lambda command: command[0],
)
def test_a_working_folder_that_was_deleted_is_said(place: Path, command: Sequence[str]) -> None:
    gone = inside('mkdir gone; cd gone; rmdir "$PWD";')
    done = run(place, gone, {}, *command, "--model", str(SEALED))
    assert (done.returncode, done.stdout) == (UsageRefused.exit_code, "")
    assert done.stderr == "error: the working folder was deleted: change to another\n"
    assert run(place, gone, {}, "--help").returncode == 0


def test_a_result_that_cannot_be_written_is_said(place: Path) -> None:
    full = inside("exec >/dev/full;")
    done = run(place, full, {}, "sample", "--model", str(SEALED), "--out", "a.npy")
    assert done.returncode == VaeError.exit_code
    assert done.stderr == "error: cannot write the result to stdout: No space left on device\n"


@needs_mounts
def test_where_nothing_can_be_written_each_command_says_so(place: Path) -> None:
    for command, what in (
        (("serve", "--port", "0", "--grpc-port", "0"), "cannot make a temporary folder: "),
        (("sample", "--out", str(place / "a.npy")), f"cannot write {place / 'a.npy'}"),
        (
            ("score", str(place / "größe.parquet"), str(place / "out"), "--x", "größe"),
            "cannot write",
        ),
    ):
        done = run(place, ALL_READ_ONLY, {}, *command, "--model", str(SEALED))
        assert done.returncode in (VaeError.exit_code, UsageRefused.exit_code)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {what}")
        assert len(line) < 300


def test_a_server_whose_line_cannot_be_written_serves(place: Path) -> None:
    """It is ready when its health says so; who started it may have closed the pipe."""
    command = [*inside("exec >/dev/full;"), *SERVE]
    process = subprocess.Popen(
        [*command, "--model", str(SEALED), "--port", "0", "--grpc-port", "0"],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.endswith("cannot write the result to stdout: No space left on device\n")
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said
