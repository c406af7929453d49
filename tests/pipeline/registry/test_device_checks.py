import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.registry.device_checks import DeviceCheck, add_check, check_faults
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.mlflow_store import connect
from serving.sessions import PROVIDERS
from serving.source import Source, fetch_version

Report = dict[str, Any]


def report_of(bundle: Bundle, *devices: str, **changes: Any) -> Report:
    """The sealed report, changed as if it had been made on `devices`."""
    report: Report = bundle.read_json("parity.json")
    rows = [
        {**row, "provider": PROVIDERS[device]}
        for device in PROVIDERS
        for row in report["comparisons"]
        if device in devices
    ]
    placement = {device: {PROVIDERS[device]: 1} for device in PROVIDERS if device in devices}
    made = {"devices": list(devices), "comparisons": rows, "placement": placement}
    return {**report, **made, **changes}


def cuda_check() -> DeviceCheck:
    tags = connect().get_model_version("vae", "1").tags
    return DeviceCheck(**json.loads(tags["parity.cuda"]))


def set_check(device: str = "cuda", **changes: str) -> None:
    check = json.dumps(asdict(replace(cuda_check(), **changes)))
    connect().set_model_version_tag("vae", "1", f"parity.{device}", check)


@pytest.fixture(scope="module")
def checked_store(
    empty_store: Path, sealed: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store whose version 1 has an added check on cuda."""
    path = Path(shutil.copy(empty_store, tmp_path_factory.mktemp("checked") / "mlflow.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        with tracked_run("test") as run:
            register_bundle(run, sealed, "vae")
        add_check(Source(sealed, "vae", "1"), report_of(sealed, "cuda"))
    return path


@pytest.fixture
def version(
    checked_store: Path, sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Source:
    """Version 1 in a copy of that store; artifacts of runs are shared and must not be changed."""
    path = shutil.copy(checked_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return Source(sealed, "vae", "1")


def test_an_added_report_is_kept_beside_the_bundle(version: Source, tmp_path: Path) -> None:
    assert [*check_faults(version, ("cpu", "cuda"))] == []
    client, check = connect(), cuda_check()
    assert (check.verdict, check.digest) == ("passed", version.bundle.manifest.digest)
    run = client.get_run(check.run_id)
    assert run.info.run_name == "check 1"
    experiment = client.get_experiment(run.info.experiment_id)
    assert (experiment.name, run.info.status) == ("vae-checks", "FINISHED")
    assert run.data.tags["model.version"] == "1"
    kept = Path(client.download_artifacts(check.run_id, "parity.json", str(tmp_path)))
    assert json.loads(kept.read_bytes()) == report_of(version.bundle, "cuda")
    page = Path(client.download_artifacts(check.run_id, "parity.html", str(tmp_path)))
    assert "Parity of vae version 1" in page.read_text()
    (tmp_path / "fetched").mkdir()
    fetched = fetch_version(client, "vae", "1", tmp_path / "fetched")
    assert fetched.bundle.manifest == version.bundle.manifest


def test_without_required_devices_the_store_is_not_asked() -> None:
    assert [*check_faults(Source(Bundle(Path(), None), "none", "9"), ())] == []  # type: ignore[arg-type]


def test_the_latest_check_counts(version: Source) -> None:
    add_check(version, report_of(version.bundle, "cuda", verdict="failed"))
    (fault,) = check_faults(version, ("cpu", "cuda"))
    assert fault.startswith(f"parity failed on cuda: see run {cuda_check().run_id}: run vae check")
    add_check(version, report_of(version.bundle, "cuda"))
    assert [*check_faults(version, ("cuda",))] == []


def test_a_later_failed_check_overrides_the_sealed_report(version: Source) -> None:
    assert [*check_faults(version, ("cpu",))] == []
    add_check(version, report_of(version.bundle, "cpu", verdict="failed"))
    (fault,) = check_faults(version, ("cpu",))
    assert "parity failed on cpu" in fault


def test_one_report_may_cover_two_devices(version: Source) -> None:
    connect().delete_model_version_tag("vae", "1", "parity.cuda")
    (fault,) = check_faults(version, ("cuda",))
    assert fault == ("parity was not checked on cuda: run vae check models:/vae/1 --device cuda")
    add_check(version, report_of(version.bundle, "cpu", "cuda"))
    assert [*check_faults(version, ("cuda", "cpu"))] == []


def delete_run(_: Source) -> None:
    connect().delete_run(cuda_check().run_id)


def add(version: Source, *devices: str, **changes: Any) -> None:
    add_check(version, report_of(version.bundle, *devices, **changes))
    set_check(verdict="passed")


def fail_one(version: Source) -> None:
    rows = version.bundle.read_json("parity.json")["comparisons"]
    add(version, "cuda", comparisons=[*rows[1:], {**rows[0], "passed": False}])


def run_on_the_cpu(version: Source) -> None:
    add(version, "cuda", comparisons=version.bundle.read_json("parity.json")["comparisons"])


def check_other_files(version: Source) -> None:
    files = version.bundle.read_json("parity.json")["files"]
    add(version, "cuda", files={**files, "encoder.onnx": "0" * 64})


def change_report(version: Source) -> None:
    add(version, "cuda")
    connect().log_text(cuda_check().run_id, "{}", "parity.json")


def replace_report(version: Source) -> None:
    add(version, "cuda")
    text = "no JSON"
    connect().log_text(cuda_check().run_id, text, "parity.json")
    set_check(sha256=hashlib.sha256(text.encode()).hexdigest())


def delete_report(version: Source) -> None:
    add(version, "cuda")
    run = connect().get_run(cuda_check().run_id)
    Path(run.info.artifact_uri.removeprefix("file://"), "parity.json").unlink()


def check_on_cpu(version: Source) -> None:
    add_check(version, report_of(version.bundle, "cpu"))
    client = connect()
    tag = client.get_model_version("vae", "1").tags["parity.cpu"]
    client.set_model_version_tag("vae", "1", "parity.cuda", tag)


def spoil_tag(_: Source) -> None:
    connect().set_model_version_tag("vae", "1", "parity.cuda", "passed")


REFUSED: dict[str, tuple[Callable[[Source], None], str]] = {
    "run deleted": (delete_run, "is gone (run {run} was deleted)"),
    "run gone": (lambda _: set_check(run_id="0" * 32), "is gone (the MLflow store"),
    "report gone": (delete_report, "is gone (the MLflow store"),
    "report changed": (change_report, "was changed"),
    "report replaced": (replace_report, "cannot be read"),
    "other bundle": (
        lambda _: set_check(digest="0" * 64),
        "is about bundle 000000000000, not about",
    ),
    "other files": (check_other_files, "is about other files"),
    "tag forged": (lambda v: add(v, "cuda", verdict="failed"), "in run {run} has failed"),
    "verdict forged": (fail_one, "says that it passed, but not every comparison did"),
    "nothing compared": (lambda v: add(v, "cuda", comparisons=[], elbo=[]), "not every comparison"),
    "other provider": (
        run_on_the_cpu,
        "in run {run} is of cuda, but CPUExecutionProvider computed",
    ),
    "other device": (check_on_cpu, "the report in run {run} does not cover cuda"),
    "tag spoiled": (spoil_tag, "the tag parity.cuda cannot be read"),
}


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_report_that_shows_nothing_is_refused(
    version: Source, spoil: Callable[[Source], None], reason: str
) -> None:
    spoil(version)
    (fault,) = check_faults(version, ("cpu", "cuda"))
    run = "" if spoil is spoil_tag else cuda_check().run_id
    assert reason.format(run=run) in fault
    assert fault.endswith(": run vae check on cuda again")
