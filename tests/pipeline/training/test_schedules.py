import pytest
import torch

from pipeline.config import TrainConfig
from pipeline.training.schedules import kl_weight_at, learning_rate_at, warm_up_over


def test_the_cosine_schedule_equals_that_of_torch_and_ends_at_zero() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    settings = TrainConfig(learning_rate=1e-3, schedule="cosine")
    for step in range(11):
        expected = cosine.get_last_lr()[0]
        assert learning_rate_at(step, settings, steps=10) == pytest.approx(expected, abs=1e-18)
        optimizer.step()
        cosine.step()
    assert expected == 0


def test_the_constant_schedule_is_constant() -> None:
    settings = TrainConfig(learning_rate=1e-3, schedule="constant")
    assert {learning_rate_at(step, settings, steps=10) for step in range(10)} == {1e-3}


def test_the_kl_weight_grows_linearly_during_the_warm_up() -> None:
    settings = TrainConfig(kl_weight=2.0, kl_warmup_steps=4)
    assert [kl_weight_at(step, settings) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert [warm_up_over(step, settings) for step in range(6)] == [False] * 4 + [True] * 2


def test_without_a_warm_up_the_kl_weight_is_final_from_the_first_step() -> None:
    settings = TrainConfig(kl_weight=0.5)
    assert kl_weight_at(0, settings) == 0.5
    assert warm_up_over(0, settings)
