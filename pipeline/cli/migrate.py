"""The command `vae migrate`: bring a bundle or a version to the schema of today.

Slow imports are inside the command.
"""

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import results, stages
from pipeline.cli.data_loading import data_option, load_data
from pipeline.cli.run_options import experiment_option, project_run
from serving.cli.command import CONTEXT, Command
from serving.cli.options import threads_option
from serving.cli.paths import Origin, target
from serving.console import finish, say

if TYPE_CHECKING:
    from serving.bundle import Bundle
    from serving.source import Source


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("model", type=Origin())
@click.option("--out", type=target(), help="Folder to create; a version needs none")
@data_option
@experiment_option
@threads_option
def migrate(
    model: str, out: Path | None, source: str | None, experiment: str | None, threads: int
) -> None:
    """Bring a bundle of an earlier schema to the one of today.

    Weights and graphs stay as they are, byte for byte; parity is checked again. MODEL is a bundle
    folder, which stays, or models:/NAME/VERSION, which stays too: the new bundle is registered as
    a new version, the candidate.

    Example: vae migrate models:/vae/3
    """
    from pipeline.export.migration import require_earlier
    from serving.files import check_output_folder
    from serving.source import open_source

    if out is not None:
        check_output_folder(out)
    opened = open_source(model)
    require_earlier(opened.bundle)
    if opened.version is None and out is None:
        raise click.UsageError("a bundle folder needs --out, the folder to create")
    with tempfile.TemporaryDirectory() as temporary:
        bundle = _migrate(opened, out or Path(temporary) / "bundle", source, threads)
        content: dict[str, Any] = {"bundle": str(out)} if out else {}
        content |= {"digest": bundle.manifest.digest, "parity": "passed"}
        if opened.version is None:
            say(f"next: vae register {shlex.quote(str(out))}")
        else:
            content |= _register(bundle, opened, experiment)
    finish(content)


def _migrate(opened: "Source", out: Path, source: str | None, threads: int) -> "Bundle":
    from pipeline.export.migration import migrate_bundle
    from pipeline.model.checkpoint import checkpoint_of

    checkpoint = checkpoint_of(opened.bundle)
    dataset = load_data(checkpoint.config, checkpoint, source)
    bundle, report = stages.check(
        migrate_bundle(opened.bundle, checkpoint.model, out), checkpoint, dataset, "cpu", threads
    )
    results.raise_unless_parity_passed(report)
    return bundle


def _register(bundle: "Bundle", opened: "Source", experiment: str | None) -> dict[str, str]:
    from pipeline.registry.versions import register_bundle
    from pipeline.tracking import tracked_run

    name = str(opened.name)
    label = f"migrate {name} {opened.version}"
    with tracked_run(experiment, run_id=project_run(), default_name=label) as tracked:
        version = register_bundle(tracked, bundle, name)
        tracked.set_tags({"model.name": name, "model.version": version})
        tracked.set_tags({"migrated.from": str(opened.version)})
    say(f"version {version} of {name} is candidate; next: vae promote {version} --name {name}")
    return {"name": name, "version": version}
