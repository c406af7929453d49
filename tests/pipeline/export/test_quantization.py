"""What reduced bundles hold and compute, beside references that share no code with the export."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline.config import ModelConfig
from pipeline.export.bundle_export import export_bundle
from pipeline.export.graph_export import save_graph
from pipeline.export.quantization import (
    QuantizedLinear,
    calibrate,
    convert_precision,
    unambiguous_rows,
)
from pipeline.model import operations
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.perceptron import MlpDecoder, MlpEncoder
from pipeline.model.vae import VAE
from serving.bundle import GRAPHS, Bundle, open_bundle
from serving.engine import Engine
from serving.errors import UsageRefused, VerificationFailed
from tests.pipeline.export.test_bundle_export import METRICS
from tests.pipeline.parity.mutations import reseal, set_arrays
from tests.trained_models import PRECISIONS, Trained

Arrays = Mapping[str, np.ndarray]
FLOAT32_LAYERS = {"encoder.z_loc", "encoder.z_log_scale", "decoder.hidden.0"}


def initializers(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    items = onnx.load(bundle.path / graph).graph.initializer
    return {item.name: numpy_helper.to_array(item) for item in items}


@pytest.fixture(params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, reduced: dict[str, Bundle]) -> Bundle:
    found: Bundle = reduced[request.param]
    return found


@pytest.mark.parametrize("graph", GRAPHS)
def test_fp16_weights_are_the_rounded_ones_and_the_rest_is_not_rounded(
    reduced: dict[str, Bundle], trained: Trained, graph: str
) -> None:
    state = {name: value.numpy() for name, value in trained[0].model.state_dict().items()}
    arrays = initializers(reduced["fp16"], graph)
    weights = {name for name in arrays if name.endswith(".weight")}
    assert weights == {
        f"{layer.removesuffix('.bias')}.weight"
        for layer in arrays & state.keys()
        if layer.endswith(".bias")
    }
    for name in arrays.keys() & state.keys():
        expected = state[name].astype(np.float16) if name in weights else state[name]
        assert arrays[name].dtype == expected.dtype
        assert arrays[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("graph", GRAPHS)
def test_int8_weights_are_within_half_a_step_and_layers_at_the_latents_are_float32(
    reduced: dict[str, Bundle], trained: Trained, graph: str
) -> None:
    arrays = initializers(reduced["int8"], graph)
    for name, exact in trained[0].model.state_dict().items():
        if not name.endswith(".weight") or name not in arrays:
            continue
        layer = name.removesuffix(".weight")
        assert (arrays[name].dtype == np.int8) == (layer not in FLOAT32_LAYERS)
        if layer in FLOAT32_LAYERS:
            assert arrays[name].tobytes() == exact.numpy().tobytes()
            continue
        step = arrays[f"{layer}.weight_scale"].astype(np.float64)[:, None]
        np.testing.assert_allclose(step[:, 0], np.abs(exact.numpy()).max(1) / 127, rtol=1e-6)
        assert (np.abs(arrays[name] * step - exact.numpy()) <= step * (0.5 + 1e-5)).all()
        assert (arrays[f"{layer}.weight_zero"] == 0).all()


def decode_in_integers(arrays: Arrays, z: np.ndarray) -> np.ndarray:
    """The int8 decoder of one hidden layer in numpy: rounded activations, a product of integers."""
    h = z.astype(np.float64) @ arrays["decoder.hidden.0.weight"].T + arrays["decoder.hidden.0.bias"]
    h = h / (1 + np.exp(-h))
    scale, zero = arrays["decoder.x_params.x_scale"], int(arrays["decoder.x_params.x_zero"])
    steps = np.clip(np.rint(h / float(scale)) + zero, 0, 255).astype(np.int64) - zero
    product = steps @ arrays["decoder.x_params.weight"].astype(np.int64).T
    logits = product * (float(scale) * arrays["decoder.x_params.weight_scale"].astype(np.float64))
    x_loc: np.ndarray = 255 / (1 + np.exp(-(logits + arrays["decoder.x_params.bias"])))
    return x_loc


@pytest.mark.parametrize("spread", [1, 50], ids=["latents of the prior", "far, beyond the range"])
def test_int8_computes_what_integers_compute(reduced: dict[str, Bundle], spread: float) -> None:
    z = (np.random.default_rng(5).standard_normal((500, 3)) * spread).astype(np.float32)
    expected = decode_in_integers(initializers(reduced["int8"], "decoder.onnx"), z)
    error = np.abs(Engine(reduced["int8"]).decode(z).reshape(500, -1) - expected).max(1)
    assert (error < 1e-3).mean() > 0.98  # a row halfway between two steps may go either way
    assert error.max() < 2


def test_int8_products_run_in_integers(reduced: dict[str, Bundle], tmp_path: Path) -> None:
    """Where onnxruntime does not fuse the graph, it is right and slow."""
    for graph, layers in {"encoder.onnx": 1, "decoder.onnx": 1, "score.onnx": 2}.items():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / graph)
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        onnxruntime.InferenceSession(reduced["int8"].path / graph, options, providers=providers)
        kinds = [node.op_type for node in onnx.load(tmp_path / graph).graph.node]
        assert kinds.count("QGemm") == layers
        assert "DequantizeLinear" not in kinds


def test_no_row_depends_on_its_batch(bundle: Bundle, trained: Trained) -> None:
    engine = Engine(bundle)
    x = np.concatenate([trained[1].sample, trained[1].test.x])
    latents = np.random.default_rng(1).standard_normal((len(x), 2, 3)).astype(np.float32)
    for name, inputs in {
        "encode": {"x": x},
        "decode": {"z": latents[:, 0] * 20},
        "reconstruct": {"x": x},
        "score": {"x": x, "eps": latents},
    }.items():
        whole = engine.run(name, inputs)
        for size in (1, 7, 64):
            picked = slice(3, 3 + size)
            part = engine.run(name, {key: value[picked] for key, value in inputs.items()})
            for output, value in part.items():
                assert value.tobytes() == whole[output][picked].tobytes(), (name, output, size)


def test_graphs_are_smaller_and_checked(bundle: Bundle, sealed: Bundle) -> None:
    """Of the tiny model the weights are only a part."""
    for graph in GRAPHS:
        proto = onnx.load(bundle.path / graph)
        onnx.checker.check_model(proto, full_check=True)
        metadata = {item.key: item.value for item in proto.metadata_props}
        assert metadata["precision"] == bundle.manifest.precision
    weights, full = (
        sum(value.nbytes for name, value in initializers(b, "encoder.onnx").items())
        for b in (bundle, sealed)
    )
    assert weights < 0.75 * full


def test_the_same_checkpoint_gives_the_same_bytes(
    reduced: dict[str, Bundle], trained: Trained, tmp_path: Path
) -> None:
    bundle, model = reduced["int8"], trained[0].model
    ranges = calibrate(model, trained[1].sample)
    assert {name: list(ends) for name, ends in ranges.items()} == bundle.manifest.ranges
    written = bundle.path / "encoder.onnx"
    metadata = {item.key: item.value for item in onnx.load(written).metadata_props}
    again = tmp_path / "encoder.onnx"
    fresh = convert_precision(model, "int8", ranges)
    save_graph(again, model, bundle.operations["encode"], metadata, fresh)
    assert again.read_bytes() == written.read_bytes()


def test_the_self_check_sees_one_changed_weight(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "damaged")
    damaged = open_bundle(tmp_path / "damaged")
    Engine(damaged).self_check()
    arrays = initializers(damaged, "decoder.onnx")
    weight = arrays["decoder.x_params.weight"].copy()
    weight[0, np.abs(weight[0]).argmax()] *= -1
    proto = onnx.load(damaged.path / "decoder.onnx")
    set_arrays(proto, {"decoder.x_params.weight": weight})
    onnx.save(proto, damaged.path / "decoder.onnx")
    with pytest.raises(VerificationFailed, match="puts x_loc off by"):
        Engine(reseal(damaged)).self_check()


def test_a_manifest_from_before_precisions_is_float32(sealed: Bundle, tmp_path: Path) -> None:
    shutil.copytree(sealed.path, tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    content = json.loads(path.read_text())
    assert content.pop("precision") == "float32"
    assert content.pop("ranges") is None
    path.write_text(json.dumps(content))
    old = reseal_as(tmp_path / "old", content)
    assert (old.manifest.precision, old.manifest.ranges) == ("float32", None)


def reseal_as(folder: Path, content: dict[str, Any]) -> Bundle:
    from serving.bundle import manifest_digest

    content["digest"] = manifest_digest(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return open_bundle(folder)


def test_ranges_are_those_of_the_activations_and_hold_zero(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].sample
    ranges = calibrate(model, x)
    assert ranges.keys() == {"encoder.hidden.0", "decoder.x_params"}
    assert ranges["encoder.hidden.0"] == (0.0, 1.0)
    low, high = ranges["decoder.x_params"]
    assert -0.2785 < low < 0  # the least value of silu
    assert 0 < high < 100


def build_normed(spec: NetSpec) -> Nets:
    """A user's nets, whose `encoder.hidden.0` reads what another layer gave."""

    class Normed(MlpEncoder):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loc, log_scale = super().forward((x - 0.5) * 8)
            return loc, log_scale

    return Normed(spec), MlpDecoder(spec)


def test_the_range_of_a_user_s_layer_is_the_calibrated_one() -> None:
    settings = ModelConfig(likelihood="bernoulli", hidden_dims=(4,), latent_dim=2)
    model = VAE((3,), replace(settings, model=f"{__name__}:build_normed"))
    x = np.array([[0, 255, 51], [102, 153, 204]], np.uint8)
    model.px.fit(x)
    assert calibrate(model, x)["encoder.hidden.0"] == pytest.approx((-4, 4))
    ours = VAE((3,), settings)
    ours.px.fit(x)
    assert calibrate(ours, x[1:])["encoder.hidden.0"] == (0, 1)


def test_a_table_keeps_its_unbounded_first_layer(trained_table: Trained) -> None:
    assert calibrate(trained_table[0].model, trained_table[1].sample).keys() == {"decoder.x_params"}


def quantized(low: float, high: float) -> QuantizedLinear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -0.5]])
    return QuantizedLinear(layer, low, high)


def test_a_layer_rounds_to_even_steps_and_keeps_within_its_range() -> None:
    layer = quantized(-1.0, 254.0)  # steps of 1, of which 1 below zero
    assert (layer.x_scale.item(), layer.x_zero.item()) == (1.0, 1)
    assert layer.weight.tolist() == [[127, -64]]  # 63.5 goes to the even neighbour
    x = torch.tensor([[0.5, 0.0], [1.5, 0.0], [-9.0, 0.0], [900.0, 0.0]])
    steps = layer(x)[:, 0] / layer.weight_scale / 127
    torch.testing.assert_close(steps, torch.tensor([0.0, 2.0, -1.0, 254.0]))


def set_quantized(model: VAE, low: float, high: float) -> VAE:
    return convert_precision(model, "int8", {"decoder.x_params": (low, high)})


def test_a_row_at_a_tie_is_not_settled(trained: Trained, sealed: Bundle) -> None:
    decode = sealed.operations["decode"]
    z = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    model = trained[0].model
    assert unambiguous_rows(model, decode, {"z": z}).tolist() == list(range(50))
    h = model.decoder.hidden(torch.from_numpy(z).double().float())[7, 0].item()
    scale = abs(h) / 1.5  # row 7 stands between two steps
    tie = set_quantized(model, -127 * scale, 128 * scale)
    assert 7 not in unambiguous_rows(tie, decode, {"z": z})
    with pytest.MonkeyPatch.context() as patch:  # rows that are not taken all at once
        patch.setattr(operations, "_VALUES", 20 * int(np.prod(model.x_shape)))
        assert unambiguous_rows(model, decode, {"z": z}).tolist() == list(range(50))
        assert 7 not in (found := unambiguous_rows(tie, decode, {"z": z}))
        assert {*range(20, 50)} <= {*found.tolist()}
    beyond = set_quantized(model, -1e-6, 1e-6)  # every activation takes the end of the range
    assert unambiguous_rows(beyond, decode, {"z": z}).size >= 49


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        pytest.param("fp8", 1.0, "must be one of float32, fp16, int8, got 'fp8'", id="unknown"),
        pytest.param("fp16", 1e9, "too large for fp16", id="a weight beyond float16"),
        pytest.param("int8", 1.0, "needs the ranges", id="int8 without calibration"),
    ],
)
def test_what_cannot_be_reduced_is_refused(
    trained: Trained, tmp_path: Path, precision: Any, change: float, message: str
) -> None:
    model = copy.deepcopy(trained[0].model)
    model.encoder.z_loc.weight.data *= change
    checkpoint = replace(trained[0], model=model)
    with pytest.raises(UsageRefused, match=message):
        export_bundle(tmp_path / "out", checkpoint, METRICS, trained[1].test.x, precision=precision)
    assert not (tmp_path / "out").exists()


def test_a_model_without_hidden_layers_has_nothing_for_int8() -> None:
    model = VAE((4,), ModelConfig(likelihood="gaussian", hidden_dims=(), latent_dim=2))
    with pytest.raises(UsageRefused, match="int8 needs a linear hidden layer"):
        calibrate(model, np.zeros((3, 4), np.float32))
