"""What changes in the course of a training, as pure functions of the number of steps made.

A training that goes on after a break needs no state for them.
"""

import math

from pipeline.config import TrainConfig


def learning_rate_at(step: int, settings: TrainConfig, *, steps: int) -> float:
    """Adam's step size after `step` of all `steps`; a cosine ends at 0."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2


def kl_weight_at(step: int, settings: TrainConfig) -> float:
    """Weight of the KL in the loss after `step` steps: it grows evenly over the warm-up's."""
    return settings.kl_weight * min(1.0, (step + 1) / max(1, settings.kl_warmup_steps))


def warm_up_over(step: int, settings: TrainConfig) -> bool:
    """Whether the loss is the final one; the best epoch is one after that."""
    return step >= settings.kl_warmup_steps
