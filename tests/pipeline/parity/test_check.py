import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.model.operations import EPS, Tolerance
from pipeline.parity.check import check_parity, checked_files, parity_faults
from pipeline.parity.comparison_result import (
    HISTOGRAM_EDGES,
    Comparison,
    ElboParity,
    Setting,
    compare,
)
from pipeline.parity.report import ParityReport
from pipeline.parity.row_counts import FULL
from serving.bundle import Bundle
from serving.errors import VerificationFailed
from tests.pipeline.parity.mutations import change_report, reseal
from tests.trained_models import Trained


@pytest.fixture(scope="module")
def report(sealed: Bundle, trained: Trained) -> ParityReport:
    return check_parity(sealed, trained[0].model, trained[1].test.x)


def test_a_clean_bundle_passes_on_every_output_batch_level_and_thread(
    report: ParityReport, sealed: Bundle
) -> None:
    assert report.passed
    assert report.faults() == []
    rows = [row for row in report.comparisons if (row.rule, row.rows) == ("values", "held-out")]
    seen = {(row.operation, row.output, row.batch, row.level, row.threads) for row in rows}
    settings = {("off", 1), ("basic", 1), ("extended", 1), ("all", 1), ("all", 2)}
    assert seen == {
        (operation.label, tensor.name, batch, *setting)
        for operation in sealed.all_forms.values()
        for tensor in operation.outputs
        for batch in FULL.batches
        for setting in settings
    }
    assert {row.provider for row in report.comparisons} == {"CPUExecutionProvider"}
    assert report.placement.keys() == {"cpu"}
    assert report.placement["cpu"].keys() == {"CPUExecutionProvider"}
    assert report.placement["cpu"]["CPUExecutionProvider"] > 20
    assert parity_faults(sealed) == []


def test_every_output_is_compared_with_itself_and_in_other_batches(report: ParityReport) -> None:
    outputs = {(row.operation, row.output) for row in report.comparisons}
    for rule, batches in (("batch", FULL.batches), ("rerun", (256,))):
        rows = [row for row in report.comparisons if row.rule == rule]
        assert [(row.operation, row.output, row.batch) for row in rows] == [
            (*output, batch)
            for output in dict.fromkeys((r.operation, r.output) for r in rows)
            for batch in batches
        ]
        assert {(row.operation, row.output) for row in rows} == outputs
    assert all(row.max_tolerance == row.max_error == 0 for row in rows)


def test_a_table_passes_with_large_features_and_denormals(sealed_table: Bundle) -> None:
    content = sealed_table.read_json("parity.json")
    assert content["verdict"] == "passed"
    encoded = {row["rows"] for row in content["comparisons"] if row["operation"] == "encode"}
    assert encoded == {"held-out", "zeros", "maxima", "noise", "far", "denormals"}


def test_table_shows_the_worst_of_each_output_and_what_failed(report: ParityReport) -> None:
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines[1:16]] == [
        "encode.z_loc",
        "encode.z_scale",
        "decode.x_loc",
        "reconstruct.x_loc",
        "sample.x_loc",
        "score.elbo",
        "score.log_likelihood",
        "score.kl",
        "score.iw_elbo",
        "draw.x",
        "score_portable.elbo",
        "score_portable.log_likelihood",
        "score_portable.kl",
        "score_portable.iw_elbo",
        "draw_portable.x",
    ]
    for line, form in zip(lines[16:18], ("score", "score_portable"), strict=True):
        assert line.startswith(f"  ELBO of 1,000 rows, 100 of them different ({form}, CPU): mean ")
    count = len(report.comparisons)
    assert lines[-1] == f"  parity passed: {count} comparisons on cpu"
    first = replace(report.comparisons[3], max_error=9.0)
    failed = replace(report, comparisons=(first, *report.comparisons))
    lines = failed.table().splitlines()
    assert lines[1].endswith("FAILED values")
    assert lines[18] == (
        "  encode.z_loc at batch 64 of held-out rows (CPU, level all, threads 1): off by 9, "
        f"allowed {first.max_tolerance:.3g} (rule: values)"
    )
    assert lines[-1] == f"  parity FAILED: {count + 1} comparisons on cpu"


ROW = Comparison(
    rule="values",
    operation="encode",
    output="z_loc",
    batch=1,
    rows="held-out",
    provider="CPUExecutionProvider",
    level="all",
    threads=1,
    tf32=False,
    max_error=1.0,
    max_tolerance=1.0,
    rms_error=1.0,
    rms_tolerance=1.0,
)
ELBO = ElboParity(
    provider="CPUExecutionProvider",
    tf32=False,
    rows=1000,
    mean_error=1e-5,
    mean_goal=1e-5,
    mean_tolerance=1e-5,
    row_error=1e-6,
    row_goal=1e-6,
    row_tolerance=1e-6,
)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        pytest.param({}, True, id="on the tolerance"),
        pytest.param({"max_error": 1.001}, False, id="maximum above"),
        pytest.param({"rms_error": 1.001}, False, id="mean square above"),
        pytest.param({"max_error": np.nan}, False, id="NaN"),
        pytest.param({"max_error": np.inf, "max_tolerance": np.inf}, True, id="infinite tolerance"),
        pytest.param({"max_tolerance": np.nan}, False, id="NaN tolerance"),
        pytest.param({"reason": "got float64"}, False, id="other dtype"),
    ],
)
def test_verdict_of_one_comparison(changes: dict[str, Any], passed: bool) -> None:
    assert replace(ROW, **changes).passed == passed


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        pytest.param({}, True, id="on the tolerance"),
        pytest.param({"mean_error": 1.1e-5}, False, id="mean above"),
        pytest.param({"row_error": 1.1e-6}, False, id="a row above"),
        pytest.param({"mean_error": np.nan}, False, id="mean NaN"),
        pytest.param({"row_error": np.nan}, False, id="a row NaN"),
    ],
)
def test_verdict_of_the_elbo(changes: dict[str, Any], passed: bool, report: ParityReport) -> None:
    changed = replace(report, elbo=(replace(ELBO, **changes),))
    assert changed.passed == passed
    assert {fault.rule for fault in changed.faults()} == (set() if passed else {"elbo"})


def test_a_report_that_compared_nothing_has_failed(report: ParityReport) -> None:
    for empty in (replace(report, comparisons=()), replace(report, elbo=())):
        assert not empty.passed
        assert empty.to_json()["verdict"] == "failed"


def test_tolerance_is_the_error_of_float32_with_a_floor_of_roundings() -> None:
    exact = np.array([1.0, -2.0, 4.0])
    loud = Tolerance.from_noise(exact, exact + [0, 0.5, 0])
    assert loud.max == 4 * 0.5
    assert loud.rms == pytest.approx(4 * 0.5 / np.sqrt(3))
    silent = Tolerance.from_noise(exact, exact)
    assert silent.max == 4 * 8 * EPS * 4.0
    assert silent.rms == pytest.approx(8 * EPS * np.sqrt(7))


def _drop_report(bundle: Bundle) -> Bundle:
    (bundle.path / "parity.json").unlink()
    return reseal(bundle)


def _change_report(**changes: Any) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        return change_report(bundle, **changes)

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
    content = sealed.read_json("parity.json")
    assert content["verdict"] == "passed"
    assert content["files"] == checked_files(sealed)
    assert (content["devices"], content["precision"]) == (["cpu"], "float32")
    assert content["faults"] == content["graph_faults"] == []
    assert content["first_difference"] is None
    assert content["machine"].keys() >= {"processor", "gpu", "torch", "onnxruntime"}
    assert content["versions"].keys() == {"python", "numpy", "onnx"}
    assert content["histogram_edges"] == list(HISTOGRAM_EDGES)
    elements = {"z_loc": 3, "z_scale": 3, "x_loc": 30, "x": 30}
    for row in content["comparisons"]:
        assert row["passed"]
        assert row["max_error"] is not None
        assert len(row["histogram"]) == len(HISTOGRAM_EDGES) + 1
        assert sum(row["histogram"]) == row["batch"] * elements.get(row["output"], 1)
    assert [elbo["operation"] for elbo in content["elbo"]] == ["score", "score_portable"]
    for elbo in content["elbo"]:
        assert elbo["passed"]
        assert (elbo["rows"], elbo["different"]) == (1000, 100)


def test_histogram_counts_errors_by_their_part_of_the_tolerance() -> None:
    errors = np.array([0, 1e-5, 0.5, 0.9, 1.1, 1e9, np.nan, np.inf])
    setting = Setting(provider="CPUExecutionProvider", level="all", threads=1)
    what: Any = {"rule": "values", "operation": "encode", "output": "z_loc"}
    row = compare(errors, Tolerance(1.0, 1.0), setting, batch=1, rows="held-out", **what)
    edges = [-np.inf, *HISTOGRAM_EDGES, np.inf]
    shares = np.log10([1e-9, 1e-5, 0.5, 0.9, 1.1, 1e9, 1e9, 1e9])
    assert row.histogram == tuple(np.histogram(shares, edges)[0])
    assert not row.passed
    exact = compare(
        np.array([0.0, 1e-30]), Tolerance(0.0, 0.0), setting, batch=1, rows="far", **what
    )
    assert (exact.histogram[0], exact.histogram[-1]) == (1, 1)


def test_an_error_that_is_no_number_is_null_in_json(report: ParityReport) -> None:
    broken = replace(report, comparisons=(replace(ROW, max_error=np.nan),))
    (row,) = broken.to_json()["comparisons"]
    assert (row["max_error"], row["passed"]) == (None, False)


def test_a_report_is_read_as_it_was_written(report: ParityReport) -> None:
    assert ParityReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_what_is_no_number_fails_when_it_is_read_again(report: ParityReport) -> None:
    cuda = replace(ROW, provider="CUDAExecutionProvider", tf32=True, max_error=np.nan)
    elbo = replace(ELBO, row_error=np.inf)
    broken = replace(report, comparisons=(cuda,), elbo=(elbo,), devices=("cpu", "cuda"))
    read = ParityReport.from_json(broken.to_json())
    assert not read.passed
    assert [fault.rule for fault in read.faults()] == ["values", "elbo"]
    assert np.isnan(read.comparisons[0].max_error)
    assert read.comparisons[0].share == np.inf
    assert (read.comparisons[0].tf32, read.devices) == (True, ("cpu", "cuda"))


def test_the_verdict_of_a_file_is_judged_again(report: ParityReport) -> None:
    content = report.to_json()
    content["comparisons"][0]["max_error"] = 9.0
    assert (content["verdict"], content["comparisons"][0]["passed"]) == ("passed", True)
    assert not ParityReport.from_json(content).passed


@pytest.mark.parametrize(
    "content",
    [{}, {"verdict": "passed"}, {"comparisons": 3}, []],
    ids=["empty", "a verdict alone", "a number", "a list"],
)
def test_a_report_that_is_none_is_refused(content: Any) -> None:
    with pytest.raises(VerificationFailed, match="the parity report cannot be read: "):
        ParityReport.from_json(content)


def test_the_keys_of_the_file_are_those_of_schema_1(report: ParityReport) -> None:
    content = report.to_json()
    assert {"machine", "reduction"} <= content.keys()
    assert {"max_budget", "rms_budget"} <= content["comparisons"][0].keys()
    assert {"mean_budget", "row_budget"} <= content["elbo"][0].keys()
    assert "tolerance" not in json.dumps(content)


@pytest.mark.parametrize(
    "value", ["abc", True, -1, [0.0]], ids=["text", "a truth value", "negative", "a list"]
)
@pytest.mark.parametrize("key", ["max_error", "max_budget", "rms_error", "rms_budget"])
def test_an_error_that_is_no_number_is_refused(report: ParityReport, key: str, value: Any) -> None:
    content = report.to_json()
    content["comparisons"][0][key] = value
    with pytest.raises(VerificationFailed, match="the parity report cannot be read: "):
        ParityReport.from_json(content)


def test_a_report_about_no_device_has_failed(report: ParityReport) -> None:
    assert not replace(report, devices=()).passed
