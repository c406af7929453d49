from dataclasses import asdict

import numpy as np
import onnx
import pytest

from pipeline.export.manifest import seal
from pipeline.export.noise_graphs import noise_graph, score_noise_graph
from pipeline.parity.noise_check import noise_faults
from serving.bundle import Bundle, open_bundle
from tests.serving.conftest import SCHEMA_1


def change(bundle: Bundle, name: str, content: bytes) -> Bundle:
    (bundle.path / name).write_bytes(content)
    return Bundle(bundle.path, seal(bundle.path, asdict(bundle.manifest)))


def test_the_graphs_of_a_bundle_have_no_fault(bundle: Bundle) -> None:
    assert noise_faults(bundle) == []


def test_a_graph_of_another_start_is_a_fault(bundle: Bundle) -> None:
    model = noise_graph(bundle.manifest.latent_dim)
    (starts,) = (t for t in model.graph.initializer if t.name == "starts")
    values = onnx.numpy_helper.to_array(starts)
    larger = np.nextafter(values, np.float32(9))  # by the last bit
    starts.CopyFrom(onnx.numpy_helper.from_array(larger, "starts"))
    (fault,) = noise_faults(change(bundle, "noise.onnx", model.SerializeToString()))
    assert str(fault) == ("noise.onnx gives other noise than the engine, of seed 0 (rule: noise)")


def test_a_graph_of_another_width_is_a_fault(bundle: Bundle) -> None:
    model = score_noise_graph(bundle.manifest.latent_dim + 1)
    (fault,) = noise_faults(change(bundle, "score_noise.onnx", model.SerializeToString()))
    assert "score_noise.onnx gives other noise" in fault.message


def test_a_graph_of_another_stream_is_a_fault(bundle: Bundle) -> None:
    model = noise_graph(30)
    (fault,) = noise_faults(change(bundle, "draw_noise.onnx", model.SerializeToString()))
    assert "draw_noise.onnx gives other noise" in fault.message


@pytest.mark.parametrize("content", [b"", b"no graph"], ids=["empty", "text"])
def test_a_file_that_is_no_graph_is_a_fault(bundle: Bundle, content: bytes) -> None:
    (fault,) = noise_faults(change(bundle, "noise.onnx", content))
    assert "cannot open" in fault.message


def test_a_bundle_of_schema_1_has_no_graphs_to_check() -> None:
    old = open_bundle(SCHEMA_1)
    assert old.manifest.schema_version == 1
    assert noise_faults(old) == []
