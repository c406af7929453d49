import json
from pathlib import Path

import pytest

from serving.bundle import (
    GRAPHS,
    MORE_GRAPHS,
    REQUIRED,
    Bundle,
    file_entry,
    manifest_digest,
    open_bundle,
)
from serving.engine import Engine
from serving.errors import UsageRefused, VerificationFailed
from serving.noise import draw_eps
from tests.serving.conftest import SCHEMA_1

FILES = (
    *REQUIRED,
    *MORE_GRAPHS,
    "draw.onnx",
    "draw_portable.onnx",
    "draw_noise.onnx",
    "held_out.npz",
    "parity.json",
    "MODEL_CARD.md",
    "samples.png",
    "reconstructions.png",
)


def rewrite_manifest(path: Path, **changes: object) -> None:
    """Change the manifest and its digest, as anyone who can write the file could."""
    content = json.loads((path / "manifest.json").read_text()) | changes
    content["digest"] = manifest_digest(content)
    (path / "manifest.json").write_text(json.dumps(content))


def test_opens_and_lists_its_files(bundle: Bundle) -> None:
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.manifest.files["score.onnx"] == file_entry(bundle.path / "score.onnx")
    assert bundle.read_json("parity.json")["verdict"] == "passed"
    assert set(bundle.operations) == {"encode", "decode", "reconstruct", "sample", "score", "draw"}
    assert bundle.golden()["encode.x"].shape == (8, 6, 5)


def test_a_bundle_of_schema_1_is_opened_checked_and_used() -> None:
    old = open_bundle(SCHEMA_1)
    assert old.manifest.schema_version == 1
    engine, x = Engine(old), old.golden()["score.x"]
    engine.self_check()
    scores = engine.score(x, 2, seed=7)
    eps = draw_eps(x, 7, 2, old.manifest.latent_dim)
    assert scores["elbo"].tobytes() == engine.run("score", {"x": x, "eps": eps})["elbo"].tobytes()
    assert engine.sample(3, seed=7).shape == (3, 6, 5)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999], ids=["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_refused(bundle: Bundle, name: str, place: float) -> None:
    path = bundle.path / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=name):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(VerificationFailed, match=f"cannot read .*{name}: No such file"):
        open_bundle(bundle.path)


def test_a_file_that_is_not_listed_is_refused(bundle: Bundle) -> None:
    (bundle.path / "extra.bin").touch()
    with pytest.raises(VerificationFailed, match=r"extra.bin is not in the manifest: remove it"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_manifest_without_a_required_file_is_refused(bundle: Bundle, name: str) -> None:
    files = {key: entry for key, entry in bundle.manifest.files.items() if key != name}
    rewrite_manifest(bundle.path, files=files)
    with pytest.raises(VerificationFailed, match=f"not complete: the manifest lists no {name}"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b"])
def test_a_file_outside_the_bundle_is_refused(bundle: Bundle, name: str) -> None:
    files = {**bundle.manifest.files, name: {"sha256": "0", "bytes": 0}}
    rewrite_manifest(bundle.path, files=files)
    with pytest.raises(VerificationFailed, match="a file outside the bundle"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"schema_version": 99}, "is of schema 99, .*reads 1 to 2", id="schema"),
        pytest.param({"x_shape": [5, 6]}, "does not fit x_shape", id="shape"),
        pytest.param({"operations": {}}, "does not fit x_shape", id="operations"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Bundle, changes: dict[str, object], message: str
) -> None:
    rewrite_manifest(bundle.path, **changes)
    with pytest.raises(VerificationFailed, match=message):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("[]", "is of schema None", id="no object"),
        pytest.param("{", "cannot read .*manifest.json", id="no JSON"),
        pytest.param("{}", "is of schema None", id="empty"),
    ],
)
def test_a_broken_manifest_is_refused(bundle: Bundle, content: str, message: str) -> None:
    (bundle.path / "manifest.json").write_text(content)
    with pytest.raises(VerificationFailed, match=message):
        open_bundle(bundle.path)


def test_a_manifest_that_lacks_a_field_is_refused(bundle: Bundle) -> None:
    content = json.loads((bundle.path / "manifest.json").read_text())
    del content["opset"]
    content["digest"] = manifest_digest(content)
    (bundle.path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(VerificationFailed, match="lacks opset"):
        open_bundle(bundle.path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"is not a bundle: it has no manifest.json"):
        open_bundle(tmp_path)


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match=f"^no folder {tmp_path / 'none'}$"):
        open_bundle(tmp_path / "none")


def test_unsealed_files_may_differ(bundle: Bundle) -> None:
    (bundle.path / "parity.json").write_text("half-written")
    assert open_bundle(bundle.path, unsealed=("parity.json",)).manifest == bundle.manifest


@pytest.mark.parametrize(
    "changes",
    [{"later": 1}, {"x_shape": 3}, {"files": None}],
    ids=["a field of a later release", "a shape that is none", "no files"],
)
def test_a_manifest_of_other_types_is_refused_by_name(
    bundle: Bundle, changes: dict[str, object]
) -> None:
    rewrite_manifest(bundle.path, **changes)
    with pytest.raises(VerificationFailed, match=r"manifest\.json cannot be used"):
        open_bundle(bundle.path)
