"""Follow an alias, poll by poll: which versions are taken up, refused, cached and tried again."""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from serving import champion
from serving.bundle import GOLDEN, open_bundle
from serving.errors import VaeError, VerificationFailed
from serving.mlflow_store import DIGEST_TAG, connect
from serving.server import version_follower
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters
from serving.server.supervisor import open_first, self_check
from serving.server.version_follower import ServedVersion, VersionFollower
from serving.source import Source, open_source, parse_reference
from tests.e2e import versions
from tests.serving.conftest import SEALED
from tests.serving.server.asking import wait_for
from tests.serving.server.settings import make_settings

REFERENCE = "models:/vae@champion"


def reseal(folder: Path, **changes: Any) -> str:
    """Seal the folder as it lies; give the digest."""
    return versions.reseal(folder, **changes).manifest.digest


@dataclass(frozen=True, slots=True)
class Place:
    """A store with versions 1 and 2 of `vae`, and what a server keeps on disk."""

    folder: Path
    client: MlflowClient
    settings: Settings
    counters: SharedCounters
    checked: list[str] = field(default_factory=list)
    """Versions that were opened and compared."""

    def add(self, name: str, spoil: Callable[[Path], str]) -> str:
        """Register a bundle that `spoil` has changed, and given a digest."""
        folder = self.folder / name / "artifacts" / "bundle"
        shutil.copytree(SEALED, folder)
        tags = {DIGEST_TAG: spoil(folder)}
        version = self.client.create_model_version("vae", str(self.folder / name), tags=tags)
        return str(version.version)

    def point(self, version: str) -> None:
        self.client.set_registered_model_alias("vae", "champion", version)

    def follower(
        self, *, poll_s: float = 600, check: Callable[[Source], None] | None = None
    ) -> VersionFollower:
        """A follower of a server that has just started."""
        registered = parse_reference(REFERENCE)
        assert registered is not None
        source = open_first(REFERENCE)
        ServedVersion.of(source).write(self.settings.version_file)
        file, given = self.settings.version_file, check or self.check
        common = file, given, self.counters, poll_s
        return VersionFollower(REFERENCE, registered, "alias", source, *common)

    def check(self, source: Source) -> None:
        self.checked.append(str(source.version))
        self_check(self.settings, source)

    @property
    def served(self) -> ServedVersion:
        return ServedVersion.read(self.settings.version_file)


@pytest.fixture
def place(store: Path, tmp_path: Path) -> Place:
    settings = make_settings(tmp_path)
    client = connect()
    client.create_registered_model("vae")
    place = Place(tmp_path, client, settings, SharedCounters(tmp_path / "counters", 2, 0))
    assert place.add("first", partial(reseal, seed=1)) == "1"
    assert place.add("second", partial(reseal, seed=2)) == "2"
    place.point("1")
    return place


def golden_without_an_output(folder: Path) -> str:
    with np.load(folder / GOLDEN) as arrays:
        golden = {name: array for name, array in arrays.items() if name != "score.elbo"}
    np.savez(folder / GOLDEN, **golden)
    return reseal(folder)


def golden_of_other_shape(folder: Path) -> str:
    with np.load(folder / GOLDEN) as arrays:
        golden = dict(arrays)
    golden["decode.x_loc"] = golden["decode.x_loc"][:, :2]
    np.savez(folder / GOLDEN, **golden)
    return reseal(folder)


def golden_that_is_no_archive(folder: Path) -> str:
    (folder / GOLDEN).write_bytes(b"no zip")
    return reseal(folder)


def manifest_of_other_types(folder: Path) -> str:
    return reseal(folder, x_shape=["six", "five"])


def graph_that_is_no_graph(folder: Path) -> str:
    (folder / "encoder.onnx").write_bytes(b"no graph")
    return reseal(folder)


def graph_of_another_operation(folder: Path) -> str:
    shutil.copy(folder / "decoder.onnx", folder / "encoder.onnx")
    return reseal(folder)


def file_too_many(folder: Path) -> str:
    digest = reseal(folder)
    (folder / "more").touch()
    return digest


SPOILT = (
    golden_without_an_output,
    golden_of_other_shape,
    golden_that_is_no_archive,
    manifest_of_other_types,
    graph_that_is_no_graph,
    graph_of_another_operation,
    file_too_many,
)


@pytest.mark.parametrize("spoil", SPOILT, ids=[spoil.__name__ for spoil in SPOILT])
def test_whatever_is_wrong_with_a_version_it_is_refused_and_the_next_is_taken_up(
    place: Place, spoil: Callable[[Path], str]
) -> None:
    follower = place.follower()
    bad = place.add("bad", spoil)
    place.point(bad)
    follower.poll()
    assert (place.served.version, place.counters.get("reload_failures")) == ("1", 1)
    assert place.served.refused is not None
    assert place.served.refused["version"] == bad
    assert place.served.refused["reason"]
    place.point("2")
    follower.poll()
    assert place.served.version == "2"
    assert place.served.refused is None


def test_a_version_is_checked_before_workers_are_told_of_it(place: Place) -> None:
    known: list[str | None] = []

    def check(source: Source) -> None:
        place.check(source)
        known.append(place.served.version)

    follower = place.follower(check=check)
    before = place.settings.version_file.stat().st_mtime_ns
    follower.poll()
    assert place.settings.version_file.stat().st_mtime_ns == before
    place.point("2")
    follower.poll()
    assert (place.checked, known) == (["2"], ["1"])
    assert place.served.version == "2"
    assert open_bundle(Path(place.served.path)).manifest.seed == 2


def test_a_refused_version_is_tried_again_after_a_while(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [True]

    def check(source: Source) -> None:
        place.check(source)
        if faults:
            raise VerificationFailed("for now")

    follower = place.follower(check=check)
    place.point("2")
    for _ in range(3):
        follower.poll()
    assert place.checked == ["2"]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + version_follower.RETRY_S + 1)
    faults.clear()
    follower.poll()
    assert place.checked == ["2", "2"]
    assert (place.served.version, place.served.refused) == ("2", None)


def test_an_alias_that_is_deleted_changes_nothing(place: Place) -> None:
    follower = place.follower()
    place.client.delete_registered_model_alias("vae", "champion")
    follower.poll()
    assert (place.served.version, place.served.refused) == ("1", None)
    assert place.counters.get("registry_failures") == place.counters.get("reload_failures") == 0
    place.point("2")
    follower.poll()
    assert place.served.version == "2"


def test_a_store_that_fails_is_counted_and_said_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving")
    follower = place.follower()
    monkeypatch.setattr(champion, "alias_version", fail)
    for _ in range(3):
        follower.poll()
    assert place.counters.get("registry_failures") == 3
    assert (place.served.version, place.served.refused) == ("1", None)
    assert caplog.messages == ["still serving version 1: no store today"]
    monkeypatch.undo()
    place.point("2")
    follower.poll()
    assert place.served.version == "2"
    assert "the registry can be reached again" in caplog.messages


def fail(*_: object) -> None:
    raise VaeError("no store today")


def test_a_cache_that_cannot_be_written_does_not_end_the_following(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full; the next poll tries again."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    follower = place.follower()
    with monkeypatch.context() as patch:
        patch.setattr(version_follower, "remember", full)
        place.point("2")
        follower.poll()
    follower.poll()
    assert place.served.version == "2"


def test_a_full_disk_does_not_end_the_following(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the new version nor its refusal can be written; both follow once there is room."""

    def full(version: ServedVersion, file: Path) -> None:
        raise VaeError(f"cannot write {file}: No space left on device")

    follower = place.follower()
    place.point("2")
    with monkeypatch.context() as patch:
        patch.setattr(ServedVersion, "write", full)
        follower.poll()
    assert place.served.version == "1"
    assert follower.source.version == "1"
    assert any("version 2 is refused, still serving 1" in said for said in caplog.messages)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + version_follower.RETRY_S + 1)
    follower.poll()
    assert (place.served.version, place.served.refused) == ("2", None)


def test_a_request_to_poll_during_a_poll_is_not_lost(place: Place) -> None:
    """A webhook tells of a second move while the first version is still being fetched."""

    def check(source: Source) -> None:
        if source.version == "2":
            place.point("3")
            place.counters.set_flag("poll_requests", value=place.counters.get("poll_requests") + 1)

    place.add("third", partial(reseal, seed=3))
    follower = place.follower(check=check, poll_s=600)
    place.point("2")
    threading.Thread(target=follower.run, daemon=True).start()
    wait_for("version 3 is to be served", lambda: place.served.version == "3", patience_s=5)


def test_a_start_needs_no_registry_once_the_version_was_served(place: Place) -> None:
    sources = {reference: open_first(reference) for reference in (REFERENCE, "models:/vae/2")}
    assert [source.version for source in sources.values()] == ["1", "2"]
    (place.folder / "mlflow.db").write_bytes(b"no store")
    for reference, source in sources.items():
        assert open_first(reference) == source
    with pytest.raises(VaeError):
        open_source(REFERENCE)
    with pytest.raises(VaeError):
        open_first("models:/vae/1")  # not asked for in this form before


def test_a_start_serves_the_version_that_the_last_poll_found(place: Place) -> None:
    follower = place.follower()
    place.point("2")
    follower.poll()
    (place.folder / "mlflow.db").write_bytes(b"no store")
    assert open_first(REFERENCE).version == "2"


def test_a_refused_version_is_not_remembered(place: Place) -> None:
    follower = place.follower(check=fail_verification)
    follower.poll()
    place.point(place.add("bad", golden_that_is_no_archive))
    follower.poll()
    (place.folder / "mlflow.db").write_bytes(b"no store")
    assert open_first(REFERENCE).version == "1"


def fail_verification(_: Source) -> None:
    raise VerificationFailed("not this one")


def test_a_damaged_cache_is_not_served(place: Place) -> None:
    bundle = open_first("models:/vae/1").bundle
    (bundle.path / "encoder.onnx").write_bytes(b"changed on this disk")
    again = open_first("models:/vae/1")  # fetched anew
    assert again.bundle == bundle
    assert open_bundle(again.bundle.path).manifest.seed == 1
    (bundle.path / "encoder.onnx").write_bytes(b"changed on this disk")
    (place.folder / "mlflow.db").write_bytes(b"no store")
    with pytest.raises(VaeError):
        open_first("models:/vae/1")
