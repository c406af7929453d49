"""Promotion: put a version through the gate and move the champion once; or move it back.

In: a registered model and a version. Out: a `Decision`, recorded as a run in `NAME-promotions`,
refused ones too. Two promotions at once cannot both win: a lease keeps them apart, and the champion
is read again before it moves. Raises `VerificationFailed` when files are not those registered.
"""

import getpass
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.config import PromoteConfig
from pipeline.data import Split
from pipeline.errors import Stale
from pipeline.gate import Array, Judgement, judge
from pipeline.parity import parity_faults
from pipeline.registry import CHAMPION, PREVIOUS
from pipeline.tracking import open_experiment
from serving.bundle import Manifest
from serving.engine import Engine
from serving.errors import UsageRefused, VaeError
from serving.noise import draw_rows
from serving.source import (
    Source,
    alias_version,
    connect,
    fetch_version,
    registered_version,
    store_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE_S = 60.0
"""A lease this old was left by a process that died."""
LEASE_WAIT_S = 10.0
_RETRY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, about which versions, and why."""

    name: str
    action: Literal["promote", "rollback"]
    version: str
    previous: str | None
    """The champion when the decision was made."""
    decision: Literal["promoted", "refused", "stale"]
    reasons: tuple[str, ...]
    judgement: Judgement | None = None
    time: str = ""
    operator: str = ""


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
) -> Decision:
    """Make `version` champion if it is no worse than the champion is now.

    `load_test` gives the held-out rows of a version; they must be those it was evaluated on.
    """
    client = connect()
    with store_errors():
        base = alias_version(client, name, CHAMPION)
    registered_version(client, name, version)  # there must be one to decide on
    decision = _begin("promote", name, version, base)
    if version == base:
        reason = f"version {version} is the champion already"
        return _record(client, decision, lambda folder: replace(decision, reasons=(reason,)))

    def decide(folder: Path) -> Decision:
        candidate = fetch_version(client, name, version, folder)
        champion = fetch_version(client, name, base, folder) if base else None
        test = load_test(candidate.bundle.manifest)
        faults = [*_faults(candidate, champion, test.sha256)]
        judgement = None if faults else _judge(candidate, champion, test.x, config, threads)
        if judgement is not None and judgement.refusal is not None:
            faults = [judgement.refusal]
        made = replace(decision, judgement=judgement, reasons=tuple(faults) or (str(judgement),))
        return replace(made, decision="refused") if faults else _flip(client, made)

    return _record(client, decision, decide)


def rollback(name: str, *, threads: int) -> Decision:
    """Make the previous champion the champion again, after its files and outputs were verified."""
    client = connect()
    with store_errors():
        base, target = (alias_version(client, name, alias) for alias in (CHAMPION, PREVIOUS))
    if target is None or target == base:
        raise UsageRefused(f"{name} has no previous champion to go back to")
    decision = _begin("rollback", name, target, base)

    def decide(folder: Path) -> Decision:
        Engine(fetch_version(client, name, target, folder).bundle, threads=threads).self_check()
        return _flip(client, replace(decision, reasons=(f"back from version {base}",)))

    return _record(client, decision, decide)


def history(name: str) -> list[dict[str, Any]]:
    """Every decision on `name`, the newest first."""
    client = connect()
    keys = ("time", "action", "version", "previous", "decision", "reasons", "operator")
    with store_errors():
        experiment = client.get_experiment_by_name(audit_experiment(name))
        runs = (
            client.search_runs([experiment.experiment_id], max_results=10_000) if experiment else []
        )
    return [
        {key: run.data.tags.get(key) for key in keys} | {"run_id": run.info.run_id} for run in runs
    ]


def audit_experiment(name: str) -> str:
    """Where the decisions on a registered model are recorded."""
    return f"{name}-promotions"


def _faults(candidate: Source, champion: Source | None, test_sha256: str) -> Iterator[str]:
    """What keeps the candidate from being scored at all."""
    yield from parity_faults(candidate.bundle)
    new = candidate.bundle.manifest
    if test_sha256 != new.data["splits"]["test"]["sha256"]:
        yield "the held-out rows are not those that the version was evaluated on"
    if champion is None:
        return
    old = champion.bundle.manifest
    for field in ("x_shape", "x_dtype", "likelihood"):
        if getattr(new, field) != getattr(old, field):
            yield (
                f"{field} is {getattr(new, field)}, the champion's is {getattr(old, field)}, so "
                "their ELBOs cannot be compared: register it under another --name"
            )


def _judge(
    candidate: Source, champion: Source | None, x: Array, config: PromoteConfig, threads: int
) -> Judgement:
    old = None if champion is None else _score(champion, x, config.gate_samples, threads)
    return judge(_score(candidate, x, config.gate_samples, threads), old, margin=config.margin)


def _score(source: Source, x: Array, num_samples: int, threads: int) -> Array:
    """ELBO of each row, in nats; every row has its own noise, so that errors average out."""
    engine = Engine(source.bundle, threads=threads)
    engine.self_check()
    eps = draw_rows(0, 0, len(x), num_samples * source.bundle.manifest.latent_dim)
    inputs = {"x": x, "eps": eps.reshape(len(x), num_samples, -1)}
    return engine.run("score", inputs)["elbo"].astype(np.float64)


def _flip(client: "MlflowClient", decision: Decision) -> Decision:
    """Move the aliases under the lease, if the champion is the one that was decided against."""
    name = decision.name
    with store_errors(), _lease(client, name):
        if alias_version(client, name, CHAMPION) != decision.previous:
            raise Stale("the champion was moved meanwhile: run the gate again")
        if decision.action == "promote" and decision.previous is not None:
            client.set_registered_model_alias(name, PREVIOUS, decision.previous)
        client.set_registered_model_alias(name, CHAMPION, decision.version)
        if alias_version(client, name, CHAMPION) != decision.version:
            raise Stale("the champion was moved by another program at the same time")
    return decision


@contextmanager
def _lease(client: "MlflowClient", name: str) -> Iterator[None]:
    """Hold the registered model `NAME--promotion-lease`, whose name the store keeps unique."""
    from mlflow.exceptions import MlflowException

    lease, owner = f"{name}--promotion-lease", uuid.uuid4().hex
    deadline = time.monotonic() + LEASE_WAIT_S
    while True:
        try:
            client.create_registered_model(lease, tags={"owner": owner})
            break
        except MlflowException as err:
            # where the lease is dropped meanwhile, mlflow says that it does not exist
            if err.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        _drop_lease(client, lease, expired=True)
        if time.monotonic() > deadline:
            raise Stale(f"another promotion of {name} is under way: try again")
        time.sleep(_RETRY_S)
    try:
        yield
    finally:
        _drop_lease(client, lease, owner=owner)


def _drop_lease(
    client: "MlflowClient", lease: str, *, owner: str | None = None, expired: bool = False
) -> None:
    """Delete the lease if it is the owner's, or if its process died long ago."""
    from mlflow.exceptions import MlflowException

    try:
        held = client.get_registered_model(lease)
        # the store's own time stamp is there as soon as the lease is; its tags may come later
        old = held.creation_timestamp / 1000 + LEASE_S < time.time()
        if (expired and old) or (owner is not None and held.tags.get("owner") == owner):
            client.delete_registered_model(lease)
    except MlflowException as err:
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":  # dropped meanwhile
            raise


def _record(
    client: "MlflowClient", decision: Decision, decide: Callable[[Path], Decision]
) -> Decision:
    """Open the audit record, decide with a folder for the versions' files, close the record.

    The record is there before the champion moves, so that nothing moves without one.
    """
    with store_errors():
        experiment = open_experiment(client, audit_experiment(decision.name))
        tags = {**_tags(decision), "decision": "deciding", "reasons": "the process ended early"}
        label = f"{decision.action} {decision.version}"
        run_id = client.create_run(experiment, tags=tags, run_name=label).info.run_id
    error: BaseException | None = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            decision = decide(Path(folder))
    except Stale as err:
        decision = replace(decision, decision="stale", reasons=(str(err),))
    except (VaeError, KeyboardInterrupt) as err:
        error = err
        reason = str(err) or "interrupted"
        with store_errors():
            moved = alias_version(client, decision.name, CHAMPION) == decision.version
        decision = replace(decision, decision="promoted" if moved else "refused", reasons=(reason,))
    with store_errors():
        client.log_dict(run_id, asdict(decision), "decision.json")
        for key, value in _tags(decision).items():
            client.set_tag(run_id, key, value)
        client.set_terminated(run_id)
        if error is not None:
            raise error
        status: dict[str, str] = {"gate.status": decision.decision}
        if decision.decision == "promoted":
            status["promoted.at"] = decision.time
        for key, value in status.items():
            client.set_model_version_tag(decision.name, decision.version, key, value)
    return decision


def _begin(
    action: Literal["promote", "rollback"], name: str, version: str, previous: str | None
) -> Decision:
    """The decision as it stands if nothing speaks against it."""
    return Decision(
        name=name,
        action=action,
        version=version,
        previous=previous,
        decision="promoted",
        reasons=(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        operator=_operator(),
    )


def _tags(decision: Decision) -> dict[str, str]:
    tags = {key: str(value) for key, value in asdict(decision).items() if key != "judgement"}
    return tags | {"reasons": "; ".join(decision.reasons)}


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
