import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.manifest import add_report, seal
from pipeline.parity import (
    BATCHES,
    Comparison,
    ParityReport,
    check_parity,
    checked_files,
    parity_faults,
)
from pipeline.reference import EPS, Budget
from serving.bundle import Bundle, open_bundle
from serving.errors import DeviceUnavailable, VerificationFailed
from tests.pipeline.conftest import Trained, make_bundle

Mutate = Callable[[dict[str, Any]], None]


def mutate_weights(bundle: Bundle, graph: str, mutate: Mutate) -> Bundle:
    """Change a graph's initializers and seal the bundle, as one who can write it would."""
    proto = onnx.load(bundle.path / graph)
    arrays = {item.name: numpy_helper.to_array(item).copy() for item in proto.graph.initializer}
    mutate(arrays)
    for item in proto.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(arrays[item.name], item.name))
    onnx.save(proto, bundle.path / graph)
    return reseal(bundle)


def reseal(bundle: Bundle) -> Bundle:
    content = json.loads((bundle.path / "manifest.json").read_text())
    seal(bundle.path, content)
    return open_bundle(bundle.path)


def check(bundle: Bundle, trained: Trained) -> ParityReport:
    return check_parity(bundle, trained[0].model, trained[1].test.x)


@pytest.mark.parametrize("kind", ["images", "table"])
def test_a_clean_bundle_passes(
    kind: str, trained: Trained, trained_table: Trained, tmp_path: Path
) -> None:
    model = trained if kind == "images" else trained_table
    bundle = make_bundle(tmp_path / "out", model)
    report = check(bundle, model)
    assert report.passed
    assert report.faults() == []
    outputs = {(row.operation, row.output) for row in report.comparisons}
    assert outputs == {
        (operation.name, tensor.name)
        for operation in bundle.operations.values()
        for tensor in operation.outputs
    }
    assert len(report.comparisons) == len(outputs) * len(BATCHES)
    assert report.placement.keys() == {"CPUExecutionProvider"}
    assert sum(report.placement.values()) > 20
    assert "parity passed: 45 comparisons on cpu" in report.table()
    assert parity_faults(bundle) == []


def _flip_sign(arrays: dict[str, Any]) -> None:
    arrays["encoder.z_loc.weight"][0, 0] *= -1


def _nudge(arrays: dict[str, Any]) -> None:
    arrays["encoder.hidden.0.weight"][0, 0] *= 1 + 2**-10


def _zero_bias(arrays: dict[str, Any]) -> None:
    arrays["encoder.hidden.0.bias"][:] = 0


def _swap_heads(arrays: dict[str, Any]) -> None:
    a, b = "encoder.z_loc.weight", "encoder.z_log_scale.weight"
    arrays[a], arrays[b] = arrays[b], arrays[a]


def _swap_latents(arrays: dict[str, Any]) -> None:
    arrays["encoder.z_loc.weight"][[0, 1]] = arrays["encoder.z_loc.weight"][[1, 0]]


def _nan(arrays: dict[str, Any]) -> None:
    arrays["encoder.z_loc.weight"][0, 0] = np.nan


def _half(arrays: dict[str, Any]) -> None:
    for name, value in arrays.items():
        if value.dtype == np.float32:
            arrays[name] = value.astype(np.float16).astype(np.float32)


def _unit(arrays: dict[str, Any]) -> None:
    arrays["likelihood.x_unit"] = arrays["likelihood.x_unit"] * 255


@pytest.mark.parametrize(
    ("mutate", "by_numbers"),
    [
        pytest.param(_flip_sign, True, id="sign of one weight"),
        pytest.param(_nudge, False, id="one weight by 2^-10, below the noise"),
        pytest.param(_zero_bias, True, id="bias zeroed"),
        pytest.param(_swap_heads, True, id="heads swapped"),
        pytest.param(_swap_latents, True, id="latents swapped"),
        pytest.param(_nan, True, id="a NaN weight"),
        pytest.param(_half, True, id="weights through float16"),
        pytest.param(_unit, True, id="divided by 255 twice"),
    ],
)
def test_a_changed_weight_fails(
    bundle: Bundle, trained: Trained, mutate: Mutate, by_numbers: bool
) -> None:
    report = check(mutate_weights(bundle, "encoder.onnx", mutate), trained)
    assert not report.passed
    assert report.weight_faults
    assert all("encoder.onnx" in fault for fault in report.weight_faults)
    if by_numbers:
        failed = {row.operation for row in report.comparisons if not row.passed}
        assert failed == {"encode"}
        assert "FAILED" in report.table()


def test_a_graph_of_another_training_fails(
    bundle: Bundle, trained: Trained, tmp_path: Path
) -> None:
    from tests.pipeline.conftest import tiny_config, train_checkpoint

    other = train_checkpoint(trained[1], tiny_config(trained[1], seed=9)), trained[1]
    stale = make_bundle(tmp_path / "other", other)
    for graph in ("decoder.onnx", "score.onnx"):
        (bundle.path / graph).write_bytes((stale.path / graph).read_bytes())
    report = check(reseal(bundle), trained)
    assert {row.operation for row in report.comparisons if not row.passed} == {
        "decode",
        "sample",
        "score",
    }


def test_a_weight_hidden_under_another_name_fails(bundle: Bundle, trained: Trained) -> None:
    proto = onnx.load(bundle.path / "decoder.onnx")
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == "decoder.x_params.weight":
                node.input[index] = "hidden"
    for item in proto.graph.initializer:
        if item.name == "decoder.x_params.weight":
            item.name = "hidden"
    onnx.save(proto, bundle.path / "decoder.onnx")
    report = check(reseal(bundle), trained)
    assert any("has no weight decoder.x_params.weight" in f for f in report.weight_faults)
    assert any("initializer hidden" in fault for fault in report.weight_faults)


def test_a_branch_on_the_batch_size_fails_at_that_batch(bundle: Bundle, trained: Trained) -> None:
    """A graph that adds 1 when the batch is 1: only a comparison at batch 1 sees it."""
    proto = onnx.load(bundle.path / "decoder.onnx")
    output = proto.graph.output[0].name
    producer = next(node for node in proto.graph.node if output in node.output)
    producer.output[list(producer.output).index(output)] = "plain"
    helper = onnx.helper
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    proto.graph.initializer.append(one)
    proto.graph.node.extend(
        [
            helper.make_node("Shape", ["plain"], ["size"], start=0, end=1),
            helper.make_node("Equal", ["size", "one"], ["single"]),
            helper.make_node("Cast", ["single"], ["bump"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["plain", "bump"], [output]),
        ]
    )
    onnx.save(proto, bundle.path / "decoder.onnx")
    report = check(reseal(bundle), trained)
    assert {row.batch for row in report.comparisons if not row.passed} == {1}


def test_a_missing_output_is_refused_by_the_engine(bundle: Bundle, trained: Trained) -> None:
    proto = onnx.load(bundle.path / "encoder.onnx")
    del proto.graph.output[1]
    onnx.save(proto, bundle.path / "encoder.onnx")
    with pytest.raises(VerificationFailed, match="the operation table says"):
        check(reseal(bundle), trained)


def test_cuda_is_refused_where_there_is_none(bundle: Bundle, trained: Trained) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceUnavailable, match="device cuda is not available"):
        check_parity(bundle, trained[0].model, trained[1].test.x, device="cuda")


ROW = Comparison(
    operation="encode",
    output="z_loc",
    batch=1,
    max_error=1.0,
    max_budget=1.0,
    rms_error=1.0,
    rms_budget=1.0,
)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        pytest.param({}, True, id="on the budget"),
        pytest.param({"max_error": 1.001}, False, id="maximum above"),
        pytest.param({"rms_error": 1.001}, False, id="mean square above"),
        pytest.param({"max_error": np.nan}, False, id="NaN"),
        pytest.param({"max_error": np.inf, "max_budget": np.inf}, True, id="infinite budget"),
        pytest.param({"max_budget": np.nan}, False, id="NaN budget"),
        pytest.param({"reason": "got float64"}, False, id="other dtype"),
    ],
)
def test_verdict_of_one_comparison(changes: dict[str, Any], passed: bool) -> None:
    assert replace(ROW, **changes).passed == passed


def test_a_report_that_compared_nothing_has_failed(bundle: Bundle, trained: Trained) -> None:
    report = replace(check(bundle, trained), comparisons=())
    assert not report.passed
    assert report.to_json()["verdict"] == "failed"


def test_budget_is_the_error_of_float32_with_a_floor_of_roundings() -> None:
    exact = np.array([1.0, -2.0, 4.0])
    loud = Budget.from_noise(exact, exact + [0, 0.5, 0])
    assert loud.max == 4 * 0.5
    assert loud.rms == pytest.approx(4 * 0.5 / np.sqrt(3))
    silent = Budget.from_noise(exact, exact)
    assert silent.max == 4 * 8 * EPS * 4.0
    assert silent.rms == pytest.approx(8 * EPS * np.sqrt(7))


def _drop_report(bundle: Bundle) -> Bundle:
    (bundle.path / "parity.json").unlink()
    return reseal(bundle)


def _change_report(**changes: Any) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        return add_report(bundle, {**bundle.read_json("parity.json"), **changes})

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(_drop_report, "was not checked", id="no report"),
        pytest.param(_change_report(verdict="failed"), "parity failed", id="failed"),
        pytest.param(_change_report(verdict=None), "parity failed", id="no verdict"),
        pytest.param(_change_report(files={}), "other files", id="other files"),
        pytest.param(_change_report(machine={}), "another machine", id="other machine"),
    ],
)
def test_faults_of_a_report(bundle: Bundle, change: Callable[[Bundle], Bundle], fault: str) -> None:
    faults = parity_faults(change(bundle), on_this_machine=True)
    assert len(faults) == 1
    assert fault in faults[0]


def test_a_report_of_another_machine_counts_where_that_is_not_asked(bundle: Bundle) -> None:
    assert parity_faults(_change_report(machine={})(bundle)) == []


def test_report_in_the_bundle_names_what_was_compared(sealed: Bundle) -> None:
    report = sealed.read_json("parity.json")
    assert report["verdict"] == "passed"
    assert report["files"] == checked_files(sealed)
    assert len(report["comparisons"]) == 45
    assert all(row["passed"] and row["max_error"] is not None for row in report["comparisons"])
