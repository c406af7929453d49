"""Convolutional encoders and decoders for images of any size, gray or in colour.

Every stage halves height and width; the decoder mirrors the encoder. There is no batch
normalisation, so that in training, too, a row's result depends on that row alone.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.model.net_spec import Nets, NetSpec
from serving.errors import UsageRefused

RESIDUAL_BLOCKS = 2
"""Residual blocks after every stage of `resnet`."""

Size = tuple[int, int]


def build_conv(spec: NetSpec) -> Nets:
    """Build an encoder of strided convolutions and a decoder of transposed ones."""
    return _build(spec, blocks=0)


def build_resnet(spec: NetSpec) -> Nets:
    """Build the networks of `build_conv` with residual blocks at every size."""
    return _build(spec, blocks=RESIDUAL_BLOCKS)


def _build(spec: NetSpec, *, blocks: int) -> Nets:
    if len(spec.x_shape) not in (2, 3) or not spec.hidden_dims:
        widths = ",".join(map(str, spec.hidden_dims)) or "none"
        raise UsageRefused(
            "a convolutional model needs images, (height, width) or (height, width, channels), and "
            f"hidden dims; got {spec.x_shape} and {widths}: use --model mlp"
        )
    sizes: list[Size] = [(spec.x_shape[0], spec.x_shape[1])]
    for _ in spec.hidden_dims:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return ConvEncoder(spec, sizes, blocks), ConvDecoder(spec, sizes, blocks)


class ResidualBlock(nn.Module):
    """x + f(x), where f is zero at first, so that depth does not hurt early training."""

    def __init__(self, width: int, spec: NetSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spec.activate(),
            nn.Conv2d(width, width, 3, padding=1),
            spec.activate(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        last = cast(nn.Conv2d, self.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(nn.Parameter, last.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Add the layers' output to `x`."""
        return cast(Tensor, x + self.layers(x))


class ConvEncoder(nn.Module):
    """Strided convolutions, then one linear layer."""

    def __init__(self, spec: NetSpec, sizes: list[Size], blocks: int) -> None:
        super().__init__()
        self.size = sizes[0]
        widths = (_channels(spec.x_width, self.size), *spec.hidden_dims)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            layers += (ResidualBlock(after, spec) for _ in range(blocks))
            layers.append(spec.activate())
        self.hidden = nn.Sequential(*layers)
        flat = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.z_loc = nn.Linear(flat, spec.latent_dim)
        self.z_log_scale = nn.Linear(flat, spec.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `x`."""
        images = torch.unflatten(x, 1, (*self.size, -1)).movedim(-1, 1)
        # without the clone, a batch of one has another memory layout, and the exporter would derive
        # a limit on the batch size from it
        images = images.clone(memory_format=torch.contiguous_format)
        h = self.hidden(images).flatten(1)
        return self.z_loc(h), self.z_log_scale(h)


class ConvDecoder(nn.Module):
    """One linear layer, then transposed convolutions through the encoder's sizes in reverse."""

    def __init__(self, spec: NetSpec, sizes: list[Size], blocks: int) -> None:
        super().__init__()
        widths = (_channels(spec.params_width, sizes[0]), *spec.hidden_dims)
        self.start = (widths[-1], *sizes[-1])
        self.input = nn.Linear(spec.latent_dim, torch.Size(self.start).numel())
        layers: list[nn.Module] = []
        stages = zip(pairwise(widths), pairwise(sizes), strict=True)
        for (outer, inner), (large, small) in reversed(list(stages)):
            layers += (ResidualBlock(inner, spec) for _ in range(blocks))
            layers.append(spec.activate())
            odd = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers.append(
                nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=odd)
            )
        self.hidden = nn.Sequential(*layers)
        self.output_bias = nn.Parameter(torch.zeros(spec.params_width))

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z`."""
        images = self.hidden(torch.unflatten(self.input(z), 1, self.start))
        return cast(Tensor, images.movedim(1, -1).flatten(1) + self.output_bias)


def _channels(width: int, size: Size) -> int:
    return width // (size[0] * size[1])
