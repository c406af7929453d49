"""`vae check` on a folder and on a version, and its effect on `vae promote --require`."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import stages
from pipeline.cli.main import cli
from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.errors import ParityFailed
from pipeline.parity.check import checked_files
from pipeline.registry.promotion import promote
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle, Manifest
from serving.errors import DeviceUnavailable, UsageRefused
from serving.mlflow_store import alias_version, connect
from serving.source import fetch_version
from tests.e2e.versions import other_model
from tests.pipeline.parity.mutations import change_report
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")


def vae(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run a command and return its JSON line."""
    cli.main(arguments, standalone_mode=False)
    content: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return content


def register(bundle: Bundle) -> str:
    with tracked_run("test") as run:
        return register_bundle(run, bundle, "vae")


def promote_requiring(trained: Trained, *devices: Any) -> tuple[str, tuple[str, ...]]:
    def load_test(manifest: Manifest) -> Split:
        return trained[1].test

    decision = promote("vae", "1", load_test, PromoteConfig(require=devices), threads=1)
    return decision.decision, decision.reasons


@pytest.fixture
def falsely_passed(sealed: Bundle, tmp_path: Path) -> Bundle:
    """A bundle whose graphs differ from the model, with a report that says they agree."""
    bundle = other_model(sealed.path, tmp_path / "falsely_passed")
    return change_report(bundle, files=checked_files(bundle))


def test_a_folder_gets_its_report_and_the_page(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "parity.html"
    said = vae(capsys, "check", str(bundle.path), "--threads", "1", "--report", str(page))
    assert said["parity"] == "passed"
    assert said["report"] == str(bundle.path / "parity.json")
    assert said["digest"] == json.loads((bundle.path / "manifest.json").read_bytes())["digest"]
    assert f"Parity of {bundle.path}: passed" in page.read_text()


def test_the_main_job_says_in_one_line_that_parity_passed(
    bundle: Bundle, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, dataset = trained
    bundle, report = stages.check(bundle, checkpoint, dataset, "cpu", 1)
    count = len(report.comparisons)
    assert capsys.readouterr().err.splitlines() == [
        "checking parity with torch on cpu",
        f"  parity passed: {count} comparisons on cpu",
    ]
    other = other_model(bundle.path, bundle.path.parent / "other")
    _, failed = stages.check(other, checkpoint, dataset, "cpu", 1)
    shown = capsys.readouterr().err
    assert f"parity FAILED: {len(failed.comparisons)} comparisons on cpu" in shown
    assert "FAILED values" in shown  # the rows of what failed


def test_a_report_of_another_kind_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match=r"^--report must end in \.html, got "):
        cli.main(["check", str(tmp_path), "--report", "parity.pdf"], standalone_mode=False)


def test_under_mlflow_run_the_report_is_in_the_project_s_run(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    run_id = client.create_run(client.create_experiment("project")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    vae(capsys, "check", str(bundle.path), "--threads", "1")
    assert {item.path for item in client.list_artifacts(run_id)} == {"parity.json", "parity.html"}


def test_a_version_gets_a_report_beside_it(
    sealed: Bundle, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(sealed)
    said = vae(capsys, "check", "models:/vae@candidate", "--threads", "1")
    assert (said["parity"], said["digest"]) == ("passed", sealed.manifest.digest)
    assert json.loads(Path(said["report"]).read_bytes())["verdict"] == "passed"
    assert promote_requiring(trained, "cpu", "cuda") == (
        "refused",
        ("parity was not checked on cuda: run vae check models:/vae/1 --device cuda",),
    )
    assert alias_version(connect(), "vae", "champion") is None
    assert promote_requiring(trained, "cpu")[0] == "promoted"
    fetched = fetch_version(connect(), "vae", "1", tmp_path)
    assert fetched.bundle.manifest == sealed.manifest


def test_a_failed_check_is_added_too(falsely_passed: Bundle, trained: Trained) -> None:
    register(falsely_passed)
    with pytest.raises(ParityFailed, match=r"^parity failed: .*\(rule: weights\)$"):
        cli.main(["check", "models:/vae/1", "--threads", "1"], standalone_mode=False)
    check = json.loads(connect().get_model_version("vae", "1").tags["parity.cpu"])
    assert check["verdict"] == "failed"
    artifacts = {item.path for item in connect().list_artifacts(check["run_id"])}
    assert artifacts == {"parity.json", "parity.html"}
    decision, reasons = promote_requiring(trained, "cpu")
    assert decision == "refused"
    assert f"parity failed on cpu: see run {check['run_id']}" in reasons[0]


def test_without_a_gpu_nothing_is_added(sealed: Bundle) -> None:
    register(sealed)
    with pytest.raises(DeviceUnavailable):
        cli.main(["check", "models:/vae/1", "--device", "cuda"], standalone_mode=False)
    assert "parity.cuda" not in connect().get_model_version("vae", "1").tags
    assert connect().get_experiment_by_name("vae-checks") is None


@pytest.mark.parametrize(
    ("text", "reason"), [("CPU", "'CPU' is no device: give cpu"), ("cpu,", "'' is no device")]
)
def test_only_names_of_devices_can_be_required(text: str, reason: str) -> None:
    import click

    with pytest.raises(click.BadParameter, match=reason):
        cli.main(["promote", "1", "--require", text], standalone_mode=False)
