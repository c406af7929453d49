"""The precision in which the networks of a VAE compute: float32, or bfloat16 in training."""

from typing import Any

import torch
from torch import Tensor, nn


def run_network(network: nn.Module, x: Tensor, *, bf16: bool) -> Any:
    """Return what a network gives for `x`: a tensor, or a tuple of them.

    With `bf16`, its matrix products and convolutions round their factors to the eight bits of
    bfloat16; weights and gradients stay float32, and so does what is returned. The caller computes
    the KL and the likelihood from that, outside of autocast: bfloat16 has no digits left for
    expm1(2a) - 2a of a small a.
    """
    if not bf16:
        return network(x)
    # without a cache, since a weight is used once, and a CUDA graph must cast it at each replay
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
        output = network(x)
    if isinstance(output, tuple):
        return tuple(part.float() for part in output)
    return output.float()
