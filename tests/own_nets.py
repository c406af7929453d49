"""Networks as users write them: recurrent, with attention, with weights that torch computes.

The module imports torch alone, so that a test can save it in a working folder as a user's file.
Rows are sequences: the first axis of `x_shape` is time.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

Nets = tuple[nn.Module, nn.Module]
WIDTH = 16


class Encoder(nn.Module):
    """Embeds every step, summarises the sequence, and ends in the two heads."""

    def __init__(self, spec: Any, body: nn.Module, features: int = WIDTH) -> None:
        super().__init__()
        self.steps, width = spec.x_shape[0], spec.x_width // spec.x_shape[0]
        self.embed = nn.Linear(width, WIDTH)
        self.body = body
        self.z_loc = nn.Linear(features, spec.latent_dim)
        self.z_log_scale = nn.Linear(features, spec.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(F.silu(self.embed(x.unflatten(1, (self.steps, -1)))))
        return self.z_loc(h), self.z_log_scale(h)


class Recurrent(nn.Module):
    """The last state of a recurrent layer, of both directions if it has two."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        state = self.layer(x)[1]
        state = state[0] if isinstance(state, tuple) else state
        directions = 2 if self.layer.bidirectional else 1
        return state[-directions:].transpose(0, 1).flatten(1)


class Cell(nn.Module):
    """A loop over the steps, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], WIDTH)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


class Attention(nn.Module):
    """A transformer over steps with positions, by torch's own layer."""

    def __init__(self, spec: Any, **options: Any) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(spec.x_shape[0], WIDTH) / 4)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + self.position).mean(1)


class Masked(nn.Module):
    """A causal transformer, whose mask is a buffer with infinite numbers, and time the first axis.

    Torch asks of a mask whether it is causal, unless `is_causal` says so.
    """

    mask: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, norm_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        steps = spec.x_shape[0]
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(steps))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(0, 1), mask=self.mask)[-1]


class OwnAttention(nn.Module):
    """Causal attention by hand, with sinusoids that are neither parameters nor buffers."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        steps = torch.arange(spec.x_shape[0])[:, None]
        waves = torch.exp(torch.arange(0, WIDTH, 2) * -math.log(100) / WIDTH)
        self.position = torch.cat([torch.sin(steps * waves), torch.cos(steps * waves)], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        x = x + self.heads(x, x, x, need_weights=False)[0]
        return F.scaled_dot_product_attention(self.query(x), x, x, is_causal=True)[:, -1]


class Mean(nn.Sequential):
    """Layers over every step, then the mean over time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


class Steps(nn.Module):
    """A decoder that makes each step by a recurrent layer."""

    def __init__(self, spec: Any, layer: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.steps = spec.x_shape[0]
        self.start = nn.Linear(spec.latent_dim, WIDTH)
        self.layer = layer(WIDTH, WIDTH, batch_first=True)
        self.x_params = nn.Linear(WIDTH, spec.params_width // self.steps)

    def forward(self, z: Tensor) -> Tensor:
        h = self.start(z).unsqueeze(1).expand(-1, self.steps, -1)
        return self.x_params(self.layer(h)[0]).flatten(1)


class Tied(nn.Module):
    """A decoder whose last weight is the transposed first one of the encoder, and a spare layer."""

    gain: Tensor

    def __init__(self, spec: Any, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.start = nn.Linear(spec.latent_dim, len(weight))
        self.spare = nn.Linear(3, 3)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, len(weight)))
        self.output_bias = nn.Parameter(torch.zeros(spec.params_width))

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.start(z)) * self.gain
        return F.linear(h, self.weight.t(), self.output_bias)


class Transposed(nn.Module):
    """A decoder with transposed convolutions over time, and norms over groups of channels."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.steps, self.short = spec.x_shape[0], -(-spec.x_shape[0] // 2)
        self.start = nn.Linear(spec.latent_dim, 8 * self.short)
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.x_params = nn.Conv1d(6, spec.params_width // spec.x_shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.up(self.start(z).unflatten(1, (8, self.short)))[:, :, : self.steps]
        return self.x_params(F.silu(self.norm(h))).transpose(1, 2).flatten(1)


def dense(spec: Any, wrap: Callable[[nn.Linear], nn.Module] = lambda layer: layer) -> nn.Module:
    first = wrap(nn.Linear(spec.latent_dim, WIDTH))
    return nn.Sequential(first, nn.SiLU(), wrap(nn.Linear(WIDTH, spec.params_width)))


def lstm(spec: Any) -> Nets:
    body = Recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True))
    return Encoder(spec, body), Steps(spec, nn.LSTM)


def gru_both_ways(spec: Any) -> Nets:
    layer = nn.GRU(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True, dropout=0.1)
    return Encoder(spec, Recurrent(layer), 2 * WIDTH), Steps(spec, nn.GRU)


def cells(spec: Any) -> Nets:
    return Encoder(spec, Cell()), Steps(spec, nn.RNN)


def attention(spec: Any) -> Nets:
    return Encoder(spec, Attention(spec)), dense(spec)


def masked(spec: Any) -> Nets:
    return Encoder(spec, Masked(spec)), dense(spec)


def own_attention(spec: Any) -> Nets:
    return Encoder(spec, OwnAttention(spec)), dense(spec)


def sequence(spec: Any) -> Nets:
    layers = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
    first = nn.Linear(spec.latent_dim, WIDTH, bias=False)
    decoder = nn.Sequential(first, nn.SiLU(), nn.Linear(WIDTH, spec.params_width, bias=False))
    return Encoder(spec, Mean(*layers)), decoder


def weight_normed(spec: Any) -> Nets:
    body = Recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True))
    parametrizations.weight_norm(body.layer, "weight_hh_l0")
    return Encoder(spec, body), dense(spec, parametrizations.weight_norm)


def spectral_normed(spec: Any) -> Nets:
    layer = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
    return Encoder(spec, Mean(layer)), dense(spec, parametrizations.spectral_norm)


def orthogonal(spec: Any) -> Nets:
    layer = parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))
    return Encoder(spec, Mean(layer)), dense(spec, parametrizations.orthogonal)


def normed_by_hooks(spec: Any) -> Nets:
    return Encoder(spec, Mean(weight_norm(nn.Linear(WIDTH, WIDTH)))), dense(spec, spectral_norm)


def tied(spec: Any) -> Nets:
    first = nn.Linear(spec.x_width, WIDTH)
    body = nn.Sequential(nn.Flatten(1), nn.Linear(spec.x_shape[0] * WIDTH, WIDTH))
    encoder = Encoder(spec, body)
    encoder.first = first  # only its weight is used, by the decoder
    return encoder, Tied(spec, first.weight)


def transposed(spec: Any) -> Nets:
    body = nn.Sequential(
        nn.Conv1d(spec.x_shape[0], 8, 3), nn.BatchNorm1d(8), nn.SiLU(), nn.Flatten(1)
    )
    return Encoder(spec, body, 8 * (WIDTH - 2)), Transposed(spec)


def batch_normed(spec: Any) -> Nets:
    body = nn.Sequential(nn.Flatten(1), nn.Linear(spec.x_shape[0] * WIDTH, WIDTH))
    body.append(nn.BatchNorm1d(WIDTH))
    return Encoder(spec, body), dense(spec)


NETS = (
    lstm,
    gru_both_ways,
    cells,
    attention,
    masked,
    own_attention,
    sequence,
    weight_normed,
    spectral_normed,
    orthogonal,
    normed_by_hooks,
    tied,
    transposed,
    batch_normed,
)
