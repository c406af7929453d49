"""The stages as the command line runs them: with tracking, progress and words for a person.

Each function takes what the one before it gave. Imports that take time stand inside.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.config import Config, Precision, PromoteConfig
from serving.console import progress, say
from serving.errors import DataRefused, DeviceUnavailable, UsageRefused

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset, Split
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.model.vae import VAE
    from pipeline.parity.check import Devices
    from pipeline.parity.report import ParityReport
    from pipeline.registry.audit_log import Decision
    from pipeline.tracking import TrackedRun
    from pipeline.training.state import TrainState
    from serving.bundle import Bundle, Manifest

EVALUATION_SEED = 0
"""The same for every training, so that models are compared on the same noise."""

data_option = click.option(
    "--data",
    "source",
    default=None,
    help="Where the model's data is now  [default: where it was in training]",
)


@dataclass(frozen=True, slots=True)
class Trained:
    """What training hands on."""

    checkpoint: "Checkpoint"
    metrics: "Metrics"
    dataset: "Dataset"


def prepare(config: Config, device: str, threads: int) -> "tuple[TrainState, Dataset]":
    """Refuse what cannot be trained, before a run is opened for it."""
    from pipeline.training.state import begin_training

    device = torch_device(device, threads)
    dataset = load_data(config)
    return begin_training(dataset, _settle(config, dataset), device), dataset


def _settle(config: Config, dataset: "Dataset") -> Config:
    """The config with what follows from the data, and words on it."""
    from pipeline.model.likelihoods import choose_likelihood, resolve_model_config

    reason = ""
    if config.model.likelihood == "auto":
        name, kind = choose_likelihood(config.data.binarize, *dataset.rows)
        config = replace(config, model=replace(config.model, likelihood=name))
        reason = f", for {kind}"
    model = resolve_model_config(config, *dataset.rows)
    say(f"likelihood {model.likelihood}{reason}; rows of {dataset.train.x.dtype} {dataset.x_shape}")
    return replace(config, model=model)


def prepare_resume(
    run_id: str, device: str | None, threads: int | None, learning_rate: float | None = None
) -> "tuple[TrainState, Dataset]":
    """Read the state of a run that broke off; what is None stays the run's own.

    Raises:
        UsageRefused: another device was asked for.
        DeviceUnavailable: the run's device is not here.
    """
    from pipeline.training.resumable_run import fetch_state
    from pipeline.training.state import restore_training

    saved = fetch_state(run_id)
    if device not in (None, "auto", saved["device"]):
        raise UsageRefused(
            f"run {run_id} was training on {saved['device']}, and goes on nowhere else; "
            f"got --device {device}"
        )
    if saved["device"] == "cuda" and (missing := _missing_cuda()):
        raise DeviceUnavailable(
            f"run {run_id} was training on cuda, which is not here: {missing}; go on with it where "
            "there is a GPU, or begin anew with vae train"
        )
    torch_device(saved["device"], threads or saved["threads"])
    dataset = load_data(Config.from_json(saved["config"]))
    state = restore_training(saved, dataset)
    if learning_rate is not None:
        rate = replace(state.config.train, learning_rate=learning_rate)
        state.config = replace(state.config, train=rate)
    return state, dataset


def train(run: "TrackedRun", state: "TrainState", dataset: "Dataset") -> Trained:
    """Train, evaluate and draw, logging all of it to the run."""
    import torch

    from pipeline.evaluation.figures import draw_figures
    from pipeline.model.checkpoint import Checkpoint, save_checkpoint
    from pipeline.tracking import CHECKPOINT, FIGURES, describe_system, git_state
    from pipeline.training.resumable_run import ResumableRun, fit

    config, device, threads = state.config, state.device, torch.get_num_threads()
    git = git_state()
    run.log_params(config.flat())
    run.set_tags(
        {
            **{f"git.{key}": value for key, value in git.items()},
            **describe_system(device, threads),
            **{f"data.{split}.sha256": value for split, value in dataset.digests().items()},
        }
    )
    run.log_dataset(dataset.describe())
    run.log_json("config.json", config.to_json())
    tracked = ResumableRun(run, state)
    with tracked.advise_resume():
        result = fit(tracked, dataset)
        checkpoint = Checkpoint(
            model=result.model,
            config=config,
            x_dtype=str(dataset.train.x.dtype),
            likelihood=config.model.likelihood,
            data=dataset.describe(),
            git=git,
            run_id=run.run_id,
        )
        samples = config.evaluate.nll_samples
        metrics = evaluate(result.model, dataset.test, samples, EVALUATION_SEED, device, threads)
        tracked.log_metrics(metrics.numbers("test_"), step=result.best_epoch)
        run.log_json("metrics.json", metrics.to_json())
        with tempfile.TemporaryDirectory() as temporary:
            save_checkpoint(Path(temporary), checkpoint)
            run.log_folder(Path(temporary), CHECKPOINT)
        with tempfile.TemporaryDirectory() as temporary:
            figures = Path(temporary)
            draw_figures(figures, result.model, result.history, dataset.test, metrics.held_out)
            run.log_folder(Path(temporary), FIGURES)
    return Trained(checkpoint, metrics, dataset)


def evaluate(
    model: "VAE", test: "Split", nll_samples: int, seed: int, device: str, threads: int
) -> "Metrics":
    """Evaluate on held-out rows and say the figures."""
    from pipeline.evaluation.evaluate import evaluate as evaluate_rows

    device = torch_device(device, threads)
    say(f"evaluating {len(test.x):,} rows with {nll_samples:,} samples each")
    with progress(len(test.x), "rows") as bar:
        metrics = evaluate_rows(
            model, test.x, nll_samples=nll_samples, seed=seed, device=device, advance=bar.advance
        )
    say(
        f"test loss {-metrics.elbo:.2f} nats (ELBO {metrics.elbo:.2f} ± {metrics.elbo_se:.2f}: "
        f"log-likelihood {metrics.log_likelihood:.2f}, KL {metrics.kl:.2f}), NLL {metrics.nll:.2f} "
        f"± {metrics.nll_se:.2f}, {metrics.active_units} of {model.latent_dim} latents active"
    )
    return metrics


def rows_to_evaluate(checkpoint: "Checkpoint", source: str | None) -> "Split":
    """The held-out rows of the model's data, or those of `source`, which must fit the model."""
    from pipeline.data.dataset import load_rows

    data = checkpoint.config.data
    if source is None:
        return load_data(checkpoint.config, checkpoint.data).test
    known = checkpoint.data["splits"]["test"]["sha256"]
    names = ("test_fraction", "label", "binarize")
    columns = data.columns or checkpoint.data.get("columns", ())  # in the order of the training
    settings = {name: getattr(data, name) for name in names}
    split = load_rows(source, known, columns=columns, **settings)
    wanted = f"{checkpoint.x_dtype} {checkpoint.model.x_shape}"
    if (found := f"{split.x.dtype} {split.x.shape[1:]}") != wanted:
        raise DataRefused(f"{source} has rows of {found}, the model takes {wanted}")
    checkpoint.model.px.check(split.x)
    same = "the model's own held-out rows" if split.sha256 == known else "rows of other data"
    say(f"{source}: {same}")
    return split


def export(
    out: Path,
    checkpoint: "Checkpoint",
    metrics: "Metrics",
    dataset: "Dataset",
    precision: Precision = "float32",
) -> "Bundle":
    """Write the bundle; int8 is calibrated on the training rows."""
    from pipeline.export.bundle_export import export_bundle
    from pipeline.export.quantization import calibrate

    say(f"exporting {precision} to {out}")
    ranges = calibrate(checkpoint.model, dataset.train.x) if precision == "int8" else None
    rows = metrics.to_json(), dataset.test.x
    return export_bundle(out, checkpoint, *rows, precision=precision, ranges=ranges)


def check(
    bundle: "Bundle", checkpoint: "Checkpoint", dataset: "Dataset", device: "Devices", threads: int
) -> "tuple[Bundle, ParityReport]":
    """Compare, and seal the report into the bundle.

    Where a device is not there nothing is written: an earlier report stays.
    """
    from pipeline.parity.bundle_report import add_report

    report = compare(bundle, checkpoint, dataset, device, threads)
    return add_report(bundle, report), report


def compare(
    bundle: "Bundle", checkpoint: "Checkpoint", dataset: "Dataset", device: "Devices", threads: int
) -> "ParityReport":
    """Compare a bundle's graphs with torch, and print the table; the bundle stays as it is."""
    from pipeline.parity.check import DEVICES, check_parity
    from pipeline.parity.first_divergence import find_difference
    from pipeline.parity.quantization_loss import measure_cost
    from serving.engine import require_cuda

    if "cuda" in DEVICES[device]:
        require_cuda()
    torch_device("cpu", threads)  # the reference; only the engine goes to the device
    say(f"checking parity with torch on {' and '.join(DEVICES[device])}")
    model, x = checkpoint.model, dataset.test.x
    report = check_parity(bundle, model, x, device=device, threads=threads)
    if report.quantization_loss is not None:
        cost = measure_cost(bundle, model, x, threads=threads)
        loss = replace(report.quantization_loss, cost=cost)
        report = replace(report, quantization_loss=loss)
    if not report.passed:
        report = replace(report, first_difference=find_difference(bundle, model, x, report))
    say(report.table())
    return report


def log_report(run_id: str | None, report: "ParityReport", subject: str) -> None:
    """Log a parity report and its page to a run, if there is one."""
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
    """Put a version through the gate; `test` are its held-out rows if they are loaded already."""
    from pipeline.registry import promotion

    def load_test(manifest: "Manifest") -> "Split":
        return test or load_data(Config.from_json(manifest.config), manifest.data, source).test

    say(f"deciding on {name} version {version}")
    decision = promotion.promote(
        name, version, load_test, gate, threads=threads, force=force, dry_run=dry_run
    )
    if decision.decision in ("promoted", "accepted"):  # else the command ends with the reasons
        say(f"{decision.decision}: {'; '.join(decision.reasons)}")
    return decision


def load_data(
    config: Config, known: Mapping[str, Any] | None = None, source: str | None = None
) -> "Dataset":
    """Load the data of a config; where digests are `known`, data that differs is refused."""
    from pipeline.data.dataset import load_dataset

    data = replace(config.data, data=source) if source else config.data
    settings = {item.name: getattr(data, item.name) for item in fields(data)}
    dataset = load_dataset(settings.pop("data"), **settings)
    if known is not None and known["splits"]["test"]["sha256"] != dataset.test.sha256:
        raise DataRefused(
            f"{data.data} is not the data that the model was trained with: its test split is "
            f"{dataset.test.sha256[:12]}, the model's {known['splits']['test']['sha256'][:12]}"
        )
    return dataset


def fetch_checkpoint(run_id: str) -> "tuple[Checkpoint, Metrics]":
    """The model that a training run logged, and its held-out metrics."""
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.model.checkpoint import load_checkpoint
    from pipeline.tracking import CHECKPOINT, fetch_artifact, fetch_json

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = load_checkpoint(fetch_artifact(run_id, CHECKPOINT, Path(temporary)))
    return checkpoint, Metrics.from_json(fetch_json(run_id, "metrics.json"))


def torch_device(device: str, threads: int) -> str:
    """`cpu` or `cuda`; `auto` takes CUDA where there is one. Either computes in float32."""
    import torch

    torch.set_num_threads(threads)
    if device == "cpu":
        return device
    if torch.cuda.is_available():
        # torch lets convolutions round to ten bits, and matrix products not
        torch.backends.cudnn.allow_tf32 = False
        return "cuda"
    if device == "auto":
        return "cpu"
    raise DeviceUnavailable(f"device cuda is not available: {_missing_cuda()}; use --device cpu")


def _missing_cuda() -> str:
    """Why torch has no CUDA here; empty where it has."""
    import torch

    if torch.cuda.is_available():
        return ""
    missing = "is built without CUDA" if torch.version.cuda is None else "finds no GPU"
    return f"torch {torch.__version__} {missing}"


def project_run() -> str | None:
    """Id of the run that `mlflow run` made for this process."""
    return os.environ.get("MLFLOW_RUN_ID")


def gate_settings(settings: dict[str, Any]) -> PromoteConfig:
    """Take the gate's settings out of `settings`."""
    names = [item.name for item in fields(PromoteConfig)]
    given = {name: settings.pop(name) for name in names}
    return PromoteConfig(**{name: value for name, value in given.items() if value is not None})
