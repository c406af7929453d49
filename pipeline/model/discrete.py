"""Likelihoods of whole numbers: brightness of 8 bits, and codes without an order."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.bernoulli import softplus
from pipeline.model.gaussian import column_moments
from serving.errors import DataRefused

MAX_CATEGORIES = 256


class DiscretizedLogistic(nn.Module):
    """Each byte is a logistic variable, rounded; what is beyond 0 and 255 counts to the ends.

    The decoder gives location and log scale of every feature, of x / 255 (Kingma et al., 2016,
    appendix C.1; Salimans et al., 2017, equation 2). Nats divided by features · log 2 are bits a
    dimension.
    """

    x_width = 1
    params_width = 2
    x_unit: Tensor
    log_scale_range = (-7.0, 5.0)  # the lower as in VDVAE (Child, 2021)
    half_bin = 0.5 / 255

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("x_unit", torch.tensor(255.0))

    def fit(self, train: NDArray[Any]) -> None:
        """Bytes have one scale."""

    def check(self, x: NDArray[Any]) -> None:
        """Bytes."""
        if x.dtype != np.uint8:
            raise DataRefused(
                f"a discretized_logistic likelihood needs bytes, got {x.dtype}: "
                "use --likelihood gaussian"
            )

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Mean, and log of the logistic scale of the same variance."""
        loc, std = (part / 255 for part in column_moments(train.reshape(len(train), -1)))
        log_scale = np.log(np.maximum(std * math.sqrt(3) / math.pi, self.half_bin))
        return torch.from_numpy(np.stack([loc, log_scale], -1).reshape(-1)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Values in [0, 1], (batch, features)."""
        return x.flatten(1).to(self.x_unit.dtype) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Sum of the logs of the bins' masses, without cancellation.

        With the edges a > b in scales, sigmoid(a) - sigmoid(b) is sigmoid(a) · sigmoid(-b) ·
        (1 - exp(b - a)).
        """
        loc, log_scale = self._split(params)
        rate = torch.exp(-log_scale)
        upper = (x - loc + self.half_bin) * rate
        lower = (x - loc - self.half_bin) * rate
        width = 2 * self.half_bin * rate
        # 1 - exp(-w) is tanh(w/2)·(1 + exp(-w)): ONNX has no expm1
        log_width = ((width / 2).tanh() * (1 + torch.exp(-width))).log()
        below, above = -softplus(-upper), -softplus(lower)
        inner = torch.where(x >= 1, above, below + above + log_width)
        return torch.where(x <= 0, below, inner).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """The location, kept within the bytes: the median of x, not rounded."""
        return self._split(params)[0].clamp(0, 1) * self.x_unit

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """The location, and the scale times the logit of the noise, rounded."""
        loc, log_scale = self._split(params)
        value = (loc + log_scale.exp() * noise.logit()).clamp(0, 1) * self.x_unit
        return value.round()

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.unflatten(params, -1, (-1, 2))
        return pairs[..., 0], pairs[..., 1].clamp(*self.log_scale_range)


class Categorical(nn.Module):
    """Each feature is one of `num_categories` codes, 0, 1, …; the decoder gives their logits.

    The last code stands for all that training did not have: it is rare, not impossible, so that a
    row with an unknown code has a low score, and a finite one.
    """

    codes: Tensor

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        if not 2 <= settings.num_categories <= MAX_CATEGORIES + 1:
            raise DataRefused(
                "a categorical likelihood needs the number of codes, from 2 to "
                f"{MAX_CATEGORIES + 1}; got {settings.num_categories}"
            )
        self.x_width = self.params_width = settings.num_categories
        self.register_buffer("codes", torch.arange(settings.num_categories, dtype=torch.float32))

    def fit(self, train: NDArray[Any]) -> None:
        """Codes have no scale."""

    def check(self, x: NDArray[Any]) -> None:
        """Whole numbers from 0 up."""
        check_codes(x)

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Logs of the codes' shares, each counted once more than it is there."""
        rows = train.reshape(len(train), -1)
        counts = np.stack([(rows == code).sum(0) for code in range(self.params_width)], -1)
        shares = (counts + 1) / (len(rows) + self.params_width)
        return torch.from_numpy(np.log(shares).reshape(-1)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """One-hot codes, (batch, features * num_categories)."""
        codes = x.flatten(1).to(self.codes.dtype).round()
        unknown = (codes < 0) | (codes >= self.params_width)
        codes = torch.where(unknown, self.params_width - 1, codes)
        return (codes.unsqueeze(-1) == self.codes).to(self.codes.dtype).flatten(1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Sum of the logs of the codes' probabilities."""
        return (self._log_shares(params) * self._by_code(x)).sum((-2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """E[code given params], which is no code itself."""
        return (self._log_shares(params).exp() * self.codes).sum(-1)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """The code within whose share of (0, 1) the noise falls."""
        ends = self._log_shares(params).exp().cumsum(-1)[..., :-1]
        return (noise.unsqueeze(-1) > ends).sum(-1).to(params.dtype)

    def _by_code(self, values: Tensor) -> Tensor:
        return torch.unflatten(values, -1, (-1, self.params_width))

    def _log_shares(self, params: Tensor) -> Tensor:
        logits = self._by_code(params)
        logits = logits - logits.amax(-1, keepdim=True)
        return logits - logits.exp().sum(-1, keepdim=True).log()


def count_categories(*splits: NDArray[Any]) -> int:
    """Codes of the data, and one for those that it does not have."""
    for x in splits:
        check_codes(x)
    return int(max(x.max() for x in splits if x.size)) + 2


def check_codes(x: NDArray[Any]) -> None:
    """Refuse what is not a whole number from 0 to 255."""
    if x.dtype == np.uint8 or not x.size:
        return
    if not (x.min() >= 0 and x.max() < MAX_CATEGORIES and (x == np.rint(x)).all()):
        raise DataRefused(
            f"a categorical likelihood needs whole numbers from 0 to {MAX_CATEGORIES - 1}, "
            f"got {x.min():g} to {x.max():g}{'' if (x == np.rint(x)).all() else ' with fractions'}"
        )
