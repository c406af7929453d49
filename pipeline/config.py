"""All settings with their defaults, help texts and limits.

Command-line options, MLproject entry points and the README derive from these classes or are
checked against them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from pipeline.presets import PRESETS
from serving.errors import UsageRefused

Binarize = Literal["none", "static", "dynamic"]
Precision = Literal["float32", "fp16", "int8"]
LikelihoodName = Literal[
    "auto",
    "bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "discretized_logistic",
    "categorical",
    "mixed",
]

DATA_KINDS = (
    "mnist, a folder in MNIST's IDX layout, an .npy, .npz, .parquet, .csv or .tsv file, or a "
    "folder of Parquet files or of images (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM), also at a URI"
)
"""What `--data` reads."""


REQUIREMENT = "[a-z][a-z0-9_]*"
"""Matches a word that the gate may require: approval, or the name of a device."""


@dataclass(frozen=True, slots=True)
class Option:
    """Help text and limits of one setting."""

    help: str
    min: float | None = None
    max: float | None = None
    open_min: bool = False
    """Whether the value must be larger than `min`."""
    path: bool = False
    """Whether the value may be the path of a file or a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The data and its splits."""

    data: Annotated[str, Option(DATA_KINDS, path=True)] = "mnist"
    columns: Annotated[
        tuple[str, ...], Option("Columns of a table to train on; none: all but the label")
    ] = ()
    label: Annotated[str, Option("Table column that is not trained on, but colours the plots")] = ""
    array: Annotated[str, Option("Array of an .npz file to train on; none: its usual names")] = ""
    delimiter: Annotated[
        str, Option("Between the fields of a CSV file, a character or tab; none: it is found")
    ] = ""
    drop_missing: Annotated[
        bool, Option("Leave out the rows that lack a value; otherwise they have gaps")
    ] = False
    schema: Annotated[
        str, Option("What the columns of a table are: a file that vae schema wrote; none: found")
    ] = ""
    binarize: Annotated[
        Binarize, Option("Draw 0 or 1 from each value: never, once, or again at each training step")
    ] = "none"
    valid_fraction: Annotated[
        float,
        Option("Fraction held out for early stopping if the data has no such set", min=0, max=0.5),
    ] = 0.1
    test_fraction: Annotated[
        float,
        Option("Fraction held out for the report if the data has no test set", min=0.001, max=0.5),
    ] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The networks and the likelihood."""

    likelihood: Annotated[
        LikelihoodName,
        Option(
            "p(x given z); auto: bernoulli for bytes and bits, continuous_bernoulli for [0, 1], "
            "gaussian for other numbers, mixed for tables with words, counts, dates or gaps"
        ),
    ] = "auto"
    model: Annotated[
        str, Option("The networks: mlp, conv, resnet, or an import path package.module:function")
    ] = "mlp"
    hidden_dims: Annotated[
        tuple[int, ...],
        Option("Widths or channels of the encoder's layers; the decoder mirrors them", min=1),
    ] = (512,)
    latent_dim: Annotated[int, Option("Number of latents, the size of z", min=1)] = 32
    fit_sizes: Annotated[
        bool,
        Option("Let a mixed table's width set --hidden-dims and --latent-dim if neither is given"),
    ] = True
    activation: Annotated[
        Literal["relu", "tanh", "silu", "gelu"], Option("Activation between layers")
    ] = "silu"
    output_bias: Annotated[
        bool, Option("Start the decoder's last bias at the value that fits each feature alone")
    ] = False
    sigma: Annotated[
        Literal["learned", "optimal", "fixed"],
        Option("A gaussian's scale: learned, the root mean square error, or --fixed-sigma"),
    ] = "learned"
    fixed_sigma: Annotated[
        float, Option("A gaussian's fixed scale, in standardized units", min=0, open_min=True)
    ] = 1.0
    num_categories: Annotated[
        int, Option("Categories of a categorical likelihood; 0: as in the data", min=0, max=257)
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The optimisation by Adam."""

    epochs: Annotated[
        int, Option("Maximum epochs: passes over the training rows, or see --min-steps", min=1)
    ] = 25
    min_steps: Annotated[
        int,
        Option(
            "Least steps after the warm-up: an epoch passes over few rows several times; "
            "0 if --epochs is given",
            min=0,
        ),
    ] = 4000
    batch_size: Annotated[int, Option("Rows in each training step", min=1)] = 200
    learning_rate: Annotated[float, Option("Adam's step size", min=0, open_min=True)] = 2e-3
    schedule: Annotated[Literal["constant", "cosine"], Option("How the learning rate changes")] = (
        "cosine"
    )
    objective: Annotated[
        Literal["elbo", "iwae"], Option("Bound to maximise; iwae needs several samples per row")
    ] = "elbo"
    train_samples: Annotated[int, Option("Noise samples per row in training", min=1, max=1000)] = 1
    kl_weight: Annotated[float, Option("Weight of the KL in the loss", min=0)] = 1.0
    hidden_share: Annotated[
        float,
        Option("Mean share of a mixed table's cells that training treats as gaps", min=0, max=0.5),
    ] = 0.25
    kl_warmup_steps: Annotated[int, Option("Steps for the KL's weight to rise from 0", min=0)] = 0
    free_bits: Annotated[float, Option("Nats of each latent's mean KL that are free", min=0)] = 0.0
    patience: Annotated[int, Option("Epochs to wait for a better validation ELBO", min=1)] = 5
    bf16: Annotated[
        bool,
        Option("Compute the networks in bfloat16 in training; validation and the rest in float32"),
    ] = False
    cuda_graph: Annotated[
        bool, Option("Make each training step by one CUDA graph; only with --device cuda")
    ] = False
    max_time: Annotated[
        float | None, Option("Minutes after which training stops", min=0, open_min=True)
    ] = None
    init_from: Annotated[
        str,
        Option(
            "Start from the weights of models:/NAME@ALIAS, models:/NAME/VERSION, a bundle folder "
            "or a run's id; none: draw them"
        ),
    ] = ""
    seed: Annotated[int, Option("Seed of weights, batches and noise", min=0, max=2**63 - 1)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The held-out evaluation."""

    nll_samples: Annotated[
        int, Option("Importance samples per row for the NLL", min=1, max=100_000)
    ] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The export to a bundle."""

    precision: Annotated[
        Precision, Option("Number type in the graphs; fp16 and int8 make a smaller bundle")
    ] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteConfig:
    """The gate of a promotion."""

    margin: Annotated[float, Option("Nats by which the held-out ELBO may be lower", min=0)] = 1.0
    confidence: Annotated[
        float,
        Option("Confidence that the ELBO is not lower by more than --margin", min=0.5, max=0.9999),
    ] = 0.95
    min_elbo: Annotated[float | None, Option("Lowest held-out ELBO that may pass, in nats")] = None
    min_active_units: Annotated[int, Option("Lowest number of active latents", min=0)] = 1
    gate_samples: Annotated[int, Option("Noise samples per row in the gate", min=1, max=1000)] = 8
    require: Annotated[
        tuple[str, ...],
        Option(
            "approval: another user has run vae approve; cpu, cuda or a plugin's name: parity has "
            "passed on it, see vae check; the tag gate.require of the model adds to this"
        ),
    ] = ()
    require_live: Annotated[
        int, Option("Live rows of vae serve --shadow that decide; 0: held-out rows do", min=0)
    ] = 0
    allow_new_data: Annotated[bool, Option("Accept another set of held-out rows")] = False


SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "promote": PromoteConfig,
}
"""All sections by the names that they have in a file of options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that determines a trained model, apart from the code."""

    preset: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def flat(self) -> dict[str, Any]:
        """Return the settings by dotted names, as MLflow shows them."""
        rows: dict[str, Any] = {"preset": self.preset}
        for section, values in self.to_json().items():
            if isinstance(values, dict):
                rows |= {f"{section}.{name}": value for name, value in values.items()}
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the settings in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Config":
        """Read what `to_json` wrote; a setting that an older bundle lacks gets its default."""
        data = {**content["data"], "columns": tuple(content["data"].get("columns", ()))}
        model = {**content["model"], "hidden_dims": tuple(content["model"]["hidden_dims"])}
        return cls(
            preset=content["preset"],
            data=DataConfig(**data),
            model=ModelConfig(**model),
            # a training from before this setting passed over the rows once in an epoch
            train=TrainConfig(**{"min_steps": 0, **content["train"]}),
            evaluate=EvaluateConfig(**content["evaluate"]),
        )


def configure(preset: str = "default", **settings: Any) -> Config:
    """Build the settings of a preset; `settings` override the preset's own."""
    if preset not in PRESETS:
        raise UsageRefused(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = {**PRESETS[preset], **settings}
    if "epochs" in settings:  # they are obeyed to the letter
        chosen.setdefault("min_steps", 0)
    if {"hidden_dims", "latent_dim"} & settings.keys():
        chosen.setdefault("fit_sizes", False)
    config = Config(preset=preset)
    for section in ("data", "model", "train", "evaluate"):
        part = getattr(config, section)
        names = {item.name for item in fields(part)} & chosen.keys()
        part = replace(part, **{name: chosen.pop(name) for name in names})
        config = replace(config, **{section: part})
    if chosen:
        raise UsageRefused(f"no such setting: {', '.join(chosen)}")
    if config.train.objective == "iwae" and (free_bits := config.train.free_bits):
        source = "" if "free_bits" in settings else f" from preset {preset}"
        raise UsageRefused(
            f"objective iwae takes no free bits, got {free_bits:g}{source}: "
            "use --free-bits 0 or --objective elbo"
        )
    return config


def settings_of(section: type) -> Iterator[tuple[str, Any, Option, Any]]:
    """Yield name, type, option and default of every setting in a section."""
    hints = get_type_hints(section, include_extras=True)
    for item in fields(section):
        annotated = hints[item.name]
        yield item.name, annotated.__origin__, annotated.__metadata__[0], item.default


def setting_names() -> dict[str, tuple[str, ...]]:
    """Return the names of all settings by section; the preset stands in none."""
    names = {key: tuple(item.name for item in fields(part)) for key, part in SECTIONS.items()}
    return {"": ("preset",), **names}
