"""Reduced bundles under `vae check`, the gate and the commands that use a model."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.cli.main import cli
from pipeline.config import Precision, PromoteConfig
from pipeline.export.manifest import seal
from pipeline.export.quantization import convert_precision
from pipeline.model.objective import elbo_terms
from pipeline.model.operations import draw_inputs
from pipeline.parity.bundle_report import add_report
from pipeline.parity.check import check_parity, parity_faults
from pipeline.parity.quantization_loss import ELBO_SHARE, QuantizationLoss
from pipeline.registry.promotion import promote
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import WEIGHTS, Bundle, open_bundle
from serving.client import Client
from serving.engine import Engine
from serving.mlflow_store import connect
from tests.pipeline.parity.mutations import Arrays, reseal, set_arrays
from tests.serving.running import serve
from tests.trained_models import PRECISIONS, Trained, draw_images


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_clean_bundle_passes_and_says_what_it_costs(
    reduced: dict[str, Bundle], precision: Precision
) -> None:
    bundle = reduced[precision]
    report = bundle.read_json("parity.json")
    assert (report["verdict"], report["precision"], report["faults"]) == ("passed", precision, [])
    assert parity_faults(bundle, on_this_machine=True) == []
    kinds = {row["rows"] for row in report["comparisons"]}
    assert {"held-out", "zeros", "maxima", "noise", "six sigma", "far"} <= kinds
    reduction = report["reduction"]
    assert reduction["passed"]
    assert reduction["rows"] == 100
    assert reduction["budget"] == ELBO_SHARE[precision] * 100
    assert reduction["difference"] != 0
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert f"graphs in {precision}" in card
    assert f"The graphs are in **{precision}**" in card


def test_the_weights_of_a_reduced_bundle_are_those_that_were_trained(
    reduced: dict[str, Bundle], sealed: Bundle
) -> None:
    for bundle in reduced.values():
        assert (bundle.path / WEIGHTS).read_bytes() == (sealed.path / WEIGHTS).read_bytes()


def test_the_difference_is_that_of_the_elbo(reduced: dict[str, Bundle], trained: Trained) -> None:
    """Beside torch in float32 on the same noise, whose own error is far below."""
    x = trained[1].test.x
    for bundle in reduced.values():
        operation = bundle.operations["score"]
        inputs = draw_inputs(operation, x, num_samples=1, seed=4)
        eps = torch.from_numpy(inputs["eps"])
        exact = elbo_terms(trained[0].model, torch.from_numpy(x), eps).elbo().double().mean().item()
        found = Engine(bundle).run("score", inputs)["elbo"].mean(dtype=np.float64)
        difference = bundle.read_json("parity.json")["reduction"]["difference"]
        assert difference == pytest.approx(found - exact, abs=1e-5)


def _nudge_fp16(arrays: Arrays) -> None:
    """One weight to the next float16."""
    weight = arrays["decoder.x_params.weight"]
    weight[0, 0] = np.nextafter(weight[0, 0], np.float16(9))


def _bfloat16(arrays: Arrays) -> None:
    """Keep 7 bits of the mantissa, as bfloat16 does."""
    for name, value in arrays.items():
        if value.dtype == np.float16:
            arrays[name] = ((value.view(np.uint16) + 4) & 0xFFF8).view(np.float16)


def _flip_fp16(arrays: Arrays) -> None:
    arrays["decoder.x_params.weight"][0, 0] *= -1


def _one_step(arrays: Arrays) -> None:
    weight = arrays["decoder.x_params.weight"]
    weight[0, 0] -= np.sign(weight[0, 0]) or 1


def _scale(name: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = (arrays[name] * np.float32(1 + 2**-10)).astype(np.float32)

    return change


def _zero_point(arrays: Arrays) -> None:
    arrays["decoder.x_params.x_zero"] = np.uint8(arrays["decoder.x_params.x_zero"] + 1)


def _four_bits(arrays: Arrays) -> None:
    weight = arrays["decoder.x_params.weight"]
    arrays["decoder.x_params.weight"] = (weight // 16 * 16).astype(np.int8)


@pytest.mark.parametrize(
    ("precision", "change"),
    [
        pytest.param("fp16", _nudge_fp16, id="fp16: one weight to the next float16"),
        pytest.param("fp16", _flip_fp16, id="fp16: the sign of one weight"),
        pytest.param("fp16", _bfloat16, id="fp16: rounded on, to bfloat16"),
        pytest.param("int8", _one_step, id="int8: one weight by one step"),
        pytest.param("int8", _four_bits, id="int8: rounded on, to four bits"),
        pytest.param("int8", _scale("decoder.x_params.x_scale"), id="int8: a scale"),
        pytest.param("int8", _scale("decoder.x_params.weight_scale"), id="int8: weights'"),
        pytest.param("int8", _zero_point, id="int8: a zero point"),
    ],
)
def test_a_reduced_bundle_that_is_damaged_further_fails(
    reduced: dict[str, Bundle],
    trained: Trained,
    tmp_path: Path,
    precision: Precision,
    change: Callable[[Arrays], None],
) -> None:
    path = copy_of(reduced[precision], tmp_path)
    change_arrays(path / "decoder.onnx", change)
    damaged = reseal(Bundle(path, reduced[precision].manifest))
    report = check_parity(damaged, trained[0].model, trained[1].test.x)
    assert {fault.rule for fault in report.faults()} == {"weights", "values"}
    assert {row.operation for row in report.comparisons if not row.passed} == {"decode", "sample"}
    assert not report.passed


def test_a_range_that_cuts_activations_off_costs_more_nats_than_allowed(
    reduced: dict[str, Bundle], trained: Trained, tmp_path: Path
) -> None:
    """Graphs and manifest agree on that range; only the ELBO sees that it is too small."""
    ranges = {"encoder.hidden.0": (0.0, 1.0), "decoder.x_params": (0.0, 0.3)}
    state = convert_precision(trained[0].model, "int8", ranges).state_dict()
    path = copy_of(reduced["int8"], tmp_path)
    for graph in reduced["int8"].graphs:
        change_arrays(path / graph, lambda arrays: arrays.update(as_arrays(state, arrays)))
    content = json.loads((path / "manifest.json").read_text())
    seal(path, {**content, "ranges": ranges})
    bundle = open_bundle(path)
    report = check_parity(bundle, trained[0].model, trained[1].test.x)
    assert {fault.rule for fault in report.faults()} == {"reduction"}
    assert not report.passed
    assert "(rule: reduction)" in report.table()
    assert parity_faults(add_report(bundle, report)) == ["parity failed: see parity.json"]


def as_arrays(state: Mapping[str, Any], names: Iterable[str]) -> Arrays:
    return {name: state[name].numpy() for name in names if name in state}


def copy_of(bundle: Bundle, folder: Path) -> Path:
    return shutil.copytree(bundle.path, folder / "bundle")


def change_arrays(path: Path, change: Callable[[Arrays], None]) -> None:
    proto = onnx.load(path)
    arrays = {item.name: numpy_helper.to_array(item).copy() for item in proto.graph.initializer}
    change(arrays)
    set_arrays(proto, arrays)
    onnx.save(proto, path)


REDUCTION = QuantizationLoss(
    precision="int8", rows=1000, elbo=-100.0, difference=-0.1, tolerance=0.1, row_rms=0.2
)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        pytest.param({}, True, id="on the tolerance"),
        pytest.param({"difference": -0.101}, False, id="below"),
        pytest.param({"difference": 0.101}, False, id="above"),
        pytest.param({"difference": np.nan}, False, id="NaN"),
        pytest.param({"tolerance": np.nan}, False, id="NaN tolerance"),
    ],
)
def test_verdict_of_the_elbo(changes: dict[str, Any], passed: bool) -> None:
    assert replace(REDUCTION, **changes).passed == passed


def test_a_report_without_the_elbo_of_a_reduced_bundle_has_failed(
    reduced: dict[str, Bundle], trained: Trained
) -> None:
    report = check_parity(reduced["fp16"], trained[0].model, trained[1].test.x)
    assert report.passed
    assert not replace(report, quantization_loss=None).passed
    broken = replace(REDUCTION, difference=np.nan)
    content = replace(report, quantization_loss=broken).to_json()
    assert (content["verdict"], content["reduction"]["difference"]) == ("failed", None)
    json.dumps(content, allow_nan=False)


def test_the_gate_takes_it_as_any_candidate(
    sealed: Bundle, reduced: dict[str, Bundle], trained: Trained, store: Path
) -> None:
    versions: dict[str, str] = {}
    for label, bundle in {"float32": sealed, **reduced}.items():
        with tracked_run("test") as run:
            versions[label] = register_bundle(run, bundle, "vae")
    assert sorted(versions.values()) == ["1", "2", "3"]
    tags = connect().get_model_version("vae", versions["int8"]).tags
    assert tags["precision"] == "int8"

    def put(label: str, margin: float) -> str:
        config = PromoteConfig(margin=margin, min_active_units=0)
        test = trained[1].test
        return promote("vae", versions[label], lambda _: test, config, threads=1).decision

    assert put("float32", 0.0) == "promoted"
    assert put("int8", 1e-6) == "refused"  # it loses a little
    assert put("int8", 0.1) == "promoted"
    assert put("fp16", 0.1) == "promoted"


def check_cost(folder: Path) -> None:
    """The report and the card say what was measured beside float32."""
    cost = open_bundle(folder).read_json("parity.json")["reduction"]["cost"]
    assert cost["bytes"].keys() == {"encoder.onnx", "reconstruct.onnx"}
    assert cost["bytes"]["encoder.onnx"]["reduced"] == (folder / "encoder.onnx").stat().st_size
    assert [(row["operation"], row["batch"]) for row in cost["rates"]] == [
        (operation, batch) for operation in ("encode", "reconstruct") for batch in (1, 64, 1024)
    ]
    assert all(row["rows_per_s"] > 0 and row["float32_rows_per_s"] > 0 for row in cost["rates"])
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| what | float32 | int8 |" in card
    assert "| reconstruct, batch 1024 | " in card


@pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib")
def test_from_training_to_the_server(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    def vae(*arguments: object) -> dict[str, Any]:
        cli.main([str(argument) for argument in arguments], standalone_mode=False)
        content: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return content

    monkeypatch.chdir(tmp_path)
    x = draw_images(400)
    np.save("x.npy", x)
    tiny = ("--hidden-dims", 16, "--latent-dim", 3, "--nll-samples", 2, "--threads", 1)
    run_id = vae("train", "--data", "x.npy", "--epochs", 2, *tiny)["run_id"]
    made = vae("export", "--run-id", run_id, "--precision", "int8", "--out", "b")
    assert made["precision"] == "int8"
    assert vae("check", "b", "--threads", 1)["parity"] == "passed"
    check_cost(tmp_path / "b")
    assert vae("register", "b")["version"] == "1"
    assert (
        vae("promote", "@candidate", "--threads", 1, "--min-active-units", 0)["decision"]
        == "promoted"
    )

    champion = "models:/vae@champion"
    bundle = open_bundle(tmp_path / "b")
    scored = vae("score", "x.npy", "scores", "--model", champion, "--workers", 1)
    assert scored["digest"] == bundle.manifest.digest
    expected = Engine(bundle).reconstruct(x[:50])
    model = mlflow.pyfunc.load_model(champion)
    assert model.predict(x[:50])["x_loc"].tobytes() == expected.tobytes()
    uri = f"sqlite:///{store}"
    with (
        serve(tmp_path, champion, MLFLOW_TRACKING_URI=uri) as running,
        Client(running.rest) as client,
    ):
        assert client.reconstruct(x[:50]).tobytes() == expected.tobytes()
        assert running.digest == bundle.manifest.digest
