"""A Triton repository has the bundle's graphs, and configurations that describe them."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from serving.bundle import Bundle
from serving.deploy import write_deployment
from serving.errors import UsageRefused
from serving.source import Source
from tests.serving.deployments import HOSTILE, OPERATIONS, parse_config

TENSOR_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


@pytest.mark.parametrize("version", [None, "7", "007"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_config_says_what_the_operation_table_says(
    bundle: Bundle, tmp_path: Path, name: str, version: str | None
) -> None:
    source = Source(bundle, version and "vae", version)
    write_deployment(source, "triton", tmp_path / "out")
    config = parse_config(tmp_path / "out" / name / "config.pbtxt")

    operation = bundle.operations[name]
    expected = type(config)(name=name, backend="onnxruntime", max_batch_size=1024)
    expected.dynamic_batching.SetInParent()
    expected.version_policy.specific.versions.append(int(version or 1))
    expected.parameters["bundle.sha256"].string_value = bundle.manifest.digest
    if version is not None:
        expected.parameters["registered_model"].string_value = "vae"
    data_types = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
    for side, tensors in ((expected.input, operation.inputs), (expected.output, operation.outputs)):
        for tensor in tensors:
            renamed = "z" if (name, tensor.name) == ("sample", "eps") else tensor.name
            row = side.add(name=renamed, data_type=data_types[tensor.dtype])
            row.dims.extend(-1 if axis == "num_samples" else axis for axis in tensor.shape[1:])
            if not row.dims:  # Triton refuses empty dims: (batch,) is [1], reshaped to nothing
                row.dims.append(1)
                row.reshape.SetInParent()
    assert config == expected


def test_triton_config_of_score_in_plain_numbers(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    config = parse_config(tmp_path / "out" / "score" / "config.pbtxt")
    assert [(t.name, list(t.dims)) for t in config.input] == [("x", [6, 5]), ("eps", [-1, 3])]
    assert [t.name for t in config.output] == ["elbo", "log_likelihood", "kl", "iw_elbo"]
    assert all(t.dims == [1] and t.HasField("reshape") for t in config.output)
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [7]
    assert len(config.instance_group) == 0


def test_triton_sample_says_that_its_input_is_z(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    text = (tmp_path / "out" / "sample" / "config.pbtxt").read_text()
    assert text.startswith("# The graph is the decoder: its input is z.")


@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_graph_is_the_bundles_and_fits_its_config(
    registered: Source, tmp_path: Path, name: str
) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    model = tmp_path / "out" / name / "7" / "model.onnx"
    bundle = registered.bundle
    assert model.read_bytes() == (bundle.path / bundle.operations[name].graph).read_bytes()

    config = parse_config(tmp_path / "out" / name / "config.pbtxt")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    onnx_types = {2: "tensor(uint8)", 11: "tensor(float)"}  # of DataType in model_config.proto
    for declared, found in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        rows = [
            (row.name, onnx_types[row.data_type], [] if row.HasField("reshape") else list(row.dims))
            for row in declared
        ]
        assert rows == [
            (t.name, t.type, [-1 if isinstance(axis, str) else axis for axis in t.shape[1:]])
            for t in found
        ]
        assert all(isinstance(t.shape[0], str) for t in found), "Triton batches along axis 0"


def test_triton_refuses_a_type_that_it_is_not_told(registered: Source, tmp_path: Path) -> None:
    manifest = replace(registered.bundle.manifest, x_dtype="complex64")
    source = replace(registered, bundle=replace(registered.bundle, manifest=manifest))
    with pytest.raises(
        UsageRefused, match="dtype for Triton must be uint8 or float32, got 'complex64'"
    ):
        write_deployment(source, "triton", tmp_path / "out")


def test_a_hostile_name_stays_a_string_for_triton(bundle: Bundle, tmp_path: Path) -> None:
    write_deployment(Source(bundle, HOSTILE, "7"), "triton", tmp_path / "out")
    write_deployment(Source(bundle, "vae", "7"), "triton", tmp_path / "plain")
    for name in OPERATIONS:
        config = parse_config(tmp_path / "out" / name / "config.pbtxt")
        plain = parse_config(tmp_path / "plain" / name / "config.pbtxt")
        assert config.parameters["registered_model"].string_value == HOSTILE
        plain.parameters["registered_model"].string_value = HOSTILE
        assert config == plain


def test_triton_gets_the_version_that_the_alias_names_now(
    registered: Source, tmp_path: Path
) -> None:
    names = write_deployment(registered, "triton", tmp_path / "out", alias="champion")
    assert f"encode/{registered.version}/model.onnx" in names
