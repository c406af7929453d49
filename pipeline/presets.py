"""The named presets: the settings by which each differs from the defaults of `config`."""

from collections.abc import Mapping
from typing import Any

_SMALL_RELU_NET: Mapping[str, Any] = {
    "latent_dim": 20,
    "fit_sizes": False,
    "activation": "relu",
    "batch_size": 128,
    "learning_rate": 1e-3,
    "schedule": "constant",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "seed": {**_SMALL_RELU_NET, "hidden_dims": (128, 64)},
    "example": {**_SMALL_RELU_NET, "hidden_dims": (400,), "epochs": 10, "valid_fraction": 0.0},
    "burda": {
        "hidden_dims": (200, 200),
        "latent_dim": 50,
        "fit_sizes": False,
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
        "fit_sizes": False,
        "output_bias": True,
        "batch_size": 100,
        "kl_warmup_steps": 3000,
        "epochs": 40,
        "patience": 10,
    },
    "resnet": {
        "model": "resnet",
        "hidden_dims": (64, 128, 128),
        "fit_sizes": False,
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
"""`seed`: layers 784-128-64-20. `example`: the VAE of pytorch/examples, with all training rows and
the last weights. `burda`: the network and the binarization of Burda et al. (2016), with all
training rows but the 400 that they hold out."""


def preset_settings() -> set[str]:
    """Return the names of the settings that some preset changes."""
    return {name for preset in PRESETS.values() for name in preset}
