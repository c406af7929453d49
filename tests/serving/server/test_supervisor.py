"""The parent process refuses a bad start before it starts workers, and resolves its host."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.errors import DeviceUnavailable, UsageRefused, VerificationFailed
from serving.server import supervisor
from tests.serving.conftest import SEALED
from tests.serving.running import SERVE, serve
from tests.serving.server.settings import make_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refusal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and stderr of a server that cannot start; stdout must stay empty."""
    result = subprocess.run(
        [*SERVE, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == ""
    return result.returncode, result.stderr


ANY = ("--model", str(SEALED), "--port", "0", "--grpc-port", "0")


def test_cuda_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    code, said = refusal(tmp_path, *ANY, "--device", "cuda")
    assert code == DeviceUnavailable.exit_code == 8
    assert said.startswith("error: device cuda is not available")
    assert len(said.splitlines()) == 1


def test_cuda_graphs_on_the_cpu_end_the_start(tmp_path: Path) -> None:
    code, said = refusal(tmp_path, *ANY, "--cuda-graph")
    assert code == DeviceUnavailable.exit_code == 8
    assert said == "error: device cpu has no CUDA graphs: use --device cuda\n"


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, taken: int, option: str) -> None:
    code, said = refusal(tmp_path, *ANY, option, str(taken))
    assert code == UsageRefused.exit_code == 2
    assert said == (
        f"error: cannot listen at 127.0.0.1:{taken}: Address already in use; "
        f"choose another with {option}\n"
    )


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    """192.0.2.0/24 is reserved for documentation, so no machine has this address."""
    code, said = refusal(tmp_path, *ANY, "--host", "192.0.2.1")
    assert code == UsageRefused.exit_code
    assert said.splitlines()[-1] == (
        "error: cannot listen at 192.0.2.1: it is not an address of this machine; "
        "choose another with --host"
    )


def test_both_protocols_at_one_port_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    process = subprocess.Popen(
        [*SERVE, "--model", str(SEALED), "--port", port, "--grpc-port", port, "--drain", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # ends when it serves, or when it has ended
    process.terminate()
    _, said = process.communicate()
    assert (line, process.returncode) == ("", UsageRefused.exit_code)
    assert "--grpc-port" in said


@pytest.mark.parametrize("damage", ["empty", "damaged"])
def test_a_damaged_bundle_ends_the_start(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    if damage == "damaged":
        for file in SEALED.iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(content + b" " * (file.name == "decoder.onnx"))
    code, said = refusal(tmp_path, *ANY, "--model", str(folder))
    assert code == VerificationFailed.exit_code == 7
    assert said.startswith(f"error: {folder}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("bad", ["no file", "no certificate", "key alone"])
def test_bad_tls_files_end_the_start(tmp_path: Path, bad: str) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    if bad == "no certificate":
        chain.write_text("nonsense")
        key.write_text("nonsense")
    arguments = ["--tls-key", str(key)]
    if bad != "key alone":
        arguments += ["--tls-cert", str(chain)]
    code, said = refusal(tmp_path, *ANY, *arguments)
    assert code == UsageRefused.exit_code
    assert said.startswith("error: --tls" if bad == "key alone" else f"error: cannot use {chain}")
    assert len(said.splitlines()) == 1


def test_a_host_name_is_resolved(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--host", "localhost", "--drain", "0.2") as running:
        assert running.rest.removeprefix("http://").rsplit(":", 1)[0] in ("127.0.0.1", "[::1]")
        assert httpx.get(f"{running.rest}/v2/health/ready").status_code == 200


def end_at_once(*arguments: object) -> None:
    """Stand for a process that the system kills."""
    os._exit(7)


def test_a_self_check_that_is_killed_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_self_check", end_at_once)
    source = supervisor.open_first(str(SEALED))
    with pytest.raises(VerificationFailed, match="ended with exit code 7"):
        supervisor.self_check(make_settings(tmp_path), source)
