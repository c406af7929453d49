"""The number of steps, and what changes with the step: learning rate and weight of the KL.

They are pure functions, so that a resumed training needs no saved state for them.
"""

import math

from pipeline.config import TrainConfig


def passes_per_epoch(rows: int, settings: TrainConfig) -> int:
    """Return how often an epoch passes over the rows: once, unless all epochs had too few steps."""
    least = settings.min_steps + settings.kl_warmup_steps if settings.min_steps else 0
    return max(1, math.ceil(least / (settings.epochs * _steps_per_pass(rows, settings))))


def total_steps(rows: int, settings: TrainConfig) -> int:
    """Return the number of steps in all epochs; the last batch of a pass may be smaller."""
    passes = settings.epochs * passes_per_epoch(rows, settings)
    return passes * _steps_per_pass(rows, settings)


def _steps_per_pass(rows: int, settings: TrainConfig) -> int:
    return math.ceil(rows / settings.batch_size)


def learning_rate_at(step: int, settings: TrainConfig, *, steps: int) -> float:
    """Return Adam's learning rate after `step` of all `steps`; the cosine schedule ends at 0."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2


def kl_weight_at(step: int, settings: TrainConfig) -> float:
    """Return the weight of the KL after `step` steps; it grows linearly during the warm-up."""
    return settings.kl_weight * min(1.0, (step + 1) / max(1, settings.kl_warmup_steps))


def warm_up_over(step: int, settings: TrainConfig) -> bool:
    """Whether the weight of the KL is final; only epochs after that can be the best."""
    return step >= settings.kl_warmup_steps
