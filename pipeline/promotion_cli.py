"""The commands of the registry: `vae register`, `promote`, `rollback`, `history`, `verify`."""

import re
import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline import stages
from pipeline.config import PromoteConfig
from pipeline.options import settings_options
from serving.cli import threads_option
from serving.command import CONTEXT, Command, finish, say


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
    from pipeline.registry import register_bundle
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
@stages.data_option
@threads_option
def promote(version: str, name: str, source: str | None, threads: int, **settings: Any) -> None:
    """Make VERSION (a number or an alias) champion if it is no worse than the champion is.

    Both are scored now, on the held-out rows of VERSION and with the same noise.

    Example: vae promote @candidate --margin 0.1
    """
    from pipeline.promotion import resolve_version

    number = resolve_version(name, version)
    decision = stages.promote(name, number, stages.gate_settings(settings), threads, source=source)
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
@threads_option
def rollback(name: str, threads: int) -> None:
    """Make the previous champion the champion again, after its files were verified.

    Example: vae rollback
    """
    from pipeline import promotion

    decision = promotion.rollback(name, threads=threads)
    say(f"version {decision.version} is champion of {name} again")
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
def history(name: str) -> None:
    """List every decision on a model, the newest first.

    Example: vae history
    """
    from pipeline import promotion

    rows = promotion.history(name)
    for row in rows:
        say(
            f"{row['time']}  {row['action']:<8} {row['version']:>4}  {row['decision']:<8} "
            f"{row['operator']}: {row['reasons']}"
        )
    if not rows:
        say(f"nothing was decided on {name} yet")
    finish({"name": name, "decisions": rows})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@champion")
@name_option
def verify(version: str, name: str) -> None:
    """Fetch a version's files from the registry and compare them with their digests.

    Example: vae verify @champion
    """
    from pipeline.promotion import resolve_version
    from serving.source import connect, fetch_version

    number = resolve_version(name, version)
    with tempfile.TemporaryDirectory() as folder:
        source = fetch_version(connect(), name, number, Path(folder))
    digest = source.bundle.manifest.digest
    say(f"version {number} of {name} is whole: {digest}")
    finish({"name": name, "version": number, "digest": digest, "verified": True})


COMMANDS = (register, promote, rollback, history, verify)


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
    stages.raise_unless_promoted(decision)
