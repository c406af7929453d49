"""Signed versions at every door: promote, score, serve and MLflow's pyfunc.

Who can write to the store changes a version and makes all digests right again, the tag too.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.registry.audit_log import list_decisions
from pipeline.registry.versions import SIGNER_TAG
from serving.bundle import SIGNATURE, Bundle, read_manifest
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import DIGEST_TAG, alias_version, connect
from serving.server.supervisor import open_first
from serving.signatures import fingerprint
from serving.source import open_source
from tests.pipeline.registry.versions import champion, register, stored_files
from tests.signing import FAULTS, KeyPair, make_key, model_signing, signed
from tests.trained_models import Trained

pytestmark = [
    pytest.mark.usefixtures("store"),
    # mlflow loads models-from-code by an importlib call that Python 3.11 calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib"),
]

Door = Callable[[str, Path | None], object]
UNJUDGED = ("--min-active-units", "0", "--margin", "1000")


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


@pytest.fixture
def doors(
    vae: Any, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Door]:
    """What uses a version, given its number and a public key, by name."""
    np.save(tmp_path / "rows.npy", trained[1].test.x[:20])

    def option(key: Path | None) -> tuple[str, ...]:
        return ("--verify-key", str(key)) if key else ()

    def score(version: str, key: Path | None) -> object:
        model = ("--model", f"models:/vae/{version}", *option(key), "--overwrite")
        return vae("score", str(tmp_path / "rows.npy"), str(tmp_path / "scores"), *model)

    def pyfunc(version: str, key: Path | None) -> object:
        import mlflow

        with monkeypatch.context() as patch:
            patch.setenv("VAE_VERIFY_KEY", str(key or ""))
            model = mlflow.pyfunc.load_model(f"models:/vae/{version}")
            return model.predict(trained[1].test.x[:3], params={"operation": "score"})

    return {
        "promote": lambda version, key: vae("promote", version, *UNJUDGED, *option(key)),
        "score": score,
        "serve": lambda version, key: open_first(f"models:/vae/{version}", key),
        "pyfunc": pyfunc,
        "verify": lambda version, key: vae("verify", version, *option(key)),
    }


def spoil_version(version: str, fault: str, other: KeyPair) -> str:
    """Do what a fault says to the files of a version, and tag it with their digest."""
    spoil, reason = FAULTS[fault]
    spoil(stored_files(version), other)
    digest = read_manifest(stored_files(version)).digest
    connect().set_model_version_tag("vae", version, DIGEST_TAG, digest)
    return reason


def test_a_signed_version_passes_every_door(
    vae: Any, sealed: Bundle, key: KeyPair, doors: dict[str, Door]
) -> None:
    version = vae("register", str(sealed.path), "--sign", str(key.private))["version"]
    for door in doors.values():
        door(version, key.public)
    assert champion() == version
    assert not (sealed.path / SIGNATURE).exists()  # the folder stays as it was
    tags = connect().get_model_version("vae", version).tags
    assert tags[SIGNER_TAG] == fingerprint(key.public)
    assert tags[DIGEST_TAG] == sealed.manifest.digest


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_every_door(
    vae: Any, sealed: Bundle, key: KeyPair, doors: dict[str, Door], tmp_path: Path, fault: str
) -> None:
    version = vae("register", str(sealed.path), "--sign", str(key.private))["version"]
    reason = spoil_version(version, fault, make_key(tmp_path, "other"))
    for name, door in doors.items():
        with pytest.raises((VerificationFailed, ValueError), match=reason) as caught:
            door(version, key.public)
        if isinstance(caught.value, VaeError):
            assert caught.value.exit_code == 7
            assert str(caught.value).startswith((f"version {version} of vae ", "the signature of "))
        else:
            assert name == "pyfunc"
    assert champion() is None
    assert [row["decision"] for row in list_decisions("vae")] == ["refused"]
    for door in doors.values():  # without the key nothing is noticed: the digests are right
        door(version, None)


def test_the_variable_asks_for_a_signature_as_the_option_does(
    vae: Any, sealed: Bundle, key: KeyPair, doors: dict[str, Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(sealed)
    monkeypatch.setenv("VAE_VERIFY_KEY", str(key.public))
    monkeypatch.chdir(key.public.parent)
    for name in ("promote", "score", "verify"):
        with pytest.raises(VerificationFailed, match="has no signature") as caught:
            doors[name](version, None)
        assert caught.value.exit_code == 7
    with pytest.raises(VerificationFailed, match="has no signature"):
        vae("sample", "--model", f"models:/vae/{version}", "--out", "y.npy")
    with pytest.raises(VerificationFailed, match="has no signature"):
        vae("deploy", "--model", f"models:/vae/{version}", "--target", "triton", "--out", "t")
    monkeypatch.setenv("VAE_VERIFY_KEY", "")
    assert doors["verify"](version, None) == {
        "name": "vae",
        "version": version,
        "digest": sealed.manifest.digest,
        "verified": True,
    }


def test_a_file_of_options_can_ask_for_a_signature(
    vae: Any, sealed: Bundle, key: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    monkeypatch.chdir(tmp_path)
    for command in (("score", "in", "out"), ("serve",), ("promote",)):
        vae("config", *command, "--verify-key", "key.pub", "--write", "options.toml")
        assert f'verify-key = "{key.public}"' in Path("options.toml").read_text()
        shown = vae("config", *command, "--config", "options.toml")["options"]["verify-key"]
        assert shown == {"value": str(key.public), "source": "options.toml"}
    model = ("--model", "models:/vae/1", "--config", "options.toml")
    np.save("rows.npy", np.zeros((3, 6, 5), np.uint8))
    Path("options.toml").write_text('verify-key = "key.pub"\n')
    with pytest.raises(VerificationFailed, match="has no signature"):
        vae("score", "rows.npy", "scores", *model)


def test_a_version_never_changes_so_that_its_bundle_with_another_signature_is_a_new_one(
    vae: Any, sealed: Bundle, key: KeyPair, tmp_path: Path
) -> None:
    other = make_key(tmp_path, "other")

    def add(*options: str) -> str:
        return str(vae("register", str(sealed.path), *options)["version"])

    assert add() == "1"
    open_source("models:/vae/1")  # the cache has these files now, without a signature
    assert add("--sign", str(key.private)) == "2"
    assert add("--sign", str(key.private)) == "2"
    assert add("--sign", str(other.private)) == "3"
    assert add() in ("1", "2", "3")
    for version, pair in (("2", key), ("3", other), ("2", key)):
        assert open_source(f"models:/vae/{version}", pair.public).version == version
    with pytest.raises(VerificationFailed, match=r"^version 1 of vae was signed with the key"):
        open_source("models:/vae/1", make_key(tmp_path, "third").public)


def test_the_champion_is_compared_with_only_if_it_is_signed_too(
    vae: Any, sealed: Bundle, worse: Bundle, key: KeyPair
) -> None:
    vae("promote", vae("register", str(sealed.path))["version"], *UNJUDGED)
    vae("register", str(worse.path), "--sign", str(key.private))
    asked = ("--verify-key", str(key.public), *UNJUDGED)
    with pytest.raises(
        VerificationFailed, match="champion 1 cannot be compared with: version 1 of"
    ):
        vae("promote", "2", *asked)
    assert champion() == "1"
    again = vae("register", str(sealed.path), "--sign", str(key.private))["version"]
    assert vae("promote", again, *asked)["decision"] == "promoted"  # of the same files
    assert vae("promote", "2", *asked)["decision"] == "promoted"
    assert vae("rollback", "--verify-key", str(key.public))["version"] == again
    with pytest.raises(VerificationFailed, match="has no signature"):
        vae("promote", "1", *asked)


def test_upstream_s_command_verifies_a_version_that_was_fetched(
    vae: Any, sealed: Bundle, key: KeyPair
) -> None:
    version = vae("register", str(sealed.path), "--sign", str(key.private))["version"]
    fetched = open_source(f"models:/vae/{version}").bundle.path
    words = ("--signature", fetched / SIGNATURE, "--public_key", key.public)
    good = model_signing("verify", "key", fetched, *words)
    assert (good.returncode, good.stdout) == (0, "Verification succeeded\n")
    (fetched / "MODEL_CARD.md").write_text("another")
    assert model_signing("verify", "key", fetched, *words).returncode == 1


def test_a_folder_that_upstream_s_command_signed_passes_every_door(
    bundle: Bundle, key: KeyPair, doors: dict[str, Door]
) -> None:
    place = ("--signature", bundle.path / SIGNATURE)
    done = model_signing("sign", "key", bundle.path, "--private_key", key.private, *place)
    assert done.returncode == 0, done.stderr
    version = register(bundle)
    for door in doors.values():
        door(version, key.public)
    assert alias_version(connect(), "vae", "candidate") == version


def test_a_folder_that_was_changed_after_it_was_signed_is_not_registered(
    vae: Any, bundle: Bundle, key: KeyPair
) -> None:
    signature = (signed(bundle, key).path / SIGNATURE).read_text()
    content = json.loads((bundle.path / "manifest.json").read_text())
    (bundle.path / "manifest.json").write_text(json.dumps(content))  # the same to a reader
    with pytest.raises(VerificationFailed, match=r"model\.sig in .*bundle is of other files"):
        vae("register", str(bundle.path))
    assert (bundle.path / SIGNATURE).read_text() == signature
    assert vae("register", str(bundle.path), "--sign", str(key.private))["version"] == "1"
    open_source("models:/vae/1", key.public)


def test_a_bad_key_is_refused_before_anything_is_fetched(
    vae: Any, sealed: Bundle, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (("promote", "9"), ("verify", "9"), ("rollback",), ("serve",)):
        with pytest.raises(UsageRefused, match="is no PEM public key") as caught:
            vae(*command, "--verify-key", str(key.private))
        assert caught.value.exit_code == 2
    with pytest.raises(UsageRefused, match="cannot sign with"):
        vae("register", str(sealed.path), "--sign", str(key.public))
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageRefused, match=r"pip install 'vae-pipeline\[sign\]'"):
        vae("score", "x.npy", "out", "--verify-key", str(key.public))


def test_an_encrypted_key_takes_its_password_from_a_variable(
    vae: Any, sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path, "locked", password="geheim")
    words = ("register", str(sealed.path), "--sign", str(key.private))
    with pytest.raises(UsageRefused, match="VAE_SIGN_PASSWORD"):
        vae(*words)
    monkeypatch.setenv("VAE_SIGN_PASSWORD", "geheim")
    assert vae("verify", vae(*words)["version"], "--verify-key", str(key.public))["signed"]


def test_pyfunc_opens_no_graph_that_was_exchanged_after_it_was_loaded(
    sealed: Bundle, key: KeyPair, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    version = register(signed(copy_of(sealed, tmp_path), key))
    monkeypatch.setenv("VAE_VERIFY_KEY", str(key.public))
    fetched = mlflow.artifacts.download_artifacts(f"models:/vae/{version}", dst_path=str(tmp_path))
    model = mlflow.pyfunc.load_model(fetched)
    graphs = Path(fetched, "artifacts", "bundle")
    shutil.copy(graphs / "decoder.onnx", graphs / "reconstruct.onnx")
    with pytest.raises(ValueError, match=r"reconstruct\.onnx is not the file that was sealed"):
        model.predict(trained[1].test.x[:3])


def test_pyfunc_names_what_is_missing(
    sealed: Bundle, key: KeyPair, monkeypatch: pytest.MonkeyPatch, doors: dict[str, Door]
) -> None:
    version = register(sealed)
    with pytest.raises(ValueError, match="must name an EC public key"):
        doors["pyfunc"](version, key.private)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ValueError, match=r"pip install 'vae-pipeline\[sign\]'"):
        doors["pyfunc"](version, key.public)


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle(Path(shutil.copytree(bundle.path, folder / "bundle")), bundle.manifest)
