import os
import sqlite3
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.cli.doctor import Finding, can_write, examine, list_requirements

pytestmark = pytest.mark.usefixtures("store")

Usage = namedtuple("Usage", "total used free")


def find(subject: str) -> Finding:
    return next(finding for finding in examine() if finding.subject == subject)


def test_a_good_machine_has_no_failure() -> None:
    findings = examine()
    assert [finding for finding in findings if finding.status == "failed"] == []
    subjects = {finding.subject for finding in findings}
    assert {"Python", "torch", "mlflow", "onnx", "CUDA", "MLflow store"} <= subjects
    assert find("torch").detail == metadata.version("torch")
    assert find("MLflow store").detail == os.environ["MLFLOW_TRACKING_URI"]


def test_a_missing_or_old_package_comes_with_the_command_that_fixes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxscript":
            raise metadata.PackageNotFoundError
        return "1.0" if name == "mlflow" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert find("onnxscript").detail == "is not installed"
    assert find("onnxscript").fix.startswith("pip install 'onnxscript")
    assert find("mlflow").status == "failed"
    assert find("mlflow").detail.startswith("1.0, wanted ")


def test_an_installation_for_serving_alone_has_warnings_and_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version
    lacking = {"torch", "onnx", "onnxscript", "matplotlib", "mlflow", "filelock"}

    def version(name: str) -> str:
        if name in lacking:
            raise metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = examine()
    assert [finding for finding in findings if finding.status == "failed"] == []
    subjects = {finding.subject for finding in findings}
    assert {"numpy", "pyarrow", "CUDA"} <= subjects
    assert not subjects & {*lacking, "MLflow store"}
    for extra in ("train", "registry"):
        finding = find(f"[{extra}]")
        assert (finding.status, finding.fix) == ("warning", f"pip install 'vae-pipeline[{extra}]'")


def test_a_full_disk_and_a_broken_store_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 1, 10**6))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    assert find("working folder").status == "failed"
    assert find("MLflow store").status == "failed"
    assert find("MLflow store").fix.startswith("export MLFLOW_TRACKING_URI=")


def test_a_store_that_cannot_be_written_fails(store: Path) -> None:
    with sqlite3.connect(store) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not can_write(store)
    assert can_write(store)
    assert not can_write(store.parent / "no" / "mlflow.db")


def test_a_server_that_cannot_be_reached_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finding = find("MLflow store")
    assert finding.status == "failed"
    assert "http://127.0.0.1:9" in finding.detail
    assert "secret" not in finding.detail
    assert finding.fix.startswith("start the server of http://127.0.0.1:9, or set MLFLOW_TRACK")


def test_requirements_are_read_from_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {Requirement(line).name for line in list_requirements()}

    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    plain = {Requirement(line).name for line in list_requirements()}
    assert plain <= installed
    assert {"torch", "numpy", "pillow"} <= plain
