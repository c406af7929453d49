"""The command line `vae`: wires the stages, and is the only place that does.

Every command is an entry point of the same name in MLproject. Imports that take time stand inside
the commands, so that `vae --help` loads neither torch nor mlflow nor onnxruntime.
"""

import time
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.cli import registry, results, stages
from pipeline.cli.config_options import chosen, given_beside, preset_option, settings_options
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
from serving.cli.command import CONTEXT, Group, run_command
from serving.cli.options import device_option, seed_option, threads_option
from serving.cli.reconstruct import reconstruct
from serving.cli.sample import sample
from serving.cli.score import score
from serving.cli.serve import deploy, serve
from serving.console import finish, say
from serving.errors import VaeError


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(package_name="vae-pipeline")
def cli() -> None:
    """Train a VAE, prove that its ONNX files are the same model, promote it, use it.

    The main job is `vae run`. Each command ends stdout with one JSON line.
    """


@cli.command()
@preset_option
@settings_options(DataConfig, ModelConfig, TrainConfig, EvaluateConfig, PromoteConfig)
@device_option
@threads_option
@registry.name_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle  [default: bundles/RUN_ID]",
)
@click.option("--no-promote", is_flag=True, help="Stop when the version is registered")
def run(
    preset: str,
    device: str,
    threads: int,
    name: str,
    out: Path | None,
    no_promote: bool,
    **settings: Any,
) -> None:
    """Train, evaluate, export, check, register and promote.

    Example: vae run --epochs 10
    """
    from pipeline.registry.versions import register_bundle
    from pipeline.tracking import FIGURES, RESUME, tracked_run
    from serving.files import check_output_folder

    started = time.perf_counter()
    gate = stages.gate_settings(settings)
    config = configure(preset, **chosen(settings))
    check_output_folder(out or Path("bundles", "new"))
    state, dataset = stages.prepare(config, device, threads)
    decision = None
    with tracked_run(run_id=stages.project_run()) as tracked:
        trained = stages.train(tracked, state, dataset)
        out = out or Path("bundles", tracked.run_id)
        bundle = stages.export(out, trained.checkpoint, trained.metrics, trained.dataset)
        bundle, report = stages.check(bundle, trained.checkpoint, trained.dataset, "cpu", threads)
        stages.log_report(tracked.run_id, report, f"bundle {out.name}")
        results.raise_unless_equal(report)
        version = register_bundle(tracked, bundle, name)
        tracked.set_tags({"model.version": version})
        if not no_promote:
            decision = stages.promote(name, version, gate, threads, trained.dataset.test)
        figures = tracked.artifact_place(FIGURES)
    tracked.delete_folder(RESUME)  # now that the run has ended well
    x_shape = trained.dataset.x_shape
    results.say_summary(name, version, x_shape, trained.metrics, decision, figures)
    finish(
        {
            **results.figures(tracked.run_id, trained.metrics, started),
            "version": version,
            "parity": "passed",
            "decision": decision.decision if decision else None,
            "bundle": str(bundle.path),
        }
    )
    results.raise_unless_promoted(decision)


@cli.command()
@preset_option
@settings_options(DataConfig, ModelConfig, TrainConfig, EvaluateConfig)
@click.option(
    "--resume",
    metavar="RUN_ID",
    help="Go on with a run that broke off; its settings stay as they are",
)
@device_option
@threads_option
def train(preset: str, resume: str | None, device: str, threads: int, **settings: Any) -> None:
    """Train a model and evaluate it on held-out data, as an MLflow run.

    Example: vae train --preset example --epochs 10
    """
    from pipeline.tracking import RESUME, tracked_run

    started = time.perf_counter()
    if resume is None:
        config = configure(preset, **chosen(settings))
        state, dataset = stages.prepare(config, device, threads)
    else:
        given = given_beside("--resume", "--device", "--threads", "--learning-rate")
        state, dataset = stages.prepare_resume(resume, **given)
    with tracked_run(run_id=resume or stages.project_run()) as tracked:
        metrics = stages.train(tracked, state, dataset).metrics
    tracked.delete_folder(RESUME)  # now that the run has ended well
    say(f"next: vae export --run-id {tracked.run_id} --out bundle")
    finish(results.figures(tracked.run_id, metrics, started))


@cli.command()
@click.argument("model", default="")
@click.option("--run-id", help="The training run, where there is no MODEL")
@settings_options(EvaluateConfig)
@seed_option
@click.option(
    "--data",
    "source",
    default=None,
    help="Any data that fits the model  [default: the held-out rows of its training]",
)
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
) -> None:
    """Evaluate a trained model on held-out or on other rows.

    MODEL is a bundle folder, models:/NAME/VERSION or models:/NAME@ALIAS. Of --data it takes the
    test set; where that has none, all rows.

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
    test = stages.rows_to_evaluate(checkpoint, source)
    samples = nll_samples or checkpoint.config.evaluate.nll_samples
    metrics = stages.evaluate(checkpoint.model, test, samples, seed, device, threads)
    finish(results.figures(checkpoint.run_id, metrics, started))


@cli.command()
@click.option("--run-id", required=True, help="The training run")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make")
@settings_options(ExportConfig)
@stages.data_option
def export(run_id: str, out: Path, precision: Precision | None, source: str | None) -> None:
    """Export a run's model as a bundle of ONNX graphs.

    Example: vae export --run-id 0a1b… --out bundle
    """
    from serving.files import check_output_folder

    check_output_folder(out)
    checkpoint, metrics = stages.fetch_checkpoint(run_id)
    dataset = stages.load_data(checkpoint.config, checkpoint.data, source)
    bundle = stages.export(out, checkpoint, metrics, dataset, precision or ExportConfig().precision)
    say(f"next: vae check {out}")
    manifest = bundle.manifest
    finish({"bundle": str(out), "digest": manifest.digest, "precision": manifest.precision})


@cli.command()
@click.argument("bundle")
@stages.data_option
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "all"]),
    default="cpu",
    show_default=True,
    help="Where the graphs must be the model; all is both, and neither stands in for the other",
)
@click.option(
    "--report", "page", type=click.Path(path_type=Path), help="HTML file to write besides"
)
@threads_option
def check(
    bundle: str,
    source: str | None,
    device: Literal["cpu", "cuda", "all"],
    page: Path | None,
    threads: int,
) -> None:
    """Compare every output of BUNDLE's graphs with torch, and keep the report.

    BUNDLE is a folder, which the report is sealed into; or a version, models:/NAME/VERSION, which
    stays as it is: there the report is added beside it, for vae promote --require.

    Example: vae check bundle --report parity.html
    """
    from pipeline.model.checkpoint import checkpoint_of
    from pipeline.parity.bundle_report import add_report
    from pipeline.parity.html_report import write_page
    from pipeline.registry.device_checks import add_check
    from serving.bundle import CARD, PARITY, open_bundle
    from serving.files import check_output_file
    from serving.source import Source, open_source, parse_reference

    if page is not None:
        check_output_file(page, (".html",), option="--report")
    if parse_reference(bundle):
        opened = open_source(bundle)
    else:
        opened = Source(open_bundle(Path(bundle), unsealed=(PARITY, CARD)))
    checkpoint = checkpoint_of(opened.bundle)
    dataset = stages.load_data(checkpoint.config, checkpoint.data, source)
    report = stages.compare(opened.bundle, checkpoint, dataset, device, threads)
    digest, place = opened.bundle.manifest.digest, str(Path(bundle) / PARITY)
    if opened.version is None:
        digest = add_report(opened.bundle, report).manifest.digest
    else:
        place = add_check(opened, report.to_json()).artifact_place(PARITY)
    if page is not None:
        write_page(page, report, bundle)
    stages.log_report(stages.project_run(), report, bundle)
    verdict = "passed" if report.passed else "failed"
    finish({"bundle": bundle, "digest": digest, "parity": verdict, "report": place})
    results.raise_unless_equal(report)


@cli.command()
def doctor() -> None:
    """Look at this machine: what is missing, and the command that mends it.

    Example: vae doctor
    """
    from pipeline.cli.doctor import examine

    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {"ok": " ok ", "warning": "warn", "failed": "FAIL"}[finding.status]
        say(f"{mark}  {finding.subject:<{width}}  {finding.detail}")
        if finding.mend:
            say(f"      {'':<{width}}  → {finding.mend}")
    failed = [finding.subject for finding in findings if finding.status == "failed"]
    finish({"ok": not failed, "failed": failed})
    if failed:
        raise VaeError(f"{len(failed)} of {len(findings)} findings failed: {', '.join(failed)}")


for command in (
    *registry.COMMANDS,
    sample,
    reconstruct,
    score,
    serve,
    deploy,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    run_command(cli)
