from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline.cli import results, stages
from pipeline.errors import ParityFailed
from pipeline.parity import first_divergence
from pipeline.parity.check import check_parity, parity_faults
from pipeline.parity.first_divergence import find_difference
from pipeline.parity.report import Difference, ParityReport
from serving.bundle import Bundle
from serving.errors import VerificationFailed
from tests.pipeline.parity.mutations import ENCODER, MUTATIONS, Arrays, Mutation, corrupt, weights
from tests.trained_models import Trained

NAMED = {mutation.name: mutation for mutation in MUTATIONS}


def locate(bundle: Bundle, mutation: Mutation, trained: Trained) -> Difference | None:
    checkpoint, dataset = trained
    corrupted = corrupt(bundle, mutation, checkpoint.model)
    report = check_parity(corrupted, checkpoint.model, dataset.test.x)
    assert not report.passed
    return find_difference(corrupted, checkpoint.model, dataset.test.x, report)


def test_a_weight_that_is_wrong_names_the_node_that_takes_it(
    bundle: Bundle, trained: Trained
) -> None:
    found = locate(bundle, NAMED["one weight's sign"], trained)
    assert found is not None
    graph = onnx.load(bundle.path / ENCODER).graph
    (taker,) = (node for node in graph.node if "encoder.z_loc.weight" in node.input)
    assert (found.output, found.graph) == ("encode.z_loc", ENCODER)
    assert (found.node, found.op_type) == (taker.name, "Gemm")
    assert found.detail.startswith("off by ")
    assert found.line().startswith("first output that differs: encode.z_loc; first node: ")


def test_a_node_that_was_added_is_named_with_what_it_takes(
    bundle: Bundle, trained: Trained
) -> None:
    found = locate(bundle, NAMED["divided by 255 twice"], trained)
    assert found is not None
    assert (found.value, found.op_type) == ("div", "Div")
    assert found.detail.endswith("it takes plain, which the model's own export does not have")


def _last_bit(arrays: Arrays) -> None:
    weight = arrays["encoder.hidden.0.weight"]
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(9))


def test_what_noise_hides_is_found_by_its_bytes(bundle: Bundle, trained: Trained) -> None:
    found = locate(bundle, Mutation("last bit", "weights", weights(_last_bit)), trained)
    assert found is not None
    assert (found.output, found.value, found.op_type) == ("", "linear", "Gemm")
    assert found.detail.startswith("differs from the model's own export, by less than")


def test_a_fault_outside_of_every_node_is_said_to_be_there(
    sealed: Bundle, trained: Trained, report: ParityReport
) -> None:
    """The graph is right: a comparison that failed can only be onnxruntime's fusions."""
    checkpoint, dataset = trained
    found = find_difference(sealed, checkpoint.model, dataset.test.x, report)
    assert found is not None
    assert (found.node, found.output) == ("none", "decode.x_loc")
    assert "fused at level extended" in found.detail


@pytest.fixture
def report(sealed: Bundle, trained: Trained) -> ParityReport:
    """A clean report with one comparison made to fail."""
    clean = check_parity(sealed, trained[0].model, trained[1].test.x)
    rows = [
        replace(row, max_error=9.0)
        if (row.operation, row.batch, row.level) == ("decode", 7, "extended")
        else row
        for row in clean.comparisons
    ]
    return replace(clean, comparisons=tuple(rows))


def test_a_graph_that_does_not_open_has_no_node(bundle: Bundle, trained: Trained) -> None:
    assert locate(bundle, NAMED["an output missing"], trained) is None


def test_a_search_that_fails_leaves_the_verdict(
    sealed: Bundle,
    trained: Trained,
    report: ParityReport,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VerificationFailed("onnxruntime cannot open a graph")

    monkeypatch.setattr(first_divergence, "open_session", refuse)
    assert find_difference(sealed, trained[0].model, trained[1].test.x, report) is None
    assert "cannot open a graph" in caplog.text


def test_float64_graph_has_no_float32_left(sealed: Bundle) -> None:
    wide = first_divergence.widen_to_float64(onnx.load(sealed.path / ENCODER))
    x = np.arange(60, dtype=np.uint8).reshape(2, 6, 5)
    values = ReferenceEvaluator(wide).run(None, {"x": x}, intermediate=True)
    dtypes = {np.asarray(value).dtype for value in dict(values).values()}
    assert np.dtype(np.float64) in dtypes
    assert np.dtype(np.float32) not in dtypes


def test_a_failed_check_is_kept_with_its_place_and_ends_with_exit_4(
    bundle: Bundle, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, dataset = trained
    corrupted = corrupt(bundle, NAMED["heads swapped, by wires"], checkpoint.model)
    sealed, report = stages.check(corrupted, checkpoint, dataset, "cpu", 1)
    content = sealed.read_json("parity.json")
    assert content["verdict"] == "failed"
    assert content["first_difference"]["op_type"] == "Gemm"
    assert content["faults"][0]["rule"] == "values"
    assert "first output that differs: encode.z_loc" in capsys.readouterr().err
    with pytest.raises(ParityFailed, match=r"parity failed: encode\.z_loc at batch 1 of") as caught:
        results.raise_unless_parity_passed(report)
    assert caught.value.exit_code == 4
    assert parity_faults(sealed) == ["parity failed: see parity.json"]
