"""Approvals: a user says that a version may be promoted, for the gate to ask for.

An approval is a record among the decisions on a model. It is of a bundle's digest, so that it does
not pass on to other files under the same number. The gate counts those that another user than the
promoter gave. A user is the name of the account that ran the command, and the record is as
trustworthy as the store's access control.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.registry.audit_log import (
    Decision,
    begin_decision,
    close_record,
    open_record,
    write_report,
)
from serving.ledger import audit_experiment
from serving.mlflow_store import connect, registered_version, store_errors
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient

APPROVAL = "approval"
"""The word that `--require` takes for it."""
_MAX_RESULTS = 50_000


def approve(name: str, version: str, reason: str) -> Decision:
    """Record that this process's user approves of a version, as its bundle is now.

    Raises:
        UsageRefused: there is no such version.
        VerificationFailed: it was not registered by `vae register`.
    """
    client = connect()
    registered_version(client, name, version)
    decision = begin_decision(client, "approve", name, version)
    decision = replace(decision, decision="approved", reasons=(reason,))
    with store_errors():
        run_id = open_record(client, decision)
        write_report(client, run_id, decision)
        close_record(client, run_id, "approved")
    return decision


def approvers(client: "MlflowClient", name: str) -> Mapping[str, tuple[str, ...]]:
    """Return who has approved of each bundle, by its digest."""
    found: dict[str, set[str]] = defaultdict(set)
    with store_errors():
        experiment = client.get_experiment_by_name(audit_experiment(name))
        if experiment is None:
            return {}
        runs = client.search_runs(
            [experiment.experiment_id],
            "tags.action = 'approve' and tags.decision = 'approved'",
            max_results=_MAX_RESULTS,
        )
    for run in runs:
        tags = run.data.tags
        if (digest := tags.get("digest")) and (operator := tags.get("operator")):
            found[digest].add(operator)
    return {digest: tuple(sorted(names)) for digest, names in found.items()}


def approval_faults(candidate: Source, promoter: str) -> Iterator[str]:
    """Say so if nobody but the promoter has approved of the candidate's bundle."""
    by = approvers(connect(), str(candidate.name)).get(candidate.bundle.manifest.digest, ())
    if any(user != promoter for user in by):
        return
    alone = f"only {promoter}, who promotes it, has approved of it" if by else "nobody has approved"
    command = f"vae approve {candidate.version} --name {candidate.name} --reason TEXT"
    advice = f"another user than {promoter} must run {command}"
    yield f"version {candidate.version} lacks an approval, {alone}: {advice}"
