"""Parity checks made elsewhere, such as on a machine with a GPU, added to a registered version.

The version's bundle never changes. A check is a run in `NAME-checks` that holds `parity.json` and
its page, and a tag `parity.DEVICE` on the version for each device; the latest check of a device
stands. A failed one is added too. `check_faults` is what a gate asks: it believes no tag, but
fetches the report and holds it against the bundle's files.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.parity.check import checked_files, provider_fault
from pipeline.parity.html_report import PAGE, render_page
from pipeline.parity.report import ParityReport
from pipeline.tracking import TrackedRun, open_experiment
from serving.bundle import PARITY, Bundle
from serving.errors import VaeError
from serving.mlflow_store import DIGEST_TAG, connect, store_errors
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the tag of one device says of its latest check."""

    verdict: str
    run_id: str
    digest: str
    """Of the bundle that was checked."""
    sha256: str
    """Of the report."""
    time: str


def check_experiment(name: str) -> str:
    """Where the checks of a registered model are kept."""
    return f"{name}-checks"


def add_check(source: Source, report: Mapping[str, Any]) -> TrackedRun:
    """Add a report to the version that it was made of, passed or not; return the run it is in."""
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
        # not an active run: under `mlflow run` that would be the project's own
        experiment = open_experiment(client, check_experiment(name))
        opened = client.create_run(experiment, tags=tags, run_name=f"check {version}")
    run, status = TrackedRun(client, opened.info.run_id), "FAILED"
    text = json.dumps(report, indent=1, allow_nan=False)
    check = Check(
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
            for device in report["devices"]:  # last: a tag never speaks of a report not there yet
                value = json.dumps(asdict(check))
                client.set_model_version_tag(name, version, _tag(device), value)
        status = "FINISHED"
    finally:
        with store_errors():
            client.set_terminated(run.run_id, status)
    return run


def check_faults(source: Source, devices: Sequence[str]) -> Iterator[str]:
    """Why a version does not count as checked on every one of `devices`, a line each.

    The report that is sealed into the bundle counts for its own devices, unless a later check of
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
                yield f"parity was not checked on {device}: run vae check {place} --device {device}"
        elif fault := _check_fault(client, source.bundle, device, tag, device in sealed):
            yield f"{fault}: run vae check on {device} again"


def _tag(device: str) -> str:
    return f"parity.{device}"


def _sealed_devices(bundle: Bundle) -> tuple[str, ...]:
    """The devices that the bundle's own report speaks for, if it passed for these files."""
    if PARITY not in bundle.manifest.files:
        return ()
    report = bundle.read_json(PARITY)
    return () if _report_fault(report, bundle) else tuple(report.get("devices", ()))


def _check_fault(
    client: "MlflowClient", bundle: Bundle, device: str, tag: str, sealed: bool
) -> str | None:
    """Why the check that a tag names does not count."""
    try:
        check = Check(**json.loads(tag))
    except (ValueError, TypeError):
        return f"the tag {_tag(device)} cannot be read"
    if check.verdict != "passed":
        return f"parity failed on {device}: see run {check.run_id}"
    if sealed:
        return None
    if check.digest != bundle.manifest.digest:
        return (
            f"the report of {device} is of bundle {check.digest[:12]}, "
            f"not of {bundle.manifest.digest[:12]}"
        )
    try:
        text = _fetch_report(client, check.run_id)
    except VaeError as err:
        return f"the report of {device} is gone ({err})"
    if hashlib.sha256(text).hexdigest() != check.sha256:
        return f"the report of {device} in run {check.run_id} was changed"
    try:
        report = json.loads(text)
    except ValueError:
        return f"the report of {device} in run {check.run_id} cannot be read"
    if fault := _report_fault(report, bundle):
        return f"the report of {device} in run {check.run_id} {fault}"
    if device not in report.get("devices", ()):
        return f"the report in run {check.run_id} does not speak of {device}"
    return None


def _fetch_report(client: "MlflowClient", run_id: str) -> bytes:
    """Read the report of a run that is there and was not deleted; raises `VaeError`."""
    with store_errors(), tempfile.TemporaryDirectory() as folder:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            raise VaeError(f"run {run_id} was deleted")
        return Path(client.download_artifacts(run_id, PARITY, folder)).read_bytes()


def _report_fault(report: Any, bundle: Bundle) -> str | None:
    """Why a report does not show that the bundle's graphs are its model."""
    if not isinstance(report, dict) or report.get("verdict") != "passed":
        return "has failed"
    rows = [*report.get("comparisons", ()), *report.get("elbo", ())]
    if not rows or not all(row.get("passed") is True for row in rows):
        return "says that it passed, but not every comparison did"
    if report.get("files") != checked_files(bundle):
        return "speaks of other files"
    return provider_fault(report)
