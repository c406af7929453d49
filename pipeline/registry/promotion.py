"""Promotion: put a version through the gate and move the champion once; or move it back.

In: a registered model and a version. Out: a `Decision`, recorded in the audit, refused ones too.
The order is: open the record; verify, score and judge; write the report; enter the move in the
ledger, where one of several wins; move the aliases; close the record; mark the move as done. A
process may die at any point: before the ledger nothing has moved, and after it whoever comes next
finishes the move. Raises `VerificationFailed` when files are not those registered.

`--force` overrides how good a version is, never whether it is sound: not its digests, its parity,
scores that are not finite, or rows that are not its own.
"""

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.errors import Stale
from pipeline.parity.check import parity_faults
from pipeline.registry.aliases import make_move, settle, tag_version
from pipeline.registry.audit_log import (
    Decision,
    Outcome,
    close_record,
    drop_record,
    iso_time,
    open_record,
    write_report,
)
from pipeline.registry.device_checks import check_faults
from pipeline.registry.gate import Array, judge, metric_faults, score_faults
from pipeline.registry.ledger import Action, Move, list_moves
from pipeline.registry.versions import CHAMPION, PREVIOUS, fetch_verified, version_errors
from serving.bundle import METRICS, Manifest
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import (
    alias_version,
    connect,
    find_in_store,
    registered_version,
    store_errors,
    store_name,
)
from serving.noise import draw_rows
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient


def resolve_version(name: str, reference: str) -> str:
    """A version number from `7`, or from an alias as `@candidate`."""
    if reference.isdecimal():
        return reference
    if not reference.startswith("@"):
        raise UsageRefused(f"version must be a number or an alias as @candidate, got {reference!r}")
    client = connect()
    with store_errors():
        version = alias_version(client, name, reference[1:])
    if version is None:
        raise UsageRefused(f"{name} has no version {reference}: run vae register first")
    return version


def promote(
    name: str,
    version: str,
    load_test: Callable[[Manifest], Split],
    config: PromoteConfig,
    *,
    threads: int,
    force: str | None = None,
    dry_run: bool = False,
) -> Decision:
    """Make `version` champion if it is sound, and no worse than the champion is now.

    `load_test` gives the held-out rows of a version; they must be those it was evaluated on. With
    `force`, the reason for it, a judgement against the version is overridden and recorded. A dry
    run ends with the decision `accepted` or `refused`, and writes nothing, not even a record.
    """
    client = connect()
    with suppress(VerificationFailed):  # what is wrong with it belongs into the record
        registered_version(client, name, version)
    after = 0 if dry_run else settle(client, name)[0]
    decision = replace(_begin(client, "promote", name, version), gate=config, force=force)
    if version == decision.previous:  # there is nothing to decide, nor to record
        return _decided(decision, "promoted", f"version {version} is the champion already")

    def decide(folder: Path) -> Decision:
        return _pass_gate(client, decision, load_test, config, threads, folder)

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return decide(Path(folder))
    return _record(client, decision, decide, after)


def rollback(name: str, *, threads: int) -> Decision:
    """Make the previous champion the champion again, after its files and outputs were verified."""
    client = connect()
    after, finished = settle(client, name)
    if finished is not None and finished.action == "rollback":
        decision = replace(
            _begin(client, "rollback", name, finished.version), previous=finished.base
        )
        return _decided(decision, "promoted", "an interrupted rollback was finished")
    with store_errors():
        target = alias_version(client, name, PREVIOUS)
    decision = _begin(client, "rollback", name, target or "")
    if target is None or target == decision.previous:
        raise UsageRefused(_nothing_before(client, name, decision.previous))

    def decide(folder: Path) -> Decision:
        _open(fetch_verified(client, name, target, folder), threads)
        return _decided(decision, "accepted", f"back from version {decision.previous}")

    return _record(client, decision, decide, after)


def _nothing_before(client: "MlflowClient", name: str, champion: str | None) -> str:
    """Why there is no version to go back to."""
    if champion is not None:
        return f"{name} has no version before {champion}, its champion, to go back to"
    with store_errors():
        model = find_in_store(client.get_registered_model, name)
    if model is None:
        return f"there is no model {name!r} in {store_name()}: run vae run or vae register first"
    return f"{name} has no champion to go back from: run vae promote first"


def delete(name: str, version: str) -> Decision:
    """Delete a version that no alias names; its files stay until `mlflow gc`.

    MLflow itself deletes a champion as well, and drops the alias without a word.
    """
    client = connect()
    registered_version(client, name, version)
    after, _ = settle(client, name)
    with store_errors():
        aliases = client.get_model_version(name, version).aliases
    if aliases:
        raise UsageRefused(
            f"version {version} of {name} is {', '.join(sorted(aliases))}: "
            "promote another version or roll back first"
        )
    decision = _begin(client, "delete", name, version)
    return _record(client, decision, lambda _: _decided(decision, "accepted", "no alias"), after)


def _pass_gate(
    client: "MlflowClient",
    decision: Decision,
    load_test: Callable[[Manifest], Split],
    config: PromoteConfig,
    threads: int,
    folder: Path,
) -> Decision:
    """Verify, score and judge."""
    candidate = fetch_verified(client, decision.name, decision.version, folder)
    champion, missing = _fetch_champion(client, decision, folder)
    test = load_test(candidate.bundle.manifest)
    decision = replace(decision, test_sha256=test.sha256)
    if faults := [*_faults(candidate, champion, test.sha256, config)]:
        return _decided(decision, "refused", *faults)
    scores = _score(candidate, test.x, config.gate_samples, threads)
    if faults := [*score_faults(scores)]:
        return _decided(decision, "refused", *faults)
    old = None if champion is None else _score(champion, test.x, config.gate_samples, threads)
    units = candidate.bundle.read_json(METRICS)["active_units"]
    judgement = judge(scores, old, active_units=units, config=config)
    decision = replace(decision, judgement=judgement)
    against = (*missing, *judgement.refusals)
    if not against:
        return _decided(decision, "accepted", str(judgement))
    if decision.force is None:
        return _decided(decision, "refused", *against)
    return _decided(decision, "accepted", f"forced: {decision.force}", *against)


def _fetch_champion(
    client: "MlflowClient", decision: Decision, folder: Path
) -> tuple[Source | None, tuple[str, ...]]:
    """The champion, and why there is none to compare with though there should be."""
    if decision.previous is None:
        return None, ()
    try:
        return fetch_verified(client, decision.name, decision.previous, folder), ()
    except VerificationFailed as err:
        if decision.force is not None:
            return None, (f"champion {decision.previous} cannot be compared with: {err}",)
        raise VerificationFailed(
            f"champion {decision.previous} cannot be compared with: {err}; run vae rollback, or "
            "vae promote --force --reason TEXT"
        ) from err


def _faults(
    candidate: Source, champion: Source | None, test_sha256: str, config: PromoteConfig
) -> Iterator[str]:
    """What keeps the candidate from being scored at all; `--force` does not change it."""
    yield from parity_faults(candidate.bundle)
    yield from check_faults(candidate, config.require)
    yield from metric_faults(candidate.bundle.read_json(METRICS))
    if champion is not None:
        yield from _kind_faults(candidate.bundle.manifest, champion.bundle.manifest)
    yield from _data_faults(candidate, champion, test_sha256, config)


def _data_faults(
    candidate: Source, champion: Source | None, test_sha256: str, config: PromoteConfig
) -> Iterator[str]:
    """Both are scored on the candidate's rows, which should be the champion's as well."""
    own = candidate.bundle.manifest.data["splits"]["test"]["sha256"]
    if test_sha256 != own:
        yield (
            "the held-out rows are not those that the version was evaluated on: "
            f"sha256 {test_sha256[:12]}, its manifest says {own[:12]}"
        )
    if champion is None or config.allow_new_data:
        return
    other = champion.bundle.manifest.data["splits"]["test"]["sha256"]
    if own != other:
        yield (
            f"champion {champion.version} was evaluated on other held-out rows, sha256 "
            f"{other[:12]}, the candidate on {own[:12]}: train on the champion's data, or compare "
            "both on the candidate's rows with --allow-new-data"
        )


def _kind_faults(new: Manifest, old: Manifest) -> Iterator[str]:
    for field in ("x_shape", "x_dtype", "likelihood"):
        if getattr(new, field) != getattr(old, field):
            yield (
                f"{field} is {getattr(new, field)}, the champion's is {getattr(old, field)}, so "
                "their ELBOs cannot be compared: register it under another --name"
            )


def _score(source: Source, x: Array, num_samples: int, threads: int) -> Array:
    """ELBO of each row, in nats; every row has its own noise, so that errors average out."""
    engine = _open(source, threads)
    eps = draw_rows(0, 0, len(x), num_samples * source.bundle.manifest.latent_dim)
    inputs = {"x": x, "eps": eps.reshape(len(x), num_samples, -1)}
    return engine.run("score", inputs)["elbo"].astype(np.float64)


def _open(source: Source, threads: int) -> Engine:
    """The engine of a version, which gives the outputs that torch gave."""
    with version_errors(source.name, source.version, source.bundle.path):
        engine = Engine(source.bundle, threads=threads)
        engine.self_check()
    return engine


def _record(
    client: "MlflowClient", decision: Decision, decide: Callable[[Path], Decision], after: int
) -> Decision:
    """Open the record, decide with a folder for the versions' files, move, close the record."""
    with store_errors():
        run_id = open_record(client, decision)
    try:
        with tempfile.TemporaryDirectory() as folder:
            decision = decide(Path(folder))
        with store_errors():
            write_report(client, run_id, decision)
        if decision.decision == "accepted":
            return _move(client, decision, run_id, after)
    except Stale as err:
        decision = _decided(decision, "stale", str(err))
    except (VaeError, OSError, KeyboardInterrupt) as err:
        _give_up(client, decision, run_id, err)
        raise
    with store_errors():
        close_record(client, run_id, decision.decision, reasons=decision.reasons)
        if decision.action == "promote":
            tag_version(client, decision.name, decision.version, decision.decision)
    return decision


def _give_up(client: "MlflowClient", decision: Decision, run_id: str, err: BaseException) -> None:
    """Close the record of a decision that ended early; a move that counts is finished instead.

    Where the rows to decide on cannot be read, nothing was decided: no record is kept.
    """
    with store_errors():
        if any(move.run_id == run_id for move in list_moves(client, decision.name)):
            settle(client, decision.name)
            return
        if isinstance(err, DataRefused | UsageRefused):
            drop_record(client, run_id)
            return
        reason = str(err) or "interrupted"
        write_report(client, run_id, _decided(decision, "refused", reason))
        close_record(client, run_id, "refused")


def _move(client: "MlflowClient", decision: Decision, run_id: str, after: int) -> Decision:
    """Carry out what was decided."""
    move = Move(
        action=decision.action,
        version=decision.version,
        base=decision.previous,
        run_id=run_id,
        after=after,
    )
    make_move(client, decision.name, move)
    return replace(decision, decision="deleted" if decision.action == "delete" else "promoted")


def _begin(client: "MlflowClient", action: Action, name: str, version: str) -> Decision:
    """A decision that is about to be made, against the present champion."""
    time = iso_time(datetime.now(UTC).timestamp() * 1000)
    with store_errors():
        previous = alias_version(client, name, CHAMPION)
    return Decision(
        name=name,
        action=action,
        version=version,
        previous=previous,
        decision="refused",
        reasons=(),
        time=time,
        operator=_operator(),
    )


def _decided(decision: Decision, outcome: Outcome, *reasons: str) -> Decision:
    return replace(decision, decision=outcome, reasons=reasons)


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
