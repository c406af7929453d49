"""Copies of a model in other arithmetic, by which the errors of float32 and TF32 are measured.

In: a model, and how to round. Out: a copy. Several operations run the same network on the same
inputs, such as the decoder for `decode`, `sample` and `draw`: the copies remember what it gave.
"""

import copy
from collections import OrderedDict
from hashlib import sha256
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.model.vae import VAE

MOST_BYTES = 2**28
"""Outputs of networks that are remembered, 256 MiB; the oldest are forgotten."""

Outputs = Tensor | tuple[Tensor, ...]


class Roundings:
    """The copies of one model; the model must not change while they are used."""

    def __init__(self, model: VAE) -> None:
        self.model = model
        self._copies: dict[tuple[object, ...], VAE] = {}
        self._drawn: dict[tuple[torch.dtype, bool], VAE] = {}
        self._memory = _Memory()

    def get(
        self, dtype: torch.dtype, draw: int = 0, *, tf32: bool = False, plain: bool = False
    ) -> VAE:
        """Return the copy in `dtype`; `tf32` rounds the factors of products.

        Any `draw` but 0 rounds each weight in another way, so that the errors fall anew: by one
        rounding of float32 away from where it is, or to the one or other neighbour in TF32. What
        runs under `PlainFunctions`, which change what a network may call, says so by `plain`.
        Other draws are seldom used twice, so that they remember nothing, and that the next draw
        takes the place of the one before: a copy takes longer to make than it is used.
        """
        if draw:
            if (dtype, tf32) not in self._drawn:
                self._drawn[dtype, tf32] = _copy(self.model, dtype, tf32=tf32)
            rounded = self._drawn[dtype, tf32]
            for weight, own in zip(rounded.parameters(), self.model.parameters(), strict=True):
                weight.copy_(own)
            _round_weights(rounded, draw, tf32=tf32)
            return rounded
        key = (dtype, tf32, plain)
        if key not in self._copies:
            rounded = _copy(self.model, dtype, tf32=tf32)
            _round_weights(rounded, draw, tf32=tf32)
            for name in ("encoder", "decoder"):
                network = _Remembered(getattr(rounded, name), (*key, name), self._memory)
                setattr(rounded, name, network)
            self._copies[key] = rounded
        return self._copies[key]


class _Memory:
    """The latest outputs of networks, by network and inputs."""

    def __init__(self) -> None:
        self._outputs: OrderedDict[tuple[object, ...], Outputs] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[object, ...]) -> Outputs | None:
        return self._outputs.get(key)

    def put(self, key: tuple[object, ...], outputs: Outputs) -> None:
        self._outputs[key] = outputs
        self._bytes += _size(outputs)
        while self._bytes > MOST_BYTES:
            _, oldest = self._outputs.popitem(last=False)
            self._bytes -= _size(oldest)


class _Remembered(nn.Module):
    """A network that is not run again on the bytes that it was run on."""

    def __init__(self, network: nn.Module, name: tuple[object, ...], memory: _Memory) -> None:
        super().__init__()
        self.network, self.name, self.memory = network, name, memory

    def forward(self, x: Tensor) -> Outputs:
        """Run the network, or return what it gave."""
        content = sha256(x.contiguous().numpy().data).digest()
        key = (*self.name, x.shape, x.dtype, content)
        outputs = self.memory.get(key)
        if outputs is None:
            outputs = cast(Outputs, self.network(x))
            self.memory.put(key, outputs)
        return outputs


def _size(outputs: Outputs) -> int:
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(part.nbytes for part in parts)


def _copy(model: VAE, dtype: torch.dtype, *, tf32: bool) -> VAE:
    """Copy a model; with `tf32`, products round what comes in: sums stay float32, as on a GPU."""
    copied = copy.deepcopy(model).to(dtype)
    if tf32:
        for layer in product_layers(copied).values():
            layer.register_forward_pre_hook(lambda _, inputs: (round_to_tf32(inputs[0]),))
    return copied


def _round_weights(model: VAE, draw: int, *, tf32: bool) -> None:
    """Round the weights of a copy, of TF32 those of products alone."""
    if draw:
        generator = torch.Generator().manual_seed(draw)
        if tf32:
            _round_by_chance(model, generator)
        else:
            _move_weights(model, generator)
    if tf32:
        for layer in product_layers(model).values():
            layer.weight.copy_(round_to_tf32(layer.weight))


def _move_weights(model: VAE, generator: torch.Generator) -> None:
    for weight in model.parameters():
        if weight.is_floating_point():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            towards = torch.where(up, torch.inf, -torch.inf).to(weight.dtype)
            weight.copy_(weight.nextafter(towards))


def _round_by_chance(model: VAE, generator: torch.Generator) -> None:
    """Round the weights of products up or down, as often as they are near to either."""
    for layer in product_layers(model).values():
        bits = layer.weight.view(torch.int32)
        chance = torch.randint(0, 0x2000, bits.shape, generator=generator, dtype=torch.int32)
        layer.weight.copy_(((bits + chance) & ~0x1FFF).view(torch.float32))


def round_to_tf32(values: Tensor) -> Tensor:
    """Round float32 to nearest with the ten bits of mantissa that tensor cores keep."""
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def product_layers(model: VAE) -> dict[str, nn.Linear | nn.Conv2d | nn.ConvTranspose2d]:
    """Return the layers that multiply by a weight, by name."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return {name: part for name, part in model.named_modules() if isinstance(part, kinds)}
