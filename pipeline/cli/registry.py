"""The commands of the registry: register, approve, promote, rollback, history and others."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import results, stages
from pipeline.cli.config_options import gate_config, settings_file, settings_options
from pipeline.cli.data_loading import data_option
from pipeline.cli.memory_options import cache_option
from pipeline.cli.run_options import experiment_option, project_run
from pipeline.config import PromoteConfig
from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import group
from serving.cli.options import threads_option, verify_key, verify_key_option
from serving.cli.paths import Origin
from serving.console import finish, say, screen_width
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from serving.signatures import SigningKey
    from serving.source import Source


def _check_name(ctx: click.Context, option: click.Parameter, name: str) -> str:
    """Refuse characters that MLflow accepts for a model but later refuses for its versions."""
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise click.BadParameter(f"must consist of letters, digits, _ and -, got {name!r}")
    return name


_SIGNING_KEY = f"{__name__}.signing_key"
"""Where a click context keeps the key to sign with."""


def _keep_signing_key(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is None or ctx.resilient_parsing:
        return
    from serving.signatures import SigningKey, check_signing_key

    key = SigningKey(path, os.environ.get("VAE_SIGN_PASSWORD") or None)
    check_signing_key(key)  # before a training, and not after it
    ctx.meta[_SIGNING_KEY] = key


def signing_key() -> "SigningKey | None":
    """Return the key that `--sign` named, None if the version is not to be signed."""
    key: SigningKey | None = click.get_current_context().meta.get(_SIGNING_KEY)
    return key


sign_option = click.option(
    "--sign",
    type=Origin(path_type=Path),
    expose_value=False,
    callback=_keep_signing_key,
    help="Private key to sign the version with, PEM; VAE_SIGN_PASSWORD holds its password, if any",
)


def signature_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that both registers and promotes."""
    return sign_option(verify_key_option(command))


name_option = click.option(
    "--name",
    default="vae",
    show_default=True,
    callback=_check_name,
    help="The registered model in MLflow",
)


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("bundle", type=Origin(path_type=Path))
@name_option
@experiment_option
@sign_option
def register(bundle: Path, name: str, experiment: str | None) -> None:
    """Register a checked bundle as a version, the new candidate.

    With --sign, the version carries a signature, which --verify-key of other commands asks for. A
    bundle that is registered without the signature of this key becomes a new version.

    Example: vae register bundle
    """
    from pipeline.registry.versions import register_bundle
    from pipeline.tracking import tracked_run
    from serving.bundle import open_bundle

    opened = open_bundle(bundle)
    run_id, label = project_run(), f"register {bundle.name}"
    with tracked_run(experiment, run_id=run_id, default_name=label) as tracked:
        tracked.set_tags({"training.run_id": opened.manifest.run_id})
        version = register_bundle(tracked, opened, name, signing_key())
        tracked.set_tags({"model.name": name, "model.version": version})
    say(f"version {version} of {name} is candidate; next: vae promote {version} --name {name}")
    finish({"name": name, "version": version, "digest": opened.manifest.digest})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@candidate")
@name_option
@click.option("--reason", required=True, help="Why it may be promoted, for the record")
def approve(version: str, name: str, reason: str) -> None:
    """Record that you approve of a version.

    It counts for the bundle that the version has now. `vae promote --require approval` asks for an
    approval by another user than the one who promotes; so does the tag gate.require of the model.

    Example: vae approve 7 --reason "reviewed with the risk team"
    """
    from pipeline.registry import approvals

    if not reason.strip():
        raise click.UsageError("--reason must say why the version may be promoted")
    decision = approvals.approve(*_resolve(name, version), reason.strip())
    say(
        f"{decision.operator} approves of version {decision.version} of {decision.name}, bundle "
        f"{str(decision.digest)[:12]}"
    )
    kept = ("name", "version", "digest", "decision", "operator", "reasons")
    finish({key: value for key, value in asdict(decision).items() if key in kept})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@candidate")
@group("Version and rows")
@settings_file
@name_option
@data_option
@cache_option
@threads_option
@verify_key_option
@settings_options(PromoteConfig)
@group("Decision")
@click.option("--dry-run", is_flag=True, help="Decide, but do not move or record anything")
@click.option("--force", is_flag=True, help="Override the gate's judgement; needs --reason")
@click.option("--reason", help="Why the gate is overridden, for the record")
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
    """Put a version through the gate, and make it the champion.

    VERSION is a number, an alias, models:/NAME/VERSION or models:/NAME@ALIAS. It and the champion
    are scored now, on the held-out rows of VERSION and with the same noise. VERSION is refused
    unless its ELBO is, with --confidence, at most --margin nats lower. --force overrides this and
    the limits, but no failed verification, parity or data check, and no missing approval. With
    --verify-key, both must be signed with that key.

    Example: vae promote @candidate --margin 0.1
    """
    if force != bool(reason and reason.strip()):
        raise click.UsageError("--force and --reason TEXT go together")
    name, number = _resolve(name, version)
    gate = gate_config(settings)
    decision = stages.promote(
        name, number, gate, threads, source=source, force=reason, dry_run=dry_run
    )
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
@verify_key_option
@threads_option
def rollback(name: str, threads: int) -> None:
    """Make the previous champion the champion again.

    Its files are verified first.

    Example: vae rollback
    """
    from pipeline.registry import promotion

    decision = promotion.rollback(name, threads=threads, key=verify_key())
    if decision.decision == "promoted":
        say(f"version {decision.version} is champion of {name} again")
    _finish(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@name_option
@click.option("--at", "when", help="Show the champion at this ISO 8601 time, local without a zone")
def history(name: str, when: str | None) -> None:
    """List every decision on a model, the newest first.

    With --at, show the champion at some time instead.

    Example: vae history --at 2026-11-22T14:30
    """
    from pipeline.registry import audit_log

    if when is not None:
        _show_champion(name, _parse_time(when))
        return
    rows = audit_log.list_decisions(name)
    for row in rows:
        say(
            f"{row['time']}  {row['action']:<8} {row['version']:>4}  {row['decision']:<10} "
            f"{row['operator'] or 'unknown'}: {row['reasons']}"
        )
    missing = audit_log.missing_records(name)
    if missing is not None:
        say(f"these are only the moves of the champion, from the ledger: {missing}")
    elif not rows:
        say(f"there is no decision on {name} yet")
    finish({"name": name, "decisions": rows, "complete": missing is None})


def _parse_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as err:
        raise click.UsageError(
            "--at must be a time such as 2026-11-22T14:30 or 2026-11-22T14:30:00+01:00, "
            f"got {text!r}"
        ) from err
    return time.astimezone(UTC)  # a time without a zone is local


def _show_champion(name: str, when: datetime) -> None:
    from pipeline.registry import audit_log

    tenure = audit_log.champion_at(name, when)
    champion = "no version" if tenure.version is None else f"version {tenure.version}"
    say(f"{champion} was champion of {name} at {when.isoformat()}, since {tenure.since}")
    if not tenure.certain:
        say("a person moved the alias later, at an unknown time: it may have been another version")
    finish({"name": name, "at": when.isoformat(), **asdict(tenure)})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version", default="@champion", type=Origin())
@name_option
@verify_key_option
def verify(version: str, name: str) -> None:
    """Compare the files of a version or a bundle with their digests, and with their signature.

    VERSION is a number, an alias such as @champion, models:/NAME/VERSION, models:/NAME@ALIAS or a
    bundle folder. The files of a version are fetched from the registry.

    Example: vae verify @champion
    """
    from serving.mlflow_store import connect
    from serving.source import fetch_version

    if not version.isdecimal() and not version.startswith(("@", "models:")):
        _verify_folder(Path(version))
        return
    name, number = _resolve(name, version)
    with tempfile.TemporaryDirectory() as folder:
        source = fetch_version(connect(), name, number, Path(folder), verify_key())
    _finish_verified(f"version {number} of {name}", {"name": name, "version": number}, source)


def _verify_folder(folder: Path) -> None:
    from serving.source import open_source

    if not folder.is_dir():
        raise UsageRefused(
            f"{str(folder)!r} is neither a bundle folder nor a version: a version is a number, an "
            "alias such as @champion, models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    source = open_source(str(folder), verify_key())
    _finish_verified(f"bundle {folder}", {"bundle": str(folder)}, source)


def _finish_verified(subject: str, names: Mapping[str, str], source: "Source") -> None:
    digest, key = source.bundle.manifest.digest, verify_key()
    say(f"{subject} is intact{f' and signed with {key}' if key else ''}: {digest}")
    finish({**names, "digest": digest, "verified": True, **({"signed": True} if key else {})})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("version")
@name_option
def delete(version: str, name: str) -> None:
    """Delete a version that has no alias.

    `mlflow gc` then removes its files.

    Example: vae delete 3
    """
    from pipeline.registry import promotion

    decision = promotion.delete(*_resolve(name, version))
    if decision.decision == "deleted":
        say(f"version {decision.version} of {name} is deleted")
    _finish(decision)


@click.command("list", cls=Command, context_settings=CONTEXT)
@name_option
def list_versions(name: str) -> None:
    """List the versions of a model with their figures and aliases, the newest first.

    Example: vae list
    """
    from pipeline.registry import listing

    rows = listing.list_versions(name)
    if rows:
        say(listing.render_table(rows, screen_width()), wrap=False)
    else:
        say(f"{name} has no version")
    finish({"name": name, "versions": rows})


COMMANDS = (register, approve, promote, rollback, history, list_versions, verify, delete)


def _resolve(name: str, version: str) -> tuple[str, str]:
    """Return the model and the number that a command was given; models:/ names its model itself."""
    from pipeline.registry.references import resolve_version

    found, number = resolve_version(name, version)
    given = click.get_current_context().get_parameter_source("name")
    if found != name and given is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError(f"{version} is no version of --name {name}: leave out one of them")
    return found, number


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
