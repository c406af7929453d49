"""What the model's means leave over of a cell, as far as it is linear in the rest of the row.

A model of few latents keeps the dependences that say most about a row, and misses others that a
linear regression finds, such as a column that is the sum of two. After training, the error of the
mean (of a number) or of the shares (of words) in hidden cells of the training rows is regressed on
the filled row, by `pipeline.training.remainder`. To fill a gap, the regression is added.
"""

import torch
from torch import Tensor, nn

MAX_FEATURES = 1000
"""Columns and words of a wider table are too many for a regression of each on all."""
FAR = 8.0
"""Largest distance of a number from its mean, in standard deviations, that the regression sees."""


class Remainder(nn.Module):
    """A linear map from a filled row to what is to be added to its means and shares.

    Until it is fitted it adds nothing, as in a model from before there was one.
    """

    centre: Tensor
    """The mean of each column of numbers in the data's units, (numbers,)."""
    unit: Tensor
    """Its standard deviation."""
    low: Tensor
    """Its least value in training."""
    high: Tensor
    weight: Tensor
    """(features, outputs): an output for each number, then one for each word."""
    bias: Tensor

    def __init__(self, numbers: int, features: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("unit", torch.ones(numbers))
        self.register_buffer("low", torch.full((numbers,), -torch.inf))
        self.register_buffer("high", torch.full((numbers,), torch.inf))
        self.register_buffer("weight", torch.zeros(features, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def scale(self, values: Tensor, own: slice) -> Tensor:
        """Return values of some of the numbers in standard deviations from their mean."""
        return ((values - self.centre[own]) / self.unit[own]).clamp(-FAR, FAR)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what to add to numbers, in the data's units, and to the shares of words."""
        left = features @ self.weight.to(features.dtype) + self.bias
        numbers, words = torch.tensor_split(left, (len(self.unit),), -1)
        return numbers * self.unit, words

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *others: object
    ) -> None:
        for name, value in self.named_buffers():
            state_dict.setdefault(f"{prefix}{name}", value)  # a model from before there was one
        super()._load_from_state_dict(state_dict, prefix, *others)
