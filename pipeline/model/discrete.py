"""Likelihoods of whole numbers: brightness of 8 bits, and unordered category codes."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.bernoulli import check_bytes, softplus
from pipeline.model.gaussian import column_moments
from pipeline.model.inversion import Drawn, draw_code, logit_of, round_drawn
from serving.errors import DataRefused
from serving.value_range import MAX_BYTE

MAX_CATEGORIES = 256


class DiscretizedLogistic(nn.Module):
    """Each byte is a rounded logistic variable; 0 and the largest also take the mass beyond them.

    The decoder gives the location and log scale of x / x_unit for every feature (Kingma et al.,
    2016, appendix C.1; Salimans et al., 2017, equation 2). Nats divided by features · log 2 are
    bits per dimension.
    """

    x_unit: Tensor
    log_scale_range = (-7.0, 5.0)  # the lower bound as in VDVAE (Child, 2021)

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        self.x_width, self.params_width = features, 2 * features
        self.register_buffer("x_unit", torch.tensor(float(MAX_BYTE)))

    @property
    def half_bin(self) -> Tensor:
        """Half of the distance of two bytes."""
        return 0.5 / self.x_unit

    def fit(self, train: NDArray[Any], max_byte: int = MAX_BYTE) -> None:
        """Set the unit, which is the largest byte."""
        self.x_unit.fill_(max_byte)

    def check(self, x: NDArray[Any]) -> None:
        """Accept bytes up to the unit only."""
        check_bytes(x, self.x_unit)
        if x.dtype != np.uint8:
            raise DataRefused(
                f"a discretized_logistic likelihood needs bytes, got {x.dtype}: "
                "use --likelihood gaussian"
            )

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Return each feature's mean, and the log scale of the logistic of the same variance."""
        unit, half_bin = self.x_unit.item(), self.half_bin.item()
        loc, std = (part / unit for part in column_moments(train.reshape(len(train), -1)))
        log_scale = np.log(np.maximum(std * math.sqrt(3) / math.pi, half_bin))
        return torch.from_numpy(np.stack([loc, log_scale], -1).reshape(-1)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return values in [0, 1], (batch, features)."""
        return x.flatten(1).to(self.x_unit.dtype) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Sum the logs of the bins' masses, without cancellation.

        With the bin's edges a > b in units of the scale, sigmoid(a) - sigmoid(b) is
        sigmoid(a) · sigmoid(-b) · (1 - exp(b - a)).
        """
        loc, log_scale = self._split(params)
        rate = torch.exp(-log_scale)
        upper = (x - loc + self.half_bin) * rate
        lower = (x - loc - self.half_bin) * rate
        width = 2 * self.half_bin * rate
        # 1 - exp(-w) is tanh(w/2)·(1 + exp(-w)), since ONNX has no expm1
        log_width = ((width / 2).tanh() * (1 + torch.exp(-width))).log()
        below, above = -softplus(-upper), -softplus(lower)
        inner = torch.where(x >= 1, above, below + above + log_width)
        return torch.where(x <= 0, below, inner).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the location, clamped to the range of bytes: the median of x, not rounded."""
        return self._split(params)[0].clamp(0, 1) * self.x_unit

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return the location plus the scale times the logit of the noise's place, rounded."""
        loc, log_scale = self._split(params)
        return round_drawn((loc + log_scale.exp() * logit_of(noise)).clamp(0, 1) * self.x_unit)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.unflatten(params, -1, (-1, 2))
        return pairs[..., 0], pairs[..., 1].clamp(*self.log_scale_range)


class Categorical(nn.Module):
    """Each feature is one of `num_categories` codes, 0, 1, …; the decoder gives their logits.

    The last code stands for every code that the training data did not contain. It is rare but not
    impossible, so that a row with an unknown code has a low but finite score.
    """

    codes: Tensor

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        if not 2 <= settings.num_categories <= MAX_CATEGORIES + 1:
            raise DataRefused(
                "a categorical likelihood needs the number of codes, from 2 to "
                f"{MAX_CATEGORIES + 1}; got {settings.num_categories}"
            )
        self.x_width = self.params_width = features * settings.num_categories
        self.register_buffer("codes", torch.arange(settings.num_categories, dtype=torch.float32))

    def fit(self, train: NDArray[Any], max_byte: int = MAX_BYTE) -> None:
        """Do nothing: codes have no scale."""

    def check(self, x: NDArray[Any]) -> None:
        """Accept whole numbers from 0 to 255."""
        check_codes(x)

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Return the logs of the codes' shares, with one added to each count."""
        rows = train.reshape(len(train), -1)
        counts = np.stack([(rows == code).sum(0) for code in range(len(self.codes))], -1)
        shares = (counts + 1) / (len(rows) + len(self.codes))
        return torch.from_numpy(np.log(shares).reshape(-1)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return one-hot codes, (batch, features * num_categories)."""
        codes = x.flatten(1).to(self.codes.dtype).round()
        count = len(self.codes)
        unknown = (codes < 0) | (codes >= count)
        codes = torch.where(unknown, count - 1, codes)
        return (codes.unsqueeze(-1) == self.codes).to(self.codes.dtype).flatten(1)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Sum the log-probabilities of the codes over features."""
        return (self._log_probabilities(params) * self._by_code(x)).sum((-2, -1))

    def mean(self, params: Tensor) -> Tensor:
        """Return E[code given params], which need not be a code."""
        return (self._log_probabilities(params).exp() * self.codes).sum(-1)

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return the code into whose part of (0, 1) the noise falls."""
        return draw_code(self._log_probabilities(params).exp(), noise)

    def _by_code(self, values: Tensor) -> Tensor:
        return torch.unflatten(values, -1, (-1, len(self.codes)))

    def _log_probabilities(self, params: Tensor) -> Tensor:
        logits = self._by_code(params)
        logits = logits - logits.amax(-1, keepdim=True)
        return logits - logits.exp().sum(-1, keepdim=True).log()


def count_categories(*splits: NDArray[Any]) -> int:
    """Return the number of codes: those of the data, and one for all that it does not contain."""
    for x in splits:
        check_codes(x)
    return int(max(x.max() for x in splits if x.size)) + 2


def check_codes(x: NDArray[Any]) -> None:
    """Refuse values that are not whole numbers from 0 to 255."""
    if x.dtype == np.uint8 or not x.size:
        return
    if not (x.min() >= 0 and x.max() < MAX_CATEGORIES and (x == np.rint(x)).all()):
        raise DataRefused(
            f"a categorical likelihood needs whole numbers from 0 to {MAX_CATEGORIES - 1}, "
            f"got {x.min():g} to {x.max():g}{'' if (x == np.rint(x)).all() else ' with fractions'}"
        )
