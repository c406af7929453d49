"""A server with `--verify-key`: at its start, from the cache, and at every version it takes up."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from serving.bundle import SIGNATURE, open_bundle
from serving.errors import VerificationFailed
from serving.server.supervisor import open_first
from serving.server.version_follower import ServedVersion
from serving.source import Source, open_cached, remember
from serving.user_folders import cache_folder
from tests.e2e.conftest import VAE, clean_environment
from tests.e2e.versions import reseal
from tests.integration import test_version_follower
from tests.integration.test_version_follower import REFERENCE, Place
from tests.serving.conftest import SEALED
from tests.serving.running import serve
from tests.serving.server.asking import wait_for
from tests.signing import FAULTS, KeyPair, make_key, signed

place = test_version_follower.place


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


def sign_as(key: KeyPair, seed: int, folder: Path) -> str:
    """Make a bundle of its own of a folder, and sign it."""
    return signed(reseal(folder, seed=seed), key).manifest.digest


def spoil_as(fault: str, key: KeyPair, other: KeyPair, folder: Path) -> str:
    sign_as(key, 8, folder)
    FAULTS[fault][0](folder, other)
    return open_bundle(folder).manifest.digest


def add_champion(place: Place, key: KeyPair) -> str:
    version = place.add("signed", partial(sign_as, key, 7))
    place.point(version)
    return version


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_with_a_fault_is_never_taken_up(
    place: Place,
    key: KeyPair,
    fault: str,
) -> None:
    good = add_champion(place, key)
    follower = place.follower()
    follower.verify_key = key.public
    bad = place.add("bad", partial(spoil_as, fault, key, make_key(place.folder, "other")))
    place.point(bad)
    follower.poll()
    assert (place.served.version, place.counters.get("reload_failures")) == (good, 1)
    assert place.served.refused is not None
    assert place.served.refused["version"] == bad
    assert place.checked == []
    later = place.add("later", partial(sign_as, key, 9))
    place.point(later)
    follower.poll()
    assert place.served == ServedVersion.of(follower.source)
    assert place.served.version == later
    follower.verify_key = None  # without the key, the bad one is as good as any
    place.point(bad)
    follower.poll()
    assert place.served.version == bad


def test_a_cached_version_is_verified_too(place: Place, key: KeyPair) -> None:
    unsigned = open_first(REFERENCE)
    assert open_cached(REFERENCE) == unsigned
    assert open_cached(REFERENCE, key.public) is None
    with pytest.raises(VerificationFailed, match=r"^version 1 of vae has no signature"):
        open_first(REFERENCE, key.public)
    version = add_champion(place, key)
    first = open_first(REFERENCE, key.public)
    assert first.version == version
    assert open_cached(REFERENCE, key.public) == first
    (first.bundle.path / SIGNATURE).write_text("rot")
    assert open_cached(REFERENCE, key.public) is None
    assert open_first(REFERENCE, key.public) == first  # its signature was fetched again
    assert open_cached(REFERENCE, key.public) == first


def test_files_that_were_exchanged_in_the_cache_are_fetched_again(
    place: Place, key: KeyPair
) -> None:
    add_champion(place, key)
    first = open_first(REFERENCE, key.public)
    other = open_bundle(Path(shutil.copytree(SEALED, cache_folder() / "other")))
    forged = other.path.rename(cache_folder() / other.manifest.digest)
    remember(REFERENCE, Source(open_bundle(forged), "vae", first.version))
    assert open_first(REFERENCE, key.public) == first


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_does_not_start_with_a_fault(tmp_path: Path, key: KeyPair, fault: str) -> None:
    folder = Path(shutil.copytree(SEALED, tmp_path / "bundle"))
    spoil_as(fault, key, make_key(tmp_path, "other"), folder)
    command = (*VAE, "serve", "--model", "bundle", "--port", "0", "--grpc-port", "0")
    env = clean_environment(tmp_path, {"VAE_VERIFY_KEY": str(key.public)})
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 7, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("error: ")


def test_a_server_takes_up_signed_versions_and_no_others(place: Place, key: KeyPair) -> None:
    good = add_champion(place, key)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{place.folder / 'mlflow.db'}"}
    poll = ("--poll", "0.2", "--workers", "2", "--follow", "alias", "--verify-key", str(key.public))
    with serve(place.folder, REFERENCE, *poll, **store) as running:
        assert running.version == good
        place.point("2")  # which has no signature
        wait_for("refused", lambda: "version 2 is refused" in running.log.read_text())
        assert "version 2 of vae has no signature model.sig" in running.log.read_text()
        later = place.add("later", partial(sign_as, key, 9))
        place.point(later)
        wait_for("served", lambda: running.log.read_text().count(f"serving version {later}") == 2)
        assert "serving version 2" not in running.log.read_text()
