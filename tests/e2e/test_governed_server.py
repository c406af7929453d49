"""A server that follows the ledger: what is written into its registry changes no byte of it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.config import PromoteConfig
from serving.bundle import Bundle
from serving.engine import Engine
from serving.mlflow_store import connect
from tests.e2e.attacks import ATTACKS, NAME, OLD, SERVED, WANTED, Registry
from tests.pipeline.registry.versions import GATE, promote_with, register
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.asking import asking, metrics, ready, wait_for
from tests.trained_models import Trained

ALL_LOOK = 12
"""So many connections that both of two workers get some."""
REFERENCE = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def registry(
    empty_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    worse: Bundle,
    sealed: Bundle,
    reduced: dict[str, Bundle],
    trained: Trained,
) -> Iterator[Registry]:
    """The versions are promoted and refused by the gate."""
    folder = tmp_path_factory.mktemp("registry")
    database = Path(shutil.copy(empty_store, folder / "mlflow.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        versions = [register(bundle) for bundle in (worse, sealed, reduced["fp16"])]
        assert versions == [OLD, SERVED, WANTED]
        for version in (OLD, SERVED):
            assert promote_with(trained, version, GATE).decision == "promoted"
        never = PromoteConfig(min_elbo=0)
        assert promote_with(trained, WANTED, never).decision == "refused"
        yield Registry(connect(), database)


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers that have polled once."""
    arguments = ("--poll", "0.3", "--workers", "2", "--drain", "0.5")
    folder = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{registry.database}"
    with serve(folder, REFERENCE, *arguments, MLFLOW_TRACKING_URI=uri) as running:
        assert running.version == SERVED
        yield running


def refusal_of(server: Running) -> dict[str, str]:
    """Return what readiness says is refused; empty if nothing is."""
    told: dict[str, str] = ready(server).get("refused", {})
    return told


def refuses(server: Running, some: bool) -> bool:
    """Whether all workers say that something is refused, or all that nothing is."""
    return all(bool(refusal_of(server)) == some for _ in range(ALL_LOOK))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_is_written_into_the_registry_changes_no_byte(
    registry: Registry, server: Running, sealed: Bundle, attack: object
) -> None:
    before = metrics(server)["vae_reloads_total"]
    said = server.log.read_text().count(" is refused, still serving ")
    with asking(server, {SERVED: Engine(sealed)}, ["binary"]) as counts:
        with registry.kept():
            assert callable(attack)
            attack(registry)
            wait_for("readiness tells of it", lambda: refuses(server, True), server)
            refusal = refusal_of(server)
            assert metrics(server)["vae_version_refused"] == 1
            asked = counts.answers.total()
            wait_for("it is asked on", lambda: counts.answers.total() > asked + 30, server)
        wait_for("nothing is refused", lambda: refuses(server, False), server)
        assert metrics(server)["vae_version_refused"] == 0
    assert (counts.failed, counts.wrong) == ([], [])
    assert counts.by("binary") == {SERVED}
    assert refusal["version"] in (OLD, SERVED, WANTED)
    assert any(word in refusal["reason"] for word in ("run vae promote", "register "))
    assert metrics(server)["vae_reloads_total"] == before
    assert server.log.read_text().count(" is refused, still serving ") == said + 1


def start_alone(registry: Registry, folder: Path, *arguments: str) -> tuple[int, str]:
    """Start a server that is not expected to serve; return its exit code and its last line."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{registry.database}", "XDG_CACHE_HOME": str(folder)}
    result = subprocess.run(
        [*SERVE, "--model", REFERENCE, "--port", "0", "--grpc-port", "0", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stderr.splitlines()[-1]


def test_a_start_with_a_champion_that_passed_no_gate_ends(
    registry: Registry, tmp_path: Path
) -> None:
    with registry.kept():
        registry.point(WANTED)
        code, line = start_alone(registry, tmp_path)
    assert code == 7
    assert line == (
        f"error: version {WANTED} is vae@champion by its alias alone, without vae promote: run vae "
        f"promote {WANTED}, or set the alias back to {SERVED}, the champion by the ledger; vae "
        "serve --follow alias serves whatever the alias names"
    )


def test_the_alias_is_followed_where_that_is_asked_for(registry: Registry, tmp_path: Path) -> None:
    """What it served is not taken from the cache by a server that follows the ledger."""
    uri = f"sqlite:///{registry.database}"
    with registry.kept():
        registry.point(WANTED)
        arguments = ("--follow", "alias", "--drain", "0.2")
        with serve(tmp_path, REFERENCE, *arguments, MLFLOW_TRACKING_URI=uri) as running:
            assert running.version == WANTED
            assert ready(running) == {"ready": True, "name": NAME, "version": WANTED}
        assert start_alone(registry, tmp_path / "cache")[0] == 7


@pytest.mark.parametrize("model", [f"models:/{NAME}@candidate", f"models:/{NAME}/2", "bundle"])
def test_there_is_no_ledger_of_anything_but_the_champion(
    registry: Registry, tmp_path: Path, model: str
) -> None:
    code, line = start_alone(registry, tmp_path, "--follow", "ledger", "--model", model)
    assert code == 2
    assert line.startswith("error: --follow ledger needs --model models:/NAME@champion: ")


def test_what_was_attacked_in_vain_is_served_once_it_is_promoted(
    registry: Registry, server: Running, trained: Trained, reduced: dict[str, Bundle]
) -> None:
    """It passes the gate while an entry that nobody decided, and its alias, are still there."""
    with registry.kept():
        ATTACKS["enter without record"](registry)
        wait_for("it is refused", lambda: refuses(server, True), server)
        assert promote_with(trained, WANTED, GATE).decision == "promoted"
        wait_for("it is served", lambda: ready(server)["version"] == WANTED, server)
        wait_for("nothing is refused", lambda: refuses(server, False), server)
        with asking(server, {WANTED: Engine(reduced["fp16"])}, ["binary"]) as counts:
            wait_for("it answers", lambda: counts.answers.total() > 50, server)
    assert (counts.failed, counts.wrong) == ([], [])


def test_a_start_from_the_cache_is_checked_at_the_first_poll(
    registry: Registry, server: Running, tmp_path: Path
) -> None:
    """The alias was moved while the server was down; what it served last answers, and it tells."""
    uri = f"sqlite:///{registry.database}"
    with serve(tmp_path, REFERENCE, "--drain", "0.2", MLFLOW_TRACKING_URI=uri) as running:
        assert running.version == SERVED
    with registry.kept():
        registry.point(WANTED)
        with serve(tmp_path, REFERENCE, "--drain", "0.2", MLFLOW_TRACKING_URI=uri) as running:
            assert running.version == SERVED
            wait_for("it tells", lambda: refusal_of(running).get("version") == WANTED, running)
            assert httpx.get(f"{running.rest}/v2/models/encode").json()["versions"] == [SERVED]
