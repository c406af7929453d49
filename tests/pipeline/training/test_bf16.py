"""Training whose networks compute in bfloat16, on the CPU, which has it too."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingStopped
from pipeline.evaluation.evaluate import evaluate
from pipeline.model.network_precision import run_network
from pipeline.model.objective import elbo_terms
from pipeline.model.vae import VAE
from pipeline.training.batches import Batch
from pipeline.training.beginning import begin_training, build_model, restore_training
from pipeline.training.loop import TrainHooks, continue_training, mean_metrics, train, train_step
from pipeline.training.state import read_state
from tests.mixed_tables import make_dataset
from tests.trained_models import tiny_config

BUDGET = 0.3
"""Nats by which the held-out ELBO may be below that of float32, as docs/training.md says."""


def config_of(dataset: Dataset, **settings: object) -> Config:
    return tiny_config(dataset, bf16=True, **settings)


@contextmanager
def watched(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """Collect the dtypes that the linear layers of a model give within the block."""
    seen: set[torch.dtype] = set()
    hooks = [
        layer.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", ["bytes", "reals", "mixed"])
def test_the_elbo_of_what_was_trained_is_within_the_budget_of_float32(
    kind: str, images: Dataset, table: Dataset
) -> None:
    rows = {"bytes": images, "reals": table, "mixed": make_dataset()}[kind]
    settings = {"likelihood": "mixed"} if kind == "mixed" else {}
    elbos = {
        bf16: evaluate(
            train(rows, tiny_config(rows, epochs=12, bf16=bf16, **settings)).model,
            rows.test.x,
            nll_samples=2,
            seed=0,
        ).elbo
        for bf16 in (False, True)
    }
    assert elbos[True] != elbos[False]
    assert elbos[True] >= elbos[False] - BUDGET


def test_only_the_networks_are_in_bfloat16(images: Dataset) -> None:
    model = build_model(images, config_of(images))
    x, eps = torch.from_numpy(images.sample[:20]), torch.randn(20, 2, 3)
    with watched(model) as seen:
        terms = elbo_terms(model, x, eps, bf16=True)
    assert seen == {torch.bfloat16}
    assert {part.dtype for part in terms if isinstance(part, Tensor)} == {torch.float32}
    z = terms.z.flatten(0, 1)
    params = run_network(model.decoder, z, bf16=True).unflatten(0, (20, 2))
    assert params.dtype == torch.float32
    expected = model.px.log_prob(params, model.px.standardize(x).unsqueeze(1))
    assert torch.equal(terms.log_likelihood, expected)
    expm1 = torch.expm1(2 * terms.log_scale.double())
    loc = model.infer(model.px.standardize(x), bf16=True).loc.double()
    kl = (loc.square() + expm1 - 2 * terms.log_scale.double()) / 2
    torch.testing.assert_close(terms.latent_kl.double(), kl, rtol=1e-4, atol=1e-6)


def test_weights_gradients_and_moments_stay_in_float32(images: Dataset) -> None:
    state = begin_training(images, config_of(images), "cpu")
    with watched(state.model) as seen:
        train_step(state, Batch(torch.from_numpy(images.sample[:50]), 50), 100)
    assert seen == {torch.bfloat16}
    for parameter in state.model.parameters():
        assert parameter.grad is not None
        moments = state.optimizer.state[parameter]
        kept = (parameter, parameter.grad, moments["exp_avg"], moments["exp_avg_sq"])
        assert {value.dtype for value in kept} == {torch.float32}


def test_validation_and_evaluation_are_in_float32(images: Dataset) -> None:
    state = begin_training(images, config_of(images, epochs=1), "cpu")
    result = continue_training(state, images)
    x = torch.from_numpy(images.valid.x)
    with watched(result.model) as seen:
        expected = mean_metrics(result.model, x, seed=0)
        evaluate(result.model, images.test.x, nll_samples=2, seed=0)
    assert seen == {torch.float32}
    assert result.history[0]["valid_elbo"] == expected["elbo"]


def test_a_network_of_your_own_may_give_any_shape_of_output() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    first, second = run_network(Both(2, 3), torch.ones(4, 2), bf16=True)
    assert (first.dtype, second.dtype) == (torch.float32, torch.float32)


def test_a_training_that_is_resumed_goes_on_in_bfloat16_bit_for_bit(images: Dataset) -> None:
    config = config_of(images, epochs=2, batch_size=60)
    whole, saved = train(images, config), list[bytes]()
    state = begin_training(images, config, "cpu")
    hooks = TrainHooks(save=lambda s: saved.append(s.to_bytes()), stop=lambda: state.step == 7)
    with pytest.raises(TrainingStopped):
        continue_training(state, images, hooks)
    restored = restore_training(read_state(saved[-1]), images)
    assert restored.settings.bf16
    result = continue_training(restored, images)
    assert result.history == whole.history
    assert weights(result.model) == weights(whole.model)
    assert weights(whole.model) != weights(train(images, tiny_config(images, epochs=2)).model)


def weights(model: VAE) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())
