"""The stages as the commands run them: with tracking, and with progress and messages on stderr.

Each takes what the stage before it returned. Slow imports are inside the functions.
"""

import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.data_loading import load_data
from pipeline.cli.devices import torch_device
from pipeline.cli.run_options import project_run
from pipeline.config import Config, Precision, PromoteConfig
from serving.cli.options import verify_key
from serving.console import progress, say, warn

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset, Split
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.model.vae import VAE
    from pipeline.parity.report import ParityReport
    from pipeline.registry.audit_log import Decision
    from pipeline.tracking import TrackedRun
    from pipeline.training.loop import TrainResult
    from pipeline.training.processes import Processes
    from pipeline.training.state import TrainState
    from serving.bundle import Bundle, Manifest
    from serving.source import Source

EVALUATION_SEED = 0
"""The same for every training, so that models are compared on the same noise."""


def open_run(
    config: Config, experiment: str | None, name: str | None
) -> "AbstractContextManager[TrackedRun]":
    """Open the run of a training; by default its name says preset, data and seed."""
    from pipeline.tracking import tracked_run

    label = f"{config.preset} {Path(config.data.data).stem} seed {config.train.seed}"
    return tracked_run(experiment, run_id=project_run(), name=name, default_name=label)


def prepare(
    config: Config, device: str, threads: int, processes: "Processes | None" = None
) -> "tuple[TrainState, Dataset]":
    """Load the data and begin the training, so that an error comes before a run is opened."""
    say("loading torch")
    from pipeline.cli.initial_weights import fetch_initial
    from pipeline.training.beginning import begin_training
    from pipeline.training.failures import wait_for_all
    from pipeline.training.processes import ALONE
    from pipeline.training.warm_start import warm_start

    processes = processes or ALONE
    device = torch_device(device, threads, processes.local_rank)
    initial = fetch_initial(config.train.init_from)
    dataset = load_data(config)
    wait_for_all(processes)
    config = _resolve_config(config, dataset)
    if initial is not None:
        config = replace(config, train=replace(config.train, init_from=initial.origin["from"]))
    state = begin_training(dataset, config, device, processes)
    if initial is not None:
        warm_start(state, str(dataset.x_dtype), initial)
        say(f"starting from the weights of {config.train.init_from}")
    state.check_processes()
    return state, dataset


def _resolve_config(config: Config, dataset: "Dataset") -> Config:
    from pipeline.model.likelihoods import choose_likelihood, resolve_model_config
    from serving.io.images import advise_axes

    reason = ""
    if config.model.likelihood == "auto":
        _, kind = choose_likelihood(config.data.binarize, *dataset.rows, schema=dataset.schema)
        reason = f", for {kind}"
    model = resolve_model_config(config, *dataset.rows, schema=dataset.schema)
    if dataset.schema and config.model.fit_sizes:
        reason += f", of layers {model.hidden_dims} and {model.latent_dim} latents for its width"
    say(f"likelihood {model.likelihood}{reason}; rows of {dataset.x_dtype} {dataset.x_shape}")
    if hint := advise_axes(dataset.x_shape):
        say(f"warning: {hint}")
    return replace(config, model=model)


def train(
    run: "TrackedRun", state: "TrainState", dataset: "Dataset"
) -> "tuple[Checkpoint, Metrics]":
    """Train, evaluate and draw figures, and log all of it to the run."""
    import torch

    from pipeline.environment import describe_system
    from pipeline.evaluation.figures import draw_figures
    from pipeline.export.model_card import render_figures, render_warnings
    from pipeline.model.checkpoint import Checkpoint, save_checkpoint
    from pipeline.tracking import CHECKPOINT, FIGURES, git_state
    from pipeline.training.failures import end_together
    from pipeline.training.resumable_run import ResumableRun, fit
    from pipeline.training.training_plan import plan_params

    config, device, threads = state.config, state.device, torch.get_num_threads()
    git = git_state()
    run.log_params({**config.flat(), **plan_params(state, dataset)})
    run.set_tags(
        {
            **{f"git.{key}": value for key, value in git.items()},
            **describe_system(device, threads),
            "system.processes": state.processes.world,
            **{f"data.{split}.sha256": value for split, value in dataset.digests().items()},
            **{f"init.{key}": value for key, value in state.origin.items()},
        }
    )
    run.log_dataset(dataset.describe())
    run.log_json("config.json", config.to_json())
    tracked = ResumableRun(run, state)
    with tracked.advise_resume():
        with end_together(state.processes):
            result = fit(tracked, dataset)
        checkpoint = Checkpoint(
            model=result.model,
            config=config,
            x_dtype=str(dataset.x_dtype),
            likelihood=config.model.likelihood,
            data=dataset.describe(),
            git=git,
            run_id=run.run_id,
        )
        samples = config.evaluate.nll_samples
        metrics = evaluate(result.model, dataset.test, samples, EVALUATION_SEED, device, threads)
        metrics = _warn_if_unfinished(metrics, result)
        run.set_tags({"warnings": "; ".join(metrics.warnings) or "none"})
        tracked.log_metrics(metrics.numbers("test_"), step=result.best_epoch)
        run.log_json("metrics.json", metrics.to_json())
        figures = render_figures(metrics.to_json(), config.model.latent_dim)
        run.describe(f"{figures}\n{render_warnings(metrics.warnings)}".rstrip())
        with tempfile.TemporaryDirectory() as temporary:
            save_checkpoint(Path(temporary), checkpoint)
            run.log_folder(Path(temporary), CHECKPOINT)
        with tempfile.TemporaryDirectory() as temporary:
            draw_figures(Path(temporary), result.model, result.history, dataset, metrics)
            run.log_folder(Path(temporary), FIGURES)
    return checkpoint, metrics


def _warn_if_unfinished(metrics: "Metrics", result: "TrainResult") -> "Metrics":
    if result.longer is None:
        return metrics
    text = (
        f"validation was still improving in epoch {len(result.history)}, the last one: train "
        f"longer, for example with --epochs {result.longer}"
    )
    warn(text)
    return replace(metrics, warnings=(*metrics.warnings, text))


def evaluate(
    model: "VAE", test: "Split", nll_samples: int, seed: int, device: str, threads: int
) -> "Metrics":
    """Evaluate a model on held-out rows and print the metrics."""
    from pipeline.evaluation.evaluate import evaluate as evaluate_rows

    device = torch_device(device, threads)
    say(f"evaluating {len(test.x):,} rows with {nll_samples:,} samples each")
    with progress(len(test.x) * nll_samples, "samples") as bar:
        metrics = evaluate_rows(
            model, test.x, nll_samples=nll_samples, seed=seed, device=device, advance=bar.advance
        )
    say(
        f"test loss {-metrics.elbo:.2f} nats: ELBO {metrics.elbo:.2f} ± {metrics.elbo_se:.2f}, "
        f"log-likelihood {metrics.log_likelihood:.2f}, KL {metrics.kl:.2f}\n"
        f"NLL {metrics.nll:.2f} ± {metrics.nll_se:.2f}, "
        f"{metrics.active_units} of {model.latent_dim} latents active, "
        f"{metrics.informative_units} informative"
    )
    for text in metrics.warnings:
        warn(text)
    return metrics


def export(
    out: Path,
    checkpoint: "Checkpoint",
    metrics: "Metrics",
    dataset: "Dataset",
    precision: Precision = "float32",
) -> "Bundle":
    """Write the bundle; int8 takes its ranges from the training rows, and mixed tables centres."""
    from pipeline.export.bundle_export import export_bundle
    from pipeline.export.quantization import calibrate
    from pipeline.export.row_centres import find_centres
    from serving.operations import operation_table, portable_forms

    model = checkpoint.model
    table = operation_table(
        model.x_shape, checkpoint.x_dtype, model.latent_dim, mixed=model.mixed is not None
    )
    graphs = len(table) - 1 + len(portable_forms(table))  # a sample takes the decoder's
    say(f"exporting {graphs} graphs, {precision}, to {out}")
    ranges = calibrate(checkpoint.model, dataset.sample) if precision == "int8" else None
    distance = find_centres(model.mixed.schema, dataset.sample) if model.mixed else None
    with progress(graphs, "graphs") as bar:
        return export_bundle(
            out,
            checkpoint,
            metrics.to_json(),
            dataset.test.x,
            precision=precision,
            ranges=ranges,
            distance=distance,
            advance=bar.advance,
        )


def check(
    bundle: "Bundle", checkpoint: "Checkpoint", dataset: "Dataset", device: str, threads: int
) -> "tuple[Bundle, ParityReport]":
    """Compare a bundle with torch and seal the report into it; print what failed, if anything.

    If a device is missing, nothing is written, and an earlier report stays.
    """
    from pipeline.parity.bundle_report import add_report

    report = compare(bundle, checkpoint, dataset, device, threads)
    say(f"  {report.verdict()}" if report.passed else report.table())
    return add_report(bundle, report), report


def compare(
    bundle: "Bundle", checkpoint: "Checkpoint", dataset: "Dataset", device: str, threads: int
) -> "ParityReport":
    """Compare a bundle's graphs with torch; the bundle is not changed."""
    from pipeline.parity.check import check_parity, expand_devices
    from pipeline.parity.first_divergence import find_difference
    from pipeline.parity.quantization_loss import measure_cost
    from serving.sessions import require_device

    for name in expand_devices(device):
        require_device(name)
    torch_device("cpu", threads)  # torch is the reference; only the engine uses the device
    say(f"checking parity with torch on {' and '.join(expand_devices(device))}")
    model, x = checkpoint.model, dataset.test.x
    report = check_parity(bundle, model, x, device=device, threads=threads)
    if report.quantization_loss is not None:
        cost = measure_cost(bundle, model, x, threads=threads)
        loss = replace(report.quantization_loss, cost=cost)
        report = replace(report, quantization_loss=loss)
    if not report.passed:
        report = replace(report, first_difference=find_difference(bundle, model, x, report))
    return report


def open_to_check(reference: str) -> "Source":
    """Open a version or a bundle folder; a folder's report and card may have changed."""
    from pipeline.experiments import check_experiment
    from pipeline.registry.device_checks import checks_experiment
    from serving.bundle import CARD, PARITY, open_bundle
    from serving.mlflow_store import connect
    from serving.source import Source, open_source, parse_reference

    if registered := parse_reference(reference):
        check_experiment(connect(), checks_experiment(registered.name))
        return open_source(reference)
    return Source(open_bundle(Path(reference), unsealed=(PARITY, CARD)))


def keep_report(source: "Source", report: "ParityReport") -> tuple[str, str]:
    """Seal a report into a folder, or add it to a version; return digest and report's place."""
    from pipeline.parity.bundle_report import add_report
    from pipeline.registry.device_checks import add_check
    from serving.bundle import PARITY

    bundle = source.bundle
    if source.version is None:
        return add_report(bundle, report).manifest.digest, str(bundle.path / PARITY)
    return bundle.manifest.digest, add_check(source, report.to_json()).artifact_place(PARITY)


def log_report(run_id: str | None, report: "ParityReport", subject: str) -> None:
    """Log a parity report and its HTML page to a run, if there is one."""
    from pipeline.parity.html_report import PAGE, render_page
    from pipeline.tracking import TrackedRun
    from serving.bundle import PARITY
    from serving.mlflow_store import connect

    if run_id is not None:
        run = TrackedRun(connect(), run_id)
        run.log_json(PARITY, report.to_json())
        run.log_text(PAGE, render_page(report, subject))


def promote(
    name: str,
    version: str,
    gate: PromoteConfig,
    threads: int,
    test: "Split | None" = None,
    source: str | None = None,
    force: str | None = None,
    dry_run: bool = False,
) -> "Decision":
    """Put a version through the gate; `test` holds its held-out rows if they are loaded already."""
    from pipeline.registry import promotion

    def rows(manifest: "Manifest") -> "Split":
        return test or load_data(Config.from_json(manifest.config), manifest, source).test

    say(f"deciding on {name} version {version}")
    decision = promotion.promote(
        name, version, rows, gate, threads=threads, force=force, dry_run=dry_run, key=verify_key()
    )
    if decision.decision in ("promoted", "accepted"):  # otherwise the error gives the reasons
        say(f"{decision.decision}: {'; '.join(decision.reasons)}")
    return decision


def fetch_checkpoint(run_id: str) -> "tuple[Checkpoint, Metrics]":
    """Return the model that a training run logged, and its held-out metrics."""
    say(f"fetching the model of run {run_id}")
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.model.checkpoint import load_checkpoint
    from pipeline.tracking import CHECKPOINT, fetch_artifact, fetch_json

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = load_checkpoint(fetch_artifact(run_id, CHECKPOINT, Path(temporary)))
    return checkpoint, Metrics.from_json(fetch_json(run_id, "metrics.json"))
