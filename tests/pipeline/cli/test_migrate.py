"""`vae migrate` on a folder and on a registered version."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from pipeline.errors import ParityFailed
from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.mlflow_store import DIGEST_TAG, connect
from tests.e2e.versions import other_model
from tests.pipeline.registry.versions import alias, champion, promote_with, register
from tests.schema_1 import write_schema_1
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def old(sealed: Bundle, tmp_path: Path) -> Bundle:
    return write_schema_1(sealed, tmp_path / "old")


def test_a_folder_becomes_a_checked_bundle_that_can_be_registered(
    old: Bundle, vae: Any, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    said = vae("migrate", str(old.path), "--out", str(out), "--threads", "1")
    assert said["parity"] == "passed"
    new = open_bundle(out)
    assert said["digest"] == new.manifest.digest
    compared = {row["operation"] for row in new.read_json("parity.json")["comparisons"]}
    assert compared == new.all_forms.keys()
    assert "float64" not in new.manifest.needs["score_portable.onnx"]["types"]
    rows = np.load(old.path / "golden.npz")["score.x"]
    scores = [Engine(bundle).score(rows, 3, seed=7) for bundle in (old, new)]
    for name, value in scores[0].items():
        assert value.tobytes() == scores[1][name].tobytes(), name
    assert vae("register", str(out))["version"] == "1"


def test_a_version_becomes_a_new_one_and_stays(
    old: Bundle, trained: Trained, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipeline.registry.versions.SCHEMA_VERSION", 1)
        assert promote_with(trained, register(old)).decision == "promoted"
    said = vae("migrate", "models:/vae/1", "--threads", "1")
    assert (said["name"], said["version"], said["parity"]) == ("vae", "2", "passed")
    assert (champion(), alias("candidate")) == ("1", "2")
    tags = connect().get_model_version("vae", "2").tags
    assert tags[DIGEST_TAG] == said["digest"]

    assert (
        vae("promote", "2", "--min-active-units", "0", "--threads", "1")["decision"] == "promoted"
    )
    for number in ("1", "2"):
        assert vae("verify", number)["version"] == number
        out = str(tmp_path / f"{number}.npy")
        vae("sample", "--model", f"models:/vae/{number}", "--count", "3", "--out", out)
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()
    vae("rollback")
    assert champion() == "1"


def test_a_bundle_whose_graphs_are_of_another_model_fails(
    sealed: Bundle, vae: Any, tmp_path: Path
) -> None:
    other = other_model(sealed.path, tmp_path / "other")
    old = write_schema_1(other, tmp_path / "old")
    with pytest.raises(ParityFailed):
        vae("migrate", str(old.path), "--out", str(tmp_path / "new"), "--threads", "1")


def test_a_bundle_of_an_earlier_schema_is_migrated_before_it_is_registered(
    old: Bundle, vae: Any
) -> None:
    with pytest.raises(UsageRefused, match=r"is of schema 1, .* run vae migrate"):
        vae("register", str(old.path))


def test_a_bundle_of_today_is_refused_before_its_data_is_read(
    sealed: Bundle, vae: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageRefused, match="is of schema 2 already"):
        vae("migrate", str(sealed.path), "--out", str(tmp_path / "new"), "--data", "nowhere")


def test_a_folder_needs_a_place(old: Bundle, vae: Any) -> None:
    with pytest.raises(click.UsageError, match="a bundle folder needs --out"):
        vae("migrate", str(old.path))


def test_a_folder_that_exists_is_refused_before_anything_is_read(vae: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match="exists"):
        vae("migrate", str(tmp_path / "nothing"), "--out", str(tmp_path))
