"""Follow the challenger of a server in the registry, and report its sums there."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from serving.bundle import open_bundle
from serving.errors import UsageRefused
from serving.live.challenger import ChallengerFollower, server_id
from serving.live.shared_files import Challenger, write_sums_file
from serving.live_sums import LiveSums, merge_sums
from serving.mlflow_store import DIGEST_TAG, connect
from tests.e2e import versions
from tests.serving.conftest import SEALED
from tests.signing import make_key, signed

ALIAS = "models:/vae@candidate"
CHAMPION = "c" * 64


@dataclass(frozen=True, slots=True)
class Place:
    """A store with versions 1 and 2 of `vae`, and the files of a server."""

    folder: Path
    client: MlflowClient
    digests: tuple[str, ...]

    def follower(self, reference: str = ALIAS, server: str = "one") -> ChallengerFollower:
        folder = self.folder
        return ChallengerFollower(
            reference, folder / "challenger.json", folder / "sums.json", server, poll_s=600
        )

    @property
    def named(self) -> Challenger:
        return Challenger.read(self.folder / "challenger.json")

    def see(self, rows: int, challenger: str | None = None) -> None:
        """Write sums as the observer does."""
        sums = LiveSums(champion=CHAMPION, challenger=challenger or self.digests[0])
        sums = sums.add_rows(np.zeros(rows), np.ones(rows), 5.0)
        write_sums_file(self.folder / "sums.json", [sums])

    def reported(self, version: str = "1") -> LiveSums:
        tags = self.client.get_model_version("vae", version).tags
        return merge_sums(CHAMPION, self.digests[int(version) - 1], tags)


@pytest.fixture
def place(store: Path, tmp_path: Path) -> Place:
    client = connect()
    client.create_registered_model("vae")
    digests = []
    for number in (1, 2):
        folder = tmp_path / f"version {number}" / "artifacts" / "bundle"
        shutil.copytree(SEALED, folder)
        digest = versions.reseal(folder, seed=number).manifest.digest
        source = str(tmp_path / f"version {number}")
        client.create_model_version("vae", source, tags={DIGEST_TAG: digest})
        digests.append(digest)
    return Place(tmp_path, client, tuple(digests))


def test_a_missing_alias_is_a_fault_until_there_is_one_and_it_is_followed(place: Place) -> None:
    follower = place.follower()
    follower.poll()
    assert place.named.fault == "vae has no candidate"
    for version, digest in (("1", place.digests[0]), ("2", place.digests[1])):
        place.client.set_registered_model_alias("vae", "candidate", version)
        follower.poll()
        named = place.named
        assert named.fault is None
        assert (named.version, named.digest) == (version, digest)
    place.client.delete_registered_model_alias("vae", "candidate")
    follower.poll()
    assert place.named.version == "2"


def test_a_damaged_version_is_a_fault(place: Place) -> None:
    (place.folder / "version 1" / "artifacts" / "bundle" / "score.onnx").write_bytes(b"")
    follower = place.follower("models:/vae/1")
    follower.poll()
    assert "version 1 of vae: score.onnx is not the file that was sealed" in str(place.named.fault)
    follower.report()


def test_a_challenger_without_a_signature_is_a_fault(place: Place, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    follower = replace(place.follower("models:/vae/1"), verify_key=key.public)
    follower.poll()
    assert place.named.digest == ""
    assert "version 1 of vae has no signature" in str(place.named.fault)

    signed(open_bundle(place.folder / "version 2" / "artifacts" / "bundle"), key)
    follower = replace(place.follower("models:/vae/2"), verify_key=key.public)
    follower.poll()
    assert (place.named.version, place.named.fault) == ("2", None)


def test_a_reference_that_is_none_is_refused_at_the_start(place: Place) -> None:
    with pytest.raises(UsageRefused, match="model must be a bundle folder"):
        place.follower("models:/vae")


def test_a_bundle_folder_is_compared_and_not_reported(place: Place) -> None:
    follower = place.follower(str(SEALED))
    follower.poll()
    named = place.named
    assert (named.name, named.version, named.path) == (None, None, str(SEALED))
    place.see(10, named.digest)
    follower.report()
    assert place.reported().rows == 0


def test_servers_add_up_and_one_that_is_started_again_goes_on(place: Place) -> None:
    for server, rows in (("one", (10, 30)), ("two", (5,)), ("one", (7, 9))):
        follower = place.follower("models:/vae/1", server)
        follower.poll()
        for seen in rows:
            place.see(seen)
            follower.report()
            follower.report()
    assert place.reported().rows == 30 + 5 + 9
    tags = place.client.get_model_version("vae", "1").tags
    assert len([name for name in tags if name.startswith("live.")]) == 2
    assert place.reported("2").rows == 0


def test_a_version_that_was_replaced_under_its_number_gets_no_sums(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    follower = place.follower("models:/vae/1")
    follower.poll()
    place.client.set_model_version_tag("vae", "1", DIGEST_TAG, "d" * 64)
    place.see(10)
    follower.report()
    assert place.reported().rows == 0
    assert "is another than the one that was compared" in caplog.text


def test_a_registry_that_is_away_is_said_once_and_reported_to_later(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    follower = place.follower("models:/vae/1")
    follower.poll()
    place.see(10)
    with monkeypatch.context() as patch:

        def away(*_: object) -> None:
            raise ConnectionError("away")

        patch.setattr(MlflowClient, "set_model_version_tag", away)
        follower.report()
        follower.report()
    assert caplog.text.count("cannot report live rows") == 1
    follower.report()
    assert place.reported().rows == 10


def test_a_server_keeps_its_name_and_others_have_another() -> None:
    assert server_id("127.0.0.1", 8080) == server_id("127.0.0.1", 8080)
    assert server_id("127.0.0.1", 8080) != server_id("127.0.0.1", 8081)


def test_the_content_of_a_tag_says_what_it_is(place: Place) -> None:
    follower = place.follower("models:/vae/1")
    follower.poll()
    place.see(10)
    follower.report()
    (text,) = (
        text
        for name, text in place.client.get_model_version("vae", "1").tags.items()
        if name.startswith("live.")
    )
    content = json.loads(text)
    assert content["champion"] == CHAMPION
    assert replace(place.reported(), rows=0, total=0.0, squares=0.0).since == 5.0
    assert (content["rows"], content["total"], content["until"]) == (10, 10.0, 5.0)
