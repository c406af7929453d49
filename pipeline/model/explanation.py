"""How well each cell of a row fits the others, judged by a row in which it is hidden."""

import torch
from torch import Tensor

from pipeline.model.vae import VAE
from serving.errors import UsageRefused


def explain(model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return log p(cell given the others) - log p(cell among all rows), (batch, columns).

    The encoder sees each row once without each of its cells; with z_k ~ q(z given the others), the
    first term is log mean_k p(cell given z_k). `eps` (batch, num_samples, latent_dim) is that of
    all copies of a row. The lift of a score asks the same of one copy, in which the cell itself
    has had its say, and is faster by the number of columns.
    """
    px = model.mixed
    if px is None:
        raise UsageRefused("explain needs a model of a table with --likelihood mixed")
    rows, columns = px.standardize(x if dtype is None else x.to(dtype)), x.shape[1]
    qz = model.infer(px.hide_each(rows).flatten(0, 1))
    loc, scale = (torch.unflatten(part, 0, (-1, columns)) for part in (qz.loc, qz.scale))
    z = loc.unsqueeze(2) + scale.unsqueeze(2) * eps.unsqueeze(1)
    params = torch.unflatten(model.decoder(z.flatten(0, 2)), 0, (-1, columns, eps.shape[1]))
    cells = px.cell_log_prob(px.own_params(params), rows.unsqueeze(1))
    top = cells.amax(1)
    given = (cells - top.unsqueeze(1)).exp().mean(1).log() + top
    lift = (given - px.cell_reference(rows)) * px.seen(rows)
    return px.in_order(lift)
