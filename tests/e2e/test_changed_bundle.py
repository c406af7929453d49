"""A bundle of which one byte was changed is refused, and the file is named."""

from pathlib import Path

import pytest

from tests.e2e.conftest import run_vae
from tests.e2e.refusals import refusal

FILES = (
    "encoder.onnx",
    "decoder.onnx",
    "reconstruct.onnx",
    "score.onnx",
    "score_portable.onnx",
    "score_noise.onnx",
    "draw.onnx",
    "draw_portable.onnx",
    "draw_noise.onnx",
    "held_out.npz",
    "weights.pt",
    "golden.npz",
    "metrics.json",
    "noise.onnx",
    "parity.json",
    "MODEL_CARD.md",
    "reconstructions.png",
    "samples.png",
    "manifest.json",
)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_found_and_its_file_is_named(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    result = run_vae(tmp_path, "sample", "--model", "bundle", "--out", "y.npy")
    assert f"bundle/{name} " in refusal(result, 7).replace(f"{name}:", f"{name} ")
    assert not (tmp_path / "y.npy").exists()


def test_a_changed_value_in_the_manifest_is_found(bundle: Path, tmp_path: Path) -> None:
    manifest = bundle / "manifest.json"
    changed = manifest.read_text().replace('"likelihood": "bernoulli"', '"likelihood": "gaussian"')
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    result = run_vae(tmp_path, "sample", "--model", "bundle", "--out", "y.npy")
    assert refusal(result, 7) == "bundle/manifest.json was changed after it was sealed"


def test_the_bytes_of_every_file_of_a_bundle_are_changed_once(bundle: Path) -> None:
    assert sorted(FILES) == sorted(path.name for path in bundle.iterdir())
