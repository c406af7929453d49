"""The command line `vae`: the commands of the stages, and the group that holds all commands.

Every command is an entry point of the same name in MLproject. Slow imports are inside the
commands, so that `vae --help` loads neither torch nor mlflow nor onnxruntime.
"""

import gc
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import registry, results, stages
from pipeline.cli.config_command import show_config
from pipeline.cli.config_options import (
    chosen,
    gate_config,
    given_beside,
    preset_option,
    settings_file,
    settings_options,
)
from pipeline.cli.data_loading import data_option, load_data, rows_to_evaluate
from pipeline.cli.doctor_command import doctor
from pipeline.cli.memory_options import cache_option, memory_options
from pipeline.cli.migrate import migrate
from pipeline.cli.processes import prepare_processes, shared
from pipeline.cli.resumption import prepare_resume, train_along
from pipeline.cli.run_options import experiment_option, project_run, run_name_option
from pipeline.cli.schema_command import schema
from pipeline.config import (
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    Precision,
    PromoteConfig,
    TrainConfig,
    configure,
)
from serving.cli.command import CONTEXT, Command, Group, run_command
from serving.cli.device_name import DeviceName
from serving.cli.help_page import group
from serving.cli.impute import impute
from serving.cli.latents import decode, interpolate, traverse
from serving.cli.monitor import monitor
from serving.cli.options import device_option, read_options, seed_option, threads_option
from serving.cli.paths import Origin, target
from serving.cli.reconstruct import reconstruct
from serving.cli.sample import sample
from serving.cli.score import score
from serving.cli.serve import deploy, serve
from serving.console import finish, say

if TYPE_CHECKING:
    from pipeline.training.processes import Processes

_OBJECTS = 100_000
"""Objects that a run makes between two searches for garbage: nearly all are modules and graphs,
which live on, and by default it would visit them again and again for two seconds."""


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(None, "-V", "--version", package_name="vae-pipeline")
def cli() -> None:
    """Train a VAE, prove that its ONNX files are the same model, promote it and use it.

    The main job is `vae run`. The last line that a command writes to stdout is JSON.
    """
    prepare_processes(click.get_current_context().invoked_subcommand)


@click.command(cls=Command, context_settings=CONTEXT)
@group("Settings")
@settings_file
@preset_option
@settings_options(DataConfig, ModelConfig, TrainConfig, EvaluateConfig, PromoteConfig)
@group("Bundle and registry")
@click.option("--out", type=target(), help="Folder for the bundle  [default: bundles/RUN_ID]")
@registry.name_option
@registry.signature_options
@click.option("--no-promote", is_flag=True, help="Stop after registering the version")
@experiment_option
@run_name_option
@group("Computing")
@device_option
@threads_option
@memory_options
@shared
def run(
    processes: "Processes",
    preset: str,
    device: str,
    threads: int,
    name: str,
    experiment: str | None,
    run_name: str | None,
    out: Path | None,
    no_promote: bool,
    **settings: Any,
) -> None:
    """Train, evaluate, export, check, register and promote a model.

    Example: vae run --epochs 10
    """
    from pipeline.registry.audit_log import check_audit
    from pipeline.registry.versions import register_bundle
    from pipeline.tracking import FIGURES, RESUME
    from serving.files import check_output_folder

    started = time.perf_counter()
    gc.set_threshold(_OBJECTS)
    gate = gate_config(settings)
    config = configure(preset, **chosen(settings))
    check_output_folder(out or Path("bundles", "new"))
    state, dataset = stages.prepare(config, device, threads, processes)
    if processes.rank:
        return train_along(state, dataset)
    if not no_promote:
        check_audit(name)
    with stages.open_run(config, experiment, run_name) as tracked:
        checkpoint, metrics = stages.train(tracked, state, dataset)
        out = out or Path("bundles", tracked.run_id)
        bundle = stages.export(out, checkpoint, metrics, dataset)
        bundle, report = stages.check(bundle, checkpoint, dataset, "cpu", threads)
        stages.log_report(tracked.run_id, report, f"bundle {out.name}")
        results.raise_unless_parity_passed(report)
        say(f"registering the bundle as a version of {name}")
        version = register_bundle(tracked, bundle, name, registry.signing_key())
        tracked.set_tags({"model.name": name, "model.version": version})
        decision = (
            None if no_promote else stages.promote(name, version, gate, threads, dataset.test)
        )
        pictures = tracked.artifact_place(FIGURES)
    tracked.delete_folder(RESUME)  # only now that the run has ended well
    page = tracked.experiment_page()
    results.say_summary(name, version, dataset.x_shape, metrics, decision, pictures, page)
    finish(
        {
            **results.metrics_summary(tracked.run_id, metrics, started),
            "version": version,
            "parity": "passed",
            "decision": decision.decision if decision else None,
            "bundle": str(bundle.path),
        }
    )
    results.raise_unless_promoted(decision)


@click.command(cls=Command, context_settings=CONTEXT)
@group("Settings")
@settings_file
@preset_option
@click.option(
    "--resume",
    metavar="RUN_ID",
    help="Continue an interrupted run with its own settings",
)
@settings_options(DataConfig, ModelConfig, TrainConfig, EvaluateConfig)
@group("Run in MLflow")
@experiment_option
@run_name_option
@group("Computing")
@device_option
@threads_option
@memory_options
@shared
def train(
    processes: "Processes",
    preset: str,
    resume: str | None,
    device: str,
    threads: int,
    experiment: str | None,
    run_name: str | None,
    **settings: Any,
) -> None:
    """Train a model and evaluate it, as an MLflow run.

    Example: vae train --preset example --epochs 10
    """
    from pipeline.tracking import RESUME, tracked_run

    started = time.perf_counter()
    if resume is None:
        config = configure(preset, **chosen(settings))
        state, dataset = stages.prepare(config, device, threads, processes)
    else:
        given = given_beside(
            "--resume", "--device", "--threads", "--learning-rate", "--memory", "--cache"
        )
        state, dataset = prepare_resume(resume, processes=processes, **given)
    if processes.rank:
        return train_along(state, dataset)
    with (
        tracked_run(run_id=resume)
        if resume
        else stages.open_run(state.config, experiment, run_name)
    ) as tracked:
        _, metrics = stages.train(tracked, state, dataset)
    tracked.delete_folder(RESUME)  # only now that the run has ended well
    say(f"next: vae export --run-id {tracked.run_id} --out bundle")
    finish(results.metrics_summary(tracked.run_id, metrics, started))


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("model", default="", type=click.Path())
@group("Model and rows")
@click.option("--run-id", help="A training run, instead of MODEL")
@click.option(
    "--data",
    "source",
    type=Origin(),
    help="Any data that fits the model  [default: the held-out rows of its training]",
)
@read_options
@cache_option
@settings_options(EvaluateConfig)
@group("Computing")
@seed_option
@device_option
@threads_option
def evaluate(
    model: str,
    run_id: str | None,
    nll_samples: int | None,
    seed: int,
    source: str | None,
    device: str,
    threads: int,
    **reading: str,
) -> None:
    """Evaluate a model on its held-out rows, or on other data.

    MODEL is a bundle folder, models:/NAME/VERSION or models:/NAME@ALIAS. If --data has a test set,
    its rows are used, else those of its validation set, else all.

    Example: vae evaluate models:/vae@champion --nll-samples 1000
    """
    from pipeline.model.checkpoint import checkpoint_of
    from serving.source import open_source

    started = time.perf_counter()
    if (run_id is None) == (not model):
        raise click.UsageError("give either MODEL or --run-id")
    if model:
        checkpoint = checkpoint_of(open_source(model).bundle)
    else:
        checkpoint, _ = stages.fetch_checkpoint(str(run_id))
    if source is None and (given := [name for name, value in reading.items() if value]):
        raise click.UsageError(f"--{given[0]} goes with --data")
    test = rows_to_evaluate(checkpoint, source, **reading)
    samples = nll_samples or checkpoint.config.evaluate.nll_samples
    metrics = stages.evaluate(checkpoint.model, test, samples, seed, device, threads)
    finish(results.metrics_summary(checkpoint.run_id, metrics, started))


@click.command(cls=Command, context_settings=CONTEXT)
@group("Run and bundle")
@click.option("--run-id", required=True, help="The training run")
@click.option("--out", type=target(), required=True, help="Folder to create")
@data_option
@cache_option
@settings_options(ExportConfig)
def export(run_id: str, out: Path, precision: Precision | None, source: str | None) -> None:
    """Export a run's model as a bundle of ONNX graphs.

    Example: vae export --run-id 0a1b… --out bundle
    """
    from serving.files import check_output_folder

    check_output_folder(out)
    checkpoint, metrics = stages.fetch_checkpoint(run_id)
    dataset = load_data(checkpoint.config, checkpoint, source)
    bundle = stages.export(out, checkpoint, metrics, dataset, precision or ExportConfig().precision)
    say(f"next: vae check {shlex.quote(str(out))}")
    manifest = bundle.manifest
    finish({"bundle": str(out), "digest": manifest.digest, "precision": manifest.precision})


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("bundle", type=Origin())
@data_option
@cache_option
@click.option(
    "--device",
    type=DeviceName("all"),
    default="cpu",
    show_default=True,
    help="Device on which the graphs must agree with torch: all is cpu and cuda, one by one, and "
    "NAME that of a plugin, which onnxruntime-ep-NAME brings or NAME=LIBRARY says",
)
@click.option("--report", "page", type=target(), help="Also write an HTML page to this file")
@threads_option
def check(
    bundle: str,
    source: str | None,
    device: str,
    page: Path | None,
    threads: int,
) -> None:
    """Compare a bundle's graphs with torch, and keep the report.

    Every output is compared, on held-out and on adversarial rows, as docs/parity.md describes.

    BUNDLE is a folder, into which the report is sealed; or a version, models:/NAME/VERSION, which
    is not changed: its report is stored beside it, for vae promote --require.

    Example: vae check bundle --report parity.html
    """
    from pipeline.model.checkpoint import checkpoint_of
    from pipeline.parity.html_report import write_page
    from serving.files import check_output_file

    if page is not None:
        check_output_file(page, (".html",), option="--report")
    opened = stages.open_to_check(bundle)
    checkpoint = checkpoint_of(opened.bundle)
    dataset = load_data(checkpoint.config, checkpoint, source)
    report = stages.compare(opened.bundle, checkpoint, dataset, device, threads)
    say(report.table())
    digest, place = stages.keep_report(opened, report)
    if page is not None:
        write_page(page, report, bundle)
    stages.log_report(project_run(), report, bundle)
    verdict = "passed" if report.passed else "failed"
    finish({"bundle": bundle, "digest": digest, "parity": verdict, "report": place})
    results.raise_unless_parity_passed(report)


cli.add_section("Train", run, schema, train, evaluate, export, check, show_config)
cli.add_section("Registry", *registry.COMMANDS, migrate)
cli.add_section("Use a model", sample, reconstruct, decode, interpolate, traverse, score, impute)
cli.add_section("Serve and deploy", serve, monitor, deploy)
cli.add_section("Help", doctor)


def main() -> None:
    """Run the command line."""
    run_command(cli)
