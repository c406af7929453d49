"""Every default, its help text and its limits; presets by name.

Command-line options, MLproject entry points and the README derive from these classes or are
checked against them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from serving.errors import UsageRefused

Device = Literal["cpu", "cuda"]
Binarize = Literal["none", "static", "dynamic"]
Precision = Literal["float32", "fp16", "int8"]
LikelihoodName = Literal[
    "auto",
    "bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "discretized_logistic",
    "categorical",
]


@dataclass(frozen=True, slots=True)
class Option:
    """Help text and limits of one setting."""

    help: str
    min: float | None = None
    max: float | None = None
    open_min: bool = False
    """Whether `min` itself is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data, and how it is split."""

    data: Annotated[
        str,
        Option(
            "mnist, a folder in MNIST's IDX layout, an .npy, .npz, .parquet or .csv file, or a "
            "folder of Parquet files or of PNG and JPEG images"
        ),
    ] = "mnist"
    columns: Annotated[
        tuple[str, ...], Option("Columns of a table to learn from; none: all but the label")
    ] = ()
    label: Annotated[
        str, Option("Column of a table that is not learned from, but colours pictures")
    ] = ""
    binarize: Annotated[
        Binarize, Option("Draw 0 or 1 from each value: never, once, or in training each time anew")
    ] = "none"
    valid_fraction: Annotated[
        float, Option("Part of the training rows kept for early stopping", min=0, max=0.5)
    ] = 0.1
    test_fraction: Annotated[
        float,
        Option("Part held out for the report, where the data has no test set", min=0.001, max=0.5),
    ] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The networks and the likelihood."""

    likelihood: Annotated[
        LikelihoodName,
        Option(
            "p(x given z); auto: bernoulli for bytes and bits, continuous_bernoulli for [0, 1], "
            "else gaussian"
        ),
    ] = "auto"
    model: Annotated[
        str, Option("Networks: mlp, conv, resnet, or the import path package.module:function")
    ] = "mlp"
    hidden_dims: Annotated[
        tuple[int, ...],
        Option("Widths or channels of the encoder's layers, the decoder mirrors them", min=1),
    ] = (512,)
    latent_dim: Annotated[int, Option("Size of z", min=1)] = 32
    activation: Annotated[
        Literal["relu", "tanh", "silu", "gelu"], Option("Activation between layers")
    ] = "silu"
    output_bias: Annotated[
        bool, Option("Start the decoder's last bias at what fits each feature by itself")
    ] = False
    sigma: Annotated[
        Literal["learned", "optimal", "fixed"],
        Option("A gaussian's scale: a weight, the root mean square error, or --fixed-sigma"),
    ] = "learned"
    fixed_sigma: Annotated[
        float, Option("A gaussian's fixed scale, in standardized units", min=0, open_min=True)
    ] = 1.0
    num_categories: Annotated[
        int, Option("Codes of a categorical likelihood; 0: those of the data", min=0, max=257)
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The optimisation: Adam on the negative ELBO."""

    epochs: Annotated[int, Option("Passes over the training rows, at most", min=1)] = 25
    batch_size: Annotated[int, Option("Rows a step", min=1)] = 200
    learning_rate: Annotated[float, Option("Adam's step size", min=0, open_min=True)] = 2e-3
    schedule: Annotated[Literal["constant", "cosine"], Option("Course of the learning rate")] = (
        "cosine"
    )
    objective: Annotated[
        Literal["elbo", "iwae"],
        Option("Bound that is maximised; iwae weighs the draws of --train-samples"),
    ] = "elbo"
    train_samples: Annotated[int, Option("Noise draws a row in training", min=1, max=1000)] = 1
    kl_weight: Annotated[float, Option("Weight of the KL in the loss", min=0)] = 1.0
    kl_warmup_steps: Annotated[
        int, Option("Steps over which the weight of the KL grows from 0", min=0)
    ] = 0
    free_bits: Annotated[
        float, Option("Nats that each latent's mean KL takes at no cost", min=0)
    ] = 0.0
    patience: Annotated[
        int, Option("Stop after so many epochs without a better validation ELBO", min=1)
    ] = 5
    max_time: Annotated[
        float | None, Option("Minutes after which training ends", min=0, open_min=True)
    ] = None
    seed: Annotated[int, Option("Seed of weights, batches and noise", min=0, max=2**63 - 1)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The held-out report."""

    nll_samples: Annotated[
        int, Option("Importance samples a row for the NLL", min=1, max=100_000)
    ] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The bundle."""

    precision: Annotated[
        Precision, Option("Numbers that the graphs hold; fp16 and int8 make a smaller bundle")
    ] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteConfig:
    """The gate; its rule stands in `pipeline.registry.gate`."""

    margin: Annotated[
        float, Option("Nats by which the candidate's held-out ELBO may be lower", min=0)
    ] = 1.0
    confidence: Annotated[
        float, Option("Probability that it is not lower by more", min=0.5, max=0.9999)
    ] = 0.95
    min_elbo: Annotated[
        float | None, Option("Nats that the held-out ELBO must reach, whatever the champion's is")
    ] = None
    min_active_units: Annotated[
        int, Option("Latents that must vary with the held-out rows", min=0)
    ] = 0
    gate_samples: Annotated[
        int, Option("Noise draws a row when the gate scores", min=1, max=1000)
    ] = 8
    require: Annotated[
        tuple[Device, ...],
        Option("Devices that parity must have passed on, such as cpu,cuda; see vae check"),
    ] = ()
    allow_new_data: Annotated[
        bool, Option("Take a candidate whose held-out rows are not the champion's")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All that determines a trained model, apart from the code."""

    preset: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def flat(self) -> dict[str, Any]:
        """The settings by dotted name, as MLflow shows them."""
        rows: dict[str, Any] = {"preset": self.preset}
        for section, values in self.to_json().items():
            if isinstance(values, dict):
                rows |= {f"{section}.{name}": value for name, value in values.items()}
        return rows

    def to_json(self) -> dict[str, Any]:
        """The settings in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Config":
        """The settings that `to_json` wrote."""
        columns = tuple(content["data"].get("columns", ()))
        model = {**content["model"], "hidden_dims": tuple(content["model"]["hidden_dims"])}
        return cls(
            preset=content["preset"],
            data=DataConfig(**{**content["data"], "columns": columns}),
            model=ModelConfig(**model),
            train=TrainConfig(**content["train"]),
            evaluate=EvaluateConfig(**content["evaluate"]),
        )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "seed": {
        "hidden_dims": (128, 64),
        "latent_dim": 20,
        "activation": "relu",
        "batch_size": 128,
        "learning_rate": 1e-3,
        "schedule": "constant",
    },
    "example": {
        "hidden_dims": (400,),
        "latent_dim": 20,
        "activation": "relu",
        "batch_size": 128,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "epochs": 10,
        "valid_fraction": 0.0,
    },
    "burda": {
        "hidden_dims": (200, 200),
        "latent_dim": 50,
        "activation": "tanh",
        "output_bias": True,
        "binarize": "dynamic",
        "valid_fraction": 400 / 60_000,
        "batch_size": 200,
        "learning_rate": 3e-3,
        "kl_warmup_steps": 5000,
        "epochs": 250,
        "patience": 250,
        "nll_samples": 5000,
    },
    "conv": {
        "model": "conv",
        "hidden_dims": (32, 64, 128),
        "output_bias": True,
        "batch_size": 100,
        "kl_warmup_steps": 3000,
        "epochs": 40,
        "patience": 10,
    },
    "resnet": {
        "model": "resnet",
        "hidden_dims": (64, 128, 128),
        "latent_dim": 64,
        "output_bias": True,
        "batch_size": 100,
        "learning_rate": 1e-3,
        "kl_warmup_steps": 3000,
        "free_bits": 0.1,
        "epochs": 100,
        "patience": 10,
    },
}
"""`seed`: 784-128-64-20. `example`: pytorch/examples' VAE, on all training rows, last weights.
`burda`: the net and the binarization of Burda et al. (2016), on all but their 400 rows."""


def configure(preset: str = "default", **settings: Any) -> Config:
    """Build the settings of a preset, with those given instead of its own."""
    if preset not in PRESETS:
        raise UsageRefused(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    chosen = {**PRESETS[preset], **settings}
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
    """Name, type, option and default of every setting in a section."""
    hints = get_type_hints(section, include_extras=True)
    for item in fields(section):
        annotated = hints[item.name]
        yield item.name, annotated.__origin__, annotated.__metadata__[0], item.default


def preset_settings() -> set[str]:
    """Names of the settings that some preset changes."""
    return {name for preset in PRESETS.values() for name in preset}
