"""Parity checks that are added to a registered version, for example from a machine with a GPU.

The version's bundle never changes. A check is a run in `NAME-checks` that holds `parity.json` and
its page, and for each device a tag `parity.DEVICE` on the version; the latest check of a device
counts. Failed checks are added too. The gate calls `check_faults`, which does not trust the tag: it
fetches the report and compares it with the bundle's files.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.experiments import open_experiment
from pipeline.parity.check import checked_files, provider_fault
from pipeline.parity.html_report import PAGE, render_page
from pipeline.parity.report import ParityReport
from pipeline.tracking import TrackedRun
from serving.bundle import PARITY, Bundle
from serving.errors import VaeError
from serving.mlflow_store import DIGEST_TAG, connect, store_errors
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient

_USUAL = ("cpu", "cuda")
"""Devices that are no plugins, so that the word is not a misspelled one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """The latest check on one device, as its tag describes it."""

    verdict: str
    run_id: str
    digest: str
    """Digest of the bundle that was checked."""
    sha256: str
    """Digest of the report."""
    time: str


def add_check(source: Source, report: Mapping[str, Any]) -> TrackedRun:
    """Add a report, passed or failed, to its version; return the run that holds it."""
    name, version, digest = str(source.name), str(source.version), source.bundle.manifest.digest
    client = connect()
    tags = {
        "model.name": name,
        "model.version": version,
        DIGEST_TAG: digest,
        "parity.verdict": report["verdict"],
        "parity.devices": ",".join(report["devices"]),
    }
    with store_errors():
        # not by tracked_run, which under `mlflow run` would take the project's own run
        experiment = open_experiment(client, checks_experiment(name))
        opened = client.create_run(experiment, tags=tags, run_name=f"check {version}")
    run, status = TrackedRun(client, opened.info.run_id), "FAILED"
    text = json.dumps(report, indent=1, allow_nan=False)
    check = DeviceCheck(
        verdict=report["verdict"],
        run_id=run.run_id,
        digest=digest,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        run.log_text(PARITY, text)
        run.log_text(PAGE, render_page(ParityReport.from_json(report), f"{name} version {version}"))
        with store_errors():
            value = json.dumps(asdict(check))
            for device in report["devices"]:  # last, so that every tag's report exists
                client.set_model_version_tag(name, version, _tag(device), value)
        status = "FINISHED"
    finally:
        with store_errors():
            client.set_terminated(run.run_id, status)
    return run


def checks_experiment(name: str) -> str:
    """Return the name of the experiment that holds the checks of a registered model."""
    return f"{name}-checks"


def check_faults(source: Source, devices: Sequence[str]) -> Iterator[str]:
    """Yield a line for each of `devices` on which a version does not count as checked, saying why.

    The report that is sealed into the bundle counts for its own devices, unless a later check on
    such a device failed.
    """
    if not devices:
        return
    client = connect()
    with store_errors():
        tags = client.get_model_version(str(source.name), str(source.version)).tags
    sealed = _sealed_devices(source.bundle)
    for device in devices:
        tag = tags.get(_tag(device))
        if tag is None:
            if device not in sealed:
                place = f"models:/{source.name}/{source.version}"
                other = "" if device in _USUAL else ", or correct the word to cpu, cuda or approval"
                advice = f"run vae check {place} --device {device}{other}"
                yield f"parity was not checked on {device}: {advice}"
        elif fault := _check_fault(client, source.bundle, device, tag, device in sealed):
            yield f"{fault}: run vae check on {device} again"


def _tag(device: str) -> str:
    return f"parity.{device}"


def _sealed_devices(bundle: Bundle) -> tuple[str, ...]:
    if PARITY not in bundle.manifest.files:
        return ()
    report = bundle.read_json(PARITY)
    return () if _report_fault(report, bundle) else tuple(report.get("devices", ()))


def _check_fault(
    client: "MlflowClient", bundle: Bundle, device: str, tag: str, sealed: bool
) -> str | None:
    try:
        check = DeviceCheck(**json.loads(tag))
    except (ValueError, TypeError):
        return f"the tag {_tag(device)} cannot be read"
    if check.verdict != "passed":
        return f"parity failed on {device}: see run {check.run_id}"
    if sealed:
        return None
    if check.digest != bundle.manifest.digest:
        return (
            f"the report for {device} is about bundle {check.digest[:12]}, "
            f"not about {bundle.manifest.digest[:12]}"
        )
    subject = f"the report for {device} in run {check.run_id}"
    try:
        text = _fetch_report(client, check.run_id)
    except VaeError as err:
        return f"the report for {device} is gone ({err})"
    if hashlib.sha256(text).hexdigest() != check.sha256:
        return f"{subject} was changed"
    try:
        report = json.loads(text)
    except ValueError:
        return f"{subject} cannot be read"
    if fault := _report_fault(report, bundle):
        return f"{subject} {fault}"
    if device not in report.get("devices", ()):
        return f"the report in run {check.run_id} does not cover {device}"
    return None


def _fetch_report(client: "MlflowClient", run_id: str) -> bytes:
    with store_errors(), tempfile.TemporaryDirectory() as folder:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            raise VaeError(f"run {run_id} was deleted")
        return Path(client.download_artifacts(run_id, PARITY, folder)).read_bytes()


def _report_fault(report: Any, bundle: Bundle) -> str | None:
    """Return why a report does not show that the bundle's graphs are its model, or None."""
    if not isinstance(report, dict) or report.get("verdict") != "passed":
        return "has failed"
    rows = [*report.get("comparisons", ()), *report.get("elbo", ())]
    if not rows or not all(row.get("passed") is True for row in rows):
        return "says that it passed, but not every comparison did"
    if report.get("files") != checked_files(bundle):
        return "is about other files"
    return provider_fault(report)
