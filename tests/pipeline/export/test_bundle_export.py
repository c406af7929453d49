import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import pipeline
from pipeline.export import bundle_export as exporting
from pipeline.export.bundle_export import export_bundle
from pipeline.export.graph_export import IR_VERSION, OPSET
from pipeline.model.checkpoint import Checkpoint
from serving.bundle import GOLDEN, GRAPHS, WEIGHTS, Bundle, open_bundle
from serving.errors import UsageRefused, VaeError
from tests.trained_models import Trained

_MEANS = [f"{name}{end}" for name in ("elbo", "log_likelihood", "kl", "nll") for end in ("", "_se")]
METRICS = dict.fromkeys(_MEANS, 1.0) | {
    "rows": 100,
    "nll_samples": 4,
    "active_units": 3,
}


def test_bundle_opens_and_says_what_it_is(sealed: Bundle, trained: Trained) -> None:
    manifest = open_bundle(sealed.path).manifest
    checkpoint, dataset = trained
    assert manifest.x_shape == (6, 5)
    assert (manifest.x_dtype, manifest.latent_dim, manifest.likelihood) == ("uint8", 3, "bernoulli")
    assert manifest.config == json.loads(json.dumps(checkpoint.config.to_json()))
    assert manifest.data["splits"]["test"] == {"rows": 100, "sha256": dataset.test.sha256}
    assert manifest.git == {"sha": "0" * 40, "dirty": False}
    assert set(manifest.versions) == {"python", "torch", "onnx", "onnxscript", "onnxruntime"}
    card = (sealed.path / "MODEL_CARD.md").read_text()
    assert "6 by 5 uint8" in card
    assert "**Passed** on cpu" in card


def test_export_is_reproducible_byte_for_byte(
    sealed: Bundle, trained: Trained, tmp_path: Path
) -> None:
    checkpoint, dataset = trained
    again = export_bundle(tmp_path / "again", checkpoint, METRICS, dataset.test.x)
    for name in (*GRAPHS, WEIGHTS, GOLDEN):
        assert (again.path / name).read_bytes() == (sealed.path / name).read_bytes(), name


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_is_one_checked_file_without_traces_of_this_machine(
    sealed: Bundle, graph: str
) -> None:
    content = (sealed.path / graph).read_bytes()
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert not any(item.external_data for item in proto.graph.initializer)
    assert str(Path(pipeline.__file__).parent).encode() not in content
    assert b"stack_trace" not in content
    assert not any("Random" in node.op_type for node in proto.graph.node)
    assert (proto.opset_import[0].version, proto.ir_version) == (OPSET, IR_VERSION)
    metadata = {item.key: item.value for item in proto.metadata_props}
    assert metadata["x_shape"] == "[6, 5]"
    assert metadata["weights_sha256"] == sealed.manifest.files[WEIGHTS]["sha256"]


def test_initializers_are_the_weights(sealed: Bundle, trained: Trained) -> None:
    state = trained[0].model.state_dict()
    found = set()
    for graph in GRAPHS:
        for item in onnx.load(sealed.path / graph).graph.initializer:
            if item.name in state:
                found.add(item.name)
                assert numpy_helper.to_array(item).tobytes() == state[item.name].numpy().tobytes()
    assert found == set(state)


@pytest.mark.parametrize("batch", [1, 2, 5], ids=str)
def test_every_graph_takes_any_batch(sealed: Bundle, batch: int) -> None:
    shapes = {"x": (batch, 6, 5), "z": (batch, 3), "eps": (batch, 2, 3)}
    for graph in GRAPHS:
        session = onnxruntime.InferenceSession(
            sealed.path / graph, providers=["CPUExecutionProvider"]
        )
        feeds = {
            node.name: np.zeros(shapes[node.name], np.uint8 if node.name == "x" else np.float32)
            for node in session.get_inputs()
        }
        assert all(len(output) == batch for output in session.run(None, feeds))


def test_plain_onnxruntime_uses_the_bundle_in_the_units_of_the_data(
    sealed: Bundle, trained: Trained
) -> None:
    encoder, decoder = (
        onnxruntime.InferenceSession(sealed.path / name, providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "decoder.onnx")
    )
    x = trained[1].test.x
    z_loc, _ = encoder.run(None, {"x": x})
    (x_loc,) = decoder.run(None, {"z": z_loc})
    assert x_loc.dtype == np.float32
    assert x_loc.shape == x.shape
    expected = trained[0].model.decode(torch.from_numpy(z_loc)).numpy()
    np.testing.assert_allclose(x_loc, expected, rtol=1e-5)
    assert 0 <= x_loc.min() < x_loc.max() <= 255
    assert x_loc.mean() == pytest.approx(x.mean(), rel=0.3)


def test_an_existing_folder_is_refused_and_left_alone(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UsageRefused, match="exists: name a new folder"):
        export_bundle(out, trained[0], METRICS, trained[1].test.x)
    assert [file.name for file in out.iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "render_card", fail)
    with pytest.raises(VaeError, match=r"cannot write .*out: No space left on device"):
        export_bundle(tmp_path / "out", trained[0], METRICS, trained[1].test.x)
    assert list(tmp_path.iterdir()) == []


def test_a_float_table_has_its_scaling_inside(trained_table: Trained, tmp_path: Path) -> None:
    checkpoint, dataset = trained_table
    assert isinstance(checkpoint, Checkpoint)
    bundle = export_bundle(tmp_path / "out", checkpoint, METRICS, dataset.test.x)
    assert not (bundle.path / "samples.png").exists()
    session = onnxruntime.InferenceSession(
        bundle.path / "reconstruct.onnx", providers=["CPUExecutionProvider"]
    )
    (x_loc,) = session.run(None, {"x": dataset.test.x})
    spread = dataset.sample.std(0)
    assert (np.abs(x_loc - dataset.test.x).mean(0) < spread).all()
