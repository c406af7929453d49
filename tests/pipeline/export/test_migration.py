from pathlib import Path

import numpy as np
import pytest

from pipeline.export.migration import migrate_bundle
from serving.bundle import GRAPHS, METRICS, WEIGHTS, Bundle, open_bundle
from serving.engine import Engine
from serving.errors import UsageRefused, VerificationFailed
from serving.noise import noise_vectors
from tests.schema_1 import write_schema_1
from tests.trained_models import Trained


@pytest.fixture
def old(sealed: Bundle, tmp_path: Path) -> Bundle:
    return write_schema_1(sealed, tmp_path / "old")


def test_weights_and_graphs_stay_byte_for_byte(
    old: Bundle, trained: Trained, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in old.path.iterdir()}
    new = open_bundle(migrate_bundle(old, trained[0].model, tmp_path / "new").path)
    for name in (*GRAPHS, WEIGHTS, METRICS):
        assert (new.path / name).read_bytes() == before[name], name
    assert {path.name: path.read_bytes() for path in old.path.iterdir()} == before
    assert new.manifest.schema_version == 2
    assert new.manifest.migrated_from == old.manifest.digest
    assert "parity.json" not in new.manifest.files
    assert "Not checked yet" in (new.path / "MODEL_CARD.md").read_text()


def test_a_migrated_bundle_is_that_of_an_export(
    old: Bundle, sealed: Bundle, trained: Trained, tmp_path: Path
) -> None:
    new = migrate_bundle(old, trained[0].model, tmp_path / "new")
    assert {*new.manifest.files} == {*sealed.manifest.files} - {"parity.json"}
    for name in ("score_portable.onnx", "noise.onnx", "score_noise.onnx", "golden.npz"):
        assert (new.path / name).read_bytes() == (sealed.path / name).read_bytes(), name


def test_it_scores_and_samples_as_before(old: Bundle, trained: Trained, tmp_path: Path) -> None:
    x = trained[1].test.x
    engines = [
        Engine(bundle) for bundle in (old, migrate_bundle(old, trained[0].model, tmp_path / "new"))
    ]
    scores = [engine.score(x, 2, seed=5)["elbo"].tobytes() for engine in engines]
    samples = [engine.sample(9, seed=5).tobytes() for engine in engines]
    assert scores[0] == scores[1]
    assert samples[0] == samples[1]
    engines[1].self_check()


def test_other_noise_fails_the_self_check(sealed: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(x: np.ndarray, latent_dim: int) -> dict[str, np.ndarray]:
        vectors = noise_vectors(x, latent_dim)
        vectors["noise.eps"] = np.nextafter(vectors["noise.eps"], np.float32(9))
        return vectors

    monkeypatch.setattr("serving.engine.noise_vectors", other)
    with pytest.raises(VerificationFailed, match=r"noise\.eps is not what this machine draws"):
        Engine(sealed).self_check()


def test_a_bundle_of_today_is_refused(sealed: Bundle, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match="the bundle is of schema 2 already: use it as it is"):
        migrate_bundle(sealed, trained[0].model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_not_written_over(
    old: Bundle, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("")
    with pytest.raises(UsageRefused, match="new"):
        migrate_bundle(old, trained[0].model, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_schema_2_without_a_graph_of_noise_does_not_open(bundle: Bundle) -> None:
    from tests.serving.test_bundle import rewrite_manifest

    files = {name: entry for name, entry in bundle.manifest.files.items() if name != "noise.onnx"}
    (bundle.path / "noise.onnx").unlink()
    rewrite_manifest(bundle.path, files=files)
    with pytest.raises(VerificationFailed, match=r"lists no noise\.onnx"):
        open_bundle(bundle.path)
