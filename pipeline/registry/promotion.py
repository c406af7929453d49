"""Promotion: put a version through the gate and make it champion, or move the champion back.

In: a registered model and a version. Out: a `Decision`, recorded in the audit even if refused.
The order is: open the record; verify, score and judge; write the report; enter the move into the
ledger, where one of several wins; move the aliases; close the record; mark the move as done. A
process may die at any point: before the ledger entry nothing has moved, and after it the next
process finishes the move. Raises `VerificationFailed` if files are not those registered.

`--force` overrides how good a version must be, never whether it is sound: its digests, its parity,
finite scores, its own held-out rows, and an approval where one is asked for are always required.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.errors import Stale
from pipeline.registry.aliases import finish_last_move, make_move, tag_version
from pipeline.registry.audit_log import (
    Decision,
    DecisionStatus,
    begin_decision,
    close_record,
    drop_record,
    open_record,
    write_report,
)
from pipeline.registry.eligibility import add_required, eligibility_faults
from pipeline.registry.gate import judge, score_faults
from pipeline.registry.live_comparison import LiveComparison, compare_live
from pipeline.registry.scoring import open_engine, score_version
from pipeline.registry.standing import (
    check_bundle,
    check_was_promoted,
    is_champion,
    rival_of,
    set_by_hand,
)
from pipeline.registry.versions import PREVIOUS
from serving.bundle import METRICS, Manifest
from serving.errors import DataRefused, UsageRefused, VaeError, VerificationFailed
from serving.ledger import Move, list_moves
from serving.live_sums import merge_sums
from serving.mlflow_store import (
    alias_version,
    connect,
    find_in_store,
    registered_version,
    store_errors,
    store_name,
)
from serving.source import Source, fetch_version

if TYPE_CHECKING:
    from mlflow import MlflowClient


def promote(
    name: str,
    version: str,
    load_test: Callable[[Manifest], Split],
    config: PromoteConfig,
    *,
    threads: int,
    force: str | None = None,
    dry_run: bool = False,
    key: Path | None = None,
) -> Decision:
    """Make `version` champion if it is sound, and no worse than the champion is now.

    `load_test` loads the held-out rows of a version; they must be those it was evaluated on.
    `force` gives a reason to override a judgement against the version; it is recorded. A dry run
    ends with the decision `accepted` or `refused`, and writes nothing, not even a record.
    With the file of a public key, the version and the champion must be signed by its holder.
    """
    client = connect()
    with suppress(VerificationFailed):  # raised again, and recorded, when the files are fetched
        registered_version(client, name, version)
    after = 0 if dry_run else finish_last_move(client, name)[0]
    decision = begin_decision(client, "promote", name, version)
    if is_champion(client, decision):  # there is nothing to decide or to record
        if key is not None:
            with tempfile.TemporaryDirectory() as folder:
                fetch_version(client, name, version, Path(folder), key)
        return _decided(decision, "promoted", f"version {version} is the champion already")
    rival = rival_of(client, decision)
    decision = replace(decision, previous=rival, gate=config, force=force)

    def decide(folder: Path) -> Decision:
        return _pass_gate(client, decision, load_test, config, threads, folder, key)

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return decide(Path(folder))
    return _decide_on_record(client, decision, decide, after)


def rollback(name: str, *, threads: int, key: Path | None = None) -> Decision:
    """Make the previous champion the champion again, after verifying its files and outputs."""
    client = connect()
    after, finished = finish_last_move(client, name)
    if finished is not None and finished.action == "rollback":
        decision = begin_decision(client, "rollback", name, finished.version)
        decision = replace(decision, previous=finished.base)
        return _decided(decision, "promoted", "an interrupted rollback was finished")
    version = alias_version(client, name, PREVIOUS)
    decision = begin_decision(client, "rollback", name, version or "")
    if version is None or version == decision.previous:
        raise UsageRefused(_no_previous_version(client, name, decision.previous))

    def decide(folder: Path) -> Decision:
        source = fetch_version(client, name, version, folder, key)
        check_was_promoted(client, source)
        open_engine(source, threads)
        verified = replace(decision, digest=source.bundle.manifest.digest)
        return _decided(verified, "accepted", f"rolled back from version {decision.previous}")

    return _decide_on_record(client, decision, decide, after)


def _no_previous_version(client: "MlflowClient", name: str, champion: str | None) -> str:
    if champion is not None:
        return f"{name} has no version before {champion}, its champion, to go back to"
    if find_in_store(client.get_registered_model, name) is None:
        return f"there is no model {name!r} in {store_name()}: run vae run or vae register first"
    return f"{name} has no champion to go back from: run vae promote first"


def delete(name: str, version: str) -> Decision:
    """Delete a version that has no alias; its files stay until `mlflow gc`.

    MLflow itself would delete a champion too, and drop its alias without a warning.
    """
    client = connect()
    registered_version(client, name, version)
    after, _ = finish_last_move(client, name)
    with store_errors():
        aliases = client.get_model_version(name, version).aliases
    if aliases:
        raise UsageRefused(
            f"version {version} of {name} is {', '.join(sorted(aliases))}: "
            "promote another version or roll back first"
        )
    decision = begin_decision(client, "delete", name, version)
    accepted = _decided(decision, "accepted", "no alias")
    return _decide_on_record(client, decision, lambda folder: accepted, after)


def _pass_gate(
    client: "MlflowClient",
    decision: Decision,
    load_test: Callable[[Manifest], Split],
    config: PromoteConfig,
    threads: int,
    folder: Path,
    key: Path | None,
) -> Decision:
    candidate = fetch_version(client, decision.name, decision.version, folder, key)
    check_bundle(client, candidate)
    champion, missing = _fetch_champion(client, decision, candidate, folder, key)
    test = load_test(candidate.bundle.manifest)
    digest = candidate.bundle.manifest.digest
    config, faults = add_required(client, decision.name, config)
    decision = replace(decision, digest=digest, test_sha256=test.sha256, gate=config)
    faults += eligibility_faults(candidate, champion, test.sha256, config, decision.operator)
    if faults:
        return _decided(decision, "refused", *faults)
    samples = config.gate_samples
    scores = score_version(candidate, test.x, samples, threads)
    if faults := [*score_faults(scores)]:
        return _decided(decision, "refused", *faults)
    old = None if champion is None else score_version(champion, test.x, samples, threads)
    units = candidate.bundle.read_json(METRICS)["active_units"]
    live = _compare_live(client, decision, candidate, champion, config)
    judgement = judge(scores, old, active_units=units, config=config, live=live)
    decision = replace(decision, judgement=judgement)
    objections = (*set_by_hand(client, decision), *missing, *judgement.refusals)
    if not objections:
        return _decided(decision, "accepted", str(judgement))
    if decision.force is None:
        return _decided(decision, "refused", *objections)
    return _decided(decision, "accepted", f"forced: {decision.force}", *objections)


def _compare_live(
    client: "MlflowClient",
    decision: Decision,
    candidate: Source,
    champion: Source | None,
    config: PromoteConfig,
) -> LiveComparison | None:
    """Read what servers have seen of the two versions, if that is required."""
    if champion is None or not config.require_live:
        return None
    with store_errors():
        tags = client.get_model_version(decision.name, decision.version).tags
    digests = champion.bundle.manifest.digest, candidate.bundle.manifest.digest
    reference = f"models:/{decision.name}/{decision.version}"
    return compare_live(merge_sums(*digests, tags), reference, config)


def _fetch_champion(
    client: "MlflowClient", decision: Decision, candidate: Source, folder: Path, key: Path | None
) -> tuple[Source | None, tuple[str, ...]]:
    """Fetch the champion; if `--force` goes on without it, return None and why it is missing."""
    if decision.previous is None:
        return None, ()
    try:
        digest, _ = registered_version(client, decision.name, decision.previous)
        if digest == candidate.bundle.manifest.digest:
            key = None  # the candidate's signature is of the very same files
        champion = fetch_version(client, decision.name, decision.previous, folder, key)
        check_bundle(client, champion)
        return champion, ()
    except VerificationFailed as err:
        fault = f"champion {decision.previous} cannot be compared with: {err}"
        if decision.force is not None:
            return None, (fault,)
        raise VerificationFailed(
            f"{fault}; run vae rollback, or vae promote --force --reason TEXT"
        ) from err


def _decide_on_record(
    client: "MlflowClient", decision: Decision, decide: Callable[[Path], Decision], after: int
) -> Decision:
    """Open a record, decide, carry the decision out and close the record.

    `decide` takes a folder for the versions' files; `after` is the number of the last move.
    """
    with store_errors():
        run_id = open_record(client, decision)
    try:
        with tempfile.TemporaryDirectory() as folder:
            decision = decide(Path(folder))
        with store_errors():
            write_report(client, run_id, decision)
        if decision.decision == "accepted":
            return _carry_out(client, decision, run_id, after)
    except Stale as err:
        decision = _decided(decision, "stale", str(err))
    except (VaeError, OSError, KeyboardInterrupt) as err:
        _close_early(client, decision, run_id, err)
        raise
    with store_errors():
        close_record(client, run_id, decision.decision, reasons=decision.reasons)
        if decision.action == "promote":
            tag_version(client, decision.name, decision.version, decision.decision)
    return decision


def _close_early(
    client: "MlflowClient", decision: Decision, run_id: str, err: BaseException
) -> None:
    """Close the record after an error; if its move counts already, finish the move instead.

    If the rows to decide on could not be read, nothing was decided and the record is deleted.
    """
    with store_errors():
        if any(move.run_id == run_id for move in list_moves(client, decision.name)):
            finish_last_move(client, decision.name)
            return
        if isinstance(err, DataRefused | UsageRefused):
            drop_record(client, run_id)
            return
        reason = str(err) or "interrupted"
        write_report(client, run_id, _decided(decision, "refused", reason))
        close_record(client, run_id, "refused")


def _carry_out(client: "MlflowClient", decision: Decision, run_id: str, after: int) -> Decision:
    assert decision.action != "approve"  # which is recorded, and moves nothing
    move = Move(
        action=decision.action,
        version=decision.version,
        base=decision.previous,
        run_id=run_id,
        after=after,
        digest=decision.digest,
    )
    make_move(client, decision.name, move)
    return replace(decision, decision="deleted" if decision.action == "delete" else "promoted")


def _decided(decision: Decision, status: DecisionStatus, *reasons: str) -> Decision:
    return replace(decision, decision=status, reasons=reasons)
