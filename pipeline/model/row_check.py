"""Check that a user's network can be served: each row alone decides its result, always the same.

In: a network in evaluation mode and the width of its rows. Out: what is wrong with it, with the
name of the layer. Parity checks the trained model; this check comes before hours of training.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serving.noise import draw_rows

ROWS, FEWER = 4, 2
NOISE = 1e-9
"""The largest difference, relative to the largest value, that float64 may make."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a layer: the tensors that it took and gave."""

    layer: str
    kind: str
    taken: list[Tensor]
    given: list[Tensor]


@torch.no_grad()
def find_row_fault(name: str, module: nn.Module, width: int) -> str | None:
    """Return which layer of the network `name` cannot be served, and why, or None.

    Raises whatever the network raises in float64, which parity compares with, or for one row.
    """
    for layer, part in module.named_modules(prefix=name):
        if isinstance(part, nn.LSTM) and part.proj_size:
            return f"{layer} (LSTM) has proj_size, which ONNX's LSTM lacks"
    module = copy.deepcopy(module).double().eval()
    rows = torch.from_numpy(draw_rows(0, 0, ROWS, width)).double()
    calls = _watch(name, module, rows)
    if found := _first_change(calls, _watch(name, module, rows)):
        return f"{found} is random in evaluation: the same rows give other values"
    if found := _first_change(calls, _watch(name, module, rows[:FEWER])):
        return f"{found} mixes rows in evaluation: the result of a row depends on the other rows"
    module(rows[:1])
    return None


def _watch(name: str, module: nn.Module, rows: Tensor) -> list[_Call]:
    """Run a network and return the calls of its layers in the order in which they end."""
    calls: list[_Call] = []
    handles = []
    for layer, part in module.named_modules(prefix=name):

        def keep(part: nn.Module, taken: Any, given: Any, layer: str = layer) -> None:
            tensors = ([t.clone() for t in _tensors(values)] for values in (taken, given))
            calls.append(_Call(layer, type(part).__name__, *tensors))

        handles.append(part.register_forward_hook(keep))
    module(rows)
    for handle in handles:
        handle.remove()
    return calls


def _first_change(calls: list[_Call], others: list[_Call]) -> str | None:
    """Name the first layer that takes the same and gives something else, if the result differs."""
    if _same(calls[-1].given, others[-1].given):
        return None
    changed = (
        f"{call.layer} ({call.kind})"
        for call, other in zip(calls, others, strict=False)
        if _same(call.taken, other.taken) and not _same(call.given, other.given)
    )
    return next(changed, f"{calls[-1].layer} ({calls[-1].kind})")


def _same(values: list[Tensor], others: list[Tensor]) -> bool:
    return all(_rows_equal(a, b) for a, b in zip(values, others, strict=False))


def _rows_equal(values: Tensor, others: Tensor) -> bool:
    """Compare the part of `values` that is of the rows of `others`, on whatever axis rows are."""
    for axis, size in enumerate(others.shape[: values.dim()]):
        if values.shape[axis] != size:
            values = values.narrow(axis, 0, min(size, values.shape[axis]))
    if values.shape != others.shape:
        return False
    if not values.is_floating_point():
        return torch.equal(values, others)
    scale = values.abs().max() if values.numel() else 0
    return torch.allclose(values, others, rtol=0, atol=float(NOISE * scale), equal_nan=True)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
