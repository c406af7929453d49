"""The loss of a batch whose rows several processes share, as a module whose gradients they average.

In: this process's rows and noise. Out: a share of the loss, whose gradients have a mean over the
processes that is the gradient of the loss of the whole batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.model.gaussian import Gaussian
from pipeline.model.objective import ElboTerms, elbo_terms, loss
from pipeline.model.vae import VAE
from pipeline.training.processes import Processes


class BatchLoss(nn.Module):
    """The loss of a batch.

    Args:
        model: the model in training.
        settings: those of the loss.
        processes: those that share the batches.
        any_row: a row (1, *x_shape), which a process computes if it has none of a batch, since all
            must take part. It has no weight.
    """

    def __init__(
        self, model: VAE, settings: TrainConfig, processes: Processes, any_row: Tensor
    ) -> None:
        super().__init__()
        self.model = model
        self._settings, self._processes, self._any_row = settings, processes, any_row
        self._weight = 1.0

    def forward(
        self, rows: Tensor, eps: Tensor, size: int, kl_weight: float | Tensor
    ) -> tuple[Tensor, ElboTerms]:
        """Return the loss and its terms, for rows and noise of a batch of `size` rows in all."""
        several = self._processes.world > 1
        self._weight = len(rows) * self._processes.world / size
        if not len(rows):
            rows, eps = self._any_row, eps.new_zeros(1, *eps.shape[1:])
        with self._shared_mean():
            terms = elbo_terms(self.model, rows, eps, bf16=self._settings.bf16)
        value = loss(terms, self._settings, kl_weight, self._mean if several else None)
        return (self._weight * value if several else value), terms

    @contextmanager
    def _shared_mean(self) -> Iterator[None]:
        """Let the likelihood use the mean over the whole batch; the model does not keep this."""
        px = self.model.px
        if self._processes.world == 1 or not isinstance(px, Gaussian):
            yield
            return
        before, px.batch_mean = px.batch_mean, self._mean
        try:
            yield
        finally:
            px.batch_mean = before

    def _mean(self, share: Tensor) -> Tensor:
        """Return the mean over the whole batch of what has this mean over this process's rows."""
        with torch.no_grad():
            return self._processes.sum(share * self._weight) / self._processes.world
