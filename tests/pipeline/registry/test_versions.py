import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipeline.config import Config
from pipeline.data.dataset import Split
from pipeline.errors import ParityFailed
from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import promote
from pipeline.registry.references import resolve_version
from pipeline.registry.versions import lineage_tags, register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import alias_version, connect, store_errors
from serving.source import fetch_version, open_source
from tests.e2e.versions import reseal
from tests.pipeline.parity.mutations import change_report
from tests.pipeline.registry.versions import GATE, champion, promote_with, register, stored_files
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")


def verify_version(version: str, folder: Path) -> str:
    return fetch_version(connect(), "vae", version, folder).bundle.manifest.digest


def test_a_version_is_its_bundle_with_its_lineage(sealed: Bundle) -> None:
    version = register(sealed)
    client = connect()
    registered = client.get_model_version("vae", version)
    assert registered.tags["bundle.sha256"] == sealed.manifest.digest
    assert registered.tags["git.sha"] == "0" * 40
    assert registered.tags["git.dirty"] == "False"
    splits = sealed.manifest.data["splits"]
    for split in ("train", "valid", "test"):
        assert registered.tags[f"data.{split}.sha256"] == splits[split]["sha256"]
    assert alias_version(client, "vae", "candidate") == version == "1"
    assert champion() is None
    source = open_source("models:/vae@candidate")
    assert (source.name, source.version) == ("vae", "1")
    assert source.bundle.manifest == sealed.manifest
    assert open_source("models:/vae/1").bundle.manifest == sealed.manifest


def test_the_same_bundle_is_registered_once(sealed: Bundle, worse: Bundle) -> None:
    assert [register(sealed), register(worse), register(sealed)] == ["1", "2", "1"]
    assert alias_version(connect(), "vae", "candidate") == "1"


def test_a_bundle_without_parity_is_not_registered(bundle: Bundle) -> None:
    with pytest.raises(ParityFailed, match="cannot be registered: parity failed"):
        register(change_report(bundle, verdict="failed"))
    assert connect().search_model_versions("name='vae'") == []


def test_a_damaged_file_is_named_by_its_version_and_not_by_its_place_in_the_cache(
    sealed: Bundle,
) -> None:
    register(sealed)
    damaged = stored_files("1") / "encoder.onnx"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(VerificationFailed) as caught:
        open_source("models:/vae/1")
    assert str(caught.value).startswith("version 1 of vae: encoder.onnx is not the file that was ")
    damaged.unlink()
    with pytest.raises(VerificationFailed) as caught:
        open_source("models:/vae/1")
    assert str(caught.value).startswith("cannot read version 1 of vae: encoder.onnx: No such file")


def test_references(sealed: Bundle) -> None:
    register(sealed)
    assert resolve_version("vae", "@candidate") == ("vae", "1")
    assert resolve_version("vae", "7") == ("vae", "7")
    assert resolve_version("other", "models:/vae/7") == ("vae", "7")
    assert resolve_version("other", "models:/vae@candidate") == ("vae", "1")
    with pytest.raises(UsageRefused, match=r"^vae has no version @champion: it has @candidate$"):
        resolve_version("vae", "@champion")
    with pytest.raises(UsageRefused, match=r"^there is no model 'other' in .*: it has vae$"):
        resolve_version("other", "@champion")
    with pytest.raises(UsageRefused, match="must be a number, an alias such as"):
        resolve_version("vae", "latest")
    with pytest.raises(UsageRefused, match=r"models:/NAME@ALIAS or models:/NAME/VERSION"):
        open_source("models:/vae")
    with pytest.raises(UsageRefused, match=r"vae has no champion in sqlite:.*: it has candidate$"):
        open_source("models:/vae@champion")
    with pytest.raises(UsageRefused, match=r"vae has no version 99 in sqlite:"):
        open_source("models:/vae/99")
    with pytest.raises(UsageRefused, match=r"vae has no version 99 in sqlite:"):
        promote("vae", "99", lambda manifest: Split(np.zeros(0), ""), GATE, threads=1)
    assert list_decisions("vae") == []


def test_a_resealed_bundle_in_the_registry_is_found(
    sealed: Bundle, worse: Bundle, tmp_path: Path
) -> None:
    """Whoever changes both files and manifest still cannot change the registered digest."""
    version = register(sealed)
    for file in worse.path.iterdir():
        (stored_files(version) / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        VerificationFailed, match=r"^version 1 of vae holds bundle .* was registered"
    ):
        verify_version(version, tmp_path)


def test_a_damaged_cache_is_fetched_again(sealed: Bundle) -> None:
    register(sealed)
    cached = open_source("models:/vae/1").bundle.path
    (cached / "decoder.onnx").write_bytes(b"rot")
    assert open_source("models:/vae/1").bundle.manifest == sealed.manifest


@pytest.mark.parametrize("digest", ["", "/", "../../mine", "0" * 63], ids=str)
def test_a_tag_that_is_no_digest_never_becomes_a_path(
    sealed: Bundle, tmp_path: Path, digest: str
) -> None:
    register(sealed)
    mine = tmp_path / "mine"
    mine.mkdir()
    connect().set_model_version_tag("vae", "1", "bundle.sha256", digest or str(mine))
    with pytest.raises(VerificationFailed, match=r"has no digest in its tag bundle.sha256"):
        open_source("models:/vae/1")
    assert mine.exists()


def purge(store: Path, *runs: str) -> None:
    """Delete runs for good, as a person does: mark them, then run `mlflow gc`."""
    for run in runs:
        connect().delete_run(run)
    # in a process of its own, because at its import it sets the store of the whole process
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", f"sqlite:///{store}"]
    subprocess.run(command, check=True, capture_output=True)
    for run in runs:
        with pytest.raises(MlflowException):
            connect().get_run(run)


def test_a_version_keeps_its_lineage_when_its_run_is_deleted(
    sealed: Bundle, trained: Trained, store: Path, tmp_path: Path
) -> None:
    with tracked_run("test") as run:
        bundle = reseal(shutil.copytree(sealed.path, tmp_path / "bundle"), run_id=run.run_id)
        version = register_bundle(run, bundle, "vae")
    purge(store, run.run_id)
    manifest = fetch_version(connect(), "vae", version, tmp_path).bundle.manifest
    assert manifest.run_id == run.run_id
    assert manifest.git == {"sha": "0" * 40, "dirty": False}
    assert Config.from_json(manifest.config) == trained[0].config
    assert manifest.data == trained[1].describe()
    tags = connect().get_model_version("vae", version).tags
    assert tags["run.id"] == run.run_id
    assert (tags["git.sha"], tags["git.dirty"]) == ("0" * 40, "False")
    digests = {name: tags[f"data.{name}.sha256"] for name in ("train", "valid", "test")}
    assert digests == trained[1].digests()
    assert promote_with(trained, version).decision == "promoted"


def test_a_version_whose_files_were_purged_is_refused(
    sealed: Bundle, trained: Trained, store: Path, tmp_path: Path
) -> None:
    """The registry still calls it READY, but its files are gone."""
    version = register(sealed)
    model = connect().get_model_version("vae", version).source.removeprefix("models:/")
    connect().delete_logged_model(model)
    purge(store)
    assert connect().get_model_version("vae", version).status == "READY"
    with pytest.raises(VerificationFailed, match="vae version 1 no longer has files in the store"):
        verify_version(version, tmp_path)
    with pytest.raises(VerificationFailed, match="vae version 1 no longer has files in the store"):
        promote_with(trained, version)


def test_an_error_of_the_operating_system_does_not_name_the_store() -> None:
    def refuse(err: Exception) -> str:
        with pytest.raises(VaeError) as caught, store_errors():
            raise err
        return str(caught.value)

    full = OSError(errno.ENOSPC, "No space left on device")
    assert refuse(full) == "No space left on device"
    closed = PermissionError(errno.EACCES, "Permission denied", "/cache/x")
    assert refuse(closed) == "cannot use /cache/x: Permission denied"
    for err in (ConnectionRefusedError("no"), TimeoutError("no"), MlflowException("no")):
        assert refuse(err).startswith("the MLflow store sqlite:///")
    with pytest.raises(ValueError, match="a mistake of ours"), store_errors():
        raise ValueError("a mistake of ours")


def test_the_tags_tell_where_a_version_comes_from(sealed: Bundle, trained: Trained) -> None:
    checkpoint, dataset = trained
    config = json.dumps(checkpoint.config.to_json(), sort_keys=True, separators=(",", ":"))
    metrics = sealed.read_json("metrics.json")
    assert lineage_tags(sealed) == {
        "bundle.sha256": sealed.manifest.digest,
        "run.id": "None",
        "git.sha": "0" * 40,
        "git.dirty": "False",
        "config.sha256": hashlib.sha256(config.encode()).hexdigest(),
        "data.source": dataset.source,
        "data.train.sha256": dataset.train.sha256,
        "data.valid.sha256": dataset.valid.sha256,
        "data.test.sha256": dataset.test.sha256,
        "parity.status": "passed",
        "precision": "float32",
        **{name: str(metrics[name]) for name in ("elbo", "nll", "active_units")},
        "latents": "3",
    }


def test_the_registry_shows_the_card_without_its_pictures(sealed: Bundle) -> None:
    register(sealed)
    description = connect().get_model_version("vae", "1").description
    assert "![" not in description
    assert "each line above" not in description
    assert "## How good it is" in description
    assert "--model models:/vae/1 " in description
    assert "NAME" not in description
    assert "| active latents&emsp; | " in description  # MLflow leaves no space between cells
