"""Functions in float32 by operations that every runtime has.

In float32, likelihoods call kernels of torch that are made for training. The exporter translates
log sigmoid to the logarithm of a sigmoid, which is infinite from -104 on, and not every provider
has a softplus. Float64 needs none of this: likelihoods compute it in this way already.
"""

from typing import Any

from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.model.bernoulli import plain_softplus


class PlainFunctions(TorchFunctionMode):
    """Replaces those kernels while it is entered, in eager torch and in exports."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.binary_cross_entropy_with_logits:
            logits, target = args
            return plain_softplus(logits) - target * logits
        if function is F.softplus and len(args) == 1:  # a net's has more arguments
            return plain_softplus(*args)
        return function(*args, **(kwargs or {}))
