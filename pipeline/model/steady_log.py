"""A logarithm whose last bit does not depend on the batch.

onnxruntime computes the logarithms of an array several at once, and those that are left over at its
end by another routine, which may round the other way. So a row alone would differ from the same row
in a batch by the last bit of float32, and its score by more. Logarithms of float64 may differ too,
but not by as much as the rounding to float32 that follows.
"""

import torch
from torch import Tensor

_COPIES = 16
"""As many float32 as the widest processors compute at once: then none is left over."""


def steady_log(x: Tensor) -> Tensor:
    """Return log x; in a graph of float32, from one of several copies of each value."""
    if x.dtype == torch.float64 or not torch.compiler.is_exporting():
        return x.log()
    return x.unsqueeze(-1).expand(*x.shape, _COPIES).log().select(-1, 0)
