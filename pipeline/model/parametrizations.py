"""Weights that torch computes from others: weight, spectral and orthogonal norms, pruning.

A model is trained with them, and kept, exported and served without: the weights of a checkpoint are
the values that they had at the end. No graph has to repeat that computation, and every weight of a
graph can be compared with the state dict byte for byte.
"""

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def fix_weights(model: nn.Module) -> None:
    """Put plain parameters in place of weights that torch's utilities compute, with their values.

    The model must be in evaluation mode: in training mode a spectral norm changes when it is read.
    """
    for module in list(model.modules()):
        if isinstance(found := getattr(module, "parametrizations", None), nn.ModuleDict):
            for name in list(found):
                parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
