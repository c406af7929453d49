"""The commands of the registry: `vae register`, `promote`, `history`, `delete` and their like."""

import re
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pipeline.cli import results, stages
from pipeline.cli.config_options import settings_options
from pipeline.config import PromoteConfig
from serving.cli.command import CONTEXT, Command
from serving.cli.options import threads_option
from serving.console import finish, say


def _check_name(ctx: click.Context, option: click.Parameter, name: str) -> str:
    """MLflow takes other characters for a model and then refuses them for its versions."""
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise click.BadParameter(f"must be of letters, digits, _ and -, got {name!r}")
    return name


name_option = click.option(
    "--name",
    default="vae",
    show_default=True,
    callback=_check_name,
    help="Registered model in MLflow",
)


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("bundle", type=click.Path(path_type=Path))
@name_option
def register(bundle: Path, name: str) -> None:
    """Register a checked bundle as a new version, the candidate.

    Example: vae register bundle
    """
    from pipeline.registry.versions import register_bundle
    from pipeline.tracking import tracked_run
    from serving.bundle import open_bundle

    opened = open_bundle(bundle)
    with tracked_run(run_id=stages.project_run()) as tracked:
        tracked.set_tags({"training.run_id": opened.manifest.run_id})
        version = register_bundle(tracked, opened, name)
    say(f"version {version} of {name} is candidate; next: vae promote {version} --name {name}")
    finish({"name": name, "version": version, "digest": opened.manifest.digest})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@candidate")
@name_option
@settings_options(PromoteConfig)
@click.option("--dry-run", is_flag=True, help="Decide, but move and record nothing")
@click.option("--force", is_flag=True, help="Override a judgement of the gate; needs --reason")
@click.option("--reason", help="Why --force is right, for the record")
@stages.data_option
@threads_option
def promote(
    version: str,
    name: str,
    dry_run: bool,
    force: bool,
    reason: str | None,
    source: str | None,
    threads: int,
    **settings: Any,
) -> None:
    """Make VERSION (a number or an alias) champion if it is no worse than the champion is.

    Both are scored now, on the held-out rows of VERSION and with the same noise. The difference,
    less its error, may be --margin nats to the bad. --force overrides that and the limits, not a
    failed verification, parity or data check.

    Example: vae promote @candidate --margin 0.1
    """
    from pipeline.registry.promotion import resolve_version

    if force != bool(reason and reason.strip()):
        raise click.UsageError("--force and --reason TEXT go together")
    number = resolve_version(name, version)
    gate = stages.gate_settings(settings)
    decision = stages.promote(
        name, number, gate, threads, source=source, force=reason, dry_run=dry_run
    )
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
@threads_option
def rollback(name: str, threads: int) -> None:
    """Make the previous champion the champion again, after its files were verified.

    Example: vae rollback
    """
    from pipeline.registry import promotion

    decision = promotion.rollback(name, threads=threads)
    if decision.decision == "promoted":
        say(f"version {decision.version} is champion of {name} again")
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
@click.option("--at", "when", help="Say who was champion at this ISO 8601 time; no zone: local")
def history(name: str, when: str | None) -> None:
    """List every decision on a model, the newest first; or say who was champion at a time.

    Example: vae history --at 2026-11-22T14:30
    """
    from pipeline.registry import audit_log

    if when is not None:
        _say_champion(name, _parse_time(when))
        return
    rows = audit_log.list_decisions(name)
    for row in rows:
        say(
            f"{row['time']}  {row['action']:<8} {row['version']:>4}  {row['decision']:<10} "
            f"{row['operator']}: {row['reasons']}"
        )
    if not rows:
        say(f"nothing was decided on {name} yet")
    finish({"name": name, "decisions": rows})


def _parse_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as err:
        raise click.UsageError(
            f"--at must be a time as 2026-11-22T14:30 or 2026-11-22T14:30:00+01:00, got {text!r}"
        ) from err
    return time.astimezone(UTC)  # one without a zone is local


def _say_champion(name: str, when: datetime) -> None:
    from pipeline.registry import audit_log

    tenure = audit_log.champion_at(name, when)
    who = "no version" if tenure.version is None else f"version {tenure.version}"
    say(f"{who} was champion of {name} at {when.isoformat()}, since {tenure.since}")
    if not tenure.certain:
        say("the alias was moved by hand after that, nobody knows when: it may be another version")
    finish({"name": name, "at": when.isoformat(), **asdict(tenure)})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@champion")
@name_option
def verify(version: str, name: str) -> None:
    """Fetch a version's files from the registry and compare them with their digests.

    Example: vae verify @champion
    """
    from pipeline.registry.promotion import resolve_version
    from pipeline.registry.versions import fetch_verified
    from serving.mlflow_store import connect

    number = resolve_version(name, version)
    with tempfile.TemporaryDirectory() as folder:
        source = fetch_verified(connect(), name, number, Path(folder))
    digest = source.bundle.manifest.digest
    say(f"version {number} of {name} is whole: {digest}")
    finish({"name": name, "version": number, "digest": digest, "verified": True})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version")
@name_option
def delete(version: str, name: str) -> None:
    """Delete VERSION, unless an alias names it; `mlflow gc` then removes its files.

    Example: vae delete 3
    """
    from pipeline.registry import promotion

    decision = promotion.delete(name, promotion.resolve_version(name, version))
    if decision.decision == "deleted":
        say(f"version {decision.version} of {name} is deleted")
    _finish(decision)


COMMANDS = (register, promote, rollback, history, verify, delete)


def _finish(decision: Any) -> None:
    finish(
        {
            "name": decision.name,
            "version": decision.version,
            "decision": decision.decision,
            "previous": decision.previous,
            "reasons": list(decision.reasons),
        }
    )
    results.raise_unless_promoted(decision)
